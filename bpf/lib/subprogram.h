/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Functions that the verifier walks once and by themselves, over a connection and the work of a direction.  They take
 * pointers where the kernel lets them ("bpf: Support pointers in global func args", 5.12); before that a global
 * function takes numbers only, and finds both again by the socket's address and the slot of the work.
 */
#pragma once

#define SUBPROGRAM_HEAD struct connection *c, struct work *w

#ifdef ONLOOKER_OLD_KERNEL
#define SUBPROGRAM_BY_NUMBERS(name, parameters, arguments)                                         \
	static __always_inline int name##_body(SUBPROGRAM_HEAD parameters);                        \
	__noinline int name##_of(__u64 key, __u32 slot parameters)                                \
	{                                                                                          \
		struct connection *c = bpf_map_lookup_elem(&connections, &key);                    \
		struct work *w = bpf_map_lookup_elem(&works, &slot);                              \
                                                                                                   \
		return c && w ? name##_body(c, w arguments) : 0;                                   \
	}                                                                                          \
	static __always_inline int name(SUBPROGRAM_HEAD parameters)                                \
	{                                                                                          \
		return name##_of(c->key, w->index arguments);                                      \
	}                                                                                          \
	static __always_inline int name##_body(SUBPROGRAM_HEAD parameters)
#else
#define SUBPROGRAM_BY_NUMBERS(name, parameters, arguments) __noinline int name(SUBPROGRAM_HEAD parameters)
#endif

/* The same over the work alone. */
#ifdef ONLOOKER_OLD_KERNEL
#define WORKPROGRAM_BY_NUMBERS(name, parameters, arguments)                                        \
	static __always_inline int name##_body(struct work *w parameters);                         \
	__noinline int name##_of(__u32 slot parameters)                                            \
	{                                                                                          \
		struct work *w = bpf_map_lookup_elem(&works, &slot);                              \
                                                                                                   \
		return w ? name##_body(w arguments) : 0;                                           \
	}                                                                                          \
	static __always_inline int name(struct work *w parameters)                                 \
	{                                                                                          \
		return name##_of(w->index arguments);                                              \
	}                                                                                          \
	static __always_inline int name##_body(struct work *w parameters)
#else
#define WORKPROGRAM_BY_NUMBERS(name, parameters, arguments) __noinline int name(struct work *w parameters)
#endif

#define COMMA ,
#define WORKPROGRAM(name) WORKPROGRAM_BY_NUMBERS(name, , )
#define WORKPROGRAM_2(name, a, b) WORKPROGRAM_BY_NUMBERS(name, COMMA __u32 a COMMA __u32 b, COMMA a COMMA b)
#define SUBPROGRAM(name) SUBPROGRAM_BY_NUMBERS(name, , )
#define SUBPROGRAM_1(name, a) SUBPROGRAM_BY_NUMBERS(name, COMMA __u32 a, COMMA a)
#define SUBPROGRAM_2(name, a, b) SUBPROGRAM_BY_NUMBERS(name, COMMA __u32 a COMMA __u32 b, COMMA a COMMA b)
