/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Segments: bounded pieces of what each call moved, for protocols that user space takes apart.
 * A small transfer goes out whole.  Of a large one the beginning and the end are kept: most
 * protocols say at the beginning how long a message is, and at the end that an answer is over.
 */
#pragma once

#define SEGMENT_SMALL sizeof(((struct segment_record *)0)->payload)
#define SEGMENT_LARGE sizeof(((struct segment_long_record *)0)->payload)

struct segment_head {
	SEGMENT_RECORD_HEAD;
};

/* Where the pieces of a scattered transfer are put together. */
struct segment_scratch {
	__u32 copied;	     /* valid bytes */
	__u32 skip;
	__u32 range_start;   /* HTTP/2: where in the transfer the bytes at hand begin */
	__u32 to_copy;	     /* of the frame at hand */
	__u32 to_skip;	     /* behind those */
	__u32 pad;
	struct http2_step step;
	__u8 bytes[2 * 4096];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WORKS);
	__type(key, __u32);
	__type(value, struct segment_scratch);
} segment_scratches SHARED_MAP;

static __always_inline struct segment_scratch *scratch_of(const struct work *w)
{
	__u32 index = w->index;

	return bpf_map_lookup_elem(&segment_scratches, &index);
}

/*
 * Copy bytes of a scattered transfer, from its byte `skip` on, behind the first `at` bytes of the
 * scratch until it holds `end` (at most SEGMENT_LARGE); gives how many it holds, which is less where
 * the buffers are many.  The source's offset is `skip` afterwards.
 */
__noinline int gather(__u32 index, __u32 skip, __u32 at, __u32 end)
{
	struct work *w = work_of(index);
	struct segment_scratch *scratch = bpf_map_lookup_elem(&segment_scratches, &index);

	if (!w || !scratch)
		return 0;
	w->source.offset = skip;
	if (w->source.iov_total > MAX_IOVECS)
		seek_window(w);
	scratch->copied = at;
	scratch->skip = skip - w->source.iov_start;
	for (__u32 i = 0; i < MAX_IOVECS; i++) {
		/* kept in memory, so that the verifier sees every turn alike */
		__u32 copied = *(volatile __u32 *)&scratch->copied;
		__u64 base, length, n;

		if (i >= w->source.iov_count || copied >= end)
			break;
		skip = *(volatile __u32 *)&scratch->skip;
		base = w->source.iov[i].base;
		length = w->source.iov[i].length;
		if (skip >= length) {
			*(volatile __u32 *)&scratch->skip = skip - (__u32)length;
			continue;
		}
		length -= skip;
		n = end - copied;
		if (n > length)
			n = length;
		n = at_most(n, SEGMENT_LARGE);
		if (bpf_probe_read_user(scratch->bytes + at_most(copied, SEGMENT_LARGE), n, (void *)(base + skip)))
			break;
		*(volatile __u32 *)&scratch->copied = copied + (__u32)n;
		*(volatile __u32 *)&scratch->skip = 0;
	}
	return (int)scratch->copied;
}

/* `behind`: bytes of the stream that came after the last one of these `length`. */
static __always_inline void fill_segment(struct segment_head *r, struct connection *c, __u32 direction, __u32 length,
					 __u32 behind, __u16 flags, __u64 now)
{
	const struct stream *s = &c->streams[direction & 1];
	__u64 now_pid = bpf_get_current_pid_tgid();
	struct context context = {};

	r->protocol = c->protocol;
	r->role = c->protocol == PROTOCOL_UNKNOWN ? ROLE_UNKNOWN :
		  c->request_direction == DIRECTION_RECEIVE ? ROLE_SERVER : ROLE_CLIENT;
	r->direction = direction;
	r->flags = flags;
	r->captured_head = 0;
	r->captured_tail = 0;
	r->tls = c->tls;
	r->family = c->family;
	r->sequence = c->segments++;
	r->tgid = now_pid >> 32;
	r->tid = (__u32)now_pid;
	r->connection_id = c->id;
	r->mono_ns = now;
	r->stream_offset = s->bytes - behind - length;
	r->length = length;
	r->local_port = c->local_port;
	r->remote_port = c->remote_port;
	copy_words(r->local_address, c->local_address, 16);
	copy_words(r->remote_address, c->remote_address, 16);
	if (direction == DIRECTION_SEND && c->request_direction == DIRECTION_SEND && length)
		context_inherit(&context, now_pid, now);
	copy_words(r->trace_id, context.trace_id, 16);
	copy_words(r->span_id, &context.parent_span_id, 8);
	zero_words(&r->trace_flags, 8);
	r->trace_flags = context.trace_flags;
	r->parent_source = context.source;
}

