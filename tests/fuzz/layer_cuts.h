/* Part of layer.c: cuts phase by phase, at once, abandoned or left for later. */
#ifndef RA_FUZZ_LAYER_CUTS_H
#define RA_FUZZ_LAYER_CUTS_H

#include "layer_steps.h"

/* Of any scorer, or of those that the layers of this run can be cut by. */
static ra_score_config draw_score(bool made)
{
    size_t count = 0;
    while (ra_scorer_name(count))
        count++;
    const ra_scorer *scorer = ra_scorer_find(ra_scorer_name((size_t)below((int64_t)count)));
    if (made && ra_scorer_gathers(scorer)) /* it needs a layer that was made for it */
        scorer = w.scorer && ra_scorer_gathers(w.scorer) ? w.scorer : ra_scorer_find("recency");
    return (ra_score_config){.scorer = scorer,
                             .alpha = (float)below(11) / 10,
                             .threshold = below(8) ? 0.55f : (float)(below(5) - 2) * 0.3f,
                             .kernel = 1 + 2 * below(5),
                             .seed = next_random(),
                             .recent = (float)below(5) / 4,
                             .published_code = below(2),
                             .average = below(2),
                             .n_large = below(20) - 1,
                             .n_sink = below(6),
                             .span = below(3) * 5};
}

static ra_route_config draw_route(void)
{
    static const ra_heads allocators[] = {RA_HEADS_UNIFORM, RA_HEADS_ROUTE, RA_HEADS_POOLED, RA_HEADS_SHARES};
    static double shares[HEADS]; /* of the one cut that is under way */
    for (int64_t h = 0; h < HEADS; h++)
        shares[h] = (double)below(5);
    return (ra_route_config){.heads = allocators[below(4)],
                             .gamma = (double)below(4),
                             .lo = (double)below(5) / 4,
                             .hi = 1 + (double)below(5) / 2,
                             .mu = (double)below(5) / 4,
                             .safeguard = (double)below(5) / 4,
                             .shares = shares};
}

static int64_t row_slots(const m_layer *m, int64_t row)
{
    int64_t slots = 0;
    for (int64_t h = 0; h < w.heads; h++)
        slots += m->row[row].head[h].slots;
    return slots;
}

typedef struct ranked {
    bool guarded;
    float score;
    int32_t slot;
} ranked;

static int by_rank(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->guarded != y->guarded)
        return x->guarded ? -1 : 1;
    if (x->score < y->score || x->score > y->score)
        return x->score > y->score ? -1 : 1;
    return x->slot > y->slot ? -1 : 1;
}

/* What a head keeps of its slots by scores and a budget. */
static void choose(m_layer *m, int64_t pair, const float *scores, int64_t protect_below, int64_t budget)
{
    const m_head *h = &m->row[pair / w.heads].head[pair % w.heads];
    int64_t n = h->slots, window = least(w.window, n), older = n - window, keep = least(n, budget), count = 0;
    static ranked rank[SLOTS];
    static bool stays[SLOTS];
    memset(stays, 0, sizeof stays);
    for (int64_t i = 0; i < older; i++)
        rank[i] = (ranked){h->positions[i] < protect_below, scores[i], (int32_t)i};
    qsort(rank, (size_t)older, sizeof *rank, by_rank);
    for (int64_t i = 0; i < keep - window; i++)
        stays[rank[i].slot] = true;
    for (int64_t i = 0; i < n; i++)
        if (i >= older || stays[i])
            m->kept[pair][count++] = (int32_t)i;
    PROMISE(count == keep);
    m->keep[pair] = keep;
}

/* Pages that each head takes because those that it writes to are shared; the prefix that does not move. */
static int64_t plan_moves(const m_layer *m, int64_t *prefix, int64_t *fresh)
{
    int64_t need = 0;
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        const m_head *h = &m->row[pair / w.heads].head[pair % w.heads];
        prefix[pair] = fresh[pair] = 0;
        if (!m->cut[pair / w.heads] || m->keep[pair] == h->slots)
            continue;
        while (prefix[pair] < m->keep[pair] && m->kept[pair][prefix[pair]] == prefix[pair])
            prefix[pair]++;
        for (int64_t p = prefix[pair] / T; p < pages_for(m->keep[pair]); p++)
            if (w.refs[h->page[p]] > 1)
                fresh[pair] = pages_for(m->keep[pair]) - prefix[pair] / T;
        need += fresh[pair];
    }
    return need;
}

