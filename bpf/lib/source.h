/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where the bytes of a transfer lie: the caller's own buffers, found through the registers of
 * the system call that is about to return.  No entry probe, no state between entry and exit.
 */
#pragma once

struct source {
	struct user_iovec iov[MAX_IOVECS];
	__u32 iov_count; /* 0: the bytes are in no user buffer that can be found */
	__u32 length;	 /* of the transfer */
	__u32 offset;	 /* bytes of it that are dealt with */
	__u32 iov_start; /* where in the transfer the first of `iov` begins */
	__u64 iov_list;	 /* all buffers of the call, of which `iov` holds some */
	__u32 iov_total;
	__u32 iov_index; /* in that list, of the first of `iov` */
};

/* What one direction works with while it handles a transfer; too big for the stack. */
struct work {
	struct source source;
	struct http1_window window;
	struct http1_head head;
	struct http1_chunk chunk;
	__u64 pid_tgid;	     /* of the current task */
	__u64 now_mono_ns;
	__u64 first_mono_ns; /* when the first byte came, see arrival() */
	__u64 end_mono_ns;   /* of the message that ended */
	__u64 before_mono_ns; /* when bytes moved in this direction the last time before */
	__u32 chunk_used;
	__u32 stream_end;    /* position of the stream behind the transfer, alike at both ends */
	__u32 stamp;	     /* position of the first byte of the request whose head is complete */
	__u32 unseen;	     /* bytes that moved past the hooks since then */
	__u32 submitted;     /* records of exchanges */
	__u64 peer_socket;   /* AF_UNIX: the server's socket */
	__u16 flags;	     /* enum request_flags of the exchange that ended */
	__u8 emit;	     /* enum emit */
	__u8 error;	     /* enum request_error */
	__u8 head_of;	     /* 1 + index of the exchange whose head just became complete */
	__u8 datagram;
	__u8 pad[6];
	__u32 index;	     /* of this entry: what global functions find it by */
	__u32 busy;	     /* taken by a program that may be interrupted by itself */
#ifdef ONLOOKER_OLD_KERNEL
	__u64 untaken;	     /* bytes that are about to be sent: the socket's position does not have them yet */
#endif
};

/* What a step found out; told in one place behind it, so that the code stands there once. */
enum emit {
	EMIT_NONE = 0,
	EMIT_RESPONSE = 1, /* the oldest open request has its response */
	EMIT_AHEAD = 2,	   /* a pipelined request: its half */
	EMIT_SO_FAR = 3,   /* what there is of a response whose end will not be seen */
	EMIT_DROP = 4,	   /* the oldest open request is over, and nothing is known of its response */
};

enum {
	WORK_STATE = 2, /* behind the two directions: of the programs that see connections end */
	WORK_GONE = 3,	/* one each: a softirq may begin the other in the middle of one */
	WORK_TLS = 4,	/* of the programs on TLS libraries, the first of several */
	WORKS_TLS = 4,	/* they can be preempted: how deep on one CPU */
	WORKS = WORK_TLS + WORKS_TLS,
};

/*
 * One entry a direction and CPU.  A program never runs twice at a time on one CPU (the kernel
 * counts a miss instead), so an entry that is used by one program only is its own.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WORKS);
	__type(key, __u32);
	__type(value, struct work);
} works SHARED_MAP;

static __always_inline struct work *work_of(__u32 slot)
{
	struct work *w = bpf_map_lookup_elem(&works, &slot);

#ifdef ONLOOKER_OLD_KERNEL
	if (w)
		w->index = slot;
#endif
	return w;
}

static __always_inline __u32 not_yet_taken(const struct work *w)
{
#ifdef ONLOOKER_OLD_KERNEL
	return (__u32)w->untaken;
#else
	return 0;
#endif
}

/* A call that moves several messages fires once for each: which one is it now? */
struct thread;
static __always_inline __u32 next_message(struct thread *thread, __u64 vector, __u32 count);

/* Bytes that the buffers at hand have room for. */
static __always_inline __u64 source_room(const struct source *s)
{
	__u64 room = 0;

	for (__u32 i = 0; i < MAX_IOVECS; i++)
		if (i < s->iov_count)
			room += s->iov[i].length;
	return room;
}

/* Take a list of user buffers over into the source. */
static __always_inline void source_iov(struct source *s, __u64 iov, __u64 count)
{
	__u32 n = count > MAX_IOVECS ? MAX_IOVECS : (__u32)count;

	s->iov_count = 0;
	s->iov_start = 0;
	s->iov_index = 0;
	s->iov_list = iov;
	s->iov_total = (__u32)count;
	if (!n)
		return;
	if (bpf_probe_read_user(s->iov, at_most(n, MAX_IOVECS) * sizeof(s->iov[0]), (void *)iov))
		return;
	s->iov_count = n;
}

