/* Append of one new token a row, in one launch: a block a head.
 *
 * Each block works out which pages the heads before it take from what stood in the lists before; the last block to come
 * writes what stands there afterwards. So pages are dealt in the order of heads whatever the order of blocks. */
#include "append.cuh"

enum { DONE, DEFERRED }; /* tickets */

/* What the last block has to do for heads whose tail was shared: a head and its copy's page, or -1 where the head keeps
 * the page and writes to it when all others have copied it. */
RA_DEVICE void defer(const append_job &j, int pair, int32_t copy)
{
    const uint32_t at = global_add(&j.l.tickets[DEFERRED], 1u);
    j.lists[2 * at] = pair;
    j.lists[2 * at + 1] = copy;
}

template <class E> RA_DEVICE void write_token(const append_job &j, int pair, int32_t id)
{
    const int row = pair / j.l.kv_heads, head = pair % j.l.kv_heads, d = j.l.head_dim, group = j.l.group;
    const int slots = j.l.slots[pair], slot = slots % PAGE, place = place_of(j.s, row, 0), token = j.l.tokens[row];
    const int chunks = (d + 7) / 8;
    E *keys = (E *)j.l.pool->memory[id], *values = keys + PAGE * d;
    float *ring = query_of(j.l, row, token, head);
    bool finite = true;
    for (int item = threadIdx.x; item < (2 + group) * chunks; item += THREADS) { /* key, value, queries */
        const int which = item / chunks, c = item % chunks * 8;
        const char *from = which == 0   ? token_at(j.s.keys, row, head, place)
                           : which == 1 ? token_at(j.s.values, row, head, place)
                                        : token_at(j.s.queries, row, head * group + which - 2, place);
        const int dtype = which == 0 ? j.s.keys.dtype : which == 1 ? j.s.values.dtype : j.s.queries.dtype;
        float x[8];
        load8(from, dtype, c, d, x);
        if (which >= 2) {
            eight<float> query;
            query.set(x);
            query.store_all(ring + (int64_t)(which - 2) * d, c, d);
            continue;
        }
        eight<E> stored;
        finite &= stored.set(x);
        if (which == 1) {
            stored.store_all(values + slot * d, c, d);
        } else {
            RA_UNROLL for (int i = 0; i < 8; i++) if (c + i < d) stored.store(i, keys + (c + i) * PAGE + slot);
        }
    }
    if (threadIdx.x == 0)
        positions_of(j.l, pair)[slots] = token;
    if (!finite)
        set_fault(j.l, row, RA_CUDA_FAULT_TOKENS);
}

template <class E> RA_KERNEL(THREADS, 4) append_token(append_job j)
{
    const shared<int> scratch = shared_at<int>(0);
    const int pair = blockIdx.x, H = j.l.kv_heads;
    ra_cuda_pool *pool = j.l.pool;
    const int32_t free_count = pool->free_count, any_shared = pool->shared;
    int before = 0, all = 0, beyond = 0; /* pages that earlier heads take, and all; heads that have no room */
    each_fresh_head(j, [&](int other, int slots) {
        int needs = slots % PAGE == 0;
        if (any_shared && !needs) {
            const int32_t tail = shared_tail(j, other);
            needs = tail >= 0 && is_copied(j, other, tail);
        }
        before += other < pair ? needs : 0;
        all += needs;
        beyond += slots >= j.l.pages * PAGE;
    });
    before = block_sum(before, scratch);
    all = block_sum(all, scratch);
    const bool fits = !block_sum(beyond, scratch) && all <= free_count;
    if (fits && fresh_of(j.s, pair / H)) {
        const int slots = j.l.slots[pair];
        const int32_t tail = any_shared ? shared_tail(j, pair) : -1;
        const bool copied = tail >= 0 && is_copied(j, pair, tail), taken = copied || slots % PAGE == 0;
        int32_t *entry = &pages_of(j.l, pair)[slots / PAGE];
        const int32_t id = taken ? pool->free_ids[free_count - 1 - before] : *entry;
        if (copied) {
            copy_page(j.l, tail, id);
            block_sync();
        }
        if (tail < 0 || copied)
            write_token<E>(j, pair, id);
        if (threadIdx.x == 0) {
            if (taken)
                pool->refs[id] = 1;
            if (tail >= 0)
                defer(j, pair, copied ? id : -1); /* others still look at its list */
            else if (taken)
                *entry = id;
        }
    }
    if (!last_block(&j.l.tickets[DONE], 64))
        return;
    if (!fits) {
        if (threadIdx.x == 0)
            set_fault(j.l, 0, RA_CUDA_FAULT_PAGES);
        return;
    }
    const int deferred = load_fresh(&j.l.tickets[DEFERRED]);
    for (int i = 0; i < deferred; i++) {
        const int which = load_fresh(&j.lists[2 * i]);
        if (load_fresh(&j.lists[2 * i + 1]) < 0)
            write_token<E>(j, which, pages_of(j.l, which)[j.l.slots[which] / PAGE]);
    }
    for (int i = threadIdx.x; i < deferred; i += THREADS) {
        const int which = load_fresh(&j.lists[2 * i]), copy = load_fresh(&j.lists[2 * i + 1]);
        int32_t *entry = &pages_of(j.l, which)[j.l.slots[which] / PAGE];
        if (copy >= 0) {
            drop_owner(pool, *entry);
            *entry = copy;
        }
    }
    block_sync(); /* all have read slots and tokens */
    settle_lists(j);
    if (threadIdx.x == 0) {
        j.l.tickets[DEFERRED] = 0;
        pool->free_count = free_count - all;
        note_least_free(pool);
    }
}

extern "C" size_t ra_cuda_append_bytes(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    (void)step;
    return aligned(((size_t)layer->rows * layer->kv_heads * 2 + 2) * sizeof(int32_t));
}

extern "C" int ra_cuda_append(const ra_cuda_layer *layer, const ra_cuda_step *step, void *scratch, void *stream)
{
    const unsigned pairs = layer->rows * layer->kv_heads;
    if (!pairs || step->tokens < 1)
        return 0;
    const append_job j = {*layer, *step, (int32_t *)scratch};
    if (step->tokens > 1)
        return ra_append_prompt(j, stream);
    if (layer->format == RA_BF16)
        return RA_LAUNCH(append_token<bf16>, pairs, THREADS, 128, stream, j);
    if (layer->format == RA_F16)
        return RA_LAUNCH(append_token<f16>, pairs, THREADS, 128, stream, j);
    return RA_LAUNCH(append_token<float>, pairs, THREADS, 128, stream, j);
}
