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

#endif
