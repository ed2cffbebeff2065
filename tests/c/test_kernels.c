/* Every kernel of every instruction set that this machine can run, against sums in float64, over odd sizes.
 *
 *     cc -std=c11 -g1 -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -Icsrc/include -Icsrc/format \
 *        -Icsrc/cpu/simd tests/c/test_kernels.c csrc/cpu/simd/?*.c -lm
 *
 * (-g1: full debug information doubles the time to compile.) With REASONALLOC_CPU set it also checks that override.
 * Buffers have the exact sizes of the contract, so that the address sanitizer sees every access beyond one. */
#define _POSIX_C_SOURCE 200809L /* posix_memalign */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"
#include "kernels.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
enum { T = RA_PAGE_TOKENS, MAX_FAILURES = 20 };

static const char *const dtype_name[RA_DTYPES] = {"f32", "bf16", "f16"};
static const size_t dtype_bytes[RA_DTYPES] = {4, 2, 2};
static const size_t dims[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 80, 96, 128, 129, 256};

static int failures;
static long comparisons;

static void failed(const char *what, const char *isa, const char *dtype, size_t m, size_t d, size_t count, size_t index,
                   double got, double expected, double bound)
{
    if (++failures <= MAX_FAILURES)
        fprintf(stderr,
                "FAIL %s isa=%s dtype=%s m=%zu d=%zu count=%zu at %zu: %.9g, expected %.9g, off by %.3g > %.3g\n", what,
                isa, dtype, m, d, count, index, got, expected, fabs(got - expected), bound);
}

/* ---- Buffers ----------------------------------------------------------------------------------------------------- */

/* posix_memalign takes sizes that are no multiple of 64: the end of the buffer is the end of the page. */
static void *allocate(size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1)) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return memory;
}

static uint64_t random_state = 0x9e3779b97f4a7c15u;

/* By xorshift: the same numbers on every machine. */
static uint32_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static size_t random_below(size_t n) { return random_bits() % n; }

/* In [-1, 1]. */
static float random_float(void) { return (float)(int32_t)random_bits() * 0x1p-31f; }

