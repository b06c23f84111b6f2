#define _GNU_SOURCE
#include "dir_compare.h"
#include "dir_listing.h"
#include "listed_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Times below this fit into 64 bits as nanoseconds: the stored time is the live one. */
#define MOST_SECONDS 9000000000
#define TARGET_END 4 /* bytes of an entry after a link's target */

static int
order_of(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
	int order = memcmp(a, b, a_len < b_len ? a_len : b_len);

	return (order != 0 ? order : (a_len > b_len) - (a_len < b_len));
}

size_t
compare_known(const uint8_t *listing, size_t len, const uint8_t *before, size_t before_len, const uint8_t *marks,
    size_t marks_len, const struct compare_marks *rule, uint8_t *known)
{
	struct scan_entry now, old;
	char name[NAME_MAX + 1], old_name[NAME_MAX + 1];
	size_t at, i, step, old_at = 0, old_i = 0, old_step = 0;

	for (at = 0, i = 0; at < len; at += step, i++) {
		int order = 1;

		if ((step = listed_entry(listing, len, at, &now, name)) == 0)
			return (SIZE_MAX);
		known[i] = 0;
		while (old_at < before_len) {
			if (old_i == marks_len || (old_step = listed_entry(before, before_len, old_at, &old, old_name)) == 0)
				return (SIZE_MAX);
			if ((order = strcmp(old_name, name)) >= 0)
				break;
			old_at += old_step;
			old_i++;
		}
		if (order != 0 || now.error != 0 || memcmp(&now, &old, sizeof(now)) != 0 || (marks[old_i] & rule->any) == 0)
			continue;
		if ((marks[old_i] & rule->content) == 0)
			known[i] |= COMPARE_UNREAD;
		if ((marks[old_i] & rule->bare) == 0)
			known[i] |= COMPARE_XATTRS;
		if (rule->stored && (known[i] & COMPARE_XATTRS) != 0 && now.ctime < rule->since &&
		    ((known[i] & COMPARE_UNREAD) != 0 || S_ISDIR(now.mode)))
			known[i] |= COMPARE_AS_STORED;
	}
	return (0);
}

/* Whether a live file has the owner and mode that a restored one would get. */
static int
has_rights(const struct entry_place *place, const struct scan_entry *entry, const struct compare_rule *rule)
{
	const struct entry_owners *owners = rule->owners;

	if (owners->change && (entry->uid != entry_wanted(owners->users, owners->user_count, place->uid) ||
	    entry->gid != entry_wanted(owners->groups, owners->group_count, place->gid)))
		return (0);
	return (S_ISLNK(entry->mode) || ((entry->mode ^ place->mode) & rule->mode) == 0);
}

/* Compare an entry that is not a plain file: what differs is for the caller. */
static uint8_t
judge_other(const struct entry_place *place, const struct scan_entry *entry, uint8_t known, const struct compare_rule *rule)
{
	uint8_t state;

	if (!S_ISDIR(entry->mode) && entry->nlink != 1)
		return (COMPARE_LOOK);
	if ((known & COMPARE_AS_STORED) != 0)
		state = 0;
	else if (place->special == ENTRY_FOLDER && S_ISDIR(entry->mode))
		state = (uint8_t)(COMPARE_XATTRS & ~known);
	else if (place->special != 0 && place->special != ENTRY_FOLDER && S_ISLNK(entry->mode))
		state = COMPARE_UNREAD | COMPARE_XATTRS;
	else
		return (COMPARE_LOOK);
	if (entry->mtime != place->mtime || entry->mtime_ns != place->mtime_ns || !has_rights(place, entry, rule))
		return (COMPARE_LOOK);
	return (state);
}

