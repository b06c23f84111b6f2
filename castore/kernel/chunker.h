/* Content-defined cutting: where a byte stream is divided into chunks. */
#ifndef CASTORE_CUT_H
#define CASTORE_CUT_H

#include <stddef.h>
#include <stdint.h>

/*
 * The rule that divides a stream.  A border lies behind byte i of a chunk when
 * the gear hash of the 64 bytes that end at i is below a limit: `early` while
 * the chunk is shorter than `normal`, which is hard to meet, and `late` from
 * there on, which is easy (normalised chunking).  No chunk but a stream's last
 * is shorter than `min`; none is longer than `max`.
 *
 * 64 <= min <= normal <= max must hold.
 */
struct cut_rule {
	uint64_t early;
	uint64_t late;
	uint32_t min;
	uint32_t normal;
	uint32_t max;
	uint32_t reserved;
	uint64_t gear[256];
};

/*
 * Cut buf[0 .. len), which starts at a border.  Write the offset behind each
 * chunk found to ends[], at most `room` of them, and return their number.
 * Where `final` is zero the stream goes on behind buf, and the bytes behind the
 * last border are left to the next call, which is to be given them first; else
 * the last chunk ends at len.  How a stream is split over calls does not change
 * where it is cut.
 *
 * len must be below 2^32.
 */
__attribute__((visibility("default")))
size_t cut_scan(const struct cut_rule *rule, const uint8_t *buf, size_t len,
    int final, uint32_t *ends, size_t room);

/*
 * The same cut in two steps, of which the first does not need to know where
 * chunks begin, so that stretches of one stream can be searched side by side.
 *
 * cut_find: the positions in buf[from .. to) that a chunk may end behind, in
 * order, to hits[]: each as position << 1 | whether it may in an early place
 * too.  buf[first .. from) is what the stream has in front of it, 63 bytes of
 * it at most are read.  Returns their number, or CUT_TOO_MANY where room, or
 * CUT_MAX_HITS, do not suffice, or `early` is above `late`: cut_scan cuts any
 * content by any rule.  to < 2^31.
 *
 * cut_choose: of the hits those that end chunks, the first of which begins at
 * `start`, in front of `from` perhaps.  *next_hit is the first to look at, and
 * is moved on.  Otherwise as cut_scan.
 */
#define CUT_MAX_HITS 16384
#define CUT_TOO_MANY ((size_t)-1)

__attribute__((visibility("default")))
size_t cut_find(const struct cut_rule *rule, const uint8_t *buf, size_t first,
    size_t from, size_t to, uint32_t *hits, size_t room);

__attribute__((visibility("default")))
size_t cut_choose(const struct cut_rule *rule, const uint32_t *hits, size_t count,
    size_t *next_hit, size_t start, size_t to, int final, uint32_t *ends, size_t room);

#endif
