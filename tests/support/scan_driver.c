/* Calls the scan with damaged caches, and writes and reads files, in buffers of exact length, under sanitizers. */
#define _GNU_SOURCE
#include "driver.h"
#include "dir_entries.h"
#include "dir_listing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void
need(int condition)
{
	if (!condition)
		abort();
}

/* The record of a directory and all below it, which nothing is wrong with. */
static size_t
record_of(int fd, uint8_t **out)
{
	struct scan_record record;
	int64_t len = scan_list(fd, NULL, 0);
	uint8_t *listing = exactly((size_t)len), *all, *below[64];
	size_t lengths[64], count = 0, entries = 0, at, total, marks_at;
	uint8_t marks[64] = {0};

	need(scan_list(fd, listing, (size_t)len) == len);
	for (at = 0; at < (size_t)len; entries++) {
		struct scan_entry entry;
		char name[256];

		need(entries < 64);
		memcpy(&entry, listing + at, sizeof(entry));
		memcpy(name, listing + at + sizeof(entry), entry.name_len);
		name[entry.name_len] = '\0';
		if (S_ISDIR(entry.mode)) {
			int dir = openat(fd, name, O_RDONLY | O_DIRECTORY);

			need(dir >= 0);
			marks[entries] = SCAN_ENTERED;
			lengths[count] = record_of(dir, &below[count]);
			count++;
			close(dir);
		}
		at += sizeof(entry) + ((entry.name_len + 7) & ~7u);
	}
	marks_at = sizeof(record) + (size_t)len;
	total = marks_at + ((entries + 7) & ~(size_t)7);
	for (at = 0; at < count; at++)
		total += lengths[at];
	memset(&record, 0, sizeof(record));
	record.len = total;
	record.listing_len = (uint64_t)len;
	record.entries = entries;
	all = exactly(total);
	memset(all, 0, total);
	memcpy(all, &record, sizeof(record));
	memcpy(all + sizeof(record), listing, (size_t)len);
	memcpy(all + marks_at, marks, entries);
	total = marks_at + ((entries + 7) & ~(size_t)7);
	for (at = 0; at < count; at++) {
		memcpy(all + total, below[at], lengths[at]);
		total += lengths[at];
		free(below[at]);
	}
	free(listing);
	*out = all;
	return (total);
}

static void
compare(int top)
{
	int dir = openat(top, "d0", O_RDONLY | O_DIRECTORY), i, j;
	uint8_t *cache;
	size_t len = record_of(dir, &cache);
	struct scan_changes found;

	need(scan_differ(top, "d0", cache, len, 0, 1000, &found) == 0 && found.count == 0);
	scan_forget(&found);
	need(scan_differ(top, "d1", cache, len, 0, 100000, &found) == 0 && found.count == 4);
	need(found.changes[0].at == 0 && found.text_len > 0);
	scan_forget(&found);
	need(scan_differ(top, "d1", cache, len, 0, 0, &found) == 0 && found.count == 4 && found.text_len == 0);
	need(found.changes[0].len == SCAN_UNLISTED);
	scan_forget(&found);
	need(scan_differ(top, "none", cache, len, 0, 1000, &found) == 0 && found.count == 1);
	need(found.changes[0].at == 0 && found.changes[0].end == len && found.changes[0].len == SCAN_UNLISTED);
	scan_forget(&found);
	for (i = 0; i < 3000; i++) {
		size_t cut = draw() % 4 ? len : draw() % (len + 1);
		uint8_t *damaged = exactly(cut);

		memcpy(damaged, cache, cut);
		for (j = (int)(draw() % 6); j >= 0 && cut > 0; j--) {
			size_t at = draw() % 2 ? draw() % cut : draw() % (cut < 128 ? cut : 128);

			damaged[at] = draw() % 2 ? (uint8_t)draw() : 0xff;
		}
		(void)scan_differ(top, "d0", damaged, cut, draw() % 3 ? 0 : draw() % (len + 9), draw() % 5000, &found);
		scan_forget(&found);
		free(damaged);
	}
	free(cache);
	close(dir);
}

