/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * rustls: a session is its socket.  Nothing that passes by the probes says which one it is: CommonState, which takes
 * plaintext in and encrypts it, lives inside the connection and moves with it.  But
 *
 * - plaintext is taken in by the thread that has just received it;
 * - what is encrypted is sent by the same thread, next of all it sends.
 *
 * So what is encrypted waits, as places in the program's memory, for that send, and is followed by its hook: there the socket
 * is sure.  A runtime may not try to send at once, where it knows that the socket has no room, or when a task's turn is over.
 * For that the place of CommonState is kept with the session that was met there: what was encrypted and not followed
 * is claimed of it, and counts as bytes that nobody could read, at the latest with the next that is known of that session.
 */
#pragma once

/* A thread of a process with rustls. */
struct rustls_thread {
	__u64 moved;	  /* the socket whose transfer is looked at: functions that are verified alone take no pointer to it */
	__u64 received;	  /* from which it has received, and taken no plaintext yet; 0: none */
	__u64 taken_from; /* the socket of the plaintext that it took last */
	__u64 taken_at;	  /* and the CommonState that did */
	__u64 asking;	  /* the CommonState that was asked to encrypt, in a call that is under way */
	__u64 asked[4];	  /* that call's OutboundChunks */
	__u64 place;	  /* the CommonState that encrypted what is to be sent next */
	__u64 length;	  /* of the plaintext; 0: there is none */
	__u64 begins[2];  /* its first bytes */
	__u32 count;
	__u32 pad;
	struct user_iovec pieces[MAX_IOVECS];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct rustls_thread);
} rustls_threads SHARED_MAP;

#define IS_SOCKET(value) ((value) >> 63)

static __always_inline struct rustls_thread *rustls_thread(bool make)
{
	return bpf_task_storage_get(&rustls_threads, bpf_get_current_task_btf(), NULL,
				    make ? BPF_LOCAL_STORAGE_GET_F_CREATE : 0);
}

/* The session of a socket that is known to carry TLS; NULL if it is not, or is another library's or process's. */
static __always_inline struct tls_session *rustls_session(const struct tls_key *key)
{
	__u64 socket = key->address;
	struct tls_key *of_socket = bpf_map_lookup_elem(&tls_sockets, &socket);

	if (!of_socket)
		return NULL;
	if (!of_socket->address) {
		bpf_map_delete_elem(&tls_sessions, key); /* of an earlier socket whose end was missed */
		tls_bind(key, socket);
	} else if (of_socket->address != socket || of_socket->tgid != key->tgid) {
		return NULL;
	}
	return tls_session_of(key);
}

/*
 * The session that was met at an address and nowhere else since, if it can still send: a connection is closed before its memory
 * is another one's.  `key` becomes the session's.
 */
static __noinline struct tls_session *rustls_at(struct tls_key *key, __u64 place)
{
	struct tls_key at = {.address = place, .tgid = key->tgid};
	__u64 *socket = bpf_map_lookup_elem(&rustls_places, &at);
	struct tls_session *session;
	struct sock *sk;
	__u8 state;

	if (!socket || !IS_SOCKET(*socket))
		return NULL;
	at.address = *socket;
	session = tls_session_of(&at);
	if (!session || session->place != place)
		return NULL;
	sk = (struct sock *)at.address;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT)
		return NULL;
	key->address = at.address;
	return session;
}

/* A session is met at an address: what an unknown one encrypted there was its own. */
static __noinline void rustls_meet(const struct tls_key *key, struct tls_session *session, __u64 place)
{
	struct tls_key at = {.address = place, .tgid = key->tgid};
	__u64 *old = bpf_map_lookup_elem(&rustls_places, &at);
	__u64 socket = key->address;

	if (session->place != place) {
		session->place = place;
		session->wrote = 0;
	}
	if (old && *old == socket)
		return;
	if (old && !IS_SOCKET(*old))
		session->claimed += *old;
	bpf_map_update_elem(&rustls_places, &at, &socket, BPF_ANY);
}

static __always_inline __u32 rustls_first_bytes(const struct rustls_thread *t, __u64 *bytes)
{
	__u64 n = t->length < 16 ? t->length : 16;

	bytes[0] = bytes[1] = 0;
	if (!t->count)
		return 0;
	if (n > t->pieces[0].length)
		n = t->pieces[0].length;
	n = at_most(n, 16);
	if (bpf_probe_read_user(bytes, n, (void *)t->pieces[0].base))
		return 0;
	return (__u32)n;
}

/*
 * Have what is claimed of a session followed: `source` becomes the thread's own plaintext if it is that and still there, else
 * bytes that nobody can read.
 */
static __noinline void rustls_settle(struct tls_session *session, struct rustls_thread *t, struct source *source)
{
	__u64 length = session->claimed, begins[2];

	session->claimed = 0;
	source->length = length > 0x7fffffff ? 0x7fffffff : (__u32)length;
	source->offset = 0;
	source->iov_count = 0;
	source->iov_start = 0;
	source->iov_index = 0;
	if (t->place != session->place)
		return;
	if (t->length == length && rustls_first_bytes(t, begins) && begins[0] == t->begins[0] &&
	    begins[1] == t->begins[1]) {
		source->iov_count = t->count;
		source->iov_total = t->count;
		bpf_probe_read_kernel(source->iov, sizeof(source->iov), t->pieces);
	}
	t->length = 0;
}
