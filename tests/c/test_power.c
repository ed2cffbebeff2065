/* The power of core/robustify.h beside the C library's in long double, and budgets beside those that pow would give. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "robustify.h"

enum { HEADS = 32 };

static uint64_t state = 1;

static double uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) * 0x1p-53;
}

static double units_off(double x, double gamma)
{
    long double want = powl((long double)x, (long double)gamma);
    int exponent;
    (void)frexpl(want, &exponent);
    return (double)(fabsl((long double)rb_power(x, gamma) - want) / ldexpl(1, exponent - 53));
}

/* Budgets of claims, which are given as powers already: gamma is 1. */
static void budgets(const double *claims, int n, int64_t total, double lo, double hi, int64_t *out)
{
    double y[HEADS];
    rb_remainder parts[HEADS];
    rb_robustify(claims, n, total, 1, lo, hi, 0, y, parts, out);
}

int main(void)
{
    double worst = 0;
    for (int i = 0; i < 2000000; i++) {
        double x = i % 2 ? pow(10, -9 * uniform()) : fmin(1, 1e-9 + uniform()), gamma = 32 * pow(uniform(), 1 + i % 3);
        worst = fmax(worst, units_off(x, gamma));
        if (rb_power(x, 0) != 1 || rb_power(x, 1) != x || rb_power(x, 0.5) != sqrt(x) || rb_power(1, gamma) != 1) {
            printf("%.17g to the power %.17g is not exact\n", x, gamma);
            return 1;
        }
    }
    if (!(worst <= 1.5)) {
        printf("a power is %.2f units of the last place off\n", worst);
        return 1;
    }
    int other = 0, cases = 100000;
    for (int i = 0; i < cases; i++) {
        int n = 2 + (int)(uniform() * (HEADS - 1));
        double ours[HEADS], theirs[HEADS], gamma = 4 * uniform(), lo = uniform(), hi = 1 + 3 * uniform(), highest = 0;
        int64_t total = n * (int64_t)(16 + 2000 * uniform()), a[HEADS], b[HEADS];
        for (int h = 0; h < n; h++)
            highest = fmax(highest, ours[h] = floor(3000 * uniform()) + 8);
        for (int h = 0; h < n; h++) {
            theirs[h] = pow(ours[h] / highest, gamma);
            ours[h] = rb_power(ours[h] / highest, gamma);
        }
        budgets(ours, n, total, lo, hi, a);
        budgets(theirs, n, total, lo, hi, b);
        for (int h = 0; h < n; h++)
            if (a[h] != b[h]) {
                other++;
                break;
            }
    }
    printf("powers within %.2f units of the last place; %d of %d allocations differ from those by pow\n", worst, other,
           cases);
    return other > cases / 1000;
}
