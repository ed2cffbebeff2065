/* Eviction: survivors move into the head's first pages, or into fresh ones where one of those is shared; the rest of
 * the pages goes home. Page numbers, and the order of the free pages, are the C core's. */
#include "cut.cuh"

/* Of a head: survivors that need not move, pages to take, number of the first of them, pages that go home. */
enum { PREFIX, FRESH, FIRST, FREED, PLANS };
/* Of all: the pages are there; fresh page number i is free_ids[BASE - 1 - i]; the pool has shared pages. */
enum { FITS, BASE, SHARED };

struct apply_job {
    ra_cuda_layer l;
    int32_t *cut, *keep, *kept, *plan, *all, *taken, *frees;
    int64_t stride; /* of taken and frees */
};

RA_DEVICE bool moves(const apply_job &j, int pair)
{
    return j.cut[pair / j.l.kv_heads] && j.keep[pair] < j.l.slots[pair];
}
/* Pages at the front of a head's list that stay in it. */
RA_DEVICE int stay_of(const apply_job &j, int pair)
{
    const int32_t *plan = j.plan + PLANS * pair;
    return plan[FRESH] ? plan[PREFIX] / PAGE : pages_for(j.keep[pair]);
}

RA_KERNEL(THREADS, 4) plan_moves(apply_job j)
{
    const shared<int> scratch = shared_at<int>(0);
    const int pair = blockIdx.x;
    int32_t *plan = j.plan + PLANS * pair;
    if (!moves(j, pair)) {
        if (threadIdx.x == 0)
            plan[PREFIX] = plan[FRESH] = plan[FREED] = 0;
        return;
    }
    const int keep = j.keep[pair];
    const int32_t *kept = j.kept + pair * entries_of(j.l);
    int prefix = 0, total, several = 0; /* slots rise: those that stay in place come first */
    for (int first = 0; first < keep; first += THREADS) {
        const int i = first + threadIdx.x;
        block_prefix(i < keep && kept[i] == i, scratch, &total);
        prefix += total;
        if (total < least(THREADS, keep - first))
            break;
    }
    for (int first = prefix / PAGE; first < pages_for(keep) && j.l.pool->shared; first += THREADS) {
        const int page = first + threadIdx.x;
        block_prefix(page < pages_for(keep) && j.l.pool->refs[pages_of(j.l, pair)[page]] > 1, scratch, &total);
        several += total;
    }
    if (threadIdx.x == 0) {
        plan[PREFIX] = prefix;
        plan[FRESH] = several ? pages_for(keep) - prefix / PAGE : 0;
    }
}

/* The fresh pages of all heads, in their order, before any goes home. */
RA_KERNEL(THREADS, 1) take_fresh(apply_job j)
{
    const shared<int> scratch = shared_at<int>(0);
    const int pairs = j.l.rows * j.l.kv_heads;
    ra_cuda_pool *pool = j.l.pool;
    const int32_t free_count = pool->free_count;
    int taken = 0, total;
    for (int first = 0; first < pairs; first += THREADS) {
        const int pair = first + threadIdx.x;
        const int before = taken + block_prefix(pair < pairs ? j.plan[PLANS * pair + FRESH] : 0, scratch, &total);
        if (pair < pairs)
            j.plan[PLANS * pair + FIRST] = before;
        taken += total;
    }
    if (threadIdx.x)
        return;
    j.all[FITS] = taken <= free_count;
    j.all[BASE] = free_count;
    j.all[SHARED] = pool->shared > 0;
    if (taken > free_count) {
        set_fault(j.l, 0, RA_CUDA_FAULT_PAGES);
    } else {
        pool->free_count = free_count - taken;
        note_least_free(pool);
    }
}

/* ---- Moving. What goes into some slots comes from slots at or behind them, what goes into later ones from slots behind:
 * once it is known what some slots will hold, they may be written. A thread has a row of K of all pages, which nobody else
 * reads or writes; rows of V are a block's. ---- */

constexpr int CHUNK = THREADS; /* survivors whose sources are looked up at a time, one by each thread */
struct sources {
    shared<const char *> page; /* [CHUNK] */
    shared<char *> target;     /* [CHUNK / PAGE] */
    shared<int> slot;          /* [CHUNK] in its page */
};
RA_DEVICE sources lay_sources()
{
    constexpr size_t targets = CHUNK * sizeof(char *), slots = targets + CHUNK / PAGE * sizeof(char *);
    return {shared_at<const char *>(0), shared_at<char *>(targets), shared_at<int>(slots)};
}
constexpr size_t SOURCE_BYTES = CHUNK * (sizeof(char *) + sizeof(int)) + CHUNK / PAGE * sizeof(char *);

