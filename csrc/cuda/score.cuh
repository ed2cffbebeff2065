/* What scoring is made of. A block takes BLOCK_SLOTS slots of a head, a warp 64 of them; where matrix units serve, keys are
 * their operands straight from global memory. */
#pragma once
#include "cut.cuh"

/* Logits of queries against a head's keys, times `scale`, soft-capped. */
struct logits_job {
    ra_cuda_layer l;
    const int32_t *cut; /* [R] rows that are wanted */
    cut_scratch s;
    float scale, softcap;
    int first, most; /* of the window's queries that one, counted from the oldest, and at most so many; or NEWEST, 1 */
    bool heads;      /* a list for each of their heads; else one for each query, the largest of the group */
    bool older;      /* against the older slots only */
    const float *given = 0;    /* or a list for each of these queries, [R, H, s.queries, D] */
    const int32_t *counts = 0; /* [R][2] how many of them a row has, and newest slots that none of these asks */
};
constexpr int NEWEST = -1;

/* s.logits. If a query is not finite they are no numbers. */
int ra_cuda_logits(const logits_job &job, void *stream);
/* Scores by what attention has gathered. */
int ra_cuda_score_gathered(const ra_cuda_layer &l, const ra_cuda_cut &cut, void *stream);
/* s.inverse, s.unit_sum, s.removed, s.mean; l.similar and l.cosine where they are kept. */
int ra_cuda_redundancy(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream);
/* Its part of the newest similar keys: adds to s.removed; s.inverse is there. */
int ra_cuda_similar(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream);

/* Scores by attention with a softmax for each query head. */
int ra_cuda_score_attention(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream);
/* Scores by keys and values seen through a Gaussian matrix. */
int ra_cuda_score_dkv(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream);
/* Scores by what queries of a calibrated distribution will find. */
int ra_cuda_score_triattention(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream);
/* s.values of the older slots, as stat/value.c: the range of their values' elements, or their L1 norm. */
int ra_cuda_measure_values(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, bool range, void *stream);

RA_HOST_DEVICE dim3 grid_of_slots(const ra_cuda_layer &l, const cut_scratch &s)
{
    return dim3((unsigned)(l.rows * l.kv_heads), (unsigned)s.parts);
}
/* Whether the current device has matrix units for keys of this format. */
static inline bool has_matrix_units(int format)
{
    return format == RA_F16 ? ra_cuda_capability() >= 75 : format == RA_BF16 && ra_cuda_capability() >= 80;
}

/* ---- Scores of a head are put together by a block of COMBINE threads: there are fewer heads than an SM has room for ---- */

constexpr int COMBINE = 512;

/* Top of a softmax over logits [count] and `sink`, and one over its sum, by a warp, in one pass of 16 bytes at a time; the
 * list has whole pages of room. */
RA_DEVICE void softmax_of(const float *logits, int count, float sink, float *out)
{
    const int lane = threadIdx.x % 32;
    float top = -INFINITY, sum = 0;
    for (int first = 4 * lane; first < count; first += 4 * 32) {
        const vec16 v = load16(logits + first, true);
        float x[4], best = top;
        RA_UNROLL for (int i = 0; i < 4; i++)
        {
            x[i] = first + i < count ? as_float(v.w[i]) : -INFINITY;
            best = fmaxf(best, x[i]);
        }
        sum *= top == best ? 1 : expf(top - best);
        RA_UNROLL for (int i = 0; i < 4; i++) sum += x[i] == -INFINITY ? 0 : expf(x[i] - best);
        top = best;
    }
    RA_UNROLL for (int mask = 1; mask < 32; mask *= 2)
    {
        const float their_top = shuffle_xor(top, mask), their_sum = shuffle_xor(sum, mask),
                    best = fmaxf(top, their_top);
        sum = (top == best ? sum : sum * expf(top - best)) +
              (their_top == best ? their_sum : their_sum * expf(their_top - best));
        top = best;
    }
    if (sink > top) {
        sum = sum * expf(top - sink) + 1;
        top = sink;
    } else if (sink > -INFINITY) {
        sum += expf(sink - top);
    }
    if (lane == 0) {
        out[0] = top;
        out[1] = 1 / sum;
    }
}
/* What a logit becomes by it. */
RA_DEVICE float softmaxed(float logit, const float *softmax)
{
    return logit == -INFINITY ? 0 : expf(logit - softmax[0]) * softmax[1];
}
/* Largest of x[i - half .. i + half], or their sum in that order, as far as there are `count`; NaN if one is. */
RA_DEVICE float pooled(const float *x, int count, int i, int half, bool sum)
{
    const int from = most(0, i - half), to = i + half < count ? i + half + 1 : count;
    float all = x[from];
    bool is_number = all == all; /* the maximum would hide what is none */
    for (int j = from + 1; j < to; j++) {
        all = sum ? all + x[j] : fmaxf(all, x[j]);
        is_number &= x[j] == x[j];
    }
    return is_number ? all : NAN;
}
/* Tells of scores [older] that are no numbers; each thread sees what it has written itself. */
RA_DEVICE void flag_not_finite(const ra_cuda_layer &l, int row, const float *score, int older)
{
    bool finite = true;
    for (int i = threadIdx.x; i < older; i += blockDim.x)
        finite &= is_finite(score[i]);
    if (!finite)
        set_fault(l, row, RA_CUDA_FAULT_SCORES);
}

/* ---- Keys as operands of the matrix units, 64 slots (four pages) at a time: lane = 4 g + t holds, of chunk g (8 slots of
 * page g / 2), dimensions t, t + 4, t + 8, t + 12 of k-step k ---- */

template <class T> struct key_chunk {
    const T *keys; /* NULL past the end */
    int first, dim;
    RA_MEMBER void find(const ra_cuda_layer &l, int pair, int n, int start, int g)
    {
        first = start + g * 8;
        dim = l.head_dim;
        keys = start + g / 2 * PAGE < n ? (const T *)page_at(l, pair, start / PAGE + g / 2) + g % 2 * 8 : 0;
    }
    RA_MEMBER void load(int k, int t, vec16 *row) const
    {
        RA_UNROLL for (int m = 0; m < 4; m++)
        {
            const int c = 16 * k + 4 * m + t;
            row[m] = load16_again(keys + c * PAGE, keys != 0 && c < dim);
        }
    }
};
/* Rows of m-tile i: slots i and i + 4 of the chunks. Columns of n-tile i: slots i. */
RA_DEVICE void as_rows(const vec16 *row, int i, uint32_t *a)
{
    a[0] = pair_at(row[0], row[1], i);
    a[1] = pair_at(row[0], row[1], i + 4);
    a[2] = pair_at(row[2], row[3], i);
    a[3] = pair_at(row[2], row[3], i + 4);
}
RA_DEVICE void as_columns(const vec16 *row, int i, uint32_t *b)
{
    b[0] = pair_at(row[0], row[1], i);
    b[1] = pair_at(row[2], row[3], i);
}

RA_DEVICE float key_element(const ra_cuda_layer &l, int pair, int slot, int c)
{
    return load_element(page_at(l, pair, slot / PAGE), c * PAGE + slot % PAGE, l.format);
}
