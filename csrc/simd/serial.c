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

static void ra_scale_f32_serial(float *x, size_t n, float factor)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= factor;
}

const ra_kernels ra_kernels_serial = {
    .name = "serial",
    .page = RA_PAGE_TABLE(serial),
    .exp_sum = ra_exp_sum_f32_serial,
    .scale = ra_scale_f32_serial,
};
