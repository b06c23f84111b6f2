/* Calls sketches, deltas, marks and the cut in two steps with any input, in buffers of exact length, under sanitizers. */
#include "chunker.h"
#include "delta.h"
#include "driver.h"
#include "id_set.h"
#include "sketch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t *table;

static uint8_t *
content(size_t len)
{
	uint8_t *p = exactly(len);
	size_t i;
	int kind = draw() % 4;

	for (i = 0; i < len; i++)
		p[i] = kind == 0 ? (uint8_t)(draw() >> 56) : kind == 1 ? 0 : kind == 2 ? (uint8_t)(i % 61) : (uint8_t)"abcd\n"[draw() % 5];
	return (p);
}

/* A copy with some bytes changed, and a piece taken out. */
static uint8_t *
similar(const uint8_t *from, size_t *len)
{
	size_t cut = *len > 8 ? draw() % (*len / 4) : 0, at = *len ? draw() % (*len - cut) : 0, i;
	uint8_t *p = exactly(*len - cut);

	memcpy(p, from, at);
	memcpy(p + at, from + at + cut, *len - cut - at);
	*len -= cut;
	for (i = draw() % 8; i > 0 && *len > 0; i--)
		p[draw() % *len] = (uint8_t)draw();
	return (p);
}

static void
deltas(void)
{
	size_t base_len = draw() % 9000, len = base_len, room, coded, i;
	uint8_t *base = content(base_len), *target = similar(base, &len), *out, *back, *copy;

	room = draw() % 3 ? 2 * len + 64 : draw() % (len + 1);
	out = exactly(room);
	coded = delta_encode(base, base_len, target, len, out, room, table);
	if (coded > room)
		abort();
	if (coded != 0) {
		back = exactly(len);
		copy = exactly(coded);
		memcpy(copy, out, coded);
		if (delta_apply(base, base_len, copy, coded, back, len) != 0 || memcmp(back, target, len) != 0)
			abort();
		for (i = 0; i < 30; i++) {
			copy[draw() % coded] = (uint8_t)draw();
			(void)delta_apply(base, base_len, copy, coded - draw() % coded, back, len);
		}
		free(copy);
		free(back);
	}
	free(out);
	free(target);
	free(base);
}

static void
groups(void)
{
	uint8_t *deltas[5], *joined, *out, *streams, *again;
	uint32_t lengths[5], *found;
	size_t count = draw() % 6, total = 0, room, sizes[4], damaged[4], sum, i, max = draw() % 4 ? 5 : draw() % 6;
	int coded;

	for (i = 0; i < count; i++) {
		size_t base_len = draw() % 3000, len = base_len, most;
		uint8_t *base = content(base_len), *target = similar(base, &len);

		most = 2 * len + 64;
		deltas[i] = exactly(most);
		lengths[i] = (uint32_t)delta_encode(base, base_len, target, len, deltas[i], most, table);
		if (lengths[i] == 0)
			abort();
		total += lengths[i];
		free(base);
		free(target);
	}
	joined = exactly(total);
	for (i = 0, sum = 0; i < count; sum += lengths[i++])
		memcpy(joined + sum, deltas[i], lengths[i]);
	room = total + count;
	out = exactly(4 * room);
	if (delta_part(joined, lengths, count, out, room, sizes) != 0)
		abort();
	for (i = 0, sum = 0; i < 4; i++) {
		if (sizes[i] > room)
			abort();
		sum += sizes[i];
	}
	streams = exactly(sum);
	for (i = 0, sum = 0; i < 4; sum += sizes[i++])
		memcpy(streams + sum, out + i * room, sizes[i]);
	again = exactly(sum + sizes[0]);
	found = exactly(max * sizeof(*found));
	coded = delta_join(streams, sizes, again, found, max);
	if (coded != (count > max ? -1 : (int)count) || (coded > 0 && memcmp(again, joined, total) != 0))
		abort();
	for (i = 0; i < 30 && sum > 0; i++) {
		size_t cut = draw() % 4, less;

		memcpy(damaged, sizes, sizeof(sizes));
		streams[draw() % sum] = (uint8_t)draw();
		less = damaged[cut] ? draw() % damaged[cut] : 0;
		if (draw() % 2) {
			damaged[cut] -= less;
			damaged[(cut + 1) % 4] += cut < 3 ? less : 0;
		}
		(void)delta_join(streams, damaged, again, found, max);
	}
	/* Any bytes as deltas. */
	for (i = 0; i < 10 && total > 0; i++) {
		joined[draw() % total] = (uint8_t)draw();
		(void)delta_part(joined, lengths, count, out, room, sizes);
	}
	for (i = 0; i < count; i++)
		free(deltas[i]);
	free(found);
	free(again);
	free(streams);
	free(out);
	free(joined);
}

