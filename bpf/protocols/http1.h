/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * HTTP/1 (RFC 9110, RFC 9112): pure functions over bytes.  They compile for BPF and for the
 * host (tests/native).  Eight bytes are looked at in one go: no character loop where a head is
 * scanned.  Lengths are not trusted: every offset is masked right before its load.
 */
#pragma once

#define WINDOW_SIZE (CARRY_SIZE + HEAD_WINDOW) /* what can be valid in a window */
#define WINDOW_MASK 1023
#define WINDOW_BYTES (CARRY_SIZE + 2 * HEAD_WINDOW) /* room for what the verifier thinks could be written */

_Static_assert(WINDOW_SIZE <= WINDOW_MASK, "a window's offsets are masked with WINDOW_MASK");
_Static_assert(WINDOW_BYTES >= WINDOW_MASK + 64, "loads start at a masked offset and are short");

#define EACH_BYTE(b) ((b) * 0x0101010101010101ULL)
#define LOWER EACH_BYTE(0x20ULL)
#define TEXT8(a, b, c, d, e, f, g, h)                                                              \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |   \
	 (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)
#define FIRST(n) ((n) >= 8 ? ~0ULL : (1ULL << ((n) * 8)) - 1)

enum verdict {
	VERDICT_NO = 0,
	VERDICT_REQUEST = 1,
	VERDICT_RESPONSE = 2,
	VERDICT_MORE = 3, /* fits so far, too short to tell */
};

/* What is remembered of a head while it is read; kept between calls if it comes in pieces. */
struct http1_head {
	__u64 content_length;
	__u64 trace_id[2]; /* as on the wire */
	__u64 parent_span_id;
	__u32 length;	   /* of the head so far, in bytes */
	__u8 trace_flags;
	__u8 flags;	   /* enum head_flags */
	__u8 pad[2];
};

enum head_flags {
	HEAD_LINE_DONE = 1 << 0,   /* the start line is complete */
	HEAD_COMPLETE = 1 << 1,	   /* the empty line was seen */
	HEAD_HAS_LENGTH = 1 << 2,
	HEAD_CHUNKED = 1 << 3,
	HEAD_EVENT_STREAM = 1 << 4,
	HEAD_TRACEPARENT = 1 << 5,
	HEAD_SKIP_LINE = 1 << 6,   /* inside a line whose beginning was already looked at */
};

/* A piece of a message, copied from user memory, and what a scan of it found. */
struct http1_window {
	__u8 bytes[WINDOW_BYTES];
	__u32 length;	   /* valid bytes */
	__u32 position;	   /* in: where to go on; out: behind what is used up; INSIDE_LINE may be added meanwhile */
	__u32 line_start;  /* of the line that position stands in, if that is not its beginning */
	__u32 whole;	   /* length of a transfer that may be one response and nothing else; 0: it may not */
	__u16 start_line;  /* length of the start line without its line end, if it ended in this window */
	__u16 host;	   /* offset of the value of Host, 0: not in this window */
	__u16 host_length;
	__u16 found_length;	 /* offsets behind the name of a field, 0: not in this window */
	__u16 found_type;
	__u16 found_traceparent;
	__u16 found_encoding;
	__u16 value_end;	 /* of the field that was looked at last */
};

static __always_inline __u64 load8(const __u8 *bytes, __u32 offset)
{
	return *(const __u64 *)(bytes + (offset & WINDOW_MASK));
}

/* Zero if no byte equals `byte`, which is ASCII; else there may be one. */
static __always_inline __u64 maybe_byte(__u64 word, __u8 byte)
{
	return ((word ^ EACH_BYTE((__u64)byte)) - EACH_BYTE(1ULL)) & EACH_BYTE(0x80ULL);
}

/* Of what was found so in `word`: bit 7 of the lowest byte that is meant is exact; higher ones may be false. */
static __always_inline __u64 sure_byte(__u64 found, __u64 word)
{
	return found & ~word; /* the others are those that are not ASCII */
}

