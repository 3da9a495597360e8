// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Plaintext at the doors of TLS libraries.  The cookie of a probe says how its function takes arguments and tells what it
 * moved; src/onlooker/attach/registry.py makes it.  Every link is filtered to one process.
 */
#include "lib/kernel_types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "records.h"
#include "settings.h"
#include "lib/share.h"
#include "lib/losses.h"
#include "lib/rings.h"
#include "lib/core_compat.h"
#include "lib/pid_filter.h"
#include "protocols/http1.h"
#include "protocols/http2.h"
#include "lib/source.h"
#include "lib/connection.h"
#include "lib/subprogram.h"
#include "lib/context.h"
#include "lib/tls.h"

#if !defined(ONLOOKER_OLD_KERNEL) && defined(__TARGET_ARCH_x86)

/* As src/onlooker/attach/tls.py numbers them: the order of `Abi`. */
enum abi {
	ABI_COUNT = 0,
	ABI_FLAG = 1,
	ABI_RUST_RESULT = 2,
	ABI_RUST_VECTORED = 3,
	ABI_GO_SLICE = 4,
	ABI_GO_COPY = 5,
	ABI_GO_READER = 6,
	ABI_EVENT = 7,
	ABI_SENDFILE = 8,
	ABI_NSPR = 9,
};

#define COOKIE_RETURN (1ULL << 40)
#define COOKIE_ABI(cookie) ((__u8)(cookie))
#define COOKIE_DIRECTION(cookie) ((__u32)((cookie) >> 8) & 1)
#define COOKIE_REGISTER(cookie, argument) ((__u32)((cookie) >> (16 + 4 * (argument))) & 15)

/* Which session the goroutine reads from: it may go on in another thread before it has its bytes. */
struct go_read {
	__u32 tgid;
	__u32 pad;
	__u64 goroutine;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, GO_READS_MAX);
	__type(key, struct go_read);
	__type(value, __u64);
} go_reads SHARED_MAP;

/*
 * Numbers as the processor has them.  Each case reads for itself, because a context pointer with an offset chosen at
 * run time is refused.
 */
#define REGISTER(number, name)                                                                     \
	case number:                                                                               \
		value = regs->name;                                                                \
		asm volatile("" : "+r"(value));                                                    \
		return value

static __always_inline __u64 register_of(struct pt_regs *regs, __u32 number)
{
	__u64 value;

	switch (number) {
		REGISTER(0, ax);
		REGISTER(1, cx);
		REGISTER(2, dx);
		REGISTER(3, bx);
		REGISTER(6, si);
		REGISTER(7, di);
		REGISTER(8, r8);
		REGISTER(9, r9);
	}
	return 0;
}

/* Room to work in.  These programs can be preempted by themselves, so each takes an entry that nobody is in. */
static __always_inline struct work *take_work(void)
{
	for (__u32 i = WORK_TLS; i < WORKS; i++) {
		struct work *w = work_of(i);

		if (w && !*(volatile __u32 *)&w->busy) {
			*(volatile __u32 *)&w->busy = 1;
			w->index = i;
			return w;
		}
	}
	count_loss(LOSS_STEPS);
	return NULL;
}

/* Bytes that have passed, or are about to. */
struct passage {
	__u64 buffer;
	__u64 length;
	__u32 vectors; /* the buffer is a list of so many pieces; 0: it is the bytes themselves */
};

/* Follow the bytes through the messages they belong to. */
static __always_inline void passed(const struct tls_key *key, __u32 direction, const struct passage *p)
{
	struct tls_session *session = tls_session_make(key);
	struct work *w;

	if (!session || session->c.protocol == PROTOCOL_OTHER)
		return;
	w = take_work();
	if (!w)
		return;
	w->source.length = p->length > 0x7fffffff ? 0x7fffffff : (__u32)p->length;
	w->source.offset = 0;
	if (p->vectors) {
		source_iov(&w->source, p->buffer, p->vectors);
	} else {
		w->source.iov[0].base = p->buffer;
		w->source.iov[0].length = w->source.length;
		w->source.iov_count = p->buffer ? 1 : 0;
		w->source.iov_total = 1;
		w->source.iov_start = 0;
	}
	tls_take(&session->c, w, direction);
	*(volatile __u32 *)&w->busy = 0;
}

static __always_inline bool begin(struct tls_key *key)
{
	key->tgid = bpf_get_current_pid_tgid() >> 32;
	key->pad = 0;
	return flags_of(key->tgid) & PROCESS_WATCHED;
}

