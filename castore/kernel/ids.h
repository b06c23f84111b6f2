/*
 * The hash-table slot of an id.  Ids are keyed hashes, but an attacker may choose those in a hostile store.
 * Every process hashes them with its own random seed, so an attacker cannot choose ids that collide.
 */
#ifndef CASTORE_IDS_H
#define CASTORE_IDS_H

#include <stdint.h>
#include <string.h>

#define ID_SEED 4 /* words of a seed */

static inline uint64_t
id_fold(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return ((uint64_t)product ^ (uint64_t)(product >> 64));
}

/* Hash all 32 bytes of an id. */
static inline uint64_t
id_hash(const uint8_t *id, const uint64_t seed[ID_SEED])
{
	uint64_t w[4];

	memcpy(w, id, sizeof(w));
	return (id_fold(id_fold(w[0] ^ seed[0], w[1] ^ seed[1]) ^ seed[3], id_fold(w[2] ^ seed[2], w[3] ^ seed[3]) ^ seed[0]));
}

/* Return the slot of a hash in a table of `slots` slots. */
static inline uint64_t
id_slot(uint64_t hash, uint64_t slots)
{
	return ((uint64_t)(((unsigned __int128)hash * slots) >> 64));
}

#endif
