/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which protocol a connection speaks, by content and not by port.
 *
 * Each protocol has one pure function over the first bytes of one transfer.  It says whether they can be a request,
 * a response, either or neither, at the beginning of a connection or in its middle.  classify_bytes() asks all of them;
 * protocol_agree() compares what went one way with what went the other, and commits only when both directions
 * speak for the same protocol and no other one is as likely.
 *
 * head points to CLASSIFY_BYTES readable bytes; those behind captured are zero.  All offsets are constants and there
 * are no loops, so the verifier has nothing to bound.
 */
#pragma once

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define CLASSIFY_BYTES 32

enum classify_verdict {
	CLASSIFY_NO = 0,
	MAYBE_REQUEST = 1,
	MAYBE_RESPONSE = 2,
	CLASSIFY_STRONG = 4,	/* the bytes fit in a way that chance hardly gives */
};

#define STRONG_REQUEST (MAYBE_REQUEST | CLASSIFY_STRONG)
#define STRONG_RESPONSE (MAYBE_RESPONSE | CLASSIFY_STRONG)

static __always_inline __u32 be16_at(const __u8 *p)
{
	return (__u32)p[0] << 8 | p[1];
}

static __always_inline __u32 be32_at(const __u8 *p)
{
	return (__u32)p[0] << 24 | (__u32)p[1] << 16 | (__u32)p[2] << 8 | p[3];
}

static __always_inline __u32 le16_at(const __u8 *p)
{
	return (__u32)p[1] << 8 | p[0];
}

static __always_inline __u32 le24_at(const __u8 *p)
{
	return (__u32)p[2] << 16 | (__u32)p[1] << 8 | p[0];
}

static __always_inline __u32 le32_at(const __u8 *p)
{
	return (__u32)p[3] << 24 | le24_at(p);
}

/* Four bytes as one number, for comparison with be32_at(). */
#define WORD(a, b, c, d) ((__u32)(a) << 24 | (__u32)(b) << 16 | (__u32)(c) << 8 | (__u32)(d))

static __always_inline int is_digit(__u8 c)
{
	return c >= '0' && c <= '9';
}

