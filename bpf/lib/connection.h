/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * State of a connection, kept in its socket's own storage: the kernel frees it with the socket,
 * so nothing leaks and nothing is swept.
 */
#pragma once

/* A request that waits for its response. */
struct exchange {
	__u64 start_mono_ns;
	__u64 end_mono_ns;
	__u64 body_bytes;
	struct context context;
	__u32 sequence;
	__u32 tgid;
	__u32 tid;
	__u16 flags;	     /* enum request_flags */
	__u16 target_length;
	__u16 text_length;
	__u8 target_start;
	__u8 host_length;
	__u8 method;
	__u8 open;
	__u8 counted;	     /* enum counted: in whose open requests it is */
	__u8 pad[5];
};

enum phase {
	PHASE_START = 0, /* the next byte begins a message */
	PHASE_HEAD = 1,
	PHASE_BODY = 2,	 /* `remaining` bytes, of a content length */
	PHASE_DATA = 3,	 /* `remaining` bytes of a chunk, its line end included */
	PHASE_CHUNK = 4, /* the lines between chunks */
	PHASE_CLOSE = 5, /* until the connection ends */
	PHASE_LOST = 6,	 /* out of step: nothing is believed until the next request */
};

/* One direction. */
struct stream {
	__u64 remaining;
	__u64 body_bytes;    /* of the message so far */
	__u64 start_mono_ns; /* first byte of the message */
	__u64 last_mono_ns;  /* newest byte of the message */
	__u64 bytes;	     /* moved since the connection is watched */
	__u64 scores;	     /* classify.h: what the newest transfer could be */
	union {
		struct {
			struct http1_head head;
			struct http1_chunk chunk;
		};
		struct http2_walker walker;
	};
	__u32 tcp_seq;	     /* TCP: where the next byte should stand */
	__u16 carry_length;
	__u16 status;	     /* responses */
	__u16 flags;	     /* responses: enum request_flags */
	__u8 phase;
	__u8 tcp_known;	     /* tcp_seq is */
	__u8 header;	     /* scores are those of a header that was read by itself; its message follows */
	__u8 pad[3];
	__u8 carry[CARRY_SIZE];
};

enum tls {
	TLS_PLAINTEXT = 1, /* the bytes are what passes through a TLS library */
	TLS_JOINED = 2,	   /* a socket that carries TLS, and whose session is known */
};

struct connection {
	__u64 id;
	__u64 peer_key;		/* see there; over TCP always the same */
	__u64 head_requests;	/* one bit a sequence number: the response has no body */
	__u64 connect_requests; /* one bit a sequence number: a 2xx ends HTTP */
	__u32 requests;		/* begun so far */
	__u32 responses;	/* finished so far */
	__u8 protocol;		/* enum protocol */
	__u8 request_direction; /* enum direction: the one that requests go in */
	__u8 family;
	__u8 tries;		/* transfers that did not tell the protocol */
	__u8 addresses_known;
	__u8 error;		/* enum request_error, once the connection is broken */
	__u16 local_port;
	__u16 remote_port;
	__u8 datagram;		/* SOCK_DGRAM: transfers are messages */
	__u8 connected;		/* this end called connect() */
	__u8 tls;		/* enum tls */
	__u8 first;		/* 1 + enum direction of the first bytes that ever moved; 0: not known */
	__u8 pad[2];
	__u32 segments;		/* handed to user space so far */
#ifdef ONLOOKER_OLD_KERNEL
	__u64 key;
	__u64 inode;		/* of the socket: tells one from a later one at the same address; 0: not known */
#endif
	__u8 local_address[16];
	__u8 remote_address[16];
	struct stream streams[2]; /* by enum direction */
	struct exchange exchanges[2]; /* CURRENT, and AHEAD: read while the current one waits (pipelining) */
	__u8 texts[2][HTTP_LONG_TEXT_SIZE];
	__u8 slack[168]; /* never written: lets the verifier see that appending to a text stays inside */
};

enum {
	CURRENT = 0,
	AHEAD = 1,
};

