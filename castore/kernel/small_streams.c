#define _GNU_SOURCE
#include "small_streams.h"

#include "dir_entries.h"
#include "dir_listing.h"

#include <limits.h>
#include <string.h>

void
small_begin(struct small_cursor *cursor, const uint64_t *runs, size_t runs_len)
{
	memset(cursor, 0, sizeof(*cursor));
	cursor->runs = runs;
	cursor->runs_len = runs_len;
}

int
small_next(struct small_cursor *cursor, uint64_t size, uint32_t *stream, uint64_t *offset)
{
	uint64_t *end;

	if (cursor->left == 0 && cursor->runs_len > 0) {
		const uint64_t *run = cursor->runs + cursor->at;

		if (cursor->runs_len - cursor->at < 3 || run[0] == 0 || run[1] >= SMALL_MAX_STREAMS)
			return (-1);
		cursor->left = run[0];
		cursor->stream = run[1];
		cursor->at += 3;
		end = cursor->ends + cursor->stream;
		if (run[2] > INT64_MAX - *end)
			return (-1);
		*end += run[2];
	}
	end = cursor->ends + cursor->stream;
	if (size > INT64_MAX - *end)
		return (-1);
	cursor->left -= cursor->runs_len > 0;
	*stream = (uint32_t)cursor->stream;
	*offset = *end;
	*end += size;
	return (0);
}

int
small_is_complete(const struct small_cursor *cursor)
{
	size_t i, used = 0;

	for (i = 0; i < SMALL_MAX_STREAMS; i++)
		if (cursor->ends[i] > 0) {
			if (used != i)
				return (0);
			used = i + 1;
		}
	return (cursor->left == 0 && cursor->at == cursor->runs_len);
}

size_t
small_encode(const uint8_t *streams, const uint64_t *offsets, const uint64_t *sizes, size_t count, uint64_t *runs)
{
	uint64_t ends[SMALL_MAX_STREAMS] = {0};
	size_t at = 0, i;

	for (i = 0; i < count; i++) {
		uint64_t stream = streams[i];

		if (stream == SMALL_NO_STREAM)
			continue;
		if (stream >= SMALL_MAX_STREAMS || offsets[i] < ends[stream])
			return (SIZE_MAX);
		if (at > 0 && runs[at - 2] == stream && offsets[i] == ends[stream]) {
			runs[at - 3]++;
		} else {
			runs[at] = 1;
			runs[at + 1] = stream;
			runs[at + 2] = offsets[i] - ends[stream];
			at += 3;
		}
		ends[stream] = offsets[i] + sizes[i];
	}
	return (at == 3 && runs[1] == 0 && runs[2] == 0 ? 0 : at);
}

/* An entry of a record's listing, and its place. */
struct old_entry {
	struct scan_entry entry;
	const uint8_t *name;
	uint64_t offset;
	uint32_t stream;
	uint8_t mark;
};

/* Get the entry at *at of a record's listing, which may be damaged, and advance *at.  Returns 0, or -1. */
static int
next_old(const struct small_before *before, uint64_t number, uint64_t *at, struct small_cursor *cursor, struct old_entry *old)
{
	uint64_t left = before->listing_len - *at, len;

	if (left < sizeof(old->entry))
		return (-1);
	memcpy(&old->entry, before->listing + *at, sizeof(old->entry));
	len = sizeof(old->entry) + (((uint64_t)old->entry.name_len + 7) & ~UINT64_C(7));
	if (old->entry.name_len > NAME_MAX || len > left)
		return (-1);
	old->name = before->listing + *at + sizeof(old->entry);
	old->mark = before->marks[number];
	old->stream = SMALL_NO_STREAM;
	old->offset = 0;
	*at += len;
	if ((old->mark & SCAN_BUNDLED) == 0)
		return (0);
	return (small_next(cursor, old->entry.size, &old->stream, &old->offset));
}

/* Whether the places of a record are valid. */
static int
is_valid(const struct small_before *before)
{
	struct small_cursor cursor;
	struct old_entry old;
	uint64_t i, at = 0;

	small_begin(&cursor, before->runs, before->runs_len);
	for (i = 0; i < before->entries; i++)
		if (next_old(before, i, &at, &cursor, &old) != 0)
			return (0);
	return (small_is_complete(&cursor));
}

static int
order_of(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
	int order = memcmp(a, b, a_len < b_len ? a_len : b_len);

	return (order != 0 ? order : (a_len > b_len) - (a_len < b_len));
}

/* Whether a file of the last scan is known well enough to keep its place, if its entry is the same. */
static int
is_sure(const struct small_before *before, const struct old_entry *old)
{
	if ((old->mark & (old->entry.size > 0 ? SCAN_BUNDLED : SCAN_EMPTY)) == 0 || (old->mark & SCAN_DOUBTFUL) != 0)
		return (0);
	if (old->entry.ctime != before->since)
		return (old->entry.ctime < before->since);
	return ((int64_t)old->entry.ctime_ns < before->since_ns);
}

size_t
small_keep(const struct small_before *before, const uint8_t *drop, const uint8_t *listing, const uint64_t *places, size_t count,
    uint8_t *kinds, uint8_t *take, uint8_t *marks, uint8_t *streams, uint8_t *former, uint64_t *offsets, uint64_t *sizes, uint64_t *used)
{
	struct small_cursor cursor;
	struct old_entry old = {0};
	uint64_t number = 0, at = 0;
	size_t i, kept = 0;
	int is_open = 0;

	if (!is_valid(before))
		return (SIZE_MAX);
	small_begin(&cursor, before->runs, before->runs_len);
	for (i = 0; i < count; i++) {
		struct scan_entry entry;
		const uint8_t *name = listing + places[i] + sizeof(entry);
		int order = -1, same;

		memcpy(&entry, listing + places[i], sizeof(entry));
		sizes[i] = entry.size;
		streams[i] = former[i] = SMALL_NO_STREAM;
		for (;;) {
			if (!is_open && number == before->entries)
				break;
			if (!is_open) {
				(void)next_old(before, number++, &at, &cursor, &old);
				is_open = 1;
			}
			if ((order = order_of(old.name, old.entry.name_len, name, entry.name_len)) >= 0)
				break;
			is_open = 0;
		}
		if (kinds[i] != SCAN_PLAIN && kinds[i] != SCAN_SMALL)
			continue;
		same = is_open && order == 0 && memcmp(&old.entry, &entry, sizeof(entry)) == 0;
		if (!same || !is_sure(before, &old) || (old.stream != SMALL_NO_STREAM && drop[old.stream])) {
			used[SMALL_MAX_STREAMS] += entry.size;
			if (same && old.stream != SMALL_NO_STREAM)
				used[SMALL_MAX_STREAMS + 1 + old.stream] += entry.size;
			if (is_open && order == 0) {
				former[i] = (uint8_t)old.stream;
				offsets[i] = old.offset;
			}
			continue;
		}
		marks[i] = old.mark & (SCAN_BUNDLED | SCAN_EMPTY | SCAN_WITH_XATTRS);
		streams[i] = (uint8_t)old.stream;
		offsets[i] = old.offset;
		if (old.stream != SMALL_NO_STREAM)
			used[old.stream] += entry.size;
		if (kinds[i] == SCAN_PLAIN && (old.mark & SCAN_WITH_XATTRS) == 0) {
			take[i] = ENTRY_AS_LISTED;
			kinds[i] = SCAN_KEPT;
		} else {
			kinds[i] = SCAN_KEPT_OTHER;
		}
		kept++;
	}
	return (kept);
}
