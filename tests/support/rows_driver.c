/* Parses footers that are whole, and any others, sorts and merges rows, in buffers of exact length, under sanitizers. */
#include "driver.h"
#include "index_rows.h"

#include <stdio.h>
#include <string.h>

#define MOST 40

static void
put32(uint8_t *p, uint32_t value)
{
	p[0] = (uint8_t)value;
	p[1] = (uint8_t)(value >> 8);
	p[2] = (uint8_t)(value >> 16);
	p[3] = (uint8_t)(value >> 24);
}

/* An id among few: packs share them, and some begin with the same bytes. */
static void
put_id(uint8_t *p)
{
	unsigned which = draw() % 16;

	memset(p, (int)(which % 3), 32);
	p[31] = (uint8_t)which;
}

/* A footer that is whole, mostly. */
static uint8_t *
footer_of(size_t *len, size_t *count, size_t sessions, uint64_t *end)
{
	static const unsigned bases_of[6] = {0, 0, 1, 2, 3, 4};
	uint8_t text[2 + 16 * 3 + MOST * (48 + 128)], *p = text + 2 + 16 * sessions, *exact;
	size_t bases = 0, i;
	unsigned session = 0;

	memset(text, 0, sizeof(text));
	text[0] = (uint8_t)sessions;
	*count = draw() % MOST;
	*end = 32;
	for (i = 0; i < *count; i++, p += 48) {
		int again = i > 0 && p[47 - 48] >= 2 && draw() % 2;
		unsigned codec = again ? 2 + draw() % 4 : draw() % 6;
		uint32_t sealed = again ? 0 : 1 + draw() % 1000;

		if (!again)
			session = draw() % sessions;
		put_id(p);
		put32(p + 32, sealed);
		put32(p + 36, (uint32_t)draw() % ((UINT32_C(32) << 20) + 1)); /* longer ones are refused */
		memcpy(p + 40, again ? p + 40 - 48 : (const uint8_t *)&i, 4);
		p[44] = (uint8_t)session;
		p[46] = codec < 2 ? draw() % 2 : 0; /* nodes that are deltas are refused */
		p[47] = (uint8_t)codec;
		*end += sealed;
		bases += bases_of[codec];
	}
	for (i = 0; i < bases; i++, p += 32)
		put_id(p);
	*len = (size_t)(p - text);
	if (draw() % 3 == 0)
		for (i = draw() % 4; i > 0; i--)
			text[draw() % *len] = (uint8_t)draw();
	if (draw() % 4 == 0)
		*len -= draw() % (*len + 1);
	if (draw() % 8 == 0)
		*end -= draw() % (*end + 1);
	if (draw() % 8 == 0)
		*count = draw() % (2 * MOST);
	exact = exactly(*len);
	memcpy(exact, text, *len);
	return (exact);
}

/* Sort, merge with themselves in two runs, and look whether what comes out is in order. */
static void
order(const struct rows *rows, size_t stride)
{
	size_t count = rows->count, half = count ? draw() % (count + 1) : 0, runs_left = 2, room = 1 + draw() % 50, done = 0, got, i;
	uint8_t *first = exactly(half * stride), *second = exactly((count - half) * stride), *out = exactly(room * stride);
	uint64_t *pairs = exactly(32 * (count ? count : 1));
	uint8_t last[ROW_KEY];
	struct rows_run runs[2];

	rows_sort(rows->rows, stride, half, first, pairs);
	rows_sort(rows->rows + half * stride, stride, count - half, second, pairs);
	runs[0].at = first;
	runs[0].end = first + half * stride;
	runs[1].at = second;
	runs[1].end = second + (count - half) * stride;
	while (runs_left > 0) {
		got = rows_merge(runs, &runs_left, stride, out, room);
		for (i = 0; i < got; i++) {
			if (done + i > 0 && memcmp(last, out + i * stride, ROW_KEY) > 0)
				abort();
			memcpy(last, out + i * stride, ROW_KEY);
		}
		if (stride == ROW_LEN && got > 0) {
			uint8_t *firsts = exactly(got * 59), *copies = exactly(got * 63);

			if (rows_part(out, got, draw() % 2 ? last : NULL, firsts, copies) > got)
				abort();
			free(firsts);
			free(copies);
		}
		done += got;
	}
	if (done != count)
		abort();
	free(first);
	free(second);
	free(out);
	free(pairs);
}

static void
weigh(const struct rows *rows)
{
	uint64_t *live = exactly(8 * 3);
	uint8_t *places = exactly(rows->count * ROW_PLACE), *flags = exactly(rows->count), *list = exactly(8);
	size_t i;

	memset(live, 0, 24);
	memcpy(list, "\0\0\0\0\1\0\0\0", 8);
	for (i = 0; i < rows->count; i++)
		memcpy(places + i * ROW_PLACE, rows->rows + i * ROW_LEN + ROW_KEY, ROW_PLACE);
	if (rows_listed(places, ROW_PLACE, rows->count, list, 2, flags) > rows->count)
		abort();
	rows_weigh(places, rows->count, flags, live, 3);
	free(live);
	free(places);
	free(flags);
	free(list);
}

int
main(void)
{
	const uint64_t seed[4] = {draw(), draw(), draw(), draw()};
	size_t round, whole = 0;

	for (round = 0; round < 20000; round++) {
		struct rows rows[3];
		size_t packs = 1 + draw() % 4, pack, i;

		for (i = 0; i < 3; i++) {
			rows[i].rows = exactly(4 * 2 * MOST * (i == 2 ? BASE_ROW_LEN : ROW_LEN));
			rows[i].count = 0;
		}
		for (pack = 0; pack < packs; pack++) {
			size_t sessions = 1 + draw() % 3, len, count;
			uint32_t *numbers = exactly(4 * sessions), *seen;
			uint64_t end, bytes, slots;
			struct rows_footer footer;
			uint8_t *text = footer_of(&len, &count, sessions, &end);

			for (i = 0; i < sessions; i++)
				numbers[i] = (uint32_t)draw();
			slots = draw() % 10 ? count + 1 + draw() % 90 : draw() % 90;
			seen = exactly(4 * slots);
			footer = (struct rows_footer){text, len, count, 32, end, (uint32_t)pack, (uint32_t)sessions, numbers};
			whole += rows_parse(&footer, seen, slots, seed, &rows[0], &rows[1], &rows[2], &bytes) == 0;
			free(seen);
			free(numbers);
			free(text);
		}
		order(&rows[0], ROW_LEN);
		order(&rows[1], ROW_LEN);
		order(&rows[2], BASE_ROW_LEN);
		weigh(&rows[0]);
		for (i = 0; i < 3; i++)
			free(rows[i].rows);
	}
	if (whole < 10000)
		abort();
	printf("%zu rounds\n", round);
	return (0);
}
