/* Where a pool's pages lie and what computes on them. core/ does the arithmetic that a host can do without looking at
 * what heads hold; a backend does the rest. */
#ifndef RA_BACKEND_H
#define RA_BACKEND_H

#include "layer.h"
#include "operators.h"

/* What a backend adds that keeps pages and lists in memory of its own. The host's lists then are as old as the last pull,
 * `layer->slots` bounds from above what heads hold, and steps and cuts do not wait for the device. */
typedef struct ra_device {
    int type;                              /* of the memory, as DLPack counts */
    ra_status (*pool_open)(ra_pool *pool); /* pool->device_id and ->stream are set */
    void (*pool_close)(ra_pool *pool);
    void (*layer_close)(ra_layer *layer);
    /* Memory for steps of `tokens` new tokens of a row after which heads have at most `slots`, and for the cuts after them. */
    ra_status (*reserve)(ra_layer *layer, int64_t tokens, int64_t slots);
    /* The host's lists of the pool and, where there is one, of the layer become what the device's are. Waits. */
    ra_status (*pull)(ra_pool *pool, ra_layer *layer);
    /* Bytes of pages to and from the host, and from page to page. In the order of the stream; down waits. */
    ra_status (*up)(ra_pool *pool, void *page, const void *from, size_t bytes);
    ra_status (*down)(ra_pool *pool, void *to, const void *page, size_t bytes);
    ra_status (*move)(ra_pool *pool, void *to, const void *from, size_t bytes);
    /* A whole cut without waiting; `totals` and the rest are good, pages are there. Its figures come by `figures`. */
    ra_status (*cut)(ra_layer *layer, const ra_cut *cut);
    /* Of the newest cut; before and after may be NULL. Waits for it. */
    ra_status (*figures)(ra_layer *layer, const ra_figures *figures);
    /* The figures of the newest cut are here: where nothing but steps came after it, bounds of slots become exact. */
    bool (*fold)(ra_layer *layer);
    /* What a kernel found wrong since the last call that reported it; does not wait. */
    ra_status (*fault)(ra_layer *layer);
    /* The pool's next calls come on another stream, after what is under way on the one before. */
    ra_status (*set_stream)(ra_pool *pool, void *stream);
    /* Of a graph: whether the pool's stream is being captured; the device's lists become the host's where those are newer;
     * totals and protect_below (may be NULL) of the cuts to come, and whether they are what was sent last; a number that is
     * another one once a captured graph refers to memory that is gone. */
    bool (*capturing)(const ra_pool *pool);
    ra_status (*push)(ra_layer *layer);
    ra_status (*send)(ra_layer *layer, const int64_t *totals, const int64_t *protect_below);
    bool (*has_sent)(const ra_layer *layer, const int64_t *totals, const int64_t *protect_below);
    void (*cut_again)(ra_layer *layer); /* a cut was replayed: its figures are wanted */
    int64_t (*generation)(const ra_layer *layer);
    const ra_operators *operators;
} ra_device;

struct ra_backend {
    const char *name;
    /* Whether it has a scorer and gathers its statistics. NULL: it has all. */
    bool (*supports)(const ra_scorer *scorer);
    /* Bytes of scratch for a step, and for the cut after it, where rows have at most `tokens` new tokens and heads at most
     * `slots` slots afterwards. */
    size_t (*step_bytes)(const ra_layer *layer, int64_t tokens, int64_t slots);
    /* Appends, observes, attends. Arguments are good, pages and scratch are there. */
    ra_status (*step)(ra_layer *layer, const ra_step *step, ra_parallel parallel);
    /* Scores of the rows in layer->cut. */
    ra_status (*score)(ra_layer *layer, const ra_score_config *config, ra_parallel parallel);
    /* layer->cut.kept and .keep, and lost (may be NULL), by budgets. */
    ra_status (*choose)(ra_layer *layer, const int64_t *protect_below, const int64_t *budgets, double *lost,
                        ra_parallel parallel);
    /* Pages that `apply` takes before it gives others back. */
    int64_t (*apply_pages)(const ra_layer *layer);
    ra_status (*apply)(ra_layer *layer, ra_parallel parallel);
    const ra_device *device; /* NULL: pages and lists lie in host memory */
};

extern const ra_backend ra_backend_cpu;

/* Name of the capsule in which a module gives _core its backend; another number for another layout of these structs. */
#define RA_BACKEND_CAPSULE "reasonalloc.backend.6"

/* ---- lists.c: which memory's lists are current. On a backend without a device they do nothing. ---- */

/* The host's lists, brought up to date, are about to change: of the pool alone, of a layer too, of all layers. */
ra_status ra_pool_write(ra_pool *pool);
ra_status ra_lists_write(ra_layer *layer);
ra_status ra_lists_write_all(ra_pool *pool);
/* They have changed: bounds are exact. */
void ra_lists_changed(ra_layer *layer);
/* A layer is about to be freed. */
void ra_lists_close(ra_layer *layer);
/* The device has made a step or a cut: counts and bounds follow. */
void ra_lists_stepped(ra_layer *layer, const int64_t *begin, int64_t tokens);
void ra_lists_cut(ra_layer *layer, const int64_t *totals);
/* It has made the cut that the host chose: they are exact. */
void ra_lists_applied(ra_layer *layer);
/* Nothing that is captured now would have to be copied first. */
bool ra_lists_fit_capture(const ra_layer *layer);
/* Most pages that the layer has after a step of these tokens. */
int64_t ra_lists_pages(const ra_layer *layer, const int64_t *begin, int64_t tokens);

#endif
