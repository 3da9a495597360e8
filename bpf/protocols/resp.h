/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * RESP2 and RESP3: where each message of one direction of a Redis connection ends.  Counts them, exactly, however the
 * stream is cut into transfers; of commands it tells the name, of replies which are errors.
 * Pure functions over (state, bytes, length); compiled for BPF and, in tests/native, for the host.
 *
 * How to drive it, for each window of a transfer: put what was carried before the new bytes, set position to 0 and end to
 * the number of bytes, call resp_step() until it gives something else than RESP_MORE.  What stands behind position is
 * carried (RESP_PARTIAL) or does not matter.  Strings are stepped over by their length: their bytes need not be there.
 *
 * A message that is framed like one before it, in a pipeline or in another transfer, is recognised by comparing a few words
 * (resp_repeats); one whose strings have other lengths is passed value by value (resp_quick); what is neither, line by line
 * (resp_step).  resp_turn() does what fits.
 */
#pragma once

#define RESP_MASK 4095		 /* windows are smaller than this */
#define RESP_ROOM (RESP_MASK + 264) /* bytes of a window's buffer that may be read */
#define RESP_POINTS 6
#ifdef RESP_SHORT_STACK
#define RESP_REPEATS 4		 /* messages alike that are passed in one go */
#define RESP_VALUES 4		 /* and strings of one message */
#else
#define RESP_REPEATS 16
#define RESP_VALUES 8
#endif
#define RESP_LEFT_MAX (1U << 28) /* values of one message */
#define RESP_CARRY_MAX 48	 /* a number, its type and line end, and a name */

#ifndef RESP_INLINE
#define RESP_INLINE static inline __attribute__((always_inline, unused))
#endif

enum resp_state {
	RESP_START = 0, /* the next byte begins a message */
	RESP_NAME = 1,	/* the next value is the name of a command */
	RESP_VALUE = 2,
	RESP_LINE = 3,	/* in a line whose end is still to come */
	RESP_LOST = 4,
};

enum resp_result {
	RESP_END = 0,	  /* the window is used up */
	RESP_MORE = 1,
	RESP_PARTIAL = 2, /* what is left of it ends inside a line */
};

enum resp_special {
	RESP_TOLD = 1,	   /* what the command says changes how the connection is read: user space looks at it */
	RESP_UNPAIRED = 2, /* from here on messages come that answer nothing */
};

struct resp_walker {
	__u64 at;	/* offset in the stream of the next byte: what does not begin there cannot be followed */
	__u64 skip;	/* bytes of the string under way, its line end included */
	__u64 name[2];	/* of the newest command, upper case */
	__u64 error[2]; /* the first bytes of the first error since somebody cleared it */
	__u32 messages; /* that have ended */
	__u32 errors;	/* among them */
	__u32 left;	/* values of the message under way that are still to come */
	__u32 position; /* in the window */
	__u32 end;	/* valid bytes of the window */
	__u32 size;	/* of a message like the pattern; 0: there is none */
	__u32 start;	/* where the message that is taken as a pattern begins */
	__u8 state;	/* enum resp_state */
	__u8 silent;	/* the message under way was pushed */
	__u8 named;	/* a command was named since somebody cleared this */
	__u8 mixed;	/* and another one */
	__u8 special;	/* enum resp_special */
	__u8 unusual;	/* what `name` adds to it */
	__u8 points;
	__u8 learning;	/* the message under way becomes the pattern */
	__u8 misses;	/* messages of late that were not like the pattern, or are none themselves */
	__u8 command;	/* the pattern is a command, and `name` is its name */
	__u8 pad[6];
	__u8 offsets[8]; /* in the pattern, of the words that are compared: RESP_POINTS, and room for any masked index */
	__u64 words[8];
	__u64 masks[8];
};

RESP_INLINE __u64 resp_load8(const __u8 *bytes, __u32 at)
{
	return *(const __u64 *)(bytes + (at & RESP_MASK));
}

RESP_INLINE __u64 resp_first(__u32 count)
{
	return count >= 8 ? ~0ULL : (1ULL << (count * 8)) - 1;
}

