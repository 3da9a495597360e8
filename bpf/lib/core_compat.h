/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What differs between kernels and architectures, one accessor each. */
#pragma once

/*
 * ONLOOKER_OLD_KERNEL: the object for kernels without storage in sockets and tasks, or without trampolines.  Pointers
 * into the kernel have no type there and are read by helper.
 */
#ifdef ONLOOKER_OLD_KERNEL
#define KERNEL_FIELD(from, field) BPF_CORE_READ(from, field)

/* From the bottom of a task's kernel stack to its user registers; found out by calibrate.bpf.c, see there. */
extern __u64 registers_offset;

/* The registers with which the current task entered the kernel, if it did. */
static __always_inline struct pt_regs *user_registers(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return BPF_CORE_READ(task, stack) + registers_offset;
}
#else
#define KERNEL_FIELD(from, field) ((from)->field)

/* The registers with which the current task entered the kernel, or NULL. */
static __always_inline struct pt_regs *user_registers(void)
{
	/* bpf_task_pt_regs: "bpf: Add bpf_task_pt_regs() helper", 5.15 */
	return (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
}
#endif

/* The TCP part of a socket that speaks it; of others NULL, or nothing that means anything. */
static __always_inline struct tcp_sock *tcp_of(struct sock *sk)
{
#ifdef ONLOOKER_OLD_KERNEL
	return (struct tcp_sock *)sk;
#else
	/* "bpf: Add bpf_skc_to_{tcp, tcp_timewait, tcp_request}_sock() helpers", 5.9 */
	return bpf_skc_to_tcp_sock(sk);
#endif
}

static __always_inline struct sock *socket_sock(struct socket *socket)
{
	return KERNEL_FIELD(socket, sk);
}

struct call {
	__u32 descriptor;
	__u64 arg1;
	__u64 arg2;
	int number; /* of the system call; -1: not in one that can be understood */
};

#if defined(__TARGET_ARCH_x86)
#define USER_CS 0x33	    /* a 64-bit user code segment: a 32-bit caller has other call numbers */
enum {
	NR_read = 0,
	NR_write = 1,
	NR_readv = 19,
	NR_writev = 20,
	NR_sendfile = 40,
	NR_sendto = 44,
	NR_recvfrom = 45,
	NR_sendmsg = 46,
	NR_recvmsg = 47,
	NR_recvmmsg = 299,
	NR_sendmmsg = 307,
	NR_preadv2 = 327,
	NR_pwritev2 = 328,
};
static __always_inline void call_of(struct pt_regs *regs, struct call *call)
{
	call->number = -1;
	/* what is no user code segment is no frame of a call: the place is wrong, or a thread of the kernel's own */
	if (!regs || KERNEL_FIELD(regs, cs) != USER_CS)
		return;
	call->number = (int)KERNEL_FIELD(regs, orig_ax);
	call->descriptor = (__u32)KERNEL_FIELD(regs, di);
	call->arg1 = KERNEL_FIELD(regs, si);
	call->arg2 = KERNEL_FIELD(regs, dx);
}
static __always_inline __u32 call_arg3(struct pt_regs *regs)
{
	return (__u32)KERNEL_FIELD(regs, r10);
}
#elif defined(__TARGET_ARCH_arm64)
enum {
	NR_read = 63,
	NR_write = 64,
	NR_readv = 65,
	NR_writev = 66,
	NR_sendfile = 71,
	NR_sendto = 206,
	NR_recvfrom = 207,
	NR_sendmsg = 211,
	NR_recvmsg = 212,
	NR_recvmmsg = 243,
	NR_sendmmsg = 269,
	NR_preadv2 = 286,
	NR_pwritev2 = 287,
};
static __always_inline void call_of(struct pt_regs *regs, struct call *call)
{
	call->number = -1;
	if (!regs)
		return;
#ifdef ONLOOKER_OLD_KERNEL
	if (KERNEL_FIELD(regs, pstate) & 0x1f) /* not from 64-bit user mode (PSR_MODE_EL0t) */
		return;
#endif
	call->number = KERNEL_FIELD(regs, syscallno);
	call->descriptor = (__u32)KERNEL_FIELD(regs, regs[0]);
	call->arg1 = KERNEL_FIELD(regs, regs[1]);
	call->arg2 = KERNEL_FIELD(regs, regs[2]);
}
static __always_inline __u32 call_arg3(struct pt_regs *regs)
{
	return (__u32)KERNEL_FIELD(regs, regs[3]);
}
#endif

static __always_inline void current_call(struct call *call)
{
	call_of(user_registers(), call);
}

/* Whether the current call is a receive that leaves the bytes where they are; for hooks that are not told. */
static __always_inline bool is_peek(void)
{
	struct call call;

	current_call(&call);
	return (call.number == NR_recvfrom && call_arg3(user_registers()) & MSG_PEEK) ||
	       (call.number == NR_recvmsg && call.arg2 & MSG_PEEK);
}
