/* Budgets from claims, one text for C and CUDA, so that both give the same integers: between claims and budgets stand only
 * operations whose result IEEE 754 fixes, and neither compiler may fuse them (-ffp-contract=off, -fmad=false). */
#ifndef RA_ROBUSTIFY_H
#define RA_ROBUSTIFY_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "reasonalloc.h"

#ifdef __CUDACC__
#define RB_FUNCTION static __host__ __device__ inline
#else
#define RB_FUNCTION static inline
#endif

typedef struct rb_remainder {
    double part;
    int64_t index;
} rb_remainder;

/* ---- A power of our own: libraries' differ in the last bits. Within 2 units of the last place. ---- */

/* a + b as two numbers, the nearest one and what is missing; |a| >= |b| or a == 0. */
RB_FUNCTION double rb_sum(double a, double b, double *low)
{
    double sum = a + b;
    *low = b - (sum - a);
    return sum;
}

/* a * b likewise, for factors far from overflow (Dekker): halves of 26 bits have exact products. */
RB_FUNCTION double rb_product(double a, double b, double *low)
{
    double product = a * b, wide_a = 134217729.0 * a, wide_b = 134217729.0 * b;
    double a_high = wide_a - (wide_a - a), a_low = a - a_high, b_high = wide_b - (wide_b - b), b_low = b - b_high;
    *low = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low);
    return product;
}

#define RB_LN2_HIGH 6.93147180369123816490e-01 /* 33 bits: times whole numbers of up to 20 bits it is exact */
#define RB_LN2_LOW 1.90821492927058770002e-10

/* log(x) for normal x > 0 in two parts: x = 2^e m with m near 1, log m = 2 artanh(s), s = (m - 1) / (m + 1). */
RB_FUNCTION double rb_log(double x, double *low)
{
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t exponent = (bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffLL) | 0x3ff0000000000000LL;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m /= 2;
        exponent++;
    }
    double e = (double)exponent, below, rest, part;
    double above = m > 1 ? rb_sum(m, 1, &below) : rb_sum(1, m, &below), s = (m - 1) / above;
    double back = rb_product(s, above, &rest);
    double s_low = ((((m - 1) - back) - rest) - s * below) / above, square = s * s, tail = 0;
    for (int k = 23; k >= 3; k -= 2)
        tail = (tail + 1.0 / (double)k) * square;
    double high = exponent ? rb_sum(e * RB_LN2_HIGH, 2 * s, &part) : rb_sum(2 * s, 0, &part);
    return rb_sum(high, part + (2 * s_low + (2 * s * tail + e * RB_LN2_LOW)), low);
}

/* exp(x + low) for x in [-700, 0]. */
RB_FUNCTION double rb_exp(double x, double low)
{
    double k = floor(x / (RB_LN2_HIGH + RB_LN2_LOW) + 0.5), r = x - k * RB_LN2_HIGH, sum = 1.0 / 15;
    low -= k * RB_LN2_LOW;
    double both = r + low;
    for (int i = 14; i >= 2; i--)
        sum = (1 + both * sum) / (double)i;
    double result = 1 + (r + (low + both * both * sum)), scale;
    int64_t bits = ((int64_t)k + 1023) << 52;
    memcpy(&scale, &bits, sizeof scale);
    return result * scale;
}

/* x^gamma for x in [1e-9, 1], gamma in [0, 32]. */
RB_FUNCTION double rb_power(double x, double gamma)
{
    if (gamma == 0 || x == 1)
        return 1;
    if (gamma == 1)
        return x;
    if (gamma == 0.5)
        return sqrt(x);
    double log_low, low, log_high = rb_log(x, &log_low), high = rb_product(gamma, log_high, &low);
    return rb_exp(high, low + gamma * log_low);
}

/* ---- Budgets ---- */

/* Whether a figure a head, `limits` or `shares`, sets budgets whole, with what a head evicts last; scores do not matter. */
RB_FUNCTION bool rb_by_figures(ra_heads heads) { return heads == RA_HEADS_GIVEN || heads == RA_HEADS_SHARES; }

RB_FUNCTION double rb_clipped_sum(const double *x, int64_t n, double scale, double lo, double hi)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += fmin(fmax(scale * x[i], lo), hi);
    return sum;
}

/* The largest scale at which the clipped claims stay below total. Claims span up to 144 powers of ten, so the middle is
 * geometric until the ends are near each other. */
RB_FUNCTION double rb_scale_below(const double *y, int64_t n, double total, double least, double most, double y_least)
{
    double below = 0, above = fmax(most, 1.0) / fmax(y_least, 1e-300); /* every claim at its upper bound */
    double low = least > 0 ? least : total / (double)n; /* every claim at its lower bound, or too little */
    if (low > 0 && low < above && rb_clipped_sum(y, n, low, least, most) < total)
        below = low;
    while (above > below) {
        double middle = below > 0 && above / below > 4 ? sqrt(below) * sqrt(above) : below + (above - below) / 2;
        if (middle <= below || middle >= above)
            break;
        if (rb_clipped_sum(y, n, middle, least, most) < total)
            below = middle;
        else
            above = middle;
    }
    return below;
}

