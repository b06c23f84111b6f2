/* Opening files that a listing has, and checking that they are still as it describes them. */
#ifndef CASTORE_LISTED_FILE_H
#define CASTORE_LISTED_FILE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "dir_listing.h"

/* Whether the metadata of an open file equals its entry. */
int listed_is_same(const struct scan_entry *entry, const struct stat *info);

/*
 * Open /proc/self/fd if another user could replace a file of the directory open as fd by a device, which merely to
 * open may have effects; else return -1.
 */
int listed_descriptors(int fd);

/* Open a regular file for reading.  descriptors: as listed_descriptors returns it. */
int listed_open(int fd, const char *name, int descriptors);

/* Whether flistxattr or llistxattr, which returned `len`, found attributes, or may have failed to list some. */
int listed_has_xattrs(long len);

/*
 * Copy the entry at `at` of a listing and its name, which gets NAME_MAX + 1 bytes.  Return the length of the entry with
 * its name, or 0 if it is not valid.
 */
size_t listed_entry(const uint8_t *listing, size_t len, size_t at, struct scan_entry *entry, char *name);

#endif
