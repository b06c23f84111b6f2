#define _GNU_SOURCE
#include "dir_listing.h"
#include "listed_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#define OPEN_DIR (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define OPEN_FILE (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
#define DENTS 65536
#define DEEP 256

struct dirent64_raw {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

/* The names of a directory and its listing, in memory that is reused for the next directory. */
struct pile {
	char *names;
	size_t names_len, names_room;
	size_t *starts; /* of the names */
	size_t count, count_room;
	const char **sorted;
	size_t sorted_room;
	uint8_t *listing;
	size_t listing_room;
};

static void
pile_free(struct pile *pile)
{
	free(pile->names);
	free(pile->starts);
	free(pile->sorted);
	free(pile->listing);
}

static int
grow(void *memory, size_t *room, size_t wanted, size_t size)
{
	void **p = memory, *larger;
	size_t most = *room ? *room : 256;

	if (wanted <= *room)
		return (0);
	while (most < wanted)
		most *= 2;
	if ((larger = realloc(*p, most * size)) == NULL)
		return (-1);
	*p = larger;
	*room = most;
	return (0);
}

static int
by_name(const void *a, const void *b)
{
	return (strcmp(*(const char *const *)a, *(const char *const *)b));
}

/* Drop repetitions of a name beyond the second: the second one says that the directory repeats the name. */
static void
drop_repeated(struct pile *pile)
{
	size_t kept = 0, i;

	for (i = 0; i < pile->count; i++)
		if (kept < 2 || strcmp(pile->sorted[i], pile->sorted[kept - 2]) != 0)
			pile->sorted[kept++] = pile->sorted[i];
	pile->count = kept;
}

/* Read the names of the directory open as fd, and sort them; the byte before each is its type.  Return 0 or errno. */
static int
names_of(int fd, struct pile *pile)
{
	uint64_t buffer[DENTS / sizeof(uint64_t)];
	size_t i;

	pile->names_len = pile->count = 0;
	if (lseek(fd, 0, SEEK_SET) < 0)
		return (errno);
	for (;;) {
		long got = syscall(SYS_getdents64, fd, buffer, sizeof(buffer)), at;

		if (got < 0)
			return (errno);
		if (got == 0)
			break;
		for (at = 0; at < got;) {
			const struct dirent64_raw *entry = (const void *)((const char *)buffer + at);
			size_t len = strlen(entry->name) + 1;

			at += entry->reclen;
			if (entry->name[0] == '.' && (len == 2 || (len == 3 && entry->name[1] == '.')))
				continue;
			if (grow(&pile->names, &pile->names_room, pile->names_len + 1 + len, 1) != 0 ||
			    grow(&pile->starts, &pile->count_room, pile->count + 1, sizeof(*pile->starts)) != 0)
				return (ENOMEM);
			pile->names[pile->names_len++] = (char)entry->type;
			memcpy(pile->names + pile->names_len, entry->name, len);
			pile->starts[pile->count++] = pile->names_len;
			pile->names_len += len;
		}
	}
	if (grow(&pile->sorted, &pile->sorted_room, pile->count, sizeof(*pile->sorted)) != 0)
		return (ENOMEM);
	for (i = 0; i < pile->count; i++)
		pile->sorted[i] = pile->names + pile->starts[i];
	qsort(pile->sorted, pile->count, sizeof(*pile->sorted), by_name);
	drop_repeated(pile);
	return (0);
}

static size_t
padded(size_t len)
{
	return ((len + 7) & ~(size_t)7);
}

static void
describe(struct scan_entry *entry, const struct stat *info)
{
	entry->ino = info->st_ino;
	entry->dev = info->st_dev;
	entry->size = (uint64_t)info->st_size;
	entry->mtime = info->st_mtim.tv_sec;
	entry->ctime = info->st_ctim.tv_sec;
	entry->mtime_ns = (uint32_t)info->st_mtim.tv_nsec;
	entry->ctime_ns = (uint32_t)info->st_ctim.tv_nsec;
	entry->blocks = (uint64_t)info->st_blocks;
	entry->rdev = info->st_rdev;
	entry->mode = info->st_mode;
	entry->uid = info->st_uid;
	entry->gid = info->st_gid;
	entry->nlink = (uint32_t)info->st_nlink;
}

/* List the directory open as fd in pile->listing.  Return the length of the listing, or -errno. */
static int64_t
list_of(int fd, struct pile *pile)
{
	size_t len = 0, i;
	int error = names_of(fd, pile);

	if (error != 0)
		return (-error);
	for (i = 0; i < pile->count; i++)
		len += sizeof(struct scan_entry) + padded(strlen(pile->sorted[i]));
	if (grow(&pile->listing, &pile->listing_room, len, 1) != 0)
		return (-ENOMEM);
	for (len = 0, i = 0; i < pile->count; i++) {
		struct scan_entry entry;
		struct stat info;
		size_t name_len = strlen(pile->sorted[i]);

		memset(&entry, 0, sizeof(entry));
		if (i > 0 && strcmp(pile->sorted[i], pile->sorted[i - 1]) == 0) {
			entry.error = SCAN_REPEATED;
		} else if (fstatat(fd, pile->sorted[i], &info, AT_SYMLINK_NOFOLLOW) == 0) {
			describe(&entry, &info);
		} else {
			entry.error = (uint32_t)errno;
			/* The type in a dirent is that of st_mode, shifted right by 12 bits. */
			entry.mode = (uint32_t)(uint8_t)pile->sorted[i][-1] << 12;
		}
		entry.name_len = (uint32_t)name_len;
		memcpy(pile->listing + len, &entry, sizeof(entry));
		len += sizeof(entry);
		memset(pile->listing + len, 0, padded(name_len));
		memcpy(pile->listing + len, pile->sorted[i], name_len);
		len += padded(name_len);
	}
	return ((int64_t)len);
}

int64_t
scan_list(int fd, uint8_t *out, size_t room)
{
	struct pile pile;
	int64_t len;

	memset(&pile, 0, sizeof(pile));
	len = list_of(fd, &pile);
	if (len >= 0 && (size_t)len <= room)
		memcpy(out, pile.listing, (size_t)len);
	pile_free(&pile);
	return (len);
}

struct walk {
	const uint8_t *cache;
	uint64_t len;
	struct pile pile;
	struct scan_changes *out;
	size_t changes_room, text_room, most;
	int failed;
};

/* Whether a record and all that belongs to it is within the cache, which may be damaged. */
static int
whole(const struct walk *walk, uint64_t at, struct scan_record *record)
{
	uint64_t left;

	if (at > walk->len || walk->len - at < sizeof(*record))
		return (0);
	memcpy(record, walk->cache + at, sizeof(*record));
	left = walk->len - at;
	if (record->len > left || record->len < sizeof(*record))
		return (0);
	left = record->len - sizeof(*record);
	if (record->listing_len > left || record->entries > left - record->listing_len)
		return (0);
	left -= record->listing_len;
	return (padded(record->entries) <= left && record->streams_len <= left - padded(record->entries));
}

/* Report that records [at .. end) changed or were not compared.  listing: the present listing of the first, or NULL. */
static void
note(struct walk *walk, uint64_t at, uint64_t end, const uint8_t *listing, uint64_t len)
{
	struct scan_changes *out = walk->out;
	struct scan_change *change;

	if (listing == NULL || len > walk->most - out->text_len)
		len = SCAN_UNLISTED;
	if (walk->failed || grow(&out->changes, &walk->changes_room, out->count + 1, sizeof(*out->changes)) != 0 ||
	    (len != SCAN_UNLISTED && grow(&out->text, &walk->text_room, out->text_len + len, 1) != 0)) {
		walk->failed = 1;
		return;
	}
	change = out->changes + out->count++;
	change->at = at;
	change->end = end;
	change->len = len;
	if (len != SCAN_UNLISTED && len > 0) {
		memcpy(out->text + out->text_len, listing, len);
		out->text_len += len;
	}
}

size_t
listed_entry(const uint8_t *listing, size_t len, size_t at, struct scan_entry *entry, char *name)
{
	if (at > len || len - at < sizeof(*entry))
		return (0);
	memcpy(entry, listing + at, sizeof(*entry));
	at += sizeof(*entry);
	if (entry->name_len == 0 || entry->name_len > NAME_MAX || padded(entry->name_len) > len - at)
		return (0);
	memcpy(name, listing + at, entry->name_len);
	name[entry->name_len] = '\0';
	if (strlen(name) != entry->name_len || strchr(name, '/') != NULL)
		return (0);
	return (sizeof(*entry) + padded(entry->name_len));
}

static void
differ(struct walk *walk, int fd, const char *name, uint64_t at, int depth)
{
	struct scan_record record, below;
	const uint8_t *listing, *marks;
	uint64_t end, next, place = 0, i, entry;
	int64_t len;
	int dir, same;

	if (!whole(walk, at, &record)) {
		note(walk, at, walk->len, NULL, 0);
		return;
	}
	end = at + record.len;
	if (depth > DEEP || (dir = openat(fd, name, OPEN_DIR)) < 0) {
		note(walk, at, end, NULL, 0);
		return;
	}
	listing = walk->cache + at + sizeof(record);
	marks = listing + record.listing_len;
	next = at + sizeof(record) + record.listing_len + padded(record.entries) + record.streams_len;
	len = list_of(dir, &walk->pile);
	same = (record.flags & SCAN_DISTRUST) == 0 && len >= 0 && (uint64_t)len == record.listing_len &&
	    memcmp(walk->pile.listing, listing, (size_t)len) == 0;
	if (!same)
		note(walk, at, next, len < 0 ? NULL : walk->pile.listing, (uint64_t)len);
	for (i = 0; i < record.entries; i++, place += entry) {
		struct scan_entry found;
		char child[NAME_MAX + 1];

		if ((entry = listed_entry(listing, record.listing_len, place, &found, child)) == 0)
			break;
		if ((marks[i] & SCAN_ENTERED) == 0)
			continue;
		if (next >= end || !whole(walk, next, &below) || below.len > end - next)
			break;
		differ(walk, dir, child, next, depth + 1);
		next += below.len;
	}
	if (i < record.entries || next != end)
		note(walk, at, end, NULL, 0);
	close(dir);
}

int
scan_differ(int fd, const char *name, const uint8_t *cache, uint64_t cache_len, uint64_t at, size_t most,
    struct scan_changes *out)
{
	struct walk walk;

