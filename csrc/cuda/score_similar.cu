/* The newest similar key of each key, and what its zeroed entry takes from the column means. Two keys that were both there
 * at the last cut are not compared again: as stat/similar.c, bit for bit what a search of everything finds. */
#include <float.h>

#include "score.cuh"

constexpr int TILE = 64; /* slots */

enum { NOT_FOUND = -2, NONE_SIMILAR = -1 };

/* What a row's search begins with. It goes through the new columns, from the newest to slot `cached`, then through those
 * before `bound`. */
struct row_search {
    int found;  /* newest similar column, NONE_SIMILAR once slot 0 was reached */
    float with; /* the cosine with it, with slot 0 where none is similar */
    int bound;
};

/* Slots of which something is known. */
RA_DEVICE int cached_slots(const ra_cuda_layer &l, const ra_cuda_cut &cut, int pair)
{
    return l.cached && l.cached_threshold[pair] == cut.threshold ? least(l.cached[pair], l.slots[pair]) : 0;
}
RA_DEVICE row_search begin_search(const ra_cuda_layer &l, int pair, int cached, int slot)
{
    if (slot >= cached)
        return {NOT_FOUND, 0, cached};
    const int similar = l.similar[pair * entries_of(l) + slot];
    if (similar < NONE_SIMILAR)
        return {NOT_FOUND, 0, -2 - similar};
    return {similar, l.cosine[pair * entries_of(l) + slot], 0};
}

/* As the C core computes it: no product of two long keys. */
RA_DEVICE float cosine(const ra_cuda_layer &l, int pair, int i, int j, float inverse_i, float inverse_j)
{
    float dot = 0;
    for (int c = 0; c < l.head_dim; c++)
        dot = fmaf(key_element(l, pair, j, c) * inverse_j, key_element(l, pair, i, c), dot);
    return dot * inverse_i;
}

/* What the means lose; whole numbers, so that the order of rows does not matter. */
using lost_part = unsigned long long;
RA_DEVICE void remove(const cut_scratch &s, int pair, int slot, lost_part part)
{
    if (part)
        global_add((lost_part *)&s.removed[pair * s.stride + slot], part);
}

/* A row's search has ended. Returns what slot 0 loses by it: with no similar keys that is of all rows. */
RA_DEVICE lost_part end_search(const ra_cuda_layer &l, const cut_scratch &s, int pair, int slot, int found, float with)
{
    if (l.similar) {
        l.similar[pair * entries_of(l) + slot] = found;
        l.cosine[pair * entries_of(l) + slot] = with;
    }
    /* Where it is not finite the means are no numbers either. */
    const lost_part part = is_finite(with) ? (lost_part)(long long)((double)with * 0x1p40) : 0;
    if (found <= 0)
        return part;
    remove(s, pair, found, part);
    return 0;
}

/* A row by one thread. */
RA_DEVICE lost_part search(const ra_cuda_layer &l, const cut_scratch &s, int pair, int n, int cached, int i, float threshold)
{
    const float *inverse = s.inverse + pair * s.stride;
    row_search row = begin_search(l, pair, cached, i);
    for (int j = n - 1; j >= 0; j--) {
        if (j < cached && row.found >= NONE_SIMILAR)
            break;
        if (j < cached && j >= row.bound)
            j = row.bound - 1;
        const float x = j == i ? 0 : cosine(l, pair, i, j, inverse[i], inverse[j]); /* the diagonal is zero */
        if (x > threshold || j == 0) {
            row.found = x > threshold ? j : NONE_SIMILAR;
            row.with = x;
            break;
        }
    }
    return end_search(l, s, pair, i, row.found, row.with);
}

/* ---- On matrix units: a block takes 64 rows and goes through the columns from the newest, a warp half of 64 at a time ----
 */
constexpr int ROUND = WARPS / 2; /* tiles of columns that a block takes at a time */

/* What the warps of a block share. */
struct shared_rows {
    shared<int> found, bound;  /* [TILE] */
    shared<float> with, scale; /* [TILE]; scale: inverse norms */
    shared<int> hits;          /* [WARPS][TILE] of this round */
    shared<float> hit_with;
    shared<int> overflow; /* [WARPS] */
    shared<lost_part> lost; /* [WARPS] */
};
constexpr size_t SIMILAR_BYTES = (4 * TILE + 2 * WARPS * TILE + WARPS) * 4 + WARPS * 8;
RA_DEVICE shared_rows lay_rows()
{
    constexpr size_t rows = TILE * 4, warps = WARPS * rows;
    return {shared_at<int>(0),
            shared_at<int>(rows),
            shared_at<float>(2 * rows),
            shared_at<float>(3 * rows),
            shared_at<int>(4 * rows),
            shared_at<float>(4 * rows + warps),
            shared_at<int>(4 * rows + 2 * warps),
            shared_at<lost_part>(4 * rows + 2 * warps + WARPS * 4)};
}

