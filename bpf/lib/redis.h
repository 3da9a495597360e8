/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Redis exchanges: commands of one name, sent while nothing else was under way, and the replies to all of them.  Both
 * directions are walked and counted, so that one record an exchange says how many there were; where it finds no room, the
 * next one of the connection carries the sums.
 *
 * Whatever is not so plain goes to user space as segments: commands of several names, those that change how the
 * connection is read, a client that sends on before it is answered, and connections that cannot be followed.  What is
 * under way then goes ahead of them as a record with REDIS_UNANSWERED.
 */
#pragma once

#define RESP_GOES 100	  /* so often, in one window */
#define RESP_WINDOWS 200  /* of one transfer */
#define RESP_LOOK 512	  /* the first window: most transfers are short */

struct redis_exchange {
	__u64 start_mono_ns;
	__u64 end_mono_ns;	/* of the request */
	__u64 response_mono_ns; /* first byte of a reply */
	__u64 request_offset;	/* where the streams stood when it began */
	__u64 response_offset;
	__u64 seen_offset;	/* behind the last byte of a request that was taken in */
	__u64 heard_offset;	/* and of a reply */
	__u64 name[2];
	__u64 skip;		/* of the walker over requests, there */
	__u32 left;
	__u32 first;		/* commands ended before it */
	__u32 asked;		/* and with it */
	__u32 answered;		/* replies taken in */
	__u32 errors;		/* before it */
	__u32 tgid;
	__u32 tid;
	__u8 open;
	__u8 overlapping;	/* the client sends on before it has its replies */
	__u8 cut;		/* a reply is under way */
	__u8 paired;		/* there was an exchange on this connection */
	__u8 idle;		/* nothing was under way before the transfer at hand */
	__u8 inside;		/* it begins inside a command */
	__u8 pad[2];
	struct context context;
	__u64 folded_name[2];
	__u64 folded_ns;
	__u64 folded_mono_ns;
	__u32 folded_commands;
	__u32 folded_errors;
};

/* Lies where HTTP/1 keeps its texts. */
struct redis_state {
	struct redis_exchange exchange;
	struct resp_walker walkers[2]; /* by enum direction */
};

_Static_assert(sizeof(struct redis_state) <= 2 * HTTP_LONG_TEXT_SIZE, "the state fits where texts are");
_Static_assert(__builtin_offsetof(struct connection, texts) % 8 == 0, "the state is aligned");
_Static_assert(RESP_ROOM <= sizeof(((struct segment_scratch *)0)->bytes), "a window fits into the scratch");

static __always_inline struct redis_state *redis_of(struct connection *c)
{
	return (struct redis_state *)(void *)c->texts;
}

/* Some of the window. */
#ifdef ONLOOKER_OLD_KERNEL
/* One after another, not together: stack is short. */
#define REDIS_TURN(name, turn)                                                                     \
	SUBPROGRAM_2(name, direction, requests)                                                    \
	{                                                                                          \
		struct segment_scratch *scratch = w ? scratch_of(w) : NULL;                        \
                                                                                                   \
		if (!c || !w || !scratch)                                                          \
			return RESP_END;                                                           \
		return turn(&redis_of(c)->walkers[direction & 1], scratch->bytes, requests);       \
	}
REDIS_TURN(redis_alike, resp_repeats)
REDIS_TURN(redis_values, resp_quick)
REDIS_TURN(redis_line, resp_step)

static __always_inline int redis_steps(SUBPROGRAM_HEAD, __u32 direction, __u32 requests)
{
	struct resp_walker *r = &redis_of(c)->walkers[direction & 1];

	if (resp_at_value(r)) {
		redis_alike(c, w, direction, requests);
		if (r->position >= r->end)
			return RESP_END;
		if (redis_values(c, w, direction, requests))
			return r->position < r->end ? RESP_MORE : RESP_END;
	}
	return redis_line(c, w, direction, requests);
}
#else
__noinline int redis_run(struct resp_walker *r, struct segment_scratch *scratch, __u32 requests)
{
	return r && scratch ? resp_turn(r, scratch->bytes, requests) : RESP_END;
}

#define redis_steps(c, w, direction, requests) redis_run(r, scratch, requests)
#endif

