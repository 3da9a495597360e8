/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Redis: RESP2 and RESP3.  A command is an array of bulk strings; so may be a reply. */
#pragma once

/* "*1\r\n$4\r\n": up to three digits before and two behind; gives where the string begins, or 0 */
static __always_inline int redis_command_at(const __u8 *h)
{
	if (h[0] != '*' || !is_digit(h[1]))
		return 0;
	if (be32_at(h + 2) >> 8 == WORD(0, '\r', '\n', '$') && is_digit(h[5]))
		return be16_at(h + 6) == 0x0d0a ? 8 : is_digit(h[6]) && be16_at(h + 7) == 0x0d0a ? 9 : 0;
	if (is_digit(h[2]) && be32_at(h + 3) >> 8 == WORD(0, '\r', '\n', '$') && is_digit(h[6]))
		return be16_at(h + 7) == 0x0d0a ? 9 : is_digit(h[7]) && be16_at(h + 8) == 0x0d0a ? 10 : 0;
	if (is_digit(h[2]) && is_digit(h[3]) && be32_at(h + 4) >> 8 == WORD(0, '\r', '\n', '$') && is_digit(h[7]))
		return be16_at(h + 8) == 0x0d0a ? 10 : is_digit(h[8]) && be16_at(h + 9) == 0x0d0a ? 11 : 0;
	return 0;
}

/* A type byte, a number and the end of the line. */
static __always_inline int redis_number(const __u8 *h)
{
	if (h[1] == '-')
		return h[2] == '1' && be16_at(h + 3) == 0x0d0a;
	if (!is_digit(h[1]))
		return 0;
	if (be16_at(h + 2) == 0x0d0a)
		return 1;
	if (!is_digit(h[2]))
		return 0;
	if (be16_at(h + 3) == 0x0d0a)
		return 1;
	if (!is_digit(h[3]))
		return 0;
	if (be16_at(h + 4) == 0x0d0a)
		return 1;
	if (!is_digit(h[4]))
		return 0;
	return be16_at(h + 5) == 0x0d0a || (is_digit(h[5]) && (be16_at(h + 6) == 0x0d0a ||
		(is_digit(h[6]) && (be16_at(h + 7) == 0x0d0a || (is_digit(h[7]) && be16_at(h + 8) == 0x0d0a)))));
}

/* "PING\r\n" and its like are typed by hand or sent by health checks. */
static __always_inline int redis_inline(const __u8 *h)
{
	__u32 word = be32_at(h) & ~0x20202020U;

	return (word == (WORD('P', 'I', 'N', 'G') & ~0x20202020U) && (h[4] == '\r' || h[4] == '\n' || h[4] == ' ')) ||
	       ((be32_at(h) == WORD('S', 'E', 'T', ' ') || be32_at(h) == WORD('G', 'E', 'T', ' ')) && h[4] != '/' &&
		is_printable(h[4])) ||
	       (word == (WORD('I', 'N', 'F', 'O') & ~0x20202020U) && (h[4] == '\r' || h[4] == '\n'));
}

static __always_inline int redis_response(const __u8 *h, __u32 captured, __u32 length)
{
	__u8 type = h[0];

	if (captured < 4)
		return 0;
	if (type == '+') {
		if (be32_at(h + 1) >> 8 == WORD(0, 'O', 'K', '\r'))
			return 2;
		if (be32_at(h + 1) == WORD('P', 'O', 'N', 'G') || be32_at(h + 1) == WORD('Q', 'U', 'E', 'U'))
			return 2;
		return is_letter(h[1]) && is_letter(h[2]);
	}
	if (type == '-')	/* -ERR, -WRONGTYPE, -MOVED ... */
		return be32_at(h + 1) == WORD('E', 'R', 'R', ' ') ? 2 :
		       h[1] >= 'A' && h[1] <= 'Z' && h[2] >= 'A' && h[2] <= 'Z' && h[3] >= 'A' && h[3] <= 'Z' ? 1 : 0;
	if (type == ':' || type == '$' || type == '*' || type == '%' || type == '~' || type == '>')
		return redis_number(h) ? (type == '$' || type == '*' || length < 16 ? 2 : 1) : 0;
	if (type == '_')
		return be16_at(h + 1) == 0x0d0a ? 2 : 0;
	if (type == '#')
		return (h[1] == 't' || h[1] == 'f') && be16_at(h + 2) == 0x0d0a ? 2 : 0;
	if (type == ',')
		return is_digit(h[1]) || h[1] == '-';
	return 0;
}

static __always_inline int redis_classify(const __u8 *head, __u32 captured, __u32 length, int from_request_side_guess)
{
	int at, verdict = CLASSIFY_NO;

	if (captured < 4)
		return CLASSIFY_NO;
	at = redis_command_at(head);
	if (at) {
		__u8 first = at == 8 ? head[8] : at == 9 ? head[9] : at == 10 ? head[10] : head[11];

		if (from_request_side_guess == 0)
			return STRONG_RESPONSE;
		return is_letter(first) ? STRONG_REQUEST | (from_request_side_guess == 1 ? 0 : MAYBE_RESPONSE) :
					  MAYBE_RESPONSE;
	}
	if (from_request_side_guess != 0 && redis_inline(head))
		verdict |= MAYBE_REQUEST;
	if (from_request_side_guess != 1) {
		int side = redis_response(head, captured, length);

		verdict |= side == 2 ? STRONG_RESPONSE : side ? MAYBE_RESPONSE : 0;
	}
	return verdict;
}
