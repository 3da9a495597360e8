/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every struct that crosses to user space, and nothing else.  Includes nothing: the same
 * text compiles for BPF and for the host.  scripts/gen_records.py turns it into numpy
 * dtypes (src/onlooker/capture/_records.py) by way of the BTF of the built object.
 *
 * A record plus its 8-byte ring header is a power of two, so no record straddles the end of
 * a ring and user space reads a ring as one strided array.  One ring per size.
 */
#pragma once

#define RECORD(name)                                                                               \
	const struct name *name##__layout __attribute__((weak)); /* keeps the struct in BTF */    \
	_Static_assert(((sizeof(struct name) + 8) & (sizeof(struct name) + 7)) == 0,               \
		       #name ": the size plus 8 must be a power of two, pad by hand")

/* Likewise for an enum, which goes into the same generated module. */
#define VALUES(name) const enum name *name##__values __attribute__((weak))

#define HTTP_TEXT_SIZE 88
#define HTTP_LONG_TEXT_SIZE 344
#define TEXT_RECORD_SIZE 4048

enum record_kind {
	RECORD_NONE = 0,
	RECORD_PROCESS = 1,	/* struct process_record */
	RECORD_HTTP = 2,	/* struct http_record */
	RECORD_HTTP_LONG = 3,	/* struct http_long_record: more room for the request line */
	RECORD_HTTP_TEXT = 4,	/* struct http_text_record: a request line that fits in neither */
	RECORD_SEGMENT = 5,	/* struct segment_record */
	RECORD_SEGMENT_LONG = 6, /* struct segment_long_record */
	RECORD_REDIS = 7,	/* struct redis_record */
};
VALUES(record_kind);

/* Which side of the connection the watched process is on; OTLP's numbers for the span kind. */
enum role {
	ROLE_UNKNOWN = 0,
	ROLE_SERVER = 2,
	ROLE_CLIENT = 3,
};
VALUES(role);

enum direction {
	DIRECTION_RECEIVE = 0,
	DIRECTION_SEND = 1,
};
VALUES(direction);

enum process_event {
	PROCESS_FORK = 1,   /* a watched process made a child, which is watched from its first instruction */
	PROCESS_EXEC = 2,   /* any process of the host runs a new program */
	PROCESS_EXIT = 3,   /* the last thread of a watched process is gone */
	PROCESS_LISTEN = 4, /* any process of the host began to listen on a TCP port */
	PROCESS_SPEAKS_TLS = 5, /* a watched process without probes on TLS libraries opened a TLS connection */
	PROCESS_LOADED = 6, /* a watched process loaded a library or let one go */
};
VALUES(process_event);

struct process_record {
	__u8 kind;
	__u8 event;		/* enum process_event */
	__u8 watched;		/* whether the kernel filter lets this tgid through now */
	__u8 family;		/* PROCESS_LISTEN: AF_INET or AF_INET6 */
	__u16 port;		/* PROCESS_LISTEN: host byte order */
	__u16 pad0;
	__u32 tgid;
	__u32 parent_tgid;
	__u64 mono_ns;		/* CLOCK_MONOTONIC */
	__u64 start_boot_ns;	/* start of the process, CLOCK_BOOTTIME: tells a reused pid apart */
	__u32 exit_code;	/* PROCESS_EXIT: as in wait(2) */
	__u32 pad1;
	__u8 comm[16];
	__u8 pad2[64];
};
RECORD(process_record);

enum http_method {
	HTTP_METHOD_OTHER = 0,
	HTTP_METHOD_GET = 1,
	HTTP_METHOD_HEAD = 2,
	HTTP_METHOD_POST = 3,
	HTTP_METHOD_PUT = 4,
	HTTP_METHOD_DELETE = 5,
	HTTP_METHOD_CONNECT = 6,
	HTTP_METHOD_OPTIONS = 7,
	HTTP_METHOD_TRACE = 8,
	HTTP_METHOD_PATCH = 9,
	HTTP_METHOD_QUERY = 10,
};
VALUES(http_method);

/* Why a request ended without a (whole) response.  Never a made-up status. */
enum request_error {
	REQUEST_OK = 0,
	REQUEST_RESET = 1,		/* the connection was reset (ECONNRESET, EPIPE) */
	REQUEST_PEER_CLOSED = 2,	/* the other side closed before the response was whole */
	REQUEST_LOCAL_CLOSED = 3,	/* the watched process closed before the response was whole */
	REQUEST_TIMED_OUT = 4,		/* the kernel gave the connection up (ETIMEDOUT) */
};
VALUES(request_error);

enum request_flags {
	REQUEST_HALF = 1 << 0,		/* pipelined: this record has the request only */
	RESPONSE_HALF = 1 << 1,		/* pipelined: this record has the response only */
	REQUEST_INCOMPLETE = 1 << 2,	/* the response ended before the request body did */
	RESPONSE_INCOMPLETE = 1 << 3,	/* the connection ended inside the response */
	TEXT_TRUNCATED = 1 << 4,	/* the request line did not fit; an http_text_record came before */
	RESPONSE_TO_CLOSE = 1 << 5,	/* the response ended with the connection, as HTTP/1.0 has it */
	RESPONSE_LINGERS = 1 << 6,	/* as above, on a socket whose close is not seen: more may follow */
	REQUEST_UPGRADED = 1 << 7,	/* 101, or 2xx to CONNECT: no HTTP on this connection from here on */
	REQUEST_STREAM = 1 << 8,	/* content type text/event-stream: the duration is the stream's life */
	BYTES_UNSEEN = 1 << 9,		/* part of a body moved past the hooks (splice, sockmap) */
	REQUESTS_OVER = 1 << 10,	/* with RESPONSE_HALF: so end all requests up to this sequence */
	REQUEST_TO_HTTP2 = 1 << 11,	/* with REQUEST_UPGRADED: the response is on stream 1 of the HTTP/2 that follows */
};
VALUES(request_flags);

/* Where trace_id and parent_span_id come from. */
enum parent_source {
	PARENT_NONE = 0,	/* root */
	PARENT_HEADER = 1,	/* traceparent in the request */
	PARENT_THREAD = 2,	/* the server request that the same thread is serving */
	PARENT_PEER = 3,	/* the client request at the other end of the same connection */
	PARENT_AMBIGUOUS = 4,	/* root, because several server requests could be the parent */
};
VALUES(parent_source);

#define HTTP_RECORD_HEAD                                                                           \
	__u8 kind;                                                                                 \
	__u8 role;		/* enum role */                                                    \
	__u8 method;		/* enum http_method */                                             \
	__u8 error;		/* enum request_error */                                           \
	__u16 status;		/* 0: none was seen */                                             \
	__u16 flags;		/* enum request_flags */                                           \
	__u32 tgid;		/* the process that read (server) or sent (client) the request */  \
	__u32 tid;                                                                                 \
	__u64 connection_id;	/* unique on this host since boot */                               \
	__u32 sequence;		/* of the request on its connection, from 0 */                     \
	__u16 target_length;	/* of the request target; may be more than the text holds */       \
	__u8 target_start;	/* offset of the target in text: the method stands before it */   \
	__u8 host_length;	/* the Host field, right behind the target in text */              \
	__u64 request_start_mono_ns;	/* CLOCK_MONOTONIC: first byte of the request */           \
	__u64 request_end_mono_ns;	/* last byte of the request */                             \
	__u64 response_start_mono_ns;	/* first byte of the final response; 0: none */            \
	__u64 response_end_mono_ns;	/* last byte of the response, or when it was given up */   \
	__u64 request_body_bytes;                                                                  \
	__u64 response_body_bytes;                                                                 \
	__u8 local_address[16];		/* network byte order; IPv4 as ::ffff:a.b.c.d */           \
	__u8 remote_address[16];                                                                   \
	__u16 local_port;		/* host byte order */                                      \
	__u16 remote_port;                                                                         \
	__u8 family;			/* AF_INET, AF_INET6 or AF_UNIX */                         \
	__u8 tls;			/* 1: seen above TLS */                                    \
	__u16 text_length;		/* valid bytes of text */                                  \
	__u8 trace_id[16];                                                                         \
	__u8 span_id[8];                                                                           \
	__u8 parent_span_id[8];		/* zero: none */                                           \
	__u8 trace_flags;		/* of traceparent: bit 0 sampled */                        \
	__u8 parent_source;		/* enum parent_source */                                   \
	__u8 pad[6]

/* One finished request.  text: method, space, target, then the Host field; the rest is zero. */
struct http_record {
	HTTP_RECORD_HEAD;
	__u8 text[HTTP_TEXT_SIZE];
};
RECORD(http_record);

struct http_long_record {
	HTTP_RECORD_HEAD;
	__u8 text[HTTP_LONG_TEXT_SIZE];
};
RECORD(http_long_record);

/* The request line that a record of the same connection_id and sequence will refer to. */
struct http_text_record {
	__u8 kind;
	__u8 pad0[3];
	__u32 tgid;
	__u64 connection_id;
	__u32 sequence;
	__u32 text_length;	/* valid bytes of text */
	__u8 pad1[16];
	__u8 text[TEXT_RECORD_SIZE];
};
RECORD(http_text_record);

enum protocol {
	PROTOCOL_UNKNOWN = 0,
	PROTOCOL_HTTP1 = 1,
	PROTOCOL_HTTP2 = 2,
	PROTOCOL_POSTGRES = 3,
	PROTOCOL_MYSQL = 4,
	PROTOCOL_TDS = 5,
	PROTOCOL_REDIS = 6,
	PROTOCOL_MEMCACHED = 7,
	PROTOCOL_MONGODB = 8,
	PROTOCOL_DNS = 9,
	PROTOCOL_TLS = 10,
	PROTOCOL_OTHER = 11,	/* looked at and named as unknown */
};
VALUES(protocol);

enum segment_flags {
	SEGMENT_CUT = 1 << 0,		/* payload holds less than length bytes: captured_head of the
					 * beginning, then captured_tail of the end */
	SEGMENT_UNREADABLE = 1 << 1,	/* no user buffer holds the bytes (sendfile, splice, io_uring) */
	SEGMENT_CLOSE = 1 << 2,		/* the connection is over; length is 0 */
	SEGMENT_FIRST = 1 << 3,		/* first segment of a connection seen from its beginning */
	SEGMENT_RESET = 1 << 4,		/* with SEGMENT_CLOSE: it was reset */
	SEGMENT_EOF = 1 << 5,		/* the direction ended */
	SEGMENT_CONTINUED = 1 << 6,	/* the next record of this direction carries on with the same transfer */
};
VALUES(segment_flags);

/* Bytes that one call moved over a connection whose messages user space takes apart. */
#define SEGMENT_RECORD_HEAD                                                                        \
	__u8 kind;                                                                                 \
	__u8 protocol;		/* enum protocol */                                                \
	__u8 role;		/* enum role, of the watched process */                            \
	__u8 direction;		/* enum direction */                                               \
	__u16 flags;		/* enum segment_flags */                                           \
	__u16 captured_head;	/* bytes of payload from the beginning of the transfer */          \
	__u16 captured_tail;	/* bytes of payload, behind those, from its end */                 \
	__u8 tls;                                                                                  \
	__u8 family;                                                                               \
	__u32 sequence;		/* of the segment on its connection, both directions counted together */ \
	__u32 tgid;                                                                                \
	__u32 tid;                                                                                 \
	__u64 connection_id;                                                                       \
	__u64 mono_ns;		/* CLOCK_MONOTONIC, after the call */                              \
	__u64 stream_offset;	/* of the first byte, in its direction, since the connection is watched */ \
	__u32 length;		/* bytes that the call moved */                                    \
	__u16 local_port;                                                                          \
	__u16 remote_port;                                                                         \
	__u8 local_address[16];                                                                    \
	__u8 remote_address[16];                                                                   \
	__u8 trace_id[16];	/* of the server request that the thread is serving, else zero */  \
	__u8 span_id[8];	/* of the same */                                                  \
	__u8 trace_flags;                                                                          \
	__u8 parent_source;	/* PARENT_THREAD, PARENT_AMBIGUOUS or PARENT_NONE */               \
	__u8 pad[6]

struct segment_record {
	SEGMENT_RECORD_HEAD;
	__u8 payload[384];
};
RECORD(segment_record);

struct segment_long_record {
	SEGMENT_RECORD_HEAD;
	__u8 payload[3968];
};
RECORD(segment_long_record);

enum redis_flags {
	REDIS_UNANSWERED = 1 << 0,	/* not over: segments follow, which tell the rest */
	REDIS_CUT = 1 << 1,		/* ... and a reply is under way, of which part has passed */
};
VALUES(redis_flags);

/*
 * An exchange on a connection of Redis: commands of one name, and the replies to all of them.  Its number is one of the
 * sequence that segments have.
 */
struct redis_record {
	__u8 kind;
	__u8 protocol;		/* enum protocol */
	__u8 role;		/* enum role, of the watched process */
	__u8 flags;		/* enum redis_flags */
	__u8 family;
	__u8 tls;
	__u8 trace_flags;
	__u8 parent_source;	/* as in segments */
	__u64 connection_id;
	__u32 sequence;
	__u32 tgid;
	__u32 tid;
	__u32 commands;
	__u32 replies;		/* as many as commands, but for REDIS_UNANSWERED */
	__u32 errors;		/* among the replies */
	__u32 request_bytes;
	__u32 response_bytes;
	__u64 request_start_mono_ns;	/* CLOCK_MONOTONIC */
	__u64 request_end_mono_ns;
	__u64 response_start_mono_ns;	/* 0: none was seen */
	__u64 response_end_mono_ns;
	__u64 request_offset;	/* in the stream, behind the last byte of the exchange */
	__u64 response_offset;
	__u64 skip;		/* a command is under way behind it: bytes of its string that are still to come */
	__u32 left;		/* and values */
	__u32 folded_commands;	/* of exchanges before this one that found no room in the ring, all of folded_name */
	__u32 folded_errors;
	__u16 local_port;
	__u16 remote_port;
	__u64 folded_ns;	/* their durations, added up, each as often as it has commands */
	__u64 folded_mono_ns;	/* when the newest of them ended */
	__u8 name[16];		/* upper case, padded with zeros */
	__u8 folded_name[16];
	__u8 error[16];		/* the beginning of the first error */
	__u8 local_address[16];
	__u8 remote_address[16];
	__u8 trace_id[16];	/* of the server request that the thread is serving, else zero */
	__u8 span_id[8];
	__u8 pad[8];
};
RECORD(redis_record);

/* Index of the per-CPU loss counters.  Keep docs/reference/losses.md in step. */
enum loss_reason {
	LOSS_RING_FULL = 0,		/* no room in a ring: the record is gone */
	LOSS_UNREADABLE = 1,		/* bytes in no readable user buffer where a message head was due */
	LOSS_HEAD_TOO_LONG = 2,		/* a message head beyond what is scanned */
	LOSS_CONNECTION_MAP_FULL = 3,	/* no state for a connection */
	LOSS_UNPAIRED_RESPONSE = 4,	/* a response whose request was not seen: older than the agent */
	LOSS_PIPELINE_TOO_DEEP = 5,	/* more requests in flight on a connection than are told apart */
	LOSS_FRAMING = 6,		/* a message that does not follow its protocol */
	LOSS_STEPS = 7,			/* more messages in one call than are walked */
	LOSS_BYTES_UNSEEN = 8,		/* bytes moved past the hooks where a message head was due */
	LOSS_PREEMPTED = 9,		/* a program was interrupted by one that wanted the same memory */
	LOSS_OPERATIONS = 10,		/* operations that found no room in a ring, each counted */
	LOSS_REASONS = 11,
};
VALUES(loss_reason);
