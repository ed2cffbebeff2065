/* The hot loops, once per instruction set, behind one table. Callers have validated everything; kernels cannot fail.
 *
 * All work on one page (csrc/include/reasonalloc.h has the format): T = RA_PAGE_TOKENS = 16 tokens, D dimensions,
 * K [D][16], V [16][D], any D >= 1, pages aligned to 64 bytes. Arithmetic is float32 whatever the page's dtype.
 * Lanes of K beyond the tokens in use hold zeros or stale finite numbers: their results are finite and ignored. */
#ifndef RA_KERNELS_H
#define RA_KERNELS_H

#include "reasonalloc.h"

/* Memory that is needed soon: the next lines (of 64 bytes) of RA_STREAMS streams. For each line that a kernel reads it
 * prefetches one of them in turn. Several streams at once, 4 KiB apart, keep more of the processor's
 * own prefetchers busy than one: a third more bandwidth where it was measured. */
#define RA_STREAMS 8
typedef struct ra_ahead {
    const char *stream[RA_STREAMS];
} ra_ahead;

typedef struct ra_page_kernels {
    /* out[i*16 + t] = sum_c q[i*D + c] * K[c][t] for i < m: 16 dot products a query, m >= 1. ahead: may be NULL. */
    void (*qk)(const float *q, size_t m, const void *k_page, size_t d, const ra_ahead *ahead, float *out);
    /* acc[i*D + c] += sum_{t < count} p[i*16 + t] * V[t][c] for i < m. ahead: may be NULL. */
    void (*pv)(const float *p, size_t m, const void *v_page, size_t count, size_t d, const ra_ahead *ahead, float *acc);
    /* out[t] = sum_c K[c][t]^2. */
    void (*square_norms)(const void *k_page, size_t d, float *out);
    /* out[i*16 + t] = sum_{f < pairs} w[i*pairs + f] * hypot(K[f*step][t], K[f*step + apart][t]) for i < m. */
    void (*pair_norms)(const void *k_page, const float *w, size_t m, size_t pairs, size_t step, size_t apart,
                       float *out);
    /* sum[c] += sum_t w[t] * K[c][t]; w has 16 entries. */
    void (*weighted_sum)(const void *k_page, const float *w, size_t d, float *sum);
    /* to.K[c][t] = from.K[c][lane[t]] for begin <= t < end; within one page too, where lane[t] >= t. lane:
     * 16 numbers below 16, whatever begin and end. */
    void (*move_keys)(const void *from, const uint8_t *lane, size_t begin, size_t end, size_t d, void *to);
    /* out[i] = x[i] for i < n: a row of elements as float32, and back (round to nearest even). */
    void (*to_float)(const void *x, size_t n, float *out);
    void (*from_float)(const float *x, size_t n, void *out);
    /* No NaN or infinity among n elements. */
    bool (*all_finite)(const void *x, size_t n);
} ra_page_kernels;

typedef struct ra_kernels {
    const char *name;
    ra_page_kernels page[RA_DTYPES];
    /* Reads n floats, the roofline of the benchmarks, in 8 streams side by side or, `streamed` false, in one; returns
     * their maximum, or 0 if that is more. n: a multiple of 128. */
    float (*read)(const float *x, size_t n, bool streamed);
    /* Bit t: x[t] * w[t] > bound, for 16 numbers. */
    uint32_t (*above)(const float *x, const float *w, float bound);
    /* The largest of n >= 1 numbers, none of them NaN. */
    float (*max)(const float *x, size_t n);
    /* x[i] = exp(x[i] - max); returns their sum. x[i] <= max; -inf gives 0. Relative error below 2e-7 of the
     * exponential of the float32 difference; results below 2^-126 may be 0. */
    float (*exp_sum)(float *x, size_t n, float max);
    /* Online softmax (arXiv 1805.02867) over one more page of m rows. Row i of p [m][16] holds logits, of which it sees
     * the first visible[i]; they become exp(logit - top[i]), the rest 0. top[i] grows to their maximum (from -inf), and
     * then shrink[i] = exp(old top - new top), else 1. sums [m][16], one for each lane, are scaled and added to.
     * m <= 16. */
    void (*softmax_page)(float *p, size_t m, const size_t *visible, float *top, float *sums, float *shrink);
    /* x[i] *= factor. */
    void (*scale)(float *x, size_t n, float factor);
    /* Weights of m queries for whole pages of slots, parts [pages][stride][16] of which the first m rows count, m >= 1:
     * w[i][s] = factors[i] * parts[s / 16][i][s % 16]. keep 0: out is only written. */
    /* out[s] = keep * out[s] + sum_i w[i][s]. */
    void (*weigh)(const float *parts, size_t stride, size_t m, const float *factors, size_t pages, float keep,
                  float *out);
    /* out[s] = max_i w[i][s], and of out[s] if `more`; no number is negative. */
    void (*peak)(const float *parts, size_t stride, size_t m, const float *factors, size_t pages, bool more,
                 float *out);
    /* Where x[s] >= bound: gap[s] = max(gap[s], now - last[s]), last[s] = now. Whole pages. */
    void (*recur)(const float *x, size_t pages, float bound, int32_t now, int32_t *last, int32_t *gap);
    /* The largest less the smallest of n >= 1 finite numbers: the same bits on every instruction set. */
    float (*spread)(const float *x, size_t n);
    /* sum of |x[i]|. */
    float (*abs_sum)(const float *x, size_t n);
} ra_kernels;

/* The table in use; never NULL. */
const ra_kernels *ra_kernels_get(void);

extern const ra_kernels ra_kernels_serial;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define RA_HAVE_X86 1
extern const ra_kernels ra_kernels_avx2;   /* AVX2 + FMA + F16C */
extern const ra_kernels ra_kernels_avx512; /* AVX-512 F, BW, VL, DQ */
#endif
#if defined(__AARCH64EL__) && (defined(__GNUC__) || defined(__clang__))
#define RA_HAVE_NEON 1
extern const ra_kernels ra_kernels_neon; /* ARMv8.0: every AArch64 has it */
#endif

#endif
