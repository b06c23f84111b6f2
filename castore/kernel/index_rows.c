/* See index_rows.h.  Ids are keyed hashes, evenly distributed: sorting by their first eight bytes sorts almost all rows. */
#include "index_rows.h"
#include "ids.h"

#include <stdlib.h>
#include <string.h>

#define ENTRY_LEN 48
#define DELTA 2
#define MAX_GROUP 255
#define MAX_PLAIN (UINT32_C(32) << 20)
#define KINDS 2
#define CODECS 6

static const uint8_t bases_of[CODECS] = {0, 0, 1, 2, 3, 4};

static uint32_t
get32(const uint8_t *p)
{
	return ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
}

static void
put32(uint8_t *p, uint32_t value)
{
	p[0] = (uint8_t)value;
	p[1] = (uint8_t)(value >> 8);
	p[2] = (uint8_t)(value >> 16);
	p[3] = (uint8_t)(value >> 24);
}

static uint64_t
prefix_of(const uint8_t *id)
{
	uint64_t value = 0;
	int i;

	for (i = 0; i < 8; i++)
		value = value << 8 | id[i];
	return (value);
}

/* An entry of a footer. */
struct entry {
	const uint8_t *id;
	uint32_t sealed, plain, counter;
	unsigned session, kind, codec;
};

static struct entry
entry_at(const uint8_t *p)
{
	struct entry e = {p, get32(p + 32), get32(p + 36), get32(p + 40), p[44] | (unsigned)p[45] << 8, p[46], p[47]};

	return (e);
}

/* Add the id of entry i to seen[], which stores indexes of entries plus 1.  Return whether the id was new. */
static int
is_fresh(uint32_t *seen, uint64_t slots, const uint64_t *seed, const uint8_t *entries, uint32_t i)
{
	const uint8_t *id = entries + (size_t)i * ENTRY_LEN;
	uint64_t at = id_slot(id_hash(id, seed), slots);

	while (seen[at] != 0) {
		if (memcmp(entries + (size_t)(seen[at] - 1) * ENTRY_LEN, id, 32) == 0)
			return (0);
		at = at + 1 == slots ? 0 : at + 1;
	}
	seen[at] = i + 1;
	return (1);
}

static void
put_key(uint8_t *row, const uint8_t *id, uint32_t pack)
{
	memcpy(row, id, 32);
	row[32] = (uint8_t)(pack >> 24);
	row[33] = (uint8_t)(pack >> 16);
	row[34] = (uint8_t)(pack >> 8);
	row[35] = (uint8_t)pack;
}

int
rows_parse(const struct rows_footer *f, uint32_t *seen, uint64_t slots, const uint64_t *seed, struct rows *chunks, struct rows *nodes,
    struct rows *bases, uint64_t *bytes)
{
	uint64_t table = 2 + (uint64_t)f->session_count * 16, base, offset = f->begin, i, group_end = 0;
	uint64_t chunk_count = chunks->count, node_count = nodes->count, base_count = bases->count;
	const uint8_t *entries;
	struct entry first = {NULL, 0, 0, 0, 0, 0, 0};
	unsigned member = 0, members = 1;

	if (f->begin > f->end || f->count > UINT32_MAX - 1 || slots <= f->count || table > f->len || (f->len - table) / ENTRY_LEN < f->count)
		return (-1);
	entries = f->text + table;
	base = table + f->count * ENTRY_LEN;
	memset(seen, 0, slots * sizeof(*seen));
	for (i = 0; i < f->count; i++) {
		struct entry e = entry_at(entries + i * ENTRY_LEN);
		unsigned below;

		if (e.session >= f->session_count || e.kind >= KINDS || e.codec >= (e.kind == 0 ? CODECS : DELTA) || e.plain > MAX_PLAIN)
			return (-1);
		below = bases_of[e.codec];
		if ((f->len - base) / 32 < below)
			return (-1);
		if (e.sealed != 0) {
			if (e.sealed > f->end - offset)
				return (-1);
			first = e;
			member = 0;
			for (group_end = i + 1; group_end < f->count && entry_at(entries + group_end * ENTRY_LEN).sealed == 0; group_end++)
				if (group_end - i >= MAX_GROUP)
					return (-1);
			members = (unsigned)(group_end - i);
		} else {
			/* The entry shares the record of the entry before it (a group). */
			if (first.id == NULL || first.codec < DELTA || e.codec < DELTA || e.counter != first.counter ||
			    e.session != first.session)
				return (-1);
			member++;
		}
		if (is_fresh(seen, slots, seed, entries, (uint32_t)i)) {
			uint8_t *row = e.kind == 0 ? chunks->rows + ROW_LEN * chunk_count++ : nodes->rows + ROW_LEN * node_count++;
			uint8_t *place = row + ROW_KEY;

			put_key(row, e.id, f->pack);
			put32(place, f->pack);
			put32(place + 4, (uint32_t)offset);
			put32(place + 8, first.sealed);
			put32(place + 12, e.plain);
			put32(place + 16, e.counter);
			put32(place + 20, f->sessions[e.session]);
			place[24] = (uint8_t)e.codec;
			place[25] = (uint8_t)member;
			place[26] = (uint8_t)members;
			place[27] = 0;
			if (below != 0) {
				row = bases->rows + BASE_ROW_LEN * base_count++;
				put_key(row, e.id, f->pack);
				put32(row + ROW_KEY, below);
				memcpy(row + ROW_KEY + 4, f->text + base, 32 * (size_t)below);
				memset(row + ROW_KEY + 4 + 32 * below, 0, 32 * (size_t)(ROW_BASES - below));
			}
		}
		base += 32 * (uint64_t)below;
		if (i + 1 == group_end)
			offset += first.sealed;
	}
	if (base != f->len)
		return (-1);
	chunks->count = chunk_count;
	nodes->count = node_count;
	bases->count = base_count;
	*bytes = offset - f->begin;
	return (0);
}

