/* The Gaussian matrix of "dkv", [RA_DKV_RANK][D], of variance 1 / RA_DKV_RANK. It depends on (seed, tokens of the row) alone. */
#ifndef RA_GAUSSIAN_H
#define RA_GAUSSIAN_H

#include <math.h>

#include "hash.h"

enum { RA_DKV_RANK = 20 };

/* Its elements 2 i and 2 i + 1, one row behind the other, by Box and Muller. */
RA_HASH_FUNCTION void ra_gaussian_pair(uint64_t seed, int64_t tokens, int64_t i, float *even, float *odd)
{
    uint64_t hash = ra_hash_at(ra_hash(seed, i, 0), tokens);
    double radius = sqrt(-2 * log(ra_unit(hash)) / RA_DKV_RANK);
    double turn = ra_unit(ra_mix(hash + 1)), cosine, sine;
#ifdef __CUDA_ARCH__
    sincospi(2 * turn, &sine, &cosine); /* as sine_of_turns of machine.cuh */
#else
    cosine = cos(6.283185307179586 * turn);
    sine = sin(6.283185307179586 * turn);
#endif
    *even = (float)(radius * cosine);
    *odd = (float)(radius * sine);
}

#endif
