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
};
VALUES(process_flags);

extern __u8 process_flags[PID_LIMIT]; /* defined in process.bpf.c */

static __always_inline __u8 flags_of(__u32 tgid)
{
	return process_flags[tgid & (PID_LIMIT - 1)];
}