/* How many bytes come before the lowest one whose bit 7 is set: 8 if none is. */
static __always_inline __u32 bytes_before(__u64 found)
{
	return (__u32)((((found - 1) & ~found & EACH_BYTE(0x80ULL)) >> 7) * EACH_BYTE(1ULL) >> 56);
}

/* The same where one is set, in fewer steps. */
static __always_inline __u32 first_found(__u64 found)
{
	/* 1 << 8k moves the three bits that say k to the top */
	const __u64 index = 1ULL << 53 | 2ULL << 45 | 3ULL << 37 | 4ULL << 29 | 5ULL << 21 | 6ULL << 13 | 7ULL << 5;

	return (__u32)(((found & -found) >> 7) * index >> 61);
}

/* Bit 7 of each byte that is a space or a tab, exactly. */
static __always_inline __u64 blanks(__u64 word)
{
	__u64 space = word ^ EACH_BYTE(0x20ULL), tab = word ^ EACH_BYTE(0x09ULL);

	space = ~(((space & EACH_BYTE(0x7fULL)) + EACH_BYTE(0x7fULL)) | space);
	tab = ~(((tab & EACH_BYTE(0x7fULL)) + EACH_BYTE(0x7fULL)) | tab);
	return (space | tab) & EACH_BYTE(0x80ULL);
}

/* Behind the blanks (RFC 9110 section 5.6.3) before a value; up to eight are skipped. */
static __always_inline __u32 skip_blanks(const __u8 *bytes, __u32 at)
{
	__u64 word = load8(bytes, at);

	if ((word & 0xff) == ' ' && (word >> 8 & 0xff) > ' ') /* as everybody writes it */
		return at + 1;
	return at + bytes_before(~blanks(word) & EACH_BYTE(0x80ULL));
}

/* Before the line end and the blanks behind a value that ends at `end`; `start` is where it may begin. */
static __always_inline __u32 trim_blanks(const __u8 *bytes, __u32 start, __u32 end)
{
	__u32 count;

	if (bytes[(end - 1) & WINDOW_MASK] == '\r')
		end--;
	if (end < 8 || end <= start || bytes[(end - 1) & WINDOW_MASK] > ' ')
		return end;
	count = bytes_before(__builtin_bswap64(~blanks(load8(bytes, end - 8)) & EACH_BYTE(0x80ULL)));
	return count < end - start ? end - count : start;
}

/* The methods of RFC 9110, RFC 5789 and QUERY, with the space behind. */
static __always_inline __u32 http1_method(__u64 word, __u32 *length)
{
#define METHOD(n, name, ...)                                                                       \
	if ((word & FIRST(n)) == (TEXT8(__VA_ARGS__) & FIRST(n))) {                                \
		*length = (n) - 1;                                                                 \
		return name;                                                                       \
	}
	METHOD(4, HTTP_METHOD_GET, 'G', 'E', 'T', ' ', 0, 0, 0, 0)
	METHOD(5, HTTP_METHOD_POST, 'P', 'O', 'S', 'T', ' ', 0, 0, 0)
	METHOD(5, HTTP_METHOD_HEAD, 'H', 'E', 'A', 'D', ' ', 0, 0, 0)
	METHOD(4, HTTP_METHOD_PUT, 'P', 'U', 'T', ' ', 0, 0, 0, 0)
	METHOD(7, HTTP_METHOD_DELETE, 'D', 'E', 'L', 'E', 'T', 'E', ' ', 0)
	METHOD(6, HTTP_METHOD_PATCH, 'P', 'A', 'T', 'C', 'H', ' ', 0, 0)
	METHOD(8, HTTP_METHOD_OPTIONS, 'O', 'P', 'T', 'I', 'O', 'N', 'S', ' ')
	METHOD(8, HTTP_METHOD_CONNECT, 'C', 'O', 'N', 'N', 'E', 'C', 'T', ' ')
	METHOD(6, HTTP_METHOD_TRACE, 'T', 'R', 'A', 'C', 'E', ' ', 0, 0)
	METHOD(6, HTTP_METHOD_QUERY, 'Q', 'U', 'E', 'R', 'Y', ' ', 0, 0)
#undef METHOD
	*length = 0;
	return HTTP_METHOD_OTHER;
}

