#define _GNU_SOURCE
#include "dir_entries.h"
#include "dir_listing.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NEW_FILE (O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC)
#define LENGTH 4 /* bytes of the length before each entry */
#define LEAST 10 /* bytes of the shortest entry */
#define MAX_SMALL_FILE (UINT64_C(1) << 20) /* bytes of the largest file in a small-file stream, which is read at once */
#define FIELDS 9
#define MOST 80 /* bytes of the longest entry, without its name */
#define SECOND 1000000000
#define REGULAR (S_IFREG >> 12)
#define FOLDER (S_IFDIR >> 12)
#define LINK (S_IFLNK >> 12)

/* The end of an entry without a link, device, extended attributes or holes: ["", 0, nil, [], nil]. */
static const uint8_t nothing[] = {0x95, 0xc4, 0x00, 0x00, 0xc0, 0x90, 0xc0};

/* MessagePack. */

static uint8_t *
big(uint8_t *out, uint8_t tag, uint64_t value, int bytes)
{
	*out++ = tag;
	while (bytes-- > 0)
		*out++ = (uint8_t)(value >> 8 * bytes);
	return (out);
}

static uint8_t *
put_unsigned(uint8_t *out, uint64_t value)
{
	if (value < 0x80)
		return (big(out, (uint8_t)value, 0, 0));
	if (value <= UINT8_MAX)
		return (big(out, 0xcc, value, 1));
	if (value <= UINT16_MAX)
		return (big(out, 0xcd, value, 2));
	if (value <= UINT32_MAX)
		return (big(out, 0xce, value, 4));
	return (big(out, 0xcf, value, 8));
}

static uint8_t *
put_signed(uint8_t *out, int64_t value)
{
	if (value >= 0)
		return (put_unsigned(out, (uint64_t)value));
	if (value >= -32)
		return (big(out, (uint8_t)value, 0, 0));
	if (value >= INT8_MIN)
		return (big(out, 0xd0, (uint64_t)value, 1));
	if (value >= INT16_MIN)
		return (big(out, 0xd1, (uint64_t)value, 2));
	if (value >= INT32_MIN)
		return (big(out, 0xd2, (uint64_t)value, 4));
	return (big(out, 0xd3, (uint64_t)value, 8));
}

struct reader {
	const uint8_t *at, *end;
	int failed;
};

static uint64_t
take_big(struct reader *in, int bytes)
{
	uint64_t value = 0;

	if (in->end - in->at < bytes) {
		in->failed = 1;
		return (0);
	}
	while (bytes-- > 0)
		value = value << 8 | *in->at++;
	return (value);
}

static uint64_t
take_unsigned(struct reader *in)
{
	uint8_t tag = (uint8_t)take_big(in, 1);

	if (tag < 0x80)
		return (tag);
	if (tag >= 0xcc && tag <= 0xcf)
		return (take_big(in, 1 << (tag - 0xcc)));
	in->failed = 1;
	return (0);
}

static int64_t
take_signed(struct reader *in)
{
	uint8_t tag;
	uint64_t value;

	if (in->at < in->end && (*in->at < 0x80 || (*in->at >= 0xcc && *in->at <= 0xcf))) {
		if ((value = take_unsigned(in)) > INT64_MAX)
			in->failed = 1;
		return ((int64_t)value);
	}
	tag = (uint8_t)take_big(in, 1);
	if (tag >= 0xe0)
		return ((int8_t)tag);
	switch (tag) {
	case 0xd0:
		return ((int8_t)take_big(in, 1));
	case 0xd1:
		return ((int16_t)take_big(in, 2));
	case 0xd2:
		return ((int32_t)take_big(in, 4));
	case 0xd3:
		return ((int64_t)take_big(in, 8));
	default:
		in->failed = 1;
		return (0);
	}
}

static size_t
length_at(const uint8_t *data)
{
	return ((size_t)data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16 | (size_t)data[3] << 24);
}

/* Add the owner of an entry, unless the entry before has the same one, as most have. */
static void
add_owner(struct entry_ids *ids, size_t *count, uint32_t uid, uint32_t gid)
{
	if (*count > 0 && ids[*count - 1].uid == uid && ids[*count - 1].gid == gid)
		return;
	ids[*count].uid = uid;
	ids[*count].gid = gid;
	++*count;
}