static void apply(m_layer *m)
{
    int64_t prefix[ROWS * HEADS], fresh[ROWS * HEADS];
    int taken[ROWS * HEADS][PAGES];
    (void)plan_moves(m, prefix, fresh);
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++)
        for (int64_t i = 0; i < fresh[pair]; i++)
            taken[pair][i] = take_page();
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        m_head *h = &m->row[pair / w.heads].head[pair % w.heads];
        if (!m->cut[pair / w.heads] || m->keep[pair] == h->slots)
            continue;
        int64_t stay = fresh[pair] ? prefix[pair] / T : pages_for(m->keep[pair]);
        drop_pages(h, stay);
        for (int64_t i = 0; i < fresh[pair]; i++)
            h->page[stay + i] = taken[pair][i];
        for (int64_t i = 0; i < m->keep[pair]; i++) {
            int64_t from = m->kept[pair][i];
            h->positions[i] = h->positions[from];
            memmove(h->keys + i * w.d, h->keys + from * w.d, (size_t)w.d * sizeof *h->keys);
            memmove(h->values + i * w.d, h->values + from * w.d, (size_t)w.d * sizeof *h->values);
        }
        h->slots = m->keep[pair];
    }
    m->begun = false;
}

static outcome op_apply(m_layer *m)
{
    for (int i = 0; i < LAYERS && !m->begun; i++)
        m = w.layer[i].layer && w.layer[i].begun ? &w.layer[i] : m;
    int64_t prefix[ROWS * HEADS], fresh[ROWS * HEADS], missing;
    ra_status status;
    if (!m->begun || !m->chosen) {
        bool nothing = m->begun; /* a cut of no rows is chosen already */
        for (int64_t r = 0; r < m->rows; r++)
            nothing &= !m->cut[r];
        if (!nothing)
            PROMISE(ra_cut_apply(m->layer, NULL, &missing) == RA_ERR_ARGUMENT);
        return nothing ? SKIPPED : REFUSED;
    }
    for (;;) {
        CALL(status, ra_cut_apply(m->layer, any_parallel(), &missing));
        if (status == RA_OK)
            break;
        PROMISE(status == RA_ERR_NO_PAGES);
        add_missing(missing, plan_moves(m, prefix, fresh));
    }
    apply(m);
    return DONE;
}

typedef struct cut_values {
    int64_t totals[ROWS], protect[ROWS], budgets[ROWS * HEADS];
    double lost[ROWS * HEADS];
    bool cut[ROWS], feasible;
    ra_score_config score;
    ra_route_config route;
    bool scored;
} cut_values;

static void begin_cut(m_layer *m, cut_values *c)
{
    bool theirs[ROWS];
    *c = (cut_values){.score = draw_score(true), .route = draw_route(), .scored = below(3) != 0, .feasible = true};
    for (int64_t r = 0; r < m->rows; r++) {
        int64_t slots = row_slots(m, r);
        c->totals[r] = below(4) == 0   ? -1
                       : below(5) == 0 ? below(slots + 3)
                                       : most(w.heads * w.window, slots / 2 + below(slots / 2 + 2));
        c->protect[r] = below(2) ? 0 : below(m->row[r].tokens + 2);
        c->cut[r] = c->totals[r] >= 0 && slots > c->totals[r];
        if (c->cut[r] && c->totals[r] < w.heads * w.window)
            c->feasible = false;
    }
    c->score.protect_below = c->protect; /* as a cut at once has it */
    ra_status status;
    m->begun = false;
    CALL(status, ra_cut_score(m->layer, c->totals, c->scored ? &c->score : NULL, theirs, any_parallel()));
    PROMISE(status == RA_OK);
    m->begun = true;
    m->chosen = false;
    memcpy(m->cut, c->cut, sizeof c->cut);
    PROMISE(!memcmp(theirs, c->cut, (size_t)m->rows));
    int64_t looked_at = below(m->rows * w.heads), kind = below(3);
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        int64_t r = pair / w.heads, h = pair % w.heads, count;
        float *scores = ra_cut_scores(m->layer, r, h, &count);
        PROMISE(!scores == !c->cut[r]);
        if (!scores)
            continue;
        PROMISE(count == most(0, m->row[r].head[h].slots - w.window));
        if (c->scored && pair == looked_at)
            check_scores(&m->row[r], h, &c->score, scores);
        for (int64_t i = 0; !c->scored && i < count; i++) {
            PROMISE(scores[i] == 0);
            scores[i] = kind == 0 ? 0 : kind == 1 ? (float)below(3) : random_float(); /* many ties */
        }
    }
}

/* Budgets by route, or any; whether the cut is still on. */
static void draw_budgets(m_layer *m, cut_values *c, bool routed)
{
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        int64_t n = m->row[pair / w.heads].head[pair % w.heads].slots;
        c->budgets[pair] = least(n, w.window) + below(most(0, n - w.window) + 3);
        if (!below(16))
            c->budgets[pair] = INT64_MAX;
    }
    if (!routed)
        return;
    int64_t own[ROWS * HEADS];
    ra_status status;
    CALL(status, ra_cut_allocate(m->layer, c->protect, &c->route, own));
    PROMISE(status == (c->feasible ? RA_OK : RA_ERR_INFEASIBLE));
    for (int64_t r = 0; r < m->rows && c->feasible; r++) {
        int64_t sum = 0;
        for (int64_t h = 0; h < w.heads && c->cut[r]; h++) {
            int64_t budget = own[r * w.heads + h];
            PROMISE(budget >= least(w.window, c->totals[r] / w.heads));
            sum += c->budgets[r * w.heads + h] = budget;
        }
        PROMISE(!c->cut[r] || sum == c->totals[r]);
    }
}

