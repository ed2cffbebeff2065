/* Append of any number of new tokens a row: one block says which pages heads take, a grid over pages fills them, one
 * block settles the lists. */
#include "append.cuh"

/* Scratch. Fresh page number i of all is free_ids[base - 1 - i]. */
struct prompt_plan {
    int32_t *first;  /* [R, H] number of the first fresh page of a head */
    int32_t *copied; /* [R, H] the shared page of which the first one is to be a copy, or -1 */
    int32_t *fits, *base;
    RA_MEMBER prompt_plan(const append_job &j)
        : first(j.lists), copied(first + pairs_of(j)), fits(copied + pairs_of(j)), base(fits + 1)
    {
    }
};

RA_KERNEL(THREADS, 1) plan_pages(append_job j)
{
    const shared<int> scratch = shared_at<int>(0);
    const prompt_plan plan(j);
    const int pairs = pairs_of(j);
    ra_cuda_pool *pool = j.l.pool;
    const int32_t free_count = pool->free_count, any_shared = pool->shared;
    int taken = 0, over = 0;
    for (int begin = 0; begin < pairs; begin += THREADS) {
        const int pair = begin + threadIdx.x;
        int needs = 0, beyond = 0, total;
        if (pair < pairs) {
            const int fresh = fresh_of(j.s, pair / j.l.kv_heads), slots = j.l.slots[pair];
            const int32_t tail = fresh && any_shared ? shared_tail(j, pair) : -1;
            const bool copied = tail >= 0 && is_copied(j, pair, tail);
            needs = pages_for(slots + fresh) - pages_for(slots) + copied;
            beyond = slots + fresh > j.l.pages * PAGE;
            plan.copied[pair] = copied ? tail : -1;
        }
        const int before = taken + block_prefix(needs, scratch, &total);
        if (pair < pairs)
            plan.first[pair] = before;
        taken += total;
        block_prefix(beyond, scratch, &total);
        over += total;
    }
    const bool fits = !over && taken <= free_count;
    /* All have looked at the owners of tails: a prefix has barriers. */
    for (int pair = threadIdx.x; pair < pairs && fits; pair += THREADS)
        if (plan.copied[pair] >= 0)
            drop_owner(pool, plan.copied[pair]);
    if (threadIdx.x)
        return;
    *plan.fits = fits;
    *plan.base = free_count;
    if (fits) {
        pool->free_count = free_count - taken;
        note_least_free(pool);
    } else {
        set_fault(j.l, 0, RA_CUDA_FAULT_PAGES);
    }
}

/* Before anything is written: the last owner of a shared page writes to it. */
RA_KERNEL(THREADS, 4) copy_tails(append_job j)
{
    const prompt_plan plan(j);
    const int pair = blockIdx.x;
    if (!*plan.fits || plan.copied[pair] < 0)
        return;
    const int32_t id = j.l.pool->free_ids[*plan.base - 1 - plan.first[pair]];
    copy_page(j.l, plan.copied[pair], id);
    if (threadIdx.x == 0) {
        pages_of(j.l, pair)[j.l.slots[pair] / PAGE] = id;
        j.l.pool->refs[id] = 1;
    }
}

/* Slots begin to end - 1 of a head's page `number`, which hold the row's new tokens from `begin - slots` on. */
struct page_part {
    int row, head, number, slots, begin, end;
};

/* Eight dimensions of the tokens of a 16-byte vector of K, turned over in registers. False: not finite. */
template <class E> RA_DEVICE bool write_keys(const append_job &j, const page_part &p, E *keys, int lane, int c)
{
    constexpr int N = 16 / (int)sizeof(E);
    const int d = j.l.head_dim, first = p.number * PAGE + lane;
    bool finite = true;
    if (first + N <= p.begin || first >= p.end)
        return true;
    eight<E> token[N];
    RA_UNROLL for (int t = 0; t < N; t++)
    {
        float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (first + t >= p.begin && first + t < p.end) {
            const int place = place_of(j.s, p.row, first + t - p.slots);
            load8(token_at(j.s.keys, p.row, p.head, place), j.s.keys.dtype, c, d, x);
        }
        finite &= token[t].set(x);
    }
    RA_UNROLL for (int i = 0; i < 8; i++)
    {
        E *to = keys + (c + i) * PAGE + lane;
        if (c + i >= d)
            continue;
        if (first >= p.begin) { /* nothing older in it; what lies past the end is nobody's */
            vec16 out;
            if constexpr (N == 4) {
                RA_UNROLL for (int t = 0; t < 4; t++) out.w[t] = token[t].v[i / 4].w[i % 4];
            } else {
                RA_UNROLL for (int t = 0; t < 4; t++) out.w[t] = pair_at(token[2 * t].v[0], token[2 * t + 1].v[0], i);
            }
            store16(to, out);
        } else {
            RA_UNROLL for (int t = 0; t < N; t++) if (first + t >= p.begin && first + t < p.end)
                token[t].store(i, to + t);
        }
    }
    return finite;
}

