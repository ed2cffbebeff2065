/* Attention for any head size, format and dtype: a warp takes a query through all its slots, a page at a time, in float32. */
#include "attend.cuh"

constexpr int PARTS = RA_MAX_HEAD_DIM / 32; /* dimensions of a lane */

RA_KERNEL(THREADS, 1) attend_any(attend_params p)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % PAGE, half = lane / PAGE, d = p.l.head_dim;
    const int pair = blockIdx.x, row = pair / p.l.kv_heads, head = pair % p.l.kv_heads, format = p.l.format;
    const int fresh = fresh_of(p.s, row), slots = p.l.slots[pair], block = blockIdx.z * gridDim.y + blockIdx.y,
              number = block * WARPS + warp;
    const shared<float> query = shared_at<float>(0) + warp * d;
    if (number >= fresh * p.l.group)
        return; /* no barrier of the block follows */
    const query_ref q = query_number(p, row, slots, fresh, number);
    const char *from = query_at(p, row, head, q);
    for (int c = lane; c < d; c += 32)
        query[c] = load_element(from, c, p.s.queries.dtype);
    warp_sync();
    float acc[PARTS], top = -INFINITY, sum = 0;
    RA_UNROLL for (int i = 0; i < PARTS; i++) acc[i] = 0;
    const int32_t *positions = positions_of(p.l, pair);
    for (int page = 0; page * PAGE < q.limit; page++) {
        const char *keys = page_at(p.l, pair, page), *values = keys + PAGE * d * size_of(format);
        const int slot = page * PAGE + t;
        float x = 0;
        for (int c = half; c < d; c += 2)
            x = fmaf(query[c], load_element(keys, c * PAGE + t, format), x);
        x += shuffle_xor(x, 16);
        bool sees = slot < q.limit && (!q.visible || q.visible[positions[slot]]);
        x = sees ? softcapped(x * p.s.scale, p.s.softcap) : -INFINITY;
        float best = x;
        for (int mask = 8; mask; mask /= 2)
            best = fmaxf(best, shuffle_xor(best, mask));
        best = fmaxf(best, top);
        float shrink = top == -INFINITY ? 0 : expf(top - best), e = x == -INFINITY ? 0 : expf(x - best);
        top = best;
        sum = sum * shrink + (half ? 0 : e);
        RA_UNROLL for (int i = 0; i < PARTS; i++) if (32 * i < d) acc[i] *= shrink;
        for (int u = 0; u < least(PAGE, q.limit - page * PAGE); u++) { /* what lies behind may be no number */
            float weight = shuffle(e, u);
            RA_UNROLL for (int i = 0; i < PARTS; i++) if (32 * i + lane < d)
                acc[i] = fmaf(weight, load_element(values, u * d + 32 * i + lane, format), acc[i]);
        }
    }
    for (int mask = 16; mask; mask /= 2)
        sum += shuffle_xor(sum, mask);
    float sink = sink_of(p, head, q), best = fmaxf(top, sink), own = top == -INFINITY ? 0 : expf(top - best);
    sum = sum * own + (sink == -INFINITY ? 0 : expf(sink - best));
    char *out = out_at(p, row, head, q);
    RA_UNROLL for (int i = 0; i < PARTS; i++) if (32 * i + lane < d)
        store_element(out, 32 * i + lane, p.s.out.dtype, sum > 0 ? acc[i] * own / sum : 0);
}

int ra_cuda_attend_any(const ra_cuda_layer *layer, const ra_cuda_step *step, void *stream)
{
    const unsigned blocks = (step->tokens * layer->group + WARPS - 1) / WARPS, deep = (blocks + 65534) / 65535;
    const attend_params p = {*layer, *step};
    return RA_LAUNCH(attend_any, dim3(layer->rows * layer->kv_heads, (blocks + deep - 1) / deep, deep), THREADS,
                     WARPS * layer->head_dim * sizeof(float), stream, p);
}
