/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Only for the verifier: drives bpf/protocols/http2.h in a bounded loop over a packet, as a socket filter. */
#include <linux/bpf.h>
#include <linux/types.h>

#include "../../../bpf/protocols/http2.h"

#define SEC(name) __attribute__((section(name), used))
#ifndef STEPS
#define STEPS 64
#endif

static long (*const load_bytes)(const void *skb, __u32 offset, void *to, __u32 length) = (void *)26;
static void *(*const map_lookup)(void *map, const void *key) = (void *)1;

struct scratch {
	struct http2_walker walker;
	struct http2_step step;
};

struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	__u32 *key;
	struct scratch *value;
	int (*max_entries)[1];
} walkers SEC(".maps");

SEC("socket")
int walk(struct __sk_buff *skb)
{
	__u32 key = 0, position = 0, kept = 0, i;
	struct scratch *scratch = map_lookup(&walkers, &key);
	struct http2_walker *w;

	if (!scratch)
		return 0;
	w = &scratch->walker;
	http2_begin(w, skb->len);
	for (i = 0; i < STEPS && position < skb->len; i++) {
		__u32 left = skb->len - position;
		__u32 want = http2_wants(w, left);

		if (want) {
			asm volatile("" : "+r"(want)); /* Linux 5.10 is to see the bounds of this very register */
			if (load_bytes(skb, position, http2_into(w), ((want - 1) & 15) + 1))
				break;
		}
		http2_step(w, left, &scratch->step);
		kept += scratch->step.copy_length;
		position += scratch->step.consume;
	}
	if (position < skb->len)
		http2_unseen(w, skb->len - position);
	return kept;
}

char declared_license[] SEC("license") = "Dual BSD/GPL";