static int
by_owner(const void *a, const void *b)
{
	const struct entry_ids *one = a, *other = b;

	if (one->uid != other->uid)
		return (one->uid < other->uid ? -1 : 1);
	return (one->gid < other->gid ? -1 : one->gid > other->gid);
}

/* Sort the owners, and drop those that are equal.  A look-up of each owner would be quadratic in a mail spool. */
static size_t
unique_owners(struct entry_ids *ids, size_t count)
{
	size_t i, kept = 0;

	if (count < 2)
		return (count);
	qsort(ids, count, sizeof(*ids), by_owner);
	for (i = 1; i < count; i++)
		if (by_owner(&ids[kept], &ids[i]) != 0)
			ids[++kept] = ids[i];
	return (kept + 1);
}

static uint8_t *
encode(uint8_t *out, const struct scan_entry *entry, const uint8_t *name)
{
	uint8_t *begin = out;
	size_t len;

	out += LENGTH;
	*out++ = 0x90 | FIELDS;
	if (entry->name_len <= UINT8_MAX)
		out = big(out, 0xc4, entry->name_len, 1);
	else
		out = big(out, 0xc5, entry->name_len, 2);
	memcpy(out, name, entry->name_len);
	out = put_unsigned(out + entry->name_len, entry->mode >> 12);
	out = put_unsigned(out, entry->mode & 07777);
	out = put_unsigned(out, entry->uid);
	out = put_unsigned(out, entry->gid);
	out = put_signed(out, entry->mtime * SECOND + entry->mtime_ns);
	out = put_unsigned(out, entry->size);
	out = put_unsigned(out, entry->size > 0);
	memcpy(out, nothing, sizeof(nothing));
	out += sizeof(nothing);
	len = (size_t)(out - begin) - LENGTH;
	begin[0] = (uint8_t)len;
	begin[1] = (uint8_t)(len >> 8);
	begin[2] = begin[3] = 0;
	return (out);
}

size_t
entries_join(const uint8_t *listing, const uint64_t *places, const uint8_t *take, size_t count, const uint8_t *given,
    size_t given_len, uint8_t *out, size_t room, struct entry_ids *ids, size_t *ids_count)
{
	uint8_t *at = out;
	size_t i;

	*ids_count = 0;
	for (i = 0; i < count; i++) {
		struct scan_entry entry;
		size_t len;

		if (take[i] == ENTRY_LEFT_OUT)
			continue;
		if (take[i] == ENTRY_GIVEN) {
			if (given_len < LENGTH || (len = length_at(given) + LENGTH) > given_len ||
			    room - (size_t)(at - out) < len)
				return (SIZE_MAX);
			memcpy(at, given, len);
			at += len;
			given += len;
			given_len -= len;
			continue;
		}
		memcpy(&entry, listing + places[i], sizeof(entry));
		if (room - (size_t)(at - out) < MOST + (size_t)entry.name_len)
			return (SIZE_MAX);
		at = encode(at, &entry, listing + places[i] + sizeof(entry));
		add_owner(ids, ids_count, entry.uid, entry.gid);
	}
	*ids_count = unique_owners(ids, *ids_count);
	return ((size_t)(at - out));
}

size_t
entries_count(const uint8_t *data, size_t len, size_t at)
{
	size_t count = 0, entry;

	for (; at < len; at += entry, count++) {
		if (len - at < LENGTH)
			return (SIZE_MAX);
		entry = length_at(data + at);
		at += LENGTH;
		if (entry < LEAST || len - at < entry)
			return (SIZE_MAX);
	}
	return (count);
}

/* Whether a name is a valid file name: it must not lead to another directory. */
static int
is_name(const uint8_t *name, size_t len)
{
	if (len == 0 || len > NAME_MAX || memchr(name, '/', len) != NULL || memchr(name, '\0', len) != NULL)
		return (0);
	return (name[0] != '.' || (len > 1 && (len > 2 || name[1] != '.')));
}

