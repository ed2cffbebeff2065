/* A cut on the CPU: scores, choices, and compaction: a head's survivors move into its first pages, the rest go home. */
#include <math.h>
#include <string.h>

#include "ahead.h"
#include "newest_mass.h"
#include "scorer.h"
#include "step.h"

/* Heads that are worked on side by side: as many as keep their scratch within this, at least LEAST_HEADS. */
#define SCRATCH_BYTES ((size_t)8 << 20)
enum { LEAST_HEADS = 8, MOST_HEADS = 64 };

static size_t choose_bytes(const ra_layer *layer, int64_t slots)
{
    ra_scratch count = {0};
    int64_t queries;
    if (!ra_size_of(layer->window, layer->group, layer->pool->head_dim, sizeof(float), &queries))
        return SIZE_MAX / 4;
    ra_scratch_take(&count, slots, sizeof(bool));
    ra_scratch_take(&count, 3 * (slots + PAGE), sizeof(float));
    ra_scratch_take(&count, queries, 1);
    return count.used + 256;
}

/* Scratch of one head: for its score, its choice or its move. */
static size_t head_bytes(const ra_layer *layer, int64_t slots)
{
    size_t score = ra_score_bytes(slots, layer->pool->head_dim, layer->window, layer->group);
    size_t choose = choose_bytes(layer, slots);
    return ((score > choose ? score : choose) + 127) / 64 * 64; /* heads begin at aligned places */
}

static int64_t heads_at_once(size_t bytes)
{
    return ra_max(LEAST_HEADS, ra_min(MOST_HEADS, (int64_t)(SCRATCH_BYTES / bytes)));
}

/* What a move needs to know of a head. */
typedef struct move_plan {
    int64_t prefix; /* survivors at the front that need not move */
    int64_t fresh;  /* pages to take because the ones to be written are shared */
    int64_t taken;  /* number of the first of them */
} move_plan;

size_t ra_cpu_cut_bytes(const ra_layer *layer, int64_t slots)
{
    if (!layer->scorer)
        return 0; /* it may be cut all the same: then this memory is taken at the cut */
    size_t each = head_bytes(layer, slots);
    int64_t pairs = ra_pairs(layer);
    ra_scratch count = {0};
    ra_scratch_take(&count, pairs, sizeof(ra_status));
    ra_scratch_take(&count, pairs, sizeof(move_plan));
    ra_scratch_take(&count, ra_min(pairs, heads_at_once(each)), each);
    size_t route = ra_route_bytes(layer->kv_heads, layer->kv_heads * slots) +
                   (size_t)(layer->rows + 3) * (size_t)layer->kv_heads * 8;
    return (count.used > route ? count.used : route) + 512;
}

/* ---- Work on the heads of the rows that are cut ---- */

typedef struct cut_job {
    ra_layer *layer;
    const ra_score_config *config;
    const int64_t *protect_below, *budgets;
    double *lost;
    ra_status (*work)(const struct cut_job *job, int64_t pair, ra_scratch *scratch);
    int64_t first; /* of the heads that are worked on now */
    char *memory;  /* theirs, `each` bytes a head */
    size_t each;
    ra_status *status; /* [R, H] */
} cut_job;

static void work_on_heads(int64_t begin, int64_t end, void *context)
{
    const cut_job *job = context;
    for (int64_t i = begin; i < end; i++) {
        int64_t pair = job->first + i;
        ra_scratch scratch = {.memory = job->memory + (size_t)i * job->each, .size = job->each};
        if (job->layer->cut.cut[pair / job->layer->kv_heads])
            job->status[pair] = job->work(job, pair, &scratch);
    }
}

static ra_status run_job(cut_job *job, ra_parallel parallel)
{
    ra_layer *layer = job->layer;
    int64_t pairs = ra_pairs(layer);
    job->each = head_bytes(layer, ra_most_slots(layer));
    int64_t heads = ra_min(pairs, heads_at_once(job->each)), bytes;
    if (!ra_size_of(heads, (int64_t)job->each, 1, 1, &bytes) ||
        !ra_pool_scratch(layer->pool, (size_t)bytes + (size_t)pairs * sizeof(ra_status) + 256))
        return RA_ERR_NO_MEMORY;
    job->status = ra_scratch_take(&layer->pool->scratch, pairs, sizeof *job->status);
    job->memory = ra_scratch_take(&layer->pool->scratch, bytes, 1);
    memset(job->status, 0, (size_t)pairs * sizeof *job->status);
    for (job->first = 0; job->first < pairs; job->first += heads)
        ra_run(parallel, ra_min(heads, pairs - job->first), 1, work_on_heads, job);
    for (int64_t pair = 0; pair < pairs; pair++)
        if (job->status[pair] != RA_OK)
            return job->status[pair];
    return RA_OK;
}

/* ---- Score ---- */

static ra_status score_head(const cut_job *job, int64_t pair, ra_scratch *scratch)
{
    ra_layer *layer = job->layer;
    return ra_score_head(layer, pair, job->config, scratch, ra_scores_of(layer, pair));
}

