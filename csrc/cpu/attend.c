/* Attention over ragged pages: one pass, online softmax, a tile of queries of one KV head at a time.
 *
 * In decoding a long head is split into chunks that run side by side and are merged in order. The split follows from
 * the head's length alone, so that results do not depend on the number of threads. */
#include "attend.h"

#include <math.h>
#include <string.h>

#include "ahead.h"
#include "window_attention.h"

/* Queries of one tile, what they have gathered so far, and the number of slots that each may see. */
typedef struct tile {
    int64_t m, first;                             /* queries, and number of the first */
    float q[RA_TILE_FLOATS], acc[RA_TILE_FLOATS]; /* [m][D] */
    float sums[RA_TILE_ROWS * PAGE], top[RA_TILE_ROWS];
    int64_t limit[RA_TILE_ROWS];
} tile;

typedef struct task {
    int64_t pair, first; /* head, and number of the tile's first query */
    int64_t begin, end;  /* pages */
    float *partial;      /* where a chunk leaves its part of the result, NULL where it is whole */
} task;

/* ---- Prefetch ---- */

/* The pages that follow the one at hand, into the next heads. */
typedef struct lookahead {
    ra_streams streams;
    int64_t pair, page; /* one past the newest page of the queue */
    const char *next[RA_STREAMS];
} lookahead;

/* The page that is read next, and past the last one that again. */
static const char *following_page(const ra_attend_job *job, lookahead *a)
{
    int64_t pairs = job->rows * job->kv_heads, pair = a->pair, page = a->page;
    while (pair < pairs && page >= ra_pages_for(job->spans[pair].slots)) {
        pair++;
        page = 0;
    }
    if (pair == pairs)
        return a->next[a->streams.depth - 1];
    a->pair = pair;
    a->page = page + 1;
    return ra_span_k(&job->spans[pair], page);
}

static void advance(const ra_attend_job *job, lookahead *a)
{
    const char *page = following_page(job, a);
    for (int64_t i = 0; i + 1 < a->streams.depth; i++)
        a->next[i] = a->next[i + 1];
    a->next[a->streams.depth - 1] = page;
}

/* From page `page` of a head on: the queue holds the pages after it. */
static void start_lookahead(const ra_attend_job *job, int64_t pair, int64_t page, lookahead *a)
{
    const ra_span *span = &job->spans[pair];
    *a = (lookahead){.streams = ra_streams_of(span->page_bytes), .pair = pair, .page = page + 1};
    for (int64_t i = 0; i < a->streams.depth; i++)
        a->next[i] = ra_span_k(span, page);
    for (int64_t i = 0; i < a->streams.depth; i++)
        advance(job, a);
}

/* ---- One tile ---- */

static void start_tile(tile *t, int64_t d)
{
    memset(t->acc, 0, (size_t)(t->m * d) * sizeof *t->acc);
    memset(t->sums, 0, (size_t)(t->m * PAGE) * sizeof *t->sums);
    for (int64_t i = 0; i < t->m; i++)
        t->top[i] = -INFINITY;
}

/* Masks a page's logits of the tile. */
static void hide(const ra_attend_job *job, int64_t pair, int64_t page, const tile *t, float *p)
{
    const int32_t *positions = job->positions[pair] + page * PAGE;
    int64_t row = pair / job->kv_heads;
    for (int64_t i = 0; i < t->m; i++) {
        int64_t token = ra_attend_first(job, row) + (t->first + i) / job->group;
        const uint8_t *visible = job->visible + token * job->visible_stride;
        for (int64_t lane = 0; lane < PAGE && page * PAGE + lane < t->limit[i]; lane++)
            if (!visible[positions[lane]])
                p[i * PAGE + lane] = -INFINITY;
    }
}

/* The maximum of row i has grown: the weights stored of the pages from `begin` on follow. */
static void shrink_stored(float *stored, const tile *t, int64_t i, int64_t begin, int64_t page, float shrink)
{
    for (; begin < page; begin++)
        ra_kernels_get()->scale(stored + (begin * t->m + i) * PAGE, PAGE, shrink);
}

/* Pages [begin, end) of the head. logits: where the first query's go, `stride` apart from the next one's, or NULL. stored:
 * where the tile's weights go, [pages][m][PAGE], or NULL. */
