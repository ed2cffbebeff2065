/* The k-th largest of many numbers, and the best of them, by a block. */
#pragma once
#include "common.cuh"

/* Floats in an order of whole numbers. */
RA_DEVICE uint32_t ordered(float x)
{
    uint32_t bits = as_bits(x == 0 ? 0.0f : x); /* -0 is 0 */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
RA_DEVICE float unordered(uint32_t key) { return as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

struct selected {
    float tau; /* the k-th largest */
    int above; /* numbers larger than it */
    int equal; /* to it */
};

constexpr int SELECT_INTS = 256 + 3 + 32;

/* Of the numbers that visit(f) calls f with, each thread its own; k >= 1. Four passes over 8 bits. counts: SELECT_INTS of
 * shared memory. */
template <class Visit> RA_DEVICE selected kth_largest(Visit visit, int k, shared<int> counts)
{
    const int each = most(1, 256 / (int)blockDim.x), top = 255 - (int)threadIdx.x * each; /* a thread's digits, downwards */
    uint32_t prefix = 0, mask = 0;
    selected result = {0, 0, 0};
    for (int shift = 24; shift >= 0; shift -= 8) {
        block_sync(); /* what stood there may still be read */
        for (int i = threadIdx.x; i < 256; i += blockDim.x)
            counts[i] = 0;
        block_sync();
        visit([&](float x) {
            uint32_t key = ordered(x);
            if ((key & mask) == prefix)
                shared_add(counts, key >> shift & 255, 1);
        });
        block_sync();
        int own = 0, total;
        for (int i = 0; i < each && top >= 0; i++)
            own += counts[top - i];
        int larger = result.above + block_prefix(own, counts + 259, &total);
        for (int i = 0; i < each && top >= 0; i++) {
            const int here = counts[top - i];
            if (larger < k && k <= larger + here) {
                counts[256] = top - i;
                counts[257] = larger;
                counts[258] = here;
            }
            larger += here;
        }
        block_sync();
        prefix |= (uint32_t)(int)counts[256] << shift;
        mask |= 255u << shift;
        result.above = counts[257];
        result.equal = counts[258];
    }
    result.tau = unordered(prefix);
    return result;
}

/* Calls take(i, place) for the `wanted` best of score(0 .. count): the first `protect` before all others, then by score, ties
 * to the newer; places count from 0 in the order of i. Each thread takes its own. counts: SELECT_INTS of shared memory. */
template <class Score, class Take>
RA_DEVICE void take_best(Score score, int count, int protect, int wanted, shared<int> counts, Take take)
{
    const int threads = blockDim.x;
    int at = 0;
    for (int part = 0; part < 2; part++) {
        const int begin = part ? protect : 0, end = part ? count : protect;
        const int some = part ? wanted - least(wanted, protect) : least(wanted, protect);
        if (some <= 0)
            continue;
        const selected best = kth_largest(
            [&](auto visit) {
                for (int i = begin + threadIdx.x; i < end; i += threads)
                    visit(score(i));
            },
            some, counts);
        const int passed_over = best.equal - (some - best.above); /* the oldest of those with the score tau */
        int seen = 0, total;
        for (int first = begin; first < end; first += threads) {
            const int i = first + threadIdx.x;
            const float x = i < end ? score(i) : 0;
            const bool tie = i < end && x == best.tau;
            const int before = block_prefix(tie, counts, &total) + seen;
            seen += total;
            const bool stays = i < end && (x > best.tau || (tie && before >= passed_over));
            const int place = block_prefix(stays, counts, &total) + at;
            if (stays)
                take(i, place);
            at += total;
        }
    }
}
