/*
 * Where an id goes in a hash table.  Ids are keyed hashes, but in a hostile store they are chosen: under a
 * factor that is random in every process nobody can choose ids that meet.
 */
#ifndef CASTORE_IDS_H
#define CASTORE_IDS_H

#include <stdint.h>
#include <string.h>

#define ID_SEED 4 /* words of a factor */

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

/* Where in a table of so many slots a hash goes. */
static inline uint64_t
id_slot(uint64_t hash, uint64_t slots)
{
	return ((uint64_t)(((unsigned __int128)hash * slots) >> 64));
}

#endif
