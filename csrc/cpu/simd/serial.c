/* The kernels in plain C: the reference for every other instruction set, and the set of machines that have none. */
#include "kernels.h"

#include <math.h>
#include <string.h>

#include "half.h"
#include "names.h"

#define DTYPE f32
#define ELEM float
#define WIDEN(x) (x)
#define NARROW(x) (x)
#include "serial_page.inc"

#define DTYPE bf16
#define ELEM uint16_t
#define WIDEN(x) ra_bf16_to_f32(x)
#define NARROW(x) ra_f32_to_bf16(x)
#include "serial_page.inc"

#define DTYPE f16
#define ELEM uint16_t
#define WIDEN(x) ra_f16_to_f32(x)
#define NARROW(x) ra_f32_to_f16(x)
#include "serial_page.inc"

static uint32_t ra_above_f32_serial(const float *x, const float *w, float bound)
{
    uint32_t bits = 0;
    for (uint32_t t = 0; t < RA_PAGE_TOKENS; t++)
        bits |= (uint32_t)(x[t] * w[t] > bound) << t;
    return bits;
}

static float ra_max_f32_serial(const float *x, size_t n)
{
    float top = x[0];
    for (size_t i = 1; i < n; i++)
        top = x[i] > top ? x[i] : top;
    return top;
}

static float ra_read_f32_serial(const float *x, size_t n, bool streamed)
{
    float top[RA_STREAMS] = {0};
    size_t stride = streamed ? n / RA_STREAMS : 1, step = streamed ? 1 : RA_STREAMS;
    for (size_t at = 0; at < n / RA_STREAMS; at++)
        for (size_t s = 0; s < RA_STREAMS; s++) {
            float value = x[s * stride + at * step];
            top[s] = value > top[s] ? value : top[s];
        }
    return ra_max_f32_serial(top, RA_STREAMS);
}

static float ra_exp_sum_f32_serial(float *x, size_t n, float max)
{
    if (max == -INFINITY)
        max = 0; /* everything is -inf: zeros, not NaN */
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += (double)x[i];
    }
    return (float)sum;
}

static void ra_softmax_page_f32_serial(float *p, size_t m, const size_t *visible, float *top, float *sums,
                                       float *shrink)
{
    for (size_t i = 0; i < m; i++) {
        float *row = p + i * RA_PAGE_TOKENS, *sum = sums + i * RA_PAGE_TOKENS, old = top[i];
        for (size_t t = 0; t < visible[i]; t++)
            top[i] = row[t] > top[i] ? row[t] : top[i];
        float base = top[i] == -INFINITY ? 0 : top[i]; /* it sees nothing yet: zeros, not NaN */
        shrink[i] = top[i] > old ? expf(old - top[i]) : 1;
        for (size_t t = 0; t < RA_PAGE_TOKENS; t++) {
            row[t] = t < visible[i] ? expf(row[t] - base) : 0;
            sum[t] = sum[t] * shrink[i] + row[t];
        }
    }
}

static void ra_scale_f32_serial(float *x, size_t n, float factor)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= factor;
}

static void ra_weigh_f32_serial(const float *parts, size_t stride, size_t m, const float *factors, size_t pages,
                                float keep, float *out)
{
    for (size_t s = 0; s < pages * RA_PAGE_TOKENS; s++) {
        const float *part = parts + s / RA_PAGE_TOKENS * stride * RA_PAGE_TOKENS + s % RA_PAGE_TOKENS;
        float sum = keep == 0 ? 0 : keep * out[s];
        for (size_t i = 0; i < m; i++)
            sum += factors[i] * part[i * RA_PAGE_TOKENS];
        out[s] = sum;
    }
}

static void ra_peak_f32_serial(const float *parts, size_t stride, size_t m, const float *factors, size_t pages,
                               bool more, float *out)
{
    for (size_t s = 0; s < pages * RA_PAGE_TOKENS; s++) {
        const float *part = parts + s / RA_PAGE_TOKENS * stride * RA_PAGE_TOKENS + s % RA_PAGE_TOKENS;
        float top = more ? out[s] : 0;
        for (size_t i = 0; i < m; i++) {
            float w = factors[i] * part[i * RA_PAGE_TOKENS];
            top = w > top ? w : top;
        }
        out[s] = top;
    }
}

static void ra_recur_f32_serial(const float *x, size_t pages, float bound, int32_t now, int32_t *last, int32_t *gap)
{
    for (size_t s = 0; s < pages * RA_PAGE_TOKENS; s++) {
        if (!(x[s] >= bound))
            continue;
        gap[s] = now - last[s] > gap[s] ? now - last[s] : gap[s];
        last[s] = now;
    }
}

static float ra_spread_f32_serial(const float *x, size_t n)
{
    float top = x[0], bottom = x[0];
    for (size_t i = 1; i < n; i++) {
        top = x[i] > top ? x[i] : top;
        bottom = x[i] < bottom ? x[i] : bottom;
    }
    return top - bottom;
}

static float ra_abs_sum_f32_serial(const float *x, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += fabsf(x[i]);
    return sum;
}

const ra_kernels ra_kernels_serial = {
    .name = "serial",
    .page = RA_PAGE_TABLE(serial),
    RA_ROW_TABLE(serial),
};