/* The `special` of an entry of this type, of which `in` has the end.  The end of a link has its target. */
static uint32_t
special_of(uint64_t type, uint64_t content, const struct reader *in)
{
	size_t left = (size_t)(in->end - in->at), rest = sizeof(nothing) - 3;

	if (type == FOLDER && left == sizeof(nothing) && memcmp(in->at, nothing, left) == 0)
		return (ENTRY_FOLDER);
	if (type != LINK || content != 0 || left <= sizeof(nothing) || memcmp(in->at, nothing, 2) != 0 ||
	    left != sizeof(nothing) + in->at[2] || memcmp(in->end - rest, nothing + 3, rest) != 0)
		return (0);
	return (in->at[2]);
}

static int
decode(const uint8_t *data, struct entry_place *place)
{
	struct reader in = {data + place->at, data + place->at + place->len, 0};
	uint64_t type, mode, uid, gid, content;
	int64_t mtime;

	if (take_big(&in, 1) != (0x90 | FIELDS) || take_big(&in, 1) != 0xc4)
		return (-1);
	place->name_len = (uint32_t)take_big(&in, 1);
	if (in.failed || in.end - in.at < place->name_len || !is_name(in.at, place->name_len))
		return (-1);
	place->name = (uint64_t)(in.at - data);
	in.at += place->name_len;
	type = take_unsigned(&in);
	mode = take_unsigned(&in);
	uid = take_unsigned(&in);
	gid = take_unsigned(&in);
	mtime = take_signed(&in);
	place->size = take_unsigned(&in);
	content = take_unsigned(&in);
	if (in.failed || mode > 07777 || uid > UINT32_MAX || gid > UINT32_MAX || place->size > INT64_MAX)
		return (-1);
	place->mode = (uint32_t)mode;
	place->uid = (uint32_t)uid;
	place->gid = (uint32_t)gid;
	/* Round down.  A remainder by multiplication would overflow for the earliest times. */
	place->mtime = mtime / SECOND - (mtime % SECOND < 0);
	place->mtime_ns = (uint32_t)((mtime % SECOND + SECOND) % SECOND);
	place->bundled = content == 1;
	if (place->bundled && place->size > MAX_SMALL_FILE)
		return (-1);
	place->plain = type == REGULAR && content == (place->size > 0) &&
	    in.end - in.at == sizeof(nothing) && memcmp(in.at, nothing, sizeof(nothing)) == 0;
	place->special = special_of(type, content, &in);
	return (0);
}

/* Whether entry a sorts before entry b by name. */
static int
in_order(const uint8_t *data, const struct entry_place *a, const struct entry_place *b)
{
	size_t len = a->name_len < b->name_len ? a->name_len : b->name_len;
	int order = memcmp(data + a->name, data + b->name, len);

	return (order < 0 || (order == 0 && a->name_len < b->name_len));
}

/* Decode the entry at `at`, which follows `before` unless that is NULL.  Return 0 if it is not valid. */
static int
next_entry(const uint8_t *data, size_t len, size_t at, const struct entry_place *before, struct small_cursor *cursor,
    struct entry_place *place)
{
	if (len - at < LENGTH)
		return (0);
	memset(place, 0, sizeof(*place));
	place->len = (uint32_t)length_at(data + at);
	place->at = at + LENGTH;
	if (len - place->at < place->len || decode(data, place) != 0)
		return (0);
	if (place->bundled && small_next(cursor, place->size, &place->stream, &place->offset) != 0)
		return (0);
	return (before == NULL || in_order(data, before, place));
}

size_t
entries_split(const uint8_t *data, size_t len, size_t at, const uint64_t *runs, size_t runs_len,
    struct entry_place *places, size_t count, uint64_t *ends)
{
	struct small_cursor cursor;
	size_t i;

	small_begin(&cursor, runs, runs_len);
	for (i = 0; at < len; i++) {
		struct entry_place *place = places + i;

		if (i == count || !next_entry(data, len, at, i ? place - 1 : NULL, &cursor, place))
			return (SIZE_MAX);
		at = place->at + place->len;
	}
	memcpy(ends, cursor.ends, sizeof(cursor.ends));
	return (small_is_complete(&cursor) ? i : SIZE_MAX);
}

