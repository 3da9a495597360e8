/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* libFuzzer target: the first bytes of any connection, asked by every guess; each case has a buffer of its own size. */
#include <linux/types.h>
#include <stdlib.h>
#include <string.h>

#include "../../../bpf/records.h"
#include "../../../bpf/protocols/classify.h"

#define PROMISED(condition) do { if (!(condition)) __builtin_trap(); } while (0)

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	__u64 before = 0;

	/* two bytes of length and choices, then the bytes of one transfer */
	while (size > 3) {
		__u32 length = data[0] | (data[1] & 0x0f) << 8, captured;
		int datagram = data[1] >> 7, guess = data[1] >> 4 & 7;
		__u8 *head = calloc(1, CLASSIFY_BYTES);
		__u64 found;

		data += 3, size -= 3;
		captured = length < size ? length : size;
		if (captured > CLASSIFY_BYTES)
			captured = CLASSIFY_BYTES;
		memcpy(head, data, captured);
		found = classify_bytes(head, captured, length, datagram, guess);
		PROMISED(found == classify_bytes(head, captured, length, datagram, guess));
		PROMISED(protocol_agree(before, found) <= 0xffff);
		before = found;
		free(head);
		data += captured, size -= captured;
	}
	return 0;
}
