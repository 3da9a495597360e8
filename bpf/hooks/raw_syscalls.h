/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The end of every system call of the machine: the last resort, only if asked for, because every call of every process
 * pays for it.  The registers still hold the arguments, so that no program at the call's begin is needed.
 */
#pragma once

static __always_inline struct sock *sock_of_descriptor(__u32 descriptor)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd), *file = NULL;
	struct socket *socket;

	if (descriptor >= BPF_CORE_READ(table, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), files + descriptor);
	if (!file || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

SEC("raw_tp/sys_exit")
int BPF_PROG(raw_sys_exit, struct pt_regs *registers, long result)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32, direction = DIRECTION_SEND, descriptor;
	struct call call;
	struct sock *sk;

	if (!(flags_of(tgid) & PROCESS_WATCHED))
		return 0;
	call_of(registers, &call);
	descriptor = call.descriptor;
	switch (call.number) {
	case NR_read:
	case NR_readv:
	case NR_preadv2:
	case NR_recvfrom:
	case NR_recvmsg:
	case NR_recvmmsg:
		direction = DIRECTION_RECEIVE;
		break;
	case NR_write:
	case NR_writev:
	case NR_pwritev2:
	case NR_sendto:
	case NR_sendmsg:
	case NR_sendmmsg:
	case NR_sendfile:
		break;
	default:
		return 0;
	}
	sk = sock_of_descriptor(descriptor);
	if (!sk)
		return 0;
	if (call.number == NR_sendmmsg || call.number == NR_recvmmsg) {
		/* the result counts messages; the first tells its own length, the others go unseen */
		struct user_multi_message first;

		if (result <= 0 || bpf_probe_read_user(&first, sizeof(first), (void *)call.arg1))
			return 0;
		result = first.length;
	}
	return on_bytes_shared(sk, direction, result > 0x7fffffff ? 0x7fffffff : (int)result,
			       direction == DIRECTION_RECEIVE && is_peek() ? MSG_PEEK : 0, 0);
}