/* The library lets a session go. */
SEC("uprobe")
int tls_free(struct pt_regs *regs)
{
	struct tls_session *session;
	struct tls_key key;
	struct work *w;
	__u64 socket;

	if (!begin(&key))
		return 0;
	key.address = register_of(regs, COOKIE_REGISTER(bpf_get_attach_cookie(regs), 0));
	session = tls_session_of(&key);
	if (!session)
		return 0;
	socket = session->socket;
	w = take_work();
	if (w) {
		__u32 error = session->c.error;

		if (!error && socket && BPF_CORE_READ((struct sock *)socket, __sk_common.skc_state) == TCP_CLOSE_WAIT)
			error = REQUEST_PEER_CLOSED;
		tls_end(&session->c, w, error ? error : REQUEST_LOCAL_CLOSED);
		*(volatile __u32 *)&w->busy = 0;
	}
	tls_forget(&key, socket);
	return 0;
}

/*
 * The socket below a crypto/tls.Conn: its first field is the interface net.Conn; a *net.TCPConn begins with a *netFD, that
 * with a lock of 16 bytes and the descriptor.  It may be another kind of net.Conn: believed only if the number leads to
 * a socket that is known to carry TLS.
 */
static __always_inline __u64 go_socket(__u64 connection)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct file **table, *file = NULL;
	struct socket *socket;
	__u64 inner = 0, net_fd = 0;
	__u32 descriptor = 0;

	if (bpf_probe_read_user(&inner, sizeof(inner), (void *)(connection + 8)) || !inner ||
	    bpf_probe_read_user(&net_fd, sizeof(net_fd), (void *)inner) || !net_fd ||
	    bpf_probe_read_user(&descriptor, sizeof(descriptor), (void *)(net_fd + 16)))
		return 0;
	if (descriptor >= BPF_CORE_READ(task, files, fdt, max_fds))
		return 0;
	table = BPF_CORE_READ(task, files, fdt, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), table + descriptor) || !file)
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	return socket ? (__u64)BPF_CORE_READ(socket, sk) : 0;
}

static __always_inline void go_join(const struct tls_key *key)
{
	struct tls_session *session = tls_session_of(key);
	__u64 socket;

	if (session && session->socket)
		return;
	socket = go_socket(key->address);
	if (socket)
		tls_adopt(key, socket);
}

/* A goroutine begins to read; what it gets is seen when it is copied. */
SEC("uprobe")
int tls_go_read(struct pt_regs *regs)
{
	struct go_read read = {.goroutine = regs->r14};
	struct tls_key key;

	if (!begin(&key))
		return 0;
	key.address = register_of(regs, COOKIE_REGISTER(bpf_get_attach_cookie(regs), 0));
	read.tgid = key.tgid;
	bpf_map_update_elem(&go_reads, &read, &key.address, BPF_ANY);
	return 0;
}

/*
 * A call on a session begins.  What a client writes is followed now, so that it is known before the server at the other
 * end can read it.  The call may move less than it was asked to, and will be asked again with the same bytes: those were
 * dealt with.  A server's response is followed when the call is over, because that is when it has been sent.
 */
static __always_inline bool call_begins(struct pt_regs *regs, __u64 cookie, __u32 abi, struct tls_key *key,
					struct passage *p)
{
	struct thread *thread = current_thread(true);
	struct tls_session *session;

	if (!thread)
		return false;
	key->address = register_of(regs, COOKIE_REGISTER(cookie, 0));
	thread->tls_session = key->address;
	/* what NSPR moves may as well be no TLS: the socket's own bytes must say so */
	thread->tls_handshake = abi == ABI_EVENT || abi == ABI_NSPR;
	thread->tls_ahead = 0;
	thread->tls_buffer = register_of(regs, COOKIE_REGISTER(cookie, 1));
	thread->tls_length = register_of(regs, COOKIE_REGISTER(cookie, 2));
	thread->tls_moved_at = register_of(regs, COOKIE_REGISTER(cookie, 3));
	if (thread->tls_socket && abi != ABI_NSPR) {
		tls_adopt(key, thread->tls_socket);
		thread->tls_socket = 0;
	}
	if (COOKIE_DIRECTION(cookie) != DIRECTION_SEND ||
	    (abi != ABI_COUNT && abi != ABI_FLAG && abi != ABI_RUST_RESULT && abi != ABI_NSPR))
		return false;
	session = abi == ABI_NSPR ? tls_session_of(key) : tls_session_make(key);
	/* without a socket yet, it could not be said whose request it is */
	if (!session || !session->socket || (session->c.protocol && session->c.request_direction != DIRECTION_SEND))
		return false;
	if (abi == ABI_COUNT || abi == ABI_NSPR)
		thread->tls_length = (__u32)thread->tls_length;
	thread->tls_ahead = 1;
	if (session->ahead >= thread->tls_length)
		return false;
	p->buffer = thread->tls_buffer + session->ahead;
	p->length = thread->tls_length - session->ahead;
	session->ahead = thread->tls_length;
	return true;
}