/* Copy what is kept of the transfer; false if no buffer can be read. */
static __always_inline bool fill_payload(struct segment_head *r, __u8 *payload, const __u32 size, struct work *w,
					 __u32 direction)
{
	__u32 length = w->source.length, head = length, tail = 0;

	if (!w->source.iov_count)
		return false;
	if (length > size) {
		head = size - SEGMENT_TAIL;
		tail = SEGMENT_TAIL;
		r->flags |= SEGMENT_CUT;
	}
	if (w->source.iov_count == 1) {
		__u64 base = w->source.iov[0].base;

		if (bpf_probe_read_user(payload, at_most(head, size), (void *)base))
			return false;
		if (tail)
			bpf_probe_read_user(payload + size - SEGMENT_TAIL, SEGMENT_TAIL,
					    (void *)(base + length - SEGMENT_TAIL));
	} else {
		struct segment_scratch *scratch = scratch_of(w);

		if (!scratch || gather(w->index, 0, 0, head) != (int)head)
			return false;
		bpf_probe_read_kernel(payload, at_most(head, size), scratch->bytes);
		if (tail) {
			tail = gather(w->index, length - SEGMENT_TAIL, 0, SEGMENT_TAIL) == SEGMENT_TAIL ? SEGMENT_TAIL : 0;
			if (tail)
				bpf_probe_read_kernel(payload + size - SEGMENT_TAIL, SEGMENT_TAIL, scratch->bytes);
		}
	}
	r->captured_head = head;
	r->captured_tail = tail;
	return true;
}

/* One transfer of a connection becomes a record. */
SUBPROGRAM_1(emit_segment, direction)
{
	__u32 length;
	bool large;

	if (!c || !w)
		return 0;
	length = w->source.length;
	/* of a long answer the beginning and the end tell enough; of a long request the text is wanted */
	large = length > SEGMENT_SMALL && (length <= SEGMENT_LARGE || direction == c->request_direction);
	if (large) {
		struct segment_long_record *r = ring_reserve(ring_4096, struct segment_long_record);

		if (!r)
			return 0;
		r->kind = RECORD_SEGMENT_LONG;
		fill_segment((struct segment_head *)r, c, direction, length, 0, 0, w->now_mono_ns);
		if (!fill_payload((struct segment_head *)r, r->payload, SEGMENT_LARGE, w, direction))
			r->flags |= SEGMENT_UNREADABLE;
		ring_submit(ring_4096, r);
	} else {
		struct segment_record *r = ring_reserve(ring_512, struct segment_record);

		if (!r)
			return 0;
		r->kind = RECORD_SEGMENT;
		fill_segment((struct segment_head *)r, c, direction, length, 0, 0, w->now_mono_ns);
		if (!fill_payload((struct segment_head *)r, r->payload, SEGMENT_SMALL, w, direction))
			r->flags |= SEGMENT_UNREADABLE;
		ring_submit(ring_512, r);
	}
	return 0;
}

