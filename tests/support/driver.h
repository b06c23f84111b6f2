/* What the drivers share: numbers from a seed, and memory of exactly the right size, whose bounds sanitizers see. */
#ifndef CASTORE_DRIVER_H
#define CASTORE_DRIVER_H

#include <stdint.h>
#include <stdlib.h>

static uint64_t state = 88172645463325252u;

static uint64_t
draw(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state);
}

static void *
exactly(size_t len)
{
	void *p = malloc(len ? len : 1);

	if (p == NULL)
		abort();
	return (p);
}

#endif