/* One past the columns before `end` that a row still has to see; 0: none. */
RA_DEVICE int columns_left(int found, int bound, int cached, int end)
{
    if (end > cached)
        return found < cached ? end : 0;
    return found < NONE_SIMILAR ? least(end, bound) : 0;
}
/* Of all rows; every warp comes to the same. */
RA_DEVICE int columns_left(const shared_rows &rows, int count, int cached, int end)
{
    int left = 0;
    for (int row = threadIdx.x % 32; row < count; row += 32)
        left = most(left, columns_left(rows.found[row], rows.bound[row], cached, end));
    for (int mask = 16; mask; mask /= 2)
        left = most(left, shuffle_xor(left, mask));
    return left;
}

/* Of a warp's products, the newest hit of each of a lane's rows. */
struct lane_hits {
    int found[4][2];
    float with[4][2];
};

/* Compares 64 rows with the columns from `from` on: of each chunk of 8 those from 4 part on. False where float32 cannot hold
 * a product. */
template <class T>
RA_DEVICE bool compare(const ra_cuda_layer &l, const key_chunk<T> &own, const float *inverse, const shared_rows &rows,
                       int pair, int n, int cached, int from, int part, float threshold, lane_hits *hits)
{
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, steps = (l.head_dim + 15) / 16;
    const int start = own.first - 8 * g;
    /* Nothing but hits is to be looked for: no diagonal, no slot 0, no end. */
    const bool plain = from > 0 && from != start && from + TILE <= n && start + TILE <= n;
    key_chunk<T> other;
    other.find(l, pair, n, from, g);
    bool overflow = false;
    float dot[4][4][4];
    RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int c = 0; c < 4; c++)
        RA_UNROLL for (int j = 0; j < 4; j++) dot[i][c][j] = 0;
    RA_UNROLL_BY(2) for (int k = 0; k < steps; k++)
    {
        vec16 own_row[4], columns[4];
        own.load(k, t, own_row);
        other.load(k, t, columns);
        RA_UNROLL for (int m = 0; m < 4; m++) RA_UNROLL for (int w = 0; w < 2; w++) /* registers have no index */
            columns[m].w[w] = part ? columns[m].w[2 + w] : columns[m].w[w];
        uint32_t a[4][4];
        RA_UNROLL for (int i = 0; i < 4; i++) as_rows(own_row, i, a[i]);
        RA_UNROLL for (int c = 0; c < 4; c++)
        {
            uint32_t b[2];
            as_columns(columns, c, b);
            RA_UNROLL for (int i = 0; i < 4; i++) mma(T, dot[i][c], a[i], b);
        }
    }
    /* The lane's columns: slots 4 part + c of chunks 2t and 2t + 1. */
    float by[4][2];
    RA_UNROLL for (int c = 0; c < 4; c++) RA_UNROLL for (int side = 0; side < 2; side++)
    {
        const int column = from + (2 * t + side) * 8 + 4 * part + c;
        by[c][side] = column < n ? inverse[column] : 0;
    }
    if (plain) {
        bool hit = false;
        float check = 0; /* stays 0 while products are finite */
        RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int half = 0; half < 2; half++)
        {
            const float scale = rows.scale[g * 8 + i + 4 * half];
            RA_UNROLL for (int c = 0; c < 4; c++) RA_UNROLL for (int side = 0; side < 2; side++)
            {
                check = fmaf(dot[i][c][2 * half + side], 0, check);
                hit |= dot[i][c][2 * half + side] * scale * by[c][side] > threshold;
            }
        }
        overflow |= check != 0;
        if (!ballot(hit))
            return !overflow;
    }
    RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int half = 0; half < 2; half++)
    {
        const int row = g * 8 + i + 4 * half, slot = start + row, bound = rows.bound[row];
        const float scale = rows.scale[row];
        RA_UNROLL for (int c = 0; c < 4; c++) RA_UNROLL for (int side = 0; side < 2; side++)
        {
            const int column = from + (2 * t + side) * 8 + 4 * part + c;
            const float product = dot[i][c][2 * half + side];
            if (column >= n || slot >= n || (column < cached && column >= bound))
                continue;
            overflow |= !is_finite(product);
            const float x = column == slot ? 0 : product * scale * by[c][side]; /* the diagonal is zero */
            const bool similar = x > threshold;
            if (similar ? column > hits->found[i][half] : column == 0 && hits->found[i][half] < NONE_SIMILAR) {
                hits->found[i][half] = similar ? column : (int)NONE_SIMILAR;
                hits->with[i][half] = x;
            }
        }
    }
    return !overflow;
}

RA_HOST_DEVICE int row_tiles(const cut_scratch &s) { return (int)((s.stride + TILE - 1) / TILE); }

