/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Memcached: text, meta and binary. */
#pragma once

static __always_inline int memcached_binary(const __u8 *h, __u32 captured, __u32 length, __u8 magic)
{
	__u32 body = be32_at(h + 8);

	return captured >= 24 && h[0] == magic && h[1] <= 0x47 && h[5] == 0 && be16_at(h + 2) + h[4] <= body &&
	       body < 1 << 30 && (24 + body == length || 24 + body < length || length == 24) &&
	       (magic == 0x81 ? h[6] == 0 : h[6] < 8);
}

static __always_inline int memcached_request(const __u8 *h, __u32 captured)
{
	__u32 word = be32_at(h), next = be32_at(h + 4);

	if (captured < 4)
		return 0;
	if (word == WORD('g', 'e', 't', ' ') || word == WORD('s', 'e', 't', ' ') || word == WORD('a', 'd', 'd', ' ') ||
	    word == WORD('c', 'a', 's', ' ') || word == WORD('g', 'a', 't', ' '))
		return captured >= 6 && h[4] > ' ';
	if (captured >= 3 && h[0] == 'm' && h[2] == ' ')
		return (h[1] == 'g' || h[1] == 's' || h[1] == 'd' || h[1] == 'a' || h[1] == 'e') && h[3] > ' ';
	if (word == WORD('m', 'n', '\r', '\n'))
		return 2;
	if (captured < 6)
		return 0;
	if ((word == WORD('g', 'e', 't', 's') || word == WORD('i', 'n', 'c', 'r') || word == WORD('d', 'e', 'c', 'r') ||
	     word == WORD('g', 'a', 't', 's')) && h[4] == ' ')
		return 2;
	if (word == WORD('s', 't', 'a', 't') && h[4] == 's' && (h[5] == '\r' || h[5] == ' '))
		return 2;
	if (word == WORD('t', 'o', 'u', 'c') && be16_at(h + 4) == ('h' << 8 | ' '))
		return 2;
	if (captured < 8)
		return 0;
	return (word == WORD('d', 'e', 'l', 'e') && next >> 8 == WORD(0, 't', 'e', ' ')) ||
	       (word == WORD('r', 'e', 'p', 'l') && next == WORD('a', 'c', 'e', ' ')) ||
	       (word == WORD('a', 'p', 'p', 'e') && next >> 8 == WORD(0, 'n', 'd', ' ')) ||
	       (word == WORD('p', 'r', 'e', 'p') && next == WORD('e', 'n', 'd', ' ')) ||
	       (word == WORD('v', 'e', 'r', 's') && next == WORD('i', 'o', 'n', '\r')) ||
	       (word == WORD('f', 'l', 'u', 's') && next == WORD('h', '_', 'a', 'l')) ||
	       (word == WORD('v', 'e', 'r', 'b') && next == WORD('o', 's', 'i', 't')) ? 2 : 0;
}

static __always_inline int memcached_response(const __u8 *h, __u32 captured, __u32 length)
{
	__u32 word = be32_at(h), next = be32_at(h + 4);

	if (captured < 3)
		return 0;
	if (length == 5 && word == WORD('E', 'N', 'D', '\r'))
		return 2;
	if (h[2] == ' ' || h[2] == '\r') {
		__u32 two = be16_at(h);

		if (two == ('H' << 8 | 'D') || two == ('E' << 8 | 'N') || two == ('N' << 8 | 'F') || two == ('N' << 8 | 'S') ||
		    two == ('E' << 8 | 'X') || two == ('M' << 8 | 'N'))
			return h[2] == '\r' && length == 4 ? 2 : 1;
		if (two == ('V' << 8 | 'A') && is_digit(h[3]))
			return 2;
		if (two == ('O' << 8 | 'K'))
			return h[2] == '\r';
	}
	if (captured >= 7 && ((word == WORD('V', 'A', 'L', 'U') && be16_at(h + 4) == ('E' << 8 | ' ')) ||
			      (word == WORD('S', 'T', 'A', 'T') && h[4] == ' ') ||
			      (word == WORD('S', 'T', 'O', 'R') && next >> 8 == WORD(0, 'E', 'D', '\r')) ||
			      (word == WORD('N', 'O', 'T', '_')) ||
			      (word == WORD('E', 'X', 'I', 'S') && next >> 8 == WORD(0, 'T', 'S', '\r')) ||
			      (word == WORD('D', 'E', 'L', 'E') && next == WORD('T', 'E', 'D', '\r')) ||
			      (word == WORD('T', 'O', 'U', 'C') && next == WORD('H', 'E', 'D', '\r')) ||
			      (word == WORD('V', 'E', 'R', 'S') && next == WORD('I', 'O', 'N', ' ')) ||
			      (word == WORD('E', 'R', 'R', 'O') && be16_at(h + 4) == ('R' << 8 | '\r')) ||
			      (word == WORD('C', 'L', 'I', 'E') && next == WORD('N', 'T', '_', 'E')) ||
			      (word == WORD('S', 'E', 'R', 'V') && next == WORD('E', 'R', '_', 'E'))))
		return 2;
	/* incr, decr: a number alone */
	return is_digit(h[0]) && length <= 22 && (h[1] == '\r' || is_digit(h[1])) && length >= 3;
}

static __always_inline int memcached_classify(const __u8 *head, __u32 captured, __u32 length, int from_request_side_guess)
{
	int verdict = CLASSIFY_NO, side;

	if (memcached_binary(head, captured, length, 0x80))
		return STRONG_REQUEST;
	if (memcached_binary(head, captured, length, 0x81))
		return STRONG_RESPONSE;
	if (from_request_side_guess != 0) {
		side = memcached_request(head, captured);
		verdict |= side == 2 ? STRONG_REQUEST : side ? MAYBE_REQUEST : 0;
	}
	if (from_request_side_guess != 1) {
		side = memcached_response(head, captured, length);
		verdict |= side == 2 ? STRONG_RESPONSE : side ? MAYBE_RESPONSE : 0;
	}
	return verdict;
}