/* What is kept of HTTP/2 frames, from range_start to where the source stands now. */
SUBPROGRAM_2(emit_frames, direction, continued)
{
	struct segment_scratch *scratch = w ? scratch_of(w) : NULL;
	__u32 length, behind, copied;
	__u16 flags = continued ? SEGMENT_CONTINUED : 0;

	if (!c || !w || !scratch)
		return 0;
	length = w->source.offset - scratch->range_start;
	behind = w->source.length - w->source.offset;
	copied = scratch->copied;
	if (copied <= SEGMENT_SMALL) {
		struct segment_record *r = ring_reserve(ring_512, struct segment_record);

		if (!r)
			return 0;
		r->kind = RECORD_SEGMENT;
		fill_segment((struct segment_head *)r, c, direction, length, behind, flags, w->now_mono_ns);
		r->captured_head = copied;
		bpf_probe_read_kernel(r->payload, at_most(copied, SEGMENT_SMALL), scratch->bytes);
		ring_submit(ring_512, r);
	} else {
		struct segment_long_record *r = ring_reserve(ring_4096, struct segment_long_record);

		if (!r)
			return 0;
		r->kind = RECORD_SEGMENT_LONG;
		fill_segment((struct segment_head *)r, c, direction, length, behind, flags, w->now_mono_ns);
		r->captured_head = copied;
		bpf_probe_read_kernel(r->payload, at_most(copied, SEGMENT_LARGE), scratch->bytes);
		ring_submit(ring_4096, r);
	}
	scratch->copied = 0;
	scratch->range_start = w->source.offset;
	return 0;
}

/* One frame of HTTP/2, or a part of one; 0 when the transfer is used up or cannot be read. */
SUBPROGRAM_1(http2_advance, direction)
{
	struct segment_scratch *scratch = w ? scratch_of(w) : NULL;
	struct http2_walker *walker;
	__u32 left, want;

	if (!c || !w || !scratch)
		return 0;
	walker = &c->streams[direction & 1].walker;
	if (scratch->to_copy) {
		__u32 copied = scratch->copied, end = copied + scratch->to_copy, got;

		if (end > SEGMENT_LARGE)
			end = SEGMENT_LARGE;
		if (copied >= end)
			return 2; /* full: make room, come again */
		got = gather(w->index, w->source.offset, copied, end);
		if (got <= copied || got > end)
			return 0;
		scratch->to_copy -= got - copied;
		w->source.offset += got - copied;
		return 1;
	}
	w->source.offset += scratch->to_skip;
	scratch->to_skip = 0;
	left = w->source.length - w->source.offset;
	if (!left || left > w->source.length)
		return 0;
	want = http2_wants(walker, left);
	if (want) {
		__u32 got = read_window(w, 0, want);

		if (!got || got > want)
			return 0;
		if (got < want)
			left = got; /* of many buffers those at hand end inside a frame header */
		asm volatile("" : "+r"(got));
		bpf_probe_read_kernel(http2_into(walker), ((got - 1) & 15) + 1, w->window.bytes);
	}
	http2_step(walker, left, &scratch->step);
	scratch->to_copy = scratch->step.copy_length;
	scratch->to_skip = scratch->step.consume - scratch->step.copy_length;
	return 1;
}

/* Many frames; 0 when the transfer is used up.  By itself, so that the verifier walks the loop once. */
SUBPROGRAM_1(http2_run, direction)
{
	if (!c || !w)
		return 0;
	for (int i = 0; i < FRAME_STEPS; i++) {
		int more = http2_advance(c, w, direction);

		if (!more)
			return 0;
		if (more == 2)
			emit_frames(c, w, direction, 1);
	}
	return 1;
}