	memset(&walk, 0, sizeof(walk));
	memset(out, 0, sizeof(*out));
	walk.cache = cache;
	walk.len = cache_len;
	walk.out = out;
	walk.most = most;
	differ(&walk, fd, name, at, 0);
	pile_free(&walk.pile);
	return (walk.failed ? -1 : 0);
}

void
scan_forget(struct scan_changes *changes)
{
	free(changes->changes);
	free(changes->text);
	memset(changes, 0, sizeof(*changes));
}

int
listed_is_same(const struct scan_entry *entry, const struct stat *info)
{
	struct scan_entry now;

	memset(&now, 0, sizeof(now));
	describe(&now, info);
	now.name_len = entry->name_len;
	return (memcmp(&now, entry, sizeof(now)) == 0);
}

int
listed_has_xattrs(long len)
{
	return (len > 0 || (len < 0 && errno != ENOTSUP && errno != ENOSYS));
}

/* Whether another user could replace a file of an open directory by a device, which merely to open may have effects. */
static int
may_have_devices(int fd)
{
	struct stat info;
	struct statfs system;

	if (geteuid() != 0 || fstat(fd, &info) != 0)
		return (0);
	if (info.st_uid == 0 && (info.st_mode & (S_IWGRP | S_IWOTH)) == 0)
		return (0);
	return (fstatfs(fd, &system) != 0 || (system.f_flags & ST_NODEV) == 0);
}

int
listed_descriptors(int fd)
{
	return (may_have_devices(fd) ? open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC) : -1);
}

