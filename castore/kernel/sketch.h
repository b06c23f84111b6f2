/* Sketches: three numbers per chunk, of which similar chunks are likely to share at least one. */
#ifndef CASTORE_SKETCH_H
#define CASTORE_SKETCH_H

#include <stddef.h>
#include <stdint.h>

#define SKETCH_FEATURES 12
#define SKETCH_SUPER 3

/*
 * The samples of a chunk are its gear hashes below `limit`.  Feature j is the
 * maximum of mul[j] * sample + add[j] over all samples.  Super-feature s is
 * hashed from the s-th third of the features.  The rule must be secret, or a
 * sketch would fingerprint the content.
 */
struct sketch_rule {
	uint64_t limit;
	uint64_t mul[SKETCH_FEATURES];
	uint64_t add[SKETCH_FEATURES];
	uint64_t gear[256];
};

/*
 * Write the super-features of the chunks buf[spans[2i] .. spans[2i + 1]) to
 * out[3i .. 3i + 3), and zeros for a chunk that is too short or too monotonous.
 */
void sketch_chunks(const struct sketch_rule *rule, const uint8_t *buf,
    const uint32_t *spans, size_t count, uint32_t *out);

#endif
