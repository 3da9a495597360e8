/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * HTTP/2 frames of one direction of a connection (RFC 9113 section 4): what to keep of them.
 * Pure functions over (state, bytes, length); compiled for BPF and, in tests/native, for the host.
 *
 * What user space gets.  The bytes of a direction, *condensed*: every byte of the connection preface
 * and of every frame header (9 bytes), and of the payload the first http2_kept() bytes; the rest is
 * left out, and nothing stands for it.  A record covers a contiguous range of the direction,
 * [stream_offset, stream_offset + length), and its payload is exactly what condensing keeps of that
 * range, in order.  User space runs the same rules over it and so knows, from the frame headers,
 * where bytes were left out and how many.  Ranges follow each other without a gap, but for two:
 *
 * - A transfer after which walker->noteworthy is 0 lies inside payload that is left out, and need not
 *   be sent up: user space sees the gap in the offsets and that it is inside such a payload.
 * - A gap of any other kind tells user space that frames were lost; it forgets its header table.
 *
 * If a range keeps more than one record holds, it goes up as several, each with the part of the range
 * that it covers (its own stream_offset and length), all but the last with SEGMENT_CONTINUED.
 *
 * How to drive it, for each transfer of a direction:
 *
 *	http2_begin(w, length);
 *	while (left > 0 && bounded) {
 *		__u32 want = http2_wants(w, left);
 *
 *		if (want && read(http2_into(w), want, current position))
 *			break;				// not readable: http2_unseen() below
 *		http2_step(w, left, step);
 *		copy step->copy_length bytes from the current position + step->copy_from
 *		position += step->consume; left -= step->consume;
 *	}
 *	if (left > 0)
 *		http2_unseen(w, left);			// count LOSS_STEPS or LOSS_UNREADABLE
 *	if (w->noteworthy)
 *		submit
 *
 * A step consumes at least one byte, so the loop ends; it takes one step a frame, and one more for a
 * frame that is cut by the beginning or the end of the transfer.  Bytes that no user buffer holds are
 * reported by http2_unseen(); inside a payload the walker stays in step.
 *
 * For verifiers: keep walker and step in map memory, not on the stack.  What is loaded from a map is any number, so that
 * all the ways through a step end in one state and a loop of steps costs its length, not a power of it.
 */
#pragma once

#define HTTP2_FRAME_HEADER 9
#define HTTP2_PREFACE 24

/* Kept of a payload, from its first byte.  The same in src/onlooker/protocols/_http2_frames.py. */
#define HTTP2_KEPT_DATA 5	/* the prefix of a gRPC message */
#define HTTP2_KEPT_BLOCK 65536	/* of HEADERS, PUSH_PROMISE, CONTINUATION */
#define HTTP2_KEPT_SETTINGS 240
#define HTTP2_KEPT_GOAWAY 8	/* without the debug data */
#define HTTP2_KEPT_RESET 4

/* Longest frames taken for real where the walker is out of step. */
#define HTTP2_FIRST_FRAME_MAX 16384
#define HTTP2_FIRST_DATA_MAX (1 << 20)

enum http2_frame {
	HTTP2_DATA = 0,
	HTTP2_HEADERS = 1,
	HTTP2_PRIORITY = 2,
	HTTP2_RST_STREAM = 3,
	HTTP2_SETTINGS = 4,
	HTTP2_PUSH_PROMISE = 5,
	HTTP2_PING = 6,
	HTTP2_GOAWAY = 7,
	HTTP2_WINDOW_UPDATE = 8,
	HTTP2_CONTINUATION = 9,
};

#define HTTP2_END_STREAM 0x1
#define HTTP2_ACK 0x1
#define HTTP2_PADDED 0x8

enum http2_state {
	HTTP2_LOST = 0,		/* zero: a walker nobody set up waits for a frame at the start of a transfer */
	HTTP2_SEEKING = 1,	/* the next bytes are the first of a transfer: a frame, or not */
	HTTP2_AT_PREFACE = 2,	/* left: bytes of it to come */
	HTTP2_AT_HEADER = 3,	/* header_have bytes of a frame header were seen */
	HTTP2_IN_PAYLOAD = 4,	/* left bytes of payload to come, the first keep of them are kept */
};

enum http2_kind {
	HTTP2_STEP_LOST = 0,	/* nothing is known about these bytes; none are kept */
	HTTP2_STEP_PREFACE = 1,
	HTTP2_STEP_HEADER = 2,	/* a part of a frame header */
	HTTP2_STEP_FRAME = 3,	/* a frame header, or the end of one, and payload behind it */
	HTTP2_STEP_PAYLOAD = 4,
};

/* One direction of one connection. */
struct http2_walker {
	__u32 left;
	__u32 keep;
	__u8 state;			/* enum http2_state */
	__u8 header_have;		/* bytes of a cut frame header seen so far */
	__u8 ends_stream;		/* the frame at hand is DATA and the last of its stream's half */
	__u8 noteworthy;		/* user space needs this transfer */
	__u8 header[36];		/* 9 bytes; room for any masked place and length, which is what
					 * verifiers can see */
};

