/* _core.Layer's cut: in one call, or phase by phase with Python in between. */
#include <stdbool.h>
#include <string.h>

#include "layer_object.h"
#include "torch_bridge.h"

static Py_ssize_t rows_of(const layer_object *self) { return (Py_ssize_t)ra_layer_rows(self->layer); }

static Py_ssize_t heads_of(const layer_object *self) { return (Py_ssize_t)ra_layer_kv_heads(self->layer); }

static Py_ssize_t pairs_of(const layer_object *self) { return rows_of(self) * heads_of(self); }

const char
    ra_cut_doc[] = "cut(totals, protect_below, score, route, budgets, lost, cut)\n--\n\n"
                   "Scores, routes and evicts every row whose slots exceed totals[row] (int64 [B]; negative: leave "
                   "alone), all or none. score = (scorer, alpha, threshold, kernel, seed), route = (heads, gamma, lo, "
                   "hi, mu, safeguard), for given heads with their limits, int64 [H] as bytes, for shares with these, "
                   "float64 [H]. Writes budgets int64 [B, H], lost float64 [B, H] of the rows that were cut, and "
                   "cut bool [B]. On a device these may be None: then it is not waited for, and figures() has them "
                   "later. Returns 0, or the pages to add before calling again.";

static PyObject *do_cut(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    ra_cut cut = {0};
    PyObject *result = NULL;
    int64_t missing = 0;
    ra_parallel parallel = ra_torch_parallel();
    if (ra_parse_score_config(args[2], &cut.score) || ra_parse_route_config(args[3], heads_of(self), &cut.route))
        return NULL;
    if (!(cut.totals = ra_take(&b, args[0], "totals", 'i', rows_of(self), 0)) ||
        !(cut.protect_below = ra_take(&b, args[1], "protect_below", 'i', rows_of(self), 0)))
        goto end;
    bool later = self->pool->backend && args[4] == Py_None && args[5] == Py_None && args[6] == Py_None;
    if (!later && (!(cut.budgets = ra_take(&b, args[4], "budgets", 'i', pairs_of(self), 1)) ||
                   !(cut.lost = ra_take(&b, args[5], "lost", 'd', pairs_of(self), 1)) ||
                   !(cut.cut = ra_take(&b, args[6], "cut", 'b', rows_of(self), 1))))
        goto end;
    ra_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ra_layer_cut(self->layer, &cut, parallel, &missing);
    Py_END_ALLOW_THREADS
    result = ra_pages_or_error(status, missing, "cut");
end:
    ra_release(&b);
    return result;
}
RA_METHOD(cut, 7, 7)

const char
    ra_figures_doc[] = "figures(cut, before, after, budgets, lost)\n--\n\nOf the newest cut, which was not waited "
                       "for: cut bool [B]; int64 [B, H] slots before and after it, and budgets, float64 lost "
                       "[B, H] of the rows that were cut.";

static PyObject *do_figures(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    ra_figures figures = {0};
    if (!(figures.cut = ra_take(&b, args[0], "cut", 'b', rows_of(self), 1)) ||
        !(figures.before = ra_take(&b, args[1], "before", 'i', pairs_of(self), 1)) ||
        !(figures.after = ra_take(&b, args[2], "after", 'i', pairs_of(self), 1)) ||
        !(figures.budgets = ra_take(&b, args[3], "budgets", 'i', pairs_of(self), 1)) ||
        !(figures.lost = ra_take(&b, args[4], "lost", 'd', pairs_of(self), 1))) {
        ra_release(&b);
        return NULL;
    }
    ra_status status = ra_layer_figures(self->layer, &figures);
    ra_release(&b);
    if (status == RA_ERR_ARGUMENT)
        return PyErr_Format(PyExc_ValueError,
                            "figures: the layer was not cut yet or with other rows, or is not on a device");
    if (status != RA_OK)
        return ra_raise(status, "figures");
    Py_RETURN_NONE;
}
RA_METHOD(figures, 5, 5)

