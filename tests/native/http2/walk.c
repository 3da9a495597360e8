/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Condenses one direction.  Input: a byte, 0 from the server, 1 from the client, 2 unknown beginning; then for each
 * transfer its length (u32, little endian; bit 31: went by unread, no bytes follow) and its bytes.  Output, for each:
 * length, kept length (u32), noteworthy (u8), kept bytes.
 */
#include "drive.h"

static void must_read(void *into, size_t size)
{
	if (fread(into, 1, size, stdin) != size)
		exit(2);
}

int main(void)
{
	struct http2_walker w = {};
	__u32 length;
	__u8 mode;

	must_read(&mode, 1);
	if (mode < 2)
		http2_start(&w, mode);
	while (fread(&length, sizeof(length), 1, stdin) == 1) {
		__u32 size = length & 0x7fffffff, used = 0;
		__u8 *bytes = malloc(size + 1), *kept = malloc(size + 1);

		if (length >> 31) {
			w.noteworthy = 0;
			http2_unseen(&w, size);
		} else {
			must_read(bytes, size);
			used = drive(&w, bytes, size, kept);
		}
		fwrite(&size, sizeof(size), 1, stdout);
		fwrite(&used, sizeof(used), 1, stdout);
		fwrite(&w.noteworthy, 1, 1, stdout);
		fwrite(kept, 1, used, stdout);
		free(bytes);
		free(kept);
	}
	return 0;
}
