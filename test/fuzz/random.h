/*
 * random.h
 *		Numbers that depend on nothing but their seed.
 */
#ifndef FUZZ_RANDOM_H
#define FUZZ_RANDOM_H

typedef struct Random
{
	uint64		state;
} Random;

static inline uint64
random_bits(Random *random)
{
	uint64		z = (random->state += UINT64CONST(0x9E3779B97F4A7C15));

	z = (z ^ (z >> 30)) * UINT64CONST(0xBF58476D1CE4E5B9);
	z = (z ^ (z >> 27)) * UINT64CONST(0x94D049BB133111EB);
	return z ^ (z >> 31);
}

/* from 0 to limit - 1 */
static inline uint64
random_below(Random *random, uint64 limit)
{
	return random_bits(random) % limit;
}

static inline uint64
random_from(Random *random, uint64 low, uint64 high)
{
	return low + random_below(random, high - low + 1);
}

/* True once in `n` times. */
static inline bool
one_in(Random *random, uint64 n)
{
	return random_below(random, n) == 0;
}

#endif							/* FUZZ_RANDOM_H */
