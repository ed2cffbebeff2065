/* Compaction: a head's survivors move into its first pages, the rest of its pages go home. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ahead.h"

/* What one head keeps. */
typedef struct plan {
    int64_t keep, prefix; /* survivors; survivors at the front that need not move */
    int64_t *slots;       /* [keep] ascending */
    int64_t fresh;        /* pages to take because the ones to be written are shared */
    double lost;
    ra_status status;
} plan;

typedef struct evict_job {
    ra_layer *layer;
    int64_t row, protect_below;
    const int64_t *budgets;
    const float *const *scores;
    plan *plans;
    int32_t *taken; /* pages for the heads that need fresh ones, in order of head */
    bool want_lost;
} evict_job;

/* Attention mass of the newest query, mean over the group, on the slots that go. */
static ra_status mass_lost(const ra_layer *layer, int64_t row, int64_t head, plan *p)
{
    const float *noted = ra_noted_mass(layer, row, ra_head_at(layer, row, head));
    double kept = 0;
    if (noted) {
        for (int64_t i = 0; i < p->keep; i++)
            kept += (double)noted[p->slots[i]];
        p->lost = fmax(0, 1 - kept);
        return RA_OK;
    }
    if (layer->q_end[row] == layer->q_begin[row])
        return RA_OK;
    ra_span span = ra_span_of(layer, row, head);
    int64_t d = span.d, n = span.slots, group = layer->group;
    float *mass = ra_new(ra_pages_for(n) * PAGE, sizeof *mass), query[RA_MAX_HEAD_DIM];
    if (!mass)
        return RA_ERR_NO_MEMORY;
    const float *newest = layer->queries +
                          ((row * layer->window + (layer->q_end[row] - 1) % layer->window) * layer->query_heads +
                           head * group) *
                              d;
    for (int64_t g = 0; g < group; g++) {
        memcpy(query, newest + g * d, (size_t)d * sizeof *query);
        ra_kernels_get()->scale(query, (size_t)d, 1 / sqrtf((float)d));
        for (int64_t page = 0; page * PAGE < n; page++)
            span.kernels->qk(query, 1, ra_span_k(&span, page), (size_t)d, NULL, mass + page * PAGE);
        ra_softmax(mass, n);
        for (int64_t i = 0; i < p->keep; i++)
            kept += (double)mass[p->slots[i]];
    }
    p->lost = fmax(0, 1 - kept / (double)group);
    free(mass);
    return RA_OK;
}

static ra_status plan_head(const evict_job *job, int64_t h, plan *p)
{
    const ra_layer *layer = job->layer;
    const ra_head *head = ra_head_at(layer, job->row, h);
    int64_t n = head->slots, window = ra_min(layer->window, n), older = n - window;
    *p = (plan){.keep = n};
    if (job->budgets[h] >= n)
        return RA_OK;
    if (job->budgets[h] < window)
        return RA_ERR_ARGUMENT;
    p->keep = job->budgets[h];
    p->slots = ra_new(p->keep, sizeof *p->slots);
    if (!p->slots)
        return RA_ERR_NO_MEMORY;
    int64_t protect = ra_protected(head, job->protect_below, older);
    ra_status status = ra_select(job->scores[h], older, p->keep - window, protect, p->slots);
    if (status != RA_OK)
        return status;
    for (int64_t i = 0; i < window; i++)
        p->slots[p->keep - window + i] = older + i;
    while (p->prefix < p->keep && p->slots[p->prefix] == p->prefix)
        p->prefix++;
    bool shared = false;
    for (int64_t page = p->prefix / PAGE; page < ra_pages_for(p->keep); page++)
        shared |= layer->pool->refs[head->pages[page]] > 1;
    p->fresh = shared ? ra_pages_for(p->keep) - p->prefix / PAGE : 0;
    return job->want_lost ? mass_lost(layer, job->row, h, p) : RA_OK;
}

static void plan_heads(int64_t begin, int64_t end, void *context)
{
    const evict_job *job = context;
    for (int64_t h = begin; h < end; h++)
        job->plans[h].status = plan_head(job, h, &job->plans[h]);
}

/* Survivors that come from one page and go to one page. */
static void move_run(const ra_pool *pool, const int64_t *slots, int64_t to_slot, int64_t count, const void *from,
                     void *to)
{
    size_t row = (size_t)pool->head_dim * ra_dtype_size(pool->dtype);
    const char *from_values = (const char *)from + row * PAGE;
    char *to_values = (char *)to + row * PAGE;
    uint8_t lane[PAGE] = {0};
    for (int64_t i = 0; i < count; i++)
        lane[to_slot % PAGE + i] = (uint8_t)(slots[i] % PAGE);
    ra_kernels_get()->page[pool->dtype].move_keys(from, lane, (size_t)(to_slot % PAGE),
                                                  (size_t)(to_slot % PAGE + count), (size_t)pool->head_dim, to);
    for (int64_t i = 0, run; i < count; i += run) { /* runs of neighbours at once */
        run = 1;
        while (i + run < count && slots[i + run] == slots[i] + run)
            run++;
        memmove(to_values + row * (size_t)(to_slot % PAGE + i), from_values + row * (size_t)(slots[i] % PAGE),
                row * (size_t)run);
    }
}

