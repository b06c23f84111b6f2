/* Positions of a buffer at which the gear hash is below a limit.  Internal to the kernel. */
#ifndef CASTORE_GEAR_H
#define CASTORE_GEAR_H

#include <stddef.h>
#include <stdint.h>

/* Bytes that a 64-bit gear hash depends on: older ones are shifted out. */
#define GEAR_WINDOW 64

/* Stretches hashed in an interleaved loop: a single one waits two cycles per byte for its previous hash. */
#define GEAR_LANES 4

/* Return the hash of the GEAR_WINDOW - 1 bytes before buf[at], or of buf[first .. at) if that is shorter. */
static inline uint64_t
gear_before(const uint64_t gear[256], const uint8_t *buf, size_t first, size_t at)
{
	size_t i = at - first < GEAR_WINDOW - 1 ? first : at - (GEAR_WINDOW - 1);
	uint64_t h = 0;

	for (; i < at; i++)
		h = (h << 1) + gear[buf[i]];
	return (h);
}

/*
 * Find the positions in buf[from .. to) at which the hash of the 64 bytes that
 * end there is below `limit`.  The first windows begin in buf[first .. from).
 * Each lane writes its positions and hashes, in order, to its own part of at[]
 * and hash[], which has room / GEAR_LANES entries.  counts[] gets the number of
 * entries of each lane.  Returns -1 if a part is too small, else 0.  `hash` may
 * be NULL.
 */
static inline __attribute__((always_inline)) int
gear_low(const uint64_t gear[256], const uint8_t *buf, size_t first, size_t from, size_t to,
    uint64_t limit, uint32_t *at, uint64_t *hash, size_t room, size_t counts[GEAR_LANES])
{
	const size_t part = room / GEAR_LANES;
	const size_t q = (to - from) / GEAR_LANES;
	const uint8_t *p[GEAR_LANES];
	uint64_t h[GEAR_LANES];
	size_t n[GEAR_LANES], i, end;
	int k;

	for (k = 0; k < GEAR_LANES; k++) {
		n[k] = k * part;
		p[k] = buf + from + k * q;
		h[k] = gear_before(gear, buf, first, from + k * q);
	}
	/* A part is full at most one position before it would overflow: one slot is spare. */
	if (part < 2)
		return (-1);

#define STEP(k)								\
	h[k] = (h[k] << 1) + gear[p[k][i]];				\
	if (__builtin_expect(h[k] < limit, 0)) {			\
		if (n[k] == (size_t)(k + 1) * part)			\
			return (-1);					\
		at[n[k]] = (uint32_t)(p[k] + i - buf);			\
		if (hash != NULL)					\
			hash[n[k]] = h[k];				\
		n[k]++;							\
	}
	for (i = 0; i < q; i++) {
		STEP(0)
		STEP(1)
		STEP(2)
		STEP(3)
	}
	/* The remainder of the division belongs to the last lane. */
	for (end = to - from - 3 * q; i < end; i++) {
		STEP(3)
	}
#undef STEP
	for (k = 0; k < GEAR_LANES; k++)
		counts[k] = n[k] - k * part;
	return (0);
}

#endif
