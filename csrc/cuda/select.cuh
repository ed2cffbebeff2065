/* The k-th largest of many numbers, by a block. */
#pragma once
#include "common.cuh"

/* Floats in an order of whole numbers. */
RA_DEVICE uint32_t ordered(float x)
{
    uint32_t bits = as_bits(x == 0 ? 0.0f : x); /* -0 is 0 */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
RA_DEVICE float unordered(uint32_t key) { return as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

constexpr int SELECT_INTS = 258;

/* The k-th largest (k >= 1) of the numbers that visit(f) calls f with, each thread its own; *above: how many are larger.
 * Four passes over 8 bits. counts: SELECT_INTS of shared memory. */
template <class Visit> RA_DEVICE float kth_largest(Visit visit, int k, shared<int> counts, int *above)
{
    uint32_t prefix = 0, mask = 0;
    *above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        block_sync(); /* what stood there may still be read */
        for (int i = threadIdx.x; i < 256; i += THREADS)
            counts[i] = 0;
        block_sync();
        visit([&](float x) {
            uint32_t key = ordered(x);
            if ((key & mask) == prefix)
                shared_add(counts, key >> shift & 255, 1);
        });
        block_sync();
        if (threadIdx.x == 0) {
            int larger = 0, digit = 255;
            for (; digit > 0 && *above + larger + counts[digit] < k; digit--)
                larger += counts[digit];
            counts[256] = digit;
            counts[257] = larger;
        }
        block_sync();
        prefix |= (uint32_t)(int)counts[256] << shift;
        mask |= 255u << shift;
        *above += counts[257];
    }
    return unordered(prefix);
}