static __always_inline int is_letter(__u8 c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static __always_inline int is_printable(__u8 c)
{
	return c >= ' ' && c < 0x7f;
}

#include "postgres.h"
#include "mysql.h"
#include "tds.h"
#include "redis.h"
#include "memcached.h"
#include "mongodb.h"
#include "dns.h"

/* "PRI * HTTP/2.0", or the SETTINGS frame that both sides begin with.  HTTP/1 is handled before anything comes here. */
static __always_inline int http2_classify_start(const __u8 *head, __u32 captured, __u32 length)
{
	if (captured >= 14 && be32_at(head) == WORD('P', 'R', 'I', ' ') && be32_at(head + 4) == WORD('*', ' ', 'H', 'T') &&
	    be32_at(head + 8) == WORD('T', 'P', '/', '2'))
		return STRONG_REQUEST;
	/* length a multiple of 6, type 4, flags 0 or ACK, stream 0 */
	if (captured >= 9 && head[0] == 0 && head[1] == 0 && head[2] <= 96 && head[2] % 6 == 0 && head[3] == 4 &&
	    head[4] <= 1 && be32_at(head + 5) == 0 && length >= 9 && (head[2] == 0) == (head[4] == 1))
		return STRONG_RESPONSE;
	/*
	 * In the middle of a connection: a HEADERS frame with END_HEADERS that ends in this transfer, on a client's
	 * stream, whose block begins as all encoders begin: ":method" or ":status" by its index in the static table.
	 */
	if (captured >= 16 && head[0] == 0 && head[3] == 1 && (head[4] & 4) && !(head[4] & ~0x2d) && head[5] == 0 &&
	    (head[8] & 1) && (__u32)head[1] * 256 + head[2] + 9 <= length) {
		__u8 first = head[4] & 0x20 ? head[14] : head[9];

		if (first == 0x82 || first == 0x83 || first == 0x42 || first == 0x43)
			return STRONG_REQUEST;
		if ((first >= 0x88 && first <= 0x8e) || first == 0x48)
			return STRONG_RESPONSE;
	}
	return CLASSIFY_NO;
}

/* A TLS record: 16 03 0x is a handshake, 17 03 03 data. */
static __always_inline int tls_classify(const __u8 *head, __u32 captured, __u32 length)
{
	if (captured < 5 || head[1] != 3 || head[2] > 4 || be16_at(head + 3) > 16384 + 2048 || be16_at(head + 3) == 0)
		return CLASSIFY_NO;
	if (head[0] == 0x16) {
		if (captured >= 6 && head[5] == 1)
			return STRONG_REQUEST;
		if (captured >= 6 && head[5] == 2)
			return STRONG_RESPONSE;
		return MAYBE_REQUEST | MAYBE_RESPONSE;
	}
	if ((head[0] == 0x17 && head[2] == 3 && length >= 5) || (head[0] == 0x15 && be16_at(head + 3) == 2) ||
	    (head[0] == 0x14 && be16_at(head + 3) == 1))
		return MAYBE_REQUEST | MAYBE_RESPONSE | CLASSIFY_STRONG;
	return CLASSIFY_NO;
}

/* The verdicts of all protocols on one transfer: bit p of each 16-bit part stands for protocol number p. */
#define CLASSIFY_RESPONSE_SHIFT 16
#define CLASSIFY_STRONG_SHIFT 32

static __always_inline __u64 classify_verdicts(int protocol, int verdict)
{
	__u64 bits = 0;

	if (verdict & MAYBE_REQUEST)
		bits |= 1ULL << protocol;
	if (verdict & MAYBE_RESPONSE)
		bits |= 1ULL << (protocol + CLASSIFY_RESPONSE_SHIFT);
	if (verdict & CLASSIFY_STRONG)
		bits |= 1ULL << (protocol + CLASSIFY_STRONG_SHIFT);
	return bits;
}

/* One protocol's part of classify_bytes(); protocol is a constant. */
static __always_inline __u64 classify_as(int protocol, const __u8 *head, __u32 captured, __u32 length, int datagram,
					 int guess)
{
	int verdict = CLASSIFY_NO;

	if (captured == 0 || length == 0 || (datagram && protocol != PROTOCOL_DNS))
		return 0;
	if (protocol == PROTOCOL_DNS)
		verdict = dns_classify(head, captured, length, datagram);
	else if (protocol == PROTOCOL_TLS)
		verdict = tls_classify(head, captured, length);
	else if (protocol == PROTOCOL_HTTP2)
		verdict = http2_classify_start(head, captured, length);
	else if (protocol == PROTOCOL_POSTGRES)
		verdict = postgres_classify(head, captured, length, guess);
	else if (protocol == PROTOCOL_MYSQL)
		verdict = mysql_classify(head, captured, length, guess);
	else if (protocol == PROTOCOL_TDS)
		verdict = tds_classify(head, captured, length, guess);
	else if (protocol == PROTOCOL_REDIS)
		verdict = redis_classify(head, captured, length, guess);
	else if (protocol == PROTOCOL_MEMCACHED)
		verdict = memcached_classify(head, captured, length, guess);
	else if (protocol == PROTOCOL_MONGODB)
		verdict = mongodb_classify(head, captured, length, guess);
	return classify_verdicts(protocol, verdict);
}

/*
 * All verdicts on the first bytes of one transfer.
 * datagram: the transfer is one datagram (UDP), else a piece of a stream.
 * from_request_side_guess: 1 if it probably comes from the client, 0 if from the server, -1 if not known.
 *
 * Not for one BPF function: the paths of nine protocols multiply beyond the verifier's million instructions.  There each
 * protocol has a __noinline global function around classify_as() (219 to 3,172 instructions walked each), and the
 * results, plain numbers to the verifier, are put together with |.
 */
static __always_inline __u64 classify_bytes(const __u8 *head, __u32 captured, __u32 length, int datagram,
				      int from_request_side_guess)
{
	int guess = from_request_side_guess;

	return classify_as(PROTOCOL_DNS, head, captured, length, datagram, guess) |
	       classify_as(PROTOCOL_TLS, head, captured, length, datagram, guess) |
	       classify_as(PROTOCOL_HTTP2, head, captured, length, datagram, guess) |
	       classify_as(PROTOCOL_POSTGRES, head, captured, length, datagram, guess) |
	       classify_as(PROTOCOL_MYSQL, head, captured, length, datagram, guess) |
	       classify_as(PROTOCOL_TDS, head, captured, length, datagram, guess) |
	       classify_as(PROTOCOL_REDIS, head, captured, length, datagram, guess) |
	       classify_as(PROTOCOL_MEMCACHED, head, captured, length, datagram, guess) |
	       classify_as(PROTOCOL_MONGODB, head, captured, length, datagram, guess);
}

#define AGREE_PROTOCOL(result) ((result) & 0xff)
#define AGREE_SWAPPED 0x100	/* what was taken for the request side is the response side */

static __always_inline int lowest_bit(__u32 bits)
{
	/* no count-trailing-zeros in BPF before cpu v4; 16 bits */
	int n = 0;

	if (!(bits & 0xff)) { n += 8; bits >>= 8; }
	if (!(bits & 0x0f)) { n += 4; bits >>= 4; }
	if (!(bits & 0x03)) { n += 2; bits >>= 2; }
	if (!(bits & 0x01)) n += 1;
	return n;
}

/* Of candidates, the one that is alone; 0 if there is none or more than one. */
static __always_inline int only_one(__u32 bits)
{
	return bits && !(bits & (bits - 1)) ? lowest_bit(bits) : 0;
}

/*
 * What a connection speaks, from the verdicts on a transfer each way.
 *
 * request_score: the verdicts on what the presumed client sent.  response_score: on what the presumed server sent.
 * Gives a protocol number, with AGREE_SWAPPED if the sides are the other way round; PROTOCOL_UNKNOWN (0) while it is
 * open: ask again with later transfers.  At least one of the two verdicts must be strong; among several candidates one
 * that is strong both ways wins, and a tie is no commitment.
 */
static __always_inline int protocol_agree(__u64 request_score, __u64 response_score)
{
	__u32 strong_request = (request_score >> CLASSIFY_STRONG_SHIFT) & 0xffff;
	__u32 strong_response = (response_score >> CLASSIFY_STRONG_SHIFT) & 0xffff;
	__u32 straight = request_score & (response_score >> CLASSIFY_RESPONSE_SHIFT) & 0xffff;
	__u32 swapped = (request_score >> CLASSIFY_RESPONSE_SHIFT) & response_score & 0xffff;
	__u32 both = strong_request & strong_response;
	__u32 one = strong_request | strong_response;
	__u32 candidates;
	int protocol;

	candidates = (straight | swapped) & both;
	if (!candidates)
		candidates = (straight | swapped) & one;
	protocol = only_one(candidates);
	if (!protocol)
		return PROTOCOL_UNKNOWN;
	/* Bytes that fit both ways round are taken as the caller presumed. */
	return (straight >> protocol) & 1 ? protocol : (protocol | AGREE_SWAPPED);
}

/* Whether any protocol is still possible for a direction; if not, the connection is named PROTOCOL_OTHER. */
static __always_inline int protocol_possible(__u64 request_score, __u64 response_score)
{
	__u32 request = request_score | request_score >> CLASSIFY_RESPONSE_SHIFT;
	__u32 response = response_score | response_score >> CLASSIFY_RESPONSE_SHIFT;

	return (request & response & 0xffff) != 0;
}
