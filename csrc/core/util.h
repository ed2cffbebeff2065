/* Clock, memory, parallel loop, finiteness: small things that every file needs. */
#ifndef RA_UTIL_H
#define RA_UTIL_H

#include "kernels.h"
#include "reasonalloc.h"
#include "size.h"

#define PAGE RA_PAGE_TOKENS

static inline int64_t ra_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ra_max(int64_t a, int64_t b) { return a > b ? a : b; }
/* No overflow for any slots >= 0. */
static inline int64_t ra_pages_for(int64_t slots) { return slots / PAGE + (slots % PAGE != 0); }

/* Serial fallback where the caller gave no ra_parallel. */
void ra_run(ra_parallel parallel, int64_t count, int64_t grain, ra_body body, void *context);
int64_t ra_now_ns(void);

/* malloc, calloc and realloc of count * size, counted (ra_allocations); NULL on overflow too. Freed by free. */
void *ra_new(int64_t count, size_t size);
void *ra_new_zeroed(int64_t count, size_t size);
/* NULL leaves the old memory alone. */
void *ra_grown(void *old, int64_t count, size_t size);
/* For tests: of the allocations from now on, number `next` fails (1: the first); 0: none. */
void ra_fail_allocation(int64_t next);

/* No NaN or infinity among n elements. */
static inline bool ra_all_finite(ra_dtype dtype, const void *x, int64_t n)
{
    return ra_kernels_get()->page[dtype].all_finite(x, (size_t)n);
}

/* ---- Scratch: memory for the length of a call, taken piece by piece ---- */

typedef struct ra_scratch {
    char *memory; /* NULL: it only counts */
    size_t size, used;
} ra_scratch;

/* count * size bytes aligned to 64; NULL if they do not fit. While it only counts, what comes back is not memory, and
 * what overflows counts as more than there is. */
void *ra_scratch_take(ra_scratch *scratch, int64_t count, size_t size);
/* A part with `bytes` of its own, for a task that runs beside others. */
ra_scratch ra_scratch_part(ra_scratch *scratch, size_t bytes);
/* At least `bytes`, what lay in it is lost; false without memory, with the old ones left. */
bool ra_scratch_grow(ra_scratch *scratch, size_t bytes);

#endif
