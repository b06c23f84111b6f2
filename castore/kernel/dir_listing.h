/* Listing directories, comparing them with an earlier listing, and reading small files, with few system calls. */
#ifndef CASTORE_SCAN_H
#define CASTORE_SCAN_H

#include <stddef.h>
#include <stdint.h>

/* An entry of a listing.  Its name follows, padded with zeros to a multiple of 8 bytes.  Entries are sorted by name. */
struct scan_entry {
	uint64_t ino, dev, size;
	int64_t mtime, ctime; /* seconds since 1970 */
	uint64_t blocks, rdev;
	uint32_t mtime_ns, ctime_ns;
	uint32_t mode, uid, gid, nlink;
	uint32_t error; /* 0, errno of lstat, or SCAN_REPEATED; if not 0, all fields above are 0, but for the type in mode */
	uint32_t name_len;
};

/* The directory lists the name of the previous entry more than once.  lstat never fails with this number (EEXIST). */
#define SCAN_REPEATED 17u

/*
 * The record of a directory in a scan cache.  After it come the listing, one byte
 * (a mark) for each entry, zeros up to a multiple of 8 bytes, its streams, and the
 * records of those subdirectories that the scan entered, in the order of the listing.
 */
struct scan_record {
	uint64_t len; /* to the end of the last record below this one */
	uint64_t listing_len, entries;
	uint64_t flags;
	uint64_t streams_len; /* a multiple of 8; the kernel does not read them here */
	uint8_t summary[96]; /* of the directory; the kernel does not read it */
};

#define SCAN_DISTRUST 1u /* in flags: do not compare; list the directory again */

/* Marks. */
#define SCAN_ENTERED 1u      /* the entry is a directory that has a record below */
#define SCAN_OWN_STREAM 2u   /* a file with a stream of its own */
#define SCAN_WITH_XATTRS 4u  /* it has extended attributes, or some that could not be read */
#define SCAN_SPARSE 8u       /* a file with holes */
#define SCAN_BUNDLED 16u     /* a file in a small-file stream */
#define SCAN_DOUBTFUL 32u    /* a file that was read in another state than it was listed */
#define SCAN_EMPTY 64u       /* a small file that was opened and is empty */

/*
 * List the directory open as fd in out[0 .. room).  Returns the length of the
 * listing; if that is more than `room`, nothing was written.  Returns -errno if
 * the directory cannot be read.
 */
int64_t scan_list(int fd, uint8_t *out, size_t room);

/* Records [at .. end) that changed or were not compared.  If the first was listed, its listing follows in `text`. */
struct scan_change {
	uint64_t at, end;
	uint64_t len; /* of the present listing of the directory of the record at `at`, or SCAN_UNLISTED */
};

#define SCAN_UNLISTED UINT64_MAX

struct scan_changes {
	uint64_t count, text_len;
	struct scan_change *changes;
	uint8_t *text; /* their listings, concatenated */
};

/*
 * Compare the directory `name` of the one open as fd, and all below it, with the
 * records from cache[at] on.  *out gets the changes, with up to `most` bytes of
 * listings; the caller frees it with scan_forget.  Returns 0, or -1 if out of memory.
 */
int scan_differ(int fd, const char *name, const uint8_t *cache, uint64_t cache_len, uint64_t at, size_t most,
    struct scan_changes *out);

void scan_forget(struct scan_changes *changes);

#define SCAN_HAS_XATTRS 1u /* the file has extended attributes, or they cannot be listed */
#define SCAN_HAS_CONTENT 2u

/*
 * Read files of the directory open as fd into out[0 .. room), one after the other.
 * entries[0 .. count) are the offsets of their entries in its listing.  Stops before
 * the first file that differs from its entry, cannot be read completely, or does not
 * fit.  Returns the number of files read; *total gets the bytes of all, has[i] the
 * flags SCAN_HAS_* of file i.
 */
size_t scan_read(int fd, const uint8_t *listing, const uint64_t *entries, size_t count, uint8_t *out, size_t room,
    uint8_t *has, uint64_t *total);

/* Kinds of entries of a listing. */
#define SCAN_PLAIN 1u /* a small file with one name */
#define SCAN_SMALL 2u /* another small file */
#define SCAN_LARGE 3u /* another file, or one with holes */
#define SCAN_DIRECTORY 4u
#define SCAN_SPECIAL 5u
#define SCAN_FAILED 6u
#define SCAN_KEPT 7u       /* a small file whose content keeps its place; its entry is as listed */
#define SCAN_KEPT_OTHER 8u /* another small file whose content keeps its place */

/*
 * Classify the entries of a listing.  places[] gets their offsets and kinds[] their kinds; both have room for
 * len / sizeof(struct scan_entry).  A regular file of up to `small` bytes is small.  last[0] and last[1] get the
 * seconds and nanoseconds of the newest ctime; last[2] gets 1 if anything but a directory has several names, else
 * 0.  Returns the number of entries.
 */
size_t scan_survey(const uint8_t *listing, size_t len, uint64_t small, uint64_t *places, uint8_t *kinds, int64_t *last);

/* Make everything durable that was written to the file system of the file open as fd.  Returns 0 or errno. */
int scan_sync(int fd);

/* Return the f_type of statfs(2) for the file system of a path, or -1. */
int64_t scan_file_system(const char *path);

#endif