static void move_head(const evict_job *job, int64_t h)
{
    const plan *p = &job->plans[h];
    ra_layer *layer = job->layer;
    const ra_pool *pool = layer->pool;
    ra_head *head = ra_head_at(layer, job->row, h);
    int64_t first_page = p->prefix / PAGE;
    const int32_t *to_pages = head->pages + first_page;
    if (p->fresh) {
        const int32_t *taken = job->taken;
        for (int64_t before = 0; before < h; before++)
            taken += job->plans[before].fresh;
        to_pages = taken;
    }
    int64_t i = p->fresh ? first_page * PAGE : p->prefix, end = first_page * PAGE; /* survivors before it stay */
    ra_span span = ra_span_of(layer, job->row, h);
    ra_streams streams = ra_streams_of(pool->page_bytes);
    ra_ahead ahead;
    /* Page by page of what is there. Into the own pages a slot moves only forward, so that ascending order never
     * overwrites one still to be read. */
    for (int64_t page = first_page; page < ra_pages_for(head->slots); page++) {
        bool leaves[PAGE];
        for (int64_t t = 0; t < PAGE; t++)
            leaves[t] = true;
        for (; end < p->keep && p->slots[end] / PAGE == page; end++)
            leaves[p->slots[end] % PAGE] = false;
        ra_span_ahead(&span, &streams, page, &ahead);
        ra_prefetch(&ahead, 0, streams.part / 2);
        ra_known_remove(&head->known, &span, page, leaves);
        while (i < end) {
            int64_t count = ra_min(end - i, PAGE - i % PAGE); /* into one page */
            move_run(pool, p->slots + i, i, count, pool->memory[head->pages[page]],
                     pool->memory[to_pages[i / PAGE - first_page]]);
            i += count;
        }
        ra_prefetch(&ahead, streams.part / 2, streams.part);
    }
    for (int64_t slot = p->prefix; slot < p->keep; slot++)
        head->positions[slot] = head->positions[p->slots[slot]];
    if (head->known.slots)
        ra_known_keep(&head->known, p->slots, p->keep);
}

static void move_heads(int64_t begin, int64_t end, void *context)
{
    const evict_job *job = context;
    for (int64_t h = begin; h < end; h++)
        if (job->plans[h].slots)
            move_head(job, h);
}

static void hand_back(const evict_job *job, int64_t h)
{
    const plan *p = &job->plans[h];
    ra_pool *pool = job->layer->pool;
    ra_head *head = ra_head_at(job->layer, job->row, h);
    int64_t pages = ra_pages_for(p->keep), kept = p->fresh ? p->prefix / PAGE : pages;
    while (head->page_count > kept)
        ra_pool_drop(pool, head->pages[--head->page_count]);
    if (p->fresh) {
        const int32_t *taken = job->taken;
        for (int64_t before = 0; before < h; before++)
            taken += job->plans[before].fresh;
        for (int64_t i = 0; i < p->fresh; i++)
            head->pages[head->page_count++] = taken[i];
    }
    head->slots = p->keep;
    ra_noted_clear(head);
}

ra_status ra_layer_evict(ra_layer *layer, int64_t row, const int64_t *budgets, const float *const *scores,
                         int64_t protect_below, double *lost, ra_parallel parallel, int64_t *missing)
{
    if (row < 0 || row >= layer->rows || !budgets || !scores || !missing)
        return RA_ERR_ARGUMENT;
    int64_t H = layer->kv_heads, need = 0, start = ra_now_ns();
    *missing = 0;
    evict_job job = {.layer = layer, .row = row, .protect_below = protect_below, .budgets = budgets, .scores = scores,
                     .plans = calloc((size_t)H, sizeof(plan)), .want_lost = lost != NULL};
    if (!job.plans)
        return RA_ERR_NO_MEMORY;
    ra_run(parallel, H, 1, plan_heads, &job);
    ra_status status = RA_OK;
    for (int64_t h = 0; h < H; h++) {
        if (status == RA_OK)
            status = job.plans[h].status;
        need += job.plans[h].fresh;
    }
    if (status == RA_OK && need > layer->pool->info.free) {
        *missing = need - layer->pool->info.free;
        status = RA_ERR_NO_PAGES;
    }
    if (status == RA_OK && need) {
        job.taken = ra_new(need, sizeof *job.taken);
        if (!job.taken)
            status = RA_ERR_NO_MEMORY;
        for (int64_t i = 0; job.taken && i < need; i++)
            job.taken[i] = ra_pool_take(layer->pool);
    }
    if (status == RA_OK) {
        ra_run(parallel, H, 1, move_heads, &job);
        for (int64_t h = 0; h < H; h++) {
            if (job.plans[h].slots)
                hand_back(&job, h);
            if (lost)
                lost[h] = job.plans[h].lost;
        }
    }
    for (int64_t h = 0; h < H; h++)
        free(job.plans[h].slots);
    free(job.plans);
    free(job.taken);
    layer->times.evict_ns += ra_now_ns() - start;
    return status;
}
