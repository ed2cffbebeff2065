/* Numbers that look random and depend on what they are of alone: the same in every row and batch. One text for C and
 * CUDA, so that both give the same bits. */
#ifndef RA_HASH_H
#define RA_HASH_H

#include <stdint.h>

#ifdef __CUDACC__
#define RA_HASH_FUNCTION static __host__ __device__ inline
#else
#define RA_HASH_FUNCTION static inline
#endif

/* splitmix64's finaliser. */
RA_HASH_FUNCTION uint64_t ra_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

RA_HASH_FUNCTION uint64_t ra_hash(uint64_t seed, int64_t head, int64_t position)
{
    return ra_mix(seed + 0x9e3779b97f4a7c15u * ((uint64_t)head * 0x100000001u + (uint64_t)position + 1));
}

/* Another for each `time`. */
RA_HASH_FUNCTION uint64_t ra_hash_at(uint64_t hash, int64_t time)
{
    return ra_mix(hash + 0x9e3779b97f4a7c15u * ((uint64_t)time + 1));
}

/* In [0, 1), of 24 bits. */
RA_HASH_FUNCTION float ra_unit_float(uint64_t hash) { return (float)(hash >> 40) * 0x1p-24f; }

/* In (0, 1), neither 0 nor 1: the largest would round up. */
RA_HASH_FUNCTION double ra_unit(uint64_t hash)
{
    double unit = ((double)(hash >> 11) + 0.5) * 0x1p-53;
    return unit < 1 ? unit : 1 - 0x1p-53;
}

#endif
