/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads one case a line, "<length> <datagram> <guess> <bytes as hex>", and prints the verdicts as a number.
 * Lines "agree <verdicts> <verdicts>" print the result of protocol_agree().  Built with sanitizers; every case has a
 * buffer of its own of exactly CLASSIFY_BYTES, so that a read behind it is found.
 */
#include <linux/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../bpf/records.h"
#include "../../../bpf/protocols/classify.h"

int main(void)
{
	static char line[65536];

	while (fgets(line, sizeof(line), stdin)) {
		unsigned long long first, second;
		unsigned int length, value, captured = 0;
		int datagram, guess, at = 0, used;
		__u8 *head;

		if (sscanf(line, "agree %llu %llu", &first, &second) == 2) {
			printf("%d %d\n", protocol_agree(first, second), protocol_possible(first, second));
			continue;
		}
		if (sscanf(line, "%u %d %d %n", &length, &datagram, &guess, &at) != 3)
			return 2;
		head = calloc(1, CLASSIFY_BYTES);
		while (captured < CLASSIFY_BYTES && sscanf(line + at, "%2x%n", &value, &used) == 1) {
			head[captured++] = value;
			at += used;
		}
		printf("%llu\n", (unsigned long long)classify_bytes(head, captured, length, datagram, guess));
		free(head);
	}
	return 0;
}