/* One window; 1: there are more. */
SUBPROGRAM_2(redis_window, direction, room)
{
	struct segment_scratch *scratch = w ? scratch_of(w) : NULL;
	__u32 left, carry, got, rest, requests;
	struct resp_walker *r;
	struct stream *s;
	int more = RESP_MORE;

	if (!c || !w || !scratch)
		return 0;
	direction &= 1;
	s = &c->streams[direction];
	r = &redis_of(c)->walkers[direction];
	left = w->source.length - w->source.offset;
	carry = s->carry_length;
	if (r->state == RESP_LOST || !left || left > w->source.length || carry > RESP_CARRY_MAX)
		return 0;
	s->carry_length = 0;
	r->learning = 0;
	r->position = 0;
	if (r->skip) {
		/* inside a string, whose bytes do not matter */
		r->end = left;
		resp_pass(r, 0);
		w->source.offset += r->position;
		r->learning = 0;
		return r->position && r->position < left;
	}
	if (carry)
		bpf_probe_read_kernel(scratch->bytes, at_most(carry, RESP_CARRY_MAX), s->carry);
	if (left > room)
		left = room;
	if (w->source.iov_count == 1 && w->source.iov_total <= 1) {
		got = carry + left;
		if (bpf_probe_read_user(scratch->bytes + at_most(carry, RESP_CARRY_MAX), at_most(left, SEGMENT_LARGE),
					(void *)(w->source.iov[0].base + w->source.offset)))
			got = 0;
	} else {
		got = gather(w->index, w->source.offset, carry, carry + left);
	}
	if (got <= carry || got > carry + left) {
		resp_lose(r);
		return 0;
	}
	r->end = got;
	requests = c->protocol == PROTOCOL_REDIS && direction == c->request_direction;
	for (int i = 0; i < RESP_GOES && more == RESP_MORE; i++)
		more = redis_steps(c, w, direction, requests);
	rest = r->end - r->position;
	if (more == RESP_PARTIAL) {
		if (!rest || rest > RESP_CARRY_MAX) {
			resp_lose(r);
			return 0;
		}
		bpf_probe_read_kernel(s->carry, at_most(rest, RESP_CARRY_MAX),
				      scratch->bytes + at_most(r->position, RESP_MASK));
		s->carry_length = rest;
		w->source.offset += got - carry;
		return w->source.offset < w->source.length;
	}
	if (r->position <= carry) {
		resp_lose(r);
		return 0;
	}
	w->source.offset += r->position - carry;
	return w->source.offset < w->source.length;
}

#ifndef ONLOOKER_OLD_KERNEL
/*
 * A transfer as most are: short, in one buffer, whole messages.  0: nothing was done, or the windows have to go on from
 * the source's offset.  By itself, beside redis_window: the stack of both would not fit into one chain of calls.
 */
SUBPROGRAM_2(redis_short, direction, requests)
{
	struct segment_scratch *scratch = w ? scratch_of(w) : NULL;
	struct resp_walker *r;
	int more = RESP_MORE;
	__u32 length;

	if (!c || !w || !scratch)
		return 0;
	direction &= 1;
	r = &redis_of(c)->walkers[direction];
	length = w->source.length;
	if (w->source.iov_count != 1 || w->source.iov_total > 1 || length > RESP_LOOK || r->skip ||
	    c->streams[direction].carry_length)
		return 0;
	if (bpf_probe_read_user(scratch->bytes, at_most(length, RESP_LOOK), (void *)w->source.iov[0].base))
		return 0;
	r->learning = 0;
	r->position = 0;
	r->end = length;
	for (int i = 0; i < RESP_GOES && more == RESP_MORE; i++)
		more = redis_steps(c, w, direction, requests);
	w->source.offset = r->position;
	return more == RESP_END && r->position == length;
}
#endif