/* Where the first CR stands in the word; 8 if there is none. */
RESP_INLINE __u32 resp_cr(__u64 word)
{
	__u64 x = word ^ 0x0d0d0d0d0d0d0d0dULL, found = (x - 0x0101010101010101ULL) & ~x & 0x8080808080808080ULL;

	if (!found)
		return 8;
	return (__u32)((((found - 1) & ~found & 0x8080808080808080ULL) >> 7) * 0x0101010101010101ULL >> 56);
}

/* a to z become A to Z, all other bytes stay. */
RESP_INLINE __u64 resp_upper(__u64 word)
{
	__u64 low = word & 0x7f7f7f7f7f7f7f7fULL;
	__u64 from_a = low + 0x1f1f1f1f1f1f1f1fULL, behind_z = low + 0x0505050505050505ULL;

	return word ^ ((from_a & ~behind_z & ~word & 0x8080808080808080ULL) >> 2);
}

/* The first `count` bytes as a decimal number, 1 to 7 of them; RESP_LEFT_MAX or more if it is none. */
RESP_INLINE __u32 resp_number(__u64 digits, __u32 count)
{
	__u64 mask = resp_first(count & 7), x = digits ^ (0x3030303030303030ULL);

	x &= mask;
	if (!mask || (x | (x + 0x7676767676767676ULL)) & mask & 0x8080808080808080ULL)
		return RESP_LEFT_MAX;
	x <<= 64 - 8 * (count & 7);
	x = (x * 10 + (x >> 8)) & 0x00ff00ff00ff00ffULL;
	x = (x * 100 + (x >> 16)) & 0x0000ffff0000ffffULL;
	return (__u32)(x * 10000 + (x >> 32));
}

#define RESP_WORD(a, b, c, d, e, f, g, h)                                                          \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |   \
	 (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)

/* The commands that redis.SPECIAL of user space lists. */
RESP_INLINE __u32 resp_special(__u64 name)
{
	if (name == RESP_WORD('S', 'E', 'L', 'E', 'C', 'T', 0, 0) ||
	    (name & resp_first(5)) == RESP_WORD('X', 'R', 'E', 'A', 'D', 0, 0, 0))
		return RESP_TOLD;
	if (name == RESP_WORD('S', 'U', 'B', 'S', 'C', 'R', 'I', 'B') ||
	    name == RESP_WORD('P', 'S', 'U', 'B', 'S', 'C', 'R', 'I') ||
	    name == RESP_WORD('S', 'S', 'U', 'B', 'S', 'C', 'R', 'I') ||
	    name == RESP_WORD('U', 'N', 'S', 'U', 'B', 'S', 'C', 'R') ||
	    name == RESP_WORD('P', 'U', 'N', 'S', 'U', 'B', 'S', 'C') ||
	    name == RESP_WORD('S', 'U', 'N', 'S', 'U', 'B', 'S', 'C') ||
	    name == RESP_WORD('M', 'O', 'N', 'I', 'T', 'O', 'R', 0) || name == RESP_WORD('S', 'Y', 'N', 'C', 0, 0, 0, 0) ||
	    name == RESP_WORD('P', 'S', 'Y', 'N', 'C', 0, 0, 0))
		return RESP_TOLD | RESP_UNPAIRED;
	if (name == RESP_WORD('C', 'L', 'I', 'E', 'N', 'T', 0, 0))
		return RESP_TOLD;
	return 0;
}

RESP_INLINE void resp_lose(struct resp_walker *w)
{
	w->state = RESP_LOST;
	w->size = 0;
	w->learning = 0;
}

/* The last byte of a message has passed. */
RESP_INLINE void resp_ended(struct resp_walker *w)
{
	if (w->learning) {
		w->learning = 0;
		w->size = w->silent ? 0 : w->position - w->start;
	}
	w->state = RESP_START;
	if (!w->silent)
		w->messages++;
	w->silent = 0;
}

