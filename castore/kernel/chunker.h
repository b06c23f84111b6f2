/* Content-defined chunking: where a byte stream is divided into chunks. */
#ifndef CASTORE_CUT_H
#define CASTORE_CUT_H

#include <stddef.h>
#include <stdint.h>

/*
 * The rule that divides a stream.  A chunk ends after its byte i if the gear
 * hash of the 64 bytes that end at i is below a limit.  The limit is `early`,
 * which few hashes meet, while the chunk is shorter than `normal`; from there
 * on it is `late`, which many meet (normalised chunking).  Only the last chunk
 * of a stream may be shorter than `min`; no chunk is longer than `max`.
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
 * Cut buf[0 .. len), which starts at a border.  Write the end offset of each
 * chunk to ends[], at most `room` of them, and return their number.  If `final`
 * is zero, the stream continues after buf: the caller must pass the bytes after
 * the last border again, at the start of the next call.  If `final` is not
 * zero, the last chunk ends at len.  How a stream is split over calls does not
 * change where it is cut.
 *
 * len must be below 2^32.
 */
size_t cut_scan(const struct cut_rule *rule, const uint8_t *buf, size_t len,
    int final, uint32_t *ends, size_t room);

/*
 * The same cut in two steps.  The first step does not need to know where chunks
 * begin, so several threads can search stretches of one stream in parallel.
 *
 * cut_find writes to hits[], in order, the positions in buf[from .. to) after
 * which a chunk may end.  Each is encoded as position << 1 | 1 if the hash is
 * below `early` too, and as position << 1 if it is below `late` only.
 * buf[first .. from) is the preceding part of the stream; at most its last 63
 * bytes are read.  Returns the number of hits.  Returns CUT_TOO_MANY if they
 * exceed `room` or CUT_MAX_HITS, or if `early` is above `late`: the caller then
 * uses cut_scan, which cuts any content by any rule.  to < 2^31.
 *
 * cut_choose selects the hits that end chunks.  The first chunk begins at
 * `start`, which may be before `from`.  *next_hit is the index of the first hit
 * to look at; cut_choose advances it.  Otherwise as cut_scan.
 */
#define CUT_MAX_HITS 16384
#define CUT_TOO_MANY ((size_t)-1)

size_t cut_find(const struct cut_rule *rule, const uint8_t *buf, size_t first,
    size_t from, size_t to, uint32_t *hits, size_t room);

size_t cut_choose(const struct cut_rule *rule, const uint32_t *hits, size_t count,
    size_t *next_hit, size_t start, size_t to, int final, uint32_t *ends, size_t room);

#endif
