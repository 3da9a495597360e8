/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * libFuzzer target: any bytes, as commands and as replies.  What is counted must not depend on how the stream is cut, nor
 * on whether messages alike are recognised at once, and others as most are passed value by value.
 */
#include "drive.h"

/* What a connection does before commands come while nothing is under way. */
static void forget(struct side *s)
{
	if (s->walker.state != RESP_START || s->carried)
		return;
	s->walker.named = s->walker.mixed = 0;
	s->walker.special &= RESP_UNPAIRED;
	s->walker.error[0] = s->walker.error[1] = 0;
}

static void alike(const struct side *a, const struct side *b)
{
	const struct resp_walker *x = &a->walker, *y = &b->walker;

	PROMISED(x->state == y->state && x->messages == y->messages && x->errors == y->errors);
	PROMISED(x->named == y->named && x->mixed == y->mixed && x->special == y->special);
	PROMISED(memcmp(x->name, y->name, 16) == 0 && memcmp(x->error, y->error, 16) == 0);
	PROMISED(x->state == RESP_LOST || (x->skip == y->skip && x->left == y->left && a->carried == b->carried));
}

/* Transfer by transfer, as a server gets commands; the first may have been walked before it was known what they are. */
static void by_transfers(const __u8 *data, __u32 size, int requests, int late)
{
	struct side quick = {}, slow = {};
	__u32 position = 0, at = 1;

	while (position < size) {
		__u32 length = 1 + (data[at++ % size] & 0x7f);
		int as = requests && !late;

		if (length > size - position)
			length = size - position;
		forget(&quick);
		forget(&slow);
		drive(&quick, data + position, length, 300, as, 1);
		drive(&slow, data + position, length, 300, as, 0);
		alike(&quick, &slow);
		late = 0;
		position += length;
	}
}

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	struct side whole = {}, cut = {}, slow = {};
	__u32 position = 0, at = 1;
	int requests;

	if (size < 2 || size > 1 << 16)
		return 0;
	requests = data++[0] & 1; /* and what begins behind it is a stream */
	size--;
	drive(&whole, data, size, RESP_MASK - RESP_CARRY_MAX, requests, 1);
	drive(&slow, data, size, RESP_MASK - RESP_CARRY_MAX, requests, 0);
	while (position < size) {
		__u32 length = 1 + (data[at++ % size] & 0x1f);

		if (length > size - position)
			length = size - position;
		drive(&cut, data + position, length, 300, requests, 1);
		position += length;
	}
	alike(&whole, &slow);
	by_transfers(data, size, requests, 0);
	by_transfers(data, size, requests, 1);
	PROMISED((whole.walker.state == RESP_LOST) == (cut.walker.state == RESP_LOST));
	PROMISED(whole.walker.messages == cut.walker.messages && whole.walker.errors == cut.walker.errors);
	PROMISED(whole.walker.mixed == cut.walker.mixed && whole.walker.named == cut.walker.named);
	PROMISED(memcmp(whole.walker.name, cut.walker.name, 16) == 0);
	if (whole.walker.state != RESP_LOST)
		PROMISED(whole.walker.skip == cut.walker.skip && whole.walker.left == cut.walker.left);
	return 0;
}