/* Whether the first eight bytes of a message are those that most messages begin with; VERDICT_NO: look closer. */
static __always_inline int http1_plain(__u64 word, __u32 length)
{
	if (length < 9)
		return VERDICT_NO;
	if ((word & FIRST(7)) == TEXT8('H', 'T', 'T', 'P', '/', '1', '.', 0))
		return VERDICT_RESPONSE;
	if ((word & FIRST(5)) == TEXT8('G', 'E', 'T', ' ', '/', 0, 0, 0) ||
	    (word & FIRST(6)) == TEXT8('P', 'O', 'S', 'T', ' ', '/', 0, 0))
		return VERDICT_REQUEST;
	return VERDICT_NO;
}

/* Whether bytes, of which `length` are valid, may begin an HTTP/1 message. */
static __always_inline int http1_classify(const __u8 *bytes, __u32 length)
{
	const __u64 response = TEXT8('H', 'T', 'T', 'P', '/', '1', '.', 0);
	__u64 word = load8(bytes, 0);
	__u32 known = length < 7 ? length : 7;
	__u32 method_length;

	if (!length)
		return VERDICT_MORE;
	if (!((word ^ response) & FIRST(known)))
		return known == 7 ? VERDICT_RESPONSE : VERDICT_MORE;
	if (length >= 8 && http1_method(word, &method_length)) {
		__u8 next = bytes[(method_length + 1) & 15];

		/* origin, absolute, authority ([v6] included) or asterisk form of a target */
		return next > ' ' && next < 0x7f ? VERDICT_REQUEST :
		       method_length + 1 >= length ? VERDICT_MORE : VERDICT_NO;
	}
	/* An extension method: capitals, then a space and a target that begins like one. */
	for (__u32 i = 0; i < 16; i++) {
		__u8 c;

		if (i >= length)
			return VERDICT_MORE;
		c = bytes[i];
		if (c == ' ' && i >= 3) {
			if (i + 1 >= length)
				return VERDICT_MORE;
			c = bytes[(i + 1) & 31];
			if (c == '*' && (word & FIRST(4)) == (TEXT8('P', 'R', 'I', ' ', 0, 0, 0, 0) & FIRST(4)))
				return VERDICT_NO; /* the preface of HTTP/2 */
			if (c == '/' || c == '*' || c == 'h' || c == 'H')
				return VERDICT_REQUEST;
			/* known methods may have any target (CONNECT host:port) */
			return http1_method(word, &method_length) && c > ' ' ? VERDICT_REQUEST : VERDICT_NO;
		}
		if ((c < 'A' || c > 'Z') && !(i && (c == '-' || c == '_')))
			return VERDICT_NO;
	}
	return VERDICT_NO;
}

/* Whether a start line's last eight bytes are HTTP/1.0 or HTTP/1.1. */
static __always_inline bool http1_version(__u64 last)
{
	return (last & FIRST(7)) == (TEXT8('H', 'T', 'T', 'P', '/', '1', '.', 0) & FIRST(7));
}

/* One bit for each character that a line which matters begins with: a field's letter, capital or not, or a line end. */
#define NOTED (1U << ('c' & 31) | 1U << ('h' & 31) | 1U << ('t' & 31) | 1U << '\r' | 1U << '\n')

