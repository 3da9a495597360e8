// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Bytes over sockets, by the tracepoints that fire after each send and receive (6.3 and newer). */
#include "lib/kernel_types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "records.h"
#include "settings.h"
#include "lib/share.h"
#include "lib/losses.h"
#include "lib/rings.h"
#include "lib/core_compat.h"
#include "lib/pid_filter.h"
#include "protocols/http1.h"
#include "protocols/http2.h"
#include "lib/source.h"
#include "lib/connection.h"
#include "lib/context.h"
#include "lib/exchange.h"
#include "protocols/classify.h"
#include "lib/segment.h"
#include "lib/core.h"

const volatile __u64 secret = 0;
const volatile __u32 wakeup_bytes = RING_256_SIZE / 4;

SEC("tp_btf/sock_send_length")
int BPF_PROG(tp_sock_send, struct sock *sk, int result, int flags)
{
	return on_bytes(sk, DIRECTION_SEND, result, flags);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(tp_sock_recv, struct sock *sk, int result, int flags)
{
	return on_bytes(sk, DIRECTION_RECEIVE, result, flags);
}

/* The end of a connection: what is still open on it will not be answered. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tp_sock_state, struct sock *sk, int oldstate, int newstate)
{
	struct connection *c;
	struct work *w;
	__u8 error;

	if (newstate != TCP_CLOSE && newstate != TCP_FIN_WAIT1 && newstate != TCP_LAST_ACK)
		return 0;
	c = connection_of(sk);
	if (!c)
		return 0;
	if (c->protocol != PROTOCOL_HTTP1) {
		if (newstate == TCP_CLOSE && c->segments && c->protocol != PROTOCOL_OTHER)
			emit_segment_end(c, DIRECTION_SEND,
					 sk->sk_err ? SEGMENT_CLOSE | SEGMENT_RESET : SEGMENT_CLOSE);
		return 0;
	}
	if (c->requests == c->responses)
		return 0;
	if (newstate != TCP_CLOSE && c->request_direction == DIRECTION_SEND)
		return 0; /* a client may close its half and still be answered */
	error = c->error;
	if (!error) {
		int err = sk->sk_err;

		error = err == ECONNRESET || err == EPIPE ? REQUEST_RESET :
			err == ETIMEDOUT ? REQUEST_TIMED_OUT :
			oldstate == TCP_CLOSE_WAIT || newstate == TCP_LAST_ACK ? REQUEST_PEER_CLOSED :
			REQUEST_LOCAL_CLOSED;
	}
	w = work_of(WORK_STATE);
	if (w)
		abandon(c, w, bpf_ktime_get_ns(), error);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