RA_DEVICE vec16 load_part(const vec16 *from) { return load16_in_order(from); }
RA_DEVICE void store_part(vec16 *to, const vec16 &part) { store16(to, part); }
RA_DEVICE uint32_t load_part(const uint32_t *from) { return *from; }
RA_DEVICE void store_part(uint32_t *to, uint32_t part) { *to = part; }
RA_DEVICE uint16_t load_part(const uint16_t *from) { return *from; }
RA_DEVICE void store_part(uint16_t *to, uint16_t part) { *to = part; }

/* Row c of K of survivors `at` to at + count - 1 of the chunk, as E. */
template <class E> RA_DEVICE void move_keys(const sources &s, int at, int count, int c)
{
    uint32_t words[PAGE * sizeof(E) / 4];
    RA_UNROLL for (int t = 0; t < PAGE; t++)
    {
        uint32_t bits = 0;
        if (t < count)
            bits = load_part((const E *)(const char *)s.page[at + t] + c * PAGE + (int)s.slot[at + t]);
        if constexpr (sizeof(E) == 4)
            words[t] = bits;
        else
            words[t / 2] = t % 2 ? words[t / 2] | bits << 16 : bits;
    }
    E *to = (E *)(char *)s.target[at / PAGE] + c * PAGE;
    RA_UNROLL for (int i = 0; i < (int)(PAGE * sizeof(E) / 16); i++)
    {
        const vec16 v = {{words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]}};
        store16((char *)to + 16 * i, v);
    }
}

/* Rows of V of the chunk's `count` survivors, as Ps, by all threads of a block. No later survivor comes from a row that is
 * written before it: a barrier between loads and stores is all that is needed. */
template <class P> RA_DEVICE void move_values(const sources &s, int count, int64_t key_bytes, int row_parts)
{
    constexpr int EACH = 8; /* loads of a thread under way */
    const int all = count * row_parts;
    RA_NO_UNROLL for (int first = 0; first < all; first += EACH * THREADS)
    {
        P part[EACH] = {};
        RA_UNROLL for (int k = 0; k < EACH; k++)
        {
            const int item = first + k * THREADS + threadIdx.x, at = item / row_parts;
            if (item < all) {
                const P *values = (const P *)((const char *)s.page[at] + key_bytes);
                part[k] = load_part(values + (int)s.slot[at] * row_parts + item % row_parts);
            }
        }
        block_sync();
        RA_UNROLL for (int k = 0; k < EACH; k++)
        {
            const int item = first + k * THREADS + threadIdx.x, at = item / row_parts;
            if (item < all)
                store_part((P *)((char *)s.target[at / PAGE] + key_bytes) + at % PAGE * row_parts + item % row_parts,
                           part[k]);
        }
    }
}

/* Whether a page that a head lets go has no owner then: heads come in their order. Owners hold it at the same place. */
RA_DEVICE bool goes_home(const apply_job &j, int pair, int place)
{
    const int32_t id = pages_of(j.l, pair)[place];
    const int H = j.l.kv_heads;
    int owners = j.l.pool->refs[id];
    for (int other = pair - H; other >= 0 && owners > 1; other -= H)
        if (moves(j, other) && place >= stay_of(j, other) && place < pages_for(j.l.slots[other]))
            owners -= pages_of(j.l, other)[place] == id;
    return owners == 1;
}

/* A head's pages that were taken, and those that go home. */
RA_DEVICE void list_pages(const apply_job &j, int pair, shared<int> scratch)
{
    int32_t *plan = j.plan + PLANS * pair;
    const int stay = stay_of(j, pair), end = pages_for(j.l.slots[pair]);
    for (int i = threadIdx.x; i < plan[FRESH]; i += THREADS) {
        const int32_t id = j.l.pool->free_ids[j.all[BASE] - 1 - plan[FIRST] - i];
        j.taken[pair * j.stride + i] = id;
        j.l.pool->refs[id] = 1;
    }
    int freed = 0;
    for (int place = stay + threadIdx.x; place < end; place += THREADS) {
        const bool home = !j.all[SHARED] || goes_home(j, pair, place);
        j.frees[pair * j.stride + place] = home;
        freed += home;
    }
    freed = block_sum(freed, scratch);
    if (threadIdx.x == 0)
        plan[FREED] = freed;
}

