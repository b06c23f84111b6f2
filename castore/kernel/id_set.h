/* A set of ids: each is kept as a hash of 8 bytes, in an open hash table that the caller owns. */
#ifndef CASTORE_MARKS_H
#define CASTORE_MARKS_H

#include <stddef.h>
#include <stdint.h>

/*
 * table[0 .. slots) begins as zeros; it must keep a free slot, so the caller
 * bounds what it adds.  seed: four random words, the same in each call about a table.  ids are `count` ids, one every `stride` bytes; told[i]
 * becomes 1 for an id that was not there before (marks_add), or that is there
 * (marks_find), else 0.  marks_add returns how many were not there before.
 */
__attribute__((visibility("default")))
size_t marks_add(uint64_t *table, uint64_t slots, const uint64_t *seed, const uint8_t *ids, size_t stride,
    size_t count, uint8_t *told);

__attribute__((visibility("default")))
void marks_find(const uint64_t *table, uint64_t slots, const uint64_t *seed, const uint8_t *ids, size_t stride,
    size_t count, uint8_t *told);

/* Put all that is in one table into another, larger one. */
__attribute__((visibility("default")))
void marks_move(const uint64_t *from, uint64_t from_slots, uint64_t *table, uint64_t slots);

#endif