#ifdef ONLOOKER_OLD_KERNEL
/* By the socket's address, which is used again after the socket is gone. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CONNECTIONS_MAX);
	__type(key, __u64);
	__type(value, struct connection);
} connections SHARED_MAP;

static struct connection blank_connection; /* stays zero */

static __always_inline __u64 inode_of(struct sock *sk)
{
	struct socket *socket = BPF_CORE_READ(sk, sk_socket);

	return socket ? BPF_CORE_READ((struct socket_alloc *)socket, vfs_inode.i_ino) : 0;
}

static __always_inline struct connection *connection_of(struct sock *sk)
{
	__u64 key = (__u64)sk, inode;
	struct connection *c = bpf_map_lookup_elem(&connections, &key);

	if (!c)
		return NULL;
	inode = inode_of(sk);
	if (inode && c->inode && inode != c->inode) {
		bpf_map_delete_elem(&connections, &key);
		return NULL;
	}
	return c;
}

static __always_inline struct connection *connection_create(struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct connection *c;

	bpf_map_update_elem(&connections, &key, &blank_connection, BPF_NOEXIST);
	c = bpf_map_lookup_elem(&connections, &key);
	if (c) {
		c->key = key;
		c->inode = inode_of(sk);
	}
	return c;
}

static __always_inline void connection_forget(struct sock *sk)
{
	__u64 key = (__u64)sk;

	bpf_map_delete_elem(&connections, &key);
}
#else
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct connection);
} connections SHARED_MAP;

static __always_inline struct connection *connection_of(struct sock *sk)
{
	return bpf_sk_storage_get(&connections, sk, NULL, 0);
}

static __always_inline struct connection *connection_create(struct sock *sk)
{
	return bpf_sk_storage_get(&connections, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
}

static __always_inline void connection_forget(struct sock *sk)
{
}
#endif

static __always_inline struct connection *connection_make(struct sock *sk)
{
	struct connection *c = connection_create(sk);

	if (!c) {
		count_loss(LOSS_CONNECTION_MAP_FULL);
		return NULL;
	}
	c->id = bpf_ktime_get_ns() ^ ((__u64)bpf_get_smp_processor_id() << 52);
	c->family = (__u8)KERNEL_FIELD(sk, __sk_common.skc_family);
	c->datagram = KERNEL_FIELD(sk, sk_type) == SOCK_DGRAM;
	c->request_direction = DIRECTION_SEND; /* until known */
	return c;
}

static __always_inline void map_ipv4(__u8 *to, __be32 address)
{
	((__u64 *)to)[0] = 0;
	((__u32 *)to)[2] = __builtin_bswap32(0xffff);
	((__u32 *)to)[3] = address;
}

static __always_inline void learn_addresses(struct connection *c, struct sock *sk)
{
	if (c->addresses_known || c->family == AF_UNIX)
		return;
	if (c->family == AF_INET) {
		map_ipv4(c->local_address, KERNEL_FIELD(sk, __sk_common.skc_rcv_saddr));
		map_ipv4(c->remote_address, KERNEL_FIELD(sk, __sk_common.skc_daddr));
	} else {
#ifdef ONLOOKER_OLD_KERNEL
		bpf_core_read(c->local_address, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(c->remote_address, 16, &sk->__sk_common.skc_v6_daddr);
#else
		/* v4-mapped addresses stand here as ::ffff:a.b.c.d already */
		for (int i = 0; i < 4; i++) {
			((__u32 *)c->local_address)[i] =
				sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[i];
			((__u32 *)c->remote_address)[i] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[i];
		}
#endif
	}
	c->local_port = KERNEL_FIELD(sk, __sk_common.skc_num);
	c->remote_port = __builtin_bswap16(KERNEL_FIELD(sk, __sk_common.skc_dport));
	c->addresses_known = 1;
}


/*
 * Which side is this end, before its bytes tell?  Who called connect() is the client; of a
 * connection older than the agent, the end with the lower port is taken for the server.
 */
static __always_inline bool seems_client(const struct connection *c, struct sock *sk)
{
	if (c->connected)
		return true;
	if (c->family == AF_UNIX) /* a client's end has no name */
		return !BPF_CORE_READ((struct unix_sock *)sk, addr);
	return c->local_port > c->remote_port;
}