int
listed_open(int fd, const char *name, int descriptors)
{
	struct stat info;
	char number[16];
	int held, file;

	if (descriptors < 0)
		return (openat(fd, name, OPEN_FILE));
	if ((held = openat(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)) < 0)
		return (-1);
	file = -1;
	if (fstat(held, &info) == 0 && S_ISREG(info.st_mode)) {
		snprintf(number, sizeof(number), "%d", held);
		file = openat(descriptors, number, OPEN_FILE & ~O_NOFOLLOW);
	}
	close(held);
	return (file);
}

size_t
scan_read(int fd, const uint8_t *listing, const uint64_t *entries, size_t count, uint8_t *out, size_t room, uint8_t *has,
    uint64_t *total)
{
	int descriptors = listed_descriptors(fd);
	size_t i;

	*total = 0;
	for (i = 0; i < count; i++) {
		struct scan_entry entry;
		struct stat info;
		char name[NAME_MAX + 1];
		size_t done = 0;
		ssize_t got = 1;
		int file, same;

		memcpy(&entry, listing + entries[i], sizeof(entry));
		if (entry.size > room || entry.name_len > NAME_MAX)
			break;
		memcpy(name, listing + entries[i] + sizeof(entry), entry.name_len);
		name[entry.name_len] = '\0';
		if ((file = listed_open(fd, name, descriptors)) < 0)
			break;
		same = fstat(file, &info) == 0 && S_ISREG(info.st_mode) && listed_is_same(&entry, &info);
		while (same && done < entry.size && (got = read(file, out + done, entry.size - done)) > 0)
			done += (size_t)got;
		/* File systems without sizes, such as proc, report 0 for files that have content. */
		if (same && entry.size == 0) {
			uint8_t byte;

			same = read(file, &byte, 1) == 0;
		}
		same = same && done == entry.size && fstat(file, &info) == 0 && listed_is_same(&entry, &info);
		has[i] = (listed_has_xattrs(flistxattr(file, NULL, 0)) ? SCAN_HAS_XATTRS : 0) | (done > 0 ? SCAN_HAS_CONTENT : 0);
		close(file);
		if (!same)
			break;
		out += done;
		room -= done;
		*total += done;
	}
	if (descriptors >= 0)
		close(descriptors);
	return (i);
}

