/* Part of layer.c: rows and layers that come, go, are copied and restored. */
#ifndef RA_FUZZ_LAYER_ROWS_H
#define RA_FUZZ_LAYER_ROWS_H

#include "layer_cuts.h"

static void unsettle(m_layer *m)
{
    m->reserved = 0;
    m->pending = m->begun = false;
}

static outcome op_fork(m_layer *m)
{
    int64_t from = below(m->rows), to = below(8) ? (from + 1) % m->rows : below(m->rows);
    PROMISE(ra_layer_fork(m->layer, from, to) == RA_OK);
    if (from == to)
        return SKIPPED;
    unsettle(m);
    empty_row(&m->row[to]);
    copy_row(&m->row[to], &m->row[from]);
    return DONE;
}

static outcome op_release(m_layer *m)
{
    int64_t row = below(m->rows);
    outcome result = m->row[row].tokens ? DONE : SKIPPED;
    PROMISE(ra_layer_release(m->layer, row) == RA_OK);
    unsettle(m);
    empty_row(&m->row[row]);
    return result;
}

static outcome op_reorder(m_layer *m)
{
    static m_row fresh[ROWS];
    int64_t source[ROWS], rows = 1 + below(ROWS);
    for (int64_t r = 0; r < rows; r++)
        source[r] = below(8) ? below(m->rows) : -1;
    ra_status status;
    CALL(status, ra_layer_reorder(m->layer, source, rows));
    PROMISE(status == RA_OK);
    unsettle(m);
    for (int64_t r = 0; r < rows; r++) {
        fresh[r].tokens = fresh[r].queries = 0;
        for (int64_t h = 0; h < w.heads; h++)
            fresh[r].head[h].slots = 0;
        if (source[r] >= 0)
            copy_row(&fresh[r], &m->row[source[r]]);
    }
    for (int64_t r = 0; r < m->rows; r++)
        empty_row(&m->row[r]);
    m->rows = rows;
    for (int64_t r = 0; r < rows; r++) {
        copy_row(&m->row[r], &fresh[r]);
        empty_row(&fresh[r]);
    }
    return DONE;
}

static outcome op_crop(m_layer *m)
{
    int64_t tokens[ROWS] = {0};
    bool possible = true;
    for (int64_t r = 0; r < m->rows; r++) {
        const m_row *row = &m->row[r];
        tokens[r] = below(3) ? below(least(row->tokens, 2 * w.window) + 1) : below(row->tokens + 2);
        possible &= tokens[r] <= row->tokens;
        for (int64_t h = 0; h < w.heads; h++)
            for (int64_t i = 1; i <= tokens[r] && possible; i++)
                possible = i <= row->head[h].slots && row->head[h].positions[row->head[h].slots - i] == row->tokens - i;
    }
    PROMISE(ra_layer_crop(m->layer, tokens) == (possible ? RA_OK : RA_ERR_EVICTED));
    if (!possible)
        return REFUSED;
    unsettle(m);
    outcome result = SKIPPED;
    for (int64_t r = 0; r < m->rows; r++) {
        m_row *row = &m->row[r];
        row->tokens -= tokens[r];
        result = tokens[r] ? DONE : result;
        row->queries = most(0, row->queries - tokens[r]);
        for (int64_t h = 0; h < w.heads; h++) {
            int64_t slots = row->head[h].slots - tokens[r];
            drop_pages(&row->head[h], pages_for(slots));
            row->head[h].slots = slots;
        }
    }
    return result;
}

static outcome op_reset(m_layer *m)
{
    ra_layer_reset(m->layer);
    unsettle(m);
    for (int64_t r = 0; r < m->rows; r++)
        empty_row(&m->row[r]);
    return DONE;
}

static void destroy(m_layer *m)
{
    ra_layer_destroy(m->layer);
    for (int64_t r = 0; r < m->rows; r++)
        empty_row(&m->row[r]);
    unsettle(m);
    m->layer = NULL;
}