/* Compare a stored entry with the live one of the same name, except content and attributes. */
static uint8_t
judge(const struct entry_place *place, const struct scan_entry *entry, uint8_t known, const struct compare_rule *rule)
{
	uint8_t state = 0;

	if (entry->error != 0 || entry->mtime <= -MOST_SECONDS || entry->mtime >= MOST_SECONDS)
		return (COMPARE_LOOK);
	if (!place->plain)
		return (judge_other(place, entry, known, rule));
	if (!S_ISREG(entry->mode) || entry->nlink != 1)
		return (COMPARE_LOOK);
	if (entry->size != place->size || entry->mtime != place->mtime || entry->mtime_ns != place->mtime_ns)
		return (COMPARE_CONTENT);
	if (!has_rights(place, entry, rule))
		state |= COMPARE_METADATA;
	state |= (uint8_t)(COMPARE_XATTRS & ~known);
	if (rule->content && place->size > 0)
		state |= (uint8_t)(COMPARE_UNREAD & ~known);
	return (state);
}

size_t
compare_match(const uint8_t *data, const struct entry_place *places, size_t count, const uint8_t *listing, size_t len,
    const uint8_t *known, const struct compare_rule *rule, uint8_t *status, uint64_t *live, uint64_t *extra)
{
	const uint8_t *looked = rule->looked, *end = looked + rule->looked_len;
	struct scan_entry entry;
	char name[NAME_MAX + 1];
	size_t at, i = 0, number, step, others = 0;

	for (at = 0, number = 0; at < len; at += step, number++) {
		int order = 1;

		if ((step = listed_entry(listing, len, at, &entry, name)) == 0)
			return (SIZE_MAX);
		if (entry.error == SCAN_REPEATED)
			continue;
		for (; i < count; i++) {
			order = order_of(data + places[i].name, places[i].name_len, (const uint8_t *)name, entry.name_len);
			if (order >= 0)
				break;
			status[i] = COMPARE_MISSING;
			live[i] = UINT64_MAX;
		}
		if (i == count || order != 0) {
			extra[others++] = at;
			continue;
		}
		status[i] = judge(&places[i], &entry, known != NULL ? known[number] : 0, rule);
		live[i] = at;
		while (looked < end && (order = strcmp((const char *)looked, name)) <= 0) {
			if (order == 0)
				status[i] = COMPARE_LOOK;
			looked += strlen((const char *)looked) + 1;
		}
		i++;
	}
	for (; i < count; i++) {
		status[i] = COMPARE_MISSING;
		live[i] = UINT64_MAX;
	}
	return (others);
}

/* Read [skip, skip + len) of an open file, and nothing beyond its end.  Return whether it has these bytes. */
static int
read_range(int file, uint64_t skip, uint64_t len, uint8_t *out)
{
	uint64_t done = 0;
	ssize_t got;

	while (done < len && (got = pread(file, out + done, len - done, (off_t)(skip + done))) > 0)
		done += (uint64_t)got;
	return (done == len);
}

/* Count the bytes [at, end) of a stream as read, in each chunk of a window. */
static void
count_read(const struct compare_window *window, uint64_t *chunk, uint64_t at, uint64_t end)
{
	while (*chunk < window->chunks && window->ends[*chunk] <= at)
		++*chunk;
	for (uint64_t i = *chunk; i < window->chunks && at < end; i++) {
		uint64_t stop = window->ends[i] < end ? window->ends[i] : end;

		window->got[i] += stop - at;
		at = stop;
	}
}

static uint64_t
later(uint64_t a, uint64_t b)
{
	return (a > b ? a : b);
}

static uint64_t
earlier(uint64_t a, uint64_t b)
{
	return (a < b ? a : b);
}

/*
 * Read the part [at, end) of the stream out of a live file, and list its attributes.  Return its new state.
 *
 * A file that took the place of the listed one is compared as well: that is as if it did so after the comparison.  But
 * parts that are read in several calls have to be of one file in one state.
 */
static uint8_t
read_live(int fd, int descriptors, const char *name, const struct scan_entry *entry, const struct entry_place *place,
    uint64_t at, uint64_t end, const struct compare_window *window, uint8_t state)
{
	struct stat info;
	int file, read;

	if ((file = listed_open(fd, name, descriptors)) < 0)
		return (COMPARE_LOOK);
	read = read_range(file, at - place->offset, end - at, window->out + (at - window->start));
	if (end - at < place->size)
		read = read && fstat(file, &info) == 0 && listed_is_same(entry, &info);
	if (read && (state & COMPARE_XATTRS) != 0 && !listed_has_xattrs(flistxattr(file, NULL, 0)))
		state &= (uint8_t)~COMPARE_XATTRS;
	close(file);
	return (read ? state : COMPARE_LOOK);
}

