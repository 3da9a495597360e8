/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sizes, map capacities and load-time constants: the only numbers to tune. */
#pragma once

#define PID_LIMIT (1 << 22)	  /* PID_MAX_LIMIT of a 64-bit kernel */

#define MAX_IOVECS 16		  /* of one call that are looked at together */
#define IOVEC_TURNS 64		  /* so often the next ones are; what lies beyond counts as unreadable */
#define HEAD_WINDOW 512		  /* bytes of user memory looked at in one go */
#define HEAD_ENOUGH 64		  /* bytes behind which a buffer that ends with a line is taken for a whole head */
#define CARRY_SIZE 256		  /* bytes of an unfinished line kept between two calls */
#define LINE_KEPT 128		  /* of a header line longer than this only the beginning matters */
#define STEPS_MAX 200		  /* pieces of messages walked in one call */
#define FRAME_STEPS 40		  /* HTTP/2: two a frame, walked FRAME_STEPS times FRAME_STEPS in one call */
#define UPGRADE_SCAN 256		  /* bytes of the head of a 101 that are searched for "h2c" */
#define PIPELINE_MAX 64		  /* requests in flight whose HEAD and CONNECT are told apart */
#define HEAD_MAX (64 * 1024)	  /* a message head longer than this is given up */
#define SEGMENT_TAIL 64		  /* bytes from the end of a transfer that is kept in part */
#define REDIS_IDLE_NS (50ULL * 1000 * 1000) /* of silence, after which no command waits for its reply */
#define CLASSIFY_TRIES 12	  /* transfers looked at before a socket is left alone */
#define CLASSIFY_HEADER 16	  /* bytes of a header that some read before the rest of a message: MongoDB's is the longest */
#define CLASSIFY_TRIES_UNANSWERED 100 /* as CLASSIFY_TRIES, while the peer has not spoken: pipelines may be long */

/* Ring sizes in bytes; user space may set others before load. */
#define RING_128_SIZE (256 * 1024)
#define RING_256_SIZE (8 * 1024 * 1024)
#ifdef ONLOOKER_OLD_KERNEL
#define RING_512_SIZE (4 * 1024 * 1024) /* its table of connections takes the room */
#else
#define RING_512_SIZE (8 * 1024 * 1024) /* HTTP/2 sends several segments a request, thousands in a burst */
#endif
#define RING_4096_SIZE (4 * 1024 * 1024)

#define CONTEXTS_MAX 16384	  /* client requests in flight whose server may be on this host */
#define CONNECTIONS_MAX 8192	  /* kernels without storage in sockets; 2 KiB each, taken at load */
#define SERVINGS 16384		  /* places for threads that serve requests, 72 bytes each; a power of two */
#define THREADS_MAX 16384	  /* kernels without storage in tasks */
#define TLS_SESSIONS_MAX 16384	  /* taken one by one, 2.6 KiB each */
#define RUSTLS_PLACES_MAX 8192	  /* connections of rustls that are open; what is forgotten is learned anew with the next send */
#define TLS_OPAQUE_MAX 1024	  /* processes whose TLS is not seen into and that had connections lately */
#define GO_READS_MAX 16384	  /* goroutines that read from TLS connections */
#define TLS_CLASSIFY_TRIES 250	  /* as CLASSIFY_TRIES: a TLS record holds 16 KiB at most, so a body is many of them */
#define TLS_RECORD 16384	  /* the longest, RFC 8446 section 5.1: a library may write no more of a call's bytes at once */
#define PROCESSES_MAX 8192	  /* processes whose threads are no execution contexts */

#define WAKEUP_WINDOW 16384	  /* bytes behind that point whose writers wake: more than all CPUs reserve at a time */

/* Set before load; branches on them are pruned. */
extern const volatile __u64 secret;	   /* random: keys of hashes that peers could otherwise collide */
extern const volatile __u32 wakeup_bytes;  /* a ring filled this far, or by as much again, wakes the reader; a power of two */