static __always_inline void source_message(struct source *s, __u64 address)
{
	struct user_message message;

	s->iov_count = 0;
	if (bpf_probe_read_user(&message, sizeof(message), (void *)address))
		return;
	source_iov(s, message.iov, message.iov_count);
}

/* Find the buffers of the call that the current thread is in. */
static __always_inline void source_of_call(struct source *s, __u32 length, const struct call *call)
{
	s->length = length;
	s->offset = 0;
	s->iov_count = 0;
	switch (call->number) {
	case NR_read:
	case NR_write:
	case NR_sendto:
	case NR_recvfrom:
		s->iov[0].base = call->arg1;
		s->iov[0].length = length;
		s->iov_count = 1;
		s->iov_total = 1;
		s->iov_start = 0;
		break;
	case NR_readv:
	case NR_writev:
	case NR_preadv2:
	case NR_pwritev2:
		source_iov(s, call->arg1, call->arg2);
		break;
	case NR_sendmsg:
	case NR_recvmsg:
		source_message(s, call->arg1);
		break;
	}
}

/* Leave the first bytes of the buffers out. */
static __always_inline void source_skip(struct source *s, __u32 skip)
{
	for (__u32 i = 0; i < MAX_IOVECS; i++) {
		__u64 length = s->iov[i].length;

		if (i >= s->iov_count || !skip)
			break;
		if (length > skip || s->iov_count == 1)
			length = skip;
		s->iov[i].base += length;
		s->iov[i].length -= length;
		skip -= (__u32)length;
	}
}

static __always_inline bool source_load(struct source *s, __u32 index)
{
	__u64 n = at_most(s->iov_total - index, MAX_IOVECS);

	if (bpf_probe_read_user(s->iov, n * sizeof(s->iov[0]), (void *)(s->iov_list + index * sizeof(s->iov[0])))) {
		s->iov_count = 0;
		return false;
	}
	*(volatile __u32 *)&s->iov_index = index;
	s->iov_count = (__u32)n;
	return true;
}

/* Of a call with many buffers, hold those that the source's offset stands in. */
static __always_inline void source_seek(struct source *s)
{
	if (s->iov_total <= MAX_IOVECS)
		return;
	if (s->offset < s->iov_start) {
		s->iov_start = 0;
		if (!source_load(s, 0))
			return;
	}
	for (__u32 turn = 0; turn < IOVEC_TURNS; turn++) {
		/* kept in memory, so that the verifier sees every turn alike */
		__u32 next = *(volatile __u32 *)&s->iov_index + MAX_IOVECS;
		__u64 end = *(volatile __u32 *)&s->iov_start;

		for (__u32 i = 0; i < MAX_IOVECS; i++)
			end += s->iov[i].length;
		if (next >= s->iov_total || s->offset < end)
			return;
		*(volatile __u32 *)&s->iov_start = (__u32)end;
		if (!source_load(s, next))
			return;
	}
}

/*
 * Copy up to `room` bytes (at most HEAD_WINDOW), from the source's offset on, to `to`; they may stand in
 * several buffers.  Gives the number copied, which is less than there is where the buffers are many, or where one of
 * them ends with a line.
 */
static __always_inline __u32 source_read(struct source *s, __u8 *to, __u32 room)
{
	__u32 skip = s->offset - s->iov_start, left = s->length - s->offset, copied = 0;

	if (room > left)
		room = left;
	if (s->iov_count == 1) {
		if (bpf_probe_read_user(to, at_most(room, HEAD_WINDOW), (void *)(s->iov[0].base + skip)))
			return 0;
		return room;
	}
	for (__u32 i = 0; i < MAX_IOVECS; i++) {
		__u64 base, length;
		__u32 n;

		if (i >= s->iov_count || copied >= room)
			break;
		base = s->iov[i].base;
		length = s->iov[i].length;
		if (skip >= length) {
			skip -= length;
			continue;
		}
		length -= skip;
		n = room - copied;
		if (n > length)
			n = length;
		if (bpf_probe_read_user(to + at_most(copied, HEAD_WINDOW), at_most(n, HEAD_WINDOW),
					(void *)(base + skip)))
			break;
		copied += n;
		skip = 0;
		/* what servers send together are a head and a body, and they are seldom read as one */
		if (copied >= HEAD_ENOUGH && to[at_most(copied - 1, HEAD_WINDOW)] == '\n')
			break;
	}
	return copied;
}
