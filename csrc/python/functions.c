/* Functions of the module without an object: budgets, dense scores, instruction sets. */
#include "layers_cut.h"
#include "module.h"
#include "torch_bridge.h"

#include "backend.h" /* after Python.h */

PyObject *ra_raise(ra_status status, const char *what)
{
    PyObject *type = PyExc_ValueError;
    if (status == RA_ERR_NO_MEMORY || status == RA_ERR_NO_PAGES)
        type = PyExc_MemoryError;
    else if (status == RA_ERR_DTYPE)
        type = PyExc_TypeError;
    else if (status == RA_ERR_DEVICE || status == RA_ERR_CAPTURE)
        type = PyExc_RuntimeError;
    return PyErr_Format(type, "%s: %s", what, ra_status_text(status));
}

int ra_parse_score_config(PyObject *tuple, ra_score_config *out)
{
    const char *scorer;
    double alpha, threshold;
    long long kernel;
    unsigned long long seed;
    double recent = 0;
    int published_code = 0, average = 0;
    long long n_large = -1, n_sink = 0, span = 0;
    if (!PyTuple_Check(tuple)) {
        PyErr_Format(PyExc_TypeError, "score is a tuple (scorer, alpha, threshold, kernel, seed, ...), got %R", tuple);
        return -1;
    }
    if (!PyArg_ParseTuple(tuple,
                          "sddLK|dppLLL;score is (scorer, alpha, threshold, kernel, seed, recent, "
                          "published_code, average, n_large, n_sink, span)",
                          &scorer, &alpha, &threshold, &kernel, &seed, &recent, &published_code, &average, &n_large,
                          &n_sink, &span))
        return -1;
    *out = (ra_score_config){.scorer = ra_scorer_find(scorer),
                             .alpha = (float)alpha,
                             .threshold = (float)threshold,
                             .kernel = kernel,
                             .seed = seed,
                             .recent = (float)recent,
                             .published_code = published_code != 0,
                             .average = average != 0,
                             .n_large = n_large,
                             .n_sink = n_sink,
                             .span = span};
    if (!out->scorer) {
        PyErr_Format(PyExc_ValueError, "scorer '%s' is unknown", scorer);
        return -1;
    }
    return 0;
}

int ra_parse_route_config(PyObject *tuple, Py_ssize_t layer_heads, ra_route_config *out)
{
    int heads;
    PyObject *per_head = NULL;
    if (!PyTuple_Check(tuple)) {
        PyErr_Format(PyExc_TypeError, "route is a tuple (heads, gamma, lo, hi, mu, safeguard), got %R", tuple);
        return -1;
    }
    if (!PyArg_ParseTuple(tuple,
                          "iddddd|S;route is (heads, gamma, lo, hi, mu, safeguard), and limits or shares as bytes",
                          &heads, &out->gamma, &out->lo, &out->hi, &out->mu, &out->safeguard, &per_head))
        return -1;
    out->heads = (ra_heads)heads;
    out->limits = NULL;
    out->shares = NULL;
    if (!per_head)
        return 0;
    Py_ssize_t bytes = PyBytes_Size(per_head);
    bool shares = out->heads == RA_HEADS_SHARES;
    if (bytes != layer_heads * (Py_ssize_t)sizeof *out->limits) {
        PyErr_Format(PyExc_ValueError, "%s, one for each of %zd heads, got %zd bytes",
                     shares ? "shares are float64" : "limits are int64", layer_heads, bytes);
        return -1;
    }
    const void *memory = PyBytes_AsString(per_head); /* the tuple's, aligned to 8 */
    if (shares)
        out->shares = memory;
    else
        out->limits = memory;
    return 0;
}

static PyObject *budgets_error(ra_status status, const char *infeasible, long long total)
{
    if (status == RA_ERR_INFEASIBLE)
        return PyErr_Format(PyExc_ValueError, infeasible, total);
    return ra_raise(status, "budgets");
}

PyDoc_STRVAR(robustify_doc,
             "robustify(x, total, gamma, lo, hi, floor, out)\n--\n\nfloat64 x -> int64 out; ra_robustify.");

