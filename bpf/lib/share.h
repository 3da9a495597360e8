/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The parts are linked into one object.  What several of them define is weak: the first one counts. */
#pragma once

#define SHARED __attribute__((weak))
#define SHARED_MAP SEC(".maps") SHARED

/* Whether a pointer is NULL is to be asked of the pointer: the verifier does not know what else tells it, the compiler does. */
#define asked_of_itself(pointer) asm volatile("" : "+r"(pointer))

/* A length that the verifier knows to be at most `max`, whatever the compiler made of its history. */
static __always_inline __u64 at_most(__u64 n, __u64 max)
{
	asm volatile("" : "+r"(n));
	if (n > max)
		n = max;
	return n;
}
