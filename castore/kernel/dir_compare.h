/*
 * Comparing a live directory with a stored one.  Most files are plain and equal; the caller looks at the others only.
 * Plain files are those of dir_entries.h.  Directories (their own metadata) and symbolic links without extended
 * attributes are compared, too.
 */
#ifndef CASTORE_COMPARE_H
#define CASTORE_COMPARE_H

#include <stddef.h>
#include <stdint.h>

#include "dir_entries.h"

/* The state of a stored entry, as bits.  An entry without any is equal to the live file. */
#define COMPARE_MISSING 1u  /* no live file has its name */
#define COMPARE_LOOK 2u     /* it, or the live file, is not plain: the caller compares them */
#define COMPARE_CONTENT 4u  /* the live file has another size, time or content */
#define COMPARE_METADATA 8u /* the live file has another owner or mode */
#define COMPARE_UNREAD 16u  /* the content has not been compared yet */
#define COMPARE_XATTRS 32u  /* the live file has extended attributes, or they have not been listed yet */

/* What is known of a live entry, as bits: COMPARE_UNREAD, COMPARE_XATTRS, or this one. */
#define COMPARE_AS_STORED 64u /* the scan stored it as it is now, and it has no extended attributes */

/* Which marks of a scan cache (dir_listing.h) a file must have, and must not have, to be known. */
struct compare_marks {
	uint32_t any;     /* one of these */
	uint32_t content; /* none of these, for its content to be as stored */
	uint32_t bare;    /* none of these, to have no extended attributes */
	uint32_t stored;  /* whether the scan stored what the live directory is compared with */
	int64_t since;    /* a file with a ctime from this second on may have changed, unnoticed, after the scan */
};

/*
 * Find the entries of a listing that an earlier listing has, too, with all their metadata.  known[i] gets
 * COMPARE_UNREAD if the earlier scan knows the content of entry i, and COMPARE_XATTRS if it has no extended
 * attributes, else 0; and COMPARE_AS_STORED.  It has room for len / sizeof(struct scan_entry).  Returns 0, or SIZE_MAX if a listing is not valid.
 */
size_t compare_known(const uint8_t *listing, size_t len, const uint8_t *before, size_t before_len, const uint8_t *marks,
    size_t marks_len, const struct compare_marks *rule, uint8_t *known);

struct compare_rule {
	const struct entry_owners *owners; /* what restored files get */
	uint32_t mode;                     /* mask of the mode bits that are compared */
	uint32_t content;                  /* whether the content of files of the same size and time is compared */
	uint64_t looked_len;
	const uint8_t *looked; /* names of which the caller compares the files: sorted, with a NUL after each */
};

/*
 * Compare the entries of places[0 .. count), with the data that they were decoded from, with a listing, each as far as lstat describes it.  status[] gets
 * their states, live[] the offsets of the live entries of the same names, or UINT64_MAX.  extra[] gets the offsets of
 * all other live entries; it has room for len / sizeof(struct scan_entry).  known: as compare_known returns it, or NULL.
 * Returns the number of other live entries, or SIZE_MAX if the listing is not valid.
 */
size_t compare_match(const uint8_t *data, const struct entry_place *places, size_t count, const uint8_t *listing, size_t len,
    const uint8_t *known, const struct compare_rule *rule, uint8_t *status, uint64_t *live, uint64_t *extra);

/* A window of a small-file stream, which begins at `start`; it consists of chunks. */
struct compare_window {
	uint64_t stream; /* the number of the stream in its directory */
	uint64_t start, len;
	uint64_t chunks;
	const uint64_t *ends; /* where each chunk ends in the stream */
	uint64_t *got;        /* how many of its bytes were read */
	uint8_t *out;         /* `len` bytes */
};

/*
 * Read the live files of places[from .. count) whose content is not compared yet and is in a window of a small-file
 * stream to their place in that window, and list the extended attributes of these and other files.  Targets of links
 * are compared, too.  fd is the live directory, `listing` its listing.  A file that cannot be read, or is shorter than
 * it was listed, gets COMPARE_LOOK; also one that is read in several windows, and has changed since it was listed.
 * Returns the index of the first file that is not completely before the window's end, or `count`.  Files in other
 * streams are skipped.
 */
size_t compare_read(int fd, const uint8_t *data, const struct entry_place *places, size_t from, size_t count,
    const uint8_t *listing, size_t listing_len, const uint64_t *live, const struct compare_window *window, uint8_t *status);

/*
 * Compare the files of places[from .. to) that were read into a window with the stored bytes [at .. at + len) of its
 * stream.  A file that differs gets COMPARE_CONTENT instead of COMPARE_UNREAD.
 */
void compare_stored(const struct entry_place *places, size_t from, size_t to, const struct compare_window *window,
    const uint8_t *stored, uint64_t at, size_t len, uint8_t *status);

#endif