static PyObject *robustify(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *x_object, *out_object;
    long long total;
    double gamma, lo, hi, floor;
    if (!PyArg_ParseTuple(args, "OLddddO:robustify", &x_object, &total, &gamma, &lo, &hi, &floor, &out_object))
        return NULL;
    Py_ssize_t n = PyObject_Length(x_object);
    Py_buffer x, out;
    if (n < 0 || ra_buffer(x_object, "x", 'd', n, 0, &x))
        return NULL;
    if (ra_buffer(out_object, "out", 'i', n, 1, &out)) {
        PyBuffer_Release(&x);
        return NULL;
    }
    ra_status status = ra_robustify(x.buf, n, total, gamma, lo, hi, floor, out.buf);
    PyBuffer_Release(&x);
    PyBuffer_Release(&out);
    if (status != RA_OK)
        return budgets_error(status, "the floor of every share together exceeds the total of %lld", total);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(route_doc, "route(scores, counts, window, total, route, out)\n--\n\nfloat32 scores head after head, int64 "
                        "counts -> int64 out; ra_route.");

static PyObject *route(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *objects[4];
    long long window, total;
    ra_route_config config;
    if (!PyArg_ParseTuple(args, "OOLLOO:route", &objects[0], &objects[1], &window, &total, &objects[2], &objects[3]))
        return NULL;
    Py_ssize_t heads = PyObject_Length(objects[1]), all = PyObject_Length(objects[0]);
    Py_buffer scores, counts, out;
    PyObject *result = NULL;
    if (heads < 0 || all < 0 || ra_parse_route_config(objects[2], heads, &config) ||
        ra_buffer(objects[0], "scores", 'f', all, 0, &scores))
        return NULL;
    if (ra_buffer(objects[1], "counts", 'i', heads, 0, &counts))
        goto release_scores;
    if (ra_buffer(objects[3], "out", 'i', heads, 1, &out))
        goto release_counts;
    const float **pointers = PyMem_Malloc((size_t)(heads ? heads : 1) * sizeof *pointers);
    if (!pointers) {
        PyErr_NoMemory();
        goto release_out;
    }
    const int64_t *count = counts.buf;
    int64_t at = 0;
    for (Py_ssize_t h = 0; h < heads && at >= 0; h++) {
        pointers[h] = (const float *)scores.buf + at;
        at = count[h] < 0 || count[h] > all - at ? -1 : at + count[h];
    }
    if (at != all) {
        PyErr_SetString(PyExc_ValueError, "counts must be >= 0 and sum to the number of scores");
    } else {
        ra_status status = ra_route(pointers, count, heads, window, total, &config, out.buf);
        if (status == RA_OK)
            result = Py_NewRef(Py_None);
        else
            budgets_error(status, "a total of %lld is below the window of every head together", total);
    }
    PyMem_Free(pointers);
release_out:
    PyBuffer_Release(&out);
release_counts:
    PyBuffer_Release(&counts);
release_scores:
    PyBuffer_Release(&scores);
    return result;
}

PyDoc_STRVAR(select_doc, "select(scores, keep, protect, out)\n--\n\nfloat32 scores -> int64 out [keep]; ra_select.");

static PyObject *select_(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *scores_object, *out_object;
    long long keep, protect;
    if (!PyArg_ParseTuple(args, "OLLO:select", &scores_object, &keep, &protect, &out_object))
        return NULL;
    Py_ssize_t n = PyObject_Length(scores_object);
    Py_buffer scores, out;
    if (n < 0 || ra_buffer(scores_object, "scores", 'f', n, 0, &scores))
        return NULL;
    if (ra_buffer(out_object, "out", 'i', (Py_ssize_t)keep, 1, &out)) {
        PyBuffer_Release(&scores);
        return NULL;
    }
    ra_status status = ra_select(scores.buf, n, keep, protect, out.buf);
    PyBuffer_Release(&scores);
    PyBuffer_Release(&out);
    if (status != RA_OK)
        return ra_raise(status, "select");
    Py_RETURN_NONE;
}

PyDoc_STRVAR(score_dense_doc, "score_dense(queries, group, window, keys, tokens, head_dim, score, out, importance, "
                              "redundancy)\n--\n\nfloat32 arrays; ra_score_dense.");

static PyObject *score_dense(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *objects[6];
    long long group, window, tokens, d;
    ra_score_config config;
    if (!PyArg_ParseTuple(args, "OLLOLLOOOO:score_dense", &objects[0], &group, &window, &objects[1], &tokens, &d,
                          &objects[2], &objects[3], &objects[4], &objects[5]) ||
        ra_parse_score_config(objects[2], &config))
        return NULL;
    long long most = PY_SSIZE_T_MAX / 64;
    if (group < 1 || window < 1 || tokens < window || d < 1 || d > RA_MAX_HEAD_DIM || tokens > most / d ||
        group > most / d / window)
        return PyErr_Format(PyExc_ValueError,
                            "group, window and head size must be at least 1 and tokens at least the window, got group "
                            "%lld, window %lld, tokens %lld, head size %lld",
                            group, window, tokens, d);
    const struct {
        int object;
        const char *name;
        Py_ssize_t count;
        int writable;
    } wanted[5] = {{0, "queries", (Py_ssize_t)(group * window * d), 0},
                   {1, "keys", (Py_ssize_t)(tokens * d), 0},
                   {3, "out", (Py_ssize_t)(tokens - window), 1},
                   {4, "importance", (Py_ssize_t)(tokens - window), 1},
                   {5, "redundancy", (Py_ssize_t)tokens, 1}};
    Py_buffer buffers[5];
    int open = 0;
    PyObject *result = NULL;
    for (; open < 5; open++)
        if (ra_buffer(objects[wanted[open].object], wanted[open].name, 'f', wanted[open].count, wanted[open].writable,
                      &buffers[open]))
            goto cleanup;
    ra_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ra_score_dense(buffers[0].buf, group, window, buffers[1].buf, tokens, d, &config, buffers[2].buf,
                            buffers[3].buf, buffers[4].buf);
    Py_END_ALLOW_THREADS
    if (status == RA_OK)
        result = Py_NewRef(Py_None);
    else
        ra_raise(status, "queries or keys");
cleanup:
    while (open--)
        PyBuffer_Release(&buffers[open]);
    return result;
}

static PyObject *isa(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyUnicode_FromString(ra_isa());
}

static PyObject *set_isa(PyObject *module, PyObject *name)
{
    (void)module;
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(name, &size);
    if (!text)
        return NULL;
    if (ra_set_isa(text) != RA_OK)
        return PyErr_Format(PyExc_ValueError, "instruction set %R is not available here", name);
    Py_RETURN_NONE;
}

static PyObject *register_torch_ops(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *capsule = Py_None;
    const ra_backend *backend = NULL;
    const char *error = NULL;
    if (!PyArg_ParseTuple(args, "|O:register_torch_ops", &capsule) ||
        (capsule != Py_None && !(backend = PyCapsule_GetPointer(capsule, RA_BACKEND_CAPSULE))))
        return NULL;
    if (ra_torch_register(backend, &error))
        return PyErr_Format(PyExc_ImportError, "torch operators: %s", error ? error : "unknown error");
    Py_RETURN_NONE;
}

PyDoc_STRVAR(read_probe_doc,
             "read_bandwidth_probe(buffer, streamed=False)\n--\n\n"
             "Reads a buffer, to its last whole 512 bytes, with the widest loads: in one stream or in 8 "
             "side by side.");

static PyObject *read_probe(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *object;
    int streamed = 0;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, "O|p:read_bandwidth_probe", &object, &streamed) ||
        PyObject_GetBuffer(object, &buffer, PyBUF_SIMPLE))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    ra_read_probe(buffer.buf, (size_t)buffer.len, streamed);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&buffer);
    Py_RETURN_NONE;
}

