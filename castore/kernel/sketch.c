/* Finesse and Odess: Zhang et al., FAST 2019; Zou et al., doi 10.1145/3584663. */
#include "sketch.h"
#include "gear.h"

#include <assert.h>
#include <string.h>

static_assert(sizeof(struct sketch_rule) == 8 + 2 * 8 * SKETCH_FEATURES + 256 * 8,
    "struct sketch_rule is padded");

/* Samples of a chunk, at one position in 128: 512 KiB have 4096 on average, and 2 MiB would fill this. */
#define ROOM 16384

static void
sketch_one(const struct sketch_rule *rule, const uint8_t *buf, size_t len, uint32_t out[SKETCH_SUPER])
{
	uint32_t at[ROOM];
	uint64_t hash[ROOM], feature[SKETCH_FEATURES], h;
	size_t counts[GEAR_LANES], total = 0, i;
	int j, k;

	memset(out, 0, SKETCH_SUPER * sizeof(out[0]));
	if (len < 2 * GEAR_WINDOW || gear_low(rule->gear, buf, 0, GEAR_WINDOW - 1, len,
	    rule->limit, at, hash, ROOM, counts) != 0)
		return;
	memset(feature, 0, sizeof(feature));
	for (k = 0; k < GEAR_LANES; k++) {
		for (i = 0; i < counts[k]; i++) {
			h = hash[k * (ROOM / GEAR_LANES) + i];
			for (j = 0; j < SKETCH_FEATURES; j++) {
				uint64_t x = h * rule->mul[j] + rule->add[j];

				if (x > feature[j])
					feature[j] = x;
			}
		}
		total += counts[k];
	}
	/* With very few samples, different chunks would be taken for similar ones. */
	if (total < 4)
		return;
	for (k = 0; k < SKETCH_SUPER; k++) {
		h = 0;
		for (j = 0; j < SKETCH_FEATURES / SKETCH_SUPER; j++) {
			h ^= feature[k * (SKETCH_FEATURES / SKETCH_SUPER) + j];
			h *= 0x9E3779B97F4A7C15u;
			h ^= h >> 29;
		}
		out[k] = (uint32_t)(h >> 32) | 1;
	}
}

void
sketch_chunks(const struct sketch_rule *rule, const uint8_t *buf, const uint32_t *spans, size_t count, uint32_t *out)
{
	size_t i;

	for (i = 0; i < count; i++)
		sketch_one(rule, buf + spans[2 * i], spans[2 * i + 1] - spans[2 * i], out + SKETCH_SUPER * i);
}
