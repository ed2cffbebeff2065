#define _POSIX_C_SOURCE 199309L
#include "util.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static _Atomic(int64_t) allocations;
static _Atomic(int64_t) failing; /* number of the allocation that fails, for tests; 0: none */

int64_t ra_allocations(void) { return atomic_load_explicit(&allocations, memory_order_relaxed); }

void ra_fail_allocation(int64_t next) { atomic_store(&failing, next ? ra_allocations() + next : 0); }

static bool bytes_of(int64_t count, size_t size, size_t *bytes)
{
    int64_t product = (int64_t)size;
    if (size > PTRDIFF_MAX || !ra_size_times(&product, count))
        return false;
    *bytes = product ? (size_t)product : 1;
    int64_t number = atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed) + 1;
    return number != atomic_load_explicit(&failing, memory_order_relaxed);
}

void *ra_new(int64_t count, size_t size)
{
    size_t bytes;
    return bytes_of(count, size, &bytes) ? malloc(bytes) : NULL;
}

void *ra_new_zeroed(int64_t count, size_t size)
{
    size_t bytes;
    return bytes_of(count, size, &bytes) ? calloc(1, bytes) : NULL;
}

void *ra_grown(void *old, int64_t count, size_t size)
{
    size_t bytes;
    return bytes_of(count, size, &bytes) ? realloc(old, bytes) : NULL;
}

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

void *ra_scratch_take(ra_scratch *scratch, int64_t count, size_t size)
{
    int64_t bytes = (int64_t)size;
    size_t begin = (scratch->used + 63) / 64 * 64;
    if (!ra_size_times(&bytes, count) || begin > SIZE_MAX / 8 || (size_t)bytes > SIZE_MAX / 8 - begin) {
        scratch->used = scratch->memory ? scratch->used : SIZE_MAX / 8; /* a sum of such counts is no small one */
        return NULL;
    }
    if (!scratch->memory) {
        scratch->used = begin + (size_t)bytes;
        return &scratch->used; /* anything but NULL */
    }
    if (begin + (size_t)bytes > scratch->size)
        return NULL;
    scratch->used = begin + (size_t)bytes;
    return scratch->memory + begin;
}

ra_scratch ra_scratch_part(ra_scratch *scratch, size_t bytes)
{
    char *memory = ra_scratch_take(scratch, (int64_t)bytes, 1);
    return (ra_scratch){.memory = scratch->memory ? memory : NULL, .size = memory ? bytes : 0};
}

bool ra_scratch_grow(ra_scratch *scratch, size_t bytes)
{
    if (bytes <= scratch->size)
        return true;
    bytes += bytes / 8; /* a little more, so that slow growth does not come here at every step */
    char *memory = bytes < PTRDIFF_MAX - 64 ? ra_new((int64_t)bytes + 64, 1) : NULL;
    if (!memory)
        return false;
    free(scratch->memory);
    *scratch = (ra_scratch){.memory = memory, .size = bytes};
    return true;
}
