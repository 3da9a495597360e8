/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads conversations from stdin and writes what the kernel side makes of them to stdout.
 *
 * In: a byte 'B' with the direction that requests go in (a new connection), 'T' with a direction, a length as u32 and
 * the bytes (a transfer), 'E' with an error (the connection ends), '.' (tell the losses since the last time).
 * Out: each record as its length (u32) and its bytes; losses as length 0 and one u32 a reason.
 */
#include "host.h"

static void submitted(const void *record)
{
	const __u8 kind = *(const __u8 *)record;
	const __u32 length = kind == RECORD_HTTP      ? sizeof(struct http_record) :
			     kind == RECORD_HTTP_LONG ? sizeof(struct http_long_record) :
							sizeof(struct http_text_record);

	fwrite(&length, sizeof(length), 1, stdout);
	fwrite(record, length, 1, stdout);
}

int main(void)
{
	static struct connection c;
	int what;

	while ((what = getchar()) != EOF) {
		const __u32 nothing = 0;
		__u32 length;
		int argument;
		__u8 *bytes;

		if (what == '.') {
			fwrite(&nothing, sizeof(nothing), 1, stdout);
			for (int i = 0; i < LOSS_REASONS; i++) {
				const __u32 count = loss_counts[i];

				fwrite(&count, sizeof(count), 1, stdout);
			}
			memset(loss_counts, 0, sizeof(loss_counts));
			continue;
		}
		argument = getchar();
		if (what == 'B') {
			connection_begin(&c, argument & 1);
		} else if (what == 'E') {
			connection_end(&c, argument);
		} else if (what == 'T') {
			PROMISED(fread(&length, sizeof(length), 1, stdin) == 1);
			bytes = malloc(length); /* of exactly that size: a read behind it is found */
			PROMISED(fread(bytes, 1, length, stdin) == length);
			transfer(&c, argument & 1, bytes, length);
			free(bytes);
		} else {
			return 2;
		}
	}
	return 0;
}
