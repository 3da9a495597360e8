/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* PostgreSQL, protocol 3: a type byte and a length of 4 bytes; the first message of a client has no type. */
#pragma once

static __always_inline int postgres_is_frontend(__u8 type)
{
	return type == 'Q' || type == 'P' || type == 'B' || type == 'E' || type == 'D' || type == 'C' || type == 'S' ||
	       type == 'H' || type == 'X' || type == 'F' || type == 'p' || type == 'd' || type == 'c' || type == 'f';
}

static __always_inline int postgres_is_backend(__u8 type)
{
	return type == 'R' || type == 'K' || type == 'S' || type == 'Z' || type == 'T' || type == 'D' || type == 'C' ||
	       type == '1' || type == '2' || type == '3' || type == 'n' || type == 't' || type == 'E' || type == 'I' ||
	       type == 'N' || type == 'A' || type == 's' || type == 'G' || type == 'H' || type == 'W' || type == 'd' ||
	       type == 'c' || type == 'V' || type == 'v';
}

/* Fixed lengths and first bytes of the bodies.  size: of the whole message.  2: as it must be, 1: possible, 0: no. */
static __always_inline int postgres_fits(const __u8 *head, __u32 captured, __u32 size, int frontend)
{
	__u8 type = head[0];
	__u8 first = head[5];

	if (captured < 6)
		return size > 5 || type == 'S' || type == 'H' || type == 'c' || type == 'X' || type == 'n' || type == '1' ||
		       type == '2' || type == '3' || type == 's' || type == 'I';
	if (frontend) {
		if (type == 'Q')
			return size > 6 && first >= '\t' && first != 0x7f ? 2 : size == 6 && first == 0;
		if (type == 'P' || type == 'B' || type == 'E')
			return size >= 8 && (first == 0 || is_printable(first)) ? (type == 'E' ? size >= 10 : 2) : 0;
		if (type == 'D' || type == 'C')
			return size >= 7 && (first == 'S' || first == 'P') ? 2 : 0;
		if (type == 'S' || type == 'H' || type == 'X' || type == 'c')
			return size == 5;
		return size >= 6;
	}
	if (type == 'Z')
		return size == 6 && (first == 'I' || first == 'T' || first == 'E') ? 2 : 0;
	if (type == '1' || type == '2' || type == '3' || type == 'n' || type == 's' || type == 'I' || type == 'c')
		return size == 5 ? 2 : 0;
	if (type == 'E' || type == 'N')
		return size > 12 && (first == 'S' || first == 'C') ? 2 : 0;
	if (type == 'R')
		return size >= 9 && first == 0 && head[6] == 0 && head[7] == 0 && head[8] <= 13 ? 2 : 0;
	if (type == 'T' || type == 'D' || type == 't')
		return size >= 7 && first < 8 ? 1 + (type != 'D' && first == 0) : 0;
	if (type == 'C')
		return size >= 8 && first >= 'A' && first <= 'Z' ? 2 : 0;
	if (type == 'S')
		return size >= 8 && is_letter(first) ? 2 : 0;
	if (type == 'G' || type == 'H' || type == 'W')
		return size >= 8 && first <= 1 ? 2 : 0;
	return size >= 5;
}

/* What follows the first message, if it is within the captured bytes, must begin like one. */
static __always_inline int postgres_next(__u8 type, __u8 high, int frontend)
{
	return high == 0 && (frontend ? postgres_is_frontend(type) : postgres_is_backend(type));
}

static __always_inline int postgres_side(const __u8 *head, __u32 captured, __u32 length, int frontend)
{
	__u32 size, fits;
	int next = -1;

	if (captured < 5 || !(frontend ? postgres_is_frontend(head[0]) : postgres_is_backend(head[0])))
		return 0;
	size = be32_at(head + 1);
	if (size < 4 || size >= 1 << 30)
		return 0;
	size += 1;
	fits = postgres_fits(head, captured, size, frontend);
	if (!fits)
		return 0;
	if (size == length)
		return 2;
	if (size > length)	/* the rest comes with the next transfer */
		return fits == 2 && length >= 16 ? 1 : length == 5;
	/* constant offsets only: the short messages that streams begin with */
	if (size == 5 && captured >= 7)
		next = postgres_next(head[5], head[6], frontend);
	else if (size == 6 && captured >= 8)
		next = postgres_next(head[6], head[7], frontend);
	else if (size == 9 && captured >= 11)
		next = postgres_next(head[9], head[10], frontend);
	else if (size == 13 && captured >= 15)
		next = postgres_next(head[13], head[14], frontend);
	if (next == 0)
		return 0;
	return next == 1 || fits == 2 ? 2 : 1;
}

static __always_inline int postgres_classify(const __u8 *head, __u32 captured, __u32 length, int from_request_side_guess)
{
	int verdict = CLASSIFY_NO, side;

	/* 'S', 'N': the answer to SSLRequest, nothing before it */
	if (length == 1)
		return head[0] == 'S' || head[0] == 'N' || head[0] == 'G' ? MAYBE_RESPONSE : CLASSIFY_NO;
	if (captured >= 8 && head[0] == 0 && head[1] == 0) {
		__u32 size = be32_at(head), code = be32_at(head + 4);

		/* versions 3.0 and 3.2, then SSLRequest, GSSENCRequest, CancelRequest */
		if ((code == 0x00030000 || code == 0x00030002) && size >= 8 && size <= 10000 && size == length)
			return STRONG_REQUEST;
		if ((code == 80877103 || code == 80877104) && size == 8)
			return STRONG_REQUEST;
		if (code == 80877102 && size >= 16 && size <= 268)
			return STRONG_REQUEST;
		return CLASSIFY_NO;
	}
	if (from_request_side_guess != 0) {
		side = postgres_side(head, captured, length, 1);
		verdict |= side == 2 ? STRONG_REQUEST : side ? MAYBE_REQUEST : 0;
	}
	if (from_request_side_guess != 1) {
		side = postgres_side(head, captured, length, 0);
		verdict |= side == 2 ? STRONG_RESPONSE : side ? MAYBE_RESPONSE : 0;
	}
	return verdict;
}
