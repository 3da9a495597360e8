/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which processes are watched: one byte a tgid, mapped by user space, so that the answer costs
 * one load and a change one store.
 */
#pragma once

enum process_flags {
	PROCESS_WATCHED = 1 << 0,
	/* A thread serves several requests at once (goroutines, an event loop with many threads, virtual
	 * threads): it is a certain execution context only while one request of the process is open. */
	PROCESS_THREAD_UNCERTAIN = 1 << 1,
	PROCESS_TLS = 1 << 2,	    /* probes are on its TLS libraries */
	PROCESS_TLS_TOLD = 1 << 3,  /* it speaks TLS, and user space was told */
	PROCESS_RUSTLS = 1 << 4,    /* one of them is rustls: see rustls.h */
};
VALUES(process_flags);

/* The agent's own pid namespace, set before load: its level, 0 for the host's, and its inode number. */
extern const volatile __u32 pid_level;
extern const volatile __u32 pid_namespace;

/* The process of a task as the agent's namespace numbers it; 0 for one that is outside. */
static __always_inline __u32 tgid_of(struct task_struct *task)
{
	struct task_struct *leader;
	struct upid number = {};
	struct pid *pid;

	if (!pid_level)
		return BPF_CORE_READ(task, tgid);
	leader = BPF_CORE_READ(task, group_leader);
	pid = BPF_CORE_READ(leader, thread_pid);
	if (!pid || BPF_CORE_READ(pid, level) < pid_level)
		return 0;
	bpf_probe_read_kernel(&number, sizeof(number), __builtin_preserve_access_index(&pid->numbers[0]) + pid_level);
	if (!number.ns || BPF_CORE_READ(number.ns, ns.inum) != pid_namespace)
		return 0;
	return (__u32)number.nr;
}

static __always_inline __u64 current_pid_tgid(void)
{
	__u64 both = bpf_get_current_pid_tgid();

	if (!pid_level)
		return both;
	return (__u64)tgid_of((struct task_struct *)bpf_get_current_task()) << 32 | (__u32)both;
}

/* Every program means the agent's numbers, by which user space chooses processes and reads /proc. */
#define bpf_get_current_pid_tgid current_pid_tgid

#ifdef ONLOOKER_OLD_KERNEL
/* In pages: a value of a map is less than 4 MiB there (KMALLOC_MAX_SIZE). */
#define PROCESS_PAGE 4096

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, PID_LIMIT / PROCESS_PAGE);
	__type(key, __u32);
	__type(value, __u8[PROCESS_PAGE]);
} process_flags SHARED_MAP;

static __always_inline __u8 *flags_cell(__u32 tgid)
{
	__u32 page = (tgid & (PID_LIMIT - 1)) / PROCESS_PAGE;
	__u8 *cells = bpf_map_lookup_elem(&process_flags, &page);

	return cells ? cells + (tgid & (PROCESS_PAGE - 1)) : NULL;
}

static __always_inline __u8 flags_of(__u32 tgid)
{
	__u8 *cell = flags_cell(tgid);

	return cell ? *cell : 0;
}

static __always_inline void set_flags(__u32 tgid, __u8 flags)
{
	__u8 *cell = flags_cell(tgid);

	if (cell)
		*cell = flags;
}
#else
extern __u8 process_flags[PID_LIMIT]; /* defined in process.bpf.c */

static __always_inline __u8 flags_of(__u32 tgid)
{
	return process_flags[tgid & (PID_LIMIT - 1)];
}

static __always_inline void set_flags(__u32 tgid, __u8 flags)
{
	process_flags[tgid & (PID_LIMIT - 1)] = flags;
}
#endif
