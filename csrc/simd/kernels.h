/* The hot loops, once per instruction set, behind one table. Callers have validated everything; kernels cannot fail.
 *
 * All work on one page (csrc/include/reasonalloc.h has the format): T = RA_PAGE_TOKENS = 16 tokens, D dimensions,
 * K [D][16], V [16][D], any D >= 1, pages aligned to 64 bytes. Arithmetic is float32 whatever the page's dtype.
 * Lanes of K beyond the tokens in use hold zeros or stale finite numbers: their results are finite and ignored. */
#ifndef RA_KERNELS_H
#define RA_KERNELS_H

#include "reasonalloc.h"

typedef struct ra_page_kernels {
    /* out[i*16 + t] = sum_c q[i*D + c] * K[c][t] for i < m: 16 dot products a query, m >= 1. */
    void (*qk)(const float *q, size_t m, const void *k_page, size_t d, float *out);
    /* acc[i*D + c] += sum_{t < count} p[i*ldp + t] * V[t][c] for i < m. */
    void (*pv)(const float *p, size_t m, size_t ldp, const void *v_page, size_t count, size_t d, float *acc);
    /* out[t] = sum_c K[c][t]^2. */
    void (*square_norms)(const void *k_page, size_t d, float *out);
    /* sum[c] += sum_t w[t] * K[c][t]; w has 16 entries. */
    void (*weighted_sum)(const void *k_page, const float *w, size_t d, float *sum);
    /* out[i] = x[i] for i < n: a row of elements as float32, and back (round to nearest even). */
    void (*to_float)(const void *x, size_t n, float *out);
    void (*from_float)(const float *x, size_t n, void *out);
} ra_page_kernels;

typedef struct ra_kernels {
    const char *name;
    ra_page_kernels page[RA_DTYPES];
    /* x[i] = exp(x[i] - max); returns their sum. x[i] <= max; -inf gives 0. Relative error below 2e-7 of the exponential
     * of the float32 difference; results below 2^-126 may be 0. */
    float (*exp_sum)(float *x, size_t n, float max);
    /* x[i] *= factor. */
    void (*scale)(float *x, size_t n, float factor);
} ra_kernels;

/* The table in use; never NULL. */
const ra_kernels *ra_kernels_get(void);

extern const ra_kernels ra_kernels_serial;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define RA_HAVE_X86 1
extern const ra_kernels ra_kernels_avx2;   /* AVX2 + FMA + F16C */
extern const ra_kernels ra_kernels_avx512; /* AVX-512 F, BW, VL, DQ */
#endif

#endif
