/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Trace context: identities of requests, the request that a thread is serving, and the client's
 * request at the other end of a connection on this host.  Where the parent is not certain there
 * is none.
 */
#pragma once

/* What is known of a thread. */
struct thread {
	struct serving serving;
	__u64 message_vector;	/* sendmmsg, recvmmsg: the vector of the call that is under way */
	__u32 message_index;
	__u8 tls_handshake;	/* the call on tls_session moves no plaintext */
	__u8 tls_ahead;		/* what it moves was followed when it began */
	__u8 tls_dull;		/* it has met a session of which nothing is told */
	__u8 pad0;
	__u64 tls_session;	/* of a TLS library, whose call this thread is in; 0: in none */
	__u64 tls_buffer;	/* arguments of that call */
	__u64 tls_length;
	__u64 tls_moved_at;
	__u64 tls_socket;	/* with TLS, from which the thread has just received outside of such calls */
#ifdef ONLOOKER_OLD_KERNEL
	__u64 start_boot_ns;	/* tells a thread from a later one with the same id */
#endif
};

#ifdef ONLOOKER_OLD_KERNEL
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, THREADS_MAX);
	__type(key, __u64);
	__type(value, struct thread);
} threads SHARED_MAP;

static struct thread blank_thread; /* stays zero */

static __always_inline struct thread *current_thread(bool make)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u64 key = bpf_get_current_pid_tgid(), started = BPF_CORE_READ(task, start_boottime);
	struct thread *thread = bpf_map_lookup_elem(&threads, &key);

	if (thread && thread->start_boot_ns == started)
		return thread;
	if (!make)
		return NULL;
	bpf_map_update_elem(&threads, &key, &blank_thread, BPF_ANY);
	thread = bpf_map_lookup_elem(&threads, &key);
	if (thread)
		thread->start_boot_ns = started;
	return thread;
}
#else
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SHARED_MAP;

static __always_inline struct thread *current_thread(bool make)
{
	return bpf_task_storage_get(&threads, bpf_get_current_task_btf(), NULL,
				    make ? BPF_LOCAL_STORAGE_GET_F_CREATE : 0);
}
#endif

/*
 * The open server requests of a process whose threads are no certain context.  The sums make the
 * ids of the only open request readable without a list: with one open, the sum is its id.
 */
struct process {
	__u64 open;
	__u64 changes;
	__u64 trace_id_sum[2];
	__u64 span_id_sum;
	__u64 flags_sum;
	__u64 parent_span_id; /* the newest that became somebody's parent */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PROCESSES_MAX);
	__type(key, __u32);
	__type(value, struct process);
} processes SHARED_MAP;

/* What a client leaves for the server at the other end of its connection. */
struct client_context {
	__u64 trace_id[2];
	__u64 span_id;
	__u64 mono_ns;
	__u32 stamp; /* of the request's first byte: TCP sequence number, or offset in a UNIX stream */
	__u8 trace_flags;
	__u8 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CONTEXTS_MAX);
	__type(key, __u64);
	__type(value, struct client_context);
} client_contexts SHARED_MAP;

