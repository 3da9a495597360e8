/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * on_bytes: what every hook calls after bytes have moved over a socket.  Cheapest refusal first:
 * the process, the result, the socket's kind, a socket once found to be of no interest.
 */
#pragma once

/* Who spoke first on a connection whose first bytes these are. */
static __always_inline void learn_first(struct connection *c, struct sock *sk, __u32 direction, int result)
{
	struct tcp_sock *tcp;

	if (c->family == AF_UNIX || c->streams[!direction].bytes || c->streams[direction & 1].bytes != result)
		return;
	tcp = tcp_of(sk);
	if (!tcp)
		return;
	if (direction == DIRECTION_RECEIVE ? !KERNEL_FIELD(tcp, bytes_sent) :
		    KERNEL_FIELD(tcp, bytes_received) == KERNEL_FIELD(tcp, rcv_nxt) - KERNEL_FIELD(tcp, copied_seq))
		c->first = 1 + direction;
}

/* Which protocol do the first bytes of a connection speak?  True: they are to be followed now. */
static __always_inline bool classify(struct connection *c, struct sock *sk, struct work *w, __u32 direction,
				     __u64 now)
{
	struct stream *s = &c->streams[direction & 1];
	__u32 carry = s->carry_length, n, length, requests;
	int verdict;

	if (carry > 16)
		carry = 0;
	/* a letter that answers PostgreSQL's SSLRequest is a message of its own, not the beginning of the next one */
	if (carry == 1 && c->streams[(!direction) & 1].scores >> (CLASSIFY_STRONG_SHIFT + PROTOCOL_POSTGRES) & 1)
		carry = 0;
	if (carry)
		bpf_probe_read_kernel(w->window.bytes, at_most(carry, 16), s->carry);
	else
		s->start_mono_ns = now;
	n = read_window(w, carry, 32);
	verdict = VERDICT_NO;
	length = carry + n;
	if (n) {
		w->window.length = length;
		verdict = classify_window(w);
	}
	if (verdict == VERDICT_REQUEST || verdict == VERDICT_RESPONSE) {
		c->protocol = PROTOCOL_HTTP1;
		c->request_direction = verdict == VERDICT_REQUEST ? direction : !direction;
		s->carry_length = carry;
		/* what the other direction kept was not HTTP */
		c->streams[(!direction) & 1].carry_length = 0;
		return true;
	}
	if (n && http2_may_be_preface(w->window.bytes, length))
		verdict = VERDICT_MORE;
	if (verdict == VERDICT_MORE && length <= 16) {
		bpf_probe_read_kernel(s->carry, at_most(length, 16), w->window.bytes);
		s->carry_length = length;
		return false;
	}
	s->carry_length = 0;
	if (!n)
		return false;
	if (http2_is_preface(w->window.bytes, length)) {
		/* nothing else begins like this, and the other direction need not be waited for */
		c->protocol = PROTOCOL_HTTP2;
		c->request_direction = direction;
		s->carry_length = carry;
		http2_start(&c->streams[direction & 1].walker, 1);
		http2_start(&c->streams[(!direction) & 1].walker, 0);
		return true;
	}
	classify_others(c, w, direction);
	requests = seems_client(c, sk) ? DIRECTION_SEND : DIRECTION_RECEIVE;
	verdict = protocol_agree(c->streams[requests].scores, c->streams[!requests].scores);
	if (AGREE_PROTOCOL(verdict)) {
		c->protocol = AGREE_PROTOCOL(verdict);
		c->request_direction = verdict & AGREE_SWAPPED ? !requests : requests;
		if (c->protocol == PROTOCOL_REDIS && c->first && !c->connected)
			c->request_direction = c->first - 1; /* what it says may fit both ways, ports mislead */
		if (c->protocol == PROTOCOL_TLS && c->tls)
			c->protocol = PROTOCOL_OTHER; /* TLS inside TLS */
		if (c->protocol == PROTOCOL_HTTP2) {
			/* in the middle: the walkers wait for a frame that they can believe */
			zero_words(&c->streams[0].walker, sizeof(struct http2_walker));
			zero_words(&c->streams[1].walker, sizeof(struct http2_walker));
		}
		return true;
	}
	if ((s->scores | s->scores >> CLASSIFY_RESPONSE_SHIFT) >> PROTOCOL_REDIS & 1)
		redis_walk(c, w, direction, 0);
	if (++c->tries >= (c->tls			      ? TLS_CLASSIFY_TRIES :
			   c->streams[(!direction) & 1].bytes ? CLASSIFY_TRIES :
								CLASSIFY_TRIES_UNANSWERED))
		c->protocol = PROTOCOL_OTHER;
	return true;
}

/* A response has ended HTTP/1 on this connection.  Where HTTP/2 follows, the server's frames begin right behind it. */
static __always_inline void upgrade(struct connection *c)
{
	if (c->protocol != PROTOCOL_HTTP2)
		return;
	http2_start(&c->streams[c->request_direction & 1].walker, 1);
	http2_start(&c->streams[(!c->request_direction) & 1].walker, 0);
	c->segments = 1; /* what was asked for went up as the record of an exchange: it comes before all segments */
}

