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
#include "lib/serving.h"
#include "lib/connection.h"
#include "lib/subprogram.h"
#include "lib/context.h"
#if !defined(ONLOOKER_OLD_KERNEL) && defined(__TARGET_ARCH_x86)
#include "lib/tls.h"
#include "lib/rustls.h"

/* As src/onlooker/attach/tls.py numbers them: the order of `Abi`. */
enum abi {
	ABI_COUNT = 0,
	ABI_FLAG = 1,
	ABI_RUST_PAYLOAD = 2,
	ABI_RUST_CHUNKS = 3,
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
			w->pid_tgid = bpf_get_current_pid_tgid();
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
};

/* Follow the bytes through the messages they belong to. */
static __always_inline void passed(struct tls_session *session, __u32 direction, const struct passage *p)
{
	struct work *w;

	if (!session || session->c.protocol == PROTOCOL_OTHER)
		return;
	w = take_work();
	if (!w)
		return;
	w->source.length = p->length > 0x7fffffff ? 0x7fffffff : (__u32)p->length;
	w->source.offset = 0;
	w->source.iov[0].base = p->buffer;
	w->source.iov[0].length = w->source.length;
	w->source.iov_count = p->buffer ? 1 : 0;
	w->source.iov_total = 1;
	w->source.iov_start = 0;
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

/* Conventions by which a function writes what its third argument says, from where the second one points. */
static __always_inline bool writes_plainly(__u64 cookie, __u32 abi)
{
	return COOKIE_DIRECTION(cookie) == DIRECTION_SEND &&
	       (abi == ABI_COUNT || abi == ABI_FLAG || abi == ABI_NSPR);
}

/* Nothing on this session will be told; which socket it has may still be learned. */
static __always_inline bool is_dull(const struct tls_session *session)
{
	return session->c.protocol == PROTOCOL_OTHER;
}

/*
 * A call on a session begins.  What a client writes is followed now, so that it is known before the server at the other
 * end can read it.  The call may move less than it was asked to, and will be asked again with the same bytes: those were
 * dealt with.  A server's response is followed when the call is over, because that is when it has been sent.
 */
static __always_inline bool call_begins(struct pt_regs *regs, __u64 cookie, __u32 abi, struct thread *thread,
					const struct tls_key *key, struct tls_session *session, struct passage *p)
{
	thread->tls_session = key->address;
	/* what NSPR moves may as well be no TLS: the socket's own bytes must say so */
	thread->tls_handshake = abi == ABI_EVENT || abi == ABI_NSPR;
	thread->tls_ahead = 0;
	thread->tls_buffer = p->buffer;
	thread->tls_length = p->length;
	thread->tls_moved_at = register_of(regs, COOKIE_REGISTER(cookie, 3));
	if (thread->tls_socket && abi != ABI_NSPR) {
		if (tls_adopt(key, thread->tls_socket))
			session = tls_session_of(key);
		thread->tls_socket = 0;
	}
	if (!writes_plainly(cookie, abi))
		return false;
	/* without a socket yet, it could not be said whose request it is */
	if (!session || !session->socket)
		return false;
	if (session->c.protocol && session->c.request_direction != DIRECTION_SEND && !session->ahead)
		return false;
	thread->tls_ahead = 1;
	if (session->ahead >= p->length)
		return false;
	p->buffer += session->ahead;
	p->length -= session->ahead;
	session->ahead += p->length;
	return true;
}

/* The call that this thread began is over: how much has it moved?  Gives the session, if there is something to follow. */
static __always_inline struct tls_session *call_over(struct pt_regs *regs, __u64 cookie, __u32 abi, struct tls_key *key,
						     struct passage *p)
{
	struct thread *thread = current_thread(false);
	struct tls_session *session;

	if (!thread || !thread->tls_session)
		return NULL; /* it began before the probes were there */
	key->address = thread->tls_session;
	thread->tls_session = 0;
	if (abi == ABI_EVENT)
		return NULL; /* nothing moved */
	p->buffer = thread->tls_buffer;
	if (abi == ABI_COUNT || abi == ABI_NSPR) {
		if ((int)regs->ax > 0)
			p->length = (__u32)regs->ax;
	} else if (abi == ABI_FLAG) {
		if ((int)regs->ax == 1)
			bpf_probe_read_user(&p->length, sizeof(p->length), (void *)thread->tls_moved_at);
	} else if (abi == ABI_SENDFILE) {
		if ((__s64)regs->ax > 0)
			p->length = regs->ax;
		p->buffer = 0; /* the bytes come from a file */
	}
	if (!p->length)
		return NULL;
	session = tls_session_of(key);
	if (thread->tls_ahead) {
		if (session)
			session->ahead -= p->length < session->ahead ? p->length : session->ahead;
	} else if (!session) {
		/* a descriptor that moved TLS over a socket while one of its calls ran; else a file, a pipe, plain text */
		return abi == ABI_NSPR ? NULL : tls_session_make(key);
	}
	if (!session || (abi == ABI_NSPR && !session->socket))
		return NULL;
	if (is_dull(session))
		thread->tls_dull = 1;
	return thread->tls_ahead ? NULL : session;
}

#define RUST_BORROWED (1ULL << 63) /* where an owned vector has its capacity, which is never as large */

/* CommonState::take_received_plaintext(&mut self, Payload): a slice, or a vector of which the capacity comes first. */
static __always_inline bool rustls_received(struct pt_regs *regs, __u64 cookie, struct passage *p)
{
	__u64 payload[3];

	if (bpf_probe_read_user(payload, sizeof(payload), (void *)register_of(regs, COOKIE_REGISTER(cookie, 1))))
		return false;
	if ((payload[0] != RUST_BORROWED && payload[0] < payload[2]) || payload[2] > TLS_RECORD)
		return false; /* not what this was written for */
	p->buffer = payload[1];
	p->length = payload[2];
	return true;
}

/* What was encrypted on a session and never sent as it should have been. */
static __always_inline void rustls_settle_now(struct tls_session *session, struct rustls_thread *t)
{
	struct work *w;

	if (!session->claimed)
		return;
	w = take_work();
	if (!w)
		return;
	rustls_settle(session, t, &w->source);
	if (session->c.protocol != PROTOCOL_OTHER)
		tls_take(&session->c, w, DIRECTION_SEND);
	*(volatile __u32 *)&w->busy = 0;
}

/*
 * Whose is it that was received?  Of the socket from which the thread has received, and did not take from before; or the next
 * record of the same.  Else the receive was missed (a hook does not run twice at a time on a CPU), and what is known is
 * the place at best: the bytes are counted there, and not read.
 */
static __always_inline struct tls_session *rustls_receives(struct tls_key *key, __u64 place, struct passage *p)
{
	struct rustls_thread *t = rustls_thread(false);
	struct tls_session *session;

	if (!t)
		return NULL; /* received before the hooks looked */
	if (t->received) {
		t->taken_from = t->received;
		t->taken_at = place;
		t->received = 0;
	} else if (t->taken_at != place) {
		count_loss(LOSS_BYTES_UNSEEN);
		p->buffer = 0;
		return rustls_at(key, place);
	}
	key->address = t->taken_from;
	session = rustls_session(key);
	if (!session)
		return NULL;
	rustls_meet(key, session, place);
	rustls_settle_now(session, t);
	return session;
}

/* CommonState::send_appdata_encrypt(&mut self, OutboundChunks, ..) begins. */
static __always_inline void rustls_encrypts(struct pt_regs *regs, __u64 cookie)
{
	struct rustls_thread *t = rustls_thread(true);

	if (!t)
		return;
	t->asking = 0;
	if (bpf_probe_read_user(t->asked, sizeof(t->asked), (void *)register_of(regs, COOKIE_REGISTER(cookie, 1))))
		return;
	t->asking = register_of(regs, COOKIE_REGISTER(cookie, 0));
}

/*
 * It has taken so many bytes.  OutboundChunks is the address of a list of slices, how many they are, and where in them to begin
 * and to end; or nothing, and one slice.  The list is gone when the bytes are sent, they themselves are not.
 */
static __always_inline void rustls_encrypted(struct tls_key *key, __u64 taken)
{
	struct rustls_thread *t = rustls_thread(false);
	struct tls_session *session;
	__u64 place, length, count;

	if (!t || !t->asking)
		return; /* it began before the probes were there */
	place = t->asking;
	t->asking = 0;
	length = t->asked[0] ? t->asked[3] - t->asked[2] : t->asked[2];
	if (!taken || taken > length)
		return;
	session = rustls_at(key, place);
	if (session)
		rustls_settle_now(session, t);
	count = 0;
	if (!t->asked[0]) {
		t->pieces[0].base = t->asked[1];
		t->pieces[0].length = taken;
		count = 1;
	} else if (!t->asked[2]) { /* it is always so; else the bytes are counted, not read */
		count = at_most(t->asked[1], MAX_IOVECS);
		if (bpf_probe_read_user(t->pieces, count * sizeof(t->pieces[0]), (void *)t->asked[0]))
			count = 0;
	}
	t->count = (__u32)count;
	t->place = place;
	t->length = taken;
	rustls_first_bytes(t, t->begins);
	if (!session) {
		struct tls_key at = {.address = place, .tgid = key->tgid};
		__u64 *claimed = bpf_map_lookup_elem(&rustls_places, &at), sum = taken;

		if (claimed && !IS_SOCKET(*claimed))
			sum += *claimed;
		bpf_map_update_elem(&rustls_places, &at, &sum, BPF_ANY);
		return;
	}
	session->claimed = taken;
	if (session->blocked) /* no send may come before these bytes are gone */
		rustls_settle_now(session, t);
}

/* A goroutine has plaintext to read, or writes some: all of it will be sent, or the connection is broken. */
static __noinline bool go_passes(struct pt_regs *regs, __u64 cookie, __u32 abi, struct tls_key *key, struct passage *p)
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
 * verifier's time.  `choosy`: the kernel lets a call's beginning say whether its return matters.
 *
 * Gives 1 if it does not.
 */
static __always_inline int on_call(struct pt_regs *regs, __u64 cookie, bool returns, bool choosy)
{
	__u32 abi = COOKIE_ABI(cookie);
	struct tls_session *session = NULL;
	struct passage p = {};
	struct tls_key key;
	bool passes = false;
	int unneeded = 0;

	if (!begin(&key))
		return 1;
	if (abi == ABI_GO_SLICE || abi == ABI_GO_COPY || abi == ABI_GO_READER) {
		passes = go_passes(regs, cookie, abi, &key, &p);
		if (passes && p.length)
			session = tls_session_make(&key);
		unneeded = 1;
	} else if (abi == ABI_RUST_PAYLOAD) {
		passes = rustls_received(regs, cookie, &p);
		if (passes)
			session = rustls_receives(&key, register_of(regs, COOKIE_REGISTER(cookie, 0)), &p);
		unneeded = 1;
	} else if (abi == ABI_RUST_CHUNKS) {
		if (returns)
			rustls_encrypted(&key, regs->ax);
		else
			rustls_encrypts(regs, cookie);
	} else if (returns) {
		session = call_over(regs, cookie, abi, &key, &p);
		passes = session;
	} else {
		bool writes = writes_plainly(cookie, abi) && abi != ABI_NSPR;
		struct thread *thread = current_thread(true);

		if (!thread)
			return 0;
		key.address = register_of(regs, COOKIE_REGISTER(cookie, 0));
		p.buffer = register_of(regs, COOKIE_REGISTER(cookie, 1));
		p.length = register_of(regs, COOKIE_REGISTER(cookie, 2));
		if (abi == ABI_COUNT || abi == ABI_NSPR)
			p.length = (__u32)p.length;
		if (writes)
			session = tls_session_make(&key);
		else if (abi == ABI_NSPR || (choosy && thread->tls_dull && abi != ABI_EVENT))
			session = tls_session_of(&key);
		if (choosy && session && abi != ABI_NSPR && is_dull(session)) {
			if (thread->tls_socket && !session->socket) {
				tls_adopt(&key, thread->tls_socket);
				thread->tls_socket = 0;
			}
			return 1;
		}
		passes = call_begins(regs, cookie, abi, thread, &key, session, &p);
	}
	if (passes && p.length)
		passed(session, COOKIE_DIRECTION(cookie), &p);
	return unneeded;
}

SEC("uprobe")
int tls_call(struct pt_regs *regs)
{
	__u64 cookie = bpf_get_attach_cookie(regs);

	on_call(regs, cookie, cookie & COOKIE_RETURN, false);
	return 0;
}

/* The same for kernels that run one program at both ends of a call ("uprobe session", 6.13). */
SEC("uprobe")
int tls_both(struct pt_regs *regs)
{
	return on_call(regs, bpf_get_attach_cookie(regs), regs->ip != bpf_get_func_ip(regs), true);
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
