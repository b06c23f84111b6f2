/*
 * The entries of a directory in a store, as docs/format.md says of them: made of a
 * listing, taken apart, and made files of, for all those that are plain files.  A plain file has
 * one name, no extended attributes, and lies in its directory's bundle or is empty.
 */
#ifndef CASTORE_ENTRIES_H
#define CASTORE_ENTRIES_H

#include <stddef.h>
#include <stdint.h>

#define ENTRY_LEFT_OUT 0u
#define ENTRY_AS_LISTED 1u
#define ENTRY_GIVEN 2u /* encoded by whoever calls */

/* Whose files are. */
struct entry_ids {
	uint32_t uid, gid;
};

/*
 * Encode the entries of a listing, each as its length and itself, into out[0 .. room): of each of
 * the `count` names, which places[i] are the offsets of, take[i] says whether and how.  given: the
 * encoded ones, in order.  ids[0 .. *ids_count): takes, of those that are encoded here, each owner
 * and group once; there is room for `count` of them.  Returns the length; SIZE_MAX where the room is
 * too small or there are fewer given than to be taken.
 */
__attribute__((visibility("default")))
size_t entries_join(const uint8_t *listing, const uint64_t *places, const uint8_t *take, size_t count, const uint8_t *given,
    size_t given_len, uint8_t *out, size_t room, struct entry_ids *ids, size_t *ids_count);

/* An entry taken apart. */
struct entry_place {
	uint64_t at, name; /* in the data: of the entry behind its length, and of its name */
	uint64_t size;
	uint64_t offset; /* of its content in the bundle */
	int64_t mtime;   /* seconds since 1970 */
	uint32_t mtime_ns, mode, uid, gid;
	uint32_t len, name_len;
	uint32_t plain, bundled;
};

/* Returns how many entries data[at .. len) holds, SIZE_MAX if it ends in the middle of one, or one is too short. */
__attribute__((visibility("default")))
size_t entries_count(const uint8_t *data, size_t len, size_t at);

/*
 * Take the entries of data[at .. len) apart, into places[0 .. count).  Returns how many
 * they are; SIZE_MAX where one is not encoded as entries_join would, or has a name that is none, or out of order.
 */
__attribute__((visibility("default")))
size_t entries_split(const uint8_t *data, size_t len, size_t at, struct entry_place *places, size_t count);

/*
 * Take the entries of data[at .. len) apart, and keep in places[0 .. count) only those that are not plain files,
 * and the plain ones whose name matches `pieces`: literal bytes that are separated by a NUL where the name may have
 * any bytes.  "a" is the name a, "a\0b" every name that begins with a and ends with b.  *bundled: the length of the
 * bundle.  Returns how many are kept; SIZE_MAX as entries_split.
 */
__attribute__((visibility("default")))
size_t entries_select(const uint8_t *data, size_t len, size_t at, const uint8_t *pieces, size_t pieces_len,
    struct entry_place *places, size_t count, uint64_t *bundled);

/* Whom the files of someone are given to. */
struct entry_owner {
	uint32_t stored, wanted;
};

struct entry_owners {
	uint32_t change; /* 0: files are whoever's who makes them */
	uint32_t mode;   /* what of a mode is allowed */
	uint64_t user_count, group_count;
	const struct entry_owner *users, *groups; /* those that are not whose number is stored, in order of that */
};

/*
 * Make files of those of places[from .. to) that are plain, in the directory open as fd, of what
 * bundle[0 .. bundle_len) has of them; it begins at `start` of the directory's.  Links are not followed, and
 * nothing is replaced.  Returns where it ended: `to`, or at the one that could not be made, which is not there or not ours.
 */
__attribute__((visibility("default")))
size_t entries_write(int fd, const uint8_t *data, const struct entry_place *places, size_t from, size_t to,
    const struct entry_owners *owners, const uint8_t *bundle, size_t bundle_len, uint64_t start);

#endif
