/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* libFuzzer target: any bytes in any transfers, in both directions, with the ends of the connection anywhere. */
#include "host.h"

static void submitted(const void *record)
{
	const struct http_record *r = record;

	if (r->kind == RECORD_HTTP_TEXT) {
		PROMISED(((const struct http_text_record *)record)->text_length <= TEXT_RECORD_SIZE);
		return;
	}
	if (r->kind == RECORD_SEGMENT || r->kind == RECORD_SEGMENT_LONG) {
		const struct segment_record *s = record;

		PROMISED(s->captured_head + s->captured_tail <= s->length);
		PROMISED(s->captured_head + s->captured_tail <=
			 (s->kind == RECORD_SEGMENT ? sizeof(s->payload) :
						      sizeof(((struct segment_long_record *)0)->payload)));
		return;
	}
	PROMISED(r->kind == RECORD_HTTP || r->kind == RECORD_HTTP_LONG);
	PROMISED(r->text_length <= (r->kind == RECORD_HTTP ? HTTP_TEXT_SIZE : HTTP_LONG_TEXT_SIZE));
	PROMISED(r->status == 0 || (r->status >= 100 && r->status <= 999));
	PROMISED(r->flags & REQUEST_HALF || r->response_end_mono_ns >= r->response_start_mono_ns);
}

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	size_t at = 0;

	connection_begin();
	while (at + 2 <= size) {
		const __u8 control = data[at];
		size_t length = data[at + 1] * (control & 4 ? 16 : 1);

		at += 2;
		if ((control & 0xf8) == 0xf8) {
			connection_end(control & 1 ? ECONNRESET : control & 2 ? ETIMEDOUT : 0);
			connection_begin();
			continue;
		}
		if (length > size - at)
			length = size - at;
		if (length) {
			__u8 *bytes = malloc(length);

			memcpy(bytes, data + at, length);
			transfer(control & 1, bytes, (__u32)length);
			free(bytes);
		}
		at += length;
	}
	connection_end(0);
	return 0;
}
