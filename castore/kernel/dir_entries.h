/*
 * The entries of a stored directory, as docs/format.md specifies them: encoding them from
 * a listing, decoding them, and creating the plain files among them.  A plain file has one
 * name and no extended attributes, and is empty or stored in a small-file stream of its directory (small_streams.h).
 */
#ifndef CASTORE_ENTRIES_H
#define CASTORE_ENTRIES_H

#include "small_streams.h"

#include <stddef.h>
#include <stdint.h>

#define ENTRY_LEFT_OUT 0u
#define ENTRY_AS_LISTED 1u
#define ENTRY_GIVEN 2u /* encoded by the caller */

/* The owner and group of a file. */
struct entry_ids {
	uint32_t uid, gid;
};

/*
 * Encode the entries of a listing to out[0 .. room), each with its length before it.  places[i] is the
 * offset of entry i in the listing, i < count.  take[i] is one of ENTRY_*.  `given` has the entries that
 * the caller encoded, in order.  ids[] gets each pair of owner and group of the entries encoded here once,
 * sorted; it has room for `count` of them, and *ids_count gets their number.  Returns the length of the output, or
 * SIZE_MAX if `room` is too small or `given` has fewer entries than take[] demands.
 */
size_t entries_join(const uint8_t *listing, const uint64_t *places, const uint8_t *take, size_t count, const uint8_t *given,
    size_t given_len, uint8_t *out, size_t room, struct entry_ids *ids, size_t *ids_count);

/* A decoded entry. */
struct entry_place {
	uint64_t at, name; /* offsets in the data: of the entry after its length, and of its name */
	uint64_t size;
	uint64_t offset; /* of its content, in its small-file stream */
	int64_t mtime;   /* seconds since 1970 */
	uint32_t mtime_ns, mode, uid, gid;
	uint32_t len, name_len;
	uint32_t plain, bundled;
	uint32_t stream;  /* the small-file stream with its content; 0 if it has none */
	uint32_t special; /* ENTRY_FOLDER, the length of a link's target, or 0 */
};

/* A directory without extended attributes.  A symbolic link without any has the length of its target: 1 to 255. */
#define ENTRY_FOLDER 256u

/* Return the number of entries in data[at .. len), or SIZE_MAX if one is truncated or too short. */
size_t entries_count(const uint8_t *data, size_t len, size_t at);

/*
 * Decode the entries of data[at .. len) to places[0 .. count).  runs: those of the directory, runs_len numbers.
 * ends[0 .. SMALL_MAX_STREAMS) gets where the last small file of each stream ends.  Returns the number of entries, or
 * SIZE_MAX if an entry is not encoded as entries_join does, has an invalid name, or is out of order, or if the runs are
 * not valid.
 */
size_t entries_split(const uint8_t *data, size_t len, size_t at, const uint64_t *runs, size_t runs_len,
    struct entry_place *places, size_t count, uint64_t *ends);

/*
 * Decode the entries of data[at .. len), and write to places[0 .. count) those that are not plain files and the
 * plain files whose names match `pieces`.  `pieces` are literal bytes, separated by a NUL where a name may have any
 * bytes: "a" matches the name a only, "a\0b" every name that begins with a and ends with b.  runs, ends: as for
 * entries_split.  Returns the number of entries written, or SIZE_MAX as entries_split does.
 */
size_t entries_select(const uint8_t *data, size_t len, size_t at, const uint64_t *runs, size_t runs_len,
    const uint8_t *pieces, size_t pieces_len, struct entry_place *places, size_t count, uint64_t *ends);

/* The owner or group that a restored file gets instead of the stored one. */
struct entry_owner {
	uint32_t stored, wanted;
};

struct entry_owners {
	uint32_t change; /* 0: files belong to the user that creates them */
	uint32_t mode;   /* mask of the mode bits that are set */
	uint64_t user_count, group_count;
	const struct entry_owner *users, *groups; /* numbers that differ from the stored ones, sorted by `stored` */
};

/* Return the number that a restored file gets instead of `stored`; owners[0 .. count) are sorted by `stored`. */
uint32_t entry_wanted(const struct entry_owner *owners, uint64_t count, uint32_t stored);

/*
 * Create the plain files of places[from .. to) whose content is in `stream`, in the directory open as fd; empty files
 * are in stream 0.  content[0 .. len) is the part of the stream that begins at `start`.  Symbolic links are not
 * followed, and no file is replaced.  Returns `to`, or the index of the first file that could not be created; that file
 * was removed, or is not ours.
 */
size_t entries_write(int fd, const uint8_t *data, const struct entry_place *places, size_t from, size_t to,
    const struct entry_owners *owners, uint32_t stream, const uint8_t *content, size_t len, uint64_t start);

#endif
