/* Pages, their owners and the slabs they lie in. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

ra_status ra_pool_create(ra_dtype dtype, int64_t head_dim, ra_pool **out)
{
    if (!ra_dtype_size(dtype))
        return RA_ERR_DTYPE;
    if (head_dim < 1 || head_dim > RA_MAX_HEAD_DIM || !out)
        return RA_ERR_ARGUMENT;
    ra_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return RA_ERR_NO_MEMORY;
    pool->dtype = dtype;
    pool->head_dim = head_dim;
    pool->page_bytes = 2 * PAGE * (size_t)head_dim * ra_dtype_size(dtype);
    *out = pool;
    return RA_OK;
}

void ra_pool_destroy(ra_pool *pool)
{
    if (!pool)
        return;
    free(pool->memory);
    free(pool->refs);
    free(pool->slab_of);
    free(pool->free_ids);
    free(pool->spare_ids);
    free(pool->slabs);
    free(pool);
}

size_t ra_pool_page_bytes(const ra_pool *pool) { return pool->page_bytes; }

ra_pool_info ra_pool_get_info(const ra_pool *pool) { return pool->info; }

void ra_pool_reset_peak(ra_pool *pool) { pool->info.peak_used = pool->info.used; }

ra_status ra_pool_add_slab(ra_pool *pool, void *memory, int64_t pages, int64_t *out_id)
{
    if (!memory || pages < 1 || ((uintptr_t)memory & 63) || pool->ids > INT32_MAX - pages)
        return RA_ERR_ARGUMENT;
    int64_t fresh = ra_max(0, pages - pool->spare_count), ids = pool->ids + fresh;
    if (!ra_grow((void **)&pool->memory, ids, sizeof *pool->memory) ||
        !ra_grow((void **)&pool->refs, ids, sizeof *pool->refs) ||
        !ra_grow((void **)&pool->slab_of, ids, sizeof *pool->slab_of) ||
        !ra_grow((void **)&pool->free_ids, ids, sizeof *pool->free_ids) ||
        !ra_grow((void **)&pool->spare_ids, ids, sizeof *pool->spare_ids))
        return RA_ERR_NO_MEMORY;
    int64_t slab = 0;
    while (slab < pool->slab_count && pool->slabs[slab].memory)
        slab++;
    if (slab == pool->slab_count) {
        if (!ra_grow((void **)&pool->slabs, slab + 1, sizeof *pool->slabs))
            return RA_ERR_NO_MEMORY;
        pool->slab_count++;
    }
    pool->slabs[slab] = (ra_slab){.memory = memory, .pages = pages};
    for (int64_t page = pages - 1; page >= 0; page--) { /* pushed last to first, so that the first is taken first */
        int32_t id = pool->spare_count ? pool->spare_ids[--pool->spare_count] : (int32_t)pool->ids++;
        pool->memory[id] = (char *)memory + (size_t)page * pool->page_bytes;
        pool->refs[id] = 0;
        pool->slab_of[id] = (int32_t)slab;
        pool->free_ids[pool->free_count++] = id;
    }
    pool->info.pages += pages;
    pool->info.free += pages;
    pool->info.slabs++;
    if (out_id)
        *out_id = slab;
    return RA_OK;
}

/* Takes the newest free page; keys are left as they are. */
static int32_t take(ra_pool *pool)
{
    int32_t id = pool->free_ids[--pool->free_count];
    pool->refs[id] = 1;
    pool->slabs[pool->slab_of[id]].used++;
    pool->info.free--;
    pool->info.used++;
    pool->info.peak_used = ra_max(pool->info.peak_used, pool->info.used);
    return id;
}

int32_t ra_pool_take(ra_pool *pool)
{
    int32_t id = take(pool);
    memset(pool->memory[id], 0, pool->page_bytes / 2); /* kernels compute on all 16 lanes: no NaN from old memory */
    return id;
}

void ra_pool_share(ra_pool *pool, int32_t page) { pool->refs[page]++; }

void ra_pool_drop(ra_pool *pool, int32_t page)
{
    if (--pool->refs[page])
        return;
    pool->free_ids[pool->free_count++] = page;
    pool->slabs[pool->slab_of[page]].used--;
    pool->info.free++;
    pool->info.used--;
}

/* Drops from the free stack the pages for which leaves[slab] holds. */
static void hide_free(ra_pool *pool, const bool *leaves)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < pool->free_count; i++)
        if (!leaves[pool->slab_of[pool->free_ids[i]]])
            pool->free_ids[kept++] = pool->free_ids[i];
    pool->free_count = kept;
}

/* Chooses the emptiest slabs that can leave while keep_free pages stay free; returns their number. */
static int64_t choose_leaving(const ra_pool *pool, int64_t keep_free, int64_t capacity, bool *leaves)
{
    int64_t count = 0, free_pages = pool->info.free;
    while (count < capacity) {
        int64_t best = -1;
        for (int64_t s = 0; s < pool->slab_count; s++)
            if (pool->slabs[s].memory && !leaves[s] && (best < 0 || pool->slabs[s].used < pool->slabs[best].used))
                best = s;
        if (best < 0 || free_pages - pool->slabs[best].pages < keep_free)
            break;
        free_pages -= pool->slabs[best].pages; /* its used pages move into free ones elsewhere */
        leaves[best] = true;
        count++;
    }
    return count;
}

ra_status ra_pool_trim(ra_pool *pool, int64_t keep_free, int64_t *out_ids, int64_t capacity, int64_t *out_count)
{
    if (keep_free < 0 || capacity < 0 || !out_count || (capacity && !out_ids))
        return RA_ERR_ARGUMENT;
    *out_count = 0;
    if (pool->info.free <= keep_free)
        return RA_OK;
    bool *leaves = calloc((size_t)pool->slab_count + 1, sizeof *leaves);
    int32_t *moved = ra_new(pool->ids, sizeof *moved); /* old id -> new id */
    if (!leaves || !moved) {
        free(leaves);
        free(moved);
        return RA_ERR_NO_MEMORY;
    }
    int64_t count = choose_leaving(pool, keep_free, capacity, leaves), peak = pool->info.peak_used;
    if (count) {
        hide_free(pool, leaves);
        for (int32_t id = 0; id < pool->ids; id++) {
            moved[id] = id;
            if (!pool->memory[id] || !leaves[pool->slab_of[id]])
                continue;
            if (pool->refs[id]) {
                int32_t to = take(pool);
                memcpy(pool->memory[to], pool->memory[id], pool->page_bytes);
                pool->refs[to] = pool->refs[id];
                pool->info.used--; /* the old page is no longer counted */
                pool->info.free++;
                moved[id] = to;
            }
            pool->memory[id] = NULL;
            pool->refs[id] = 0;
            pool->spare_ids[pool->spare_count++] = id;
        }
        for (ra_layer *layer = pool->layers; layer; layer = layer->next)
            for (int64_t h = 0; h < layer->rows * layer->kv_heads; h++)
                for (int64_t p = 0; p < layer->heads[h].page_count; p++)
                    layer->heads[h].pages[p] = moved[layer->heads[h].pages[p]];
        for (int64_t s = 0; s < pool->slab_count; s++)
            if (leaves[s]) {
                pool->info.pages -= pool->slabs[s].pages;
                pool->info.free -= pool->slabs[s].pages;
                pool->info.slabs--;
                pool->slabs[s].memory = NULL;
                out_ids[(*out_count)++] = s;
            }
        pool->info.peak_used = peak;
    }
    free(leaves);
    free(moved);
    return RA_OK;
}
