/* The pool's insides. */
#ifndef RA_POOL_H
#define RA_POOL_H

#include "format.h"

typedef struct ra_slab {
    void *memory; /* NULL: given back */
    int64_t pages, used;
} ra_slab;

/* Whose lists are current: a device's, which keeps its own, or the host's. */
typedef enum ra_lists { RA_LISTS_HOST = 0, RA_LISTS_BOTH, RA_LISTS_DEVICE } ra_lists;

struct ra_pool {
    const ra_format *format;
    const struct ra_backend *backend;
    int64_t head_dim;
    size_t page_bytes;
    void **memory;      /* by page id; NULL for ids whose slab is gone */
    int32_t *refs;      /* owners of a page */
    int32_t *slab_of;   /* slab of a page */
    int32_t *free_ids;  /* stack of pages without owner */
    int32_t *spare_ids; /* stack of ids without memory */
    int64_t ids, free_count, spare_count;
    int64_t reserved; /* of the free ones, for steps that are about to come */
    ra_slab *slabs;
    int64_t slab_count;
    ra_pool_info info;
    ra_layer *layers;    /* whose tables trim rewrites */
    ra_scratch scratch;  /* of one call at a time */
    size_t scratch_need; /* of the newest reserve or cut */
    /* Of a backend with a device: */
    int device_id;
    void *stream; /* of the calls to come */
    void *device; /* the backend's own */
    ra_lists lists;
    int64_t promised;  /* pages that its layers may have taken */
    size_t cold_bytes; /* of the cold tiers of its layers */
};

/* A page with one owner and zeroed keys; the caller made sure that one is free. */
int32_t ra_pool_take(ra_pool *pool);
void ra_pool_share(ra_pool *pool, int32_t page);
void ra_pool_drop(ra_pool *pool, int32_t page);
/* Pages that nobody has reserved. */
int64_t ra_pool_spare(const ra_pool *pool);
/* `info`, slabs and free pages follow from refs. */
void ra_pool_recount(ra_pool *pool);
/* Scratch memory of `bytes`, empty; false without memory. */
bool ra_pool_scratch(ra_pool *pool, size_t bytes);

#endif
