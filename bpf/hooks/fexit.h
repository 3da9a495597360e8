/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The ends of the functions that every send and receive goes through.  Each is called by pointer from another file, so no
 * compiler inlines it, and its arguments are the same from 5.10 to 7.3.  A call that began before the attach is not seen.
 */
#pragma once

SEC("fexit/inet_sendmsg")
int BPF_PROG(fexit_inet_send, struct socket *socket, struct msghdr *message, __u64 size, int result)
{
	return on_bytes_shared(socket_sock(socket), DIRECTION_SEND, result, 0, 0);
}

SEC("fexit/inet6_sendmsg")
int BPF_PROG(fexit_ine6_send, struct socket *socket, struct msghdr *message, __u64 size, int result)
{
	return on_bytes_shared(socket_sock(socket), DIRECTION_SEND, result, 0, 0);
}

SEC("fexit/unix_stream_sendmsg")
int BPF_PROG(fexit_unix_send, struct socket *socket, struct msghdr *message, __u64 size, int result)
{
	return on_bytes_shared(socket_sock(socket), DIRECTION_SEND, result, 0, 0);
}

/* sendfile and splice, until "ipv4, ipv6: Remove ->sendpage", 6.5: from then on they go through sendmsg. */
SEC("fexit/inet_sendpage")
int BPF_PROG(fexit_sendpage, struct socket *socket, struct page *page, int offset, __u64 size, int flags, long result)
{
	return on_bytes_shared(socket_sock(socket), DIRECTION_SEND, (int)result, 0, 0);
}

SEC("fexit/inet_recvmsg")
int BPF_PROG(fexit_inet_recv, struct socket *socket, struct msghdr *message, __u64 size, int flags, int result)
{
	return on_bytes_shared(socket_sock(socket), DIRECTION_RECEIVE, result, flags, 0);
}

SEC("fexit/inet6_recvmsg")
int BPF_PROG(fexit_ine6_recv, struct socket *socket, struct msghdr *message, __u64 size, int flags, int result)
{
	return on_bytes_shared(socket_sock(socket), DIRECTION_RECEIVE, result, flags, 0);
}

SEC("fexit/unix_stream_recvmsg")
int BPF_PROG(fexit_unix_recv, struct socket *socket, struct msghdr *message, __u64 size, int flags, int result)
{
	return on_bytes_shared(socket_sock(socket), DIRECTION_RECEIVE, result, flags, 0);
}