template <class E> RA_DEVICE void write_page(const append_job &j, const page_part &p, int pair, E *keys)
{
    constexpr int VECTORS = PAGE * (int)sizeof(E) / 16; /* of a dimension */
    const int d = j.l.head_dim, chunks = (d + 7) / 8, key_items = (VECTORS * chunks + 31) / 32 * 32;
    E *values = keys + PAGE * d;
    bool finite = true;
    for (int item = threadIdx.x; item < key_items + (p.end - p.begin) * chunks; item += THREADS) {
        if (item < key_items) { /* whole warps */
            if (item < VECTORS * chunks)
                finite &= write_keys(j, p, keys, item % VECTORS * (PAGE / VECTORS), item / VECTORS * 8);
            continue;
        }
        const int slot = p.begin + (item - key_items) / chunks, c = (item - key_items) % chunks * 8;
        float x[8];
        eight<E> stored;
        load8(token_at(j.s.values, p.row, p.head, place_of(j.s, p.row, slot - p.slots)), j.s.values.dtype, c, d, x);
        finite &= stored.set(x);
        stored.store_all(values + slot % PAGE * d, c, d);
    }
    const int slot = p.begin + threadIdx.x;
    if (slot < p.end)
        positions_of(j.l, pair)[slot] = j.l.tokens[p.row] + slot - p.slots;
    if (!finite)
        set_fault(j.l, p.row, RA_CUDA_FAULT_TOKENS);
}

RA_DEVICE void write_queries(const append_job &j, int row, int head, int i)
{
    const int d = j.l.head_dim, chunks = (d + 7) / 8, place = place_of(j.s, row, i);
    float *ring = query_of(j.l, row, j.l.tokens[row] + i, head);
    for (int item = threadIdx.x; item < j.l.group * chunks; item += THREADS) {
        const int which = item / chunks, c = item % chunks * 8;
        float x[8];
        eight<float> query;
        load8(token_at(j.s.queries, row, head * j.l.group + which, place), j.s.queries.dtype, c, d, x);
        query.set(x);
        query.store_all(ring + (int64_t)which * d, c, d);
    }
}

/* Blocks of a head take its pages in turn, then the queries that stay in the window. */
template <class E> RA_KERNEL(THREADS, 4) write_tokens(append_job j)
{
    const prompt_plan plan(j);
    const int pair = blockIdx.x, row = pair / j.l.kv_heads, head = pair % j.l.kv_heads;
    const int fresh = fresh_of(j.s, row), slots = j.l.slots[pair], first = slots / PAGE;
    if (!fresh || !*plan.fits)
        return;
    const int pages = pages_for(slots + fresh) - first, old_pages = pages_for(slots), window = least(fresh, j.l.window);
    const int32_t *ids = j.l.pool->free_ids + *plan.base - 1 - plan.first[pair] - (plan.copied[pair] >= 0);
    for (int unit = blockIdx.y; unit < pages + window; unit += gridDim.y) {
        if (unit >= pages) {
            write_queries(j, row, head, fresh - window + unit - pages);
            continue;
        }
        const int number = first + unit;
        int32_t id;
        if (number < old_pages) {
            id = pages_of(j.l, pair)[number];
        } else {
            id = ids[old_pages - number];
            if (threadIdx.x == 0) {
                pages_of(j.l, pair)[number] = id;
                j.l.pool->refs[id] = 1;
            }
        }
        const page_part part = {row,   head, number, slots, most(slots, number * PAGE),
                                least(slots + fresh, (number + 1) * PAGE)};
        write_page(j, part, pair, (E *)j.l.pool->memory[id]);
    }
}

RA_KERNEL(THREADS, 1) settle_prompt(append_job j)
{
    if (*prompt_plan(j).fits)
        settle_lists(j);
}

int ra_append_prompt(const append_job &j, void *stream)
{
    const unsigned pairs = j.l.rows * j.l.kv_heads;
    const int units = (j.s.tokens + PAGE - 2) / PAGE + 1 + least(j.s.tokens, j.l.window);
    const dim3 grid(pairs, least(units, 65535));
    int error = RA_LAUNCH(plan_pages, 1, THREADS, 64, stream, j);
    if (!error)
        error = RA_LAUNCH(copy_tails, pairs, THREADS, 0, stream, j);
    if (!error && j.l.format == RA_BF16)
        error = RA_LAUNCH(write_tokens<bf16>, grid, THREADS, 0, stream, j);
    else if (!error && j.l.format == RA_F16)
        error = RA_LAUNCH(write_tokens<f16>, grid, THREADS, 0, stream, j);
    else if (!error)
        error = RA_LAUNCH(write_tokens<float>, grid, THREADS, 0, stream, j);
    return error ? error : RA_LAUNCH(settle_prompt, 1, THREADS, 0, stream, j);
}
