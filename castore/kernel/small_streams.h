/*
 * The places of a directory's small files: in which of its small-file streams, and at which offset.
 *
 * A directory describes them by runs, three numbers each: count, stream, gap.  The next `count` small files, in order
 * of names, follow each other in a stream, from `gap` bytes after the previous small file in that stream on (or from
 * its beginning).  Without runs, all small files follow each other in stream 0.
 */
#ifndef CASTORE_SMALL_STREAMS_H
#define CASTORE_SMALL_STREAMS_H

#include <stddef.h>
#include <stdint.h>

#define SMALL_MAX_STREAMS 16u /* of one directory */
#define SMALL_NO_STREAM 255u  /* the file is in none */

/* Follows the small files of a directory in order. */
struct small_cursor {
	const uint64_t *runs; /* runs_len numbers, three for each run */
	uint64_t runs_len, at, left, stream;
	uint64_t ends[SMALL_MAX_STREAMS]; /* where the last small file so far of each stream ends */
};

void small_begin(struct small_cursor *cursor, const uint64_t *runs, size_t runs_len);

/* Get the stream and offset of the next small file, which has `size` bytes.  Returns 0, or -1 if the runs are not valid. */
int small_next(struct small_cursor *cursor, uint64_t size, uint32_t *stream, uint64_t *offset);

/* Whether the runs describe as many small files as there were.  Each stream must have one. */
int small_is_complete(const struct small_cursor *cursor);

/*
 * Encode the places of small files, in order of names, as runs: file i has sizes[i] bytes at offsets[i] of
 * streams[i]; those in SMALL_NO_STREAM are left out.  runs[] has room for 3 * count numbers.  Returns how many were
 * written, or SIZE_MAX if two files overlap or are not in order.  Returns 0 if no runs are needed.
 */
size_t small_encode(const uint8_t *streams, const uint64_t *offsets, const uint64_t *sizes, size_t count, uint64_t *runs);

/* The record of a directory in a scan cache, with the runs of its small files. */
struct small_before {
	const uint8_t *listing, *marks;
	const uint64_t *runs;
	uint64_t listing_len, entries, runs_len;
	int64_t since, since_ns; /* files that changed at or after this time may have changed again, unnoticed */
};

/*
 * Find the small files of a listing that are as the last scan stored them, and keep their places.  Entry i is at
 * places[i] of the listing, i < count, and of kinds[i], which becomes SCAN_KEPT if take[i] was set to ENTRY_AS_LISTED,
 * SCAN_KEPT_OTHER if the caller must make its entry.  marks[i] gets its marks, streams[i] and offsets[i] its place.
 * For another small file, former[i] and offsets[i] get the place of its earlier content, if the last scan had a file of
 * its name.
 * sizes[i] gets the size of each entry.  used has 2 * SMALL_MAX_STREAMS + 1 numbers: the bytes kept of each stream; those
 * of the small files that are not kept; and, of these, those whose entry is the same, by stream: they may have changed,
 * unnoticed.  Files in streams with drop[stream] set are not kept.  Returns the number of files kept, or SIZE_MAX if the
 * record is not valid.
 */
size_t small_keep(const struct small_before *before, const uint8_t *drop, const uint8_t *listing, const uint64_t *places, size_t count,
    uint8_t *kinds, uint8_t *take, uint8_t *marks, uint8_t *streams, uint8_t *former, uint64_t *offsets, uint64_t *sizes, uint64_t *used);

#endif
