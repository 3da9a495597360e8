/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* SQL Server, TDS 7: packets of type, status, length (big endian), process, number, window. */
#pragma once

static __always_inline int tds_classify(const __u8 *head, __u32 captured, __u32 length, int from_request_side_guess)
{
	__u32 size = be16_at(head + 2);
	__u8 type = head[0];

	if (captured < 8 || size < 8 || head[7] != 0 || (head[1] & ~0x1b) || size > length + 32768)
		return CLASSIFY_NO;
	if (size > length && length > 8)
		return CLASSIFY_NO;
	if (from_request_side_guess != 0) {
		if (type == 0x12 && captured >= 14 && head[8] == 0 && be16_at(head + 9) < 128 && be16_at(head + 11) == 6)
			return STRONG_REQUEST;	/* prelogin: the version comes first, 6 bytes of it */
		if (type == 0x06 && size == 8 && length == 8)
			return STRONG_REQUEST;	/* attention */
		if ((type == 0x01 || type == 0x03 || type == 0x0e) && captured >= 22 && le32_at(head + 8) == 22 &&
		    le32_at(head + 12) == 18 && le16_at(head + 16) == 2)
			return STRONG_REQUEST;	/* ALL_HEADERS with the transaction descriptor */
		if (type == 0x10 && captured >= 16 && head[15] >= 0x70 && head[15] <= 0x74 && le32_at(head + 8) <= 32768)
			return STRONG_REQUEST;	/* login: length, then a version of TDS 7 */
	}
	if (from_request_side_guess != 1 && type == 0x04) {
		__u8 token = head[8];

		if (captured >= 14 && token == 0 && be16_at(head + 11) == 6 && be16_at(head + 9) < 128)
			return STRONG_RESPONSE;	/* prelogin */
		if (captured >= 9 && (token == 0xe3 || token == 0xab || token == 0xaa || token == 0x81 || token == 0xfd ||
				      token == 0xfe || token == 0xff || token == 0x79 || token == 0xac || token == 0xad ||
				      token == 0xa9 || token == 0xa4 || token == 0xee || token == 0xae))
			return STRONG_RESPONSE;
		if (length == 8)
			return MAYBE_RESPONSE;	/* only the header was read */
	}
	return CLASSIFY_NO;
}
