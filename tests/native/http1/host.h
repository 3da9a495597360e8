/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's side of the helpers that bpf/lib/exchange.h calls, for a program of the host: one connection, one task,
 * no trace context but that of headers.  "User memory" is this program's own; reading behind it is a finding.
 */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef NULL
#undef __always_inline
#if defined(__x86_64__)
#define __TARGET_ARCH_x86
#else
#define __TARGET_ARCH_arm64
#endif

#include "../../../bpf/lib/kernel_types.h"

#define SEC(name)
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define __noinline __attribute__((noinline))
#define __always_inline inline __attribute__((always_inline))
#define BPF_CORE_READ(source, member) ((void)(source), 0)
#define PROMISED(condition)                                                                        \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                    \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

static __u64 clock_ns = 1000;
static unsigned char ring_record[4096];
static unsigned long loss_counts[64];
static void *looked_up(void *map, const void *key);
static void submitted(const void *record);

#define bpf_map_lookup_elem(map, key) looked_up((void *)(map), key)
#define bpf_map_update_elem(map, key, value, flags) ((void)(map), (void)(key), (void)(value), 0)
#define bpf_map_delete_elem(map, key) ((void)(map), (void)(key), 0)
#define bpf_sk_storage_get(map, sk, value, flags) ((void)(map), (void)(sk), NULL)
#define bpf_task_storage_get(map, task, value, flags) ((void)(map), NULL)
#define bpf_get_current_task_btf() NULL
#define bpf_task_pt_regs(task) NULL
#define bpf_get_current_pid_tgid() ((7ULL << 32) | 8)
#define bpf_get_smp_processor_id() 0
#define bpf_get_prandom_u32() 1
#define bpf_ktime_get_ns() clock_ns
#define bpf_probe_read_kernel(to, n, from) (memcpy(to, from, n), 0)
#define bpf_probe_read_user(to, n, from) (memcpy(to, from, n), 0)
/* A record is written in full, or something of the ring's past would leave with it. */
#define bpf_ringbuf_reserve(ring, size, flags) ((void)(ring), memset(ring_record, 0xa5, size), (void *)ring_record)
#define bpf_ringbuf_submit(record, flags) submitted(record)
#define bpf_ringbuf_discard(record, flags) ((void)(record))
#define bpf_ringbuf_query(ring, flags) 0UL

#include "../../../bpf/records.h"
#include "../../../bpf/settings.h"
#include "../../../bpf/lib/share.h"
#include "../../../bpf/lib/losses.h"
#include "../../../bpf/lib/rings.h"
#include "../../../bpf/lib/core_compat.h"
#include "../../../bpf/lib/pid_filter.h"
#include "../../../bpf/protocols/http1.h"
#include "../../../bpf/lib/source.h"
#include "../../../bpf/lib/connection.h"
#include "../../../bpf/lib/context.h"
#include "../../../bpf/lib/exchange.h"

const volatile __u64 secret = 1;
const volatile __u32 wakeup_bytes = ~0U;
__u8 process_flags[PID_LIMIT];

static struct work host_works[WORKS];

static void *looked_up(void *map, const void *key)
{
	if (map == &works)
		return &host_works[*(const __u32 *)key];
	if (map == &losses) {
		loss_counts[*(const __u32 *)key]++;
		return NULL;
	}
	return NULL;
}

/* One transfer, as core.h hands it on once the connection is known to speak HTTP/1. */
static void transfer(struct connection *c, __u32 direction, const __u8 *bytes, __u32 length)
{
	struct stream *s = &c->streams[direction];
	struct work *w = &host_works[direction];

	clock_ns += 1000;
	w->emit = EMIT_NONE;
	w->head_of = 0;
	w->source.iov[0].base = (__u64)bytes;
	w->source.iov[0].length = length;
	w->source.iov_count = 1;
	w->source.length = length;
	w->source.offset = 0;
	w->now_mono_ns = clock_ns;
	s->bytes += length;
	s->last_mono_ns = clock_ns;
	if (c->protocol != PROTOCOL_HTTP1)
		return;
	for (int i = 0; i < STEPS_MAX; i++) {
		__u32 before = w->source.offset;
		int again = http1_step(c, w, direction);

		PROMISED(w->source.offset >= before && w->source.offset <= length);
		PROMISED(s->carry_length <= CARRY_SIZE);
		if (w->head_of)
			request_context(c, w, direction);
		if (w->emit)
			emit(c, w);
		PROMISED((__s32)(c->requests - c->responses) >= 0);
		if (!again)
			return;
	}
	count_loss(LOSS_STEPS);
}

static void connection_begin(struct connection *c, __u32 request_direction)
{
	memset(c, 0, sizeof(*c));
	c->id = 42;
	c->family = AF_INET;
	c->protocol = PROTOCOL_HTTP1;
	c->request_direction = request_direction;
}

static void connection_end(struct connection *c, __u8 error)
{
	clock_ns += 1000;
	abandon(c, &host_works[WORK_STATE], clock_ns, error);
}
