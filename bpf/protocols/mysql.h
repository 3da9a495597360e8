/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* MySQL and MariaDB: packets of 3 bytes of length and a sequence number.  The server speaks first. */
#pragma once

static __always_inline int mysql_request(const __u8 *head, __u32 captured, __u32 length)
{
	__u32 size = le24_at(head) + 4;
	__u8 command = head[4], first = head[5];

	if (length == 4)	/* only the header was read, as servers do */
		return captured == 4 && head[3] <= 1 && size >= 5;
	if (captured < 5 || size < 5)
		return 0;
	if (head[3] == 1) {
		/* HandshakeResponse41: capabilities with PROTOCOL_41, then zeroes; SSLRequest is its first 36 bytes */
		return captured >= 32 && size >= 36 && size <= length && (head[5] & 2) && be32_at(head + 13) == 0 &&
		       be32_at(head + 17) == 0 && be32_at(head + 21) == 0 && be32_at(head + 25) == 0 ? 2 : 0;
	}
	if (head[3] != 0)
		return 0;
	if (command == 0x03 || command == 0x16) {	/* COM_QUERY, COM_STMT_PREPARE */
		if (size < 6 || !(first == 0 || (first >= '\t' && first != 0x7f)))
			return 0;
		if (size == length)
			return 2;
		/* longer than this transfer, or several at once */
		return captured >= 12 && is_printable(head[6]) && is_printable(head[8]) && is_printable(head[10]) ? 1 : 0;
	}
	if (command == 0x17)	/* COM_STMT_EXECUTE: statement, flags, always one iteration */
		return captured >= 14 && size >= 14 && head[9] <= 15 && le32_at(head + 10) == 1 ? 2 : 0;
	if (size != length)
		return 0;
	if (command == 0x01 || command == 0x0e || command == 0x09 || command == 0x1f || command == 0x0d)
		return size == 5 ? 2 : 0;	/* quit, ping, statistics, reset connection, debug */
	if (command == 0x02)			/* COM_INIT_DB */
		return size >= 6 && is_printable(first) ? 2 : 0;
	if (command == 0x19 || command == 0x1a)	/* close, reset a statement */
		return size == 9 ? 2 : 0;
	if (command == 0x1b)
		return size == 7 ? 2 : 0;
	return command == 0x1c && size == 13 ? 2 : 0;
}

static __always_inline int mysql_response(const __u8 *head, __u32 captured, __u32 length)
{
	__u32 size = le24_at(head) + 4;

	if (captured < 4)
		return 0;
	if (captured == 4 || length == 4)	/* only the header was read */
		return head[3] <= 2 && size >= 5 && size < 1024;
	if (size < 5)
		return 0;
	if (head[3] == 0)	/* greeting: version 10 and its text, or an error instead */
		return (captured >= 8 && head[4] == 0x0a && is_digit(head[5]) && (head[6] == '.' || is_digit(head[6])) &&
			size == length) ||
		       (captured >= 8 && head[4] == 0xff && size == length && size >= 10 && head[6] >= 0x03 &&
			head[6] <= 0x13) ? 2 : 0;
	if (head[3] > 8)
		return 0;
	if (head[4] == 0x00)	/* OK, or the answer to a prepare: 12 bytes and definitions behind it */
		return (size == length && size >= 11) || (captured >= 17 && size == 16 && head[19] <= 4 && length > size) ? 2 : 0;
	if (head[4] == 0xff)	/* ERR: code, '#', SQLSTATE */
		return captured >= 13 && size >= 13 && size == length && head[6] < 0x30 ? (head[7] == '#' ? 2 : 1) : 0;
	if (head[4] == 0xfe)	/* EOF, or a request for another proof of who is there */
		return size == length && (size == 9 || (captured >= 9 && is_letter(head[5]) && is_letter(head[6]))) ? 2 : 0;
	if (head[3] == 1 && size <= 9 && captured >= 13 && length > size) {
		/* a result: the number of columns, then a definition of the catalog "def" */
		if (size == 5 && head[8] == 2 && be32_at(head + 9) == WORD(3, 'd', 'e', 'f'))
			return 2;
		if (size == 6 && head[9] == 2 && be32_at(head + 10) == WORD(3, 'd', 'e', 'f'))
			return 2;
		if (size == 7 && head[10] == 2 && captured >= 15 && be32_at(head + 11) == WORD(3, 'd', 'e', 'f'))
			return 2;
	}
	return 0;
}

static __always_inline int mysql_classify(const __u8 *head, __u32 captured, __u32 length, int from_request_side_guess)
{
	int verdict = CLASSIFY_NO, side;

	if (from_request_side_guess != 0) {
		side = mysql_request(head, captured, length);
		verdict |= side == 2 ? STRONG_REQUEST : side ? MAYBE_REQUEST : 0;
	}
	if (from_request_side_guess != 1) {
		side = mysql_response(head, captured, length);
		verdict |= side == 2 ? STRONG_RESPONSE : side ? MAYBE_RESPONSE : 0;
	}
	return verdict;
}