/* Follow a transfer's messages.  `requests`: they are known to be commands. */
#ifdef ONLOOKER_OLD_KERNEL
static __always_inline int redis_walk(SUBPROGRAM_HEAD, __u32 direction, __u32 requests) /* a frame of stack less */
#else
SUBPROGRAM_2(redis_walk, direction, requests)
#endif
{
	struct resp_walker *r;
	__u64 bytes;

	if (!c || !w)
		return 0;
	direction &= 1;
	r = &redis_of(c)->walkers[direction];
	bytes = c->streams[direction].bytes;
	if (r->state == RESP_LOST)
		return 0;
	if (r->at != bytes - w->source.length || !w->source.iov_count) {
		resp_lose(r);
		return 0;
	}
	r->at = bytes;
	w->source.offset = 0;
#ifndef ONLOOKER_OLD_KERNEL /* where this is part of a program, it is walked too often by the verifier */
	if (redis_short(c, w, direction, requests)) {
		w->source.offset = 0;
		return 0;
	}
#endif
	if (redis_window(c, w, direction, RESP_LOOK)) {
		for (int i = 0; i < RESP_WINDOWS; i++)
			if (!redis_window(c, w, direction, SEGMENT_LARGE - RESP_CARRY_MAX))
				break;
	}
	if (w->source.offset != w->source.length)
		resp_lose(r);
	w->source.offset = 0;
	return 0;
}

/* What was counted while the ring was full, into a record. */
static __always_inline void redis_unfold(struct redis_record *r, struct redis_exchange *x)
{
	r->folded_commands = x->folded_commands;
	r->folded_errors = x->folded_errors;
	r->folded_ns = x->folded_ns;
	r->folded_mono_ns = x->folded_mono_ns;
	copy_words(r->folded_name, x->folded_name, 16);
	x->folded_commands = 0;
	x->folded_errors = 0;
	x->folded_ns = 0;
}

/* There is no room for the record of an exchange: its counts stay. */
static __always_inline void redis_fold(struct redis_exchange *x, __u32 commands, __u32 errors, __u64 now)
{
	if (x->folded_commands && (x->folded_name[0] != x->name[0] || x->folded_name[1] != x->name[1])) {
		count_losses(LOSS_OPERATIONS, commands);
		return;
	}
	x->folded_name[0] = x->name[0];
	x->folded_name[1] = x->name[1];
	x->folded_commands += commands;
	x->folded_errors += errors;
	x->folded_ns += (now - x->start_mono_ns) * commands;
	x->folded_mono_ns = now;
}

/* The exchange becomes a record: it is over, or (`flags`) segments tell the rest. */
SUBPROGRAM_1(redis_emit, flags)
{
	struct redis_exchange *x;
	struct redis_record *r;
	struct resp_walker *a;
	__u32 commands, errors;

	if (!c || !w)
		return 0;
	x = &redis_of(c)->exchange;
	a = &redis_of(c)->walkers[(!c->request_direction) & 1];
	commands = x->asked - x->first;
	errors = a->errors - x->errors;
	x->open = 0;
	r = bpf_ringbuf_reserve(&ring_256, sizeof(*r), 0);
	if (!r) {
		if (flags & REDIS_UNANSWERED)
			count_losses(LOSS_OPERATIONS, commands);
		else
			redis_fold(x, commands, errors, w->now_mono_ns);
		return 0;
	}
	r->kind = RECORD_REDIS;
	r->protocol = c->protocol;
	r->role = c->request_direction == DIRECTION_RECEIVE ? ROLE_SERVER : ROLE_CLIENT;
	r->flags = flags;
	r->family = c->family;
	r->tls = c->tls;
	r->trace_flags = x->context.trace_flags;
	r->parent_source = x->context.source;
	r->connection_id = c->id;
	r->sequence = c->segments++;
	r->tgid = x->tgid;
	r->tid = x->tid;
	r->commands = commands;
	r->replies = x->answered - x->first;
	r->errors = errors;
	r->request_bytes = (__u32)(x->seen_offset - x->request_offset);
	r->response_bytes = (__u32)(x->heard_offset - x->response_offset);
	r->request_start_mono_ns = x->start_mono_ns;
	r->request_end_mono_ns = x->end_mono_ns;
	r->response_start_mono_ns = x->response_mono_ns;
	r->response_end_mono_ns = w->now_mono_ns;
	r->request_offset = x->seen_offset;
	r->response_offset = x->heard_offset;
	r->skip = x->skip;
	r->left = x->left;
	r->local_port = c->local_port;
	r->remote_port = c->remote_port;
	redis_unfold(r, x);
	copy_words(r->name, x->name, 16);
	copy_words(r->error, a->error, 16);
	copy_words(r->local_address, c->local_address, 16);
	copy_words(r->remote_address, c->remote_address, 16);
	copy_words(r->trace_id, x->context.trace_id, 16);
	copy_words(r->span_id, &x->context.parent_span_id, 8);
	zero_words(r->pad, 8);
	/* as with exchanges of HTTP: how full the ring is, is asked for one in eight */
	if (w->submitted++ & 7)
		bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	else
		ring_submit(ring_256, r);
	return 0;
}