/* What to do with the next bytes: skip copy_from, copy copy_length, go on behind consume. */
struct http2_step {
	__u32 consume;
	__u32 copy_from;
	__u32 copy_length;
	__u32 kind;			/* enum http2_kind */
};

#ifndef HTTP2_INLINE
#define HTTP2_INLINE static inline __attribute__((always_inline, unused))
#endif

/* What was stored is loaded anew: the compiler must not carry its own copy, with its bounds, on. */
#define HTTP2_REREAD() asm volatile("" ::: "memory")

HTTP2_INLINE __u32 http2_min(__u32 a, __u32 b)
{
	return a < b ? a : b;
}

HTTP2_INLINE __u32 http2_length(const __u8 *header)
{
	return (__u32)header[0] << 16 | (__u32)header[1] << 8 | header[2];
}

HTTP2_INLINE __u32 http2_stream(const __u8 *header)
{
	return (__u32)(header[5] & 0x7f) << 24 | (__u32)header[6] << 16 | (__u32)header[7] << 8 | header[8];
}

/* How many bytes of a payload are kept, from its first. */
HTTP2_INLINE __u32 http2_kept(__u8 type, __u8 flags, __u32 length)
{
	__u32 most = 0;

	if (type == HTTP2_DATA)
		most = flags & HTTP2_PADDED ? HTTP2_KEPT_DATA + 1 : HTTP2_KEPT_DATA;
	else if (type == HTTP2_HEADERS || type == HTTP2_PUSH_PROMISE || type == HTTP2_CONTINUATION)
		most = HTTP2_KEPT_BLOCK;
	else if (type == HTTP2_SETTINGS)
		most = HTTP2_KEPT_SETTINGS;
	else if (type == HTTP2_GOAWAY)
		most = HTTP2_KEPT_GOAWAY;
	else if (type == HTTP2_RST_STREAM)
		most = HTTP2_KEPT_RESET;
	return http2_min(length, most);
}

/* Whether a frame header breaks no rule whose breach ends the connection (RFC 9113 section 6). */
HTTP2_INLINE int http2_fits(const __u8 *header)
{
	__u32 length = http2_length(header);
	__u32 stream = http2_stream(header);
	__u8 type = header[3];
	__u8 flags = header[4];

	if (type > HTTP2_CONTINUATION)
		return 1; /* section 4.1: unknown types are to be ignored */
	if (type == HTTP2_WINDOW_UPDATE)
		return length == 4;
	if (type == HTTP2_SETTINGS)
		return stream == 0 && length % 6 == 0 && !(flags & HTTP2_ACK && length);
	if (type == HTTP2_PING)
		return stream == 0 && length == 8;
	if (type == HTTP2_GOAWAY)
		return stream == 0 && length >= 8;
	if (stream == 0)
		return 0;
	if (type == HTTP2_PRIORITY)
		return length == 5;
	if (type == HTTP2_RST_STREAM)
		return length == 4;
	return type == HTTP2_CONTINUATION || !(flags & HTTP2_PADDED) || length > 0;
}

/* Whether nine bytes of unknown origin are a frame header: as http2_fits(), and nothing unusual. */
HTTP2_INLINE int http2_believable(const __u8 *header)
{
	__u32 length = http2_length(header);
	__u8 type = header[3];
	__u8 flags = header[4];
	__u8 defined = 0;

	if (type > HTTP2_CONTINUATION || header[5] & 0x80)
		return 0;
	if (length > (type == HTTP2_DATA ? HTTP2_FIRST_DATA_MAX : HTTP2_FIRST_FRAME_MAX))
		return 0;
	if (type == HTTP2_HEADERS && length == 0)
		return 0;
	if (type == HTTP2_DATA)
		defined = 0x09;
	else if (type == HTTP2_HEADERS)
		defined = 0x2d;
	else if (type == HTTP2_SETTINGS || type == HTTP2_PING)
		defined = 0x01;
	else if (type == HTTP2_PUSH_PROMISE)
		defined = 0x0c;
	else if (type == HTTP2_CONTINUATION)
		defined = 0x04;
	return !(flags & ~defined) && http2_fits(header);
}

/* Whether the first bytes of a connection are an HTTP/2 client's (RFC 9113 section 3.4). */
HTTP2_INLINE int http2_is_preface(const __u8 *bytes, __u32 visible)
{
	return visible >= 16 && bytes[0] == 'P' && bytes[1] == 'R' && bytes[2] == 'I' && bytes[3] == ' ' &&
	       bytes[4] == '*' && bytes[5] == ' ' && bytes[6] == 'H' && bytes[7] == 'T' && bytes[8] == 'T' &&
	       bytes[9] == 'P' && bytes[10] == '/' && bytes[11] == '2' && bytes[12] == '.' && bytes[13] == '0' &&
	       bytes[14] == '\r' && bytes[15] == '\n';
}

/* Whether they are too few to tell, and may be the beginning of that.  Go's server reads 14 bytes first. */
HTTP2_INLINE int http2_may_be_preface(const __u8 *bytes, __u32 visible)
{
	return visible >= 4 && visible < 16 && bytes[0] == 'P' && bytes[1] == 'R' && bytes[2] == 'I' && bytes[3] == ' ';
}

