/* Part of layer.c: attention, scores and lost mass in float64. */
#ifndef RA_FUZZ_LAYER_ORACLE_H
#define RA_FUZZ_LAYER_ORACLE_H

#include "layer_model.h"

static double logit(const float *query, const float *key)
{
    double dot = 0;
    for (int64_t c = 0; c < w.d; c++)
        dot += (double)query[c] * (double)key[c];
    dot *= (double)w.scale;
    return w.softcap > 0 ? (double)w.softcap * tanh(dot / (double)w.softcap) : dot;
}

/* Softmax of n logits with a sink (-INFINITY: none); zeros where everything is hidden. */
static void softmax(double *x, int64_t n, double sink)
{
    double top = sink, sum = 0;
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, x[i]);
    for (int64_t i = 0; i < n; i++)
        sum += x[i] = top > -INFINITY ? exp(x[i] - top) : 0;
    sum += top > -INFINITY ? exp(sink - top) : 0;
    for (int64_t i = 0; i < n; i++)
        x[i] = sum > 0 ? x[i] / sum : 0;
}

/* Importance of a head's older tokens. */
static void importance(const m_row *row, int64_t head, int64_t kernel, double *out)
{
    const m_head *h = &row->head[head];
    int64_t older = h->slots - w.window, Hq = w.heads * w.group;
    double mean[SLOTS] = {0}, x[SLOTS];
    for (int64_t q = 0; q < row->queries; q++) {
        for (int64_t i = 0; i < older; i++) {
            x[i] = -INFINITY;
            for (int64_t g = 0; g < w.group; g++)
                x[i] = fmax(x[i], logit(row->query + (q * Hq + head * w.group + g) * w.d, h->keys + i * w.d));
        }
        softmax(x, older, -INFINITY);
        for (int64_t i = 0; i < older; i++)
            mean[i] += x[i] / (double)row->queries;
    }
    for (int64_t i = 0; i < older; i++) {
        out[i] = row->queries ? 0 : 1 / (double)older;
        for (int64_t j = most(0, i - kernel / 2); j <= least(older - 1, i + kernel / 2); j++)
            out[i] = fmax(out[i], mean[j]);
    }
}

static double norm(const float *key)
{
    double sum = 0;
    for (int64_t c = 0; c < w.d; c++)
        sum += (double)key[c] * (double)key[c];
    return sqrt(sum) + 1e-8;
}

/* Redundancy of a head's slots; false where a cosine is so near the threshold that rounding decides. */
static bool redundancy(const m_head *h, double threshold, double *out)
{
    static double norms[SLOTS];
    int64_t n = h->slots;
    bool clear = true;
    for (int64_t i = 0; i < n; i++) {
        norms[i] = norm(h->keys + i * w.d);
        out[i] = 0;
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t zeroed = 0;
        double row[SLOTS];
        for (int64_t j = 0; j < n; j++) {
            double dot = 0;
            for (int64_t c = 0; i != j && c < w.d; c++)
                dot += (double)h->keys[i * w.d + c] * (double)h->keys[j * w.d + c];
            row[j] = dot / (norms[i] * norms[j]);
            clear &= fabs(row[j] - threshold) > 1e-5;
            if (row[j] > threshold)
                zeroed = j;
        }
        row[zeroed] = 0;
        for (int64_t j = 0; j < n; j++)
            out[j] += row[j] / (double)n;
    }
    softmax(out, n, -INFINITY);
    return clear;
}

/* splitmix64 of (seed, head, position), as the header's "random" promises the same in every row. */
static double hash_score(uint64_t seed, int64_t head, int32_t position)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * ((uint64_t)head * 0x100000001u + (uint64_t)position + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 40) * 0x1p-24;
}

static void check_scores(const m_row *row, int64_t head, const ra_score_config *c, const float *got)
{
    static double important[SLOTS], redundant[SLOTS];
    const m_head *h = &row->head[head];
    const char *name = NULL;
    int64_t older = h->slots - w.window;
    for (size_t i = 0; (name = ra_scorer_name(i)) && ra_scorer_find(name) != c->scorer;)
        i++;
    bool rkv = !strncmp(name, "rkv", 3);
    if (!rkv && strcmp(name, "importance") && strcmp(name, "recency") && strcmp(name, "random"))
        return; /* tests/conformance/test_calls.py holds the others */
    if (older < 1 || (rkv && h->slots > 200 && below(8)))
        return;
    if (rkv || !strcmp(name, "importance"))
        importance(row, head, c->kernel, important);
    if (rkv && !redundancy(h, (double)c->threshold, redundant))
        return;
    double alpha = (double)c->alpha, level = strcmp(name, "rkv-centred") ? 0 : 1 / (double)h->slots;
    for (int64_t i = 0; i < older; i++) {
        double want = rkv                           ? alpha * important[i] - (1 - alpha) * (redundant[i] - level)
                      : !strcmp(name, "importance") ? important[i]
                      : !strcmp(name, "recency")    ? (double)h->positions[i]
                                                    : hash_score(c->seed, head, h->positions[i]);
        PROMISE(fabs((double)got[i] - want) <= 2e-5 * fmax(1, fabs(want)));
    }
}

/* Attention mass of the newest query on what goes. */
static double lost_mass(const m_layer *m, int64_t r, int64_t head)
{
    const m_row *row = &m->row[r];
    const m_head *h = &row->head[head];
    int64_t pair = r * w.heads + head, Hq = w.heads * w.group;
    static double x[SLOTS];
    double lost = 0;
    for (int64_t g = 0; row->queries && g < w.group; g++) {
        int64_t q = head * w.group + g;
        for (int64_t i = 0; i < h->slots; i++)
            x[i] = logit(row->query + ((row->queries - 1) * Hq + q) * w.d, h->keys + i * w.d);
        softmax(x, h->slots, m->sinks ? (double)w.sinks[q] : -INFINITY);
        for (int64_t i = 0; i < m->keep[pair]; i++)
            x[m->kept[pair][i]] = 0;
        for (int64_t i = 0; i < h->slots; i++)
            lost += x[i] / (double)w.group;
    }
    return lost;
}

#endif
