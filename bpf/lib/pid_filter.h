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
};
VALUES(process_flags);

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