/* An entry as entries_join would encode it, but of small numbers only. */
static size_t
frame(uint8_t *out, const char *name, uint8_t size)
{
	static const uint8_t end[] = {0x95, 0xc4, 0x00, 0x00, 0xc0, 0x90, 0xc0};
	uint8_t *at = out + 4, len = (uint8_t)strlen(name);

	*at++ = 0x99;
	*at++ = 0xc4;
	*at++ = len;
	memcpy(at, name, len);
	at += len;
	*at++ = S_IFREG >> 12;
	*at++ = 0xcd, *at++ = 1, *at++ = 0xa0; /* 0640 */
	*at++ = 0;
	*at++ = 0;
	*at++ = 0x7f;
	*at++ = size & 0x7f;
	*at++ = (size & 0x7f) > 0;
	memcpy(at, end, sizeof(end));
	at += sizeof(end);
	out[0] = (uint8_t)(at - out - 4);
	out[1] = out[2] = out[3] = 0;
	return ((size_t)(at - out));
}

static void
times(void)
{
	static const int64_t all[] = {INT64_MIN, INT64_MIN + 1, INT64_MIN + 145224193, -1000000001, -1000000000, -1, INT64_MAX};
	size_t i, j, len, at = 4 + 3 + 1 + 1 + 3 + 2; /* of the time in a frame with a name of one byte */
	struct entry_place place;
	uint8_t plain[100], long_time[100];
	uint64_t ends[SMALL_MAX_STREAMS];

	for (i = 0; i < sizeof(all) / sizeof(*all); i++) {
		len = frame(plain, "n", 3);
		memcpy(long_time, plain, at);
		long_time[at] = 0xd3;
		for (j = 0; j < 8; j++)
			long_time[at + 1 + j] = (uint8_t)((uint64_t)all[i] >> (56 - 8 * j));
		memcpy(long_time + at + 9, plain + at + 1, len - at - 1);
		long_time[0] = (uint8_t)(plain[0] + 8);
		need(entries_split(long_time, len + 8, 0, NULL, 0, &place, 1, ends) == 1 && place.mtime_ns < 1000000000);
		need((uint64_t)place.mtime * 1000000000 + place.mtime_ns == (uint64_t)all[i]);
	}
}

/* Runs of small files: valid ones of two streams, or others. */
static size_t
some_runs(uint64_t *runs, size_t room)
{
	size_t i, len = draw() % 2 ? 6 : draw() % (room + 1);

	for (i = 0; i < len; i++)
		runs[i] = draw() % 8 ? draw() % 20 : (uint64_t)draw() << (draw() % 64);
	if (len == 6 && draw() % 2) {
		runs[0] = draw() % 18 + 1; /* of the 19 files that have content, in files() */
		runs[3] = 19 - runs[0];
		runs[1] = draw() % 2;
		runs[4] = 1 - runs[1];
	}
	return (len);
}

static void
chosen(const uint8_t *data, size_t len, const uint64_t *runs, size_t runs_len, struct entry_place *places, size_t count)
{
	size_t pieces_len = draw() % 6, kept, i;
	uint8_t *pieces = exactly(pieces_len);
	uint64_t ends[SMALL_MAX_STREAMS];

	for (i = 0; i < pieces_len; i++)
		pieces[i] = (uint8_t)"n0123\0"[draw() % 6];
	kept = entries_select(data, len, 0, runs, runs_len, pieces, pieces_len, places, count, ends);
	need(kept == SIZE_MAX || kept <= count);
	for (i = 0; kept != SIZE_MAX && i < kept; i++)
		need(places[i].at + places[i].len <= len && places[i].name + places[i].name_len <= len);
	free(pieces);
}

