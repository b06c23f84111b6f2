/* Finds copies by hashing the base, after Tichy, "The string-to-string correction problem with block moves", 1984. */
#include "delta.h"

#include <string.h>

#define WORD 8
/*
 * A table for a chunk of usual size fits into the second-level cache.  A longer
 * base gets a larger table, or its samples would be too sparse.
 */
#define LEAST_BITS 16
#define MOST_BITS 18
_Static_assert(DELTA_TABLE == 1 << MOST_BITS, "room for the largest table");
#define COARSE 8

/*
 * The shortest copies worth encoding, by the compressed cost of their numbers.
 * A copy that continues after a replacement of equal length costs least and has
 * no minimum.  Next cheapest is a copy from less than NEAR bytes after the
 * expected source: MIN_NEAR.  Any other copy needs MIN_FAR bytes.
 */
#define MIN_NEAR 12
#define MIN_FAR 20
#define NEAR 2048

static uint64_t
word_at(const uint8_t *p)
{
	uint64_t x;

	memcpy(&x, p, sizeof(x));
	return (x);
}

static uint32_t
slot_of(uint64_t word, int bits)
{
	return ((uint32_t)((word * 0x9E3779B185EBCA87u) >> (64 - bits)));
}

/* Return the length of the common prefix of a[0 .. n) and b[0 .. n). */
static size_t
common(const uint8_t *a, const uint8_t *b, size_t n)
{
	size_t i = 0;

	for (; n - i >= WORD; i += WORD) {
		uint64_t x = word_at(a + i) ^ word_at(b + i);

		if (x != 0) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
			return (i + (size_t)(__builtin_ctzll(x) >> 3));
#else
			return (i + (size_t)(__builtin_clzll(x) >> 3));
#endif
		}
	}
	while (i < n && a[i] == b[i])
		i++;
	return (i);
}

static uint8_t *
put_number(uint8_t *p, uint64_t x)
{
	for (; x >= 0x80; x >>= 7)
		*p++ = (uint8_t)(x | 0x80);
	*p++ = (uint8_t)x;
	return (p);
}

/* Return NULL if the number is truncated, or has more than 35 bits. */
static const uint8_t *
get_number(const uint8_t *p, const uint8_t *end, uint64_t *x)
{
	int shift;

	*x = 0;
	for (shift = 0; shift <= 28 && p < end; shift += 7) {
		*x |= (uint64_t)(*p & 0x7f) << shift;
		if ((*p++ & 0x80) == 0)
			return (p);
	}
	return (NULL);
}

/* Signed numbers in zigzag order: 0, -1, 1, -2, 2 and so on are encoded as 0, 1, 2, 3, 4. */
static uint64_t
folded(int64_t x)
{
	return (x < 0 ? ((uint64_t)-x << 1) - 1 : (uint64_t)x << 1);
}

static int64_t
unfolded(uint64_t x)
{
	return (x & 1 ? -(int64_t)((x + 1) >> 1) : (int64_t)(x >> 1));
}

/* A step is three numbers of up to five bytes each. */
#define MAX_STEP 15

size_t
delta_encode(const uint8_t *base, size_t base_len, const uint8_t *target, size_t len, uint8_t *out, size_t room,
    uint32_t *table)
{
	uint8_t *p = out, *end = out + room;
	size_t step, i, t = 0, literal = 0, expected = 0;
	int bits = LEAST_BITS;

	/* Fill the table backwards: of equal words the first wins, and the longest run can be copied after it. */
	while (bits < MOST_BITS && base_len >> bits >= COARSE)
		bits++;
	memset(table, 0xff, sizeof(*table) << bits);
	step = base_len >> bits < 4 ? 4 : base_len >> bits;
	if (base_len >= WORD) {
		for (i = (base_len - WORD) / step + 1; i-- > 0;)
			table[slot_of(word_at(base + i * step), bits)] = (uint32_t)(i * step);
	}

	while (t <= len) {
		size_t source = 0, back = 0, length = 0;

		if (len - t >= WORD) {
			uint64_t word = word_at(target + t);
			size_t aligned = expected + (t - literal);

			/* First guess: the target replaced as many bytes.  Second guess: it inserted the literal bytes. */
			if (aligned + WORD <= base_len && word_at(base + aligned) == word)
				source = aligned;
			else if (expected + WORD <= base_len && word_at(base + expected) == word)
				source = expected;
			else {
				source = table[slot_of(word, bits)];
				if (source == UINT32_MAX || word_at(base + source) != word) {
					t++;
					/* Give up early where the two are no longer similar. */
					if ((size_t)(end - p) < t - literal)
						return (0);
					continue;
				}
			}
			length = len - t < base_len - source ? len - t : base_len - source;
			length = WORD + common(target + t + WORD, base + source + WORD, length - WORD);
			while (back < t - literal && back < source && target[t - back - 1] == base[source - back - 1])
				back++;
			if (source != aligned &&
			    length + back < (source >= expected && source - expected < NEAR ? MIN_NEAR : MIN_FAR)) {
				t++;
				continue;
			}
		} else
			t = len;

		/* Write the literals up to here, then the copy; at the end, the literals only. */
		if ((size_t)(end - p) < MAX_STEP + (t - back - literal))
			return (0);
		p = put_number(p, t - back - literal);
		memcpy(p, target + literal, t - back - literal);
		p += t - back - literal;
		if (t == len)
			break;
		p = put_number(p, length + back);
		p = put_number(p, folded((int64_t)(source - back) - (int64_t)expected));
		expected = source + length;
		t += length;
		literal = t;
	}
	return ((size_t)(p - out));
}