/* A connection seen from its beginning; is_client: this is the direction from the client. */
HTTP2_INLINE void http2_start(struct http2_walker *w, int is_client)
{
	w->left = is_client ? HTTP2_PREFACE : 0;
	w->keep = 0;
	w->state = is_client ? HTTP2_AT_PREFACE : HTTP2_AT_HEADER;
	w->header_have = 0;
	w->ends_stream = 0;
	w->noteworthy = 0;
}

HTTP2_INLINE void http2_lose(struct http2_walker *w)
{
	w->state = HTTP2_LOST;
	w->left = 0;
	w->keep = 0;
	w->header_have = 0;
	w->ends_stream = 0;
}

/* A transfer of length bytes begins; a walker that is out of step will look whether it begins with a frame. */
HTTP2_INLINE void http2_begin(struct http2_walker *w, __u32 length)
{
	w->noteworthy = 0;
	if (w->state == HTTP2_LOST && length >= HTTP2_FRAME_HEADER)
		w->state = HTTP2_SEEKING;
}

/* How many bytes (0 to 9) at the current position http2_step() needs to see, at http2_into(). */
HTTP2_INLINE __u32 http2_wants(const struct http2_walker *w, __u32 left)
{
	__u32 have = w->header_have & 15;

	if ((w->state != HTTP2_AT_HEADER && w->state != HTTP2_SEEKING) || have >= HTTP2_FRAME_HEADER)
		return 0;
	return http2_min(HTTP2_FRAME_HEADER - have, left) & 15;
}

HTTP2_INLINE __u8 *http2_into(struct http2_walker *w)
{
	return w->header + (w->header_have & 15);
}

HTTP2_INLINE void http2_payload_ended(struct http2_walker *w)
{
	if (w->left == 0) {
		w->state = HTTP2_AT_HEADER;
		w->noteworthy |= w->ends_stream;
	}
}

/*
 * The next step of a transfer of which left bytes remain, more than 0; the bytes that http2_wants()
 * asked for are in place.  Never returns consume 0 or more than left.
 */
HTTP2_INLINE void http2_step(struct http2_walker *w, __u32 left, struct http2_step *step)
{
	__u32 have = w->header_have & 15;
	__u32 missing, length, body, keep;

	step->consume = left;
	step->copy_from = 0;
	step->copy_length = 0;
	step->kind = HTTP2_STEP_LOST;
	if (w->state == HTTP2_AT_PREFACE) {
		step->consume = step->copy_length = http2_min(w->left, left);
		step->kind = HTTP2_STEP_PREFACE;
		w->left -= step->consume;
		w->noteworthy = 1;
		if (w->left == 0)
			w->state = HTTP2_AT_HEADER;
		goto done;
	}
	if (w->state == HTTP2_IN_PAYLOAD) {
		step->consume = http2_min(w->left, left);
		step->copy_length = http2_min(w->keep, step->consume);
		step->kind = HTTP2_STEP_PAYLOAD;
		w->left -= step->consume;
		w->keep -= step->copy_length;
		w->noteworthy |= step->copy_length != 0;
		http2_payload_ended(w);
		goto done;
	}
	if ((w->state != HTTP2_AT_HEADER && w->state != HTTP2_SEEKING) || have >= HTTP2_FRAME_HEADER)
		goto lost;

	missing = HTTP2_FRAME_HEADER - have;
	if (left < missing) {
		w->noteworthy = 1;
		step->consume = step->copy_length = left;
		step->kind = HTTP2_STEP_HEADER;
		w->header_have = have + left;
		goto done;
	}
	length = http2_length(w->header);
	/* To be believed, a frame also ends in the transfer it begins in. */
	if (w->state == HTTP2_SEEKING ? !http2_believable(w->header) || length > left - missing : !http2_fits(w->header))
		goto lost;
	keep = http2_kept(w->header[3], w->header[4], length);
	body = http2_min(length, left - missing);
	step->kind = HTTP2_STEP_FRAME;
	step->consume = missing + body;
	step->copy_length = missing + http2_min(keep, body);
	w->left = length - body;
	w->keep = keep - http2_min(keep, body);
	w->ends_stream = w->header[3] == HTTP2_DATA && w->header[4] & HTTP2_END_STREAM;
	w->header_have = 0;
	w->state = HTTP2_IN_PAYLOAD;
	w->noteworthy = 1;
	http2_payload_ended(w);
	goto done;
lost:
	http2_lose(w);
done:
	HTTP2_REREAD();
}

/* count bytes went by unread.  Inside a payload that is no reason to lose the step. */
HTTP2_INLINE void http2_unseen(struct http2_walker *w, __u32 count)
{
	if (count == 0)
		return;
	if (w->state != HTTP2_IN_PAYLOAD || count > w->left) {
		http2_lose(w);
		return;
	}
	w->left -= count;
	w->keep -= http2_min(w->keep, count);
	http2_payload_ended(w);
}
