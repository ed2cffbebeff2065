/* Clock, memory, parallel loop, finiteness: small things that every file needs. */
#define _POSIX_C_SOURCE 199309L
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "internal.h"

void ra_run(ra_parallel parallel, int64_t count, int64_t grain, ra_body body, void *context)
{
    if (count <= 0)
        return;
    if (parallel && count > grain)
        parallel(count, grain, body, context);
    else
        body(0, count, context);
}

int64_t ra_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + (int64_t)now.tv_nsec;
}

void *ra_new(int64_t count, size_t size)
{
    if (count < 0 || (size && (size_t)count > SIZE_MAX / size))
        return NULL;
    size_t bytes = (size_t)count * size;
    return malloc(bytes ? bytes : 1);
}

bool ra_grow(void **array, int64_t count, size_t size)
{
    if (count < 0 || (size && (size_t)count > SIZE_MAX / size))
        return false;
    size_t bytes = (size_t)count * size;
    void *grown = realloc(*array, bytes ? bytes : 1);
    if (!grown)
        return false;
    *array = grown;
    return true;
}

void ra_read_probe(const void *memory, size_t bytes, bool streamed)
{
    volatile float top = ra_kernels_get()->read(memory, bytes / 512 * 128, streamed); /* volatile: not optimised away */
    (void)top;
}

bool ra_all_finite(ra_dtype dtype, const void *x, int64_t n)
{
    uint32_t bad = 0; /* no early exit: the loop vectorises and input is finite nearly always */
    if (dtype == RA_F32) {
        const char *bytes = x;
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, bytes + 4 * i, 4);
            bad |= (uint32_t)((bits & 0x7f800000u) == 0x7f800000u);
        }
    } else {
        const uint16_t *halves = x;
        uint16_t exponent = dtype == RA_BF16 ? 0x7f80 : 0x7c00;
        for (int64_t i = 0; i < n; i++)
            bad |= (uint32_t)((halves[i] & exponent) == exponent);
    }
    return !bad;
}