static void attend_pages(const ra_attend_job *job, int64_t pair, int64_t begin, int64_t end, tile *t, float *logits,
                         int64_t stride, float *stored)
{
    const ra_span *span = &job->spans[pair];
    const ra_kernels *kernels = ra_kernels_get();
    size_t d = (size_t)span->d, m = (size_t)t->m, visible[RA_TILE_ROWS];
    float here[RA_TILE_ROWS * PAGE], shrink[RA_TILE_ROWS], *p = here;
    lookahead next;
    ra_ahead ahead;
    int64_t slots = 0; /* that some query of the tile sees */
    for (size_t i = 0; i < m; i++)
        slots = ra_max(slots, t->limit[i]);
    end = ra_min(end, ra_pages_for(slots));
    if (begin < end)
        start_lookahead(job, pair, begin, &next);
    for (int64_t page = begin; page < end; page++) {
        if (stored)
            p = stored + page * t->m * PAGE;
        ra_streams_point(&next.streams, next.next, &ahead);
        span->kernels->qk(t->q, m, ra_span_k(span, page), d, &ahead, p);
        ra_softcap(p, t->m * PAGE, job->softcap);
        if (job->visible)
            hide(job, pair, page, t, p);
        for (size_t i = 0; i < m; i++)
            visible[i] = (size_t)ra_max(0, ra_min(PAGE, t->limit[i] - page * PAGE));
        for (size_t i = 0; logits && i < m; i++)
            memcpy(logits + (int64_t)i * stride + page * PAGE, p + i * PAGE, PAGE * sizeof *p);
        kernels->softmax_page(p, m, visible, t->top, t->sums, shrink);
        for (size_t i = 0; i < m; i++)
            if (shrink[i] != 1) {
                kernels->scale(&t->acc[i * d], d, shrink[i]);
                if (stored)
                    shrink_stored(stored, t, (int64_t)i, begin, page, shrink[i]);
            }
        for (int64_t i = 0; i < RA_STREAMS; i++)
            ahead.stream[i] += next.streams.part / 2; /* the values: second half of the page */
        int64_t count = ra_min(PAGE, slots - page * PAGE);
        span->kernels->pv(p, m, ra_span_v(span, page), (size_t)count, d, &ahead, t->acc);
        advance(job, &next);
    }
}

/* Queries of a KV head are numbered token-major, q = token * group + g, so that a tile's limits lie together. */
static void load_tile(const ra_attend_job *job, int64_t pair, int64_t first, tile *t)
{
    const ra_span *span = &job->spans[pair];
    const ra_kernels *kernels = ra_kernels_get();
    int64_t row = pair / job->kv_heads, head = pair % job->kv_heads, tokens = ra_attend_tokens(job, row);
    int64_t size = (int64_t)ra_dtype_size(job->queries.dtype);
    size_t d = (size_t)span->d;
    t->first = first;
    t->m = ra_min(ra_tile_rows(span->d), job->group * tokens - first);
    for (int64_t i = 0; i < t->m; i++) {
        int64_t token = (first + i) / job->group, g = (first + i) % job->group;
        int64_t place = job->index ? job->index[ra_attend_first(job, row) + token] : token;
        const char *q = (const char *)job->queries.data +
                        (row * job->queries.stride_row + (head * job->group + g) * job->queries.stride_head +
                         place * job->queries.stride_token) *
                            size;
        float *to = &t->q[(size_t)i * d];
        t->limit[i] = span->slots - (tokens - 1 - token); /* it does not see those after it */
        kernels->page[job->queries.dtype].to_float(q, d, to);
        kernels->scale(to, d, job->scale);
    }
}

float ra_add_sink(float sink, float *top, float *sum)
{
    float high = *top > sink ? *top : sink, own = *top == -INFINITY ? 0 : expf(*top - high);
    *sum = *sum * own + expf(sink - high);
    *top = high;
    return own;
}

/* Divides by the sums and writes the tile to its place in the output; a query that saw nothing gives zeros. */
static void store_tile(const ra_attend_job *job, int64_t pair, tile *t)
{
    int64_t d = job->spans[pair].d, size = (int64_t)ra_dtype_size(job->out.dtype);
    int64_t row = pair / job->kv_heads, head = pair % job->kv_heads;
    const ra_kernels *kernels = ra_kernels_get();
    for (int64_t i = 0; i < t->m; i++) {
        int64_t token = (t->first + i) / job->group, query_head = head * job->group + (t->first + i) % job->group;
        int64_t place = job->index ? job->index[ra_attend_first(job, row) + token] : token;
        float sum = 0;
        for (int64_t lane = 0; lane < PAGE; lane++)
            sum += t->sums[i * PAGE + lane];
        if (job->sinks && job->sinks[query_head] > -INFINITY)
            kernels->scale(&t->acc[i * d], (size_t)d, ra_add_sink(job->sinks[query_head], &t->top[i], &sum));
        if (sum > 0)
            kernels->scale(&t->acc[i * d], (size_t)d, 1 / sum);
        if (job->weights && job->weights[pair].parts) {
            job->weights[pair].ends[t->first + i] = t->top[i];
            job->weights[pair].ends[job->group + t->first + i] = sum;
        }
        char *to = (char *)job->out.data +
                   (row * job->out.stride_row + place * job->out.stride_token + query_head * d) * size;
        kernels->page[job->out.dtype].from_float(&t->acc[i * d], (size_t)d, to);
    }
}