/* P: of rows of V. Grid: heads, blocks of rows of K and then one for V. */
template <class E, class P> RA_KERNEL(THREADS, 4) move_slots(apply_job j)
{
    const int pair = blockIdx.x;
    if (!j.all[FITS] || !moves(j, pair))
        return;
    const sources s = lay_sources();
    const int32_t *kept = j.kept + pair * entries_of(j.l), *plan = j.plan + PLANS * pair, *pages = pages_of(j.l, pair);
    const int32_t *fresh = j.l.pool->free_ids + j.all[BASE] - 1 - plan[FIRST];
    void *const *memory = j.l.pool->memory;
    int32_t *positions = positions_of(j.l, pair);
    const int keep = j.keep[pair], first = plan[PREFIX] / PAGE, d = j.l.head_dim;
    const int unit = blockIdx.y * THREADS + threadIdx.x;
    const bool for_values = blockIdx.y == gridDim.y - 1;
    for (int begin = first * PAGE; begin < keep; begin += CHUNK) {
        const int i = begin + threadIdx.x, number = begin / PAGE + threadIdx.x;
        int32_t position = 0;
        if (i < keep) {
            const int from = kept[i];
            s.page[threadIdx.x] = (const char *)memory[pages[from / PAGE]];
            s.slot[threadIdx.x] = from % PAGE;
            position = positions[from];
        }
        if (threadIdx.x < CHUNK / PAGE && number < pages_for(keep))
            s.target[threadIdx.x] = (char *)memory[plan[FRESH] ? fresh[first - number] : pages[number]];
        block_sync();
        if (i < keep && blockIdx.y == 0)
            positions[i] = position;
        if (for_values)
            move_values<P>(s, least(CHUNK, keep - begin), (int64_t)PAGE * d * sizeof(E),
                           d * (int)sizeof(E) / (int)sizeof(P));
        else
            for (int at = 0; at < CHUNK && begin + at < keep && unit < d; at += PAGE)
                move_keys<E>(s, at, least(PAGE, keep - begin - at), unit);
        block_sync();
    }
    if (blockIdx.y == 0)
        list_pages(j, pair, shared_at<int>(SOURCE_BYTES));
}

/* ---- What is known of similar keys moves with their slots ---- */

/* Of a head's survivors, those before a slot. */
RA_DEVICE int survivors_before(const int32_t *kept, int keep, int slot)
{
    int lo = 0, hi = keep;
    while (lo < hi) {
        const int middle = (lo + hi) / 2;
        if (kept[middle] < slot)
            lo = middle + 1;
        else
            hi = middle;
    }
    return lo;
}

/* As `move` of stat/nearest_key.c. Where none is similar the cosine is the one with slot 0: with that gone, so is it. */
RA_DEVICE void move_cached(const apply_job &j, int pair)
{
    const int keep = j.keep[pair], cached = least(j.l.cached[pair], j.l.slots[pair]);
    const int32_t *kept = j.kept + pair * entries_of(j.l);
    int32_t *similar = j.l.similar + pair * entries_of(j.l);
    float *cosine = j.l.cosine + pair * entries_of(j.l);
    const int survivors = survivors_before(kept, keep, cached);
    for (int first = 0; first < survivors; first += THREADS) {
        const int i = first + threadIdx.x;
        int32_t to = 0;
        float with = 0;
        if (i < survivors) {
            to = similar[kept[i]];
            with = cosine[kept[i]];
            if (to >= 0) {
                const int place = survivors_before(kept, keep, to);
                to = place < keep && kept[place] == to ? place : -2 - most(1, place);
            } else if (to < -1 || kept[0] > 0) {
                to = -2 - most(1, to < -1 ? survivors_before(kept, keep, -2 - to) : 0);
            }
        }
        block_sync(); /* i <= kept[i]: later ones are read from behind */
        if (i < survivors) {
            similar[i] = to;
            cosine[i] = with;
        }
        block_sync();
    }
    if (threadIdx.x == 0)
        j.l.cached[pair] = survivors;
}

/* ---- So do columns ---- */

