/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * One ring per record size.  The reader drains on a timer; it is woken only when a ring fills
 * faster than the timer expects.
 */
#pragma once

#define RING(name, bytes)                                                                          \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                                \
		__uint(max_entries, bytes);                                                        \
	} name SHARED_MAP

RING(ring_128, RING_128_SIZE);
RING(ring_256, RING_256_SIZE);
RING(ring_512, RING_512_SIZE);
RING(ring_4096, RING_4096_SIZE);

#define ring_reserve(ring, type)                                                                   \
	({                                                                                         \
		type *__record = bpf_ringbuf_reserve(&ring, sizeof(type), 0);                      \
		if (!__record)                                                                     \
			count_loss(LOSS_RING_FULL);                                                \
		__record;                                                                          \
	})

/* Whether a ring has just been filled up to, or by, another wakeup_bytes: once is enough, a wake-up costs a request's worth. */
static __always_inline __u64 wakeup_due(__u64 filled)
{
	return filled >= wakeup_bytes && (filled & (wakeup_bytes - 1)) < WAKEUP_WINDOW ? BPF_RB_FORCE_WAKEUP :
											   BPF_RB_NO_WAKEUP;
}

#define ring_submit(ring, record)                                                                  \
	bpf_ringbuf_submit(record, wakeup_due(bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA)))