/* Behind a line, or behind the string that it announced. */
RESP_INLINE int resp_pass(struct resp_walker *w, __u32 position)
{
	__u32 rest = w->end - position;

	if (position > w->end)
		rest = 0;
	if (w->skip > rest) {
		w->skip -= rest;
		w->position = w->end;
		w->learning = 0;
		return RESP_END;
	}
	w->position = position + (__u32)w->skip;
	w->skip = 0;
	if (!w->left)
		resp_ended(w);
	return w->position < w->end ? RESP_MORE : RESP_END;
}

/* What to compare in order to recognise a message like this one. */
RESP_INLINE void resp_point(struct resp_walker *w, __u32 position, __u64 word, __u32 count)
{
	__u32 k = w->points;

	if (!w->learning)
		return;
	if (k >= RESP_POINTS || position - w->start > 0xff) {
		w->learning = 0;
		return;
	}
	asm volatile("" : "+r"(k)); /* or the mask, which verifiers want to see, goes */
	w->offsets[k & 7] = position - w->start;
	w->masks[k & 7] = resp_first(count);
	w->words[k & 7] = word & resp_first(count);
	w->points = k + 1;
}

/* Whether the message at position is framed otherwise than the pattern, or named otherwise. */
RESP_INLINE int resp_differs(const struct resp_walker *w, const __u8 *bytes, __u32 position, __u32 points)
{
	const __u8 *at = bytes + (position & RESP_MASK);

#define RESP_POINT_DIFFERS(k) ((*(const __u64 *)(at + w->offsets[k]) & w->masks[k]) != w->words[k])
#ifdef RESP_SHORT_STACK
#pragma clang loop unroll(disable)
	for (__u32 k = 0; k < RESP_POINTS && k < points; k++)
		if (RESP_POINT_DIFFERS(k))
			return 1;
	return 0;
#else
	return RESP_POINT_DIFFERS(0) || (points > 1 && RESP_POINT_DIFFERS(1)) || (points > 2 && RESP_POINT_DIFFERS(2)) ||
	       (points > 3 && RESP_POINT_DIFFERS(3)) || (points > 4 && RESP_POINT_DIFFERS(4)) ||
	       (points > 5 && RESP_POINT_DIFFERS(5));
#endif
}

/* Whether a message or a value begins here, and none of its lines is to be learned. */
RESP_INLINE int resp_at_value(const struct resp_walker *w)
{
	return !w->skip && !w->learning && (w->state == RESP_START || w->state == RESP_VALUE);
}

/*
 * Between messages: those that are framed and, if they are commands, named like the pattern are passed.  Of what is not,
 * the next one may become the pattern: often at first, and now and then where all differ.  Gives 0.
 */
RESP_INLINE int resp_repeats(struct resp_walker *w, const __u8 *bytes, __u32 requests)
{
	__u32 position = *(volatile __u32 *)&w->position, size = w->size, end = w->end, points = w->points, n = 0;

	if (w->state != RESP_START || !resp_at_value(w))
		return 0;
	if (!size || size > RESP_MASK || w->command != requests)
		goto other;
	for (; n < RESP_REPEATS; n++) {
		if (position + size > end)
			goto passed;
		if (resp_differs(w, bytes, position, points))
			break;
		position += size;
	}
passed:
	if (n) {
		w->position = position;
		w->messages += n;
		w->named |= w->command;
		w->misses >>= 1;
	}
	if (n == RESP_REPEATS || position + size > end)
		return 0;
other:
	if (position >= end)
		return 0;
	w->misses++;
	if (w->misses > 2 && w->misses & 15)
		return 0;
	w->learning = 1;
	w->command = 0;
	w->points = 0;
	w->size = 0;
	return 0;
}

/* A name, in upper case. */
RESP_INLINE void resp_name(struct resp_walker *w, __u64 first, __u64 second)
{
	if (first != w->name[0] || second != w->name[1]) {
		w->mixed |= w->named;
		w->name[0] = first;
		w->name[1] = second;
		w->unusual = resp_special(first);
		w->size = 0;
	}
	w->named = 1;
	w->special |= w->unusual;
	if (w->unusual)
		w->learning = 0;
}

