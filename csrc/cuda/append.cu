/* Append: pages for the new tokens, keys and values into them, queries into the ring.
 *
 * One block deals out the pages, in the order of heads, so that page numbers are the C core's; a grid over pages writes;
 * one block settles the lists. */
#include "common.cuh"

struct append_job {
    ra_cuda_layer l;
    ra_cuda_step s;
    int32_t *copied; /* [R, H] the shared page that the tail is to be a copy of, or -1 */
    int32_t *fits;   /* the pool had enough */
};

RA_DEVICE int fresh_of(const ra_cuda_step &s, int row) { return s.begin ? s.begin[row + 1] - s.begin[row] : s.tokens; }
RA_DEVICE int place_of(const ra_cuda_step &s, int row, int i) { return s.index ? s.index[s.begin[row] + i] : i; }

RA_DEVICE const char *token_at(const ra_tokens &t, int row, int head, int place)
{
    int64_t at = row * t.stride_row + head * t.stride_head + place * t.stride_token;
    return (const char *)t.data + at * size_of(t.dtype);
}

RA_DEVICE int32_t pop(ra_cuda_pool *pool)
{
    int32_t id = pool->free_ids[--pool->free_count];
    pool->refs[id] = 1;
    return id;
}

/* Head by head, as cpu/step.c: where tails are shared, what one head does changes what the next one finds. */
RA_DEVICE void take_in_turn(const append_job &j)
{
    ra_cuda_pool *pool = j.l.pool;
    for (int pair = 0; pair < j.l.rows * j.l.kv_heads; pair++) {
        int fresh = fresh_of(j.s, pair / j.l.kv_heads), slots = j.l.slots[pair];
        int32_t *pages = pages_of(j.l, pair);
        if (fresh && slots % PAGE && pool->refs[pages[slots / PAGE]] > 1) {
            int32_t tail = pages[slots / PAGE];
            pages[slots / PAGE] = pop(pool);
            pool->refs[tail]--;
            j.copied[pair] = tail;
        }
        for (int p = pages_for(slots); p < pages_for(slots + fresh); p++)
            pages[p] = pop(pool);
    }
}

RA_KERNEL(THREADS, 1) take_pages(append_job j)
{
    const shared<int> scratch = shared_at<int>(0);
    const int pairs = j.l.rows * j.l.kv_heads, room = j.l.pages * PAGE;
    ra_cuda_pool *pool = j.l.pool;
    const int32_t free_count = pool->free_count;
    int all = 0, shared_tails = 0, over = 0;
    for (int first = 0; first < pairs; first += THREADS) {
        const int pair = first + threadIdx.x;
        int need = 0, tail = 0, beyond = 0, total;
        if (pair < pairs) {
            int fresh = fresh_of(j.s, pair / j.l.kv_heads), slots = j.l.slots[pair];
            need = pages_for(slots + fresh) - pages_for(slots);
            tail = fresh && slots % PAGE && pool->refs[pages_of(j.l, pair)[slots / PAGE]] > 1;
            beyond = slots + fresh > room;
            j.copied[pair] = -1;
        }
        block_prefix(need + tail, scratch, &total);
        all += total;
        block_prefix(tail, scratch, &total);
        shared_tails += total;
        block_prefix(beyond, scratch, &total);
        over += total;
    }
    const bool fits = all <= free_count && !over;
    if (threadIdx.x == 0) {
        *j.fits = fits;
        if (!fits)
            set_fault(j.l, 0, RA_CUDA_FAULT_PAGES);
    }
    if (!fits)
        return;
    if (shared_tails) {
        block_sync(); /* `copied` is set */
        if (threadIdx.x == 0) {
            take_in_turn(j);
            note_least_free(pool);
        }
        return;
    }
    int taken = 0;
    for (int first = 0; first < pairs; first += THREADS) {
        const int pair = first + threadIdx.x;
        int slots = 0, need = 0, total;
        if (pair < pairs) {
            slots = j.l.slots[pair];
            need = pages_for(slots + fresh_of(j.s, pair / j.l.kv_heads)) - pages_for(slots);
        }
        int before = taken + block_prefix(need, scratch, &total);
        for (int i = 0; i < need; i++) {
            int32_t id = pool->free_ids[free_count - 1 - before - i];
            pages_of(j.l, pair)[pages_for(slots) + i] = id;
            pool->refs[id] = 1;
        }
        taken += total;
    }
    if (threadIdx.x == 0) {
        pool->free_count = free_count - taken;
        note_least_free(pool);
    }
}

RA_KERNEL(THREADS, 4) copy_tails(append_job j)
{
    const int pair = blockIdx.x;
    if (!*j.fits || j.copied[pair] < 0)
        return;
    const char *from = (const char *)j.l.pool->memory[j.copied[pair]];
    char *to = page_at(j.l, pair, j.l.slots[pair] / PAGE);
    const int64_t vectors = 2 * PAGE * j.l.head_dim * size_of(j.l.format) / 16;
    for (int64_t i = threadIdx.x; i < vectors; i += THREADS)
        store16(to + 16 * i, load16(from + 16 * i, true));
}

