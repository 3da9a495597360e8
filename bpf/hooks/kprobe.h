/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Entry probes alone, where a kernel has no trampolines: return probes come from a small pool, and a thread that waits in
 * a receive keeps one (of 100 such threads with the default pool, 1 to 9 were seen).  TCP only.
 *
 * A send is seen before it happened, with the length that was asked for; the kernel may take less, and the rest comes
 * again.  tcp_cleanup_rbuf may run several times in one receive, each time with the sum so far.  Both are put right by the
 * position in the TCP stream: what was dealt with already is left out.
 */
#pragma once

static __always_inline int on_tcp(struct sock *sk, __u32 direction, __u32 length)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32, end, done = 0;
	struct connection *c;
	__u16 family;

	if (!(flags_of(tgid) & PROCESS_WATCHED) || !length || length > (1U << 30))
		return 0;
	family = KERNEL_FIELD(sk, __sk_common.skc_family);
	if ((family != AF_INET && family != AF_INET6) || KERNEL_FIELD(sk, sk_type) != SOCK_STREAM)
		return 0;
	if (direction == DIRECTION_SEND)
		end = BPF_CORE_READ((struct tcp_sock *)sk, write_seq) + length;
	else
		end = BPF_CORE_READ((struct tcp_sock *)sk, copied_seq);
	c = connection_of(sk);
	if (c && c->streams[direction & 1].bytes) {
		__u32 ahead = c->streams[direction & 1].tcp_seq - (end - length);

		if (ahead <= length)
			done = ahead;
	} else if (direction == DIRECTION_RECEIVE && is_peek()) {
		return 0;
	}
	if (done < length) {
		struct work *w = work_of(direction);

		if (w) /* no other program of this hook sends or receives on this CPU: kprobes are not preempted */
			w->untaken = direction == DIRECTION_SEND ? length : 0;
		on_bytes_shared(sk, direction, length - done, 0, done);
	}
	if (!c)
		c = connection_of(sk);
	if (c)
		c->streams[direction & 1].tcp_seq = end;
	return 0;
}

SEC("kprobe/inet_sendmsg")
int BPF_KPROBE(kprobe_inet_snd, struct socket *socket, struct msghdr *message, __u64 size)
{
	return on_tcp(socket_sock(socket), DIRECTION_SEND, (__u32)size);
}

SEC("kprobe/inet6_sendmsg")
int BPF_KPROBE(kprobe_ine6_snd, struct socket *socket, struct msghdr *message, __u64 size)
{
	return on_tcp(socket_sock(socket), DIRECTION_SEND, (__u32)size);
}

/* sendfile and splice, until 6.5; as in fexit.h. */
SEC("kprobe/inet_sendpage")
int BPF_KPROBE(kprobe_sendpage, struct socket *socket, struct page *page, int offset, __u64 size)
{
	return on_tcp(socket_sock(socket), DIRECTION_SEND, (__u32)size);
}

SEC("kprobe/tcp_cleanup_rbuf")
int BPF_KPROBE(kprobe_tcp_recv, struct sock *sk, int copied)
{
	return on_tcp(sk, DIRECTION_RECEIVE, copied > 0 ? copied : 0);
}
