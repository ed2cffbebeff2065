/* Eviction: survivors move into the head's first pages, or into fresh ones where one of those is shared; the rest of the
 * pages goes home. Page numbers, and the order of the free pages, are the C core's. */
#include "cut.cuh"

enum { PREFIX, FRESH, FIRST, PLANS }; /* survivors that need not move; pages to take; number of the first of them */

RA_DEVICE bool moves(const ra_cuda_layer &l, const ra_cuda_cut &cut, int pair)
{
    return cut.cut[pair / l.kv_heads] && cut.keep[pair] < l.slots[pair];
}

RA_KERNEL(THREADS, 4) plan_moves(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared<int> scratch = shared_at<int>(0);
    const int pair = blockIdx.x, keep = cut.keep[pair];
    int32_t *plan = s.plan + PLANS * pair;
    if (!moves(l, cut, pair)) {
        if (threadIdx.x == 0)
            plan[PREFIX] = plan[FRESH] = 0;
        return;
    }
    const int32_t *kept = cut.kept + pair * entries_of(l);
    int prefix = 0, total, several = 0; /* slots rise: those that stay in place come first */
    for (int first = 0; first < keep; first += THREADS) {
        const int i = first + threadIdx.x;
        block_prefix(i < keep && kept[i] == i, scratch, &total);
        prefix += total;
        if (total < least(THREADS, keep - first))
            break;
    }
    for (int first = prefix / PAGE; first < pages_for(keep); first += THREADS) {
        const int page = first + threadIdx.x;
        block_prefix(page < pages_for(keep) && l.pool->refs[pages_of(l, pair)[page]] > 1, scratch, &total);
        several += total;
    }
    if (threadIdx.x == 0) {
        plan[PREFIX] = prefix;
        plan[FRESH] = several ? pages_for(keep) - prefix / PAGE : 0;
    }
}

/* The fresh pages of all heads, in their order. */
RA_KERNEL(THREADS, 1) take_fresh(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared<int> scratch = shared_at<int>(0);
    const int pairs = l.rows * l.kv_heads;
    ra_cuda_pool *pool = l.pool;
    const int32_t free_count = pool->free_count;
    int taken = 0, total;
    for (int first = 0; first < pairs; first += THREADS) {
        const int pair = first + threadIdx.x, need = pair < pairs ? s.plan[PLANS * pair + FRESH] : 0;
        const int before = taken + block_prefix(need, scratch, &total);
        if (pair < pairs)
            s.plan[PLANS * pair + FIRST] = before;
        for (int i = 0; i < need && before + i < free_count; i++) {
            int32_t id = pool->free_ids[free_count - 1 - before - i];
            s.taken[before + i] = id;
            pool->refs[id] = 1;
        }
        taken += total;
    }
    if (threadIdx.x)
        return;
    if (taken > free_count)
        set_fault(l, 0, RA_CUDA_FAULT_PAGES);
    pool->free_count = taken > free_count ? 0 : free_count - taken;
    note_least_free(pool);
    (void)cut;
}

/* A dimension a thread: what goes to slot i comes from a slot at or behind it, and slots behind i are written later. */
template <class E>
RA_DEVICE void move_elements(const ra_cuda_layer &l, int pair, const int32_t *kept, int keep, const int32_t *plan,
                             const int32_t *taken, int c)
{
    const int first = plan[PREFIX] / PAGE, d = l.head_dim, begin = plan[FRESH] ? first * PAGE : plan[PREFIX];
    const int32_t *pages = pages_of(l, pair);
    for (int i = begin; i < keep; i++) {
        const int from = kept[i], to = plan[FRESH] ? taken[plan[FIRST] + i / PAGE - first] : pages[i / PAGE];
        const E *source = (const E *)l.pool->memory[pages[from / PAGE]];
        E *target = (E *)l.pool->memory[to];
        target[c * PAGE + i % PAGE] = source[c * PAGE + from % PAGE];
        target[PAGE * d + i % PAGE * d + c] = source[PAGE * d + from % PAGE * d + c];
    }
}