/* ---- Chunks: what a tile gathered, [m][D + PAGE + 1] floats ---- */

static int64_t partial_floats(int64_t m, int64_t d) { return m * (d + PAGE + 1); }

static void save_partial(const tile *t, int64_t d, float *to)
{
    memcpy(to, t->acc, (size_t)(t->m * d) * sizeof *to);
    memcpy(to + t->m * d, t->sums, (size_t)(t->m * PAGE) * sizeof *to);
    memcpy(to + t->m * (d + PAGE), t->top, (size_t)t->m * sizeof *to);
}

static void merge_partial(tile *t, int64_t d, float *from)
{
    const ra_kernels *kernels = ra_kernels_get();
    for (int64_t i = 0; i < t->m; i++) {
        float *acc = from + i * d, *sums = from + t->m * d + i * PAGE, top = from[t->m * (d + PAGE) + i];
        float high = t->top[i] > top ? t->top[i] : top;
        if (high == -INFINITY)
            continue;
        float own = expf(t->top[i] - high), theirs = expf(top - high);
        kernels->scale(&t->acc[i * d], (size_t)d, own);
        kernels->scale(acc, (size_t)d, theirs);
        for (int64_t c = 0; c < d; c++)
            t->acc[i * d + c] += acc[c];
        for (int64_t lane = 0; lane < PAGE; lane++)
            t->sums[i * PAGE + lane] = t->sums[i * PAGE + lane] * own + sums[lane] * theirs;
        t->top[i] = high;
    }
}

/* ---- All heads ---- */

typedef struct run {
    const ra_attend_job *job;
    task *tasks;
    int64_t count;
} run;

static void attend_tasks(int64_t begin, int64_t end, void *context)
{
    const run *r = context;
    tile t;
    for (int64_t i = begin; i < end; i++) {
        const task *a = &r->tasks[i];
        const ra_span *span = &r->job->spans[a->pair];
        load_tile(r->job, a->pair, a->first, &t);
        start_tile(&t, span->d);
        float *logits = r->job->logits ? r->job->logits[a->pair] : NULL;
        int64_t stride = ra_pages_for(span->slots) * PAGE;
        const ra_stored_weights *stored = r->job->weights ? &r->job->weights[a->pair] : NULL;
        stored = stored && stored->parts ? stored : NULL;
        attend_pages(r->job, a->pair, a->begin, a->end, &t, logits ? logits + a->first * stride : NULL, stride,
                     stored ? stored->parts + a->first * stride : NULL);
        if (stored)
            memcpy(stored->factors + a->begin / RA_CHUNK_PAGES * r->job->group + a->first, t.top,
                   (size_t)t.m * sizeof *t.top);
        if (a->partial)
            save_partial(&t, span->d, a->partial);
        else
            store_tile(r->job, a->pair, &t);
    }
}

/* A chunk that begins its head stands for all of the head's chunks, which follow it. */
static void merge_tasks(int64_t begin, int64_t end, void *context)
{
    const run *r = context;
    tile t;
    for (int64_t i = begin; i < end; i++) {
        const task *a = &r->tasks[i];
        if (!a->partial || a->begin)
            continue;
        int64_t d = r->job->spans[a->pair].d, tokens = ra_attend_tokens(r->job, a->pair / r->job->kv_heads);
        t.first = a->first;
        t.m = ra_min(ra_tile_rows(d), r->job->group * tokens - a->first);
        start_tile(&t, d);
        for (const task *b = a; b < r->tasks + r->count && b->pair == a->pair && b->first == a->first; b++)
            merge_partial(&t, d, b->partial);
        store_tile(r->job, a->pair, &t);
    }
}

