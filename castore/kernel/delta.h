/* Deltas: a chunk told as copies out of its base, and the bytes that are in none. */
#ifndef CASTORE_DELTA_H
#define CASTORE_DELTA_H

#include <stddef.h>
#include <stdint.h>

/*
 * Tell target[0 .. len) by base[0 .. base_len) in out[0 .. room), in the form
 * that FORMAT.md gives.  Returns the length of what was written, or 0 where
 * room does not suffice: the two are not alike.  Both lengths are below 2^31.
 */
__attribute__((visibility("default")))
size_t delta_encode(const uint8_t *base, size_t base_len, const uint8_t *target, size_t len,
    uint8_t *out, size_t room);

/*
 * Make out[0 .. len) of a base and a delta from it.  Returns 0, or -1 where
 * the delta is none of this base and length: it is damaged or hostile.
 */
__attribute__((visibility("default")))
int delta_apply(const uint8_t *base, size_t base_len, const uint8_t *delta, size_t delta_len,
    uint8_t *out, size_t len);

#endif