/* Where the queries of a layer lie, for "triattention". */
static void give_centres(ra_layer *layer)
{
    static double frequency[DIM / 2];
    static float mean[HEADS * GROUP * DIM], length[HEADS * GROUP * DIM / 2];
    ra_query_centres centres = {.pairs = below(w.d / 2 + 1),
                                .interleaved = below(2),
                                .frequency = frequency,
                                .mean = mean,
                                .length = length,
                                .largest = below(2),
                                .group_mean = below(2)};
    for (int64_t f = 0; f < centres.pairs; f++)
        frequency[f] = 1 / (double)(1 + below(1000));
    for (int64_t i = 0; i < w.heads * w.group * w.d; i++)
        mean[i] = random_float();
    for (int64_t i = 0; i < w.heads * w.group * centres.pairs; i++)
        length[i] = fabsf(random_float());
    ra_status status;
    CALL(status, ra_layer_set_centres(layer, &centres));
    PROMISE(status == RA_OK);
}

static void create(m_layer *m)
{
    ra_layer_config config = {.rows = 1 + below(ROWS),
                              .kv_heads = w.heads,
                              .query_heads = w.heads * w.group,
                              .window = w.window,
                              .scorer = w.scorer,
                              .stats = ra_stat_defaults()};
    ra_status status;
    ra_layer *made = NULL;
    CALL(status, ra_layer_create(w.pool, &config, &made));
    PROMISE(status == RA_OK);
    give_centres(made);
    m->layer = made;
    m->rows = config.rows;
    m->sinks = false;
    unsettle(m);
    for (int64_t r = 0; r < ROWS; r++) {
        m->row[r].tokens = m->row[r].queries = 0;
        for (int64_t h = 0; h < w.heads; h++)
            m->row[r].head[h].slots = 0;
    }
}

/* Another layer goes, or comes as a copy or empty. */
static outcome op_layers(m_layer *m)
{
    m_layer *other = &w.layer[1 + below(LAYERS - 1)];
    if (other == m)
        m = &w.layer[0];
    if (other->layer) {
        destroy(other);
        return DONE;
    }
    create(other);
    if (!below(3))
        return DONE;
    destroy(other);
    ra_status status;
    ra_layer *made = NULL;
    CALL(status, ra_layer_copy(m->layer, &made));
    PROMISE(status == RA_OK);
    other->layer = made;
    other->rows = m->rows;
    other->sinks = m->sinks;
    for (int64_t r = 0; r < m->rows; r++)
        copy_row(&other->row[r], &m->row[r]);
    return DONE;
}

/* Any row, rather one that has tokens. */
static int64_t filled_row(const m_layer *m)
{
    int64_t row = below(m->rows);
    for (int64_t i = 0; i < m->rows && !m->row[row].tokens; i++)
        row = (row + 1) % m->rows;
    return row;
}

