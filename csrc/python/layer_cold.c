/* _core.Layer's cold tier: evicted tokens that can come back. */
#include <string.h>

#include "layer_object.h"
#include "torch_bridge.h"

static Py_ssize_t pairs_of(const layer_object *self)
{
    return (Py_ssize_t)(ra_layer_rows(self->layer) * ra_layer_kv_heads(self->layer));
}

const char ra_keep_cold_doc
    [] = "keep_cold(slots, format)\n--\n\nGives an empty layer a cold tier for so many tokens of each head (negative: "
         "without a limit), format 'same' or 'int8'.";

static PyObject *do_keep_cold(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    long long slots;
    PyObject *same = PyUnicode_FromString("same"), *int8 = PyUnicode_FromString("int8");
    int is_same = same ? PyObject_RichCompareBool(args[1], same, Py_EQ) : -1;
    int is_int8 = int8 ? PyObject_RichCompareBool(args[1], int8, Py_EQ) : -1;
    Py_XDECREF(same);
    Py_XDECREF(int8);
    if (is_same < 0 || is_int8 < 0 || ra_whole_number(args[0], &slots))
        return NULL;
    if (!is_same && !is_int8)
        return PyErr_Format(PyExc_ValueError, "format must be 'same' or 'int8', got %R", args[1]);
    if (self->pool->backend)
        return PyErr_Format(PyExc_ValueError, "a cold tier is kept beside pages in host memory, these lie on a device");
    ra_status status = ra_layer_keep_cold(self->layer, slots, is_int8 ? RA_COLD_INT8 : RA_COLD_SAME);
    if (status == RA_ERR_ARGUMENT)
        return PyErr_Format(PyExc_ValueError, "a cold tier is given once, to an empty layer");
    if (status != RA_OK)
        return ra_raise(status, "keep_cold");
    Py_RETURN_NONE;
}
RA_METHOD(keep_cold, 2, 2)

const char ra_cut_recall_doc[] = "cut_recall(totals)\n--\n\nBefore a cut: puts the cold tokens of the rows whose "
                                 "totals are not negative (int64 "
                                 "[B]) among their slots. Returns 0, or the pages to add before calling again.";

static PyObject *do_cut_recall(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    int64_t missing = 0;
    const int64_t *totals = ra_take(&b, args[0], "totals", 'i', (Py_ssize_t)ra_layer_rows(self->layer), 0);
    if (!totals)
        return NULL;
    ra_status status;
    ra_parallel parallel = ra_torch_parallel();
    Py_BEGIN_ALLOW_THREADS
    status = ra_cut_recall(self->layer, totals, parallel, &missing);
    Py_END_ALLOW_THREADS
    ra_release(&b);
    return ra_pages_or_error(status, missing, "cut_recall");
}
RA_METHOD(cut_recall, 1, 1)

/* A number of each head into int64 [B, H]. */
static PyObject *numbers(layer_object *self, PyObject *object, int64_t (*of)(const ra_layer *, int64_t, int64_t))
{
    ra_buffers b = {.count = 0};
    int64_t *out = ra_take(&b, object, "out", 'i', pairs_of(self), 1), heads = ra_layer_kv_heads(self->layer);
    if (!out)
        return NULL;
    for (Py_ssize_t pair = 0; pair < pairs_of(self); pair++)
        out[pair] = of(self->layer, pair / heads, pair % heads);
    ra_release(&b);
    Py_RETURN_NONE;
}

const char ra_cold_slots_doc[] = "cold_slots(out)\n--\n\nCold tokens of each head into int64 out [B, H].";

static PyObject *do_cold_slots(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    return numbers(self, args[0], ra_cold_slots);
}
RA_METHOD(cold_slots, 1, 1)

const char
    ra_cold_recalled_doc[] = "cold_recalled(out)\n--\n\nTokens that came back at the newest cut into int64 out [B, H].";

static PyObject *do_cold_recalled(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    return numbers(self, args[0], ra_cold_recalled);
}
RA_METHOD(cold_recalled, 1, 1)

const char ra_cold_read_doc
    [] = "cold_read(row, head)\n--\n\n(positions, ascending, as int32 bytes; records as bytes) of a head's cold "
         "tokens.";

static PyObject *do_cold_read(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    int64_t row, head;
    if (ra_row_and_head(self, args, &row, &head))
        return NULL;
    int64_t n = ra_cold_slots(self->layer, row, head);
    const char *positions = (const char *)ra_cold_positions(self->layer, row, head);
    const char *records = ra_cold_records(self->layer, row, head);
    return Py_BuildValue("(y#y#)", positions ? positions : "", (Py_ssize_t)n * (Py_ssize_t)sizeof(int32_t),
                         records ? records : "", (Py_ssize_t)n * (Py_ssize_t)ra_cold_record_bytes(self->layer));
}
RA_METHOD(cold_read, 2, 2)

const char ra_cold_restore_doc
    [] = "cold_restore(row, head, positions, records)\n--\n\nGives a restored row cold tokens: int32 [n] and bytes, as "
         "cold_read has them.";

static PyObject *do_cold_restore(layer_object *self, PyObject *const *args, Py_ssize_t count)
{
    (void)count;
    ra_buffers b = {.count = 0};
    int64_t row, head;
    Py_buffer records;
    if (ra_row_and_head(self, args, &row, &head))
        return NULL;
    Py_ssize_t n = PyObject_Length(args[2]);
    const int32_t *positions = n < 0 ? NULL : ra_take(&b, args[2], "positions", 'p', n, 0);
    if (!positions)
        return NULL;
    if (PyObject_GetBuffer(args[3], &records, PyBUF_SIMPLE)) {
        ra_release(&b);
        return NULL;
    }
    Py_ssize_t each = (Py_ssize_t)ra_cold_record_bytes(self->layer), bytes = records.len;
    bool fits = each ? bytes / each == n && bytes % each == 0 : !n && !bytes;
    ra_status status = fits ? ra_cold_restore(self->layer, row, head, n, positions, records.buf) : RA_ERR_ARGUMENT;
    PyBuffer_Release(&records);
    ra_release(&b);
    if (status == RA_ERR_ARGUMENT)
        return PyErr_Format(PyExc_ValueError,
                            "%zd cold tokens in %zd bytes for row %lld, head %lld: a record has %zd bytes, positions "
                            "ascend, lie within the row and are none of its slots, and no more than the limit",
                            n, bytes, (long long)row, (long long)head, each);
    if (status != RA_OK)
        return ra_raise(status, "cold tokens");
    Py_RETURN_NONE;
}
RA_METHOD(cold_restore, 4, 4)
