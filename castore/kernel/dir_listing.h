/* Directories listed, compared with what they were, and their small files read: a system call each, no more. */
#ifndef CASTORE_SCAN_H
#define CASTORE_SCAN_H

#include <stddef.h>
#include <stdint.h>

/* One name of a listing; the name follows, and zeros up to a multiple of 8 bytes.  Listings are sorted by name. */
struct scan_entry {
	uint64_t ino, dev, size;
	int64_t mtime, ctime; /* seconds since 1970 */
	uint64_t blocks, rdev;
	uint32_t mtime_ns, ctime_ns;
	uint32_t mode, uid, gid, nlink;
	uint32_t error; /* errno of lstat, or SCAN_REPEATED; all above but the type in mode are 0 then */
	uint32_t name_len;
};

/* lstat never fails with it: the directory lists the name of the entry before more than once. */
#define SCAN_REPEATED 17u

/*
 * What a scan cache holds of a directory; its listing follows, then a byte an
 * entry, then zeros up to a multiple of 8 bytes, then the records of the
 * directories in it that were entered, in order.
 */
struct scan_record {
	uint64_t len; /* with all of this, to the end of the last record below it */
	uint64_t listing_len, entries;
	uint64_t flags;
	uint8_t told[96]; /* is not for the kernel */
};

#define SCAN_DISTRUST 1u /* in flags: compare no more, list it again */
#define SCAN_ENTERED 1u  /* in the byte of an entry: a directory whose record is below */

/*
 * List the directory open as fd in out[0 .. room).  Returns the length of the
 * listing; where it is more than room, nothing was written.  Returns -errno
 * where the directory cannot be read.
 */
__attribute__((visibility("default")))
int64_t scan_list(int fd, uint8_t *out, size_t room);

/* Of records [at .. end): they are not as they were, or were not looked at.  Then, if the first was: its listing. */
struct scan_change {
	uint64_t at, end;
	uint64_t len; /* of the listing of the record at `at`, as it is now */
};

#define SCAN_UNLISTED UINT64_MAX

struct scan_changes {
	uint64_t count, text_len;
	struct scan_change *changes;
	uint8_t *text; /* their listings, one behind the other */
};

/*
 * Compare the directory `name` in the one open as fd, and all below it, with the
 * records from cache[at] on.  out: takes what is not as it was, to be given to scan_forget; of listings
 * up to `most` bytes.  Returns 0, or -1 where there is no memory.
 */
__attribute__((visibility("default")))
int scan_differ(int fd, const char *name, const uint8_t *cache, uint64_t cache_len, uint64_t at, size_t most,
    struct scan_changes *out);

__attribute__((visibility("default")))
void scan_forget(struct scan_changes *changes);

#define SCAN_HAS_XATTRS 1u /* or they cannot be listed */
#define SCAN_HAS_CONTENT 2u

/*
 * Read files of the directory open as fd, which entries[0 .. count) are, offsets
 * in its listing, one behind the other into out[0 .. room).  Stops in front of the first that
 * is not as listed, or that is not read in full, or that does not fit any more.
 * Returns how many were read, and their bytes in *total; has[i] says what the i-th has.
 */
__attribute__((visibility("default")))
size_t scan_read(int fd, const uint8_t *listing, const uint64_t *entries, size_t count, uint8_t *out, size_t room,
    uint8_t *has, uint64_t *total);

/* What an entry of a listing is. */
#define SCAN_PLAIN 1u /* a small file of one name */
#define SCAN_SMALL 2u /* another small file */
#define SCAN_LARGE 3u /* another file, or one with holes */
#define SCAN_DIRECTORY 4u
#define SCAN_SPECIAL 5u
#define SCAN_FAILED 6u

/*
 * Say what the entries of a listing are, with regular files of up to `small` bytes as small ones: where they
 * are in it, and their kinds; there is room for len / sizeof(struct scan_entry).  Returns how many they are.
 * last: takes the newest ctime, seconds and ns, and whether anything but a directory has several names.
 */
__attribute__((visibility("default")))
size_t scan_survey(const uint8_t *listing, size_t len, uint64_t small, uint64_t *places, uint8_t *kinds, int64_t *last);

/* Make durable what was written to the file system of the file open as fd.  Returns 0 or errno. */
__attribute__((visibility("default")))
int scan_sync(int fd);

/* statfs(2)'s f_type of the file system that holds a path, or -1. */
__attribute__((visibility("default")))
int64_t scan_file_system(const char *path);

#endif