int
delta_apply(const uint8_t *base, size_t base_len, const uint8_t *delta, size_t delta_len, uint8_t *out, size_t len)
{
	const uint8_t *p = delta, *end = delta + delta_len;
	uint64_t literals, length, moved;
	int64_t source = 0;
	size_t done = 0;

	for (;;) {
		if ((p = get_number(p, end, &literals)) == NULL || literals > (size_t)(end - p) ||
		    literals > len - done)
			return (-1);
		memcpy(out + done, p, literals);
		p += literals;
		done += literals;
		if (p == end)
			return (done == len ? 0 : -1);
		if ((p = get_number(p, end, &length)) == NULL || (p = get_number(p, end, &moved)) == NULL)
			return (-1);
		source += unfolded(moved);
		if (source < 0 || (uint64_t)source > base_len || length > base_len - (uint64_t)source ||
		    length > len - done)
			return (-1);
		memcpy(out + done, base + source, length);
		done += length;
		source += (int64_t)length;
	}
}

int
delta_apply_all(const uint8_t *base, size_t base_len, const uint8_t *const *deltas, const size_t *delta_lens,
    const size_t *lens, size_t count, size_t lens_max, uint8_t *scratch, uint8_t *out)
{
	size_t i;

	for (i = 0; i < count; i++) {
		uint8_t *to = i + 1 == count ? out : scratch + (i % 2) * lens_max;

		if (delta_apply(base, base_len, deltas[i], delta_lens[i], to, lens[i]) != 0)
			return (-1);
		base = to;
		base_len = lens[i];
	}
	return (0);
}

int
delta_part(const uint8_t *in, const uint32_t *lengths, size_t count, uint8_t *out, size_t room, size_t sizes[4])
{
	uint8_t *to[4];
	uint64_t literals, length, moved;
	size_t i;

	for (i = 0; i < 4; i++)
		to[i] = out + i * room;
	for (i = 0; i < count; i++) {
		const uint8_t *end = in + lengths[i];

		for (;;) {
			if ((in = get_number(in, end, &literals)) == NULL || literals > (size_t)(end - in))
				return (-1);
			to[0] = put_number(to[0], literals);
			memcpy(to[3], in, literals);
			to[3] += literals;
			in += literals;
			if (in == end)
				break;
			if ((in = get_number(in, end, &length)) == NULL || (in = get_number(in, end, &moved)) == NULL ||
			    length == 0)
				return (-1);
			to[1] = put_number(to[1], length);
			to[2] = put_number(to[2], folded(unfolded(moved) - (int64_t)literals));
		}
		to[1] = put_number(to[1], 0);
	}
	for (i = 0; i < 4; i++)
		sizes[i] = (size_t)(to[i] - (out + i * room));
	return (0);
}

int
delta_join(const uint8_t *in, const size_t sizes[4], uint8_t *out, uint32_t *lengths, size_t max)
{
	const uint8_t *from[4], *end[4];
	uint64_t literals, length, moved;
	size_t i, count;

	for (i = 0; i < 4; i++) {
		from[i] = i == 0 ? in : end[i - 1];
		end[i] = from[i] + sizes[i];
	}
	for (count = 0; from[0] != end[0]; count++) {
		uint8_t *begin = out;

		if (count == max)
			return (-1);
		for (;;) {
			if ((from[0] = get_number(from[0], end[0], &literals)) == NULL ||
			    literals > (size_t)(end[3] - from[3]) ||
			    (from[1] = get_number(from[1], end[1], &length)) == NULL)
				return (-1);
			out = put_number(out, literals);
			memcpy(out, from[3], literals);
			out += literals;
			from[3] += literals;
			if (length == 0)
				break;
			if ((from[2] = get_number(from[2], end[2], &moved)) == NULL)
				return (-1);
			out = put_number(out, length);
			out = put_number(out, folded(unfolded(moved) + (int64_t)literals));
		}
		lengths[count] = (uint32_t)(out - begin);
	}
	for (i = 1; i < 4; i++) {
		if (from[i] != end[i])
			return (-1);
	}
	return ((int)count);
}
