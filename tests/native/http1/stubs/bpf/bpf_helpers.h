/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Stands in for libbpf's header in a program of the host: see ../../host.h. */
#pragma once

#undef __always_inline
#define SEC(name)
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define __noinline __attribute__((noinline))
#define __always_inline inline __attribute__((always_inline))

static __u64 clock_ns;
static unsigned char ring_record[4096];
static struct pt_regs registers;
static void *looked_up(void *map, const void *key);
static void *stored(void *map, __u64 flags);
static void submitted(const void *record);

#define bpf_map_lookup_elem(map, key) looked_up((void *)(map), key)
#define bpf_map_update_elem(map, key, value, flags) ((void)(map), (void)(key), (void)(value), 0)
#define bpf_map_delete_elem(map, key) ((void)(map), (void)(key), 0)
#define bpf_sk_storage_get(map, sk, value, flags) ((void)(sk), stored((void *)(map), flags))
#define bpf_sk_storage_delete(map, sk) ((void)(map), (void)(sk), 0)
#define bpf_task_storage_get(map, task, value, flags) ((void)(map), NULL)
#define bpf_get_current_task() 0UL
#define bpf_get_current_task_btf() NULL
#define bpf_task_pt_regs(task) (&registers)
static inline unsigned long long bpf_get_current_pid_tgid(void)
{
	return (7ULL << 32) | 8;
}
#define bpf_skc_to_tcp_sock(sk) ((void)(sk), (struct tcp_sock *)NULL) /* positions in a TCP stream are not known here */
#define bpf_get_smp_processor_id() 0
#define bpf_get_current_comm(to, n) (memset(to, 'x', n), 0)
#define bpf_ktime_get_ns() clock_ns
#define bpf_probe_read_kernel(to, n, from) (memcpy(to, (const void *)(from), n), 0)
#define bpf_probe_read_user(to, n, from) (memcpy(to, (const void *)(from), n), 0)
/* A record is written in full, or something of the ring's past would leave with it. */
#define bpf_ringbuf_reserve(ring, size, flags) ((void)(ring), memset(ring_record, 0xa5, size), (void *)ring_record)
#define bpf_ringbuf_submit(record, flags) submitted(record)
#define bpf_ringbuf_discard(record, flags) ((void)(record))
#define bpf_ringbuf_query(ring, flags) 0UL
