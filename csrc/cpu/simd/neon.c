/* Kernels for AArch64's NEON, no more than ARMv8.0: 4 floats a vector, one row of K in four of 32 registers. */
#include "kernels.h"

#ifdef RA_HAVE_NEON
#include <arm_neon.h>
#include <math.h>

#include "names.h"

#define ISA neon
#define VEC 4
#define TOKEN_VECS 4
#define TILE_ROWS 5 /* 20 sums, one row of K, 5 queries; 6 need all 32 registers, and sums go to the stack */
#define RA_TILES TILE(1) TILE(2) TILE(3) TILE(4) TILE(5)
#define QK_STEPS(rows) ((rows) <= 2 ? 2 : 1)
#define PV_COLUMNS(rows) ((rows) <= 2 ? 8 : 4)

typedef float32x4_t vec;

RA_INLINE vec vec_zero(void) { return vdupq_n_f32(0); }
RA_INLINE vec vec_set1(float x) { return vdupq_n_f32(x); }
RA_INLINE vec vec_sqrt(vec x) { return vsqrtq_f32(x); }
RA_INLINE vec vec_add(vec a, vec b) { return vaddq_f32(a, b); }
RA_INLINE vec vec_sub(vec a, vec b) { return vsubq_f32(a, b); }
RA_INLINE vec vec_mul(vec a, vec b) { return vmulq_f32(a, b); }
RA_INLINE vec vec_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
RA_INLINE vec vec_neg_fma(vec a, vec b, vec c) { return vfmsq_f32(c, a, b); }
RA_INLINE vec vec_round(vec x) { return vrndnq_f32(x); }

RA_INLINE vec vec_pow2(vec n)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}

RA_INLINE vec vec_keep(vec x, vec test, float bound)
{
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), vcltq_f32(test, vdupq_n_f32(bound))));
}

RA_INLINE vec vec_max(vec a, vec b) { return vmaxq_f32(a, b); }

RA_INLINE uint32_t vec_above(vec x, float bound)
{
    static const uint32_t bit[VEC] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgtq_f32(x, vdupq_n_f32(bound)), vld1q_u32(bit)));
}

RA_INLINE void vec_recur(vec x, float bound, int32_t now, int32_t *last, int32_t *gap)
{
    uint32x4_t active = vcgeq_f32(x, vdupq_n_f32(bound));
    int32x4_t old = vld1q_s32(last), most = vld1q_s32(gap), time = vdupq_n_s32(now);
    vst1q_s32(gap, vbslq_s32(active, vmaxq_s32(most, vsubq_s32(time, old)), most));
    vst1q_s32(last, vbslq_s32(active, time, old));
}

RA_INLINE float vec_top(vec x) { return vmaxvq_f32(x); }
RA_INLINE float vec_sum(vec x) { return vaddvq_f32(x); }
RA_INLINE vec vec_sums(const vec *x) { return vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3])); }

RA_INLINE vec load_f32(const float *x) { return vld1q_f32(x); }
RA_INLINE void store_f32(float *x, vec v) { vst1q_f32(x, v); }

/* There are no masks: lane by lane, 0 < n < VEC. */
RA_INLINE vec load_part_f32(const float *x, size_t n)
{
    vec v = vld1q_lane_f32(x, vec_zero(), 0);
    if (n > 1)
        v = vld1q_lane_f32(x + 1, v, 1);
    if (n > 2)
        v = vld1q_lane_f32(x + 2, v, 2);
    return v;
}

RA_INLINE void store_part_f32(float *x, vec v, size_t n)
{
    vst1q_lane_f32(x, v, 0);
    if (n > 1)
        vst1q_lane_f32(x + 1, v, 1);
    if (n > 2)
        vst1q_lane_f32(x + 2, v, 2);
}

RA_INLINE uint16x4_t load_part_16bit(const uint16_t *x, size_t n)
{
    uint16x4_t v = vld1_lane_u16(x, vdup_n_u16(0), 0);
    if (n > 1)
        v = vld1_lane_u16(x + 1, v, 1);
    if (n > 2)
        v = vld1_lane_u16(x + 2, v, 2);
    return v;
}

RA_INLINE void store_part_16bit(uint16_t *x, uint16x4_t v, size_t n)
{
    vst1_lane_u16(x, v, 0);
    if (n > 1)
        vst1_lane_u16(x + 1, v, 1);
    if (n > 2)
        vst1_lane_u16(x + 2, v, 2);
}

RA_INLINE vec widen_bf16(uint16x4_t x)
{
    /* As a shift by 16, but one instruction: zeros below each. */
    return vreinterpretq_f32_u16(vzip1q_u16(vdupq_n_u16(0), vcombine_u16(x, vdup_n_u16(0))));
}

