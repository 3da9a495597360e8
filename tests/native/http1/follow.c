/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads conversations from stdin and writes what the kernel side makes of them to stdout.
 *
 * In: 'B' (a new connection), 'T' with a direction, a length as u32 and the bytes (a transfer), 'E' with the number of an
 * error, 0 for none (the connection is closed), '.' (tell the losses since the last time).
 * Out: each record as its length (u32) and its bytes; losses as length 0 and one u32 a reason.
 */
#include "host.h"

static void submitted(const void *record)
{
	const __u8 kind = *(const __u8 *)record;
	const __u32 length = kind == RECORD_HTTP      ? sizeof(struct http_record) :
			     kind == RECORD_HTTP_LONG ? sizeof(struct http_long_record) :
			     kind == RECORD_HTTP_TEXT ? sizeof(struct http_text_record) :
			     kind == RECORD_SEGMENT   ? sizeof(struct segment_record) :
							sizeof(struct segment_long_record);

	fwrite(&length, sizeof(length), 1, stdout);
	fwrite(record, length, 1, stdout);
}

int main(void)
{
	int what;

	connection_begin();

	while ((what = getchar()) != EOF) {
		const __u32 nothing = 0;
		__u32 length;
		int argument;
		__u8 *bytes;

		if (what == '.') {
			fwrite(&nothing, sizeof(nothing), 1, stdout);
			for (int i = 0; i < LOSS_REASONS; i++) {
				const __u32 count = (__u32)host_losses[i];

				fwrite(&count, sizeof(count), 1, stdout);
			}
			memset(host_losses, 0, sizeof(host_losses));
			continue;
		}
		if (what == 'B') {
			connection_begin();
			continue;
		}
		argument = getchar();
		if (what == 'E') {
			connection_end(argument);
		} else if (what == 'T') {
			PROMISED(fread(&length, sizeof(length), 1, stdin) == 1);
			bytes = malloc(length); /* of exactly that size: a read behind it is found */
			PROMISED(fread(bytes, 1, length, stdin) == length);
			transfer(argument & 1, bytes, length);
			free(bytes);
		} else {
			return 2;
		}
	}
	return 0;
}
