/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counts what passes a probe site, to be compared with what a program really did. */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define SLOTS 16

struct counts {
	__u64 entries;
	__u64 returns;
	__u64 asked;	/* sum of the length argument */
	__u64 moved;	/* sum of what the returns say */
	__u64 marked;	/* transfers whose buffer begins with MARK */
	__u64 unread;	/* buffers that could not be read */
	__u64 threads_main;
	__u64 threads_other;
};

struct call {
	__u64 buffer;
	__u64 moved_at;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct counts);
} results SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct call);
} calls SEC(".maps");

#define MARK 0x72656b6f6f6c6e6fULL /* "onlooker" */

/*
 * Numbers as the processor has them: rax rcx rdx rbx rsp rbp rsi rdi r8 ...  Each case reads for itself, because a
 * context pointer with an offset chosen at run time is refused.
 */
#define REGISTER(number, name)                                                                                         \
	case number:                                                                                                   \
		value = regs->name;                                                                                    \
		asm volatile("" : "+r"(value));                                                                        \
		return value

static __always_inline __u64 register_of(struct pt_regs *regs, __u32 number)
{
	__u64 value;

	switch (number) {
		REGISTER(0, rax);
		REGISTER(1, rcx);
		REGISTER(2, rdx);
		REGISTER(3, rbx);
		REGISTER(6, rsi);
		REGISTER(7, rdi);
		REGISTER(8, r8);
		REGISTER(9, r9);
	}
	return 0;
}

/* cookie: slot, then register numbers of buffer, length and the place of the count, 0xff: none; then the ABI */
static __always_inline struct counts *slot_of(__u64 cookie)
{
	__u32 slot = cookie & (SLOTS - 1);

	return bpf_map_lookup_elem(&results, &slot);
}

static __always_inline void look_at(struct counts *counts, __u64 buffer)
{
	__u64 head = 0;

	if (bpf_probe_read_user(&head, sizeof(head), (void *)buffer))
		counts->unread++;
	else if (head == MARK)
		counts->marked++;
}

SEC("uprobe")
int on_entry(struct pt_regs *regs)
{
	__u64 cookie = bpf_get_attach_cookie(regs), who = bpf_get_current_pid_tgid();
	struct counts *counts = slot_of(cookie);
	struct call call = {};

	if (!counts)
		return 0;
	call.buffer = register_of(regs, cookie >> 8 & 0xff);
	call.moved_at = register_of(regs, cookie >> 24 & 0xff);
	__sync_fetch_and_add(&counts->entries, 1);
	__sync_fetch_and_add(&counts->asked, register_of(regs, cookie >> 16 & 0xff));
	if ((who >> 32) == (__u32)who)
		__sync_fetch_and_add(&counts->threads_main, 1);
	else
		__sync_fetch_and_add(&counts->threads_other, 1);
	if (cookie >> 40 & 1)	/* no return probe: the bytes are there now */
		look_at(counts, call.buffer);
	else
		bpf_map_update_elem(&calls, &who, &call, BPF_ANY);
	return 0;
}

SEC("uprobe")
int on_return(struct pt_regs *regs)
{
	__u64 cookie = bpf_get_attach_cookie(regs), who = bpf_get_current_pid_tgid(), moved = 0;
	struct counts *counts = slot_of(cookie);
	struct call *call = bpf_map_lookup_elem(&calls, &who);
	int result = (int)regs->rax;

	if (!counts)
		return 0;
	__sync_fetch_and_add(&counts->returns, 1);
	if (!call)
		return 0;
	if ((cookie >> 32 & 0xff) == 1) {	/* flag */
		if (result == 1)
			bpf_probe_read_user(&moved, sizeof(moved), (void *)call->moved_at);
	} else if ((cookie >> 32 & 0xff) == 2) {	/* Rust: tag in rax, count in rdx */
		if (!(regs->rax & 1))
			moved = regs->rdx;
	} else if (result > 0) {
		moved = result;
	}
	if (moved) {
		__sync_fetch_and_add(&counts->moved, moved);
		look_at(counts, call->buffer);
	}
	bpf_map_delete_elem(&calls, &who);
	return 0;
}

/* The price of the place alone. */
SEC("uprobe")
int do_nothing(struct pt_regs *regs)
{
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
