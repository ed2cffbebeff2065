/* Pages, their owners and the slabs they lie in. */
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "cold.h"
#include "layer.h"

ra_status ra_pool_create(const ra_format *format, int64_t head_dim, ra_pool **out)
{
    return ra_pool_create_on(&ra_backend_cpu, 0, format, head_dim, out);
}

ra_status ra_pool_create_on(const ra_backend *backend, int device_id, const ra_format *format, int64_t head_dim,
                            ra_pool **out)
{
    if (!backend || !format || head_dim < 1 || head_dim > RA_MAX_HEAD_DIM || !out)
        return RA_ERR_ARGUMENT;
    ra_pool *pool = ra_new_zeroed(1, sizeof *pool);
    if (!pool)
        return RA_ERR_NO_MEMORY;
    pool->format = format;
    pool->backend = backend;
    pool->device_id = device_id;
    pool->head_dim = head_dim;
    pool->page_bytes = format->page_bytes(head_dim);
    ra_status status = backend->device ? backend->device->pool_open(pool) : RA_OK;
    if (status != RA_OK) {
        free(pool);
        return status;
    }
    *out = pool;
    return RA_OK;
}

void ra_pool_destroy(ra_pool *pool)
{
    if (!pool)
        return;
    if (pool->backend->device)
        pool->backend->device->pool_close(pool);
    free(pool->memory);
    free(pool->refs);
    free(pool->slab_of);
    free(pool->free_ids);
    free(pool->spare_ids);
    free(pool->slabs);
    free(pool->scratch.memory);
    free(pool);
}

int64_t ra_pool_head_dim(const ra_pool *pool) { return pool->head_dim; }

const ra_format *ra_pool_format(const ra_pool *pool) { return pool->format; }

size_t ra_pool_page_bytes(const ra_pool *pool) { return pool->page_bytes; }

ra_pool_info ra_pool_get_info(const ra_pool *pool) { return pool->info; }

int64_t ra_pool_taken(const ra_pool *pool) { return pool->backend->device ? pool->promised : pool->info.used; }

int64_t ra_pool_spare(const ra_pool *pool)
{
    int64_t spare = pool->backend->device ? pool->info.pages - pool->promised : pool->info.free;
    return spare - pool->reserved;
}

ra_status ra_pool_set_stream(ra_pool *pool, void *stream)
{
    if (!pool)
        return RA_ERR_ARGUMENT;
    if (!pool->backend->device || pool->stream == stream)
        return RA_OK;
    ra_status status = pool->backend->device->set_stream(pool, stream);
    if (status == RA_OK)
        pool->stream = stream;
    return status;
}

const ra_backend *ra_pool_backend(const ra_pool *pool) { return pool->backend; }

const char *ra_backend_name(const ra_backend *backend) { return backend->name; }

bool ra_backend_supports(const ra_backend *backend, const ra_scorer *scorer)
{
    return !backend || !scorer || !backend->supports || backend->supports(scorer);
}

int ra_backend_memory(const ra_backend *backend) { return backend->device ? backend->device->type : 1; }

void ra_pool_recount(ra_pool *pool)
{
    ra_pool_info *info = &pool->info;
    info->used = info->shared = 0;
    for (int64_t s = 0; s < pool->slab_count; s++)
        pool->slabs[s].used = 0;
    for (int64_t id = 0; id < pool->ids; id++)
        if (pool->memory[id] && pool->refs[id]) {
            info->used++;
            info->shared += pool->refs[id] > 1;
            pool->slabs[pool->slab_of[id]].used++;
        }
    info->free = info->pages - info->used;
    info->peak_used = ra_max(info->peak_used, info->used);
}

void ra_pool_reset_peak(ra_pool *pool)
{
    (void)ra_pool_write(pool); /* a device counts anew from there; a dead one says so at the next step */
    pool->info.peak_used = pool->info.used;
}

static bool grow_ids(ra_pool *pool, int64_t ids)
{
    void **memory = ra_grown(pool->memory, ids, sizeof *memory);
    pool->memory = memory ? memory : pool->memory;
    int32_t **const lists[] = {&pool->refs, &pool->slab_of, &pool->free_ids, &pool->spare_ids};
    bool grown = memory != NULL;
    for (size_t i = 0; grown && i < sizeof lists / sizeof lists[0]; i++) {
        int32_t *list = ra_grown(*lists[i], ids, sizeof *list);
        grown = list != NULL;
        *lists[i] = list ? list : *lists[i];
    }
    return grown;
}

/* Whether any of these bytes have been lent already. */
static bool overlaps(const ra_pool *pool, const char *memory, size_t bytes)
{
    for (int64_t s = 0; s < pool->slab_count; s++) {
        const char *other = pool->slabs[s].memory;
        if (other && memory < other + (size_t)pool->slabs[s].pages * pool->page_bytes && other < memory + bytes)
            return true;
    }
    return false;
}