/* Lists the tasks unless `tasks` is NULL; returns their number, and the floats that their partial results need. */
static int64_t list_tasks(const ra_attend_job *job, task *tasks, float *partials, int64_t *floats)
{
    int64_t count = 0, used = 0, d = job->head_dim, height = ra_tile_rows(d);
    for (int64_t pair = 0; pair < job->rows * job->kv_heads; pair++) {
        int64_t tokens = ra_attend_tokens(job, pair / job->kv_heads), queries = job->group * tokens;
        int64_t pages = ra_pages_for(job->spans[pair].slots);
        int64_t chunk = tokens == 1 ? RA_CHUNK_PAGES : ra_max(1, pages);
        for (int64_t first = 0; first < queries; first += height)
            for (int64_t begin = 0; begin == 0 || begin < pages; begin += chunk) {
                bool split = pages > chunk;
                if (tasks)
                    tasks[count] = (task){.pair = pair,
                                          .first = first,
                                          .begin = begin,
                                          .end = ra_min(pages, begin + chunk),
                                          .partial = split ? partials + used : NULL};
                used += split ? partial_floats(ra_min(height, queries - first), d) : 0;
                count++;
            }
    }
    *floats = used;
    return count;
}

size_t ra_attend_bytes(int64_t pairs, int64_t group, int64_t head_dim, int64_t slots, int64_t tokens)
{
    int64_t height = ra_tile_rows(head_dim), queries, tasks, floats, chunks = ra_pages_for(slots) / RA_CHUNK_PAGES + 1;
    ra_scratch count = {0};
    if (!ra_size_of(group, ra_max(tokens, 1), 1, 1, &queries) ||
        !ra_size_of(pairs, queries / height + 1, tokens > 1 ? 1 : chunks, (int64_t)sizeof(task), &tasks) ||
        !ra_size_of(tasks / (int64_t)sizeof(task), partial_floats(ra_min(height, queries), head_dim),
                    tokens > 1 ? 0 : 1, 4, &floats) ||
        !ra_scratch_take(&count, tasks, 1) || !ra_scratch_take(&count, floats, 1))
        return SIZE_MAX / 4;
    return count.used + 64;
}

ra_status ra_attend_run(const ra_attend_job *job, ra_scratch *scratch, ra_parallel parallel)
{
    int64_t floats, count = list_tasks(job, NULL, NULL, &floats), work = 0;
    task *tasks = ra_scratch_take(scratch, count, sizeof *tasks);
    float *partials = ra_scratch_take(scratch, floats, sizeof *partials);
    if (!tasks || !partials)
        return RA_ERR_NO_MEMORY;
    list_tasks(job, tasks, partials, &floats);
    for (int64_t i = 0; i < count; i++)
        work += (tasks[i].end - tasks[i].begin) * PAGE * job->head_dim;
    run r = {.job = job, .tasks = tasks, .count = count};
    int64_t grain = ra_max(1, 32768 * count / ra_max(1, work)); /* tasks that are worth a thread */
    ra_run(parallel, count, grain, attend_tasks, &r);
    if (floats)
        ra_run(parallel, count, 64, merge_tasks, &r);
    return RA_OK;
}

/* ---- What a new token leaves behind ---- */

static int64_t chunks_of(int64_t slots) { return ra_pages_for(slots) / RA_CHUNK_PAGES + 1; }

int64_t ra_stored_floats(int64_t group, int64_t slots)
{
    return group * (ra_pages_for(slots) * PAGE + chunks_of(slots) + 2);
}

ra_stored_weights ra_stored_in(float *memory, int64_t group, int64_t slots)
{
    float *factors = memory + group * ra_pages_for(slots) * PAGE;
    return (ra_stored_weights){.parts = memory, .factors = factors, .ends = factors + group * chunks_of(slots)};
}

ra_weights ra_attend_weights(const ra_attend_job *job, int64_t pair)
{
    const ra_stored_weights *stored = &job->weights[pair];
    int64_t group = job->group, slots = job->spans[pair].slots, height = ra_tile_rows(job->head_dim);
    for (int64_t page = 0, at = 0; page < ra_pages_for(slots); page += RA_CHUNK_PAGES)
        for (int64_t g = 0; g < group; g++, at++) {
            float chunk = stored->factors[at], top = stored->ends[g], sum = stored->ends[group + g];
            /* A query that sees nothing, or nothing of this chunk, has parts of 0. */
            stored->factors[at] = sum > 0 && chunk > -INFINITY ? (chunk == top ? 1 : expf(chunk - top)) / sum : 0;
        }
    return (ra_weights){.parts = stored->parts,
                        .factors = stored->factors,
                        .slots = slots,
                        .group = group,
                        .height = height,
                        .stride = group,
                        .chunk_pages = RA_CHUNK_PAGES};
}
