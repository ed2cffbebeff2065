/* Kernels for AVX-512 F, BW, VL and DQ: 16 floats a vector, one row of K in one register, masks for the tails. */
#include "kernels.h"

#ifdef RA_HAVE_X86
#include <immintrin.h>
#include <math.h>

#include "names.h"

/* For this file alone, so that the build needs no flags of its own; dispatch.c asks the processor first. */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#endif

#define ISA avx512
#define VEC 16
#define TOKEN_VECS 1
#define TILE_ROWS 8
#define RA_TILES TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8)
#define QK_STEPS(rows) ((rows) == 1 ? 8 : (rows) <= 4 ? 4 : (rows) <= 6 ? 2 : 1)
#define PV_COLUMNS(rows) ((rows) <= 2 ? 8 : (rows) <= 4 ? 4 : 2)

typedef __m512 vec;

RA_INLINE __mmask16 first(size_t n) { return (__mmask16)((1u << n) - 1u); }

RA_INLINE vec vec_zero(void) { return _mm512_setzero_ps(); }
RA_INLINE vec vec_set1(float x) { return _mm512_set1_ps(x); }
RA_INLINE vec vec_sqrt(vec x) { return _mm512_sqrt_ps(x); }
RA_INLINE vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
RA_INLINE vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
RA_INLINE vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
RA_INLINE vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
RA_INLINE vec vec_neg_fma(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }
RA_INLINE vec vec_round(vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

RA_INLINE vec vec_pow2(vec n)
{
    __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}

RA_INLINE vec vec_keep(vec x, vec test, float bound)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(test, _mm512_set1_ps(bound), _CMP_NLT_UQ), x);
}

RA_INLINE vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }

RA_INLINE uint32_t vec_above(vec x, float bound) { return _mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), _CMP_GT_OQ); }

RA_INLINE void vec_recur(vec x, float bound, int32_t now, int32_t *last, int32_t *gap)
{
    __mmask16 active = _mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), _CMP_GE_OQ);
    __m512i old = _mm512_loadu_si512(last), most = _mm512_loadu_si512(gap), time = _mm512_set1_epi32(now);
    _mm512_mask_storeu_epi32(gap, active, _mm512_max_epi32(most, _mm512_sub_epi32(time, old)));
    _mm512_mask_storeu_epi32(last, active, time);
}

RA_INLINE float vec_top(vec x) { return _mm512_reduce_max_ps(x); }

RA_INLINE float vec_sum(vec x) { return _mm512_reduce_add_ps(x); }

/* Sums of 4 vectors within each 128-bit lane: lane = [a b c d]. */
RA_INLINE vec lane_sums(vec a, vec b, vec c, vec d)
{
    __m512d ab = _mm512_castps_pd(vec_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
    __m512d cd = _mm512_castps_pd(vec_add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
    return vec_add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}

RA_INLINE vec vec_sums(const vec *x)
{
    vec a = lane_sums(x[0], x[1], x[2], x[3]), b = lane_sums(x[4], x[5], x[6], x[7]);
    vec c = lane_sums(x[8], x[9], x[10], x[11]), d = lane_sums(x[12], x[13], x[14], x[15]);
    vec ab = vec_add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    vec cd = vec_add(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    return vec_add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}

RA_INLINE vec load_f32(const float *x) { return _mm512_loadu_ps(x); }
RA_INLINE vec load_part_f32(const float *x, size_t n) { return _mm512_maskz_loadu_ps(first(n), x); }
RA_INLINE void store_f32(float *x, vec v) { _mm512_storeu_ps(x, v); }
RA_INLINE void store_part_f32(float *x, vec v, size_t n) { _mm512_mask_storeu_ps(x, first(n), v); }

RA_INLINE __m256i load_16bit(const uint16_t *x) { return _mm256_loadu_si256((const void *)x); }
RA_INLINE __m256i load_part_16bit(const uint16_t *x, size_t n) { return _mm256_maskz_loadu_epi16(first(n), x); }
RA_INLINE void store_16bit(uint16_t *x, __m256i v) { _mm256_storeu_si256((void *)x, v); }
RA_INLINE void store_part_16bit(uint16_t *x, __m256i v, size_t n) { _mm256_mask_storeu_epi16(x, first(n), v); }

/* One shuffle into the upper halves; widening and shifting would take two operations from those that multiply. */
RA_INLINE vec widen_bf16(__m256i x)
{
    const __m512i order = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0,
                                           3, 0, 2, 0, 1, 0, 0, 0);
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, order, _mm512_castsi256_si512(x)));
}

