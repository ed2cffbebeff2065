/* Kernels for AVX2, FMA and F16C: 8 floats a vector, one row of K in two registers. */
#include "kernels.h"

#ifdef RA_HAVE_X86
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "names.h"

/* For this file alone, so that the build needs no flags of its own; dispatch.c asks the processor first. */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define ISA avx2
#define VEC 8
#define TOKEN_VECS 2
#define TILE_ROWS 5 /* 10 sums, one row of K, a query: 6 would fit, but the addresses would not */
#define RA_TILES TILE(1) TILE(2) TILE(3) TILE(4) TILE(5)
#define QK_STEPS(rows) ((rows) == 1 ? 4 : (rows) <= 3 ? 2 : 1)
#define PV_COLUMNS(rows) ((rows) == 1 ? 8 : (rows) == 2 ? 4 : 2)

typedef __m256 vec;

/* Lanes before n. */
RA_INLINE __m256i first(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

RA_INLINE vec vec_zero(void) { return _mm256_setzero_ps(); }
RA_INLINE vec vec_set1(float x) { return _mm256_set1_ps(x); }
RA_INLINE vec vec_sqrt(vec x) { return _mm256_sqrt_ps(x); }
RA_INLINE vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
RA_INLINE vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
RA_INLINE vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
RA_INLINE vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
RA_INLINE vec vec_neg_fma(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }
RA_INLINE vec vec_round(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

RA_INLINE vec vec_pow2(vec n)
{
    __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

RA_INLINE vec vec_keep(vec x, vec test, float bound)
{
    return _mm256_and_ps(x, _mm256_cmp_ps(test, _mm256_set1_ps(bound), _CMP_NLT_UQ));
}

RA_INLINE vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }

RA_INLINE uint32_t vec_above(vec x, float bound)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_set1_ps(bound), _CMP_GT_OQ));
}

RA_INLINE void vec_recur(vec x, float bound, int32_t now, int32_t *last, int32_t *gap)
{
    __m256i active = _mm256_castps_si256(_mm256_cmp_ps(x, _mm256_set1_ps(bound), _CMP_GE_OQ));
    __m256i old = _mm256_loadu_si256((const void *)last), most = _mm256_loadu_si256((const void *)gap);
    __m256i time = _mm256_set1_epi32(now), more = _mm256_max_epi32(most, _mm256_sub_epi32(time, old));
    _mm256_storeu_si256((void *)gap, _mm256_blendv_epi8(most, more, active));
    _mm256_storeu_si256((void *)last, _mm256_blendv_epi8(old, time, active));
}

RA_INLINE float vec_top(vec x)
{
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

RA_INLINE float vec_sum(vec x)
{
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* Sums of 4 vectors within each 128-bit lane: lane = [a b c d]. */
RA_INLINE vec lane_sums(vec a, vec b, vec c, vec d)
{
    return _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
}

RA_INLINE vec vec_sums(const vec *x)
{
    vec a = lane_sums(x[0], x[1], x[2], x[3]), b = lane_sums(x[4], x[5], x[6], x[7]);
    return vec_add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

RA_INLINE vec load_f32(const float *x) { return _mm256_loadu_ps(x); }
RA_INLINE vec load_part_f32(const float *x, size_t n) { return _mm256_maskload_ps(x, first(n)); }
RA_INLINE void store_f32(float *x, vec v) { _mm256_storeu_ps(x, v); }
RA_INLINE void store_part_f32(float *x, vec v, size_t n) { _mm256_maskstore_ps(x, first(n), v); }

RA_INLINE __m128i load_16bit(const uint16_t *x) { return _mm_loadu_si128((const void *)x); }
RA_INLINE void store_16bit(uint16_t *x, __m128i v) { _mm_storeu_si128((void *)x, v); }

/* There are no masks for 16-bit lanes: through the stack. */
RA_INLINE __m128i load_part_16bit(const uint16_t *x, size_t n)
{
    uint16_t lanes[VEC] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i] = x[i];
    return load_16bit(lanes);
}

RA_INLINE void store_part_16bit(uint16_t *x, __m128i v, size_t n)
{
    uint16_t lanes[VEC];
    store_16bit(lanes, v);
    memcpy(x, lanes, n * sizeof *x);
}

RA_INLINE vec widen_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }

/* As ra_f32_to_bf16 does it. */
RA_INLINE __m128i narrow_bf16(vec x)
{
    __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    high = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

RA_INLINE vec widen_f16(__m128i x) { return _mm256_cvtph_ps(x); }

RA_INLINE __m128i narrow_f16(vec x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

RA_INLINE vec load_bf16(const uint16_t *x) { return widen_bf16(load_16bit(x)); }
RA_INLINE vec load_part_bf16(const uint16_t *x, size_t n) { return widen_bf16(load_part_16bit(x, n)); }
RA_INLINE void store_bf16(uint16_t *x, vec v) { store_16bit(x, narrow_bf16(v)); }
RA_INLINE void store_part_bf16(uint16_t *x, vec v, size_t n) { store_part_16bit(x, narrow_bf16(v), n); }
RA_INLINE vec load_f16(const uint16_t *x) { return widen_f16(load_16bit(x)); }
RA_INLINE vec load_part_f16(const uint16_t *x, size_t n) { return widen_f16(load_part_16bit(x, n)); }
RA_INLINE void store_f16(uint16_t *x, vec v) { store_16bit(x, narrow_f16(v)); }
RA_INLINE void store_part_f16(uint16_t *x, vec v, size_t n) { store_part_16bit(x, narrow_f16(v), n); }

/* Lane by lane: shuffles across the halves of a register would gain little here. */
typedef struct order {
    const uint8_t *lane;
    size_t begin, end;
} order_f32, order_bf16, order_f16;

RA_INLINE struct order make_order(const uint8_t *lane, size_t begin, size_t end)
{
    return (struct order){.lane = lane, .begin = begin, .end = end};
}

RA_INLINE void move_row_f32(const float *from, const order_f32 *order, float *to)
{
    for (size_t t = order->begin; t < order->end; t++)
        to[t] = from[order->lane[t]];
}

RA_INLINE void move_row_16bit(const uint16_t *from, const struct order *order, uint16_t *to)
{
    for (size_t t = order->begin; t < order->end; t++)
        to[t] = from[order->lane[t]];
}

#define make_order_f32 make_order
#define make_order_bf16 make_order
#define make_order_f16 make_order
#define move_row_bf16 move_row_16bit
#define move_row_f16 move_row_16bit

#include "vector_kernels.inc"

const ra_kernels ra_kernels_avx2 = {
    .name = "avx2",
    .page = RA_PAGE_TABLE(avx2),
    RA_ROW_TABLE(avx2),
};

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
