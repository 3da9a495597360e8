/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The tracepoints that fire after each send and receive: "net: Add a tracepoint for socket send/recv length", 6.3. */
#pragma once

SEC("tp_btf/sock_send_length")
int BPF_PROG(tp_sock_send, struct sock *sk, int result, int flags)
{
	return on_bytes(sk, DIRECTION_SEND, result, flags);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(tp_sock_recv, struct sock *sk, int result, int flags)
{
	return on_bytes(sk, DIRECTION_RECEIVE, result, flags);
}