/* As ra_f32_to_bf16 does it. */
RA_INLINE __m256i narrow_bf16(vec x)
{
    __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    high = _mm512_mask_or_epi32(_mm512_srli_epi32(rounded, 16), nan, high, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(high);
}

RA_INLINE vec widen_f16(__m256i x) { return _mm512_cvtph_ps(x); }

RA_INLINE __m256i narrow_f16(vec x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

RA_INLINE vec load_bf16(const uint16_t *x) { return widen_bf16(load_16bit(x)); }
RA_INLINE vec load_part_bf16(const uint16_t *x, size_t n) { return widen_bf16(load_part_16bit(x, n)); }
RA_INLINE void store_bf16(uint16_t *x, vec v) { store_16bit(x, narrow_bf16(v)); }
RA_INLINE void store_part_bf16(uint16_t *x, vec v, size_t n) { store_part_16bit(x, narrow_bf16(v), n); }
RA_INLINE vec load_f16(const uint16_t *x) { return widen_f16(load_16bit(x)); }
RA_INLINE vec load_part_f16(const uint16_t *x, size_t n) { return widen_f16(load_part_16bit(x, n)); }
RA_INLINE void store_f16(uint16_t *x, vec v) { store_16bit(x, narrow_f16(v)); }
RA_INLINE void store_part_f16(uint16_t *x, vec v, size_t n) { store_part_16bit(x, narrow_f16(v), n); }

typedef struct order_f32 {
    __m512i lane;
    __mmask16 which;
} order_f32;

typedef struct order_16bit {
    __m256i lane;
    __mmask16 which;
} order_bf16, order_f16;

RA_INLINE order_f32 make_order_f32(const uint8_t *lane, size_t begin, size_t end)
{
    __m128i numbers = _mm_loadu_si128((const void *)lane);
    return (order_f32){.lane = _mm512_cvtepu8_epi32(numbers), .which = (__mmask16)(first(end) & ~first(begin))};
}

RA_INLINE struct order_16bit make_order_16bit(const uint8_t *lane, size_t begin, size_t end)
{
    __m128i numbers = _mm_loadu_si128((const void *)lane);
    return (struct order_16bit){.lane = _mm256_cvtepu8_epi16(numbers),
                                .which = (__mmask16)(first(end) & ~first(begin))};
}

RA_INLINE void move_row_f32(const float *from, const order_f32 *order, float *to)
{
    _mm512_mask_storeu_ps(to, order->which, _mm512_permutexvar_ps(order->lane, _mm512_loadu_ps(from)));
}

RA_INLINE void move_row_16bit(const uint16_t *from, const struct order_16bit *order, uint16_t *to)
{
    _mm256_mask_storeu_epi16(to, order->which, _mm256_permutexvar_epi16(order->lane, load_16bit(from)));
}

#define make_order_bf16 make_order_16bit
#define make_order_f16 make_order_16bit
#define move_row_bf16 move_row_16bit
#define move_row_f16 move_row_16bit

#include "vector_kernels.inc"

const ra_kernels ra_kernels_avx512 = {
    .name = "avx512",
    .page = RA_PAGE_TABLE(avx512),
    RA_ROW_TABLE(avx512),
};

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
