/* _core.Layer: what its heads hold, read and put back. */
#include "layer_object.h"

/* What is read must be as of now. */
static int wait_for(layer_object *self)
{
    ra_status status = ra_layer_wait(self->layer);
    if (status == RA_OK)
        return 0;
    ra_raise(status, "read");
    return -1;
}

const char ra_slots_doc[] = "slots(out)\n--\n\nSlots kept by each head into int64 out [B, H].";

static PyObject *do_slots(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    if (wait_for(self))
        return NULL;
    int64_t pairs = ra_layer_rows(self->layer) * ra_layer_kv_heads(self->layer);
    int64_t *out = ra_take(&b, args[0], "out", 'i', (Py_ssize_t)pairs, 1);
    if (!out)
        return NULL;
    for (int64_t i = 0; i < pairs; i++)
        out[i] = ra_layer_slots(self->layer)[i];
    ra_release(&b);
    Py_RETURN_NONE;
}
RA_METHOD(slots, 1, 1)

static int64_t slots_of(const layer_object *self, int64_t row, int64_t head)
{
    return ra_layer_slots(self->layer)[row * ra_layer_kv_heads(self->layer) + head];
}

const char ra_table_doc
    [] = "table()\n--\n\n(M, int32 bytes of [B, H, M]): page numbers of each head, as many as its slots fill.";

static PyObject *do_table(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)args, (void)count;
    if (wait_for(self))
        return NULL;
    int64_t pages = ra_layer_table_pages(self->layer);
    int64_t numbers = pages * ra_layer_rows(self->layer) * ra_layer_kv_heads(self->layer);
    return Py_BuildValue("(Ly#)", (long long)pages, (const char *)ra_layer_table(self->layer),
                         (Py_ssize_t)numbers * (Py_ssize_t)sizeof(int32_t));
}
RA_METHOD(table, 0, 0)

const char ra_positions_doc[] = "positions(row, head)\n--\n\nPositions of a head's slots, ascending, as int32 bytes.";

static PyObject *do_positions(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    int64_t row, head;
    if (wait_for(self))
        return NULL;
    if (ra_row_and_head(self, args, &row, &head))
        return NULL;
    return PyBytes_FromStringAndSize((const char *)ra_layer_positions(self->layer, row, head),
                                     (Py_ssize_t)slots_of(self, row, head) * (Py_ssize_t)sizeof(int32_t));
}
RA_METHOD(positions, 2, 2)

const char
    ra_read_doc[] = "read(row, head, values, out)\n--\n\nA head's keys (values if true) into float32 out [N, D].";

static PyObject *do_read(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    int64_t row, head;
    if (wait_for(self))
        return NULL;
    if (ra_row_and_head(self, args, &row, &head))
        return NULL;
    int values = PyObject_IsTrue(args[2]);
    if (values < 0)
        return NULL;
    float *out = ra_take(&b, args[3], "out", 'f', (Py_ssize_t)(slots_of(self, row, head) * self->pool->head_dim), 1);
    if (!out)
        return NULL;
    ra_status status = ra_layer_read(self->layer, row, head, values, out);
    ra_release(&b);
    if (status != RA_OK)
        return ra_raise(status, "read");
    Py_RETURN_NONE;
}
RA_METHOD(read, 4, 4)

const char ra_queries_doc[] = "queries(row)\n--\n\n(n, float32 bytes of [Hq, n, D]): the row's newest queries.";

static PyObject *do_queries(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    int64_t row;
    if (wait_for(self))
        return NULL;
    if (ra_row_number(self, args[0], &row))
        return NULL;
    int64_t n = ra_layer_queries(self->layer, row, NULL);
    Py_ssize_t floats = (Py_ssize_t)(n * ra_layer_query_heads(self->layer) * self->pool->head_dim);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, floats * (Py_ssize_t)sizeof(float));
    if (!bytes)
        return NULL;
    ra_layer_queries(self->layer, row, (float *)(void *)PyBytes_AsString(bytes));
    return Py_BuildValue("(LN)", (long long)n, bytes);
}
RA_METHOD(queries, 1, 1)

const char ra_tokens_doc[] = "tokens(row)\n--\n\nTokens that the row was given, evicted ones included.";

static PyObject *do_tokens(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    int64_t row;
    return ra_row_number(self, args[0], &row) ? NULL : PyLong_FromLongLong(ra_layer_tokens(self->layer, row));
}
RA_METHOD(tokens, 1, 1)

const char
    ra_row_slots_doc[] = "row_slots(out)\n--\n\nSlots of all heads of each row into int64 out [B]; on a device no "
                         "fewer than they are, for it is not waited for.";