/* A block takes a page of a head that has new tokens; the blocks behind those, a query of the head's group. */
RA_KERNEL(THREADS, 4) write_tokens(append_job j, int page_blocks)
{
    const int pair = blockIdx.x, row = pair / j.l.kv_heads, head = pair % j.l.kv_heads, d = j.l.head_dim;
    const int fresh = fresh_of(j.s, row), slots = j.l.slots[pair], format = j.l.format;
    if (!fresh || !*j.fits)
        return;
    if ((int)blockIdx.y >= page_blocks) {
        const int i = most(0, fresh - j.l.window) + (int)blockIdx.y - page_blocks;
        if (i >= fresh)
            return;
        float *to = query_of(j.l, row, j.l.tokens[row] + i, head);
        for (int item = threadIdx.x; item < j.l.group * d; item += THREADS) {
            const char *from = token_at(j.s.queries, row, head * j.l.group + item / d, place_of(j.s, row, i));
            to[item] = load_element(from, item % d, j.s.queries.dtype);
        }
        return;
    }
    const int number = slots / PAGE + blockIdx.y, begin = most(slots, number * PAGE);
    const int count = least(slots + fresh, (number + 1) * PAGE) - begin;
    if (count <= 0)
        return;
    char *keys = page_at(j.l, pair, number), *values = values_in(j.l, keys);
    bool finite = true;
    for (int item = threadIdx.x; item < count * d; item += THREADS) { /* neighbours fill a line of K */
        const int t = item % count, c = item / count, slot = begin + t - number * PAGE;
        const int place = place_of(j.s, row, begin + t - slots);
        float x = load_element(token_at(j.s.keys, row, head, place), c, j.s.keys.dtype);
        store_element(keys, c * PAGE + slot, format, x);
        finite &= is_finite(as_stored(x, format));
    }
    for (int item = threadIdx.x; item < count * d; item += THREADS) {
        const int t = item / d, c = item % d, slot = begin + t - number * PAGE;
        const int place = place_of(j.s, row, begin + t - slots);
        float x = load_element(token_at(j.s.values, row, head, place), c, j.s.values.dtype);
        store_element(values, slot * d + c, format, x);
        finite &= is_finite(as_stored(x, format));
    }
    if (threadIdx.x < (unsigned)count)
        positions_of(j.l, pair)[begin + threadIdx.x] = j.l.tokens[row] + begin + threadIdx.x - slots;
    if (!finite)
        set_fault(j.l, row, RA_CUDA_FAULT_TOKENS);
}

RA_KERNEL(THREADS, 1) settle_lists(append_job j)
{
    if (!*j.fits)
        return;
    for (int pair = threadIdx.x; pair < j.l.rows * j.l.kv_heads; pair += THREADS)
        j.l.slots[pair] += fresh_of(j.s, pair / j.l.kv_heads);
    for (int row = threadIdx.x; row < j.l.rows; row += THREADS) {
        const int fresh = fresh_of(j.s, row);
        if (fresh) {
            j.l.tokens[row] += fresh;
            j.l.q_end[row] = j.l.tokens[row];
            j.l.q_begin[row] = most(j.l.q_begin[row], j.l.q_end[row] - j.l.window);
        }
    }
    for (int h = threadIdx.x; h < j.l.kv_heads * j.l.group; h += THREADS)
        j.l.sinks[h] = j.s.sinks ? j.s.sinks[h] : -INFINITY;
}

extern "C" size_t ra_cuda_append_bytes(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    (void)step;
    return aligned((size_t)layer->rows * layer->kv_heads * sizeof(int32_t)) + 256;
}

extern "C" int ra_cuda_append(const ra_cuda_layer *layer, const ra_cuda_step *step, void *scratch, void *stream)
{
    const unsigned pairs = layer->rows * layer->kv_heads;
    if (!pairs || step->tokens < 1)
        return 0;
    append_job j = {*layer, *step, (int32_t *)scratch, (int32_t *)((char *)scratch + aligned(pairs * sizeof(int32_t)))};
    const int page_blocks = (step->tokens + PAGE - 2) / PAGE + 1, query_blocks = least(step->tokens, layer->window);
    int error = RA_LAUNCH(take_pages, 1, THREADS, 64, stream, j);
    if (!error)
        error = RA_LAUNCH(copy_tails, pairs, THREADS, 0, stream, j);
    if (!error)
        error = RA_LAUNCH(write_tokens, dim3(pairs, page_blocks + query_blocks), THREADS, 0, stream, j, page_blocks);
    return error ? error : RA_LAUNCH(settle_lists, 1, THREADS, 0, stream, j);
}
