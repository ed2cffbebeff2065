/* The CUDA backend's insides, shared by its host files. */
#ifndef RA_CUDA_BACKEND_H
#define RA_CUDA_BACKEND_H

#include "../core/backend.h"
#include "device.h"
#include "launch.h"

/* Of a pool. Everything but this struct is device memory. */
typedef struct cuda_pool {
    ra_cuda_pool *head;
    char *lists;   /* that the next three are parts of */
    void **memory; /* [ids], as are refs and free_ids */
    int32_t *refs, *free_ids;
    int64_t ids;
    uint32_t *tickets; /* of attention */
    size_t ticket_count;
    char *scratch; /* of one call at a time */
    size_t scratch_bytes;
    void *turn;         /* event at which a stream hands over to the next; NULL before the first time */
    int64_t generation; /* how often scratch or tickets have moved */
} cuda_pool;

/* Figures of a cut, as they come to the host. */
typedef struct cuda_figures {
    int32_t *cut, *before, *budgets, *keep; /* [R], [R, H] */
    double *lost;                           /* [R, H] */
} cuda_figures;

/* Of a layer. */
typedef struct cuda_layer {
    int64_t rows, pages; /* that the lists have room for */
    char *memory;        /* of lists */
    ra_cuda_layer lists;
    char *figure_memory;      /* on the device */
    char *shared;             /* of faults and figures, on the host */
    uint32_t *fault;          /* [R] */
    cuda_figures there, here; /* device, host; in one piece that begins with `lost` */
    size_t figure_bytes;
    void *done;             /* mark of the newest cut */
    int64_t *sent;          /* [3, R]: totals and protect_below as sent last, tokens given before the newest cut */
    int64_t *totals;        /* [2, R] on the device: the former two */
    int64_t *per_head;      /* [H] on the device: limits of given heads, or the bits of shares */
    int64_t *sent_per_head; /* [H] as sent last */
    bool was_cut,
        folds; /* the newest cut's figures are wanted; they say what heads hold now, but for the steps since */
    char *centre_memory;
    ra_cuda_centres centres;
    int64_t centres_set; /* ra_layer.centres_set of these; 0: none */
    int64_t generation;  /* how often its memory has moved */
} cuda_layer;

/* Pieces of memory one behind the other; counts only where memory is NULL. */
typedef struct cuda_pieces {
    char *memory;
    size_t used;
} cuda_pieces;

static inline void *ra_piece(cuda_pieces *pieces, size_t count, size_t size)
{
    size_t begin = (pieces->used + 255) / 256 * 256;
    pieces->used = begin + count * size;
    return pieces->memory ? pieces->memory + begin : NULL;
}

static inline cuda_pool *ra_cuda_pool_of(const ra_pool *pool) { return pool->device; }
static inline cuda_layer *ra_cuda_layer_of(const ra_layer *layer) { return layer->device; }
static inline ra_status ra_cuda_status(int error) { return error ? RA_ERR_DEVICE : RA_OK; }

/* The hook `name` of a backend: `call`, while the pool's device is the calling thread's own. */
#define RA_CUDA_HOOK(name, pool, call, ...)                                                                            \
    ra_status name(__VA_ARGS__)                                                                                        \
    {                                                                                                                  \
        int before;                                                                                                    \
        if (ra_device_enter((pool)->device_id, &before))                                                               \
            return RA_ERR_DEVICE;                                                                                      \
        ra_status status = call;                                                                                       \
        ra_device_leave(before);                                                                                       \
        return status;                                                                                                 \
    }

/* ---- lists.c ---- */

ra_status ra_cuda_pool_open(ra_pool *pool);
void ra_cuda_pool_close(ra_pool *pool);
void ra_cuda_layer_close(ra_layer *layer);
ra_status ra_cuda_pull(ra_pool *pool, ra_layer *layer);
/* The device's lists become the host's where those are newer. */
ra_status ra_cuda_push(ra_layer *layer);
/* At least `bytes` of scratch, what lay in it is lost. */
ra_status ra_cuda_scratch(ra_pool *pool, size_t bytes);
/* At least `count` tickets. */
ra_status ra_cuda_tickets(ra_pool *pool, size_t count);
ra_status ra_cuda_fault(ra_layer *layer);
bool ra_cuda_fold(ra_layer *layer);
/* What the next cuts are given: see ra_device. */
ra_status ra_cuda_send(ra_layer *layer, const int64_t *totals, const int64_t *protect_below);
bool ra_cuda_has_sent(const ra_layer *layer, const int64_t *totals, const int64_t *protect_below);
void ra_cuda_cut_again(ra_layer *layer);
ra_status ra_cuda_push_on(ra_layer *layer);
ra_status ra_cuda_set_stream(ra_pool *pool, void *stream);
int64_t ra_cuda_generation(const ra_layer *layer);
/* int64 of the host as int32 of the device. */
int ra_cuda_up_narrow(int32_t *to, const int64_t *from, int64_t count, void *stream);

/* ---- step.c ---- */

ra_status ra_cuda_reserve(ra_layer *layer, int64_t tokens, int64_t slots);
ra_status ra_cuda_step_on(ra_layer *layer, const ra_step *step, ra_parallel parallel);

/* ---- cut.c ---- */

size_t ra_cuda_cut_scratch(const ra_layer *layer, int64_t slots);
bool ra_cuda_supports(const ra_scorer *scorer);
ra_status ra_cuda_cut_on(ra_layer *layer, const ra_cut *cut);
ra_status ra_cuda_figures(ra_layer *layer, const ra_figures *figures);
ra_status ra_cuda_score_on(ra_layer *layer, const ra_score_config *config, ra_parallel parallel);
ra_status ra_cuda_choose_on(ra_layer *layer, const int64_t *protect_below, const int64_t *budgets, double *lost,
                            ra_parallel parallel);
int64_t ra_cuda_apply_pages(const ra_layer *layer);
ra_status ra_cuda_apply_on(ra_layer *layer, ra_parallel parallel);

extern const ra_backend ra_backend_cuda;

#endif
