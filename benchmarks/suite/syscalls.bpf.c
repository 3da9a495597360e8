/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The usual design that onlooker is compared with: tracepoints at the entry and the end of every system call that moves
 * bytes, arguments kept from one to the other by thread, connections by process and descriptor, and the first bytes of
 * each call copied into a ring, for user space to make requests of.
 *
 * It is the least that such a tracer does, so its cost is a lower bound: it parses nothing, pairs nothing, reads no
 * addresses, counts no losses, and takes every descriptor of a watched process for a connection.  The bytes of a call are
 * copied up to PREFIX, from the first buffer of a vector.
 */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static long (*bpf_probe_read_user)(void *to, u32 size, const void *from) = (void *)112;
static void *(*bpf_ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*bpf_ringbuf_submit)(void *data, u64 flags) = (void *)132;

enum { HASH = 1, LRU_HASH = 9, RINGBUF = 27 };
enum { PREFIX = 256, RECEIVED = 0, SENT = 1 };
#define NO_WAKEUP 1	/* user space looks by itself: cheaper than any design that is woken */

struct call {
	u64 buffer;
	u64 start_ns;
	u32 fd;
	u32 vectors;		/* buffer is an array of them, or a msghdr (2) */
};

struct connection {
	u64 sent, received;
};

struct chunk {			
	u64 key;
	u64 start_ns, end_ns;
	u64 position;
	u32 tgid, tid;
	u32 length, direction;
	u8 bytes[PREFIX];
};

struct { __uint(type, HASH); __uint(max_entries, 1024); __type(key, u32); __type(value, u8); } watched SEC(".maps");
struct { __uint(type, HASH); __uint(max_entries, 16384); __type(key, u64); __type(value, struct call); } calls SEC(".maps");
struct { __uint(type, LRU_HASH); __uint(max_entries, 65536); __type(key, u64); __type(value, struct connection); }
	connections SEC(".maps");
struct { __uint(type, RINGBUF); __uint(max_entries, 16 << 20); } chunks SEC(".maps");

/* what /sys/kernel/tracing/events/syscalls/NAME/format says, on every kernel since 4.7 */
struct enter { u64 common; long number; u64 arguments[6]; };
struct leave { u64 common; long number; long result; };

static __attribute__((always_inline)) inline int entered(struct enter *at, u32 vectors)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tgid = id >> 32;
	struct call call = {};

	if (!bpf_map_lookup_elem(&watched, &tgid))
		return 0;
	call.buffer = at->arguments[1];
	call.fd = at->arguments[0];
	call.vectors = vectors;
	call.start_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&calls, &id, &call, 0);
	return 0;
}

static __attribute__((always_inline)) inline int left(struct leave *at, u32 direction)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tgid = id >> 32;
	struct call *call;
	struct connection *connection, fresh = {};
	struct chunk *chunk;
	u64 key, buffer, length;

	if (!bpf_map_lookup_elem(&watched, &tgid))
		return 0;
	call = bpf_map_lookup_elem(&calls, &id);
	if (!call)
		return 0;
	if (at->result <= 0)
		goto out;
	key = (u64)tgid << 32 | call->fd;
	connection = bpf_map_lookup_elem(&connections, &key);
	if (!connection) {
		bpf_map_update_elem(&connections, &key, &fresh, 0);
		connection = bpf_map_lookup_elem(&connections, &key);
		if (!connection)
			goto out;
	}
	buffer = call->buffer;
	if (call->vectors == 2)		/* struct user_msghdr: msg_iov stands at 16 */
		bpf_probe_read_user(&buffer, sizeof(buffer), (void *)(buffer + 16));
	if (call->vectors)
		bpf_probe_read_user(&buffer, sizeof(buffer), (void *)buffer);
	chunk = bpf_ringbuf_reserve(&chunks, sizeof(*chunk), 0);
	if (!chunk)
		goto out;
	chunk->key = key;
	chunk->start_ns = call->start_ns;
	chunk->end_ns = bpf_ktime_get_ns();
	chunk->tgid = tgid;
	chunk->tid = (u32)id;
	chunk->length = at->result;
	chunk->direction = direction;
	chunk->position = direction == SENT ? connection->sent : connection->received;
	length = at->result;
	asm volatile("" : "+r"(length));	/* else clang compares a copy, and the verifier does not know it */
	if (length > PREFIX)
		length = PREFIX;
	bpf_probe_read_user(chunk->bytes, length, (void *)buffer);
	if (direction == SENT)
		connection->sent += at->result;
	else
		connection->received += at->result;
	bpf_ringbuf_submit(chunk, NO_WAKEUP);
out:
	bpf_map_delete_elem(&calls, &id);
	return 0;
}

#define BOTH(name, vectors, direction)                                                                                 \
	SEC("tracepoint/syscalls/sys_enter_" #name) int enter_##name(struct enter *at) { return entered(at, vectors); }    \
	SEC("tracepoint/syscalls/sys_exit_" #name) int leave_##name(struct leave *at) { return left(at, direction); }

BOTH(read, 0, RECEIVED)
BOTH(readv, 1, RECEIVED)
BOTH(recvfrom, 0, RECEIVED)
BOTH(recvmsg, 2, RECEIVED)
BOTH(write, 0, SENT)
BOTH(writev, 1, SENT)
BOTH(sendto, 0, SENT)
BOTH(sendmsg, 2, SENT)

/* a descriptor that is closed is another connection when it is used again */
SEC("tracepoint/syscalls/sys_enter_close") int enter_close(struct enter *at)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u64 key = (u64)tgid << 32 | (u32)at->arguments[0];

	if (bpf_map_lookup_elem(&watched, &tgid))
		bpf_map_delete_elem(&connections, &key);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
