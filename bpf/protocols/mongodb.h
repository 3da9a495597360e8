/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* MongoDB: length, request id, id of the request that it answers, operation; all little endian. */
#pragma once

static __always_inline int mongodb_classify(const __u8 *head, __u32 captured, __u32 length __attribute__((unused)), int from_request_side_guess)
{
	__u32 size, answers, code, flags;

	if (captured < 16)
		return CLASSIFY_NO;
	size = le32_at(head);
	answers = le32_at(head + 8);
	code = le32_at(head + 12);
	if (size < 16 || size > 48 << 20)
		return CLASSIFY_NO;
	if (code == 2004 || (code >= 2001 && code <= 2007 && code != 2003))
		return answers == 0 || answers == 0xffffffff ? STRONG_REQUEST : CLASSIFY_NO;
	if (code == 1)	/* OP_REPLY: flags, a cursor, where it starts, how many */
		return size >= 36 && (captured < 20 || le32_at(head + 16) < 16) ? STRONG_RESPONSE : CLASSIFY_NO;
	if (code == 2013) {
		flags = le32_at(head + 16);
		if (captured >= 21 && ((flags & 0xfffefffc) || head[20] > 1))
			return CLASSIFY_NO;
	} else if (code == 2012) {
		/* the operation inside, its size, the compressor */
		if (captured >= 25 && (le32_at(head + 16) > 2013 || head[24] > 3))
			return CLASSIFY_NO;
	} else {
		return CLASSIFY_NO;
	}
	if (from_request_side_guess != 0 && answers == 0)
		return STRONG_REQUEST;
	return STRONG_RESPONSE;
}