ra_status ra_cpu_score(ra_layer *layer, const ra_score_config *config, ra_parallel parallel)
{
    cut_job job = {.layer = layer, .config = config, .work = score_head};
    return run_job(&job, parallel);
}

/* ---- Choose ---- */

/* Attention mass of the newest query on the slots that go. */
static ra_status mass_lost(const ra_layer *layer, int64_t pair, ra_scratch *scratch, double *lost)
{
    int64_t row = pair / layer->kv_heads, n = layer->slots[pair], keep = layer->cut.keep[pair];
    const int32_t *kept = ra_kept_of(layer, pair);
    const float *mass = ra_window_mass(layer, pair);
    mass = mass ? mass : ra_newest_mass_of(layer, pair);
    *lost = 0;
    if (keep == n)
        return RA_OK;
    if (!mass) {
        ra_window window;
        if (layer->q_end[row] == layer->q_begin[row])
            return RA_OK; /* no query to ask */
        ra_span span = ra_span_of(layer, pair);
        float *logits = ra_scratch_take(scratch, ra_pages_for(n) * PAGE, sizeof *logits);
        float *computed = ra_scratch_take(scratch, n, sizeof *computed);
        if (!logits || !computed || !ra_window_of(layer, pair, scratch, &window))
            return RA_ERR_NO_MEMORY;
        ra_newest_mass(&span, &window, layer->sinks + pair % layer->kv_heads * layer->group, logits, computed);
        mass = computed;
    }
    double all = 0, stays = 0;
    for (int64_t i = 0; i < n; i++)
        all += (double)mass[i];
    for (int64_t i = 0; i < keep; i++)
        stays += (double)mass[kept[i]];
    *lost = fmax(0, all - stays);
    return RA_OK;
}

static ra_status choose_head(const cut_job *job, int64_t pair, ra_scratch *scratch)
{
    ra_layer *layer = job->layer;
    int64_t n = layer->slots[pair], window = ra_min(layer->window, n), older = n - window;
    int64_t keep = ra_min(n, job->budgets[pair]), chosen = keep - window;
    int32_t *kept = ra_kept_of(layer, pair);
    float *floats = ra_scratch_take(scratch, older, sizeof *floats);
    bool *flags = ra_scratch_take(scratch, older, sizeof *flags);
    if (!floats || !flags)
        return RA_ERR_NO_MEMORY;
    int64_t protect = ra_protected(layer, pair, job->protect_below[pair / layer->kv_heads], older);
    ra_status status = ra_select_into(ra_scores_of(layer, pair), older, chosen, protect, floats, flags, kept);
    if (status != RA_OK)
        return status;
    for (int64_t i = 0; i < window; i++)
        kept[chosen + i] = (int32_t)(older + i);
    layer->cut.keep[pair] = (int32_t)keep;
    return job->lost ? mass_lost(layer, pair, scratch, &job->lost[pair]) : RA_OK;
}

ra_status ra_cpu_choose(ra_layer *layer, const int64_t *protect_below, const int64_t *budgets, double *lost,
                        ra_parallel parallel)
{
    cut_job job = {.layer = layer,
                   .protect_below = protect_below,
                   .budgets = budgets,
                   .lost = lost,
                   .work = choose_head};
    return run_job(&job, parallel);
}

/* ---- Apply ---- */

static move_plan plan_of(const ra_layer *layer, int64_t pair)
{
    move_plan plan = {0};
    int64_t keep = layer->cut.keep[pair];
    const int32_t *kept = ra_kept_of(layer, pair);
    if (!layer->cut.cut[pair / layer->kv_heads] || keep == layer->slots[pair])
        return plan;
    while (plan.prefix < keep && kept[plan.prefix] == plan.prefix)
        plan.prefix++;
    bool shared = false;
    for (int64_t page = plan.prefix / PAGE; page < ra_pages_for(keep); page++)
        shared |= layer->pool->refs[ra_pages_of(layer, pair)[page]] > 1;
    plan.fresh = shared ? ra_pages_for(keep) - plan.prefix / PAGE : 0;
    return plan;
}

int64_t ra_cpu_apply_pages(const ra_layer *layer)
{
    int64_t need = 0;
    for (int64_t pair = 0; pair < ra_pairs(layer); pair++)
        need += plan_of(layer, pair).fresh;
    return need;
}

typedef struct move_job {
    ra_layer *layer;
    move_plan *plans; /* [R, H] */
    int32_t *taken;   /* pages for the heads that need fresh ones, in order of head */
} move_job;

static bool moves(const ra_layer *layer, int64_t pair)
{
    return layer->cut.cut[pair / layer->kv_heads] && layer->cut.keep[pair] < layer->slots[pair];
}

