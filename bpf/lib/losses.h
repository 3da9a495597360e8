/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whatever is lost is counted, by reason. */
#pragma once

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LOSS_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} losses SHARED_MAP;

static __always_inline void count_losses(__u32 reason, __u64 number)
{
	__u64 *count = bpf_map_lookup_elem(&losses, &reason);

	if (count)
		*count += number;
}

static __always_inline void count_loss(__u32 reason)
{
	count_losses(reason, 1);
}
