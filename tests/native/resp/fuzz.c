/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * libFuzzer target: any bytes, as commands and as replies.  What is counted must not depend on how the stream is cut, nor
 * on whether messages alike are recognised at once.
 */
#include "drive.h"

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	struct side whole = {}, cut = {}, slow = {};
	__u32 position = 0, at = 1;
	int requests;

	if (size < 2 || size > 1 << 16)
		return 0;
	requests = data[0] & 1;
	drive(&whole, data, size, RESP_MASK - RESP_CARRY_MAX, requests, 1);
	drive(&slow, data, size, RESP_MASK - RESP_CARRY_MAX, requests, 0);
	while (position < size) {
		__u32 length = 1 + (data[at++ % size] & 0x1f);

		if (length > size - position)
			length = size - position;
		drive(&cut, data + position, length, 300, requests, 1);
		position += length;
	}
	PROMISED(whole.walker.state == slow.walker.state && whole.walker.messages == slow.walker.messages);
	PROMISED(whole.walker.errors == slow.walker.errors && whole.walker.skip == slow.walker.skip);
	PROMISED(whole.walker.mixed == slow.walker.mixed && whole.walker.special == slow.walker.special);
	PROMISED((whole.walker.state == RESP_LOST) == (cut.walker.state == RESP_LOST));
	PROMISED(whole.walker.messages == cut.walker.messages && whole.walker.errors == cut.walker.errors);
	PROMISED(whole.walker.mixed == cut.walker.mixed && whole.walker.named == cut.walker.named);
	PROMISED(memcmp(whole.walker.name, cut.walker.name, 16) == 0);
	if (whole.walker.state != RESP_LOST)
		PROMISED(whole.walker.skip == cut.walker.skip && whole.walker.left == cut.walker.left);
	return 0;
}
