/* Sketches: three numbers that similar chunks are likely to share. */
#ifndef CASTORE_SKETCH_H
#define CASTORE_SKETCH_H

#include <stddef.h>
#include <stdint.h>

#define SKETCH_FEATURES 12
#define SKETCH_SUPER 3

/*
 * Gear hashes below `limit` are a chunk's samples; feature j is the maximum of
 * mul[j] * sample + add[j] over them; super-feature s is made of the features
 * of its third.  All of it is secret, else a sketch would fingerprint content.
 */
struct sketch_rule {
	uint64_t limit;
	uint64_t mul[SKETCH_FEATURES];
	uint64_t add[SKETCH_FEATURES];
	uint64_t gear[256];
};

/*
 * Write the super-features of the chunks buf[spans[2i] .. spans[2i + 1]) to
 * out[3i .. 3i + 3).  A chunk too short or too monotonous to have any gets zeros.
 */
__attribute__((visibility("default")))
void sketch_chunks(const struct sketch_rule *rule, const uint8_t *buf,
    const uint32_t *spans, size_t count, uint32_t *out);

#endif