/* As ra_f32_to_bf16 does it. */
RA_INLINE uint16x4_t narrow_bf16(vec x)
{
    uint32x4_t bits = vreinterpretq_u32_f32(x), high = vshrq_n_u32(bits, 16);
    uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    uint32x4_t quiet = vorrq_u32(high, vdupq_n_u32(0x40));
    return vmovn_u32(vbslq_u32(vceqq_f32(x, x), vshrq_n_u32(rounded, 16), quiet)); /* only NaN differs from itself */
}

RA_INLINE vec widen_f16(uint16x4_t x) { return vcvt_f32_f16(vreinterpret_f16_u16(x)); }

RA_INLINE uint16x4_t narrow_f16(vec x) { return vreinterpret_u16_f16(vcvt_f16_f32(x)); }

RA_INLINE vec load_bf16(const uint16_t *x) { return widen_bf16(vld1_u16(x)); }
RA_INLINE vec load_part_bf16(const uint16_t *x, size_t n) { return widen_bf16(load_part_16bit(x, n)); }
RA_INLINE void store_bf16(uint16_t *x, vec v) { vst1_u16(x, narrow_bf16(v)); }
RA_INLINE void store_part_bf16(uint16_t *x, vec v, size_t n) { store_part_16bit(x, narrow_bf16(v), n); }
RA_INLINE vec load_f16(const uint16_t *x) { return widen_f16(vld1_u16(x)); }
RA_INLINE vec load_part_f16(const uint16_t *x, size_t n) { return widen_f16(load_part_16bit(x, n)); }
RA_INLINE void store_f16(uint16_t *x, vec v) { vst1_u16(x, narrow_f16(v)); }
RA_INLINE void store_part_f16(uint16_t *x, vec v, size_t n) { store_part_16bit(x, narrow_f16(v), n); }

/* Where each byte of a row of K comes from; a number past the row leaves the byte as it is. */
typedef struct order_f32 {
    uint8x16_t byte[4];
} order_f32;

typedef struct order_16bit {
    uint8x16_t byte[2];
} order_bf16, order_f16;

RA_INLINE void fill_order(const uint8_t *lane, size_t begin, size_t end, size_t size, uint8x16_t *order)
{
    uint8_t byte[RA_PAGE_TOKENS * sizeof(float)];
    for (size_t t = 0; t < RA_PAGE_TOKENS; t++)
        for (size_t i = 0; i < size; i++)
            byte[t * size + i] = t >= begin && t < end ? (uint8_t)(lane[t] * size + i) : 0xff;
    for (size_t j = 0; j < size; j++)
        order[j] = vld1q_u8(byte + j * 16);
}

RA_INLINE order_f32 make_order_f32(const uint8_t *lane, size_t begin, size_t end)
{
    order_f32 order;
    fill_order(lane, begin, end, 4, order.byte);
    return order;
}

RA_INLINE struct order_16bit make_order_16bit(const uint8_t *lane, size_t begin, size_t end)
{
    struct order_16bit order;
    fill_order(lane, begin, end, 2, order.byte);
    return order;
}

RA_INLINE void move_row_f32(const float *from, const order_f32 *order, float *to)
{
    const uint8_t *source = (const uint8_t *)from;
    uint8_t *target = (uint8_t *)to;
    uint8x16x4_t row = {{vld1q_u8(source), vld1q_u8(source + 16), vld1q_u8(source + 32), vld1q_u8(source + 48)}};
    RA_UNROLL for (size_t j = 0; j < 4; j++)
        vst1q_u8(target + j * 16, vqtbx4q_u8(vld1q_u8(target + j * 16), row, order->byte[j]));
}

RA_INLINE void move_row_16bit(const uint16_t *from, const struct order_16bit *order, uint16_t *to)
{
    const uint8_t *source = (const uint8_t *)from;
    uint8_t *target = (uint8_t *)to;
    uint8x16x2_t row = {{vld1q_u8(source), vld1q_u8(source + 16)}};
    RA_UNROLL for (size_t j = 0; j < 2; j++)
        vst1q_u8(target + j * 16, vqtbx2q_u8(vld1q_u8(target + j * 16), row, order->byte[j]));
}

#define make_order_bf16 make_order_16bit
#define make_order_f16 make_order_16bit
#define move_row_bf16 move_row_16bit
#define move_row_f16 move_row_16bit

#include "vector_kernels.inc"

const ra_kernels ra_kernels_neon = {
    .name = "neon",
    .page = RA_PAGE_TABLE(neon),
    RA_ROW_TABLE(neon),
};
#endif
