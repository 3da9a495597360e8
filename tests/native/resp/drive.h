/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What bpf/lib/redis.h does with a transfer, over bytes at hand: windows, and what is carried between them. */
#pragma once

#include <linux/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../bpf/protocols/resp.h"

#define PROMISED(what)                                                                                       \
	do {                                                                                                 \
		if (!(what)) {                                                                               \
			fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #what);                   \
			abort();                                                                             \
		}                                                                                            \
	} while (0)

struct side {
	struct resp_walker walker;
	__u8 carry[RESP_CARRY_MAX];
	__u32 carried;
};

/* Take a transfer, at most `room` bytes a window.  `repeats`: by all means there are; else line by line. */
static void drive(struct side *s, const __u8 *data, __u32 length, __u32 room, int requests, int repeats)
{
	struct resp_walker *w = &s->walker;
	__u32 at = 0;

	while (at < length && w->state != RESP_LOST) {
		__u32 left = length - at < room ? length - at : room, carry = s->carried, rest;
		int more = RESP_MORE;
		__u8 *window;

		s->carried = 0;
		w->learning = 0;
		w->position = 0;
		if (w->skip) {
			w->end = length - at;
			resp_pass(w, 0);
			PROMISED(w->position && w->position <= length - at);
			at += w->position;
			w->learning = 0;
			continue;
		}
		/* what stands behind a window is never looked at, so it may be anything */
		window = malloc(RESP_ROOM);
		memset(window, 0xa5, RESP_ROOM);
		memcpy(window, s->carry, carry);
		memcpy(window + carry, data + at, left);
		w->end = carry + left;
		while (more == RESP_MORE) {
			__u32 before = w->position, state = w->state;
			__u64 skip = w->skip;

			more = repeats ? resp_turn(w, window, requests) : resp_step(w, window, requests);
			PROMISED(w->position <= w->end);
			PROMISED(more != RESP_MORE || w->position > before || w->state != state || w->skip != skip);
		}
		rest = w->end - w->position;
		free(window);
		if (w->state == RESP_LOST)
			return;
		if (more == RESP_PARTIAL) {
			PROMISED(rest && rest <= RESP_CARRY_MAX);
			/* the window is gone; its end is the end of what was carried and of the data */
			if (rest <= left)
				memcpy(s->carry, data + at + left - rest, rest);
			else
				memcpy(s->carry + rest - left, data + at, left); /* the carried bytes are still there */
			s->carried = rest;
		} else {
			PROMISED(!rest);
		}
		at += left;
	}
}