/* Times below this fit into 64 bits as nanoseconds. */
#define MOST_SECONDS 9000000000

static uint8_t
kind_of(const struct scan_entry *entry, uint64_t small)
{
	if (entry->error != 0)
		return (SCAN_FAILED);
	if (S_ISDIR(entry->mode))
		return (SCAN_DIRECTORY);
	if (!S_ISREG(entry->mode))
		return (SCAN_SPECIAL);
	if (entry->size > small || entry->blocks * 512 < entry->size)
		return (SCAN_LARGE);
	if (entry->nlink == 1 && entry->mtime > -MOST_SECONDS && entry->mtime < MOST_SECONDS)
		return (SCAN_PLAIN);
	return (SCAN_SMALL);
}

size_t
scan_survey(const uint8_t *listing, size_t len, uint64_t small, uint64_t *places, uint8_t *kinds, int64_t *last)
{
	size_t at = 0, i;

	last[0] = last[1] = last[2] = 0;
	for (i = 0; len - at > sizeof(struct scan_entry); i++) {
		struct scan_entry entry;

		memcpy(&entry, listing + at, sizeof(entry));
		places[i] = at;
		kinds[i] = kind_of(&entry, small);
		if (entry.ctime > last[0] || (entry.ctime == last[0] && entry.ctime_ns > last[1])) {
			last[0] = entry.ctime;
			last[1] = entry.ctime_ns;
		}
		if (entry.nlink > 1 && !S_ISDIR(entry.mode))
			last[2] = 1;
		if (entry.name_len > len || (at += sizeof(entry) + padded(entry.name_len)) > len)
			break;
	}
	return (i);
}

int
scan_sync(int fd)
{
	return (syncfs(fd) == 0 ? 0 : errno);
}

int64_t
scan_file_system(const char *path)
{
	struct statfs info;

	return (statfs(path, &info) == 0 ? (int64_t)(uint32_t)info.f_type : -1);
}
