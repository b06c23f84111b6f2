/* A set of ids, stored as hashes of 8 bytes in an open-addressing hash table that the caller owns. */
#ifndef CASTORE_MARKS_H
#define CASTORE_MARKS_H

#include <stddef.h>
#include <stdint.h>

/*
 * table[0 .. slots) must be zeroed before its first use, and must always keep a
 * free slot: the caller bounds the number of ids that it adds.  seed is four
 * random words, the same in every call for one table.  ids has `count` ids, one
 * every `stride` bytes.
 *
 * marks_add sets flags[i] to 1 if id i was new, else to 0, and returns the number
 * of new ids.  marks_find sets flags[i] to 1 if the set contains id i, else to 0.
 */
size_t marks_add(uint64_t *table, uint64_t slots, const uint64_t *seed, const uint8_t *ids, size_t stride,
    size_t count, uint8_t *flags);

void marks_find(const uint64_t *table, uint64_t slots, const uint64_t *seed, const uint8_t *ids, size_t stride,
    size_t count, uint8_t *flags);

/* Copy the entries of one table to a larger one. */
void marks_move(const uint64_t *from, uint64_t from_slots, uint64_t *table, uint64_t slots);

#endif
