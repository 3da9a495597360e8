/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* DNS, RFC 1035: a datagram, or a message behind its length on a stream. */
#pragma once

static __always_inline int dns_message(const __u8 *h, __u32 captured, __u32 length)
{
	__u32 flags = be16_at(h + 2), operation = flags >> 11 & 15;
	__u32 answers = be16_at(h + 6), authority = be16_at(h + 8), additional = be16_at(h + 10);

	if (captured < 16 || length < 17 || (flags & 0x0040) || be16_at(h + 4) != 1 ||
	    (operation != 0 && operation != 4 && operation != 5))
		return CLASSIFY_NO;
	/* the first label, or the root */
	if (h[12] > 63 || (h[12] && !(is_letter(h[13]) || is_digit(h[13]) || h[13] == '_' || h[13] == '-' || h[13] == '*')))
		return CLASSIFY_NO;
	if (flags & 0x8000)
		return (flags & 15) <= 11 && answers <= 512 && authority <= 64 && additional <= 64 ? STRONG_RESPONSE : CLASSIFY_NO;
	return answers == 0 && authority <= 1 && additional <= 2 && (flags & 0x008f) == 0 ? STRONG_REQUEST : CLASSIFY_NO;
}

static __always_inline int dns_classify(const __u8 *head, __u32 captured, __u32 length, int datagram)
{
	if (datagram)
		return dns_message(head, captured, length);
	if (length == 2)	/* a resolver reads the length first */
		return be16_at(head) >= 17 && be16_at(head) <= 4096 ? MAYBE_REQUEST | MAYBE_RESPONSE : CLASSIFY_NO;
	if (captured >= 18 && be16_at(head) == length - 2)
		return dns_message(head + 2, captured - 2, length - 2);
	/* the message whose length was read alone */
	return dns_message(head, captured, length) ? dns_message(head, captured, length) & ~CLASSIFY_STRONG : CLASSIFY_NO;
}