/* Follow the transfer's bytes through the messages they belong to. */
static __always_inline void follow(struct connection *c, struct sock *sk, struct work *w, __u32 direction)
{
	locate(c, sk, w, direction);
	if (w->unseen) {
		http1_unseen(c, w, direction);
		if (w->emit)
			emit(c, w);
	}
	for (int i = 0; i < STEPS_MAX; i++) {
		int again = http1_step(c, w, direction);

		if (w->head_of)
			request_context(c, w, direction);
		if (w->emit)
			emit(c, w);
		if (c->protocol != PROTOCOL_HTTP1) {
			upgrade(c);
			return;
		}
		if (!again || w->source.offset == w->source.length)
			return;
	}
	count_loss(LOSS_STEPS);
}

/* A transfer failed, or the peer closed: the end of a UNIX stream is seen in no other way. */
static __always_inline void on_end(struct connection *c, struct sock *sk, struct work *w, __u32 direction, int result)
{
	if (c->protocol != PROTOCOL_HTTP1) {
		if (c->protocol == PROTOCOL_REDIS && result)
			redis_end(c, w);
		if (c->segments && !c->datagram)
			emit_segment_end(c, direction, result ? SEGMENT_CLOSE | SEGMENT_RESET : SEGMENT_EOF);
		return;
	}
	if (!result) {
		if (direction == DIRECTION_RECEIVE && c->request_direction == DIRECTION_SEND) {
			last_unseen(c, sk, w);
			abandon(c, w, bpf_ktime_get_ns(), REQUEST_PEER_CLOSED);
		}
		return;
	}
	if (result == -ECONNRESET || result == -EPIPE)
		c->error = REQUEST_RESET;
	else if (result == -ETIMEDOUT)
		c->error = REQUEST_TIMED_OUT;
	else
		return;
	/* a client that cannot send any more may still read what the server had said */
	if (c->family == AF_UNIX || direction == DIRECTION_RECEIVE || c->request_direction == DIRECTION_RECEIVE) {
		last_unseen(c, sk, w);
		abandon(c, w, bpf_ktime_get_ns(), c->error);
	}
}

#ifdef ONLOOKER_OLD_KERNEL
/* Probes on libraries need cookies (5.15). */
static __always_inline void expect_tls(struct connection *c)
{
}

static __always_inline void join_tls(struct connection *c, struct sock *sk, __u32 direction)
{
}

static __always_inline void tls_forget_socket(struct sock *sk)
{
}

static __always_inline void rustls_moved(struct sock *sk, __u32 direction, int result, int flags)
{
}
#else
/* What a thread moves inside a call that moves plaintext is ciphertext, whatever it looks like. */
static __always_inline void expect_tls(struct connection *c)
{
	struct thread *thread;

	if (c->protocol == PROTOCOL_TLS || c->protocol == PROTOCOL_HTTP1 || c->family == AF_UNIX || c->datagram)
		return;
	thread = current_thread(false);
	if (thread && thread->tls_session && !thread->tls_handshake)
		c->protocol = PROTOCOL_TLS;
}

/* Join the socket to its session, as far as this transfer tells; see tls.h. */
static __noinline void join_tls(struct connection *c, struct sock *sk, __u32 direction)
{
	struct tls_key key = {.tgid = bpf_get_current_pid_tgid() >> 32}, *of_socket;
	__u64 socket = (__u64)sk;
	struct thread *thread;

	if (c->tls)
		return;
	if (!c->exchanges[CURRENT].tgid) {
		c->exchanges[CURRENT].tgid = key.tgid;
		c->exchanges[CURRENT].start_mono_ns = bpf_ktime_get_ns();
	}
	if (!(flags_of(key.tgid) & PROCESS_TLS)) {
		tell_tls(key.tgid);
		return;
	}
	thread = current_thread(true);
	if (!thread)
		return;
	if (thread->tls_session) {
		key.address = thread->tls_session;
		tls_bind(&key, socket);
		c->tls = TLS_JOINED;
		return;
	}
	of_socket = bpf_map_lookup_elem(&tls_sockets, &socket);
	if (of_socket && of_socket->address) {
		c->tls = TLS_JOINED;
		return;
	}
	if (!of_socket)
		bpf_map_update_elem(&tls_sockets, &socket, &key, BPF_ANY);
	thread->tls_socket = direction == DIRECTION_RECEIVE ? socket : 0;
}
#endif

static __always_inline bool seems_tls(const struct stream *s)
{
	return (s->scores >> CLASSIFY_STRONG_SHIFT) >> PROTOCOL_TLS & 1;
}

/* Ciphertext is counted, and its end told to the session; what it says is seen in tls.bpf.c. */
static __always_inline void on_ciphertext(struct connection *c, struct sock *sk, struct work *w, __u32 direction, int result)
{
	learn_addresses(c, sk);
	if (result > 0) {
		c->streams[direction & 1].bytes += result;
		join_tls(c, sk, direction);
		return;
	}
#ifndef ONLOOKER_OLD_KERNEL
	struct tls_session *session = tls_session_below(sk);

	if (session)
		on_end(&session->c, NULL, w, direction, result);
#endif
}

