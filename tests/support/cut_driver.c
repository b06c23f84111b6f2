/*
 * Runs cut_scan over random, empty, short and adversarial input in buffers of
 * exactly the right size, so that AddressSanitizer sees a byte too much, and
 * compares it with a reference that follows chunker.h byte by byte.  Prints the number
 * of streams that were cut.
 */
#include "chunker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long streams;

/* xorshift64*: Marsaglia, "Xorshift RNGs", 2003. */
static uint64_t
draw(void)
{
	static uint64_t state = 0x9e3779b97f4a7c15u;

	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (state * 0x2545f4914f6cdd1du);
}

static void
die(const char *what)
{
	fprintf(stderr, "stream %lu: %s\n", streams, what);
	exit(1);
}

static void *
exactly(size_t size)
{
	void *memory = malloc(size);

	if (memory == NULL && size != 0)
		die("no memory");
	return (memory);
}

/* Where the chunk that begins at buf ends, every hash computed from scratch; 0 if more bytes are needed. */
static size_t
twin_length(const struct cut_rule *rule, const uint8_t *buf, size_t len, int final)
{
	size_t i, k;

	for (i = rule->min - 1; i < len && i < rule->max; i++) {
		uint64_t hash = 0;

		for (k = 0; k < 64; k++)
			hash += rule->gear[buf[i - k]] << k;
		if (hash < (i < rule->normal ? rule->early : rule->late))
			return (i + 1);
	}
	if (len >= rule->max)
		return (rule->max);
	return (final ? len : 0);
}

static void
check(const struct cut_rule *rule, const uint8_t *data, size_t len, int final, size_t room)
{
	uint8_t *buf = len == 0 ? NULL : exactly(len);
	uint32_t *ends = room == 0 ? NULL : exactly(room * sizeof(*ends));
	size_t n, i, start = 0, length;

	if (len != 0)
		memcpy(buf, data, len);
	n = cut_scan(rule, buf, len, final, ends, room);
	streams++;
	if (n > room)
		die("more chunks than there is room for");
	for (i = 0; i < n; i++) {
		if (ends[i] <= start || ends[i] > len)
			die("an end out of order");
		if (ends[i] - start != twin_length(rule, buf + start, len - start, final))
			die("cut elsewhere than the reference");
		start = ends[i];
	}
	if (n < room && start < len) {
		length = twin_length(rule, buf + start, len - start, final);
		/* A chunk of exactly `min` may be left to the next call, where its border is found. */
		if (length != 0 && (final || len - start != rule->min))
			die("stopped early");
	}
	if (final && n < room && start != len)
		die("the last chunk does not end the stream");
	free(buf);
	free(ends);
}

static void
check_all(const struct cut_rule *rule, const uint8_t *data, size_t len)
{
	size_t enough = len / rule->min + 1;

	check(rule, data, len, 1, enough);
	check(rule, data, len, 0, enough);
	check(rule, data, len, 1, 0);
	check(rule, data, len, 1, 1);
	check(rule, data, len, 0, 3);
}

enum gear { RANDOM, ZEROS, ONES, ONE_WORD, GEARS };
enum content { NOISE, FLAT, PERIODIC, SPARSE, CONTENTS };

static void
fill_gear(struct cut_rule *rule, enum gear kind)
{
	int i;

	for (i = 0; i < 256; i++)
		rule->gear[i] = kind == RANDOM ? draw() : kind == ZEROS ? 0 : kind == ONES ? UINT64_MAX : (i == 0);
}

static void
fill(uint8_t *data, size_t len, enum content kind)
{
	size_t i;

	for (i = 0; i < len; i++)
		data[i] = kind == NOISE ? draw() >> 56 : kind == FLAT ? 0 : kind == PERIODIC ? i % 67 :
		    draw() % 97 == 0 ? 255 : 0;
}

static const uint32_t sizes[][3] = {
	{ 64, 64, 64 }, { 64, 64, 65 }, { 64, 65, 66 }, { 64, 214, 2048 }, { 65, 217, 2056 },
	{ 67, 71, 73 }, { 64, 2048, 2048 }, { 1024, 3414, 32768 }, { 100, 107, 4000 },
};
static const uint64_t limits[][2] = {
	{ UINT64_MAX / 1024, UINT64_MAX / 64 }, { 0, 0 }, { UINT64_MAX, UINT64_MAX },
	{ 0, UINT64_MAX }, { UINT64_MAX, 0 }, { 1, 1 },
};
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define LONGEST 20000

static void
check_rule(struct cut_rule *rule, uint8_t *data)
{
	size_t around[] = { 0, 1, 7, 8, 9, 63, 64, 65, rule->min - 1, rule->min, rule->min + 1, rule->min + 8,
	    rule->normal - 1, rule->normal, rule->normal + 1, rule->max - 1, rule->max, rule->max + 1,
	    2 * (size_t)rule->max + 3, draw() % LONGEST };
	size_t i;
	int content;

	for (content = 0; content < CONTENTS; content++) {
		fill(data, LONGEST, content);
		for (i = 0; i < LENGTH(around); i++)
			check_all(rule, data, around[i] < LONGEST ? around[i] : LONGEST);
	}
}

int
main(void)
{
	uint8_t *data = exactly(LONGEST);
	struct cut_rule *rule = exactly(sizeof(*rule));
	size_t size, limit;
	int gear;

	memset(rule, 0, sizeof(*rule));
	for (gear = 0; gear < GEARS; gear++) {
		fill_gear(rule, gear);
		for (size = 0; size < LENGTH(sizes); size++) {
			rule->min = sizes[size][0];
			rule->normal = sizes[size][1];
			rule->max = sizes[size][2];
			for (limit = 0; limit < LENGTH(limits); limit++) {
				rule->early = limits[limit][0];
				rule->late = limits[limit][1];
				check_rule(rule, data);
			}
		}
	}
	free(rule);
	free(data);
	printf("%lu streams\n", streams);
	return (0);
}