/* listxattrat(2), of Linux 6.13.  C libraries do not have it yet. */
#ifndef SYS_listxattrat
#define SYS_listxattrat 465
#endif

/* Whether a file that is not open has attributes, or may have some.  It may have been replaced since it was listed. */
static int
has_xattrs(int fd, const char *name)
{
	static atomic_int lacks;
	char path[NAME_MAX + 32];

	if (!atomic_load_explicit(&lacks, memory_order_relaxed)) {
		long len = syscall(SYS_listxattrat, fd, name, AT_SYMLINK_NOFOLLOW, NULL, (size_t)0);

		/* Filters of system calls answer EPERM for those that they do not know. */
		if (len >= 0 || (errno != ENOSYS && errno != EPERM))
			return (listed_has_xattrs(len));
		atomic_store_explicit(&lacks, 1, memory_order_relaxed);
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", fd, name);
	return (listed_has_xattrs(llistxattr(path, NULL, 0)));
}

/* Whether a link still has its stored target. */
static int
has_target(int fd, const char *name, const uint8_t *data, const struct entry_place *place)
{
	char target[ENTRY_FOLDER];
	const uint8_t *stored = data + place->at + place->len - TARGET_END - place->special;
	ssize_t len;

	if (place->special == 0 || place->special == ENTRY_FOLDER)
		return (0);
	len = readlinkat(fd, name, target, sizeof(target));
	return (len == (ssize_t)place->special && memcmp(target, stored, place->special) == 0);
}

size_t
compare_read(int fd, const uint8_t *data, const struct entry_place *places, size_t from, size_t count,
    const uint8_t *listing, size_t listing_len, const uint64_t *live, const struct compare_window *window, uint8_t *status)
{
	uint64_t end = window->start + window->len, chunk = 0;
	int descriptors = listed_descriptors(fd);
	size_t i;

	for (i = from; i < count; i++) {
		const struct entry_place *place = &places[i];
		struct scan_entry entry;
		char name[NAME_MAX + 1];
		uint64_t at, stop;

		if ((status[i] & (COMPARE_UNREAD | COMPARE_XATTRS)) == 0)
			continue;
		if (listed_entry(listing, listing_len, live[i], &entry, name) == 0) {
			status[i] = COMPARE_LOOK;
			continue;
		}
		if ((status[i] & COMPARE_UNREAD) == 0) {
			if (!has_xattrs(fd, name))
				status[i] &= (uint8_t)~COMPARE_XATTRS;
			continue;
		}
		if (!place->plain) {
			status[i] = has_target(fd, name, data, place) && !has_xattrs(fd, name) ? 0 : COMPARE_LOOK;
			continue;
		}
		if (place->stream != window->stream)
			continue;
		if (place->offset >= end)
			break;
		at = later(place->offset, window->start);
		stop = earlier(place->offset + place->size, end);
		if (at >= stop)
			continue;
		status[i] = read_live(fd, descriptors, name, &entry, place, at, stop, window, status[i]);
		if ((status[i] & COMPARE_UNREAD) != 0)
			count_read(window, &chunk, at, stop);
		if (stop < place->offset + place->size)
			break;
	}
	if (descriptors >= 0)
		close(descriptors);
	return (i);
}

void
compare_stored(const struct entry_place *places, size_t from, size_t to, const struct compare_window *window,
    const uint8_t *stored, uint64_t at, size_t len, uint8_t *status)
{
	size_t i;

	for (i = from; i < to; i++) {
		const struct entry_place *place = &places[i];
		uint64_t begin = later(later(place->offset, window->start), at);
		uint64_t end = earlier(earlier(place->offset + place->size, window->start + window->len), at + len);

		if ((status[i] & COMPARE_UNREAD) == 0 || place->stream != window->stream || begin >= end)
			continue;
		if (memcmp(window->out + (begin - window->start), stored + (begin - at), (size_t)(end - begin)) != 0)
			status[i] = (uint8_t)((status[i] & ~COMPARE_UNREAD) | COMPARE_CONTENT);
	}
}