/* Requests whose end another task saw (a reset, a close from elsewhere): threads to put right, by tid. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PROCESSES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} ended_elsewhere SHARED_MAP;

#define CLIENT_CONTEXT_AGE_NS (60ULL * 1000 * 1000 * 1000)
#define CLIENT_CONTEXT_STEP_NS (1000ULL * 1000 * 1000)

/* A bijective mixer (the finaliser of SplitMix64): spreads a counter or a sum over all bits. */
static __always_inline __u64 mix(__u64 x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

/* All zero means none. */
static __always_inline __u64 some_id(__u64 id)
{
	return id ? id : 1;
}

/* Whether any thread moves several messages in a call: then the end of such a call matters. */
__u8 vectors_used SHARED;

/* A call that moves several messages is over before their number is reached. */
static __always_inline void end_messages(struct thread *thread)
{
	if (thread)
		thread->message_vector = 0;
}

static __always_inline __u32 next_message(struct thread *thread, __u64 vector, __u32 count)
{
	__u32 index = 0;

	if (!thread)
		return 0;
	if (thread->message_vector == vector && thread->message_index + 1 < count)
		index = thread->message_index + 1;
	thread->message_vector = vector;
	thread->message_index = index;
	if (!vectors_used)
		vectors_used = 1;
	return index;
}

/* A number that both ends of a connection on this host compute alike; the client's end first. */
static __always_inline __u64 peer_key(const struct connection *c, __u64 server_socket, bool client)
{
	const __u64 *client_address = (const __u64 *)(client ? c->local_address : c->remote_address);
	const __u64 *server_address = (const __u64 *)(client ? c->remote_address : c->local_address);
	__u64 ports, key;

	if (c->family == AF_UNIX)
		return server_socket ? mix(server_socket ^ secret) : 0;
	ports = client ? (__u64)c->local_port << 16 | c->remote_port :
			 (__u64)c->remote_port << 16 | c->local_port;
	/* a polynomial at a point that only we know */
	key = mix(client_address[0] ^ secret);
	key = (key + client_address[1] + ports) * (secret | 1);
	key = (key ^ server_address[0]) * (secret | 1);
	return mix(key + server_address[1]);
}

/* When a client on this host began a request the last time, to a second: without one there is nothing to look for. */
__u64 newest_client_mono_ns SHARED;

/* Take the client's context over, if it is there by now.  `now`: not before the last byte of the request. */
static __always_inline void resolve(struct context *context, __u64 now)
{
	struct client_context *client;
	__u64 key = context->peer_key; /* on the stack: 6.1 takes keys from nowhere else */

	if (context->source != PARENT_NONE || !key ||
	    now > newest_client_mono_ns + CLIENT_CONTEXT_AGE_NS + CLIENT_CONTEXT_STEP_NS)
		return;
	client = bpf_map_lookup_elem(&client_contexts, &key);
	if (!client || client->stamp != context->peer_stamp)
		return;
	if (bpf_ktime_get_ns() - client->mono_ns > CLIENT_CONTEXT_AGE_NS)
		return;
	context->trace_id[0] = client->trace_id[0];
	context->trace_id[1] = client->trace_id[1];
	context->parent_span_id = client->span_id;
	context->trace_flags = client->trace_flags;
	context->source = PARENT_PEER;
}

/*
 * A request is new: its ids are those that traceparent says, or are made of what is unique on this host, the connection and
 * the request's number on it.  The secret makes them differ between hosts.
 */
static __always_inline void context_new(struct context *context, const struct http1_head *head, __u64 connection_id,
					__u32 sequence)
{
	__u64 of_connection = mix(connection_id ^ secret);

	context->span_id = some_id(mix(of_connection + sequence));
	context->peer_key = 0;
	if (head->flags & HEAD_TRACEPARENT) {
		context->trace_id[0] = head->trace_id[0];
		context->trace_id[1] = head->trace_id[1];
		context->parent_span_id = head->parent_span_id;
		context->trace_flags = head->trace_flags;
		context->source = PARENT_HEADER;
		return;
	}
	context->trace_id[0] = mix(context->span_id - of_connection);
	context->trace_id[1] = some_id(mix(context->trace_id[0] ^ of_connection));
	context->parent_span_id = 0;
	context->trace_flags = 1;
	context->source = PARENT_NONE;
}

static __always_inline void process_sum(struct process *p, const struct context *context, __u64 sign)
{
	__sync_fetch_and_add(&p->changes, 1);
	__sync_fetch_and_add(&p->open, sign);
	__sync_fetch_and_add(&p->trace_id_sum[0], context->trace_id[0] * sign);
	__sync_fetch_and_add(&p->trace_id_sum[1], context->trace_id[1] * sign);
	__sync_fetch_and_add(&p->span_id_sum, context->span_id * sign);
	__sync_fetch_and_add(&p->flags_sum, context->trace_flags * sign);
	__sync_fetch_and_add(&p->changes, 1);
}

/* Take off what ended elsewhere; which request remains is then not certain any more. */
static __always_inline void serving_settle(struct serving *s, __u32 tid)
{
	__u32 *ended;

	if (!s->open || s->tid)
		return;
	ended = bpf_map_lookup_elem(&ended_elsewhere, &tid);
	if (!ended)
		return;
	s->open = s->open > *ended ? s->open - *ended : 0;
	s->connection_id = 0;
	bpf_map_delete_elem(&ended_elsewhere, &tid);
}

/* The open requests of the current thread. */
static __always_inline struct serving *current_serving(__u32 tid, bool make)
{
	struct serving *s = NULL;
	struct thread *thread;

#ifndef ONLOOKER_OLD_KERNEL
	__u32 other;

	s = &servings[tid & (SERVINGS - 1)];
	other = s->tid;

	if (other == tid)
		return s;
	if (make && !s->open && __sync_val_compare_and_swap(&s->tid, other, tid) == other) {
		s->connection_id = 0;
		return s;
	}
#endif
	thread = current_thread(make);
	s = thread ? &thread->serving : NULL;
	asked_of_itself(s);
	if (s)
		serving_settle(s, tid);
	return s;
}

enum counted {
	COUNTED_NOWHERE = 0,
	COUNTED_IN_THREAD = 1,
	COUNTED_IN_PROCESS = 2,
};

/* A server request begins in the current thread: what the thread sends from now on is its child. */
static __always_inline void context_enter(struct connection *c, struct exchange *x)
{
	__u32 tgid = x->tgid;
	struct serving *s;
	struct process *p;

	if (flags_of(tgid) & PROCESS_THREAD_UNCERTAIN) {
		p = bpf_map_lookup_elem(&processes, &tgid);
		if (!p) {
			struct process fresh = {};

			bpf_map_update_elem(&processes, &tgid, &fresh, BPF_ANY);
			p = bpf_map_lookup_elem(&processes, &tgid);
		}
		if (p) {
			process_sum(p, &x->context, 1);
			x->counted = COUNTED_IN_PROCESS;
		}
		return;
	}
	s = current_serving(x->tid, true);
	if (!s)
		return;
	__sync_fetch_and_add(&s->open, 1);
	s->connection_id = c->id;
	s->sequence = x->sequence;
	s->context = x->context;
	s->handed_out = 0;
	x->counted = COUNTED_IN_THREAD;
}

/* The request is over, in this thread or in another. */
static __always_inline void context_leave(struct connection *c, struct exchange *x, __u32 current_tid)
{
	__u32 tid = x->tid, tgid = x->tgid, one = 1, *ended;
	struct serving *s = NULL;

	if (x->counted == COUNTED_IN_PROCESS) {
		struct process *p = bpf_map_lookup_elem(&processes, &tgid);

		if (p) {
			process_sum(p, &x->context, -1ULL);
			if (p->parent_span_id == x->context.span_id)
				x->context.peer_key = 0;
		}
	}
	if (x->counted != COUNTED_IN_THREAD) {
		x->counted = COUNTED_NOWHERE;
		return;
	}
	x->counted = COUNTED_NOWHERE;
#ifndef ONLOOKER_OLD_KERNEL
	s = serving_of(tid);
#endif
	if (!s && tid == current_tid) {
		struct thread *thread = current_thread(false);

		if (thread)
			s = &thread->serving;
	}
	asked_of_itself(s);
	if (!s) {
		ended = bpf_map_lookup_elem(&ended_elsewhere, &tid);
		if (ended)
			__sync_fetch_and_add(ended, 1);
		else
			bpf_map_update_elem(&ended_elsewhere, &tid, &one, BPF_ANY);
		return;
	}
	if (s->connection_id == c->id && s->sequence == x->sequence) {
		/* its children were told this trace: an answer from the peer comes too late */
		if (s->handed_out && x->context.source == PARENT_NONE) {
			x->context = s->context;
			x->context.peer_key = 0;
		}
		s->connection_id = 0;
	}
	if (s->open)
		__sync_fetch_and_add(&s->open, -1);
}

/* A client request begins in the current thread: whose child is it? */
static __always_inline void context_inherit(struct context *context, __u64 pid_tgid, __u64 now)
{
	__u32 tgid = pid_tgid >> 32;
	struct serving *s;

	if (context->source != PARENT_NONE)
		return;
	if (flags_of(tgid) & PROCESS_THREAD_UNCERTAIN) {
		struct process *p = bpf_map_lookup_elem(&processes, &tgid);
		__u64 changes, trace_id[2], span_id, flags;

		if (!p || !p->open)
			return;
		context->source = PARENT_AMBIGUOUS;
		changes = *(volatile __u64 *)&p->changes;
		trace_id[0] = *(volatile __u64 *)&p->trace_id_sum[0];
		trace_id[1] = *(volatile __u64 *)&p->trace_id_sum[1];
		span_id = *(volatile __u64 *)&p->span_id_sum;
		flags = *(volatile __u64 *)&p->flags_sum;
		if (p->open != 1 || changes & 1 || *(volatile __u64 *)&p->changes != changes)
			return; /* several are open, or they change right now */
		p->parent_span_id = span_id;
		context->trace_id[0] = trace_id[0];
		context->trace_id[1] = trace_id[1];
		context->parent_span_id = span_id;
		context->trace_flags = (__u8)flags;
		context->source = PARENT_THREAD;
		return;
	}
	s = current_serving((__u32)pid_tgid, false);
	if (!s || !s->open)
		return;
	if (s->open > 1 || !s->connection_id) {
		context->source = PARENT_AMBIGUOUS;
		return;
	}
	resolve(&s->context, now);
	s->handed_out = 1;
	context->trace_id[0] = s->context.trace_id[0];
	context->trace_id[1] = s->context.trace_id[1];
	context->parent_span_id = s->context.span_id;
	context->trace_flags = s->context.trace_flags;
	context->source = PARENT_THREAD;
}

/* Leave the context of a client request for the server at the other end. */
static __always_inline void context_publish(const struct context *context, __u64 now)
{
	struct client_context client = {
		.trace_id = {context->trace_id[0], context->trace_id[1]},
		.span_id = context->span_id,
		.mono_ns = now,
		.stamp = context->peer_stamp,
		.trace_flags = context->trace_flags,
	};

	__u64 key = context->peer_key;

	if (!key)
		return;
	if (now > newest_client_mono_ns + CLIENT_CONTEXT_STEP_NS)
		newest_client_mono_ns = now;
	bpf_map_update_elem(&client_contexts, &key, &client, BPF_ANY);
}
