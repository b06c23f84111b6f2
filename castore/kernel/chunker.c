/* Gear hash: Xia et al., "Ddelta", 2014; normalised chunking: Xia et al., "FastCDC", 2016. */
#include "chunker.h"
#include "gear.h"

#include <assert.h>

/* The Python caller fills in this layout. */
static_assert(sizeof(struct cut_rule) == 32 + 256 * 8, "struct cut_rule is padded");

/*
 * Hash buf[from .. to).  Return the position after the first byte at which the
 * hash is below limit, or 0 if there is none.  The loop tests once per eight
 * bytes: its speed is bounded by the dependency chain of one shift and one
 * addition per byte, and with a test per byte compilers break that chain up.
 */
static size_t
first_below(const uint64_t gear[256], const uint8_t *buf, size_t from, size_t to, uint64_t limit, uint64_t *hash)
{
	uint64_t h = *hash;
	size_t i = from;

	for (; to - i >= 8; i += 8) {
		uint64_t h0 = (h << 1) + gear[buf[i]];
		uint64_t h1 = (h0 << 1) + gear[buf[i + 1]];
		uint64_t h2 = (h1 << 1) + gear[buf[i + 2]];
		uint64_t h3 = (h2 << 1) + gear[buf[i + 3]];
		uint64_t h4 = (h3 << 1) + gear[buf[i + 4]];
		uint64_t h5 = (h4 << 1) + gear[buf[i + 5]];
		uint64_t h6 = (h5 << 1) + gear[buf[i + 6]];
		uint64_t h7 = (h6 << 1) + gear[buf[i + 7]];

		if ((h0 < limit) | (h1 < limit) | (h2 < limit) | (h3 < limit) |
		    (h4 < limit) | (h5 < limit) | (h6 < limit) | (h7 < limit))
			break;
		h = h7;
	}
	for (; i < to; i++) {
		h = (h << 1) + gear[buf[i]];
		if (h < limit)
			return (i + 1);
	}
	*hash = h;
	return (0);
}

/* Return the length of the first chunk of buf[0 .. len), or 0 if more bytes are needed to find its end. */
static size_t
chunk_length(const struct cut_rule *rule, const uint8_t *buf, size_t len, int final)
{
	uint64_t h = 0;
	size_t i, early_end, late_end, length;

	if (len <= rule->min)
		return (final ? len : 0);

	/* Fill the window: the first border considered must depend on its 64 bytes only. */
	for (i = rule->min - GEAR_WINDOW; i < (size_t)rule->min - 1; i++)
		h = (h << 1) + rule->gear[buf[i]];

	early_end = len < rule->normal ? len : rule->normal;
	if ((length = first_below(rule->gear, buf, i, early_end, rule->early, &h)) != 0)
		return (length);
	late_end = len < rule->max ? len : rule->max;
	if ((length = first_below(rule->gear, buf, early_end, late_end, rule->late, &h)) != 0)
		return (length);

	if (len >= rule->max)
		return (rule->max);
	return (final ? len : 0);
}

size_t
cut_scan(const struct cut_rule *rule, const uint8_t *buf, size_t len, int final, uint32_t *ends, size_t room)
{
	size_t n = 0, start = 0, length;

	while (n < room && start < len) {
		length = chunk_length(rule, buf + start, len - start, final);
		if (length == 0)
			break;
		start += length;
		ends[n++] = (uint32_t)start;
	}
	return (n);
}

size_t
cut_find(const struct cut_rule *rule, const uint8_t *buf, size_t first, size_t from, size_t to, uint32_t *hits, size_t room)
{
	size_t counts[GEAR_LANES], n = 0, i;
	uint64_t hash[CUT_MAX_HITS];
	int k;

	if (room > CUT_MAX_HITS)
		room = CUT_MAX_HITS;
	/* A hash below `early` must be below `late` too. */
	if (rule->early > rule->late ||
	    gear_low(rule->gear, buf, first, from, to, rule->late, hits, hash, room, counts) != 0)
		return (CUT_TOO_MANY);
	for (k = 0; k < GEAR_LANES; k++) {
		size_t part = k * (room / GEAR_LANES);

		for (i = part; i < part + counts[k]; i++)
			hits[n++] = hits[i] << 1 | (hash[i] < rule->early);
	}
	return (n);
}

size_t
cut_choose(const struct cut_rule *rule, const uint32_t *hits, size_t count, size_t *next_hit,
    size_t start, size_t to, int final, uint32_t *ends, size_t room)
{
	size_t n = 0, i = *next_hit, end;

	while (n < room && start < to) {
		size_t limit = to - start < rule->max ? to : start + rule->max;

		/* hits[] has the position of the last byte of a window; the chunk ends after that byte. */
		while (i < count && (hits[i] >> 1) + 1 < start + rule->min)
			i++;
		while (i < count && (hits[i] >> 1) + 1 <= start + rule->normal && (hits[i] & 1) == 0)
			i++;
		end = i < count ? (hits[i] >> 1) + 1 : to;
		if (i < count && end <= limit)
			;
		else if (to - start >= rule->max)
			end = start + rule->max;
		else if (final)
			end = to;
		else
			break;
		start = end;
		ends[n++] = (uint32_t)end;
	}
	*next_hit = i;
	return (n);
}
