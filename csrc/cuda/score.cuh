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
    bool newest; /* a list for each head of the group, of the newest query against all slots; else one for each query of the
                    window, the largest of the group, against the older slots */
    const float *given = 0;    /* or a list for each of these queries, [R, H, s.queries, D] */
    const int32_t *counts = 0; /* [R][2] how many of them a row has, and newest slots that none of these asks */
};

/* s.logits. If a query is not finite they are no numbers. */
int ra_cuda_logits(const logits_job &job, void *stream);
/* Scores by what attention has gathered. */
int ra_cuda_score_gathered(const ra_cuda_layer &l, const ra_cuda_cut &cut, void *stream);
/* s.inverse, s.unit_sum, s.removed, s.mean; l.similar and l.cosine where they are kept. */
int ra_cuda_redundancy(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream);
/* Its part of the newest similar keys: adds to s.removed; s.inverse is there. */
int ra_cuda_similar(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream);

RA_HOST_DEVICE dim3 grid_of_slots(const ra_cuda_layer &l, const cut_scratch &s)
{
    return dim3((unsigned)(l.rows * l.kv_heads), (unsigned)s.parts);
}
/* Whether the current device has matrix units for keys of this format. */
static inline bool has_matrix_units(int format)
{
    return format == RA_F16 ? ra_cuda_capability() >= 75 : format == RA_BF16 && ra_cuda_capability() >= 80;
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
