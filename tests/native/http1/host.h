/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's side of bpf/socket.bpf.c as a program of the host: one connection, one watched process, one call at a
 * time.  "User memory" is this program's own; reading behind it is a finding.
 */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef NULL
#if defined(__x86_64__)
#define __TARGET_ARCH_x86
#else
#define __TARGET_ARCH_arm64
#endif
#define PROMISED(condition)                                                                        \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                    \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

#include "../../../bpf/socket.bpf.c"

__u8 process_flags[PID_LIMIT];
struct serving servings[SERVINGS];

static struct work host_works[WORKS];
static struct connection host_connection;
static bool connection_exists;
static struct sock host_socket;
static __u64 host_losses[LOSS_REASONS];

static void *looked_up(void *map, const void *key)
{
	const __u32 index = *(const __u32 *)key;

	if (map == &works)
		return &host_works[index];
	if (map == &losses)
		return &host_losses[index];
	return NULL;
}

static void *stored(void *map, __u64 flags)
{
	if (map != &connections)
		return NULL;
	if (!connection_exists && flags) {
		memset(&host_connection, 0, sizeof(host_connection));
		connection_exists = true;
	}
	return connection_exists ? &host_connection : NULL;
}

static void connection_begin(void)
{
	process_flags[7] = PROCESS_WATCHED;
	connection_exists = false;
	memset(&host_socket, 0, sizeof(host_socket));
	host_socket.__sk_common.skc_family = AF_INET;
	host_socket.__sk_common.skc_num = 8080;
	host_socket.sk_type = SOCK_STREAM;
	clock_ns = 1000;
}

/* read() or write() of that many bytes. */
static void transfer(__u32 direction, const __u8 *bytes, __u32 length)
{
	clock_ns += 1000;
	memset(&registers, 0, sizeof(registers));
#if defined(__TARGET_ARCH_x86)
	registers.cs = USER_CS;
	registers.orig_ax = direction == DIRECTION_SEND ? NR_write : NR_read;
	registers.si = (unsigned long)bytes;
	registers.dx = length;
#else
	registers.syscallno = direction == DIRECTION_SEND ? NR_write : NR_read;
	registers.regs[1] = (unsigned long)bytes;
	registers.regs[2] = length;
#endif
	on_bytes(&host_socket, direction, (int)length, 0);
	PROMISED(!connection_exists || (__s32)(host_connection.requests - host_connection.responses) >= 0);
	for (int i = 0; i < 2; i++)
		PROMISED(host_connection.streams[i].carry_length <= CARRY_SIZE);
}

/* The socket is closed, or found to be broken (err). */
static void connection_end(int err)
{
	clock_ns += 1000;
	host_socket.sk_err = err;
	tp_sock_state(&host_socket, TCP_ESTABLISHED, TCP_CLOSE);
	tp_sock_gone(&host_socket);
	connection_exists = false;
}

/* process.bpf.c tells user space of a process that speaks TLS; nobody listens here. */
int tell_tls(unsigned int tgid)
{
	return (int)tgid * 0;
}

/* Defined in process.bpf.c, too: the host's pid namespace. */
const volatile unsigned int pid_level = 0;
const volatile unsigned int pid_namespace = 0;