/* The name of a command, whose `length` bytes stand at `at`. */
RESP_INLINE int resp_named(struct resp_walker *w, const __u8 *bytes, __u32 at, __u32 length)
{
	__u64 second;

	if (length > 16) {
		w->mixed = 1; /* not told apart */
		w->learning = 0;
		return 1;
	}
	if (at + length > w->end)
		return 0;
	second = length > 8 ? resp_upper(resp_load8(bytes, at + 8) & resp_first(length - 8)) : 0;
	resp_name(w, resp_upper(resp_load8(bytes, at) & resp_first(length)), second);
	w->command = 1;
	return 1;
}

/* A line that is all there is of its value: +OK, -ERR, :1 ... */
RESP_INLINE int resp_simple(struct resp_walker *w, const __u8 *bytes, __u32 position, __u64 word, __u8 type)
{
	__u32 left = w->end - position, cr = resp_cr(word);

	if (w->state == RESP_START) {
		w->left = 1;
		w->start = position;
		if (type == '-') {
			w->errors++;
			w->learning = 0;
			if (!w->error[0]) {
				w->error[0] = word & resp_first(left);
				w->error[1] = left > 8 ? resp_load8(bytes, position + 8) & resp_first(left - 8) : 0;
			}
		}
	}
	w->left--;
	w->state = RESP_VALUE;
	if (cr < left && cr < 8) {
		resp_point(w, position, word, cr + 2);
		w->skip = 2;
		return resp_pass(w, position + cr);
	}
	w->state = RESP_LINE;
	w->learning = 0;
	w->position = position + (left < 8 ? left : 8);
	return left > 8 ? RESP_MORE : RESP_END;
}

/* One line or what is left of a string or line.  `requests`: these are commands. */
RESP_INLINE int resp_step(struct resp_walker *w, const __u8 *bytes, __u32 requests)
{
	__u32 position = *(volatile __u32 *)&w->position, left = w->end - position, cr, count = 0, at;
	__u64 word;
	__u8 type, is_null = 0;

	if (w->state == RESP_LOST || position > w->end)
		return RESP_END;
	if (w->skip)
		return resp_pass(w, position);
	if (!left)
		return RESP_END;
	word = resp_load8(bytes, position);
	type = word & 0xff;
	if (w->state == RESP_LINE) {
		cr = resp_cr(word);
		if (cr < left && cr < 8) {
			w->state = RESP_VALUE;
			w->skip = 2;
			return resp_pass(w, position + cr);
		}
		w->position = position + (left < 8 ? left : 8);
		return left > 8 ? RESP_MORE : RESP_END;
	}
	if (requests && type != (w->state == RESP_START ? '*' : '$')) {
		resp_lose(w); /* a command that was typed, or no command at all */
		return RESP_END;
	}
	if (type == '+' || type == '-' || type == ':' || type == '_' || type == '#' || type == ',' || type == '(')
		return resp_simple(w, bytes, position, word, type);
	if (type != '$' && type != '*' && type != '%' && type != '~' && type != '>' && type != '|' && type != '=' &&
	    type != '!') {
		resp_lose(w);
		return RESP_END;
	}
	/* a number */
	cr = resp_cr(word);
	if (left < 8 && cr >= left)
		return RESP_PARTIAL;
	if ((word >> 8 & 0xff) == '-') {
		is_null = 1;
		if (cr != 3 || (word >> 16 & 0xff) != '1')
			count = RESP_LEFT_MAX;
	} else {
		count = resp_number(word >> 8, cr - 1);
		if (cr == 8) {
			__u64 behind = resp_load8(bytes, position + 8);
			__u32 more = resp_cr(behind);

			cr = 8 + more;
			if (cr >= left && left < 16)
				return RESP_PARTIAL;
			if (more > 1) { /* 100 MB and more are no string that anybody sends */
				resp_lose(w);
				return RESP_END;
			}
			count = more ? count * 10 + resp_number(behind, 1) : count;
		}
	}
	at = cr + 2;
	if (at > left)
		return RESP_PARTIAL;
	if (count >= RESP_LEFT_MAX || (w->state != RESP_START && w->left >= RESP_LEFT_MAX) ||
	    (requests && (is_null || (!count && w->state != RESP_VALUE)))) {
		resp_lose(w);
		return RESP_END;
	}
	if (w->state == RESP_NAME && !resp_named(w, bytes, position + at, count))
		return RESP_PARTIAL;
	if (w->state == RESP_START) {
		w->left = 1;
		w->start = position;
		w->silent = type == '>';
		if (type == '!') {
			w->errors++;
			w->learning = 0;
		}
	}
	if (w->state == RESP_NAME) {
		resp_point(w, position, word, at + count);
		if (at + count > 8)
			resp_point(w, position + 8, resp_load8(bytes, position + 8), at + count - 8);
		if (at + count > 16)
			w->learning = 0;
	} else {
		resp_point(w, position, word, at);
		if (at > 8)
			w->learning = 0;
	}
	w->left--;
	if (type == '$' || type == '=' || type == '!') {
		w->state = RESP_VALUE;
		w->skip = is_null ? 0 : (__u64)count + 2;
	} else {
		w->state = requests ? RESP_NAME : RESP_VALUE;
		if (!is_null)
			w->left += type == '%' ? 2 * count : type == '|' ? 2 * count + 1 : count;
	}
	return resp_pass(w, position + at);
}

