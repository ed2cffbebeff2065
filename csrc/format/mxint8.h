/* Rows of 8-bit integers that share a power of two in blocks of 32: MXINT8 of the OCP Microscaling (MX) formats
 * specification v1.0, without -128. A number is q * 2^(e - 127 - 6), |q| <= 127, e the block's byte.
 *
 * The power is that of the block's largest magnitude, so q = 64 to 127 there: packing again what was unpacked gives the same
 * bytes, and unpacked numbers are exact in float16 and bfloat16 as far as these have come from there. The error of a number
 * is at most 1 / 127 of its block's largest magnitude: half a step, a whole one where 127.5 and more were cut to 127. */
#ifndef RA_MXINT8_H
#define RA_MXINT8_H

#include <stddef.h>
#include <stdint.h>

#define RA_MX_BLOCK 32

/* The q of all numbers, then the e of all blocks. */
static inline size_t ra_mxint8_bytes(int64_t d) { return (size_t)(d + (d + RA_MX_BLOCK - 1) / RA_MX_BLOCK); }
/* x: finite. */
void ra_mxint8_pack(const float *x, int64_t d, void *out);
void ra_mxint8_unpack(const void *packed, int64_t d, float *out);

#endif