static void
damaged(int dir, const uint8_t *data, size_t len)
{
	struct entry_owners owners = {0, 07777, 0, 0, NULL, NULL};
	int i, j;

	for (i = 0; i < 3000; i++) {
		size_t cut = draw() % 4 ? len : draw() % (len + 1), count, given = draw() % 5000, runs_len;
		uint8_t *some = exactly(cut), *small_files = exactly(given);
		uint64_t ends[SMALL_MAX_STREAMS], drawn[12], *runs;
		struct entry_place *places;

		memset(small_files, 1, given);
		memcpy(some, data, cut);
		for (j = (int)(draw() % 4); j > 0 && cut > 0; j--)
			some[draw() % cut] = draw() % 2 ? (uint8_t)draw() : 0xff;
		count = entries_count(some, cut, 0);
		if (count == SIZE_MAX)
			count = draw() % 30;
		places = exactly(count * sizeof(*places));
		runs_len = draw() % 2 ? 0 : some_runs(drawn, 12);
		runs = exactly(runs_len * sizeof(*runs));
		memcpy(runs, drawn, runs_len * sizeof(*runs));
		if (entries_split(some, cut, 0, runs, runs_len, places, count, ends) == count)
			need(entries_write(dir, some, places, 0, count, &owners, draw() % 3, small_files, given, draw() % 100) <= count);
		chosen(some, cut, runs, runs_len, places, count);
		free(runs);
		free(places);
		free(small_files);
		free(some);
	}
}

static void
join(const uint8_t *listing, const uint64_t *places, size_t count, size_t room)
{
	uint8_t take[40], given[400];
	struct entry_ids *ids = exactly(count * sizeof(*ids));
	size_t i, j, found, given_len;

	for (i = 0; i < 1000; i++) {
		size_t some = draw() % 8 ? room : draw() % room, want = 0, len;
		uint8_t *out = exactly(some);

		for (j = given_len = 0; j < count; j++) {
			take[j] = (uint8_t)(draw() % 3);
			if (take[j] == ENTRY_GIVEN && want++ < 5)
				given_len += frame(given + given_len, "given", 3);
		}
		len = entries_join(listing, places, take, count, given, given_len, out, some, ids, &found);
		need((len == SIZE_MAX || len <= some) && found <= count);
		free(out);
	}
	free(ids);
}

/* Call small_keep for a listing of 20 files, of which the first is empty, with memory of exactly the necessary size. */
static size_t
kept(const struct small_before *before, const uint8_t *listing, const uint64_t *places, const uint8_t *kinds, uint64_t *sum)
{
	uint8_t *seen = exactly(20), *take = exactly(20), *marks = exactly(20), *streams = exactly(20), *former = exactly(20), drop[SMALL_MAX_STREAMS] = {0};
	uint64_t *offsets = exactly(160), *sizes = exactly(160), used[2 * SMALL_MAX_STREAMS + 1] = {0}, runs[60];
	size_t count, i, len;

	memcpy(seen, kinds, 20);
	memset(take, 0, 20);
	memset(marks, 0, 20);
	memset(offsets, 0, 160);
	drop[3] = 1;
	count = small_keep(before, drop, listing, places, 20, seen, take, marks, streams, former, offsets, sizes, used);
	for (i = *sum = 0; count != SIZE_MAX && i < SMALL_MAX_STREAMS; i++)
		*sum += used[i];
	for (i = len = 0; count != SIZE_MAX && i < 20; i++)
		len += sizes[i];
	need(count == SIZE_MAX || *sum + used[SMALL_MAX_STREAMS] == len);
	for (i = 0; count != SIZE_MAX && i < 20; i++)
		need((seen[i] == SCAN_KEPT || seen[i] == SCAN_KEPT_OTHER) == (marks[i] != 0) && (seen[i] == SCAN_KEPT) == (take[i] != 0));
	if (count != SIZE_MAX) {
		len = small_encode(streams, offsets, sizes, 20, runs);
		need(len == SIZE_MAX || (len <= 60 && len % 3 == 0));
	}
	free(seen);
	free(take);
	free(marks);
	free(streams);
	free(former);
	free(offsets);
	free(sizes);
	return (count);
}