/* Whether a name consists of the pieces, with any bytes between them; see entries_select. */
static int
matches(const uint8_t *name, size_t len, const uint8_t *pieces, size_t pieces_len)
{
	const uint8_t *end = pieces + pieces_len, *gap = memchr(pieces, '\0', pieces_len), *found;
	size_t piece = gap ? (size_t)(gap - pieces) : pieces_len;

	if (len < piece || memcmp(name, pieces, piece) != 0)
		return (0);
	name += piece;
	len -= piece;
	while (gap != NULL) {
		pieces = gap + 1;
		gap = memchr(pieces, '\0', (size_t)(end - pieces));
		piece = (size_t)((gap ? gap : end) - pieces);
		if (gap == NULL)
			return (len >= piece && memcmp(name + len - piece, pieces, piece) == 0);
		if (piece == 0)
			continue;
		if ((found = memmem(name, len, pieces, piece)) == NULL)
			return (0);
		len -= (size_t)(found - name) + piece;
		name = found + piece;
	}
	return (len == 0);
}

size_t
entries_select(const uint8_t *data, size_t len, size_t at, const uint64_t *runs, size_t runs_len, const uint8_t *pieces,
    size_t pieces_len, struct entry_place *places, size_t count, uint64_t *ends)
{
	struct small_cursor cursor;
	struct entry_place two[2];
	size_t i, kept = 0;

	small_begin(&cursor, runs, runs_len);
	for (i = 0; at < len; i++) {
		struct entry_place *place = two + i % 2;

		if (!next_entry(data, len, at, i ? two + (i + 1) % 2 : NULL, &cursor, place))
			return (SIZE_MAX);
		at = place->at + place->len;
		if (place->plain && !matches(data + place->name, place->name_len, pieces, pieces_len))
			continue;
		if (kept == count)
			return (SIZE_MAX);
		places[kept++] = *place;
	}
	memcpy(ends, cursor.ends, sizeof(cursor.ends));
	return (small_is_complete(&cursor) ? kept : SIZE_MAX);
}

uint32_t
entry_wanted(const struct entry_owner *owners, uint64_t count, uint32_t stored)
{
	uint64_t low = 0, high = count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (owners[middle].stored < stored)
			low = middle + 1;
		else
			high = middle;
	}
	return (low < count && owners[low].stored == stored ? owners[low].wanted : stored);
}

static int
fill(int file, const struct entry_place *place, const struct entry_owners *owners, const uint8_t *content)
{
	struct timespec times[2];
	struct stat info;
	size_t done = 0;
	ssize_t got;

	while (done < place->size) {
		if ((got = write(file, content + done, place->size - done)) < 0)
			return (-1);
		done += (size_t)got;
	}
	/* chown clears set-id bits, so it comes before chmod.  futimens comes last: all other calls change times. */
	if (owners->change && fchown(file, entry_wanted(owners->users, owners->user_count, place->uid),
	    entry_wanted(owners->groups, owners->group_count, place->gid)) != 0)
		return (-1);
	if (fchmod(file, (mode_t)(place->mode & owners->mode)) != 0)
		return (-1);
	times[0].tv_sec = times[1].tv_sec = (time_t)place->mtime;
	times[0].tv_nsec = times[1].tv_nsec = (long)place->mtime_ns;
	if (futimens(file, times) != 0)
		return (-1);
	/* A file system replaces a time that it cannot store.  The caller then makes the file, and reports it. */
	if (place->mtime < 0 || place->mtime > INT32_MAX)
		return (fstat(file, &info) == 0 && info.st_mtim.tv_sec == (time_t)place->mtime ? 0 : -1);
	return (0);
}

size_t
entries_write(int fd, const uint8_t *data, const struct entry_place *places, size_t from, size_t to,
    const struct entry_owners *owners, uint32_t stream, const uint8_t *content, size_t len, uint64_t start)
{
	size_t i;

	for (i = from; i < to; i++) {
		const struct entry_place *place = places + i;
		char name[NAME_MAX + 1];
		uint64_t offset = place->size ? place->offset - start : 0;
		int file, failed;

		if (!place->plain || place->stream != stream)
			continue;
		if (place->size > len || offset > len - place->size)
			break;
		memcpy(name, data + place->name, place->name_len);
		name[place->name_len] = '\0';
		if ((file = openat(fd, name, NEW_FILE, 0600)) < 0)
			break;
		failed = fill(file, place, owners, content + offset) != 0;
		if (close(file) != 0 || failed) {
			(void)unlinkat(fd, name, 0);
			break;
		}
	}
	return (i);
}