/* A line begins with `word`: does its field matter? */
static __always_inline void http1_field(struct http1_window *w, __u64 word, __u32 line)
{
	__u64 rest;

	word |= LOWER;
	if (word == TEXT8('c', 'o', 'n', 't', 'e', 'n', 't', '-')) {
		rest = load8(w->bytes, line + 8) | LOWER;
		if ((rest & FIRST(7)) == (TEXT8('l', 'e', 'n', 'g', 't', 'h', ':', 0) & FIRST(7)))
			w->found_length = line + 15;
		else if ((rest & FIRST(5)) == (TEXT8('t', 'y', 'p', 'e', ':', 0, 0, 0) & FIRST(5)))
			w->found_type = line + 13;
	} else if (word == TEXT8('t', 'r', 'a', 'n', 's', 'f', 'e', 'r')) {
		rest = load8(w->bytes, line + 8) | LOWER;
		/* "-encodin", the '-' having gained no bit */
		if (rest == TEXT8('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n'))
			w->found_encoding = line + 16;
	} else if (word == TEXT8('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r')) {
		rest = load8(w->bytes, line + 8) | LOWER;
		if ((rest & FIRST(4)) == (TEXT8('e', 'n', 't', ':', 0, 0, 0, 0) & FIRST(4)))
			w->found_traceparent = line + 12;
	} else if ((word & FIRST(5)) == (TEXT8('h', 'o', 's', 't', ':', 0, 0, 0) & FIRST(5))) {
		w->host = line + 5;
	}
}

/* Behind the valid bytes.  Loaded each time: what the verifier learned from one comparison would tell paths apart for good. */
#define WINDOW_END(w) ((__u64)*(volatile __u32 *)&(w)->length)

/* A position inside a line whose beginning was looked at. */
#define INSIDE_LINE (1U << 16)

/*
 * Look for a line end in SCAN_STRIDE bytes, and go to `look` with `bytes` and `at` at the word that may have it.  The word
 * itself is loaded again there: registers are few, and with one less the three constants stay where they are.
 */
#define SCAN_STRIDE 32
#define SCAN_WORDS(bytes, at, found, look)                                                         \
	do {                                                                                       \
		found = maybe_byte(*(const volatile __u64 *)(bytes), '\n');                        \
		if (found)                                                                         \
			goto look;                                                                 \
		found = maybe_byte(*(const volatile __u64 *)((bytes) + 8), '\n');                  \
		if (found) {                                                                       \
			bytes += 8;                                                                \
			at += 8;                                                                   \
			goto look;                                                                 \
		}                                                                                  \
		found = maybe_byte(*(const volatile __u64 *)((bytes) + 16), '\n');                 \
		if (found) {                                                                       \
			bytes += 16;                                                               \
			at += 16;                                                                  \
			goto look;                                                                 \
		}                                                                                  \
		found = maybe_byte(*(const volatile __u64 *)((bytes) + 24), '\n');                 \
		bytes += 24;                                                                       \
		at += 24;                                                                          \
	} while (0)

/* The start line has ended at `at`, or the rest of a line whose beginning was looked at before. */
static __always_inline void http1_line_over(struct http1_head *head, struct http1_window *w, __u32 at)
{
	__u8 flags = *(volatile __u8 *)&head->flags;

	if ((flags & (HEAD_SKIP_LINE | HEAD_LINE_DONE)) == HEAD_LINE_DONE)
		return;
	if (!(flags & HEAD_SKIP_LINE)) {
		__u32 length = at - *(volatile __u32 *)&w->line_start;

		if (length && w->bytes[(at - 1) & WINDOW_MASK] == '\r')
			length--;
		w->start_line = length;
	}
	*(volatile __u8 *)&head->flags = (flags & ~HEAD_SKIP_LINE) | HEAD_LINE_DONE;
}

/* The rarer ends of a turn: the line does not end here, or its beginning was in an earlier turn. */
static __always_inline void http1_scan_inside(struct http1_head *head, struct http1_window *w, __u32 at, bool found,
					      __u32 end)
{
	__u32 here = at & ~INSIDE_LINE;

	if (!(at & INSIDE_LINE)) {
		w->line_start = *(volatile __u32 *)&w->position;
	} else if (found && here < end) {
		http1_line_over(head, w, here);
		*(volatile __u32 *)&w->position = here + 1;
		return;
	}
	*(volatile __u32 *)&w->position = (found ? end : here + 8) | INSIDE_LINE;
}

