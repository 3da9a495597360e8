/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Drives bpf/protocols/http2.h as the kernel side does, and checks what every step promises. */
#pragma once

#include <linux/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../bpf/protocols/http2.h"

#define PROMISED(condition)                                                                        \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                    \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* Condense one transfer into kept, which has room for length bytes; returns how many it used. */
static __u32 drive(struct http2_walker *w, const __u8 *bytes, __u32 length, __u8 *kept)
{
	__u32 position = 0, used = 0;

	http2_begin(w, length);
	while (position < length) {
		__u32 left = length - position;
		__u32 want = http2_wants(w, left);
		struct http2_step step;

		PROMISED(want <= left && w->header_have + want <= HTTP2_FRAME_HEADER);
		memcpy(http2_into(w), bytes + position, want);
		http2_step(w, left, &step);
		PROMISED(step.consume > 0 && step.consume <= left);
		PROMISED(step.copy_from + step.copy_length <= step.consume);
		PROMISED(w->header_have < HTTP2_FRAME_HEADER && w->keep <= w->left);
		PROMISED(step.copy_length == 0 || w->noteworthy);
		PROMISED(w->state != HTTP2_SEEKING);
		memcpy(kept + used, bytes + position + step.copy_from, step.copy_length);
		used += step.copy_length;
		position += step.consume;
	}
	return used;
}