static void
keep(const uint8_t *listing, size_t len, const uint64_t *places, const uint8_t *kinds, uint64_t total)
{
	uint64_t runs[12] = {10, 1, 5, 9, 0, 0}, sum;
	uint8_t marks[20];
	struct small_before before = {listing, marks, runs, len, 20, 6, INT64_MAX, 0};
	int i, j;

	memset(marks, SCAN_BUNDLED, sizeof(marks));
	marks[0] = SCAN_EMPTY;
	need(kept(&before, listing, places, kinds, &sum) == 20 && sum == total);
	before.since = 1;
	need(kept(&before, listing, places, kinds, &sum) == 0 && sum == 0);
	before.since = INT64_MAX;
	marks[19] |= SCAN_DOUBTFUL;
	marks[18] |= SCAN_WITH_XATTRS;
	need(kept(&before, listing, places, kinds, &sum) == 19 && sum == total - 95);
	runs[1] = 2;
	need(kept(&before, listing, places, kinds, &sum) == SIZE_MAX);
	for (i = 0; i < 3000; i++) {
		size_t cut = draw() % 4 ? len : draw() % (len + 1);
		uint8_t *some = exactly(cut);

		memcpy(some, listing, cut);
		for (j = (int)(draw() % 4); j > 0 && cut > 0; j--)
			some[draw() % cut] = draw() % 2 ? (uint8_t)draw() : 0xff;
		for (j = 0; j < 20; j++)
			marks[j] = draw() % 8 ? (j ? SCAN_BUNDLED : SCAN_EMPTY) : (uint8_t)draw();
		before.listing = some;
		before.listing_len = cut;
		before.runs_len = draw() % 3 ? 0 : some_runs(runs, 12);
		before.since = draw() % 2 ? INT64_MAX : (int64_t)draw();
		(void)kept(&before, listing, places, kinds, &sum);
		free(some);
	}
}