/* Bytes of commands were walked and belong to the exchange. */
static __always_inline void redis_take_in(struct redis_exchange *x, const struct connection *c,
					  const struct resp_walker *q, __u64 now)
{
	x->end_mono_ns = now;
	x->name[0] = q->name[0];
	x->name[1] = q->name[1];
	x->seen_offset = c->streams[c->request_direction & 1].bytes;
	x->asked = q->messages;
	x->skip = q->skip;
	x->left = q->state == RESP_START ? 0 : q->left;
}

static __always_inline void redis_open(struct redis_exchange *x, struct resp_walker *a, __u64 start)
{
	x->start_mono_ns = start;
	x->response_mono_ns = 0;
	x->answered = x->first;
	x->errors = a->errors;
	x->response_offset = x->heard_offset;
	x->cut = 0;
	x->open = 1;
	a->error[0] = 0;
	a->error[1] = 0;
}

/* Before commands are walked: is anything under way? */
SUBPROGRAM_1(redis_expect, direction)
{
	struct redis_exchange *x;
	struct resp_walker *q, *a;
	struct stream *asks, *answers;
	__u64 now;

	if (!c || !w)
		return 0;
	direction &= 1;
	x = &redis_of(c)->exchange;
	q = &redis_of(c)->walkers[direction];
	a = &redis_of(c)->walkers[!direction];
	asks = &c->streams[direction];
	answers = &c->streams[!direction];
	now = w->now_mono_ns;
	if (!x->open && (q->state == RESP_LOST || a->state == RESP_LOST || x->overlapping) &&
	    !(q->special & RESP_UNPAIRED)) {
		__u64 before = w->before_mono_ns > answers->last_mono_ns ? w->before_mono_ns : answers->last_mono_ns;

		/*
		 * After so long a silence nothing is under way; nor is there where a server, which answers before it reads on,
		 * reads.  Of a client that was seen in the middle it is taken to be so.
		 */
		if (now - before > REDIS_IDLE_NS || (answers->last_mono_ns > w->before_mono_ns && !x->overlapping &&
						     (direction == DIRECTION_RECEIVE || !x->paired))) {
			q->state = a->state = RESP_START;
			q->skip = a->skip = 0;
			q->left = a->left = 0;
			q->size = a->size = 0;
			q->named = q->mixed = q->special = 0;
			a->silent = 0;
			q->at = asks->bytes - w->source.length;
			a->at = answers->bytes;
			a->messages = q->messages;
			asks->carry_length = answers->carry_length = 0;
			x->overlapping = 0;
		}
	}
	x->idle = 0;
	x->inside = 1;
	if (q->state != RESP_START || asks->carry_length)
		return 0;
	x->inside = 0;
	if (x->open || q->messages != a->messages || a->state != RESP_START || answers->carry_length || x->overlapping ||
	    a->at != answers->bytes)
		return 0;
	x->idle = 1;
	q->named = 0;
	q->mixed = 0;
	q->special &= RESP_UNPAIRED;
	return 0;
}