static float *random_floats(size_t n)
{
    float *x = allocate(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = random_float();
    return x;
}

/* n random elements, and in *values what they are. */
static void *random_elements(ra_dtype dtype, size_t n, double **values)
{
    void *elements = allocate(n * dtype_bytes[dtype]);
    *values = allocate(n * sizeof **values);
    for (size_t i = 0; i < n; i++) {
        float x = random_float();
        if (dtype == RA_F32) {
            ((float *)elements)[i] = x;
            (*values)[i] = (double)x;
        } else if (dtype == RA_BF16) {
            uint16_t bits = ra_f32_to_bf16(x);
            ((uint16_t *)elements)[i] = bits;
            (*values)[i] = (double)ra_bf16_to_f32(bits);
        } else {
            uint16_t bits = ra_f32_to_f16(x);
            ((uint16_t *)elements)[i] = bits;
            (*values)[i] = (double)ra_f16_to_f32(bits);
        }
    }
    return elements;
}

static void *random_bytes(size_t n)
{
    unsigned char *bytes = allocate(n);
    for (size_t i = 0; i < n; i++)
        bytes[i] = (unsigned char)random_below(256);
    return bytes;
}

/* Memory for every line of the largest page. */
static ra_ahead some_ahead(void)
{
    static char memory[RA_STREAMS][4096];
    ra_ahead ahead;
    for (size_t i = 0; i < RA_STREAMS; i++)
        ahead.stream[i] = memory[i];
    return ahead;
}

/* ---- Sums -------------------------------------------------------------------------------------------------------- */

/* A float32 sum of n terms in any order is off by at most n * 2^-24 of the sum of their magnitudes, give or take. */
static void compare_sum(const char *what, const char *isa, ra_dtype dtype, size_t m, size_t d, size_t count,
                        size_t index, float got, double expected, double magnitude, size_t terms)
{
    double bound = magnitude * (double)(terms + 1) * 0x1p-24;
    comparisons++;
    if (!(fabs((double)got - expected) <= bound))
        failed(what, isa, dtype_name[dtype], m, d, count, index, (double)got, expected, bound);
}

/* What is brought in for later changes nothing now. */
static void compare_ahead(const char *what, const char *isa, ra_dtype dtype, size_t m, size_t d, size_t count,
                          const float *with, const float *without, size_t n)
{
    comparisons++;
    for (size_t i = 0; i < n; i++)
        if (memcmp(with + i, without + i, sizeof *with)) {
            failed(what, isa, dtype_name[dtype], m, d, count, i, (double)with[i], (double)without[i], 0);
            break;
        }
}

static void test_qk(const ra_kernels *kernels, ra_dtype dtype, size_t m, size_t d)
{
    double *key;
    void *page = random_elements(dtype, d * T, &key);
    float *q = random_floats(m * d), *out = random_floats(m * T), *again = random_floats(m * T);
    ra_ahead ahead = some_ahead();
    kernels->page[dtype].qk(q, m, page, d, NULL, out);
    kernels->page[dtype].qk(q, m, page, d, &ahead, again);
    compare_ahead("qk, ahead", kernels->name, dtype, m, d, T, again, out, m * T);
    for (size_t i = 0; i < m; i++)
        for (size_t t = 0; t < T; t++) {
            double sum = 0, magnitude = 0;
            for (size_t c = 0; c < d; c++) {
                double term = (double)q[i * d + c] * key[c * T + t];
                sum += term;
                magnitude += fabs(term);
            }
            compare_sum("qk", kernels->name, dtype, m, d, T, i * T + t, out[i * T + t], sum, magnitude, d);
        }
    free(page);
    free(key);
    free(q);
    free(out);
    free(again);
}

static void test_pv(const ra_kernels *kernels, ra_dtype dtype, size_t m, size_t d, size_t count)
{
    double *value;
    void *page = random_elements(dtype, T * d, &value);
    float *p = random_floats((m - 1) * T + count), *acc = random_floats(m * d);
    float *before = allocate(m * d * sizeof *before), *again = allocate(m * d * sizeof *again);
    memcpy(before, acc, m * d * sizeof *acc);
    memcpy(again, acc, m * d * sizeof *acc);
    for (size_t i = 0; i + 1 < m; i++)
        for (size_t t = count; t < T; t++)
            p[i * T + t] = NAN; /* between the rows; not to be looked at */
    ra_ahead ahead = some_ahead();
    kernels->page[dtype].pv(p, m, page, count, d, NULL, acc);
    kernels->page[dtype].pv(p, m, page, count, d, &ahead, again);
    compare_ahead("pv, ahead", kernels->name, dtype, m, d, count, again, acc, m * d);
    for (size_t i = 0; i < m; i++)
        for (size_t c = 0; c < d; c++) {
            double sum = (double)before[i * d + c], magnitude = fabs(sum);
            for (size_t t = 0; t < count; t++) {
                double term = (double)p[i * T + t] * value[t * d + c];
                sum += term;
                magnitude += fabs(term);
            }
            compare_sum("pv", kernels->name, dtype, m, d, count, i * d + c, acc[i * d + c], sum, magnitude, count + 1);
        }
    free(page);
    free(value);
    free(p);
    free(acc);
    free(before);
    free(again);
}

static void test_square_norms(const ra_kernels *kernels, ra_dtype dtype, size_t d)
{
    double *key;
    void *page = random_elements(dtype, d * T, &key);
    float *out = random_floats(T);
    kernels->page[dtype].square_norms(page, d, out);
    for (size_t t = 0; t < T; t++) {
        double sum = 0;
        for (size_t c = 0; c < d; c++)
            sum += key[c * T + t] * key[c * T + t];
        compare_sum("square_norms", kernels->name, dtype, 1, d, T, t, out[t], sum, sum, d);
    }
    free(page);
    free(key);
    free(out);
}

/* Pairs of neighbours and of halves. */
static void test_pair_norms(const ra_kernels *kernels, ra_dtype dtype, size_t m, size_t d, bool neighbours)
{
    double *key;
    size_t pairs = d / 2, step = neighbours ? 2 : 1, apart = neighbours ? 1 : pairs;
    void *page = random_elements(dtype, d * T, &key);
    float *w = random_floats(m * pairs + 1), *out = random_floats(m * T);
    kernels->page[dtype].pair_norms(page, w, m, pairs, step, apart, out);
    for (size_t i = 0; i < m; i++)
        for (size_t t = 0; t < T; t++) {
            double sum = 0, size = 0;
            for (size_t f = 0; f < pairs; f++) {
                double term = (double)w[i * pairs + f] * hypot(key[f * step * T + t], key[(f * step + apart) * T + t]);
                sum += term;
                size += fabs(term);
            }
            compare_sum("pair_norms", kernels->name, dtype, m, d, T, t, out[i * T + t], sum, size, d);
        }
    free(page);
    free(key);
    free(w);
    free(out);
}

static void test_weighted_sum(const ra_kernels *kernels, ra_dtype dtype, size_t d)
{
    double *key;
    void *page = random_elements(dtype, d * T, &key);
    float *w = random_floats(T), *sum = random_floats(d), *before = allocate(d * sizeof *sum);
    memcpy(before, sum, d * sizeof *sum);
    kernels->page[dtype].weighted_sum(page, w, d, sum);
    for (size_t c = 0; c < d; c++) {
        double expected = (double)before[c], magnitude = fabs(expected);
        for (size_t t = 0; t < T; t++) {
            double term = (double)w[t] * key[c * T + t];
            expected += term;
            magnitude += fabs(term);
        }
        compare_sum("weighted_sum", kernels->name, dtype, 1, d, T, c, sum[c], expected, magnitude, T + 1);
    }
    free(page);
    free(key);
    free(w);
    free(sum);
    free(before);
}

/* ---- Moves ------------------------------------------------------------------------------------------------------- */

/* Lanes outside of the range stay as they were, bit by bit. */
static void check_move(const ra_kernels *kernels, ra_dtype dtype, const uint8_t *lane, size_t begin, size_t end,
                       size_t d, bool in_place)
{
    size_t size = dtype_bytes[dtype], bytes = d * T * size;
    char *from = random_bytes(bytes), *to = in_place ? from : random_bytes(bytes), *expected = allocate(bytes);
    memcpy(expected, to, bytes);
    for (size_t c = 0; c < d; c++)
        for (size_t t = begin; t < end; t++)
            memcpy(expected + (c * T + t) * size, from + (c * T + lane[t]) * size, size);
    kernels->page[dtype].move_keys(from, lane, begin, end, d, to);
    comparisons++;
    for (size_t i = 0; i < bytes; i++)
        if (to[i] != expected[i]) {
            failed(in_place ? "move_keys in place" : "move_keys", kernels->name, dtype_name[dtype], begin, d, end,
                   i / size, (double)to[i], (double)expected[i], 0);
            break;
        }
    free(from);
    if (!in_place)
        free(to);
    free(expected);
}

static void test_move_keys(const ra_kernels *kernels, ra_dtype dtype, size_t d)
{
    size_t step = d < 4 ? 1 : 4; /* every range, where that is cheap */
    for (size_t begin = 0; begin <= T; begin += step)
        for (size_t end = begin; end <= T; end += step) {
            uint8_t *lane = allocate(T);
            for (size_t t = 0; t < T; t++)
                lane[t] = (uint8_t)random_below(T);
            check_move(kernels, dtype, lane, begin, end, d, false);
            for (size_t t = begin; t < end; t++)
                lane[t] = (uint8_t)(t + random_below(T - t));
            check_move(kernels, dtype, lane, begin, end, d, true);
            free(lane);
        }
}

/* ---- Conversions ------------------------------------------------------------------------------------------------- */

static uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float bits_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* What 16 bits mean, from the definition: sign, exponent, mantissa. */
static double half_value(ra_dtype dtype, uint16_t half)
{
    int mantissa_bits = dtype == RA_BF16 ? 7 : 10, bias = dtype == RA_BF16 ? 127 : 15;
    int exponent_max = dtype == RA_BF16 ? 255 : 31;
    int mantissa = half & ((1 << mantissa_bits) - 1), exponent = (half >> mantissa_bits) & exponent_max;
    double value;
    if (exponent == exponent_max)
        value = mantissa ? (double)NAN : (double)INFINITY;
    else if (exponent)
        value = ldexp((double)(mantissa + (1 << mantissa_bits)), exponent - bias - mantissa_bits);
    else
        value = ldexp((double)mantissa, 1 - bias - mantissa_bits);
    return half & 0x8000 ? -value : value;
}

/* Rows of every length around a vector's, so that the tails are met as well. */
static void convert(const ra_kernels *kernels, ra_dtype dtype, const float *x, size_t n, uint16_t *out)
{
    size_t step = 1;
    for (size_t done = 0; done < n; done += step, step = step % 67 + 1) {
        size_t part = step < n - done ? step : n - done;
        float *row = allocate(part * sizeof *row);
        uint16_t *halves = allocate(part * sizeof *halves);
        memcpy(row, x + done, part * sizeof *row);
        kernels->page[dtype].from_float(row, part, halves);
        memcpy(out + done, halves, part * sizeof *halves);
        free(row);
        free(halves);
    }
}

static void check_half(const ra_kernels *kernels, ra_dtype dtype, float x, uint16_t got, uint16_t expected)
{
    comparisons++;
    bool same = isnan(x) ? isnan(half_value(dtype, got)) : got == expected;
    if (!same && ++failures <= MAX_FAILURES)
        fprintf(stderr, "FAIL from_float isa=%s dtype=%s: %a (bits %08x) gave %04x, expected %04x\n", kernels->name,
                dtype_name[dtype], (double)x, (unsigned)float_bits(x), got, expected);
}

/* Every pattern goes out and comes back; between neighbours the nearest wins, and the even one from the middle. */
static void test_halves(const ra_kernels *kernels, ra_dtype dtype)
{
    enum { PATTERNS = 65536 };
    uint16_t *halves = allocate(PATTERNS * sizeof *halves), *back = allocate(PATTERNS * sizeof *back);
    float *wide = allocate(PATTERNS * sizeof *wide);
    for (size_t i = 0; i < PATTERNS; i++)
        halves[i] = (uint16_t)i;
    size_t step = 1;
    for (size_t done = 0; done < PATTERNS; done += step, step = step % 67 + 1) {
        size_t part = step < PATTERNS - done ? step : PATTERNS - done;
        uint16_t *row = allocate(part * sizeof *row);
        float *floats = allocate(part * sizeof *floats);
        memcpy(row, halves + done, part * sizeof *row);
        kernels->page[dtype].to_float(row, part, floats);
        memcpy(wide + done, floats, part * sizeof *floats);
        free(row);
        free(floats);
    }
    for (size_t i = 0; i < PATTERNS; i++) {
        double expected = half_value(dtype, halves[i]);
        comparisons++;
        bool same = isnan(expected) ? isnan(wide[i])
                                    : (double)wide[i] == expected && !signbit(wide[i]) == !signbit(expected);
        if (!same)
            failed("to_float", kernels->name, dtype_name[dtype], 1, 1, 1, i, (double)wide[i], expected, 0);
    }
    convert(kernels, dtype, wide, PATTERNS, back);
    for (size_t i = 0; i < PATTERNS; i++)
        check_half(kernels, dtype, wide[i], back[i], halves[i]);

    /* Halves i and i + 1 of one sign are neighbours, the step from the greatest to infinity included; the floats around
     * their middle decide. For infinity the middle is as if the exponents went on. */
    uint16_t infinity = dtype == RA_BF16 ? 0x7f80 : 0x7c00;
    for (uint32_t sign = 0; sign < 2; sign++)
        for (int nudge = -1; nudge <= 1; nudge++) {
            for (uint16_t i = 0; i < infinity; i++) {
                double low = half_value(dtype, i), below = half_value(dtype, (uint16_t)(i ? i - 1 : 0));
                double high = i + 1 < infinity ? half_value(dtype, (uint16_t)(i + 1)) : low + (low - below);
                float middle = (float)((low + high) / 2);
                wide[i] = bits_float((float_bits(middle) + (uint32_t)nudge) | sign << 31);
            }
            convert(kernels, dtype, wide, infinity, back);
            for (uint16_t i = 0; i < infinity; i++) {
                bool up = nudge > 0 || (nudge == 0 && (i & 1));
                check_half(kernels, dtype, wide[i], back[i], (uint16_t)((up ? i + 1 : i) | sign << 15));
            }
        }

    /* Too large, infinite, too small and not a number. */
    const float odd[] = {FLT_MAX,
                         -FLT_MAX,
                         INFINITY,
                         -INFINITY,
                         0.0f,
                         -0.0f,
                         1e-45f,
                         -1e-45f,
                         FLT_MIN,
                         65519.996f,
                         65520.0f,
                         1e6f,
                         bits_float(0x7fc00000),
                         bits_float(0xffc00001),
                         bits_float(0x7f800001),
                         bits_float(0x7fffffff),
                         bits_float(0xffffffff)};
    memcpy(wide, odd, sizeof odd);
    convert(kernels, dtype, wide, COUNT(odd), back);
    for (size_t i = 0; i < COUNT(odd); i++)
        check_half(kernels, dtype, odd[i], back[i], dtype == RA_BF16 ? ra_f32_to_bf16(odd[i]) : ra_f32_to_f16(odd[i]));
    free(halves);
    free(back);
    free(wide);
}

/* f32 is a copy, bit by bit. */
static void test_copies(const ra_kernels *kernels)
{
    for (size_t n = 0; n <= 70; n++) {
        float *x = random_floats(n), *there = allocate(n * sizeof *x), *back = allocate(n * sizeof *x);
        kernels->page[RA_F32].from_float(x, n, there);
        kernels->page[RA_F32].to_float(there, n, back);
        comparisons++;
        if (memcmp(x, there, n * sizeof *x) || memcmp(x, back, n * sizeof *x))
            failed("to_float, from_float", kernels->name, "f32", 1, n, 1, 0, 1, 0, 0);
        free(x);
        free(there);
        free(back);
    }
}

static void put_bits(ra_dtype dtype, void *x, size_t i, uint32_t bits)
{
    uint16_t half = (uint16_t)bits;
    memcpy((char *)x + i * dtype_bytes[dtype], dtype == RA_F32 ? (const void *)&bits : &half, dtype_bytes[dtype]);
}

/* One number that is none, wherever it stands, among n that are: ordinary ones, zeros, the largest and the smallest. */
static void check_all_finite(const ra_kernels *kernels, ra_dtype dtype, size_t n, size_t step)
{
    static const uint32_t good[RA_DTYPES][7] = {
        {0x7f7fffff, 0xff7fffff, 0x00000001, 0x80000000, 0x3f800000, 0xbf800000, 0x00800000},
        {0x7f7f, 0xff7f, 0x0001, 0x8000, 0x3f80, 0xbf80, 0x0080},
        {0x7bff, 0xfbff, 0x0001, 0x8000, 0x3c00, 0xbc00, 0x0400}};
    static const uint32_t bad[RA_DTYPES][6] = {{0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 0x7f800001, 0xffffffff},
                                               {0x7f80, 0xff80, 0x7fc0, 0xffc0, 0x7f81, 0xffff},
                                               {0x7c00, 0xfc00, 0x7e00, 0xfe00, 0x7c01, 0xffff}};
    void *x = allocate(n * dtype_bytes[dtype]);
    for (size_t i = 0; i < n; i++)
        put_bits(dtype, x, i, good[dtype][random_below(COUNT(good[dtype]))]);
    comparisons++;
    if (!kernels->page[dtype].all_finite(x, n))
        failed("all_finite", kernels->name, dtype_name[dtype], 1, n, 1, n, 0, 1, 0);
    for (size_t at = 0; at < n; at += step)
        for (size_t kind = 0; kind < COUNT(bad[dtype]); kind++) {
            put_bits(dtype, x, at, bad[dtype][kind]);
            comparisons++;
            if (kernels->page[dtype].all_finite(x, n))
                failed("all_finite", kernels->name, dtype_name[dtype], 1, n, kind, at, 1, 0, 0);
            put_bits(dtype, x, at, good[dtype][at % COUNT(good[dtype])]);
        }
    free(x);
}

static void test_all_finite(const ra_kernels *kernels, ra_dtype dtype)
{
    for (size_t n = 0; n <= 140; n++)
        check_all_finite(kernels, dtype, n, 1);
    check_all_finite(kernels, dtype, 1024, 1);
    check_all_finite(kernels, dtype, 4099, 13);
}

/* ---- Rows -------------------------------------------------------------------------------------------------------- */

/* Relative 2e-7 where the result is a normal number; below, anything between 0 and the smallest of those. */
static void check_exp(const char *what, const ra_kernels *kernels, size_t n, size_t index, float x, float max,
                      float got)
{
    double expected = exp((double)(x - max)), bound = expected >= (double)FLT_MIN ? 2e-7 * expected : (double)FLT_MIN;
    comparisons++;
    bool exact = x == max ? got == 1.0f : x == -INFINITY ? float_bits(got) == 0 : true;
    if (!exact || !(got >= 0) || !(fabs((double)got - expected) <= bound))
        failed(what, kernels->name, "f32", 1, n, 1, index, (double)got, expected, bound);
}

/* Inputs by value, so that a case can be written where it is used. */
static void check_exp_row(const ra_kernels *kernels, const float *input, size_t n, float max)
{
    float *x = allocate(n * sizeof *x);
    memcpy(x, input, n * sizeof *x);
    float sum = kernels->exp_sum(x, n, max);
    double expected = 0;
    for (size_t i = 0; i < n; i++) {
        check_exp("exp_sum", kernels, n, i, input[i], max == -INFINITY ? 0 : max, x[i]);
        expected += (double)x[i];
    }
    comparisons++;
    double bound = expected * (double)(n + 1) * 0x1p-24;
    if (!(fabs((double)sum - expected) <= bound))
        failed("exp_sum, sum", kernels->name, "f32", 1, n, 1, 0, (double)sum, expected, bound);
    free(x);
}

static void test_exp_sum(const ra_kernels *kernels)
{
    for (size_t n = 0; n <= 70; n++) { /* tails */
        float *x = random_floats(n);
        for (size_t i = 0; i < n; i++)
            x[i] = 30 * x[i] - 31;
        if (n)
            x[n / 2] = -1;
        if (n > 3)
            x[n / 3] = -INFINITY;
        check_exp_row(kernels, x, n, -1);
        free(x);
    }

    enum { STEPS = 1 << 20, ROW = 4099 }; /* every range of the exponent, through the end of the normal numbers */
    float *x = allocate(ROW * sizeof *x);
    size_t filled = 0;
    for (size_t i = 0; i < STEPS; i++) {
        x[filled++] = -90.0f * (float)i / (float)STEPS;
        if (filled == ROW || i + 1 == STEPS) {
            check_exp_row(kernels, x, filled, 0);
            filled = 0;
        }
    }
    free(x);

    const float small[] = {0.0f, -0.0f, -1e-45f, -1e-30f, -FLT_MIN, -0x1p-24f, -0x1p-25f, -1e-3f};
    check_exp_row(kernels, small, COUNT(small), 0);
    const float large[] = {-87.3f,  -87.33654f, -87.336548f, -87.34f, -88.0f,  -100.0f, -103.9f,  -104.0f,  -127.5f,
                           -200.0f, -1000.0f,   -1e5f,       -1e9f,   -2.2e9f, -1e20f,  -FLT_MAX, -INFINITY};
    check_exp_row(kernels, large, COUNT(large), 0);
    const float shifted[] = {1000.0f, 999.5f, 912.7f, 900.0f, -1000.0f, -FLT_MAX, -INFINITY};
    check_exp_row(kernels, shifted, COUNT(shifted), 1000);
    const float masked[] = {-INFINITY, -INFINITY, -INFINITY}; /* a row that sees nothing: zeros */
    check_exp_row(kernels, masked, COUNT(masked), -INFINITY);
    check_exp_row(kernels, masked, COUNT(masked), 3);
}

static void test_above(const ra_kernels *kernels)
{
    for (size_t round = 0; round < 200; round++) {
        float *x = random_floats(T), *w = random_floats(T), bound = 0.5f * random_float();
        x[round % T] = bound; /* above is not equal */
        w[round % T] = 1;
        if (round % 3 == 0)
            x[(round + 5) % T] = INFINITY;
        uint32_t got = kernels->above(x, w, bound), expected = 0;
        for (uint32_t t = 0; t < T; t++)
            expected |= (uint32_t)((float)((double)x[t] * (double)w[t]) > bound) << t;
        comparisons++;
        if (got != expected)
            failed("above", kernels->name, "f32", 1, 1, T, round, (double)got, (double)expected, 0);
        free(x);
        free(w);
    }
}

static void check_max(const ra_kernels *kernels, const float *x, size_t n)
{
    double expected = (double)x[0];
    for (size_t i = 1; i < n; i++)
        expected = fmax(expected, (double)x[i]);
    float got = kernels->max(x, n);
    comparisons++;
    if ((double)got != expected)
        failed("max", kernels->name, "f32", 1, n, 1, 0, (double)got, expected, 0);
}

static void test_max(const ra_kernels *kernels)
{
    for (size_t n = 1; n <= 70; n++) {
        float *x = random_floats(n);
        for (size_t i = 0; i < n; i++)
            x[i] -= 3; /* nothing above 0 */
        check_max(kernels, x, n);
        for (size_t at = 0; at < n; at++) { /* it may lie anywhere */
            float before = x[at];
            x[at] = -1.5f;
            check_max(kernels, x, n);
            x[at] = before;
        }
        x[n / 2] = INFINITY;
        check_max(kernels, x, n);
        for (size_t i = 0; i < n; i++)
            x[i] = -INFINITY;
        check_max(kernels, x, n);
        free(x);
    }
    float *x = random_floats(4099);
    check_max(kernels, x, 4099);
    free(x);
}

/* Whichever float is the largest, above 0, it is found: all of them are read. */
static void test_read(const ra_kernels *kernels)
{
    for (size_t n = 128; n <= 1152; n += 512) {
        float *x = random_floats(n);
        for (size_t at = 0; at < n; at++)
            for (int streamed = 0; streamed < 2; streamed++) {
                float before = x[at];
                x[at] = 2;
                float got = kernels->read(x, n, streamed);
                x[at] = before;
                comparisons++;
                if (got != 2)
                    failed(streamed ? "read, streamed" : "read", kernels->name, "f32", 1, n, 1, at, (double)got, 2, 0);
            }
        free(x);
    }
}

/* Pages that bring a row's maximum up or leave it, more or less far, and what the row sees of each. */
static const struct {
    float middle, spread;
    int visible; /* negative: a random number of lanes */
} softmax_pages[] = {
    {0, 5, -1}, {-3, 1, 16},  {6, 2, -1},   {6, 2, 0},    {7, 0.5f, 15},
    {7, 4, -1}, {-70, 30, 1}, {40, 60, -1}, {500, 3, -1}, {480, 25, -1},
};

/* Row i sees nothing of the first i / 3 pages. With `equal` the logits of a page are equal, so that maxima tie. */
static void test_softmax_page(const ra_kernels *kernels, size_t m, bool equal)
{
    enum { PAGES = COUNT(softmax_pages) };
    float *top = allocate(m * sizeof *top), *sums = allocate(m * T * sizeof *sums);
    float *logits = allocate(m * PAGES * T * sizeof *logits); /* of every page; NAN where unseen */
    for (size_t i = 0; i < m; i++)
        top[i] = -INFINITY;
    for (size_t i = 0; i < m * T; i++)
        sums[i] = 0;

    for (size_t page = 0; page < PAGES; page++) {
        float *p = random_floats(m * T), *shrink = random_floats(m), *seen = logits + page * m * T;
        size_t *visible = allocate(m * sizeof *visible);
        float *old_top = allocate(m * sizeof *top), *old_sums = allocate(m * T * sizeof *sums);
        memcpy(old_top, top, m * sizeof *top);
        memcpy(old_sums, sums, m * T * sizeof *sums);
        for (size_t i = 0; i < m; i++) {
            int most = softmax_pages[page].visible;
            visible[i] = page < i / 3 ? 0 : most < 0 ? random_below(T + 1) : (size_t)most;
            for (size_t t = 0; t < T; t++) {
                float *logit = &p[i * T + t];
                *logit = softmax_pages[page].middle + (equal ? 0 : softmax_pages[page].spread * *logit);
                seen[i * T + t] = t < visible[i] ? *logit : NAN;
                if (t >= visible[i])
                    *logit = t % 2 ? FLT_MAX : -FLT_MAX; /* stale; not to be looked at */
            }
        }
        kernels->softmax_page(p, m, visible, top, sums, shrink);

        for (size_t i = 0; i < m; i++) {
            double highest = (double)old_top[i];
            for (size_t t = 0; t < visible[i]; t++)
                highest = fmax(highest, (double)seen[i * T + t]);
            comparisons++;
            if ((double)top[i] != highest)
                failed("softmax_page, top", kernels->name, "f32", m, page, visible[i], i, (double)top[i], highest, 0);
            if (top[i] == old_top[i]) {
                comparisons++;
                if (shrink[i] != 1)
                    failed("softmax_page, shrink", kernels->name, "f32", m, page, visible[i], i, (double)shrink[i], 1,
                           0);
            } else {
                check_exp("softmax_page, shrink", kernels, m, i, old_top[i], top[i], shrink[i]);
            }
            for (size_t t = 0; t < T; t++) {
                float x = t < visible[i] ? seen[i * T + t] : -INFINITY;
                check_exp("softmax_page", kernels, m, i * T + t, x, visible[i] ? top[i] : 0, p[i * T + t]);
            }
            comparisons++;
            if (visible[i] == 0 && memcmp(sums + i * T, old_sums + i * T, T * sizeof *sums))
                failed("softmax_page, sums", kernels->name, "f32", m, page, 0, i, NAN, NAN, 0);

            /* Against all that the lane has seen. Each term is off by the rounding of its distance to the top, walked
             * in several steps, and by some units more for each page. */
            for (size_t t = 0; t < T; t++) {
                double sum = 0, bound = (double)(page + 1) * (double)FLT_MIN;
                for (size_t before = 0; before <= page; before++) {
                    float x = logits[(before * m + i) * T + t];
                    if (isnan(x))
                        continue;
                    double below = (double)top[i] - (double)x, term = exp(-below);
                    sum += term;
                    bound += term * (below + 8 * (double)(page + 1)) * 0x1p-24;
                }
                comparisons++;
                if (!(fabs((double)sums[i * T + t] - sum) <= bound))
                    failed("softmax_page, sums", kernels->name, "f32", m, page, visible[i], i * T + t,
                           (double)sums[i * T + t], sum, bound);
            }
        }
        free(p);
        free(shrink);
        free(visible);
        free(old_top);
        free(old_sums);
    }
    free(top);
    free(sums);
    free(logits);
}

/* ---- Attention weights of a token over whole pages ---- */

static void test_weights(const ra_kernels *kernels, size_t m, size_t stride, size_t pages, float keep)
{
    const size_t n = pages * T;
    float *parts = random_floats(pages * stride * T), *factors = random_floats(m), *sums = random_floats(n);
    float *peaks = random_floats(n), *old = allocate(n * sizeof *old), *high = allocate(n * sizeof *high);
    for (size_t i = 0; i < pages * stride * T; i++)
        parts[i] = fabsf(parts[i]);
    for (size_t i = 0; i < m; i++)
        factors[i] = fabsf(factors[i]);
    for (size_t s = 0; s < n; s++) {
        peaks[s] = fabsf(peaks[s]);
        if (keep == 0)
            sums[s] = NAN; /* it is not read */
    }
    memcpy(old, sums, n * sizeof *old);
    memcpy(high, peaks, n * sizeof *high);
    kernels->weigh(parts, stride, m, factors, pages, keep, sums);
    kernels->peak(parts, stride, m, factors, pages, keep != 0, peaks);
    for (size_t s = 0; s < n; s++) {
        double sum = keep == 0 ? 0 : (double)keep * (double)old[s], most = keep == 0 ? 0 : (double)high[s];
        for (size_t i = 0; i < m; i++) {
            double w = (double)factors[i] * (double)parts[(s / T * stride + i) * T + s % T];
            sum += w;
            most = w > most ? w : most;
        }
        comparisons += 2;
        double bound = (double)(m + 2) * 0x1p-24 * (fabs(sum) + 2);
        if (!(fabs((double)sums[s] - sum) <= bound))
            failed("weigh", kernels->name, "f32", m, stride, pages, s, (double)sums[s], sum, bound);
        if (!(fabs((double)peaks[s] - most) <= 0x1p-23 * most))
            failed("peak", kernels->name, "f32", m, stride, pages, s, (double)peaks[s], most, 0x1p-23 * most);
    }
    free(parts);
    free(factors);
    free(sums);
    free(peaks);
    free(old);
    free(high);
}

static void test_recur(const ra_kernels *kernels, size_t pages, float bound)
{
    const size_t n = pages * T;
    const int32_t now = (int32_t)random_below(1000);
    float *x = random_floats(n);
    int32_t *last = allocate(n * sizeof *last), *gap = allocate(n * sizeof *gap);
    int32_t *old_last = allocate(n * sizeof *last), *old_gap = allocate(n * sizeof *gap);
    for (size_t s = 0; s < n; s++) {
        if (random_below(8) == 0)
            x[s] = bound;                          /* counts */
        last[s] = (int32_t)random_below(1100) - 1; /* after `now` too */
        gap[s] = (int32_t)random_below(500);
    }
    memcpy(old_last, last, n * sizeof *last);
    memcpy(old_gap, gap, n * sizeof *gap);
    kernels->recur(x, pages, bound, now, last, gap);
    for (size_t s = 0; s < n; s++) {
        bool active = x[s] >= bound;
        int32_t since = now - old_last[s], longest = active && since > old_gap[s] ? since : old_gap[s];
        comparisons++;
        if (last[s] != (active ? now : old_last[s]) || gap[s] != longest)
            failed("recur", kernels->name, "f32", 0, 0, pages, s, (double)gap[s], (double)longest, 0);
    }
    free(x);
    free(last);
    free(gap);
    free(old_last);
    free(old_gap);
}

static void test_scale(const ra_kernels *kernels)
{
    for (size_t n = 0; n <= 70; n++) {
        float *x = random_floats(n), *scaled = allocate(n * sizeof *x);
        memcpy(scaled, x, n * sizeof *x);
        kernels->scale(scaled, n, 0.3f);
        for (size_t i = 0; i < n; i++) {
            comparisons++;
            if (scaled[i] != x[i] * 0.3f)
                failed("scale", kernels->name, "f32", 1, n, 1, i, (double)scaled[i], (double)(x[i] * 0.3f), 0);
        }
        free(x);
        free(scaled);
    }
}

static void expect(bool condition, const char *what)
{
    comparisons++;
    if (!condition && ++failures <= MAX_FAILURES)
        fprintf(stderr, "FAIL dispatch: %s\n", what);
}

/* max - min bit for bit, wherever they lie; and the sum of absolute values. */
static void test_of_values(const ra_kernels *kernels)
{
    for (size_t n = 1; n <= 70; n++)
        for (size_t at = 0; at < n; at++) {
            float *x = random_floats(n), top, low;
            x[at] = at % 2 ? 3 : -3;
            top = low = x[0];
            double sum = 0;
            for (size_t i = 0; i < n; i++) {
                top = fmaxf(top, x[i]);
                low = fminf(low, x[i]);
                sum += fabs((double)x[i]);
            }
            float spread = kernels->spread(x, n), total = kernels->abs_sum(x, n), expected = top - low;
            comparisons += 2;
            if (memcmp(&spread, &expected, sizeof spread))
                failed("spread", kernels->name, "f32", 1, n, 1, at, (double)spread, (double)expected, 0);
            if (fabs((double)total - sum) > 1e-6 * sum)
                failed("abs_sum", kernels->name, "f32", 1, n, 1, at, (double)total, sum, 1e-6 * sum);
            free(x);
        }
    const float zeros[5] = {-0.0f, 0, -0.0f, 0, 0}, nothing = 0;
    float spread = kernels->spread(zeros, 5);
    expect(!memcmp(&spread, &nothing, sizeof spread), "the spread of zeros is not 0");
}

/* ---- Dispatch ---------------------------------------------------------------------------------------------------- */

/* Needs to come first: the choice is made once. */
static void test_dispatch(void)
{
    const char *last = NULL, *name;
    size_t sets = 0;
    for (; (name = ra_isa_available(sets)) != NULL; sets++)
        last = name;
    expect(sets >= 1 && strcmp(ra_isa_available(0), "serial") == 0, "serial is not the first");
    expect(ra_isa_available(sets + 5) == NULL, "a name past the end");
    const char *wish = getenv("REASONALLOC_CPU");
    bool known = false;
    for (size_t i = 0; i < sets; i++)
        known |= wish && strcmp(ra_isa_available(i), wish) == 0;
    expect(strcmp(ra_isa(), known ? wish : last) == 0, "neither the set that REASONALLOC_CPU names nor the best one");
    const char *first_choice = ra_isa();
    expect(ra_set_isa("sse9") == RA_ERR_ARGUMENT && ra_set_isa("") == RA_ERR_ARGUMENT &&
               ra_set_isa(NULL) == RA_ERR_ARGUMENT,
           "an unknown name was taken");
    expect(strcmp(ra_isa(), first_choice) == 0, "an unknown name changed the set");
    expect(ra_set_isa("serial") == RA_OK && ra_kernels_get() == &ra_kernels_serial, "serial cannot be chosen");
}

int main(void)
{
    test_dispatch();
    const char *isa;
    for (size_t k = 0; (isa = ra_isa_available(k)) != NULL; k++) {
        expect(ra_set_isa(isa) == RA_OK && strcmp(ra_isa(), isa) == 0, "an available set cannot be chosen");
        const ra_kernels *kernels = ra_kernels_get();
        long before = comparisons;
        for (ra_dtype dtype = RA_F32; dtype < RA_DTYPES; dtype++) {
            for (size_t i = 0; i < COUNT(dims); i++) {
                size_t d = dims[i];
                for (size_t m = 1; m <= 32; m += m < 17 ? 1 : m == 17 ? 7 : 8) {
                    test_qk(kernels, dtype, m, d);
                    test_pv(kernels, dtype, m, d, T);
                    test_pv(kernels, dtype, m, d, (m + d) % T + 1);
                }
                for (size_t tokens = 1; tokens <= T; tokens++) {
                    test_pv(kernels, dtype, 1, d, tokens);
                    test_pv(kernels, dtype, 5, d, tokens);
                }
                test_square_norms(kernels, dtype, d);
                for (size_t m = 1; m <= 4; m++)
                    test_pair_norms(kernels, dtype, m, d, m % 2);
                test_weighted_sum(kernels, dtype, d);
                test_move_keys(kernels, dtype, d);
            }
            if (dtype != RA_F32)
                test_halves(kernels, dtype);
            test_all_finite(kernels, dtype);
        }
        test_copies(kernels);
        test_exp_sum(kernels);
        test_read(kernels);
        test_above(kernels);
        test_max(kernels);
        for (size_t m = 1; m <= 16; m++) {
            test_softmax_page(kernels, m, false);
            test_softmax_page(kernels, m, true);
        }
        test_scale(kernels);
        for (size_t m = 1; m <= 17; m++)
            for (size_t pages = 0; pages <= 5; pages++) {
                test_weights(kernels, m, m, pages, 1);
                test_weights(kernels, m, m + 3, pages, 0);
                test_weights(kernels, m, m + 1, pages, 0.8f);
                test_recur(kernels, pages, 0.25f);
            }
        test_of_values(kernels);
        printf("%-7s %ld comparisons\n", kernels->name, comparisons - before);
    }
    if (failures)
        fprintf(stderr, "%d of %ld comparisons failed\n", failures, comparisons);
    else
        printf("all %ld comparisons hold\n", comparisons);
    return failures ? 1 : 0;
}
