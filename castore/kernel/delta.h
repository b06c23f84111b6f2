/*
 * Deltas: a chunk encoded as copies from its base, and the literal bytes between them.
 *
 * A delta is a sequence of L, literals, C, M: L bytes of the chunk that are in the delta, then C bytes copied
 * from the base, from where the last copy ended (at first from 0) moved by M.  It ends after the literals that
 * complete the chunk, even if their L is 0: no C and M follow.  L, C and M are numbers as in docs/format.md,
 * which specifies how a group of deltas is stored.
 */
#ifndef CASTORE_DELTA_H
#define CASTORE_DELTA_H

#include <stddef.h>
#include <stdint.h>

/* Entries that `table` must have in delta_encode: too many for the stack of a thread. */
#define DELTA_TABLE (1 << 18)

/*
 * Encode target[0 .. len) as a delta of base[0 .. base_len) to out[0 .. room).
 * Returns the length of the delta, or 0 if it exceeds `room`: the two are not
 * similar.  Both lengths are below 2^31.
 */
size_t delta_encode(const uint8_t *base, size_t base_len, const uint8_t *target, size_t len,
    uint8_t *out, size_t room, uint32_t *table);

/*
 * Rebuild out[0 .. len) from a base and a delta.  Returns 0, or -1 if the delta
 * is not valid for this base and length: it is damaged or hostile.
 */
int delta_apply(const uint8_t *base, size_t base_len, const uint8_t *delta, size_t delta_len,
    uint8_t *out, size_t len);

/*
 * Apply `count` deltas in order: the first to the base, each other to the result
 * of the one before it.  The result of deltas[i] has lens[i] bytes, at most
 * lens_max.  out gets the last result.  scratch has 2 * lens_max bytes.  Returns
 * 0, or -1 as delta_apply does.
 */
int delta_apply_all(const uint8_t *base, size_t base_len, const uint8_t *const *deltas, const size_t *delta_lens,
    const size_t *lens, size_t count, size_t lens_max, uint8_t *scratch, uint8_t *out);

/*
 * Divide `count` concatenated deltas, of lengths[0 .. count) bytes, into the four
 * streams of a delta group that docs/format.md specifies.  Stream i is written to
 * out + i * room and its length to sizes[i].  `room` must be the length of all
 * deltas plus one byte for each.  Returns 0, or -1 if one of them is not a delta
 * that delta_encode makes.
 */
int delta_part(const uint8_t *in, const uint32_t *lengths, size_t count, uint8_t *out, size_t room,
    size_t sizes[4]);

/*
 * Rebuild the deltas of a group from its four concatenated streams.  The deltas
 * are written to out one after the other, and their lengths to lengths[0 .. max).
 * out has the size of all four streams plus that of the first.  Returns the number
 * of deltas, or -1 if the streams are not those of a group.
 */
int delta_join(const uint8_t *in, const size_t sizes[4], uint8_t *out, uint32_t *lengths, size_t max);

#endif
