/*
 * The rows of an index, made of the footers of packs, sorted and merged.
 *
 * A record's row: id (32) | number of its pack (u32, big-endian) | place (27), as the index keeps it | 0.
 * A row of bases: id (32) | number of the pack (u32, big-endian) | count (u32) | ids of so many bases, and
 * zeros.  Rows are sorted by their first ROW_KEY bytes, which no two of a kind share.
 */
#ifndef CASTORE_ROWS_H
#define CASTORE_ROWS_H

#include <stddef.h>
#include <stdint.h>

#define ROW_KEY 36
#define ROW_LEN 64
#define ROW_PLACE 27
#define ROW_BASES 4
#define BASE_ROW_LEN (ROW_KEY + 4 + 32 * ROW_BASES)

/* Where rows are put, and how many there are. */
struct rows {
	uint8_t *rows;
	uint64_t count;
};

/* A pack's footer, as docs/format.md says of it. */
struct rows_footer {
	const uint8_t *text;
	uint64_t len;
	uint64_t count;           /* of entries */
	uint64_t begin, end;      /* of the records in the pack */
	uint32_t pack;            /* its number */
	uint32_t session_count;
	const uint32_t *sessions; /* the numbers of those in its table */
};

/*
 * Append the rows of a pack: there is room for `count` of each kind behind those that are there.  seen[0 ..
 * slots): scratch, more than `count`; seed: four random words.  Of an id that a pack has twice, the first is taken.  Returns 0; -1,
 * and nothing is appended, where the footer is not well formed.  *bytes: of the records.
 */
__attribute__((visibility("default")))
int rows_parse(const struct rows_footer *footer, uint32_t *seen, uint64_t slots, const uint64_t *seed, struct rows *chunks, struct rows *nodes,
    struct rows *bases, uint64_t *bytes);

/* Sort `count` rows of `stride` bytes into out; pairs: scratch of 4 * count words. */
__attribute__((visibility("default")))
void rows_sort(const uint8_t *rows, size_t stride, size_t count, uint8_t *out, uint64_t *pairs);

/* Sorted rows that are still to be merged. */
struct rows_run {
	const uint8_t *at, *end;
};

/*
 * Merge runs into out, up to `room` rows.  Returns how many; what is left of the runs, in runs[0 .. *count).
 */
__attribute__((visibility("default")))
size_t rows_merge(struct rows_run *runs, size_t *count, size_t stride, uint8_t *out, size_t room);

/*
 * Part sorted records' rows: the first of each id becomes id | place in firsts, the others id | number | place
 * in copies.  before: the id of the row before, or NULL.  Returns how many are firsts.
 */
__attribute__((visibility("default")))
size_t rows_part(const uint8_t *rows, size_t count, const uint8_t *before, uint8_t *firsts, uint8_t *copies);

/*
 * Say which of `count` numbers of 4 bytes, one every `stride` bytes, are in a sorted list: told[i] becomes 1,
 * else 0.  Returns how many are.  They are compared as bytes.
 */
__attribute__((visibility("default")))
size_t rows_listed(const uint8_t *numbers, size_t stride, size_t count, const uint8_t *list, size_t list_count, uint8_t *told);

/*
 * Add the lengths of records, each parted among what it holds, to live[] at the numbers of their packs, of
 * which there are `packs`.  values: `count` places, of which those count that told[] has a 1 for.
 */
__attribute__((visibility("default")))
void rows_weigh(const uint8_t *values, size_t count, const uint8_t *told, uint64_t *live, size_t packs);

#endif