const char ra_cut_score_doc
    [] = "cut_score(totals, score, cut, protect_below=None)\n--\n\nBegins a cut: scores every row whose slots exceed "
         "totals[row], score as in cut or None (zeros, to be set), and writes cut bool [B].";

static PyObject *do_cut_score(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    ra_buffers b = {.count = 0};
    ra_score_config config = {0};
    bool *cut = NULL, scored = args[1] != Py_None;
    if (scored && ra_parse_score_config(args[1], &config))
        return NULL;
    const int64_t *totals = ra_take(&b, args[0], "totals", 'i', rows_of(self), 0), *protect = NULL;
    bool protects = count > 3 && args[3] != Py_None;
    if (totals && protects)
        protect = ra_take(&b, args[3], "protect_below", 'i', rows_of(self), 0);
    if (totals && (protect || !protects))
        cut = ra_take(&b, args[2], "cut", 'b', rows_of(self), 1);
    if (!cut) {
        ra_release(&b);
        return NULL;
    }
    config.protect_below = protect;
    ra_status status;
    ra_parallel parallel = ra_torch_parallel();
    Py_BEGIN_ALLOW_THREADS
    status = ra_cut_score(self->layer, totals, scored ? &config : NULL, cut, parallel);
    Py_END_ALLOW_THREADS
    ra_release(&b);
    if (status != RA_OK)
        return ra_raise(status, "scores");
    Py_RETURN_NONE;
}
RA_METHOD(cut_score, 3, 4)

const char ra_cut_set_totals_doc[] = "cut_set_totals(totals)\n--\n\nOther totals int64 [B] for the rows that are being "
                                     "cut; those that are not over theirs are not cut any more.";

static PyObject *do_cut_set_totals(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    const int64_t *totals = ra_take(&b, args[0], "totals", 'i', rows_of(self), 0);
    if (!totals)
        return NULL;
    ra_status status = ra_cut_set_totals(self->layer, totals);
    ra_release(&b);
    if (status != RA_OK)
        return ra_raise(status, "no cut has begun");
    Py_RETURN_NONE;
}
RA_METHOD(cut_set_totals, 1, 1)

/* Scores of a row lie in one float32 array: head after head, older tokens only. Copies them to or from it. */
static PyObject *copy_scores(layer_object *self, PyObject *const *args, bool set)
{
    ra_buffers b = {.count = 0};
    int64_t row, heads = ra_layer_kv_heads(self->layer), n = 0;
    Py_ssize_t all = 0;
    if (ra_row_number(self, args[0], &row))
        return NULL;
    for (int64_t head = 0; head < heads; head++, all += (Py_ssize_t)n)
        if (!ra_cut_scores(self->layer, row, head, &n))
            return PyErr_Format(PyExc_ValueError, "row %lld is not being cut", (long long)row);
    float *flat = ra_take(&b, args[1], "scores", 'f', all, !set);
    if (!flat)
        return NULL;
    for (int64_t head = 0; head < heads; head++, flat += n) {
        float *scores = ra_cut_scores(self->layer, row, head, &n);
        memcpy(set ? scores : flat, set ? flat : scores, (size_t)n * sizeof *flat);
    }
    ra_release(&b);
    Py_RETURN_NONE;
}

const char
    ra_cut_scores_doc[] = "cut_scores(row, out)\n--\n\nScores of a row that is being cut: of each head's older tokens, "
                          "head after head, into float32 out.";

static PyObject *do_cut_scores(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    return copy_scores(self, args, false);
}
RA_METHOD(cut_scores, 2, 2)

const char ra_cut_set_scores_doc[] = "cut_set_scores(row, scores)\n--\n\nPuts others in their place.";

static PyObject *do_cut_set_scores(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    return copy_scores(self, args, true);
}
RA_METHOD(cut_set_scores, 2, 2)

