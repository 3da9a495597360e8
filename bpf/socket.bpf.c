// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Bytes over sockets: one core, and the hooks that can call it.  User space loads one set of them; see docs/decisions/0340. */
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
#ifdef ONLOOKER_OLD_KERNEL
#define RESP_SHORT_STACK
#endif
#include "protocols/resp.h"
#include "lib/source.h"
#include "lib/serving.h"
#include "lib/connection.h"
#include "lib/subprogram.h"
#include "lib/context.h"
#include "lib/exchange.h"
#include "protocols/classify.h"
#include "lib/segment.h"
#include "lib/redis.h"
#ifndef ONLOOKER_OLD_KERNEL
#include "lib/tls.h"
#include "lib/rustls.h"
#include "lib/rustls_send.h"
#endif
#include "lib/core.h"

const volatile __u64 secret = 0;
const volatile __u32 wakeup_bytes = RING_256_SIZE / 4;

#ifndef ONLOOKER_OLD_KERNEL
#include "hooks/tracepoint.h"
#endif
#include "hooks/fexit.h"
#ifdef ONLOOKER_OLD_KERNEL
#include "hooks/kprobe.h"
#include "hooks/raw_syscalls.h"
#endif

/* The connection of a socket, or of the session that speaks TLS over it. */
static __always_inline struct connection *connection_above(struct sock *sk)
{
	struct connection *c = connection_of(sk);

#ifndef ONLOOKER_OLD_KERNEL
	if (c && c->protocol == PROTOCOL_TLS) {
		struct tls_session *session = tls_session_below(sk);

		return session ? &session->c : NULL;
	}
#endif
	return c;
}

/* What is open on a connection that is over. */
static __always_inline void end_requests(struct connection *c, struct sock *sk, __u32 slot, __u8 error)
{
	struct work *w = work_of(slot);

	if (!w)
		return;
	w->index = slot;
	w->pid_tgid = bpf_get_current_pid_tgid();
	if (!c->tls)
		last_unseen(c, sk, w);
	abandon(c, w, bpf_ktime_get_ns(), error);
}

static __always_inline void end_redis(struct connection *c, __u32 slot)
{
	struct work *w = work_of(slot);

	if (!w)
		return;
	w->index = slot;
	redis_end(c, w);
}

/*
 * This end closes: what a server has not answered by now it will not answer.  Where the other end is the reason (a
 * reset), the watched process does not know yet: bytes may wait to be read, and a send that is under way has worked.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tp_sock_state, struct sock *sk, int oldstate, int newstate)
{
	struct connection *c;
	__u8 error;

	if (newstate == TCP_SYN_SENT) { /* in connect(), by the caller */
		if (flags_of(bpf_get_current_pid_tgid() >> 32) & PROCESS_WATCHED) {
			c = connection_make(sk);
			if (c)
				c->connected = 1;
		}
		return 0;
	}
	if (newstate != TCP_CLOSE && newstate != TCP_FIN_WAIT1 && newstate != TCP_LAST_ACK)
		return 0;
	c = connection_above(sk);
	if (!c)
		return 0;
	if (c->protocol != PROTOCOL_HTTP1) {
		if (newstate == TCP_CLOSE && c->protocol == PROTOCOL_REDIS)
			end_redis(c, WORK_STATE);
		if (newstate == TCP_CLOSE && c->segments && c->protocol != PROTOCOL_OTHER)
			emit_segment_end(c, DIRECTION_SEND,
					 sk->sk_err ? SEGMENT_CLOSE | SEGMENT_RESET : SEGMENT_CLOSE);
		return 0;
	}
	if (c->requests == c->responses)
		return 0;
	error = c->error;
	if (!error) {
		int err = sk->sk_err;

		error = err == ECONNRESET || err == EPIPE ? REQUEST_RESET :
			err == ETIMEDOUT ? REQUEST_TIMED_OUT :
			oldstate == TCP_CLOSE_WAIT || newstate == TCP_LAST_ACK ? REQUEST_PEER_CLOSED :
			REQUEST_LOCAL_CLOSED;
	}
	if (newstate == TCP_CLOSE) {
		c->error = error;
		return 0; /* tp_sock_gone */
	}
	/* a client may close its half and still be answered */
	if (c->request_direction == DIRECTION_SEND && (!(sk->sk_shutdown & RCV_SHUTDOWN) || sk->sk_receive_queue.qlen))
		return 0;
	end_requests(c, sk, WORK_STATE, error);
	return 0;
}

/* Nobody will read from the socket or write to it any more. */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tp_sock_gone, struct sock *sk)
{
	struct connection *c = connection_above(sk);

	if (!c) {
#ifndef ONLOOKER_OLD_KERNEL
		c = connection_of(sk);
		if (c && c->protocol == PROTOCOL_TLS && !c->tls)
			tls_count_opaque(c, sk->sk_err);
#endif
		return 0;
	}
	if (c->protocol == PROTOCOL_HTTP1 && c->requests != c->responses)
		end_requests(c, sk, WORK_GONE, c->error ? c->error : REQUEST_LOCAL_CLOSED);
#ifndef ONLOOKER_OLD_KERNEL
	tls_forget_socket(sk);
#endif
	connection_forget(sk);
	return 0;
}

#ifndef ONLOOKER_OLD_KERNEL
/* Plaintext of a TLS session, at w->source: what on_bytes is to the bytes of a plain socket. */
__noinline int tls_take(struct connection *c, struct work *w, __u32 direction)
{
	struct stream *s;

	if (!c || !w)
		return 0;
	direction &= 1;
	w->emit = EMIT_NONE;
	w->head_of = 0;
	w->datagram = 0;
	w->now_mono_ns = bpf_ktime_get_ns();
	w->first_mono_ns = w->now_mono_ns;
	s = &c->streams[direction];
	s->bytes += w->source.length;
	w->before_mono_ns = s->last_mono_ns;
	s->last_mono_ns = w->now_mono_ns;
	if (c->protocol == PROTOCOL_UNKNOWN && !classify(c, NULL, w, direction, w->now_mono_ns))
		return 0;
	if (c->protocol == PROTOCOL_HTTP1) {
		follow(c, NULL, w, direction);
		if (c->protocol != PROTOCOL_HTTP2)
			return 0;
	}
	if (c->protocol == PROTOCOL_HTTP2)
		follow_http2(c, w, direction);
	else if (c->protocol == PROTOCOL_REDIS)
		follow_redis(c, w, direction);
	else if (c->protocol != PROTOCOL_OTHER)
		emit_segment(c, w, direction);
	return 0;
}

/* The session is over before its socket is. */
__noinline int tls_end(struct connection *c, struct work *w, __u32 error)
{
	if (!c || !w)
		return 0;
	if (c->protocol == PROTOCOL_HTTP1)
		abandon(c, w, bpf_ktime_get_ns(), error);
	else if (c->protocol == PROTOCOL_REDIS)
		redis_end(c, w);
	if (c->protocol != PROTOCOL_HTTP1 && c->segments && c->protocol != PROTOCOL_OTHER)
		emit_segment_end(c, DIRECTION_SEND, error == REQUEST_RESET ? SEGMENT_CLOSE | SEGMENT_RESET : SEGMENT_CLOSE);
	return 0;
}
#endif

char _license[] SEC("license") = "Dual BSD/GPL";