static void
sketches(struct sketch_rule *rule)
{
	size_t len = draw() % 40000;
	uint8_t *data = content(len);
	uint32_t *spans = exactly(6 * sizeof(*spans)), *out = exactly(9 * sizeof(*out));
	size_t i;

	for (i = 0; i < 3; i++) {
		spans[2 * i] = (uint32_t)(draw() % (len + 1));
		spans[2 * i + 1] = spans[2 * i] + (uint32_t)(draw() % (len + 1 - spans[2 * i]));
	}
	rule->limit = draw() % 5 ? (uint64_t)1 << 57 : draw();
	sketch_chunks(rule, data, spans, 3, out);
	free(out);
	free(spans);
	free(data);
}

static void
cuts(struct cut_rule *rule)
{
	size_t len = draw() % 40000, at = draw() % (len + 1), room = draw() % 3000, next = 0, n, m, k, i;
	uint8_t *data = content(len);
	uint32_t *hits = exactly(room * sizeof(*hits)), *ends = exactly(1000 * sizeof(*ends));
	uint32_t *whole = exactly(1000 * sizeof(*whole));

	rule->min = 64 + draw() % 500;
	rule->normal = rule->min + draw() % 500;
	rule->max = rule->normal + draw() % 4000;
	rule->early = UINT64_MAX >> (draw() % 14);
	rule->late = UINT64_MAX >> (draw() % 14);
	n = cut_find(rule, data, at > 63 ? at - 63 : 0, at, len, hits, room);
	if (n != CUT_TOO_MANY) {
		if (n > room)
			abort();
		m = cut_choose(rule, hits, n, &next, at, len, 1, ends, 1000);
		k = cut_scan(rule, data + at, len - at, 1, whole, 1000);
		if (m != k)
			abort();
		for (i = 0; i < m; i++)
			if (ends[i] != whole[i] + at)
				abort();
	}
	free(whole);
	free(ends);
	free(hits);
	free(data);
}

/* A set of ids against a plain list of them; some are equal, or zeros. */
static void
marks(void)
{
	size_t stride = 32 + 8 * (draw() % 2), count = draw() % 60, slots = 64 + draw() % 40, room = 64 + slots, i, j, met;
	size_t fresh = 0, found_fresh;
	const uint64_t seed[4] = {draw(), draw(), draw(), draw()};
	uint64_t *table = exactly(slots * sizeof(*table)), *larger;
	uint8_t *ids = exactly(count * stride), *coded = exactly(count), *found = exactly(count);

	memset(table, 0, slots * sizeof(*table));
	for (i = 0; i < count * stride; i++)
		ids[i] = (uint8_t)draw();
	for (i = 0; i < count; i++)
		switch (draw() % 5) {
		case 0:
			memset(ids + i * stride, 0, 32);
			break;
		case 1:
			memset(ids + i * stride, 0xff, 32);
			break;
		case 2:
			memcpy(ids + i * stride, ids + (draw() % (i + 1)) * stride, 32);
			break;
		default:
			break;
		}
	marks_find(table, slots, seed, ids, stride, count, found);
	for (i = 0; i < count; i++)
		if (found[i] != 0)
			abort();
	found_fresh = marks_add(table, slots, seed, ids, stride, count, coded);
	for (i = 0; i < count; i++) {
		for (met = 0, j = 0; j < i; j++)
			met |= memcmp(ids + j * stride, ids + i * stride, 32) == 0;
		if (coded[i] != !met)
			abort();
		fresh += !met;
	}
	if (found_fresh != fresh || marks_add(table, slots, seed, ids, stride, count, coded) != 0)
		abort();
	larger = exactly(room * sizeof(*larger));
	memset(larger, 0, room * sizeof(*larger));
	marks_move(table, slots, larger, room);
	marks_find(larger, room, seed, ids, stride, count, found);
	for (i = 0; i < count; i++)
		if (found[i] != 1 || coded[i] != 0)
			abort();
	free(larger);
	free(found);
	free(coded);
	free(ids);
	free(table);
}

int
main(void)
{
	struct sketch_rule *sketch = exactly(sizeof(*sketch));

	table = exactly(DELTA_TABLE * sizeof(*table));
	struct cut_rule *cut = exactly(sizeof(*cut));
	size_t i;

	for (i = 0; i < 256; i++)
		sketch->gear[i] = cut->gear[i] = draw();
	for (i = 0; i < SKETCH_FEATURES; i++) {
		sketch->mul[i] = draw() | 1;
		sketch->add[i] = draw();
	}
	for (i = 0; i < 20000; i++) {
		deltas();
		groups();
		sketches(sketch);
		cuts(cut);
		marks();
	}
	free(cut);
	free(sketch);
	printf("%zu rounds\n", i);
	return (0);
}
