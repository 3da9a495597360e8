// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Processes come, change and go; some begin to listen.  None of these programs runs per request. */
#include "lib/kernel_types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "records.h"
#include "settings.h"
#include "lib/share.h"
#include "lib/losses.h"
#include "lib/rings.h"
#include "lib/pid_filter.h"
#include "lib/serving.h"

const volatile __u32 pid_level = 0;
const volatile __u32 pid_namespace = 0;
#ifndef ONLOOKER_OLD_KERNEL
__u8 process_flags[PID_LIMIT];
struct serving servings[SERVINGS];
#endif

static __always_inline struct process_record *begin_record(__u8 event, struct task_struct *task)
{
	struct process_record *record = ring_reserve(ring_128, struct process_record);
	__u32 tgid;

	if (!record)
		return NULL;
	__builtin_memset(record, 0, sizeof(*record));
	tgid = tgid_of(task);
	record->kind = RECORD_PROCESS;
	record->event = event;
	record->watched = flags_of(tgid) & PROCESS_WATCHED;
	record->tgid = tgid;
	record->parent_tgid = tgid_of(BPF_CORE_READ(task, real_parent));
	record->mono_ns = bpf_ktime_get_ns();
	record->start_boot_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	bpf_probe_read_kernel(record->comm, sizeof(record->comm), &task->comm);
	return record;
}

static __always_inline void end_record(struct process_record *record)
{
	bpf_ringbuf_submit(record, BPF_RB_FORCE_WAKEUP);
}

/* A process moves TLS over a socket: user space looks for the library.  Once for each program that it runs. */
__noinline int tell_tls(__u32 tgid)
{
	struct process_record *record;
	__u8 flags = flags_of(tgid);

	if (flags & (PROCESS_TLS | PROCESS_TLS_TOLD))
		return 0;
	set_flags(tgid, flags | PROCESS_TLS_TOLD);
	record = begin_record(PROCESS_SPEAKS_TLS, (struct task_struct *)bpf_get_current_task());
	if (record)
		end_record(record);
	return 0;
}

/* Its dynamic loader has news for debuggers, and for us. */
__noinline int tell_loaded(__u32 tgid)
{
	struct process_record *record;

	if (!(flags_of(tgid) & PROCESS_WATCHED))
		return 0;
	record = begin_record(PROCESS_LOADED, (struct task_struct *)bpf_get_current_task());
	if (record)
		end_record(record);
	return 0;
}

/* A child of a watched process is watched from its first instruction. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(tp_fork, struct task_struct *parent, struct task_struct *child)
{
	__u32 from = tgid_of(parent), to = tgid_of(child);
	struct process_record *record;
	__u8 flags = flags_of(from);

	if (from == to || !(flags & PROCESS_WATCHED)) /* a thread, or nobody's business */
		return 0;
	set_flags(to, flags);
	record = begin_record(PROCESS_FORK, child);
	if (record)
		end_record(record);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(tp_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	__u32 tgid = tgid_of(task);
	struct process_record *record;
	__u8 flags = flags_of(tgid);

	if (!tgid) /* outside of the agent's namespace */
		return 0;
	/* the probes went with the old program */
	if (flags & (PROCESS_TLS | PROCESS_TLS_TOLD))
		set_flags(tgid, flags & ~(PROCESS_TLS | PROCESS_TLS_TOLD | PROCESS_RUSTLS));
	record = begin_record(PROCESS_EXEC, task);
	if (record)
		end_record(record);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(tp_exit, struct task_struct *task)
{
	__u32 tgid = tgid_of(task);
	struct process_record *record;

	if (!(flags_of(tgid) & PROCESS_WATCHED))
		return 0;
#ifndef ONLOOKER_OLD_KERNEL
	serving_forget((__u32)BPF_CORE_READ(task, pid));
#endif
	if (BPF_CORE_READ(task, signal, live.counter) > 0)
		return 0;
	record = begin_record(PROCESS_EXIT, task);
	if (record) {
		record->exit_code = BPF_CORE_READ(task, exit_code);
		end_record(record);
	}
	/* The flags stay until user space has read the record: the sockets are closed only now. */
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tp_listen, struct sock *sk, int oldstate, int newstate)
{
	struct process_record *record;

	if (newstate != TCP_LISTEN || !(__u32)(bpf_get_current_pid_tgid() >> 32))
		return 0;
	record = begin_record(PROCESS_LISTEN, (struct task_struct *)bpf_get_current_task());
	if (!record)
		return 0;
	record->family = (__u8)sk->__sk_common.skc_family;
	record->port = sk->__sk_common.skc_num;
	end_record(record);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
