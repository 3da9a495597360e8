/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Programs that do nothing on the hooks of the capture: what these hooks cost whoever uses them. */
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))

SEC("tp_btf/sock_send_length") int floor_send(u64 *arguments) { return 0; }
SEC("tp_btf/sock_recv_length") int floor_recv(u64 *arguments) { return 0; }
SEC("tp_btf/inet_sock_set_state") int floor_state(u64 *arguments) { return 0; }
SEC("tp_btf/tcp_destroy_sock") int floor_gone(u64 *arguments) { return 0; }

char LICENSE[] SEC("license") = "Dual BSD/GPL";
