// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Where on its kernel stack a task keeps the registers of its system call, for kernels that do not tell
 * (bpf_task_pt_regs, 5.15).  No formula is right everywhere: the distance to the top of the stack changed, and stacks
 * are larger with KASAN.  So user space makes one system call that this program knows by its first argument.
 */
#include "lib/kernel_types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

const volatile __u64 calibration_word = 0;
__u64 registers_offset;
__u64 namespace_level; /* of the pid namespace that the agent is in */

SEC("raw_tp/sys_enter")
int BPF_PROG(calibrate, struct pt_regs *registers, long number)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

#if defined(__TARGET_ARCH_x86)
	if (BPF_CORE_READ(registers, di) != calibration_word)
#else
	if (BPF_CORE_READ(registers, regs[0]) != calibration_word)
#endif
		return 0;
	namespace_level = BPF_CORE_READ(task, thread_pid, level);
	registers_offset = (__u64)registers - (__u64)BPF_CORE_READ(task, stack);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
