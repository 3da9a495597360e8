/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What differs between kernels and architectures, one accessor each. */
#pragma once

/* The registers with which the current task entered the kernel, or NULL. */
static __always_inline struct pt_regs *user_registers(void)
{
	/* bpf_task_pt_regs: "bpf: Add bpf_task_pt_regs() helper", 5.15 */
	return (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
}

struct call {
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
static __always_inline void current_call(struct call *call)
{
	struct pt_regs *regs = user_registers();

	call->number = -1;
	if (!regs || regs->cs != USER_CS)
		return;
	call->number = (int)regs->orig_ax;
	call->arg1 = regs->si;
	call->arg2 = regs->dx;
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
static __always_inline void current_call(struct call *call)
{
	struct pt_regs *regs = user_registers();

	call->number = -1;
	if (!regs)
		return;
	call->number = regs->syscallno;
	call->arg1 = regs->regs[1];
	call->arg2 = regs->regs[2];
}
#endif
