#include "mxint8.h"

#include <math.h>

enum { BIAS = 127, FRACTION = 6 };

/* Where the numbers of a block end. */
static int64_t end_of(int64_t begin, int64_t d) { return begin + RA_MX_BLOCK < d ? begin + RA_MX_BLOCK : d; }

void ra_mxint8_pack(const float *x, int64_t d, void *out)
{
    int8_t *q = out;
    uint8_t *e = (uint8_t *)out + d;
    for (int64_t begin = 0; begin < d; begin = end_of(begin, d)) {
        float most = 0;
        for (int64_t i = begin; i < end_of(begin, d); i++)
            most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        int power = -BIAS;
        if (most > 0) {
            (void)frexpf(most, &power); /* most = [0.5, 1) * 2^power */
            power = power - 1 > -BIAS ? power - 1 : -BIAS;
        }
        const double scale = ldexp(1, FRACTION - power);
        for (int64_t i = begin; i < end_of(begin, d); i++) {
            double number = rint((double)x[i] * scale);
            q[i] = (int8_t)fmax(-127, fmin(127, number));
        }
        *e++ = (uint8_t)(power + BIAS);
    }
}

void ra_mxint8_unpack(const void *packed, int64_t d, float *out)
{
    const int8_t *q = packed;
    const uint8_t *e = (const uint8_t *)packed + d;
    for (int64_t begin = 0; begin < d; begin = end_of(begin, d)) {
        const float scale = ldexpf(1, *e++ - BIAS - FRACTION);
        for (int64_t i = begin; i < end_of(begin, d); i++)
            out[i] = (float)q[i] * scale;
    }
}
