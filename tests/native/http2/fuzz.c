/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * libFuzzer target: any bytes in any transfers.  Condensing must not depend on how a walker in step is fed, so the
 * same bytes go through a second walker in one piece.
 */
#include "drive.h"

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	struct http2_walker whole = {}, cut = {};
	__u8 *one, *other;
	__u32 used_one, used_other = 0, position = 0, at = 1;
	int lost = 0;

	if (size < 2 || size > 1 << 16)
		return 0;
	http2_start(&whole, data[0] & 1);
	http2_start(&cut, data[0] & 1);
	one = malloc(size);
	other = malloc(size);
	used_one = drive(&whole, data, size, one);
	while (position < size) {
		/* The bytes also say how they are cut. */
		__u32 length = http2_min(1 + (data[at++ % size] & 0x1f), size - position);

		used_other += drive(&cut, data + position, length, other + used_other);
		position += length;
		lost |= cut.state == HTTP2_LOST;
		if (lost)
			break;
	}
	if (!lost) {
		PROMISED(used_one == used_other && memcmp(one, other, used_one) == 0);
		PROMISED(whole.state == cut.state && whole.left == cut.left && whole.keep == cut.keep);
	}
	http2_unseen(&whole, data[1]);
	PROMISED(whole.keep <= whole.left);
	free(one);
	free(other);
	return 0;
}