RA_KERNEL(THREADS, 2) move_slots(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const int pair = blockIdx.x, keep = cut.keep[pair], c = blockIdx.y * THREADS + threadIdx.x;
    if (!moves(l, cut, pair))
        return;
    const int32_t *kept = cut.kept + pair * entries_of(l), *plan = s.plan + PLANS * pair;
    if (c < l.head_dim) {
        if (l.format == RA_F32)
            move_elements<uint32_t>(l, pair, kept, keep, plan, s.taken, c);
        else
            move_elements<uint16_t>(l, pair, kept, keep, plan, s.taken, c);
    }
    if (blockIdx.y)
        return;
    int32_t *positions = positions_of(l, pair);
    for (int first = plan[PREFIX]; first < keep; first += THREADS) {
        const int i = first + threadIdx.x;
        const int32_t position = i < keep ? positions[kept[i]] : 0;
        block_sync();
        if (i < keep)
            positions[i] = position;
        block_sync();
    }
}

RA_DEVICE int kept_pages(const ra_cuda_cut &cut, const int32_t *plan, int pair)
{
    return plan[FRESH] ? plan[PREFIX] / PAGE : pages_for(cut.keep[pair]);
}

/* Head by head, from the last page down, as core/pool.c. */
RA_DEVICE void drop_in_turn(const ra_cuda_layer &l, const ra_cuda_cut &cut, const cut_scratch &s)
{
    ra_cuda_pool *pool = l.pool;
    for (int pair = 0; pair < l.rows * l.kv_heads; pair++) {
        if (!moves(l, cut, pair))
            continue;
        const int stay = kept_pages(cut, s.plan + PLANS * pair, pair);
        for (int p = pages_for(l.slots[pair]) - 1; p >= stay; p--)
            if (--pool->refs[pages_of(l, pair)[p]] == 0)
                pool->free_ids[pool->free_count++] = pages_of(l, pair)[p];
    }
}

RA_KERNEL(THREADS, 1) settle_pages(ra_cuda_layer l, ra_cuda_cut cut, cut_scratch s)
{
    const shared<int> scratch = shared_at<int>(0);
    const int pairs = l.rows * l.kv_heads;
    ra_cuda_pool *pool = l.pool;
    const int32_t free_count = pool->free_count;
    int several = 0, dropped = 0, total;
    for (int first = 0; first < pairs; first += THREADS) {
        const int pair = first + threadIdx.x;
        int own = 0;
        if (pair < pairs && moves(l, cut, pair))
            for (int p = kept_pages(cut, s.plan + PLANS * pair, pair); p < pages_for(l.slots[pair]); p++)
                own |= pool->refs[pages_of(l, pair)[p]] > 1;
        block_prefix(own, scratch, &total);
        several += total;
    }
    if (several) {
        block_sync();
        if (threadIdx.x == 0)
            drop_in_turn(l, cut, s);
    } else {
        for (int first = 0; first < pairs; first += THREADS) {
            const int pair = first + threadIdx.x;
            int stay = 0, end = 0;
            if (pair < pairs && moves(l, cut, pair)) {
                stay = kept_pages(cut, s.plan + PLANS * pair, pair);
                end = pages_for(l.slots[pair]);
            }
            const int before = free_count + dropped + block_prefix(end - stay, scratch, &total);
            for (int i = 0; i < end - stay; i++) {
                int32_t id = pages_of(l, pair)[end - 1 - i];
                pool->refs[id] = 0;
                pool->free_ids[before + i] = id;
            }
            dropped += total;
        }
        if (threadIdx.x == 0)
            pool->free_count = free_count + dropped;
    }
    block_sync();
    for (int pair = threadIdx.x; pair < pairs; pair += THREADS) {
        const int32_t *plan = s.plan + PLANS * pair;
        if (!moves(l, cut, pair))
            continue;
        for (int i = 0; i < plan[FRESH]; i++)
            pages_of(l, pair)[plan[PREFIX] / PAGE + i] = s.taken[plan[FIRST] + i];
        l.slots[pair] = cut.keep[pair];
    }
}

extern "C" int ra_cuda_apply(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream)
{
    const unsigned pairs = layer->rows * layer->kv_heads;
    const cut_scratch s = lay_scratch(*layer, cut->most_slots, scratch);
    int error = RA_LAUNCH(plan_moves, pairs, THREADS, 64, stream, *layer, *cut, s);
    if (!error)
        error = RA_LAUNCH(take_fresh, 1, THREADS, 64, stream, *layer, *cut, s);
    if (!error)
        error = RA_LAUNCH(move_slots, dim3(pairs, (layer->head_dim + THREADS - 1) / THREADS), THREADS, 0, stream,
                          *layer, *cut, s);
    return error ? error : RA_LAUNCH(settle_pages, 1, THREADS, 64, stream, *layer, *cut, s);
}