/* The call that this thread began is over: how much has it moved? */
static __always_inline bool call_over(struct pt_regs *regs, __u32 abi, struct tls_key *key, struct passage *p)
{
	struct thread *thread = current_thread(false);

	if (!thread || !thread->tls_session)
		return false; /* it began before the probes were there */
	key->address = thread->tls_session;
	thread->tls_session = 0;
	p->buffer = thread->tls_buffer;
	if (abi == ABI_COUNT || abi == ABI_NSPR) {
		if ((int)regs->ax > 0)
			p->length = (__u32)regs->ax;
		if (abi == ABI_NSPR) {
			/* a descriptor that moved TLS over a socket while one of its calls ran; else a file, a pipe, plain text */
			struct tls_session *session = tls_session_of(key);

			if (!session || !session->socket)
				return false;
		}
	} else if (abi == ABI_FLAG) {
		if ((int)regs->ax == 1)
			bpf_probe_read_user(&p->length, sizeof(p->length), (void *)thread->tls_moved_at);
	} else if (abi == ABI_RUST_RESULT || abi == ABI_RUST_VECTORED) {
		if (!(regs->ax & 1))
			p->length = regs->dx;
		if (abi == ABI_RUST_VECTORED)
			p->vectors = thread->tls_length > MAX_IOVECS ? MAX_IOVECS : (__u32)thread->tls_length;
	} else if (abi == ABI_SENDFILE) {
		if ((__s64)regs->ax > 0)
			p->length = regs->ax;
		p->buffer = 0; /* the bytes come from a file */
	}
	if (thread->tls_ahead) {
		struct tls_session *session = tls_session_of(key);

		if (session)
			session->ahead -= p->length < session->ahead ? p->length : session->ahead;
		return false;
	}
	return p->length != 0;
}

/* A goroutine has plaintext to read, or writes some: all of it will be sent, or the connection is broken. */
static __always_inline bool go_passes(struct pt_regs *regs, __u64 cookie, __u32 abi, struct tls_key *key, struct passage *p)
{
	p->buffer = register_of(regs, COOKIE_REGISTER(cookie, 1));
	p->length = register_of(regs, COOKIE_REGISTER(cookie, 2));
	if (abi == ABI_GO_SLICE) {
		key->address = register_of(regs, COOKIE_REGISTER(cookie, 0));
	} else {
		struct go_read read = {.tgid = key->tgid, .goroutine = regs->r14};
		__u64 *connection = bpf_map_lookup_elem(&go_reads, &read);

		if (!connection)
			return false; /* it began before the probes were there */
		key->address = *connection;
	}
	if (abi == ABI_GO_READER) {
		/* struct bytes.Reader: a slice (address, length, capacity) and how much of it was read */
		__u64 slice[4] = {}, left;

		if (bpf_probe_read_user(slice, sizeof(slice), (void *)register_of(regs, COOKIE_REGISTER(cookie, 0))))
			return false;
		if (slice[3] >= slice[1])
			return false;
		left = slice[1] - slice[3];
		p->buffer = slice[0] + slice[3];
		if (p->length > left)
			p->length = left;
	}
	go_join(key);
	return true;
}

/*
 * A call on a session begins, or is over.  One program for all conventions, because the engine behind it is what takes the
 * verifier's time.
 */
SEC("uprobe")
int tls_call(struct pt_regs *regs)
{
	__u64 cookie = bpf_get_attach_cookie(regs);
	__u32 abi = COOKIE_ABI(cookie);
	struct passage p = {};
	struct tls_key key;
	bool passes;

	if (!begin(&key))
		return 0;
	if (abi == ABI_GO_SLICE || abi == ABI_GO_COPY || abi == ABI_GO_READER)
		passes = go_passes(regs, cookie, abi, &key, &p);
	else if (cookie & COOKIE_RETURN)
		passes = call_over(regs, abi, &key, &p);
	else
		passes = call_begins(regs, cookie, abi, &key, &p);
	if (passes && p.length)
		passed(&key, COOKIE_DIRECTION(cookie), &p);
	return 0;
}

/* The dynamic loader calls a function that does nothing when it has loaded a library: `_dl_debug_state`. */
SEC("uprobe")
int tls_loaded(struct pt_regs *regs)
{
	tell_loaded(bpf_get_current_pid_tgid() >> 32);
	return 0;
}

#endif

char _license[] SEC("license") = "Dual BSD/GPL";
