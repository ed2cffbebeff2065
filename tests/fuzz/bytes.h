/* Turns a fuzzer's bytes into arguments. What lies past the end reads as zeros, so that every input means something. */
#ifndef RA_FUZZ_BYTES_H
#define RA_FUZZ_BYTES_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reasonalloc.h"

/* A promise of the header that does not hold: the fuzzer keeps the input. */
#define PROMISE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);                                    \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

typedef struct bytes {
    const uint8_t *at;
    size_t left;
} bytes;

static inline uint8_t take_byte(bytes *b)
{
    if (!b->left)
        return 0;
    b->left--;
    return *b->at++;
}

static inline uint64_t take_word(bytes *b)
{
    uint64_t x = 0;
    for (int i = 0; i < 8; i++)
        x = x << 8 | take_byte(b);
    return x;
}

/* In [low, high], high - low < 256. */
static inline int64_t take_between(bytes *b, int64_t low, int64_t high)
{
    return low + take_byte(b) % (high - low + 1);
}

/* Mostly in [low, high]; one in sixteen is a size that nobody means. */
static inline int64_t take_size(bytes *b, int64_t low, int64_t high)
{
    static const int64_t hostile[] = {INT64_MAX, INT64_MIN, -1,        0,         1LL << 31, 1LL << 32,
                                      1LL << 60, 1LL << 61, 1LL << 62, 1LL << 59, 1LL << 33, INT64_MAX / 2};
    uint8_t kind = take_byte(b);
    if (kind < 240)
        return low + kind % (high - low + 1);
    return kind - 240u < sizeof hostile / sizeof *hostile ? hostile[kind - 240] : (int64_t)take_word(b);
}

/* Mostly in [-1, 1]; rarely zero, huge, tiny or not finite. */
static inline float take_float(bytes *b)
{
    static const float odd[] = {0, -0.0f, 1e19f, -1e19f, 3e38f, 1e-40f, INFINITY, -INFINITY, NAN};
    int8_t x = (int8_t)take_byte(b);
    if (x != -128)
        return (float)x / 127;
    return odd[take_byte(b) % (sizeof odd / sizeof *odd)];
}

/* In [0, high), seldom something that is refused. */
static inline double take_setting(bytes *b, double high)
{
    uint8_t x = take_byte(b);
    return x < 250 ? x * high / 250 : x == 250 ? NAN : x == 251 ? INFINITY : x == 252 ? -1 : x == 253 ? 1e300 : high;
}

/* Exactly `size` bytes, so that the sanitizer sees one too many. */
static inline void *exactly(size_t size)
{
    void *memory = malloc(size);
    PROMISE(memory || !size);
    return memory;
}

static inline float *take_floats(bytes *b, size_t n)
{
    float *x = exactly(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = take_float(b);
    return x;
}

/* One of the instruction sets of this machine. */
static inline void take_isa(bytes *b)
{
    size_t count = 0;
    while (ra_isa_available(count))
        count++;
    PROMISE(ra_set_isa(ra_isa_available(take_byte(b) % count)) == RA_OK);
}

#endif
