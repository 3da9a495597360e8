/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The server requests that are open in a thread: who the newest is, and how many there are.
 *
 * They stand in an array by the thread's number.  A look-up in a task's own storage costs a hundred instructions, and a request
 * needs two; it is left for a thread whose place is taken by another one's open request (see context.h).
 */
#pragma once

/* Who a request is, and who its parent is. */
struct context {
	__u64 trace_id[2];
	__u64 span_id;
	__u64 parent_span_id;
	__u64 peer_key;	  /* where the client at the other end would have left its context */
	__u32 peer_stamp; /* and what must stand there with it */
	__u8 trace_flags;
	__u8 source;	  /* enum parent_source */
	__u8 pad[2];
};

struct serving {
	__u32 tid;		/* the thread whose place this is; 0 in a task's storage */
	__u32 open;		/* server requests begun and not finished by this thread */
	__u32 sequence;
	__u8 handed_out;	/* the context became somebody's parent: it must not change any more */
	__u8 pad[3];
	__u64 connection_id;	/* of the newest; 0: it is over, or not certain */
	struct context context; /* of the newest */
};

#ifndef ONLOOKER_OLD_KERNEL
extern struct serving servings[SERVINGS]; /* defined in process.bpf.c */

/* The place of a thread, if it has one. */
static __always_inline struct serving *serving_of(__u32 tid)
{
	struct serving *s = &servings[tid & (SERVINGS - 1)];

	if (s->tid != tid)
		s = NULL;
	asked_of_itself(s);
	return s;
}

/* A thread is over; its number may be another one's next. */
static __always_inline void serving_forget(__u32 tid)
{
	struct serving *s = serving_of(tid);

	if (s) {
		s->tid = 0;
		s->open = 0;
	}
}
#endif
