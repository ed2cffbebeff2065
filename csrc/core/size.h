/* Products of sizes that callers give: checked in one place. */
#ifndef RA_SIZE_H
#define RA_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* *size *= factor. False, and *size is of no use, if the factor is negative or the product exceeds what memory and
 * pointer differences can hold. */
static inline bool ra_size_times(int64_t *size, int64_t factor)
{
    return factor >= 0 && !__builtin_mul_overflow(*size, factor, size) && (uint64_t)*size <= (uint64_t)PTRDIFF_MAX;
}

/* Whether a * b * c * d fits, with the product in *out. */
static inline bool ra_size_of(int64_t a, int64_t b, int64_t c, int64_t d, int64_t *out)
{
    *out = 1;
    return ra_size_times(out, a) && ra_size_times(out, b) && ra_size_times(out, c) && ra_size_times(out, d);
}

#endif
