/*
 * The rows of an index: built from the footers of packs, sorted and merged.
 *
 * Row of a record: id (32) | number of its pack (u32, big-endian) | location (27), as the index stores it | 0.
 * Row of bases: id (32) | number of the pack (u32, big-endian) | count (u32) | ids of that many bases, padded
 * with zeros.  Rows are sorted by their first ROW_KEY bytes, which are unique among the rows of a kind.
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

/* A buffer of rows, and the number of rows in it. */
struct rows {
	uint8_t *rows;
	uint64_t count;
};

/* The footer of a pack, as docs/format.md specifies it. */
struct rows_footer {
	const uint8_t *text;
	uint64_t len;
	uint64_t count;           /* of entries */
	uint64_t begin, end;      /* of the records in the pack */
	uint32_t pack;            /* its number */
	uint32_t session_count;
	const uint32_t *sessions; /* the index's numbers of the sessions in its table */
};

/*
 * Append the rows of a pack.  Each of the three buffers has room for `count` more rows.  seen[0 .. slots) is
 * scratch, slots > count.  seed is four random words.  If a pack has an id twice, the first entry is used.
 * *bytes gets the length of the records.  Returns 0.  Returns -1, and appends nothing, if the footer is not
 * well formed.
 */
int rows_parse(const struct rows_footer *footer, uint32_t *seen, uint64_t slots, const uint64_t *seed, struct rows *chunks, struct rows *nodes,
    struct rows *bases, uint64_t *bytes);

/* Sort `count` rows of `stride` bytes into out.  pairs: scratch of 4 * count words. */
void rows_sort(const uint8_t *rows, size_t stride, size_t count, uint8_t *out, uint64_t *pairs);

/* Sorted rows that are not merged yet. */
struct rows_run {
	const uint8_t *at, *end;
};

/*
 * Merge runs into out, up to `room` rows.  Returns the number of rows merged.  runs[0 .. *count) then has the
 * remaining rows.
 */
size_t rows_merge(struct rows_run *runs, size_t *count, size_t stride, uint8_t *out, size_t room);

/*
 * Divide sorted rows of records: the first row of each id is written to firsts as id | location, every other row
 * to copies as id | number | location.  before: the id of the preceding row, or NULL.  Returns the number of
 * rows written to firsts.
 */
size_t rows_part(const uint8_t *rows, size_t count, const uint8_t *before, uint8_t *firsts, uint8_t *copies);

/*
 * Look up `count` numbers of 4 bytes, one every `stride` bytes, in a sorted list.  flags[i] becomes 1 if number i
 * is in the list, else 0.  Numbers are compared as bytes.  Returns how many are in the list.
 */
size_t rows_listed(const uint8_t *numbers, size_t stride, size_t count, const uint8_t *list, size_t list_count, uint8_t *flags);

/*
 * Add the lengths of records to live[], indexed by the number of their pack, below `packs`.  The length of a record
 * with several members is divided equally among them.  values has `count` locations; those with chosen[i] == 0 are
 * skipped.
 */
void rows_weigh(const uint8_t *values, size_t count, const uint8_t *chosen, uint64_t *live, size_t packs);

#endif