ra_status ra_pool_add_slab(ra_pool *pool, void *memory, int64_t pages, int64_t *out_id)
{
    int64_t bytes;
    if (!pool || !memory || pages < 1 || ((uintptr_t)memory & 63) || pages > INT32_MAX ||
        pool->ids > INT32_MAX - pages || !ra_size_of(pages, (int64_t)pool->page_bytes, 1, 1, &bytes) ||
        overlaps(pool, memory, (size_t)bytes))
        return RA_ERR_ARGUMENT;
    ra_status status = ra_pool_write(pool);
    if (status != RA_OK)
        return status;
    int64_t fresh = ra_max(0, pages - pool->spare_count);
    if (!grow_ids(pool, pool->ids + fresh))
        return RA_ERR_NO_MEMORY;
    int64_t slab = 0;
    while (slab < pool->slab_count && pool->slabs[slab].memory)
        slab++;
    if (slab == pool->slab_count) {
        ra_slab *slabs = ra_grown(pool->slabs, slab + 1, sizeof *slabs);
        if (!slabs)
            return RA_ERR_NO_MEMORY;
        pool->slabs = slabs;
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

bool ra_pool_scratch(ra_pool *pool, size_t bytes)
{
    pool->scratch.used = 0;
    return ra_scratch_grow(&pool->scratch, bytes);
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
    /* The CPU's kernels compute on all 16 lanes of K: no NaN from old memory. */
    if (!pool->backend->device)
        memset(pool->memory[id], 0, pool->format->value_offset(pool->head_dim));
    return id;
}

void ra_pool_share(ra_pool *pool, int32_t page) { pool->info.shared += ++pool->refs[page] == 2; }

void ra_pool_drop(ra_pool *pool, int32_t page)
{
    int32_t owners = --pool->refs[page];
    pool->info.shared -= owners == 1;
    if (owners)
        return;
    pool->free_ids[pool->free_count++] = page;
    pool->slabs[pool->slab_of[page]].used--;
    pool->info.free++;
    pool->info.used--;
}

static void copy_page(ra_pool *pool, void *to, const void *from)
{
    if (pool->backend->device)
        (void)pool->backend->device->move(pool, to, from,
                                          pool->page_bytes); /* a dead device says so at the next step */
    else
        memcpy(to, from, pool->page_bytes);
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

/* A head's list has as many pages as its slots need. */
static void rewrite_tables(ra_pool *pool, const int32_t *moved)
{
    for (ra_layer *layer = pool->layers; layer; layer = layer->next)
        for (int64_t pair = 0; pair < ra_pairs(layer); pair++)
            for (int64_t p = 0; p < ra_pages_for(layer->slots[pair]); p++) {
                int32_t *page = &ra_pages_of(layer, pair)[p];
                *page = moved[*page];
            }
}

static int64_t smallest_slab(const ra_pool *pool)
{
    int64_t pages = INT32_MAX;
    for (int64_t s = 0; s < pool->slab_count; s++)
        if (pool->slabs[s].memory)
            pages = ra_min(pages, pool->slabs[s].pages);
    return pages;
}

ra_status ra_pool_trim(ra_pool *pool, int64_t keep_free, int64_t *out_ids, int64_t capacity, int64_t *out_count)
{
    if (!pool || keep_free < 0 || capacity < 0 || !out_count || (capacity && !out_ids))
        return RA_ERR_ARGUMENT;
    *out_count = 0;
    bool pending = false; /* a step or the end of a cut counts on the scratch memory */
    for (ra_layer *layer = pool->layers; layer; layer = layer->next)
        pending |= layer->pending || ra_cold_is_merged(layer);
    if (!pending && pool->scratch.size / 4 > pool->scratch_need + 4096) { /* after a long prompt */
        free(pool->scratch.memory);
        pool->scratch = (ra_scratch){0};
    }
    pool->scratch_need = 0;
    for (ra_layer *layer = pool->layers; layer; layer = layer->next)
        ra_layer_shrink(layer);
    keep_free = ra_min(keep_free, INT64_MAX - pool->reserved);
    if (ra_pool_spare(pool) - smallest_slab(pool) < keep_free) /* what a device has taken need not be looked at then */
        return RA_OK;
    ra_status status = ra_lists_write_all(pool);
    if (status != RA_OK)
        return status;
    keep_free += pool->reserved;
    if (pool->info.free <= keep_free)
        return RA_OK;
    bool *leaves = ra_new_zeroed(pool->slab_count, sizeof *leaves);
    int32_t *moved = ra_new(pool->ids, sizeof *moved); /* old id -> new id */
    if (!leaves || !moved) {
        free(leaves);
        free(moved);
        return RA_ERR_NO_MEMORY;
    }
    int64_t count = choose_leaving(pool, keep_free, capacity, leaves), peak = pool->info.peak_used, copies = 0;
    if (count) {
        hide_free(pool, leaves);
        for (int32_t id = 0; id < pool->ids; id++) {
            moved[id] = id;
            if (!pool->memory[id] || !leaves[pool->slab_of[id]])
                continue;
            if (pool->refs[id]) {
                int32_t to = take(pool);
                copy_page(pool, pool->memory[to], pool->memory[id]);
                copies++;
                pool->refs[to] = pool->refs[id];
                pool->info.used--; /* the old page is no longer counted */
                pool->info.free++;
                moved[id] = to;
            }
            pool->memory[id] = NULL;
            pool->refs[id] = 0;
            pool->spare_ids[pool->spare_count++] = id;
        }
        rewrite_tables(pool, moved);
        if (copies && pool->backend->device) /* the slabs' memory may serve another stream at once */
            (void)pool->backend->device->down(pool, moved, NULL, 0); /* it waits; of a dead device see above */
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