static PyObject *do_row_slots(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    int64_t rows = ra_layer_rows(self->layer);
    int64_t *out = ra_take(&b, args[0], "out", 'i', (Py_ssize_t)rows, 1);
    if (!out)
        return NULL;
    for (int64_t row = 0; row < rows; row++)
        out[row] = ra_layer_row_slots(self->layer, row);
    ra_release(&b);
    Py_RETURN_NONE;
}
RA_METHOD(row_slots, 1, 1)

const char ra_columns_doc
    [] = "columns(row, head)\n--\n\n(fields, int32 bytes of [fields, N]): what statistics have gathered of each slot "
         "and could not compute again.";

static PyObject *do_columns(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    int64_t row, head;
    if (wait_for(self))
        return NULL;
    if (ra_row_and_head(self, args, &row, &head))
        return NULL;
    int64_t fields = ra_layer_columns(self->layer, row, head, NULL);
    Py_ssize_t bytes = (Py_ssize_t)(fields * slots_of(self, row, head)) * (Py_ssize_t)sizeof(int32_t);
    PyObject *made = PyBytes_FromStringAndSize(NULL, bytes);
    if (!made)
        return NULL;
    ra_layer_columns(self->layer, row, head, (int32_t *)(void *)PyBytes_AsString(made));
    return Py_BuildValue("(LN)", (long long)fields, made);
}
RA_METHOD(columns, 2, 2)

/* ---- Restoring ---- */

const char ra_restore_doc
    [] = "restore(row, head, positions, keys, values)\n--\n\nFills a head of an empty row: int32 [N], float32 "
         "[N, D] twice. Returns 0, or the pages to add before calling again.";

static PyObject *do_restore(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    int64_t row, head, missing = 0;
    if (ra_row_and_head(self, args, &row, &head))
        return NULL;
    Py_ssize_t n = PyObject_Length(args[2]), d = (Py_ssize_t)self->pool->head_dim;
    if (n < 0)
        return NULL;
    const int32_t *positions = ra_take(&b, args[2], "positions", 'p', n, 0);
    const float *keys = positions ? ra_take(&b, args[3], "keys", 'f', n * d, 0) : NULL;
    const float *values = keys ? ra_take(&b, args[4], "values", 'f', n * d, 0) : NULL;
    PyObject *result = NULL;
    if (values) {
        ra_status status = ra_layer_restore(self->layer, row, head, n, positions, keys, values, &missing);
        result = ra_pages_or_error(status, missing, "restore");
    }
    ra_release(&b);
    return result;
}
RA_METHOD(restore, 5, 5)

const char
    ra_restore_columns_doc[] = "restore_columns(row, head, columns)\n--\n\nOf a restored head, int32 [fields * N].";

static PyObject *do_restore_columns(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    int64_t row, head;
    if (wait_for(self))
        return NULL;
    if (ra_row_and_head(self, args, &row, &head))
        return NULL;
    int64_t fields = ra_layer_columns(self->layer, row, head, NULL);
    const int32_t *columns = ra_take(&b, args[2], "columns", 'p', (Py_ssize_t)(fields * slots_of(self, row, head)), 0);
    if (!columns)
        return NULL;
    ra_status status = ra_layer_restore_columns(self->layer, row, head, columns);
    ra_release(&b);
    if (status != RA_OK)
        return PyErr_Format(PyExc_ValueError, "columns of row %lld, head %lld hold numbers that no step leaves",
                            (long long)row, (long long)head);
    Py_RETURN_NONE;
}
RA_METHOD(restore_columns, 3, 3)

const char ra_restore_row_doc
    [] = "restore_row(row, tokens, count, queries, scale, softcap)\n--\n\nThe rest of a restored row: tokens "
         "given, its newest `count` queries float32 [Hq, count, D], scale and soft-capping of logits.";

static PyObject *do_restore_row(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    int64_t row;
    long long tokens, n;
    float scale, softcap;
    if (ra_row_number(self, args[0], &row) || ra_whole_number(args[1], &tokens) || ra_whole_number(args[2], &n) ||
        ra_finite_number(args[4], "scale", &scale) || ra_finite_number(args[5], "softcap", &softcap))
        return NULL;
    if (n < 0 || n > ra_layer_window(self->layer))
        return PyErr_Format(PyExc_ValueError, "a row keeps 0 to %lld queries, got %lld",
                            (long long)ra_layer_window(self->layer), n);
    Py_ssize_t floats = (Py_ssize_t)(n * ra_layer_query_heads(self->layer) * self->pool->head_dim);
    const float *queries = ra_take(&b, args[3], "queries", 'f', floats, 0);
    if (!queries)
        return NULL;
    ra_status status = ra_layer_restore_row(self->layer, row, tokens, queries, n, scale, softcap);
    ra_release(&b);
    if (status != RA_OK)
        return ra_raise(status, "restore_row");
    Py_RETURN_NONE;
}
RA_METHOD(restore_row, 6, 6)