static void
files(int top)
{
	struct entry_place places[20];
	struct entry_owners owners = {0, 07777, 0, 0, NULL, NULL};
	uint8_t frames[2000], *data, *back, *listing, has[40], *kinds;
	size_t total = 0, i, done, count, frames_len = 0;
	uint64_t *offsets, read, ends[SMALL_MAX_STREAMS], runs[] = {9, 1, 5, 10, 0, 0};
	int64_t len, last[3];
	int dir = -1, other = -1;

	need(mkdirat(top, "files", 0700) == 0 && (dir = openat(top, "files", O_RDONLY | O_DIRECTORY)) >= 0);
	need(mkdirat(top, "other", 0700) == 0 && (other = openat(top, "other", O_RDONLY | O_DIRECTORY)) >= 0);
	for (i = 0; i < 20; i++) {
		char name[8];

		sprintf(name, "n%02zu", i);
		frames_len += frame(frames + frames_len, name, (uint8_t)(i * 5));
		total += (i * 5) & 0x7f;
	}
	need(entries_count(frames, frames_len, 0) == 20 && entries_split(frames, frames_len, 0, NULL, 0, places, 20, ends) == 20);
	need(entries_split(frames, frames_len, 0, NULL, 0, places, 19, ends) == SIZE_MAX);
	need(entries_select(frames, frames_len, 0, NULL, 0, (const uint8_t *)"n\0" "1\0", 4, places, 20, ends) == 11);
	need(entries_select(frames, frames_len, 0, NULL, 0, (const uint8_t *)"n07", 3, places, 1, ends) == 1 && ends[0] == total);
	need(entries_select(frames, frames_len, 0, NULL, 0, (const uint8_t *)"n", 1, places, 0, ends) == 0);
	need(entries_select(frames, frames_len, 0, NULL, 0, (const uint8_t *)"n\0", 2, places, 19, ends) == SIZE_MAX);
	data = exactly(total);
	for (i = 0; i < total; i++)
		data[i] = (uint8_t)draw();
	need(entries_split(frames, frames_len, 0, NULL, 0, places, 20, ends) == 20);
	need(entries_write(dir, frames, places, 0, 20, &owners, 0, data, total, 0) == 20);
	need(entries_write(dir, frames, places, 0, 20, &owners, 0, data, total, 0) == 0);
	need(entries_write(other, frames, places, 0, 20, &owners, 0, data, total - 1, 0) == 19);
	need(entries_split(frames, frames_len, 0, runs, 6, places, 20, ends) == 20 && places[1].stream == 1 && places[1].offset == 5);
	need(places[10].stream == 0 && places[10].offset == 0 && ends[1] == 5 + 225 && ends[0] + 225 == total);
	need(entries_select(frames, frames_len, 0, runs, 6, (const uint8_t *)"n07", 3, places, 1, ends) == 1 && places[0].offset == 110);
	need(entries_split(frames, frames_len, 0, runs, 5, places, 20, ends) == SIZE_MAX);
	runs[0] = 10;
	need(entries_split(frames, frames_len, 0, runs, 6, places, 20, ends) == SIZE_MAX);
	need(entries_split(frames, frames_len, 0, NULL, 0, places, 20, ends) == 20);
	damaged(other, frames, frames_len);
	len = scan_list(dir, NULL, 0);
	listing = exactly((size_t)len);
	need(scan_list(dir, listing, (size_t)len) == len);
	offsets = exactly((size_t)len / sizeof(struct scan_entry) * sizeof(*offsets));
	kinds = exactly((size_t)len / sizeof(struct scan_entry));
	count = scan_survey(listing, (size_t)len, 100, offsets, kinds, last);
	need(count == 20);
	for (i = 0; i < count; i++) {
		struct scan_entry entry;

		memcpy(&entry, listing + offsets[i], sizeof(entry));
		need(kinds[i] == SCAN_PLAIN && entry.size == places[i].size && entry.mtime == places[i].mtime &&
		    entry.mtime_ns == places[i].mtime_ns && (entry.mode & 07777) == 0640);
	}
	join(listing, offsets, count, 20 * 100 + 400);
	keep(listing, (size_t)len, offsets, kinds, total);
	back = exactly(total);
	need(scan_read(dir, listing, offsets, 20, back, total, has, &read) == 20 && read == total);
	need(memcmp(back, data, total) == 0);
	for (i = 0; i < 200; i++) {
		size_t room = draw() % (total + 1);
		uint8_t *some = exactly(room);

		done = scan_read(dir, listing, offsets, 20, some, room, has, &read);
		need(done <= 20 && read <= room);
		free(some);
	}
	need(unlinkat(dir, "n07", 0) == 0 && symlinkat("n08", dir, "n07") == 0);
	need(scan_read(dir, listing, offsets, 20, back, total, has, &read) == 7);
	for (i = 0; i < 1000; i++) {
		size_t cut = draw() % 2 ? (size_t)len : draw() % (size_t)len, room = cut / sizeof(struct scan_entry);
		uint8_t *some = exactly(cut), *what = exactly(room);
		uint64_t *where = exactly(room * sizeof(*where));

		memcpy(some, listing, cut);
		if (cut > 0)
			some[draw() % cut] = (uint8_t)draw();
		need(scan_survey(some, cut, 100, where, what, last) <= room);
		free(where);
		free(what);
		free(some);
	}
	free(kinds);
	free(offsets);
	free(back);
	free(listing);
	free(data);
	close(dir);
	close(other);
}

int
main(int argc, char **argv)
{
	int top = -1, fd, i, j, k;

	need(argc == 2 && (top = open(argv[1], O_RDONLY | O_DIRECTORY)) >= 0);
	for (i = 0; i < 2; i++)
		for (j = 0; j < 3; j++)
			for (k = 0; k < 5; k++) {
				char name[64];

				sprintf(name, "d%d", i);
				(void)mkdirat(top, name, 0700);
				sprintf(name, "d%d/sub%d", i, j);
				(void)mkdirat(top, name, 0700);
				sprintf(name, "d%d/sub%d/file%d", i, j, k);
				need((fd = openat(top, name, O_WRONLY | O_CREAT, 0600)) >= 0);
				need(write(fd, name, strlen(name)) > 0);
				close(fd);
			}
	compare(top);
	times();
	files(top);
	printf("%d\n", 3000);
	return (0);
}
