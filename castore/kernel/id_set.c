/* See id_set.h. */
#include "id_set.h"
#include "ids.h"

/* Zero marks a free slot, so an id whose hash is 0 is treated as one whose hash is 1. */
static uint64_t
key_of(const uint8_t *id, const uint64_t *seed)
{
	uint64_t key = id_hash(id, seed);

	return (key ? key : 1);
}

/* Return the slot of a key, or the free slot where it would be stored (linear probing). */
static uint64_t
slot_of(const uint64_t *table, uint64_t slots, uint64_t key)
{
	uint64_t at = id_slot(key, slots);

	while (table[at] != 0 && table[at] != key)
		at = at + 1 == slots ? 0 : at + 1;
	return (at);
}

size_t
marks_add(uint64_t *table, uint64_t slots, const uint64_t *seed, const uint8_t *ids, size_t stride, size_t count,
    uint8_t *flags)
{
	size_t fresh = 0, i;

	for (i = 0; i < count; i++) {
		uint64_t key = key_of(ids + i * stride, seed), at = slot_of(table, slots, key);

		flags[i] = table[at] == 0;
		fresh += flags[i];
		table[at] = key;
	}
	return (fresh);
}

void
marks_find(const uint64_t *table, uint64_t slots, const uint64_t *seed, const uint8_t *ids, size_t stride,
    size_t count, uint8_t *flags)
{
	size_t i;

	for (i = 0; i < count; i++)
		flags[i] = table[slot_of(table, slots, key_of(ids + i * stride, seed))] != 0;
}

void
marks_move(const uint64_t *from, uint64_t from_slots, uint64_t *table, uint64_t slots)
{
	uint64_t i;

	for (i = 0; i < from_slots; i++)
		if (from[i] != 0)
			table[slot_of(table, slots, from[i])] = from[i];
}
