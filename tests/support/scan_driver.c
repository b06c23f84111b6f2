/* Calls the scan with damaged caches, and writes and reads files, in buffers of exact length, under sanitizers. */
#define _GNU_SOURCE
#include "driver.h"
#include "scan.h"

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

	need(scan_compare(top, "d0", cache, len, 0) == len);
	need(scan_compare(top, "d1", cache, len, 0) != len);
	need(scan_compare(top, "none", cache, len, 0) == 0);
	for (i = 0; i < 3000; i++) {
		size_t cut = draw() % 4 ? len : draw() % (len + 1);
		uint8_t *damaged = exactly(cut);

		memcpy(damaged, cache, cut);
		for (j = (int)(draw() % 6); j >= 0 && cut > 0; j--) {
			size_t at = draw() % 2 ? draw() % cut : draw() % (cut < 128 ? cut : 128);

			damaged[at] = draw() % 2 ? (uint8_t)draw() : 0xff;
		}
		(void)scan_compare(top, "d0", damaged, cut, draw() % 3 ? 0 : draw() % (len + 9));
		free(damaged);
	}
	free(cache);
	close(dir);
}

static void
files(int top)
{
	struct scan_file specs[20];
	char *names = exactly(20 * 8), *p = names;
	size_t total = 0, i, done, count = 0, at;
	uint8_t *data, *back, *listing, has[40];
	uint64_t offsets[40];
	int64_t len;
	int dir = -1;

	need(mkdirat(top, "files", 0700) == 0 && (dir = openat(top, "files", O_RDONLY | O_DIRECTORY)) >= 0);
	for (i = 0; i < 20; i++) {
		specs[i] = (struct scan_file){draw() % 5000, (int64_t)(1000 + i), 5, 0640, UINT32_MAX, UINT32_MAX};
		total += specs[i].size;
		p += sprintf(p, "n%02zu", i) + 1;
	}
	data = exactly(total);
	for (i = 0; i < total; i++)
		data[i] = (uint8_t)draw();
	need(scan_write(dir, specs, 20, names, data) == 20);
	need(scan_write(dir, specs, 20, names, data) == 0);
	len = scan_list(dir, NULL, 0);
	listing = exactly((size_t)len);
	need(scan_list(dir, listing, (size_t)len) == len);
	for (at = 0; at < (size_t)len; count++) {
		struct scan_entry entry;

		memcpy(&entry, listing + at, sizeof(entry));
		need(entry.size == specs[count].size && entry.mtime == specs[count].mtime && entry.mtime_ns == 5 &&
		    (entry.mode & 07777) == 0640);
		offsets[count] = at;
		at += sizeof(entry) + ((entry.name_len + 7) & ~7u);
	}
	need(count == 20);
	back = exactly(total);
	need(scan_read(dir, listing, offsets, 20, back, total, has) == 20 && memcmp(back, data, total) == 0);
	for (i = 0; i < 200; i++) {
		size_t room = draw() % (total + 1);
		uint8_t *some = exactly(room);

		done = scan_read(dir, listing, offsets, 20, some, room, has);
		need(done <= 20);
		free(some);
	}
	need(unlinkat(dir, "n07", 0) == 0 && symlinkat("n08", dir, "n07") == 0);
	need(scan_read(dir, listing, offsets, 20, back, total, has) == 7);
	free(back);
	free(listing);
	free(data);
	free(names);
	close(dir);
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
	files(top);
	printf("%d\n", 3000);
	return (0);
}