/* A row is read and restored in a row that was empty, of this layer or another. */
static outcome op_restore(m_layer *m)
{
    m_layer *to = &w.layer[below(LAYERS)];
    if (!to->layer)
        to = m;
    int64_t from = filled_row(m), row = below(to->rows), heads = below(5) ? w.heads : below(w.heads);
    if (to == m && from == row)
        return SKIPPED;
    m_row *target = &to->row[row];
    const m_row *source = &m->row[from];
    int64_t missing;
    if (target->tokens) {
        PROMISE(ra_layer_restore(to->layer, row, 0, 0, NULL, NULL, NULL, &missing) == RA_ERR_ARGUMENT);
        PROMISE(ra_layer_release(to->layer, row) == RA_OK);
        unsettle(to);
        empty_row(target);
    }
    for (int64_t h = 0; h < heads; h++) {
        const m_head *head = &source->head[h];
        ra_status status;
        for (;;) {
            CALL(status,
                 ra_layer_restore(to->layer, row, h, head->slots, head->positions, head->keys, head->values, &missing));
            if (status == RA_OK)
                break;
            PROMISE(status == RA_ERR_NO_PAGES);
            add_missing(missing, pages_for(head->slots));
        }
        unsettle(to);
        m_head *copy = &target->head[h];
        memcpy(copy->positions, head->positions, (size_t)head->slots * sizeof *head->positions);
        memcpy(copy->keys, head->keys, (size_t)(head->slots * w.d) * sizeof *head->keys);
        memcpy(copy->values, head->values, (size_t)(head->slots * w.d) * sizeof *head->values);
        copy->slots = head->slots;
        for (int64_t p = 0; p < pages_for(head->slots); p++)
            copy->page[p] = take_page();
        compare(false);
    }
    int64_t Hq = w.heads * w.group, n = source->queries;
    float *queries = exactly((size_t)(n * Hq * w.d) * sizeof *queries);
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < Hq; h++)
            memcpy(queries + (h * n + i) * w.d, source->query + (i * Hq + h) * w.d, (size_t)w.d * sizeof *queries);
    if (heads < w.heads && source->tokens) { /* half a row is none */
        int64_t begin[ROWS + 1] = {0}, restored = 0;
        for (int64_t h = 0; h < heads; h++)
            restored += target->head[h].slots;
        for (int64_t r = row; r < to->rows; r++)
            begin[r + 1] = 1;
        if (restored)
            PROMISE(ra_layer_reserve(to->layer, begin, 0, 0, &missing) == RA_ERR_ARGUMENT);
        PROMISE(ra_layer_release(to->layer, row) == RA_OK);
        unsettle(to);
        empty_row(target);
    } else {
        if (source->tokens && source->head[0].slots)
            PROMISE(ra_layer_restore_row(to->layer, row, source->head[0].positions[source->head[0].slots - 1], queries,
                                         0, w.scale,
                                         w.softcap) == RA_ERR_ARGUMENT); /* fewer tokens than positions say */
        PROMISE(ra_layer_restore_row(to->layer, row, source->tokens, queries, n, w.scale, w.softcap) == RA_OK);
        target->tokens = source->tokens;
        target->queries = n;
        memcpy(target->query, source->query, sizeof target->query);
        unsettle(to);
    }
    free(queries);
    return source->tokens ? DONE : SKIPPED;
}

/* Calls that are refused, with nothing changed. */
static outcome op_refused(m_layer *m)
{
    static const int64_t hostile[] = {-1, INT64_MIN, INT64_MAX, 1LL << 31, 1LL << 62};
    int64_t bad = hostile[below(5)], missing, source[1] = {bad}, crop[ROWS] = {0};
    float x[1];
    crop[below(m->rows)] = bad;
    PROMISE(ra_layer_fork(m->layer, 0, bad) == RA_ERR_ARGUMENT && ra_layer_fork(m->layer, bad, 0) == RA_ERR_ARGUMENT);
    PROMISE(ra_layer_release(m->layer, bad) == RA_ERR_ARGUMENT);
    if (bad != -1)
        PROMISE(ra_layer_reorder(m->layer, source, 1) == RA_ERR_ARGUMENT);
    PROMISE(ra_layer_crop(m->layer, crop) == (bad < 0 ? RA_ERR_ARGUMENT : RA_ERR_EVICTED));
    PROMISE(ra_layer_read(m->layer, bad, 0, false, x) == RA_ERR_ARGUMENT);
    PROMISE(ra_layer_reserve(m->layer, NULL, bad, 0, &missing) == RA_ERR_ARGUMENT);
    if (bad < 0)
        PROMISE(ra_layer_reserve(m->layer, NULL, 1, bad, &missing) == RA_ERR_ARGUMENT);
    PROMISE(ra_layer_restore(m->layer, 0, bad, 0, NULL, NULL, NULL, &missing) == RA_ERR_ARGUMENT);
    PROMISE(ra_layer_restore(m->layer, 0, 0, bad, NULL, NULL, NULL, &missing) == RA_ERR_ARGUMENT);
    if (below(4) == 0)
        ra_pool_reset_peak(w.pool);
    return REFUSED;
}

#endif
