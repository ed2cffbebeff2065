/* Names ra_<op>_<dtype>_<isa>, the part of the table that they fill, and what the vector files share. */
#ifndef RA_NAMES_H
#define RA_NAMES_H

#include "kernels.h"

#define RA_PASTE_(a, b) a##b
#define RA_PASTE(a, b) RA_PASTE_(a, b)
#define RA_NAME_(op, dtype, isa) ra_##op##_##dtype##_##isa
#define RA_NAME(op, dtype, isa) RA_NAME_(op, dtype, isa)

#define RA_PAGE_KERNELS(dtype, isa)                                                                                    \
    {                                                                                                                  \
        .qk = ra_qk_##dtype##_##isa, .pv = ra_pv_##dtype##_##isa, .square_norms = ra_square_norms_##dtype##_##isa,     \
        .pair_norms = ra_pair_norms_##dtype##_##isa, .weighted_sum = ra_weighted_sum_##dtype##_##isa,                  \
        .move_keys = ra_move_keys_##dtype##_##isa, .to_float = ra_to_float_##dtype##_##isa,                            \
        .from_float = ra_from_float_##dtype##_##isa, .all_finite = ra_all_finite_##dtype##_##isa,                      \
    }

#define RA_PAGE_TABLE(isa)                                                                                             \
    {                                                                                                                  \
        [RA_F32] = RA_PAGE_KERNELS(f32, isa), [RA_BF16] = RA_PAGE_KERNELS(bf16, isa),                                  \
        [RA_F16] = RA_PAGE_KERNELS(f16, isa),                                                                          \
    }

/* The entries for rows of float32. */
#define RA_ROW_TABLE(isa)                                                                                              \
    .read = ra_read_f32_##isa, .above = ra_above_f32_##isa, .max = ra_max_f32_##isa, .exp_sum = ra_exp_sum_f32_##isa,  \
    .softmax_page = ra_softmax_page_f32_##isa, .scale = ra_scale_f32_##isa, .weigh = ra_weigh_f32_##isa,               \
    .peak = ra_peak_f32_##isa, .recur = ra_recur_f32_##isa, .spread = ra_spread_f32_##isa,                             \
    .abs_sum = ra_abs_sum_f32_##isa

#define RA_INLINE static inline __attribute__((always_inline))
#define RA_NOINLINE __attribute__((noinline))
/* Before a loop of a few turns, known when it is inlined: write them all out. */
#ifdef __clang__
#define RA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RA_UNROLL _Pragma("GCC unroll 16")
#endif

/* Brings in memory that is needed soon (ra_ahead) at the pace at which other memory is read. */
typedef struct fetcher {
    const ra_ahead *ahead; /* NULL: nothing to bring */
    size_t due, at;        /* bytes read but not yet paid for; place in every stream */
} fetcher;

/* `bytes` of them have been read, at most RA_STREAMS lines. */
RA_INLINE void fetch_as_read(fetcher *f, size_t bytes)
{
    if (!f->ahead)
        return;
    f->due += bytes;
    if (f->due < RA_STREAMS * 64)
        return;
    f->due -= RA_STREAMS * 64;
    RA_UNROLL for (size_t i = 0; i < RA_STREAMS; i++) __builtin_prefetch(f->ahead->stream[i] + f->at);
    f->at += 64;
}

#endif
