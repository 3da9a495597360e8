/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* rustls, as the hooks on sockets see it: what was encrypted is followed with the send behind it; see rustls.h. */
#pragma once

/* What a record has besides its plaintext, in the suites of rustls. */
#define IS_RECORD(moved, plaintext)                                                                                   \
	((moved) - (plaintext) == 5 + 1 + 16 /* RFC 8446 section 5.2: type and tag */ ||                              \
	 (moved) - (plaintext) == 5 + 8 + 16 /* RFC 5246 section 6.2.3.3, GCM: explicit nonce and tag */ ||           \
	 (moved) - (plaintext) == 5 + 16 /* RFC 7905: tag */)

/*
 * Whether the call that is sending was asked for a record of so many bytes of plaintext as its last buffer.  rustls has a buffer
 * for each record, and sends all that wait; something else in between may take one at a time, the longest first.
 */
static __always_inline bool rustls_sends_records_of(__u64 plaintext)
{
	__u64 last = ((plaintext - 1) & (TLS_RECORD - 1)) + 1;
	struct user_message message;
	struct user_iovec buffer = {};
	struct call call;
	__u64 list, count;

	current_call(&call);
	if (call.number == NR_write || call.number == NR_sendto)
		return IS_RECORD(call.arg2, last) || (plaintext > TLS_RECORD && IS_RECORD(call.arg2, TLS_RECORD));
	list = call.arg1;
	count = call.arg2;
	if (call.number == NR_sendmsg) {
		if (bpf_probe_read_user(&message, sizeof(message), (void *)call.arg1))
			return false;
		list = message.iov;
		count = message.iov_count;
	} else if (call.number != NR_writev) {
		return false;
	}
	if (!count || bpf_probe_read_user(&buffer, sizeof(buffer), (void *)(list + (count - 1) * sizeof(buffer))))
		return false;
	return IS_RECORD(buffer.length, last);
}

/*
 * The socket t->moved has sent, or had no room.  Gives 1 if the session over it has plaintext in w->source that is to be
 * followed now.
 */
__noinline int rustls_sends(struct work *w, __u32 blocked)
{
	struct tls_key key = {}, other = {};
	struct rustls_thread *t = rustls_thread(false);
	struct tls_session *session, *met;

	if (!w || !t)
		return 0;
	key.tgid = other.tgid = bpf_get_current_pid_tgid() >> 32;
	key.address = t->moved;
	session = tls_session_of(&key);
	if (t->length) {
		met = rustls_at(&other, t->place);
		/*
		 * Where it is not known who encrypted, or where a session that never sent should be another one that is still
		 * there: as the records say.  Bytes of its own that wait to be sent are another matter.
		 */
		if ((!met || (other.address != key.address && !(session && session->wrote))) && !(session && session->claimed) &&
		    rustls_sends_records_of(t->length)) {
			if (met)
				met->claimed = 0;
			session = rustls_session(&key);
			if (session) {
				rustls_meet(&key, session, t->place);
				if (session->claimed < t->length) /* what stood for it at the address is gone */
					session->claimed = t->length;
			}
		}
	}
	if (!session)
		return 0;
	session->blocked = blocked;
	if (!session->claimed)
		return 0;
	session->wrote = 1;
	rustls_settle(session, t, &w->source);
	return session->c.protocol != PROTOCOL_OTHER;
}

/* The session over the socket t->moved.  A function of its own, as some here are, because a hook's stack is used up. */
static __noinline struct tls_session *rustls_over(const struct rustls_thread *t)
{
	struct tls_key key = {.address = t->moved, .tgid = bpf_get_current_pid_tgid() >> 32};

	return tls_session_of(&key);
}

/* A thread has moved bytes over a socket, or there was no room for them. */
static __always_inline void rustls_moved(struct sock *sk, __u32 direction, int result, int flags)
{
	struct tls_session *session;
	struct rustls_thread *t;
	struct work *w;
	__u16 family;

	if (result <= 0 && (direction == DIRECTION_RECEIVE || result != -EAGAIN))
		return;
	if (direction == DIRECTION_RECEIVE && flags & (MSG_PEEK | MSG_ERRQUEUE))
		return;
	family = KERNEL_FIELD(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return;
	t = rustls_thread(true);
	if (!t)
		return;
	if (direction == DIRECTION_RECEIVE) {
		t->received = (__u64)sk;
		return;
	}
	w = work_of(direction);
	if (!w)
		return;
	t->moved = (__u64)sk;
	if (!rustls_sends(w, result <= 0))
		return;
	session = rustls_over(t);
	if (!session)
		return;
	w->index = direction;
	w->pid_tgid = bpf_get_current_pid_tgid();
	tls_take(&session->c, w, direction);
}
