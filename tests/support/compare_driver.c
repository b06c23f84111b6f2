/* Compares live directories with stored ones, out of damaged listings and states, in buffers of exact length. */
#define _GNU_SOURCE
#include "driver.h"
#include "dir_compare.h"
#include "dir_listing.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES 20

static void
need(int condition)
{
	if (!condition)
		abort();
}

/* Make files, and describe them as stored; the names are in `data`. */
static uint64_t
make(int dir, uint8_t *data, struct entry_place *places, uint8_t *content)
{
	struct timespec times[2] = {{9, 8}, {9, 8}};
	uint64_t total = 0;
	size_t i, j;

	memset(places, 0, FILES * sizeof(*places));
	for (i = 0; i < FILES; i++) {
		char name[8];
		int file;

		sprintf(name, "n%02zu", i);
		memcpy(data + 3 * i, name, 3);
		places[i].name = 3 * i;
		places[i].name_len = 3;
		places[i].len = 3 * FILES;
		places[i].size = i * 3;
		places[i].offset = total;
		places[i].mtime = 9;
		places[i].mtime_ns = 8;
		places[i].mode = 0600;
		places[i].plain = 1;
		places[i].bundled = i > 0;
		need((file = openat(dir, name, O_WRONLY | O_CREAT, 0600)) >= 0);
		for (j = 0; j < i * 3; j++)
			content[total + j] = (uint8_t)draw();
		need(write(file, content + total, i * 3) == (ssize_t)(i * 3) && futimens(file, times) == 0);
		close(file);
		total += i * 3;
	}
	return (total);
}

/* Read everything in windows of random chunks; return how many files have a state in the end. */
static size_t
read_all(int dir, const uint8_t *data, const struct entry_place *places, const uint8_t *listing, size_t len, const uint64_t *live, uint8_t *status,
    const uint8_t *content, uint64_t total)
{
	size_t first = 0, end, i, left = 0;
	uint64_t start = 0, got[3], ends[3];

	while (start < total) {
		struct compare_window window = {0, start, 0, 1 + draw() % 3, ends, got, NULL};

		for (i = 0; i < window.chunks; i++) {
			uint64_t most = total - start - window.len;

			window.len += most == 0 ? 0 : 1 + draw() % (most < 90 ? most : 90);
			ends[i] = start + window.len;
			got[i] = 0;
		}
		window.out = exactly(window.len);
		memset(window.out, 0, window.len);
		end = compare_read(dir, data, places, first, FILES, listing, len, live, &window, status);
		need(end <= FILES);
		for (i = 0; i < window.chunks; i++) {
			uint64_t at = i ? ends[i - 1] : start;
			uint8_t *stored = exactly(ends[i] - at);

			need(got[i] <= ends[i] - at);
			memcpy(stored, content + at, ends[i] - at);
			compare_stored(places, first, end < FILES ? end + 1 : FILES, &window, stored, at, ends[i] - at, status);
			free(stored);
		}
		free(window.out);
		first = end;
		start += window.len;
	}
	for (i = 0; i < FILES; i++)
		left += (status[i] & ~COMPARE_UNREAD) != 0;
	return (left);
}

int
main(int argc, char **argv)
{
	struct entry_owner owner = {0, 7};
	struct entry_owners owners = {0, 07777, 1, 0, &owner, NULL};
	struct compare_rule rule = {&owners, 07777, 1, 8, (const uint8_t *)"n05\0zzz"};
	struct compare_marks marks_rule = {1, 2, 4, 1, 9};
	struct entry_place places[FILES];
	uint8_t data[3 * FILES], content[3 * FILES * FILES], *listing;
	uint64_t total;
	int dir = -1, i, j, runs = 0;
	int64_t len;

	need(argc == 2 && (dir = open(argv[1], O_RDONLY | O_DIRECTORY)) >= 0);
	total = make(dir, data, places, content);
	len = scan_list(dir, NULL, 0);
	listing = exactly((size_t)len);
	need(scan_list(dir, listing, (size_t)len) == len);
	for (i = 0; i < 4000; i++, runs++) {
		size_t cut = i == 0 || draw() % 4 ? (size_t)len : draw() % (size_t)len, room = cut / sizeof(struct scan_entry), k;
		uint8_t *some = exactly(cut), *known = exactly(room), *status = exactly(FILES), *before = exactly(cut), marks[FILES];
		uint64_t *live = exactly(FILES * sizeof(*live)), *extra = exactly(room * sizeof(*extra));
		size_t others;

		memcpy(some, listing, cut);
		memcpy(before, listing, cut);
		for (j = i == 0 ? 0 : (int)(draw() % 4); j > 0 && cut > 0; j--) {
			some[draw() % cut] = draw() % 2 ? (uint8_t)draw() : 0xff;
			before[draw() % cut] = (uint8_t)draw();
		}
		for (k = 0; k < FILES; k++) {
			marks[k] = i == 0 ? 2 : (uint8_t)(draw() % 8);
			places[k].plain = i == 0 || draw() % 4 != 0;
			places[k].special = places[k].plain ? 0 : draw() % 4 ? (uint32_t)(draw() % 50) : ENTRY_FOLDER;
		}
		if (compare_known(some, cut, before, cut, marks, draw() % 8 ? FILES : draw() % FILES, &marks_rule, known) != 0)
			memset(known, 0, room);
		others = compare_match(data, places, FILES, some, cut, known, &rule, status, live, extra);
		need(others == SIZE_MAX || others <= room);
		if (i == 0)
			need(others == 0 && status[5] == COMPARE_LOOK && status[6] == (COMPARE_UNREAD | COMPARE_XATTRS));
		for (k = 0; i > 0 && k < FILES; k++)
			if (draw() % 8 == 0)
				status[k] |= COMPARE_UNREAD | COMPARE_XATTRS;
		if (others != SIZE_MAX) {
			size_t left = read_all(dir, data, places, some, cut, live, status, content, total);

			need(i > 0 || left == 1);
		}
		free(extra);
		free(live);
		free(before);
		free(status);
		free(known);
		free(some);
	}
	free(listing);
	close(dir);
	printf("%d\n", runs);
	return (0);
}