RA_DEVICE void move_column(const apply_job &j, int pair, uint32_t *column)
{
    const int keep = j.keep[pair], prefix = j.plan[PLANS * pair + PREFIX];
    const int32_t *kept = j.kept + pair * entries_of(j.l);
    for (int first = prefix; first < keep; first += THREADS) {
        const int i = first + threadIdx.x;
        uint32_t x = 0;
        if (i < keep)
            x = load_part(column + kept[i]);
        block_sync(); /* i <= kept[i]: later ones are read from behind */
        if (i < keep)
            column[i] = x;
        block_sync();
    }
}

/* ---- Home: head by head, from the last page down ---- */

RA_KERNEL(THREADS, 4) settle_pages(apply_job j)
{
    const shared<int> scratch = shared_at<int>(0);
    const int pair = blockIdx.x, pairs = j.l.rows * j.l.kv_heads;
    ra_cuda_pool *pool = j.l.pool;
    if (!j.all[FITS])
        return;
    int before = 0, all = 0, total;
    for (int other = threadIdx.x; other < pairs; other += THREADS) {
        const int freed = j.plan[PLANS * other + FREED];
        before += other < pair ? freed : 0;
        all += freed;
    }
    before = block_sum(before, scratch);
    all = block_sum(all, scratch);
    const int32_t free_count = pool->free_count;
    if (moves(j, pair)) {
        const int32_t *plan = j.plan + PLANS * pair;
        int32_t *pages = pages_of(j.l, pair), *to = pool->free_ids + free_count + before;
        const int stay = stay_of(j, pair), end = pages_for(j.l.slots[pair]);
        for (int first = end - 1; first >= stay; first -= THREADS) {
            const int place = first - (int)threadIdx.x;
            const bool home = place >= stay && j.frees[pair * j.stride + place];
            const int at = block_prefix(home, scratch, &total);
            if (home)
                to[at] = pages[place];
            if (place >= stay && j.all[SHARED])
                drop_owner(pool, pages[place]);
            else if (place >= stay)
                pool->refs[pages[place]] = 0;
            to += total;
        }
        block_sync();
        for (int i = threadIdx.x; i < plan[FRESH]; i += THREADS)
            pages[stay + i] = j.taken[pair * j.stride + i];
        if (j.l.cached)
            move_cached(j, pair);
        if (j.l.accumulated)
            move_column(j, pair, (uint32_t *)j.l.accumulated + pair * entries_of(j.l));
        for (int field = 0; field < 2 && j.l.recurrence; field++)
            move_column(j, pair, (uint32_t *)j.l.recurrence + (2 * (int64_t)pair + field) * entries_of(j.l));
    }
    if (!last_block(&j.l.tickets[0], 64))
        return;
    for (int other = threadIdx.x; other < pairs; other += THREADS)
        if (moves(j, other))
            j.l.slots[other] = j.keep[other];
    if (threadIdx.x == 0)
        pool->free_count = free_count + all;
}

template <class E, class P> static int launch_moves(const apply_job &j, void *stream)
{
    const dim3 grid(j.l.rows * j.l.kv_heads, (j.l.head_dim + THREADS - 1) / THREADS + 1);
    return RA_LAUNCH((move_slots<E, P>), grid, THREADS, SOURCE_BYTES + 64, stream, j);
}

extern "C" int ra_cuda_apply(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream)
{
    const unsigned pairs = layer->rows * layer->kv_heads;
    const cut_scratch s = lay_scratch(*layer, cut->most_slots, scratch);
    const apply_job j = {*layer,  cut->cut, cut->keep,      cut->kept, s.plan, s.plan + PLANS * pairs,
                         s.taken, s.frees,  s.stride / PAGE};
    if (!pairs)
        return 0;
    int error = RA_LAUNCH(plan_moves, pairs, THREADS, 64, stream, j);
    if (!error)
        error = RA_LAUNCH(take_fresh, 1, THREADS, 64, stream, j);
    if (error)
        return error;
    const bool wide = layer->head_dim * size_of(layer->format) % 16 == 0;
    if (layer->format == RA_F32)
        error = wide ? launch_moves<uint32_t, vec16>(j, stream) : launch_moves<uint32_t, uint32_t>(j, stream);
    else
        error = wide ? launch_moves<uint16_t, vec16>(j, stream) : launch_moves<uint16_t, uint16_t>(j, stream);
    return error ? error : RA_LAUNCH(settle_pages, pairs, THREADS, 128, stream, j);
}