/* Walk the frames of a transfer, from the source's offset on; hand up what matters of them. */
static __always_inline void follow_http2(struct connection *c, struct work *w, __u32 direction)
{
	struct segment_scratch *scratch = scratch_of(w);
	struct stream *s = &c->streams[direction & 1];
	struct http2_walker *walker = &s->walker;
	__u32 carry = s->carry_length;

	if (!scratch)
		return;
	scratch->copied = 0;
	scratch->range_start = w->source.offset;
	scratch->to_copy = 0;
	scratch->to_skip = 0;
	http2_begin(walker, w->source.length - w->source.offset);
	if (carry) {
		/* the preface came in pieces, and the first of them did not tell what it was */
		s->carry_length = 0;
		if (walker->state == HTTP2_AT_PREFACE && carry <= 16) {
			bpf_probe_read_kernel(scratch->bytes, at_most(carry, 16), s->carry);
			scratch->copied = carry;
			scratch->range_start -= carry;
			walker->left = HTTP2_PREFACE - carry;
			walker->noteworthy = 1;
		}
	}
	if (!w->source.iov_count) {
		/* in no user buffer (sendfile): payload, where one is due */
		if (walker->state != HTTP2_IN_PAYLOAD || w->source.length > walker->left)
			count_loss(LOSS_UNREADABLE);
		http2_unseen(walker, w->source.length);
		w->source.offset = w->source.length;
		if (walker->noteworthy)
			emit_frames(c, w, direction, 0);
		return;
	}
	for (int i = 0; i < FRAME_STEPS; i++)
		if (!http2_run(c, w, direction))
			break;
	if (w->source.offset < w->source.length) {
		__u32 passed = w->source.offset + scratch->to_copy + scratch->to_skip;

		/* the walker has gone past what was to be copied */
		count_loss(scratch->to_copy ? LOSS_UNREADABLE : LOSS_STEPS);
		if (passed < w->source.length)
			http2_unseen(walker, w->source.length - passed);
		w->source.offset = w->source.length;
	}
	if (walker->noteworthy)
		emit_frames(c, w, direction, 0);
}

/* The connection is over, or one direction of it. */
static __always_inline void emit_segment_end(struct connection *c, __u32 direction, __u16 flags)
{
	struct segment_record *r = ring_reserve(ring_512, struct segment_record);

	if (!r)
		return;
	r->kind = RECORD_SEGMENT;
	fill_segment((struct segment_head *)r, c, direction, 0, 0, flags, bpf_ktime_get_ns());
	ring_submit(ring_512, r);
}

/* classify.h, one protocol a function: the verifier walks each by itself, and adds no paths up. */
#define CLASSIFIER(name, number)                                                                   \
	__noinline int classify_##name(__u32 index, __u32 strong)                                  \
	{                                                                                          \
		struct work *w = work_of(index);                                                   \
		__u64 verdicts;                                                                    \
                                                                                                   \
		if (!w)                                                                            \
			return 0;                                                                  \
		verdicts = classify_as(number, w->window.bytes, w->window.length, w->source.length,\
				       w->datagram, -1);                                           \
		return strong ? (int)(verdicts >> CLASSIFY_STRONG_SHIFT) : (int)verdicts;          \
	}

CLASSIFIER(dns, PROTOCOL_DNS)
CLASSIFIER(tls, PROTOCOL_TLS)
CLASSIFIER(http2, PROTOCOL_HTTP2)
CLASSIFIER(postgres, PROTOCOL_POSTGRES)
CLASSIFIER(mysql, PROTOCOL_MYSQL)
CLASSIFIER(tds, PROTOCOL_TDS)
CLASSIFIER(redis, PROTOCOL_REDIS)
CLASSIFIER(memcached, PROTOCOL_MEMCACHED)
CLASSIFIER(mongodb, PROTOCOL_MONGODB)

/* The bytes in the window are not HTTP/1: what else could they be? */
static __always_inline void classify_others(struct connection *c, struct work *w, __u32 direction)
{
	struct stream *s = &c->streams[direction & 1];
	__u32 plain = 0, strong = 0;
	__u64 scores;

#define ASK(name)                                                                                  \
	plain |= classify_##name(w->index, 0);                                                    \
	strong |= classify_##name(w->index, 1)
	if (c->datagram) {
		ASK(dns);
	} else {
		ASK(dns);
		ASK(tls);
		ASK(http2);
		ASK(postgres);
		ASK(mysql);
		ASK(tds);
		ASK(redis);
		ASK(memcached);
		ASK(mongodb);
	}
#undef ASK
	scores = (__u64)strong << CLASSIFY_STRONG_SHIFT | plain;
	if (s->header) /* what followed it says less than itself */
		scores |= s->scores;
	s->header = !s->header && plain && w->source.length <= CLASSIFY_HEADER;
	s->scores = scores;
	c->streams[(!direction) & 1].header = 0;
}