/*
 * The values of a message as most are, while they are whole: "*2\r\n$3\r\nGET\r\n", "$12\r\n" and strings of up to 999 bytes.
 * Gives 0 if there is none of these.
 */
RESP_INLINE int resp_quick(struct resp_walker *w, const __u8 *bytes, __u32 requests)
{
	__u32 position = *(volatile __u32 *)&w->position, end = w->end, left = w->left, before = position;
	__u64 word;

	if (!resp_at_value(w))
		return 0;
	if (w->state == RESP_START) {
		left = 1;
		if (requests) {
			__u32 values, length;
			__u64 name;

			word = resp_load8(bytes, position);
			if ((word & RESP_WORD(255, 0, 255, 255, 255, 0, 255, 255)) !=
			    RESP_WORD('*', 0, '\r', '\n', '$', 0, '\r', '\n'))
				return 0;
			values = (word >> 8 & 0xff) - '1';
			length = (word >> 40 & 0xff) - '0';
			if (values > 8 || length - 1 > 7 || position + length + 10 > end)
				return 0;
			name = resp_load8(bytes, position + 8) << (64 - 8 * length) >> (64 - 8 * length);
			if (name != w->name[0] || w->name[1] || !w->named || w->unusual)
				resp_name(w, resp_upper(name), 0);
			position += length + 10;
			left = values;
		}
	}
	for (int i = 0; i < RESP_VALUES && left; i++) {
		__u32 length, more;

		word = resp_load8(bytes, position);
		length = (word >> 8 & 0xff) - '0';
		if ((word & 0xff) != '$' || length > 9)
			break;
		word >>= 16;
		if ((word & 0xffff) == 0x0a0d) {
			length += 6;
		} else {
			more = (word & 0xff) - '0';
			if (more > 9)
				break;
			length = length * 10 + more;
			word >>= 8;
			if ((word & 0xffff) == 0x0a0d) {
				length += 7;
			} else {
				more = (word & 0xff) - '0';
				if (more > 9 || (word >> 8 & 0xffff) != 0x0a0d)
					break;
				length = length * 10 + more + 8;
			}
		}
		if (position + length > end)
			break;
		position += length;
		left--;
	}
	if (position == before)
		return 0;
	w->position = position;
	w->left = left;
	w->state = RESP_VALUE;
	if (!left)
		resp_ended(w);
	return 1;
}

/* Some of the window. */
RESP_INLINE int resp_turn(struct resp_walker *w, const __u8 *bytes, __u32 requests)
{
	resp_repeats(w, bytes, requests);
	if (w->position >= w->end)
		return RESP_END;
	if (resp_quick(w, bytes, requests))
		return w->position < w->end ? RESP_MORE : RESP_END;
	return resp_step(w, bytes, requests);
}
