/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TLS sessions: a connection whose bytes are the plaintext that passes through a library.  It is found by the address
 * that the library knows it by, and joined to the socket below it by thread and order: what a thread sends and receives
 * while it is inside a call on a session belongs to that session; and where a library never touches the socket (memory
 * BIOs), the session that a thread turns to right after it has received from a socket is that socket's.  The join
 * happens once.  Where nothing is certain there is no join, and the requests have no addresses.
 */
#pragma once

struct tls_key {
	__u64 address;	/* of the library's object; 0: not known yet */
	__u32 tgid;
	__u32 pad;
};

struct tls_session {
	struct connection c;
	__u64 socket; /* 0: not known */
	__u64 ahead;  /* bytes that the library was asked to write, were followed, and are not yet written */
	__u64 place;	/* rustls, as all that follows: where its CommonState was met the last time */
	__u64 claimed;	/* bytes that it encrypted and that were not followed yet */
	__u32 blocked;	/* its socket had no room for what was sent last */
	__u32 wrote;	/* it has sent from there */
};

/* Sessions are deleted with their socket, or when the library frees them; user space sweeps after dead processes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, TLS_SESSIONS_MAX);
	__type(key, struct tls_key);
	__type(value, struct tls_session);
} tls_sessions SHARED_MAP;

/* What a session begins as; never written. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tls_session);
} tls_blank SHARED_MAP;

/* Sockets that carry TLS, by address; with their session, or with none yet. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TLS_SESSIONS_MAX);
	__type(key, __u64);
	__type(value, struct tls_key);
} tls_sockets SHARED_MAP;

/*
 * rustls: what was met at an address of the program's.  The socket, which is an address of the kernel's; or the number of bytes
 * of a session that is not known yet.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, RUSTLS_PLACES_MAX);
	__type(key, struct tls_key);
	__type(value, __u64);
} rustls_places SHARED_MAP;

/* Connections that are over and that nobody could see into, by process. */
struct tls_opaque {
	__u64 connections;
	__u64 failed; /* reset or timed out */
	__u64 sent;   /* bytes */
	__u64 received;
	__u64 duration_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TLS_OPAQUE_MAX);
	__type(key, __u32);
	__type(value, struct tls_opaque);
} tls_opaque_connections SHARED_MAP;

int tell_tls(__u32 tgid); /* process.bpf.c */
int tell_loaded(__u32 tgid);

/* Defined in socket.bpf.c: the same engine that follows plain sockets. */
int tls_take(struct connection *c, struct work *w, __u32 direction);
int tls_end(struct connection *c, struct work *w, __u32 error);

static __always_inline struct tls_session *tls_session_of(const struct tls_key *key)
{
	return bpf_map_lookup_elem(&tls_sessions, key);
}

static __always_inline struct tls_session *tls_session_below(struct sock *sk)
{
	__u64 socket = (__u64)sk;
	struct tls_key *key = bpf_map_lookup_elem(&tls_sockets, &socket);

	return key && key->address ? tls_session_of(key) : NULL;
}

static __always_inline struct tls_session *tls_session_make(const struct tls_key *key)
{
	struct tls_session *session = tls_session_of(key);
	__u32 zero = 0;
	void *blank;

	if (session)
		return session;
	blank = bpf_map_lookup_elem(&tls_blank, &zero);
	if (!blank)
		return NULL;
	if (bpf_map_update_elem(&tls_sessions, key, blank, BPF_ANY)) {
		count_loss(LOSS_CONNECTION_MAP_FULL);
		return NULL;
	}
	session = tls_session_of(key);
	if (!session)
		return NULL;
	session->c.id = bpf_ktime_get_ns() ^ ((__u64)bpf_get_smp_processor_id() << 52);
	session->c.tls = TLS_PLAINTEXT;
	return session;
}

/* The session is over, whatever became of what is open on it. */
static __always_inline void tls_forget(const struct tls_key *key, __u64 socket)
{
	if (socket)
		bpf_map_delete_elem(&tls_sockets, &socket);
	bpf_map_delete_elem(&tls_sessions, key);
}

/* A connection ends whose plaintext was not seen: what is left to say of it. */
static __always_inline void tls_count_opaque(struct connection *c, bool failed)
{
	struct tls_opaque fresh = {}, *o;
	__u32 tgid = c->exchanges[CURRENT].tgid; /* left there by join_tls */

	if (!tgid)
		return;
	o = bpf_map_lookup_elem(&tls_opaque_connections, &tgid);
	if (!o) {
		bpf_map_update_elem(&tls_opaque_connections, &tgid, &fresh, BPF_ANY);
		o = bpf_map_lookup_elem(&tls_opaque_connections, &tgid);
		if (!o)
			return;
	}
	__sync_fetch_and_add(&o->connections, 1);
	if (failed)
		__sync_fetch_and_add(&o->failed, 1);
	__sync_fetch_and_add(&o->sent, c->streams[DIRECTION_SEND].bytes);
	__sync_fetch_and_add(&o->received, c->streams[DIRECTION_RECEIVE].bytes);
	__sync_fetch_and_add(&o->duration_ns, bpf_ktime_get_ns() - c->exchanges[CURRENT].start_mono_ns);
}

static __always_inline void tls_forget_socket(struct sock *sk)
{
	__u64 socket = (__u64)sk;
	struct tls_key *of_socket = bpf_map_lookup_elem(&tls_sockets, &socket), key;
	struct tls_session *session;

	if (!of_socket)
		return;
	key = *of_socket;
	session = tls_session_of(&key);
	if (session && session->place) {
		struct tls_key at = {.address = session->place, .tgid = key.tgid};
		__u64 *met = bpf_map_lookup_elem(&rustls_places, &at);

		if (met && *met == socket)
			bpf_map_delete_elem(&rustls_places, &at);
	}
	tls_forget(&key, socket);
}

/* The addresses of the socket below; by helper, because not every program has a pointer that it may follow. */
static __always_inline void tls_learn(struct connection *c, __u64 socket)
{
	struct sock *sk __attribute__((unused)) = (struct sock *)socket;

	c->family = (__u8)BPF_CORE_READ(sk, __sk_common.skc_family);
	if (c->family == AF_INET) {
		map_ipv4(c->local_address, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		map_ipv4(c->remote_address, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	} else if (c->family == AF_INET6) {
		bpf_core_read(c->local_address, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(c->remote_address, 16, &sk->__sk_common.skc_v6_daddr);
	} else {
		return;
	}
	c->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	c->remote_port = __builtin_bswap16(BPF_CORE_READ(sk, __sk_common.skc_dport));
	c->addresses_known = 1;
}

/* Join a session to its socket.  A session that had another socket is a new one at the same address. */
static __always_inline void tls_bind(const struct tls_key *key, __u64 socket)
{
	struct tls_session *session = tls_session_of(key);

	if (session && session->socket && session->socket != socket) {
		tls_forget(key, session->socket);
		session = NULL;
	}
	if (!session)
		session = tls_session_make(key);
	if (!session)
		return;
	session->socket = socket;
	tls_learn(&session->c, socket);
	bpf_map_update_elem(&tls_sockets, &socket, key, BPF_ANY);
}

/* Join a session to a socket that is known to carry TLS, unless either is joined already.  True: it is joined now. */
static __always_inline bool tls_adopt(const struct tls_key *key, __u64 socket)
{
	struct tls_key *of_socket = bpf_map_lookup_elem(&tls_sockets, &socket);
	struct tls_session *session;

	if (!of_socket || of_socket->address)
		return false;
	session = tls_session_of(key);
	if (session && session->socket)
		return false;
	tls_bind(key, socket);
	return true;
}