const char
    ra_cut_allocate_doc[] = "cut_allocate(protect_below, route, budgets)\n--\n\nHead budgets of the rows that are "
                            "being cut, into int64 budgets [B, H].";

static PyObject *do_cut_allocate(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    ra_route_config route;
    int64_t *budgets = NULL;
    if (ra_parse_route_config(args[1], heads_of(self), &route))
        return NULL;
    const int64_t *protect = ra_take(&b, args[0], "protect_below", 'i', rows_of(self), 0);
    if (protect)
        budgets = ra_take(&b, args[2], "budgets", 'i', pairs_of(self), 1);
    ra_status status = budgets ? ra_cut_allocate(self->layer, protect, &route, budgets) : RA_OK;
    ra_release(&b);
    if (!budgets)
        return NULL;
    if (status != RA_OK)
        return ra_raise(status, "budgets");
    Py_RETURN_NONE;
}
RA_METHOD(cut_allocate, 3, 3)

const char ra_cut_choose_doc
    [] = "cut_choose(protect_below, budgets, lost)\n--\n\nChooses the slots that stay, by budgets int64 "
         "[B, H]; writes lost float64 [B, H] of the rows that are being cut.";

static PyObject *do_cut_choose(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    const int64_t *budgets = NULL;
    double *lost = NULL;
    const int64_t *protect = ra_take(&b, args[0], "protect_below", 'i', rows_of(self), 0);
    if (protect)
        budgets = ra_take(&b, args[1], "budgets", 'i', pairs_of(self), 0);
    if (budgets)
        lost = ra_take(&b, args[2], "lost", 'd', pairs_of(self), 1);
    if (!lost) {
        ra_release(&b);
        return NULL;
    }
    ra_status status;
    ra_parallel parallel = ra_torch_parallel();
    Py_BEGIN_ALLOW_THREADS
    status = ra_cut_choose(self->layer, protect, budgets, lost, parallel);
    Py_END_ALLOW_THREADS
    ra_release(&b);
    if (status != RA_OK)
        return ra_raise(status, status == RA_ERR_ARGUMENT ? "no cut has begun, or budgets below the window" : "scores");
    Py_RETURN_NONE;
}
RA_METHOD(cut_choose, 3, 3)

const char ra_cut_kept_doc
    [] = "cut_kept(row, head)\n--\n\nThe slots that a head of a row that is being cut keeps, ascending, as "
         "int32 bytes.";

static PyObject *do_cut_kept(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    int64_t row, head, n;
    if (ra_row_and_head(self, args, &row, &head))
        return NULL;
    const int32_t *kept = ra_cut_kept(self->layer, row, head, &n);
    if (!kept)
        return PyErr_Format(PyExc_ValueError, "row %lld is not being cut, or nothing was chosen yet", (long long)row);
    return PyBytes_FromStringAndSize((const char *)kept, (Py_ssize_t)n * (Py_ssize_t)sizeof *kept);
}
RA_METHOD(cut_kept, 2, 2)

const char
    ra_cut_apply_doc[] = "cut_apply()\n--\n\nEvicts what was not chosen. Returns 0, or the pages to add before calling "
                         "again.";

static PyObject *do_cut_apply(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)args, (void)count;
    int64_t missing = 0;
    ra_status status;
    ra_parallel parallel = ra_torch_parallel();
    Py_BEGIN_ALLOW_THREADS
    status = ra_cut_apply(self->layer, parallel, &missing);
    Py_END_ALLOW_THREADS
    return ra_pages_or_error(status, missing, "no cut has begun, or nothing was chosen");
}
RA_METHOD(cut_apply, 0, 0)

const char ra_cut_abandon_doc[] = "cut_abandon()\n--\n\nForgets a cut that was begun.";

static PyObject *do_cut_abandon(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)args, (void)count;
    ra_cut_abandon(self->layer);
    Py_RETURN_NONE;
}
RA_METHOD(cut_abandon, 0, 0)