/* Tells the statistics which slots of a page go. */
static void slots_leave(ra_layer *layer, int64_t pair, int64_t page, const bool *goes)
{
    for (int s = 0; s < RA_STATS; s++)
        if (layer->columns[s] && ra_stats[s]->leave)
            ra_stats[s]->leave(layer, pair, page, goes);
}

static void move_head(const move_job *job, int64_t pair)
{
    ra_layer *layer = job->layer;
    const ra_pool *pool = layer->pool;
    const move_plan *plan = &job->plans[pair];
    const int32_t *kept = ra_kept_of(layer, pair);
    int64_t keep = layer->cut.keep[pair], first_page = plan->prefix / PAGE;
    const int32_t *pages = ra_pages_of(layer, pair),
                  *targets = plan->fresh ? job->taken + plan->taken : pages + first_page;
    int64_t i = plan->fresh ? first_page * PAGE : plan->prefix, end = first_page * PAGE; /* survivors before it stay */
    ra_span span = ra_span_of(layer, pair);
    ra_streams streams = ra_streams_of(pool->page_bytes);
    ra_ahead ahead;
    /* Page by page of what is there. Into the own pages a slot moves only forward, so that ascending order never
     * overwrites one still to be read. */
    for (int64_t page = first_page; page < ra_pages_for(layer->slots[pair]); page++) {
        bool goes[PAGE];
        for (int64_t t = 0; t < PAGE; t++)
            goes[t] = true;
        for (; end < keep && kept[end] / PAGE == page; end++)
            goes[kept[end] % PAGE] = false;
        ra_span_ahead(&span, &streams, page, &ahead);
        ra_prefetch(&ahead, 0, streams.part / 2);
        slots_leave(layer, pair, page, goes);
        while (i < end) {
            int64_t count = ra_min(end - i, PAGE - i % PAGE); /* into one page */
            uint8_t from[PAGE];
            for (int64_t t = 0; t < count; t++)
                from[t] = (uint8_t)(kept[i + t] % PAGE);
            pool->format->move(pool->memory[pages[page]], from, pool->memory[targets[i / PAGE - first_page]], i % PAGE,
                               count, pool->head_dim);
            i += count;
        }
        ra_prefetch(&ahead, streams.part / 2, streams.part);
    }
    int32_t *positions = ra_positions_of(layer, pair);
    for (int64_t slot = plan->prefix; slot < keep; slot++)
        positions[slot] = positions[kept[slot]];
    /* The scores have served: their list is scratch now. */
    int32_t *places = (int32_t *)(void *)ra_scores_of(layer, pair);
    for (int s = 0; s < RA_STATS; s++)
        if (layer->columns[s])
            ra_stat_move(layer, s, pair, kept, keep, layer->slots[pair], places);
}

static void move_heads(int64_t begin, int64_t end, void *context)
{
    const move_job *job = context;
    for (int64_t pair = begin; pair < end; pair++)
        if (moves(job->layer, pair))
            move_head(job, pair);
}

/* The pages that a head no longer needs go home; those that were taken for it come in. */
static void settle_pages(const move_job *job, int64_t pair)
{
    ra_layer *layer = job->layer;
    const move_plan *plan = &job->plans[pair];
    int32_t *pages = ra_pages_of(layer, pair);
    int64_t keep = layer->cut.keep[pair], stay = plan->fresh ? plan->prefix / PAGE : ra_pages_for(keep);
    for (int64_t p = ra_pages_for(layer->slots[pair]); p > stay; p--)
        ra_pool_drop(layer->pool, pages[p - 1]);
    for (int64_t i = 0; i < plan->fresh; i++)
        pages[stay + i] = job->taken[plan->taken + i];
    layer->slots[pair] = (int32_t)keep;
}

ra_status ra_cpu_apply(ra_layer *layer, ra_parallel parallel)
{
    int64_t pairs = ra_pairs(layer), need = 0;
    ra_scratch count = {0}, *scratch = &layer->pool->scratch;
    if (layer->pool->info.shared)
        need = ra_cpu_apply_pages(layer);
    ra_scratch_take(&count, pairs, sizeof(move_plan));
    ra_scratch_take(&count, need, sizeof(int32_t));
    if (!ra_pool_scratch(layer->pool, count.used + 64))
        return RA_ERR_NO_MEMORY;
    move_job job = {.layer = layer,
                    .plans = ra_scratch_take(scratch, pairs, sizeof *job.plans),
                    .taken = ra_scratch_take(scratch, need, sizeof *job.taken)};
    int64_t taken = 0;
    for (int64_t pair = 0; pair < pairs; pair++) {
        job.plans[pair] = plan_of(layer, pair);
        job.plans[pair].taken = taken;
        taken += job.plans[pair].fresh;
    }
    for (int64_t i = 0; i < need; i++)
        job.taken[i] = ra_pool_take(layer->pool);
    ra_run(parallel, pairs, 1, move_heads, &job);
    for (int64_t pair = 0; pair < pairs; pair++)
        if (moves(layer, pair))
            settle_pages(&job, pair);
    return RA_OK;
}