static int
compare(const void *a, const void *b)
{
	return (memcmp(*(const uint8_t *const *)a, *(const uint8_t *const *)b, ROW_KEY));
}

/* Sort the rows of pairs[0 .. count), which begin with the same eight bytes.  other: scratch of 2 * count words. */
static void
sort_same(const uint8_t *rows, size_t stride, uint64_t *pairs, size_t count, uint64_t *other)
{
	const uint8_t **found = (const uint8_t **)(void *)other;
	size_t i;

	for (i = 0; i < count; i++)
		found[i] = rows + pairs[2 * i + 1] * stride;
	qsort(found, count, sizeof(*found), compare);
	for (i = 0; i < count; i++)
		pairs[2 * i + 1] = (uint64_t)(found[i] - rows) / stride;
}

void
rows_sort(const uint8_t *rows, size_t stride, size_t count, uint8_t *out, uint64_t *pairs)
{
	uint64_t *from = pairs, *to = pairs + 2 * count, *other;
	size_t i, j;
	int shift;

	for (i = 0; i < count; i++) {
		from[2 * i] = prefix_of(rows + i * stride);
		from[2 * i + 1] = i;
	}
	/* Radix sort by eleven bits at a time, from the lowest.  With evenly distributed hashes no pass can be skipped. */
	for (shift = 0; shift < 64; shift += 11) {
		size_t ends[2048] = {0}, sum = 0;

		for (i = 0; i < count; i++)
			ends[from[2 * i] >> shift & 2047]++;
		for (i = 0; i < 2048; i++) {
			size_t here = ends[i];

			ends[i] = sum;
			sum += here;
		}
		for (i = 0; i < count; i++) {
			size_t at = ends[from[2 * i] >> shift & 2047]++;

			to[2 * at] = from[2 * i];
			to[2 * at + 1] = from[2 * i + 1];
		}
		other = from;
		from = to;
		to = other;
	}
	for (i = 0; i < count; i = j) {
		for (j = i + 1; j < count && from[2 * j] == from[2 * i]; j++)
			;
		if (j - i > 1)
			sort_same(rows, stride, from + 2 * i, j - i, to);
	}
	for (i = 0; i < count; i++)
		memcpy(out + i * stride, rows + from[2 * i + 1] * stride, stride);
}

/* Restore the heap order by moving the run at i down. */
static void
sink(struct rows_run *runs, size_t count, size_t i)
{
	struct rows_run run = runs[i];
	size_t below;

	while ((below = 2 * i + 1) < count) {
		if (below + 1 < count && memcmp(runs[below + 1].at, runs[below].at, ROW_KEY) < 0)
			below++;
		if (memcmp(run.at, runs[below].at, ROW_KEY) <= 0)
			break;
		runs[i] = runs[below];
		i = below;
	}
	runs[i] = run;
}

size_t
rows_merge(struct rows_run *runs, size_t *count, size_t stride, uint8_t *out, size_t room)
{
	size_t n = 0, done = 0, i;

	for (i = 0; i < *count; i++)
		if (runs[i].at != runs[i].end)
			runs[n++] = runs[i];
	for (i = n / 2; i > 0; i--)
		sink(runs, n, i - 1);
	while (n > 0 && done < room) {
		memcpy(out + stride * done++, runs[0].at, stride);
		runs[0].at += stride;
		if (runs[0].at == runs[0].end)
			runs[0] = runs[--n];
		if (n > 1)
			sink(runs, n, 0);
	}
	*count = n;
	return (done);
}

size_t
rows_part(const uint8_t *rows, size_t count, const uint8_t *before, uint8_t *firsts, uint8_t *copies)
{
	size_t first = 0, i;

	for (i = 0; i < count; i++) {
		const uint8_t *row = rows + ROW_LEN * i;

		if (before == NULL || memcmp(before, row, 32) != 0) {
			uint8_t *to = firsts + (32 + ROW_PLACE) * first++;

			memcpy(to, row, 32);
			memcpy(to + 32, row + ROW_KEY, ROW_PLACE);
		} else
			memcpy(copies + (ROW_KEY + ROW_PLACE) * (i - first), row, ROW_KEY + ROW_PLACE);
		before = row;
	}
	return (first);
}

size_t
rows_listed(const uint8_t *numbers, size_t stride, size_t count, const uint8_t *list, size_t list_count, uint8_t *flags)
{
	size_t found = 0, i;

	for (i = 0; i < count; i++) {
		const uint8_t *number = numbers + i * stride;
		size_t low = 0, high = list_count;

		while (low < high) {
			size_t middle = low + (high - low) / 2;

			if (memcmp(list + 4 * middle, number, 4) < 0)
				low = middle + 1;
			else
				high = middle;
		}
		flags[i] = low < list_count && memcmp(list + 4 * low, number, 4) == 0;
		found += flags[i];
	}
	return (found);
}

void
rows_weigh(const uint8_t *values, size_t count, const uint8_t *chosen, uint64_t *live, size_t packs)
{
	size_t i;

	for (i = 0; i < count; i++) {
		const uint8_t *place = values + ROW_PLACE * i;
		uint32_t pack = get32(place);

		if (chosen[i] && pack < packs)
			live[pack] += get32(place + 8) / (place[26] ? place[26] : 1);
	}
}