/* Whether a comes after b: the larger remainder first, then the lower index. */
RB_FUNCTION int rb_after(rb_remainder a, rb_remainder b)
{
    return a.part != b.part ? a.part < b.part : a.index > b.index;
}

/* Heapsort: no two are equal, so that there is one order. */
RB_FUNCTION void rb_sort(rb_remainder *x, int64_t n)
{
    int64_t begin = n / 2, end = n;
    while (end > 1) {
        if (begin > 0) {
            begin--;
        } else {
            rb_remainder last = x[--end];
            x[end] = x[0];
            x[0] = last;
        }
        int64_t root = begin;
        for (int64_t child; (child = 2 * root + 1) < end; root = child) {
            if (child + 1 < end && rb_after(x[child + 1], x[child]))
                child++;
            if (!rb_after(x[child], x[root]))
                break;
            rb_remainder swap = x[root];
            x[root] = x[child];
            x[child] = swap;
        }
    }
}

/* Integers of real[] that sum to total; real lies in [lo, hi], both whole, and sums to about total. */
RB_FUNCTION void rb_round_to_total(const double *real, int64_t n, int64_t total, rb_remainder *parts, int64_t *out)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        out[i] = (int64_t)floor(real[i]);
        sum += out[i];
        parts[i].part = real[i] - floor(real[i]);
        parts[i].index = i;
    }
    rb_sort(parts, n);
    int64_t each = (total - sum) / n, odd = (total - sum) % n;
    for (int64_t i = 0; i < n; i++)
        out[parts[i].index] += each + (i < odd);
}

/* ra_robustify for good arguments whose floor is feasible. y [n] and parts [n] are scratch; x may be y. */
RB_FUNCTION void rb_robustify(const double *x, int64_t n, int64_t total, double gamma, double lo, double hi,
                              double floor_, double *y, rb_remainder *parts, int64_t *out)
{
    double highest = 0, mean = (double)total / (double)n, y_least = INFINITY;
    for (int64_t i = 0; i < n; i++)
        highest = fmax(highest, x[i]);
    /* Whole bounds inside the wished ones, or the nearest whole ones outside where no integers fit inside. */
    double least = ceil(fmax(lo * mean, floor_)), most = floor(fmin(hi * mean, (double)total));
    if (least > mean)
        least = floor(fmax(lo * mean, floor_));
    if (most < mean)
        most = ceil(mean);
    /* A claim of nothing is a very small claim: it grows once all others have met their upper bound. */
    for (int64_t i = 0; i < n; i++) {
        y[i] = highest > 0 ? rb_power(fmax(x[i] / highest, 1e-9), gamma) : 1;
        y_least = fmin(y_least, y[i]);
    }
    double below = rb_scale_below(y, n, (double)total, least, most, y_least);
    for (int64_t i = 0; i < n; i++)
        y[i] = fmin(fmax(below * y[i], least), most);
    rb_round_to_total(y, n, total, parts, out);
}

/* Claims of Ada-KV's pooled top-k with a safeguard, in place. */
RB_FUNCTION void rb_safeguard(double *claims, int64_t n, int64_t total, double share)
{
    double sum = 0, mean = (double)total / (double)n;
    for (int64_t i = 0; i < n; i++)
        sum += claims[i];
    for (int64_t i = 0; i < n; i++)
        claims[i] = (1 - share) * claims[i] * (sum > 0 ? (double)total / sum : 1) + share * mean;
}

/* Heads with a limit from 0 on get it, the others share the rest. 0 where that is less than `window` for each of them. */
RB_FUNCTION int rb_given(const int64_t *limits, int64_t heads, int64_t window, int64_t total, int64_t *out)
{
    int64_t others = 0, at = 0;
    for (int64_t h = 0; h < heads; h++) {
        others += limits[h] < 0;
        total -= limits[h] < 0 ? 0 : limits[h];
    }
    if (others && total < others * window)
        return 0;
    for (int64_t h = 0; h < heads; h++) {
        out[h] = limits[h] >= 0 ? limits[h] : total / others + (at < total % others);
        at += limits[h] < 0;
    }
    return 1;
}

/* Every head gets `window` slots and one for each protected position, the rest of `total` follows the shares, which are good;
 * a total that holds no more than that is shared evenly. y [n] and parts [n] are scratch. */
RB_FUNCTION void rb_shares(const double *shares, int64_t n, int64_t window, int64_t protect_below, int64_t total,
                           double lo, double hi, double *y, rb_remainder *parts, int64_t *out)
{
    int64_t each = total / n, odd = total % n;
    int64_t spared = window + (protect_below < 0 ? 0 : protect_below < total ? protect_below : total);
    if (spared >= each + (odd > 0)) { /* spared * n >= total, which may overflow */
        for (int64_t h = 0; h < n; h++)
            out[h] = each + (h < odd);
        return;
    }
    rb_robustify(shares, n, total - spared * n, 1, lo, hi, 0, y, parts, out);
    for (int64_t h = 0; h < n; h++)
        out[h] += spared;
}

#endif