static PyObject *allocations(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromLongLong(ra_allocations());
}

static PyObject *names_of(const char *(*name)(size_t index))
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && name(i); i++) {
        PyObject *text = PyUnicode_FromString(name(i));
        if (!text || PyList_Append(list, text))
            Py_CLEAR(list);
        Py_XDECREF(text);
    }
    return list;
}

static PyObject *isas(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return names_of(ra_isa_available);
}

static PyObject *scorers(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return names_of(ra_scorer_name);
}

static PyObject *formats(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return names_of(ra_format_name);
}

PyDoc_STRVAR(supports_doc, "supports(scorer, backend=None)\n--\n\nWhether a backend, as Pool takes it, has a scorer.");

static PyObject *supports(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    PyObject *capsule = Py_None;
    if (!PyArg_ParseTuple(args, "s|O:supports", &name, &capsule))
        return NULL;
    const ra_scorer *scorer = ra_scorer_find(name);
    if (!scorer)
        return PyErr_Format(PyExc_ValueError, "scorer '%s' is unknown", name);
    const ra_backend *backend = NULL;
    if (capsule != Py_None && !(backend = PyCapsule_GetPointer(capsule, RA_BACKEND_CAPSULE)))
        return NULL;
    return PyBool_FromLong(ra_backend_supports(backend, scorer));
}

PyMethodDef ra_functions[] = {
    {"allocations", allocations, METH_NOARGS, "allocations()\n--\n\nAllocations of memory by the C core so far."},
    {"scorers", scorers, METH_NOARGS, "scorers()\n--\n\nNames of the scorers."},
    {"supports", supports, METH_VARARGS, supports_doc},
    {"formats", formats, METH_NOARGS, "formats()\n--\n\nNames of the page formats."},
    {"robustify", robustify, METH_VARARGS, robustify_doc},
    {"route", route, METH_VARARGS, route_doc},
    {"route_layers", ra_py_route_layers, METH_VARARGS, ra_py_route_layers_doc},
    {"cut_route_layers", ra_py_cut_route_layers, METH_VARARGS, ra_py_cut_route_layers_doc},
    {"cut_apply_layers", ra_py_cut_apply_layers, METH_O, ra_py_cut_apply_layers_doc},
    {"select", select_, METH_VARARGS, select_doc},
    {"score_dense", score_dense, METH_VARARGS, score_dense_doc},
    {"read_bandwidth_probe", read_probe, METH_VARARGS, read_probe_doc},
    {"isa", isa, METH_NOARGS, "isa()\n--\n\nThe instruction set in use."},
    {"set_isa", set_isa, METH_O, "set_isa(name)\n--\n\nSwitches the instruction set."},
    {"isas", isas, METH_NOARGS, "isas()\n--\n\nThe instruction sets that this machine has."},
    {"register_torch_ops", register_torch_ops, METH_VARARGS,
     "register_torch_ops(backend=None)\n--\n\nRegisters torch.ops.reasonalloc; torch must have been imported. backend: "
     "what computes on CUDA tensors."},
    {NULL, NULL, 0, NULL},
};