/* Commands, which were walked: 1 if they wait for their replies, 0 if they are to be told as a segment. */
SUBPROGRAM_1(redis_request, direction)
{
	struct redis_exchange *x;
	struct resp_walker *q, *a;
	struct stream *asks, *answers;
	__u64 now, pid;
	bool plain;

	if (!c || !w)
		return 0;
	direction &= 1;
	x = &redis_of(c)->exchange;
	q = &redis_of(c)->walkers[direction];
	a = &redis_of(c)->walkers[!direction];
	asks = &c->streams[direction];
	answers = &c->streams[!direction];
	now = w->now_mono_ns;
	plain = q->named && !(q->mixed | q->special | (q->state == RESP_LOST) | asks->carry_length);
	if (x->open) {
		if (plain && x->inside && x->answered == x->first && !x->response_mono_ns) {
			redis_take_in(x, c, q, now);
			return 1;
		}
		x->overlapping = !x->inside;
		redis_emit(c, w, REDIS_UNANSWERED | (x->cut ? REDIS_CUT : 0));
		return 0;
	}
	if (!x->idle || !plain)
		return 0;
	x->first = a->messages;
	x->request_offset = asks->bytes - w->source.length;
	x->heard_offset = answers->bytes;
	redis_open(x, a, w->first_mono_ns);
	redis_take_in(x, c, q, now);
	pid = w->pid_tgid;
	x->tgid = pid >> 32;
	x->tid = (__u32)pid;
	if (direction == DIRECTION_SEND) { /* a server's commands have none */
		zero_words(&x->context, sizeof(x->context));
		context_inherit(&x->context, pid, now);
	}
	return 1;
}

/* Replies, which were walked: 1 if they were taken in, 0 if they are to be told as a segment. */
SUBPROGRAM_1(redis_reply, direction)
{
	struct redis_exchange *x;
	struct resp_walker *q, *a;
	struct stream *answers;
	bool whole;

	if (!c || !w)
		return 0;
	direction &= 1;
	x = &redis_of(c)->exchange;
	a = &redis_of(c)->walkers[direction];
	q = &redis_of(c)->walkers[!direction];
	answers = &c->streams[direction];
	if (!x->open) {
		if ((__s32)(a->messages - q->messages) > 0) {
			if (x->paired)
				resp_lose(a);
			else
				a->messages = q->messages; /* the commands are older than what was seen */
		}
		return 0;
	}
	if (a->state == RESP_LOST || (__s32)(a->messages - x->asked) > 0) {
		resp_lose(a);
		redis_emit(c, w, REDIS_UNANSWERED | (x->cut ? REDIS_CUT : 0));
		return 0;
	}
	if (!x->response_mono_ns)
		x->response_mono_ns = w->now_mono_ns;
	x->heard_offset = answers->bytes;
	x->answered = a->messages;
	whole = a->state == RESP_START && !answers->carry_length;
	x->cut = !whole;
	if (!whole || x->answered != x->asked)
		return 1;
	if (x->asked == x->first) {
		x->response_mono_ns = 0; /* it was pushed; a command is still on its way */
		return 1;
	}
	redis_emit(c, w, 0);
	x->paired = 1;
	x->first = x->asked;
	x->request_offset = x->seen_offset;
	if (q->state != RESP_START && !q->mixed)
		redis_open(x, a, x->end_mono_ns); /* the server has read the beginning of the next command already */
	return 1;
}

/* A record of nothing but the sums, before segments come. */
static __always_inline void redis_tell_folded(struct connection *c, struct work *w)
{
	struct redis_exchange *x = &redis_of(c)->exchange;

	x->first = x->asked;
	x->answered = x->asked;
	x->errors = redis_of(c)->walkers[(!c->request_direction) & 1].errors;
	redis_emit(c, w, REDIS_UNANSWERED);
}

/* The connection ends: nothing is kept back. */
SUBPROGRAM(redis_end)
{
	struct redis_exchange *x;

	if (!c || !w)
		return 0;
	x = &redis_of(c)->exchange;
	w->now_mono_ns = bpf_ktime_get_ns();
	if (x->open)
		redis_emit(c, w, REDIS_UNANSWERED | (x->cut ? REDIS_CUT : 0));
	else if (x->folded_commands)
		redis_tell_folded(c, w);
	if (x->folded_commands) {
		count_losses(LOSS_OPERATIONS, x->folded_commands);
		x->folded_commands = 0;
	}
	return 0;
}

/* One transfer of a connection that speaks Redis. */
static __always_inline void follow_redis(struct connection *c, struct work *w, __u32 direction)
{
	int told;

	if (direction == c->request_direction) {
		redis_expect(c, w, direction);
		redis_walk(c, w, direction, 1);
		told = redis_request(c, w, direction);
	} else {
		redis_walk(c, w, direction, 0);
		told = redis_reply(c, w, direction);
	}
	if (told)
		return;
	if (redis_of(c)->exchange.folded_commands)
		redis_tell_folded(c, w);
	emit_segment(c, w, direction);
}