/*
 * Walk over one window: find the lines, and note where the fields that matter have their values.  Stops behind the head's
 * empty line (HEAD_COMPLETE) or at the end of the window.  A turn looks at SCAN_STRIDE bytes, or at those to the next line
 * end.  What changes from turn to turn is kept in memory: the verifier then sees every turn alike.
 */
static __always_inline void http1_scan(struct http1_head *head, struct http1_window *w, __u32 steps)
{
	/* the bytes stand at the window's beginning: one register for both */
	asm volatile("" : "+r"(w));
	for (__u64 i = 0; i < steps; i++) {
		__u64 at = *(volatile __u32 *)&w->position, found, word;
		const __u8 *bytes = w->bytes + (at & WINDOW_MASK);

		if (at >= WINDOW_END(w)) {
			if (!(at & INSIDE_LINE) || (at & ~INSIDE_LINE) >= WINDOW_END(w))
				break;
		} else {
			word = *(const volatile __u64 *)bytes;
			if (NOTED >> (word & 31) & 1) {
				if ((word & 0xffff) == ('\r' | '\n' << 8) || (word & 0xff) == '\n') {
					__u64 behind = at + ((word & 0xff) == '\r') + 1;

					if (behind <= WINDOW_END(w)) {
						*(volatile __u32 *)&w->position = behind;
						*(volatile __u8 *)&head->flags |= HEAD_COMPLETE;
						return;
					}
				}
				http1_field(w, word, at);
				if (w->found_length && *(volatile __u32 *)&w->whole)
					return; /* see http1_shortcut */
			}
		}
		SCAN_WORDS(bytes, at, found, look);
	look:
		found = sure_byte(found, *(const volatile __u64 *)bytes);
		if (found) {
			at += first_found(found);
			if (at < WINDOW_END(w)) {
				*(volatile __u32 *)&w->position = at + 1;
				continue;
			}
		}
		http1_scan_inside(head, w, at, found, WINDOW_END(w));
	}
}

/* Before a scan. */
static __always_inline void http1_scan_begin(const struct http1_head *head, struct http1_window *w)
{
	if ((head->flags & (HEAD_SKIP_LINE | HEAD_LINE_DONE)) != HEAD_LINE_DONE)
		w->position = INSIDE_LINE;
	else
		w->position = 0;
	w->line_start = 0;
	if (w->length > WINDOW_SIZE)
		w->length = WINDOW_SIZE;
}

/* After it: what the unfinished line seemed to say is left for the window that has its end. */
static __always_inline void http1_scan_end(const struct http1_head *head, struct http1_window *w)
{
	if (head->flags & HEAD_COMPLETE)
		return;
	if (w->position & INSIDE_LINE)
		w->position &= ~INSIDE_LINE;
	else
		w->line_start = w->position;
	/* a step may overshoot the valid bytes */
	if (w->position > w->length)
		w->position = w->length;
	if (w->host > w->line_start)
		w->host = 0;
	if (w->found_length > w->line_start)
		w->found_length = 0;
	if (w->found_type > w->line_start)
		w->found_type = 0;
	if (w->found_traceparent > w->line_start)
		w->found_traceparent = 0;
	if (w->found_encoding > w->line_start)
		w->found_encoding = 0;
}

/* Where the line ends that goes on at `from`.  The place is kept in memory, as by http1_scan. */
static __always_inline __u32 http1_value_end(struct http1_window *w, __u32 from)
{
	*(volatile __u16 *)&w->value_end = from;
	for (__u32 i = 0; i < WINDOW_SIZE / 8 + 1; i++) {
		__u32 at = *(volatile __u16 *)&w->value_end;
		const __u8 *bytes = w->bytes + (at & WINDOW_MASK);
		__u64 found;

		SCAN_WORDS(bytes, at, found, look);
	look:
		found = sure_byte(found, *(const volatile __u64 *)bytes);
		if (found) {
			*(volatile __u16 *)&w->value_end = at + first_found(found);
			break;
		}
		*(volatile __u16 *)&w->value_end = at + 8;
	}
	return *(volatile __u16 *)&w->value_end;
}