/* Grid: tiles of rows, head by head, so that those of a head find its keys in the cache. The newest tiles come first: new keys
 * search longest, and nobody should wait for them in the end. */
template <class T> RA_KERNEL(THREADS, 3) similar_matrix(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared_rows rows = lay_rows();
    const int tiles = row_tiles(s), pair = blockIdx.x / tiles, n = l.slots[pair];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int start = (tiles - 1 - (int)(blockIdx.x % tiles)) * TILE, count = least(TILE, n - start);
    if (!cut.cut[pair / l.kv_heads] || start >= n)
        return;
    key_chunk<T> own;
    own.find(l, pair, n, start, g);
    const int cached = cached_slots(l, cut, pair);
    const float *inverse = s.inverse + pair * s.stride;
    for (int row = threadIdx.x; row < TILE; row += THREADS) {
        const row_search at = row < count ? begin_search(l, pair, cached, start + row) : row_search{n, 0, 0};
        rows.found[row] = at.found;
        rows.with[row] = at.with;
        rows.bound[row] = at.bound;
        rows.scale[row] = row < count ? inverse[start + row] : 0;
    }
    block_sync();
    int overflow = 0;
    for (int end = columns_left(rows, count, cached, n); end > 0 && !overflow;) {
        const int top = (end - 1) / TILE * TILE, from = top - warp / 2 * TILE;
        lane_hits hits;
        RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int half = 0; half < 2; half++)
        {
            hits.found[i][half] = NOT_FOUND;
            hits.with[i][half] = 0;
        }
        bool fits = true;
        if (from >= 0 && columns_left(rows, count, cached, from + TILE) > from)
            fits = compare(l, own, inverse, rows, pair, n, cached, from, warp % 2, cut.threshold, &hits);
        RA_UNROLL for (int i = 0; i < 4; i++) RA_UNROLL for (int half = 0; half < 2; half++)
        { /* a lane sees a quarter of the columns */
            int found = hits.found[i][half];
            float with = hits.with[i][half];
            RA_UNROLL for (int mask = 1; mask <= 2; mask *= 2)
            {
                const int theirs = shuffle_xor(found, mask);
                const float their_cosine = shuffle_xor(with, mask);
                with = theirs > found ? their_cosine : with;
                found = most(theirs, found);
            }
            if (t == 0) {
                rows.hits[warp * TILE + g * 8 + i + 4 * half] = found;
                rows.hit_with[warp * TILE + g * 8 + i + 4 * half] = with;
            }
        }
        const uint32_t too_long = ballot(!fits);
        if (lane == 0)
            rows.overflow[warp] = too_long != 0;
        block_sync();
        for (int row = threadIdx.x; row < count; row += THREADS)
            for (int w = 0; w < WARPS; w++)
                if (rows.hits[w * TILE + row] > rows.found[row]) {
                    rows.found[row] = (int)rows.hits[w * TILE + row];
                    rows.with[row] = (float)rows.hit_with[w * TILE + row];
                }
        for (int w = 0; w < WARPS; w++)
            overflow |= rows.overflow[w];
        block_sync();
        end = columns_left(rows, count, cached, most(0, top - (ROUND - 1) * TILE));
    }
    lost_part lost = 0;
    for (int row = threadIdx.x; row < count; row += THREADS)
        if (overflow) /* long keys, whose products float32 cannot hold */
            lost += search(l, s, pair, n, cached, start + row, cut.threshold);
        else
            lost += end_search(l, s, pair, start + row, rows.found[row], rows.with[row]);
    lost = block_sum(lost, rows.lost);
    if (threadIdx.x == 0)
        remove(s, pair, 0, lost);
}

/* The same in float32, a slot a thread. grid_of_slots. */
RA_KERNEL(THREADS, 4) similar_plain(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const int pair = blockIdx.x, n = l.slots[pair], begin = blockIdx.y * BLOCK_SLOTS;
    if (!cut.cut[pair / l.kv_heads])
        return;
    const int cached = cached_slots(l, cut, pair);
    for (int i = begin + threadIdx.x; i < least(n, begin + BLOCK_SLOTS); i += THREADS)
        remove(s, pair, 0, search(l, s, pair, n, cached, i, cut.threshold));
}

int ra_cuda_similar(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s, void *stream)
{
    if (!has_matrix_units(l.format))
        return RA_LAUNCH(similar_plain, grid_of_slots(l, s), THREADS, 0, stream, l, cut, s);
    const unsigned grid = (unsigned)(l.rows * l.kv_heads * row_tiles(s));
    if (l.format == RA_BF16)
        return RA_LAUNCH(similar_matrix<bf16>, grid, THREADS, SIMILAR_BYTES, stream, l, cut, s);
    return RA_LAUNCH(similar_matrix<f16>, grid, THREADS, SIMILAR_BYTES, stream, l, cut, s);
}