/*
 * `result` bytes have moved over `sk` in `direction`; the caller is still in its system call.  The first `skip` bytes of
 * its buffers are others, which were dealt with before.
 */
static __always_inline int on_bytes_behind(struct sock *sk, __u32 direction, int result, int flags, __u32 skip)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u32 tgid = pid_tgid >> 32;
	struct connection *c;
	struct stream *s;
	struct call call;
	struct work *w;
	__u16 family, type;

	if (!(flags_of(tgid) & PROCESS_WATCHED))
		return 0;
	if (result <= 0 && vectors_used)
		end_messages(current_thread(false));
	if (flags_of(tgid) & PROCESS_RUSTLS)
		rustls_moved(sk, direction, result, flags);
	if (result == -EAGAIN)
		return 0;
	if (flags & (MSG_PEEK | MSG_ERRQUEUE) && direction == DIRECTION_RECEIVE)
		return 0;
	family = KERNEL_FIELD(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6 && family != AF_UNIX)
		return 0;
	type = KERNEL_FIELD(sk, sk_type);
	if (type != SOCK_STREAM && (type != SOCK_DGRAM || family == AF_UNIX))
		return 0;
	c = connection_of(sk);
	if (!c) {
		if (result <= 0)
			return 0;
		c = connection_make(sk);
		if (!c)
			return 0;
	}
	if (flags_of(tgid) & PROCESS_TLS)
		expect_tls(c);
	if (c->protocol == PROTOCOL_OTHER)
		return 0;
	w = work_of(direction);
	if (!w)
		return 0;
	w->index = direction;
	w->pid_tgid = pid_tgid;
	w->emit = EMIT_NONE;
	w->head_of = 0;
	w->datagram = c->datagram;
	if (c->protocol == PROTOCOL_TLS) {
		on_ciphertext(c, sk, w, direction, result);
		return 0;
	}
	if (result <= 0) {
		on_end(c, sk, w, direction, result);
		return 0;
	}
	current_call(&call);
	if (call.number == NR_sendmmsg || call.number == NR_recvmmsg) {
		__u32 index = next_message(current_thread(true), call.arg1, (__u32)call.arg2);

		w->source.length = result;
		w->source.offset = 0;
		source_message(&w->source, call.arg1 + index * sizeof(struct user_multi_message));
		if (direction == DIRECTION_SEND && source_room(&w->source) > result)
			end_messages(current_thread(false)); /* sent in part: the call ends with it */
	} else {
		source_of_call(&w->source, result, &call);
	}
	if (skip)
		source_skip(&w->source, skip);
	if (direction == DIRECTION_RECEIVE && flags & MSG_TRUNC)
		w->source.iov_count = 0; /* thrown away, not copied */

	w->now_mono_ns = bpf_ktime_get_ns();
	s = &c->streams[direction & 1];
	s->bytes += result;
	w->before_mono_ns = s->last_mono_ns;
	s->last_mono_ns = w->now_mono_ns;
	if (c->protocol == PROTOCOL_UNKNOWN)
		learn_addresses(c, sk);
	if (c->protocol == PROTOCOL_UNKNOWN && !c->datagram)
		learn_first(c, sk, direction, result);
	w->first_mono_ns = arrival(c, sk, direction, result, w->now_mono_ns);
	if (c->protocol == PROTOCOL_UNKNOWN) {
		if (!classify(c, sk, w, direction, w->first_mono_ns))
			return 0;
		if (c->protocol == PROTOCOL_TLS || (c->protocol == PROTOCOL_UNKNOWN && seems_tls(s))) {
			join_tls(c, sk, direction);
			return 0;
		}
		if (c->protocol == PROTOCOL_HTTP1)
			locate_first(c, sk);
	}
	if (c->protocol == PROTOCOL_HTTP1) {
		follow(c, sk, w, direction);
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

static __always_inline int on_bytes(struct sock *sk, __u32 direction, int result, int flags)
{
	return on_bytes_behind(sk, direction, result, flags, 0);
}

/*
 * The same for hooks that are several programs: a kernel that may interrupt one of them (CONFIG_PREEMPT) could begin
 * another on this CPU, over the same work.  The kernel itself keeps a single program from that.
 */
static __always_inline int on_bytes_shared(struct sock *sk, __u32 direction, int result, int flags, __u32 skip)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct work *w;

	if (!(flags_of(tgid) & PROCESS_WATCHED))
		return 0;
	w = work_of(direction);
	if (!w)
		return 0;
	if (*(volatile __u32 *)&w->busy) {
		count_loss(LOSS_PREEMPTED);
		return 0;
	}
	*(volatile __u32 *)&w->busy = 1;
	on_bytes_behind(sk, direction, result, flags, skip);
	*(volatile __u32 *)&w->busy = 0;
	return 0;
}