/* Eight hexadecimal digits, the first in the lowest byte, to four bytes in their order; false: not all digits. */
static __always_inline bool hex8(__u64 text, __u32 *out)
{
	__u64 digit = text ^ EACH_BYTE(0x30ULL), letter = (text | LOWER) ^ EACH_BYTE(0x60ULL), nibble;

	if (text & EACH_BYTE(0x80ULL))
		return false;
	if ((digit + EACH_BYTE(0x76ULL)) &
	    ((letter + EACH_BYTE(0x79ULL)) | ~(letter + EACH_BYTE(0x7fULL))) & EACH_BYTE(0x80ULL))
		return false;
	nibble = (text & EACH_BYTE(0x0fULL)) + ((text >> 6) & EACH_BYTE(1ULL)) * 9;
	nibble = ((nibble << 4) | (nibble >> 8)) & 0x00ff00ff00ff00ffULL;
	nibble = (nibble | nibble >> 8) & 0x0000ffff0000ffffULL;
	*out = (__u32)(nibble | nibble >> 16);
	return true;
}

/* W3C Trace Context, version 00 and what a later version keeps of it. */
static __always_inline void http1_traceparent(struct http1_head *head, const __u8 *bytes, __u32 at)
{
	__u32 a, b, c, d, e, f, flags;
	__u64 word;

	at = skip_blanks(bytes, at);
	word = load8(bytes, at);
	if ((word >> 16 & 0xff) != '-' || (word & 0xffff) == ('f' | 'f' << 8))
		return;
	if (!hex8(load8(bytes, at + 3), &a) || !hex8(load8(bytes, at + 11), &b) ||
	    !hex8(load8(bytes, at + 19), &c) || !hex8(load8(bytes, at + 27), &d) ||
	    !hex8(load8(bytes, at + 36), &e) || !hex8(load8(bytes, at + 44), &f))
		return;
	if (bytes[(at + 35) & WINDOW_MASK] != '-' || bytes[(at + 52) & WINDOW_MASK] != '-')
		return;
	/* the two digits of the flags, with six zeroes behind them */
	if (!hex8((load8(bytes, at + 53) & 0xffff) | (EACH_BYTE(0x30ULL) & ~0xffffULL), &flags))
		return;
	if (!(a | b | c | d) || !(e | f))
		return;
	head->trace_id[0] = (__u64)b << 32 | a;
	head->trace_id[1] = (__u64)d << 32 | c;
	head->parent_span_id = (__u64)f << 32 | e;
	head->trace_flags = (__u8)flags;
	head->flags |= HEAD_TRACEPARENT;
}

/* The value of Content-Length. */
static __always_inline void http1_length(struct http1_head *head, struct http1_window *w)
{
	__u32 at = skip_blanks(w->bytes, w->found_length);
	__u64 value = 0, word = 0;

	for (__u32 i = 0; i < 19; i++) {
		__u32 digit;

		if (!(i & 7))
			word = load8(w->bytes, at + i);
		digit = (__u32)(word & 0xff) - '0';
		if (digit > 9)
			break;
		word >>= 8;
		value = value * 10 + digit;
	}
	head->content_length = value;
	head->flags |= HEAD_HAS_LENGTH;
}

/*
 * A scan has stopped at Content-Length.  If the transfer is one response, its body are the last so many bytes, and the empty line
 * stands right before them: the lines up to there need not be looked at.  If it does not stand there, the scan goes on.
 */
static __always_inline bool http1_shortcut(struct http1_head *head, struct http1_window *w)
{
	__u64 end;

	http1_length(head, w);
	end = w->whole - head->content_length;
	w->whole = 0;
	if (end > w->length || end < w->found_length ||
	    (load8(w->bytes, end - 4) & FIRST(4)) != (TEXT8('\r', '\n', '\r', '\n', 0, 0, 0, 0) & FIRST(4))) {
		/* the line may not even be complete */
		head->content_length = 0;
		head->flags &= ~HEAD_HAS_LENGTH;
		return false;
	}
	w->found_length = 0; /* known */
	w->position = end;
	head->flags |= HEAD_COMPLETE;
	return true;
}

