/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads "<requests> <room>\n", then transfers "<length> <bytes as hex>\n"; prints behind each what the walker knows:
 * state, messages, errors, named, mixed, special, skip, left, carried bytes, name and first error as hex.
 */
#include "drive.h"

int main(void)
{
	static char line[1 << 18];
	struct side side = {};
	unsigned int requests, room;

	if (!fgets(line, sizeof(line), stdin) || sscanf(line, "%u %u", &requests, &room) != 2)
		return 2;
	while (fgets(line, sizeof(line), stdin)) {
		unsigned int length, value;
		int at = 0, used;
		__u8 *data;

		if (sscanf(line, "%u %n", &length, &at) != 1)
			return 2;
		data = malloc(length + 1);
		for (unsigned int i = 0; i < length; i++, at += used)
			if (sscanf(line + at, "%2x%n", &value, &used) != 1)
				return 2;
			else
				data[i] = value;
		drive(&side, data, length, room, requests, 1);
		free(data);
		printf("%u %u %u %u %u %u %llu %u %u ", side.walker.state, side.walker.messages, side.walker.errors,
		       side.walker.named, side.walker.mixed, side.walker.special, (unsigned long long)side.walker.skip,
		       side.walker.left, side.carried);
		for (int i = 0; i < 16; i++)
			printf("%02x", ((__u8 *)side.walker.name)[i]);
		putchar(' ');
		for (int i = 0; i < 16; i++)
			printf("%02x", ((__u8 *)side.walker.error)[i]);
		putchar('\n');
	}
	return 0;
}
