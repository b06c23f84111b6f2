/* Deltas: a chunk told as copies out of its base, and the bytes that are in none. */
#ifndef CASTORE_DELTA_H
#define CASTORE_DELTA_H

#include <stddef.h>
#include <stdint.h>

/* How many numbers delta_encode needs room for in `table`: too many for the stack of a thread. */
#define DELTA_TABLE (1 << 18)

/*
 * Tell target[0 .. len) by base[0 .. base_len) in out[0 .. room), in the form
 * that docs/format.md gives.  Returns the length of what was written, or 0 where
 * room does not suffice: the two are not alike.  Both lengths are below 2^31.
 */
__attribute__((visibility("default")))
size_t delta_encode(const uint8_t *base, size_t base_len, const uint8_t *target, size_t len,
    uint8_t *out, size_t room, uint32_t *table);

/*
 * Make out[0 .. len) of a base and a delta from it.  Returns 0, or -1 where
 * the delta is none of this base and length: it is damaged or hostile.
 */
__attribute__((visibility("default")))
int delta_apply(const uint8_t *base, size_t base_len, const uint8_t *delta, size_t delta_len,
    uint8_t *out, size_t len);

/*
 * Make out[0 .. len) of a base and of count deltas, the first from the base, each
 * other from what the one before makes: lens[i] bytes, none of more than lens_max.
 * scratch has room for two times lens_max.  Returns 0, or -1 as delta_apply does.
 */
__attribute__((visibility("default")))
int delta_apply_all(const uint8_t *base, size_t base_len, const uint8_t *const *deltas, const size_t *delta_lens,
    const size_t *lens, size_t count, size_t lens_max, uint8_t *scratch, uint8_t *out);

/*
 * Part deltas, which lie one behind the other, each of lengths[0 .. count), into
 * the four streams of a group, as docs/format.md gives them.  Each has out + its number
 * * room, and room is for all the deltas and a byte each; its length goes to sizes.
 * Returns 0, or -1 where one is no delta that delta_encode makes.
 */
__attribute__((visibility("default")))
int delta_part(const uint8_t *in, const uint32_t *lengths, size_t count, uint8_t *out, size_t room,
    size_t sizes[4]);

/*
 * Join the streams of a group, which lie one behind the other, to deltas again,
 * one behind the other in out, which has room for all four and for the first once
 * more; their lengths go to lengths[0 .. max).  Returns how many they are, or -1
 * where the streams hold something else.
 */
__attribute__((visibility("default")))
int delta_join(const uint8_t *in, const size_t sizes[4], uint8_t *out, uint32_t *lengths, size_t max);

#endif