/* Read the values of the fields that the last scan found. */
static __always_inline void http1_fields(struct http1_head *head, struct http1_window *w)
{
	if (w->host) {
		__u32 start = skip_blanks(w->bytes, w->host), end = http1_value_end(w, w->host);

		end = trim_blanks(w->bytes, start, end);
		w->host = start;
		w->host_length = end > start ? end - start : 0;
	}
	if (w->found_length)
		http1_length(head, w);
	if (w->found_type) {
		__u32 at = skip_blanks(w->bytes, w->found_type);

		if ((load8(w->bytes, at) | LOWER) == (TEXT8('t', 'e', 'x', 't', '/', 'e', 'v', 'e') | LOWER))
			head->flags |= HEAD_EVENT_STREAM;
	}
	if (w->found_encoding) {
		__u32 at = http1_value_end(w, w->found_encoding);

		at = trim_blanks(w->bytes, w->found_encoding, at);

		/* RFC 9112 section 6.3: chunked counts as the final coding only */
		if (((load8(w->bytes, at - 7) | LOWER) & FIRST(7)) ==
		    (TEXT8('c', 'h', 'u', 'n', 'k', 'e', 'd', 0) & FIRST(7)))
			head->flags |= HEAD_CHUNKED;
	}
	if (w->found_traceparent && !(head->flags & HEAD_TRACEPARENT))
		http1_traceparent(head, w->bytes, w->found_traceparent);
}

/* The chunked coding (RFC 9112 section 7.1): the lines around the data. */
enum chunk_state {
	CHUNK_SIZE = 0,	     /* digits of a chunk's size */
	CHUNK_EXTENSION = 1, /* the rest of that line */
	CHUNK_TRAILER = 2,   /* lines behind the last chunk */
};

enum chunk_result {
	CHUNK_MORE = 0,	  /* the bytes ended inside a line */
	CHUNK_DATA = 1,	  /* data of `size` bytes and a line end follow */
	CHUNK_LAST = 2,	  /* the message is over */
	CHUNK_BROKEN = 3, /* not a chunked body */
};

struct http1_chunk {
	__u64 size;
	__u8 state;  /* enum chunk_state */
	__u8 digits;
	__u8 line;   /* whether the current trailer line has a character */
	__u8 pad[5];
};

#define CHUNK_WINDOW 16

/* Read up to `length` bytes (at most CHUNK_WINDOW) of such lines; `used` tells how many were taken. */
static __always_inline int http1_chunk(struct http1_chunk *chunk, const __u8 *bytes, __u32 length, __u32 *used)
{
	int result = CHUNK_MORE;
	__u32 i;

	for (i = 0; i < CHUNK_WINDOW; i++) {
		__u8 c, digit;

		if (i >= length)
			break;
		c = bytes[i];
		if (chunk->state == CHUNK_SIZE) {
			digit = c - '0';
			if (digit > 9) {
				digit = (c | 0x20) - 'a' + 10;
				if ((c | 0x20) < 'a' || (c | 0x20) > 'f')
					digit = 16;
			}
			if (digit < 16) {
				if (++chunk->digits > 15) {
					result = CHUNK_BROKEN;
					break;
				}
				chunk->size = chunk->size << 4 | digit;
				continue;
			}
			if (!chunk->digits) {
				result = CHUNK_BROKEN;
				break;
			}
			chunk->state = CHUNK_EXTENSION;
		}
		if (chunk->state == CHUNK_EXTENSION) {
			if (c != '\n')
				continue;
			if (chunk->size) {
				i++;
				result = CHUNK_DATA;
				break;
			}
			chunk->state = CHUNK_TRAILER;
			chunk->line = 0;
			continue;
		}
		if (c == '\n') {
			if (!chunk->line) {
				i++;
				result = CHUNK_LAST;
				break;
			}
			chunk->line = 0;
		} else if (c != '\r') {
			chunk->line = 1;
		}
	}
	*used = i;
	return result;
}