static void check_choice(m_layer *m, cut_values *c)
{
    int64_t count, looked_at = below(m->rows * w.heads);
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        int64_t r = pair / w.heads, h = pair % w.heads;
        if (!m->cut[r])
            continue;
        choose(m, pair, ra_cut_scores(m->layer, r, h, &count), c->protect[r], c->budgets[pair]);
        if (pair == looked_at)
            PROMISE(fabs(c->lost[pair] - lost_mass(m, r, h)) <= 1e-3);
    }
    m->chosen = true;
}

/* The model's count of owners, for a copy that comes (1) and goes (-1). */
static void share(const m_layer *m, int by)
{
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++) {
        const m_head *h = &m->row[pair / w.heads].head[pair % w.heads];
        for (int64_t p = 0; p < pages_for(h->slots); p++)
            w.refs[h->page[p]] += by;
    }
}

/* Phase by phase, or on a copy phase by phase and then at once. */
static outcome op_cut(m_layer *m)
{
    cut_values c;
    uint8_t how = take_byte(w.b);
    bool at_once = how >= 160;
    ra_layer *own = m->layer, *copy;
    ra_status status;
    if (at_once) {
        CALL(status, ra_layer_copy(own, &copy));
        PROMISE(status == RA_OK);
        ra_cut_abandon(own);
        share(m, 1);
        m->layer = copy;
    }
    begin_cut(m, &c);
    bool routed = (how & 1) != 0;
    draw_budgets(m, &c, routed);
    if (!below(8)) {
        int64_t bad[ROWS * HEADS], pair = below(m->rows * w.heads);
        memcpy(bad, c.budgets, sizeof bad);
        bad[pair] = below(2) ? -1 : INT64_MIN;
        if (m->cut[pair / w.heads])
            PROMISE(ra_cut_choose(m->layer, c.protect, bad, NULL, NULL) == RA_ERR_ARGUMENT);
    }
    int64_t count;
    float *scores = ra_cut_scores(m->layer, 0, 0, &count);
    if (scores && count && !below(8)) {
        float before = scores[count - 1];
        scores[count - 1] = below(2) ? NAN : INFINITY;
        PROMISE(ra_cut_choose(m->layer, c.protect, c.budgets, NULL, NULL) == RA_ERR_NOT_FINITE);
        scores[count - 1] = before;
    }
    CALL(status, ra_cut_choose(m->layer, c.protect, c.budgets, c.lost, any_parallel()));
    PROMISE(status == RA_OK);
    check_choice(m, &c);
    compare(false);
    outcome result = SKIPPED; /* no row has more than its total */
    for (int64_t r = 0; r < m->rows; r++)
        if (m->cut[r])
            result = routed && !c.feasible ? REFUSED : DONE;
    if (how < 40) /* later, or never */
        return result;
    if (how < 60) {
        ra_cut_abandon(m->layer);
        m->begun = false;
        return result;
    }
    if (!at_once) {
        if (!below(3))
            (void)op_trim(m);
        (void)op_apply(m);
        return result;
    }
    m->begun = false;
    m->layer = own;
    ra_layer_destroy(copy);
    share(m, -1);
    if (!routed || !c.feasible || !c.scored)
        return result;
    cut_values again_ = c; /* the same, bit for bit */
    ra_cut all = {.totals = c.totals,
                  .protect_below = c.protect,
                  .score = c.score,
                  .route = c.route,
                  .budgets = again_.budgets,
                  .lost = again_.lost,
                  .cut = again_.cut};
    int64_t prefix[ROWS * HEADS], fresh[ROWS * HEADS], missing;
    for (;;) {
        memset(again_.cut, 1, sizeof again_.cut);
        CALL(status, ra_layer_cut(m->layer, &all, any_parallel(), &missing));
        if (status == RA_OK)
            break;
        PROMISE(status == RA_ERR_NO_PAGES);
        add_missing(missing, plan_moves(m, prefix, fresh));
    }
    PROMISE(!memcmp(again_.cut, c.cut, (size_t)m->rows));
    for (int64_t pair = 0; pair < m->rows * w.heads; pair++)
        if (c.cut[pair / w.heads])
            PROMISE(again_.budgets[pair] == c.budgets[pair] && again_.lost[pair] == c.lost[pair]);
    apply(m);
    return result;
}

/* The window's last steps announce the cut, so that attention leaves its logits behind. */
static outcome op_announced_cut(m_layer *m)
{
    int64_t wrong = below(6) ? -1 : below(w.window);
    for (int64_t left = w.window - 1; left >= 0; left--)
        (void)step_once(m, 1, left == wrong ? below(3) : left);
    return op_cut(m);
}

#endif
