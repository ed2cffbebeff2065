/* What the files of _core.Layer share. */
#ifndef RA_LAYER_OBJECT_H
#define RA_LAYER_OBJECT_H

#include "module.h"

typedef struct layer_object {
    PyObject_HEAD ra_layer *layer;
    pool_object *pool;
    dead_layer *grave; /* made with the layer, so that its end needs no memory */
    ra_times times;    /* as of the last call */
    int64_t ahead;     /* tokens a row for which lists make room at a time */
} layer_object;

/* ---- Calls: each is a body between claiming the pool and leaving it ---- */

typedef PyObject *(*ra_call_body)(layer_object *self, PyObject *const *args, Py_ssize_t count);
PyObject *ra_call(PyObject *object, PyObject *const *args, Py_ssize_t count, Py_ssize_t least, Py_ssize_t most,
                  const char *name, ra_call_body body);

/* The method layer_<name> around the body do_<name>. */
#define RA_METHOD(name, least, most)                                                                                   \
    PyObject *layer_##name(PyObject *object, PyObject *const *args, Py_ssize_t count)                                  \
    {                                                                                                                  \
        return ra_call(object, args, count, least, most, #name, do_##name);                                            \
    }

/* ---- Arguments; 0, or -1 with an error set ---- */

int ra_whole_number(PyObject *object, long long *out);
/* A finite number that float32 can hold. */
int ra_finite_number(PyObject *object, const char *name, float *out);
int ra_row_number(const layer_object *self, PyObject *object, int64_t *out);
/* Of args[0] and args[1]. */
int ra_row_and_head(const layer_object *self, PyObject *const *args, int64_t *row, int64_t *head);

/* (prompt, decay, activation, relative, birth), or None for the defaults. */
int ra_parse_stats(PyObject *object, ra_stat_config *out);

/* Buffers of a call; released together. */
typedef struct ra_buffers {
    Py_buffer views[8];
    int count;
} ra_buffers;
/* Memory of one more; NULL with an error set. kind as of ra_buffer. */
void *ra_take(ra_buffers *b, PyObject *object, const char *name, char kind, Py_ssize_t count, int writable);
void ra_release(ra_buffers *b);

/* The number of pages to add before a call can be made again, 0 if it was made; else NULL with an error set. */
PyObject *ra_pages_or_error(ra_status status, int64_t missing, const char *what);

typedef PyObject *ra_method(PyObject *, PyObject *const *, Py_ssize_t);

/* ---- layer_cut.c ---- */

ra_method layer_cut, layer_cut_score, layer_cut_scores, layer_cut_set_scores, layer_cut_allocate, layer_cut_choose,
    layer_cut_kept, layer_cut_apply, layer_cut_abandon, layer_figures, layer_cut_set_totals;
extern const char ra_cut_doc[], ra_cut_score_doc[], ra_cut_scores_doc[], ra_cut_set_scores_doc[], ra_cut_allocate_doc[],
    ra_cut_choose_doc[], ra_cut_kept_doc[], ra_cut_apply_doc[], ra_cut_abandon_doc[], ra_figures_doc[],
    ra_cut_set_totals_doc[];

/* ---- layer_cold.c ---- */

ra_method layer_keep_cold, layer_cut_recall, layer_cold_slots, layer_cold_recalled, layer_cold_read, layer_cold_restore;
extern const char ra_keep_cold_doc[], ra_cut_recall_doc[], ra_cold_slots_doc[], ra_cold_recalled_doc[],
    ra_cold_read_doc[], ra_cold_restore_doc[];

/* ---- layer_centres.c ---- */

ra_method layer_set_centres;
extern const char ra_set_centres_doc[];

/* ---- layer_graph.c ---- */

ra_method layer_prepare, layer_replayed, layer_replayed_cut;
extern const char ra_prepare_doc[], ra_replayed_doc[], ra_replayed_cut_doc[];
PyObject *ra_layer_generation_of(PyObject *object, void *unused);

/* ---- layer_read.c ---- */

ra_method layer_slots, layer_row_slots, layer_table, layer_positions, layer_read, layer_queries, layer_tokens,
    layer_columns, layer_restore, layer_restore_columns, layer_restore_row;
extern const char ra_slots_doc[], ra_row_slots_doc[], ra_table_doc[], ra_positions_doc[], ra_read_doc[],
    ra_queries_doc[], ra_tokens_doc[], ra_columns_doc[], ra_restore_doc[], ra_restore_columns_doc[],
    ra_restore_row_doc[];

#endif
