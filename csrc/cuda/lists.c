/* The lists of pools and layers in device memory, and their way there and back. */
#include <stdlib.h>
#include <string.h>

#include "../scorer/triattention.h"
#include "backend.h"

int ra_cuda_up_narrow(int32_t *to, const int64_t *from, int64_t count, void *stream)
{
    int error = 0;
    for (int64_t i = 0; i < count && !error;) {
        int32_t part[64];
        int64_t n = ra_min(64, count - i);
        for (int64_t j = 0; j < n; j++)
            part[j] = (int32_t)from[i + j];
        error = ra_device_up(to + i, part, (size_t)n * sizeof *part, stream);
        i += n;
    }
    return error;
}

/* ---- Pool ---- */

ra_status ra_cuda_pool_open(ra_pool *pool)
{
    int before;
    cuda_pool *cuda = ra_new_zeroed(1, sizeof *cuda);
    if (!cuda)
        return RA_ERR_NO_MEMORY;
    if (ra_device_enter(pool->device_id, &before)) {
        free(cuda);
        return RA_ERR_DEVICE;
    }
    cuda->head = ra_device_new(sizeof *cuda->head, pool->stream);
    ra_device_leave(before);
    if (!cuda->head) {
        free(cuda);
        return RA_ERR_NO_MEMORY;
    }
    pool->device = cuda;
    return RA_OK;
}

void ra_cuda_pool_close(ra_pool *pool)
{
    int before;
    cuda_pool *cuda = ra_cuda_pool_of(pool);
    if (ra_device_enter(pool->device_id, &before) == 0) {
        void *const all[] = {cuda->head, cuda->lists, cuda->tickets, cuda->scratch};
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
            ra_device_free(all[i], pool->stream);
        ra_device_free_event(cuda->turn);
        ra_device_leave(before);
    }
    free(cuda);
}

ra_status ra_cuda_scratch(ra_pool *pool, size_t bytes)
{
    cuda_pool *cuda = ra_cuda_pool_of(pool);
    if (bytes <= cuda->scratch_bytes)
        return RA_OK;
    bytes += bytes / 8; /* a little more, so that slow growth does not come here at every step */
    char *memory = ra_device_new(bytes, pool->stream);
    if (!memory)
        return RA_ERR_NO_MEMORY;
    ra_device_free(cuda->scratch, pool->stream);
    cuda->scratch = memory;
    cuda->scratch_bytes = bytes;
    cuda->generation++;
    return RA_OK;
}

ra_status ra_cuda_tickets(ra_pool *pool, size_t count)
{
    cuda_pool *cuda = ra_cuda_pool_of(pool);
    if (count <= cuda->ticket_count)
        return RA_OK;
    uint32_t *tickets = ra_device_new(count * sizeof *tickets, pool->stream);
    if (!tickets)
        return RA_ERR_NO_MEMORY;
    int error = ra_device_zero(tickets, count * sizeof *tickets, pool->stream);
    ra_device_free(cuda->tickets, pool->stream);
    cuda->tickets = tickets;
    cuda->ticket_count = count;
    cuda->generation++;
    return ra_cuda_status(error);
}

/* A list in both memories. */
typedef struct list {
    void *here, *there;
    size_t bytes;
} list;

static int up_lists(const list *lists, size_t count, void *stream)
{
    int error = 0;
    for (size_t i = 0; i < count && !error; i++)
        error = ra_device_up(lists[i].there, lists[i].here, lists[i].bytes, stream);
    return error;
}

/* And waits. */
static int down_lists(const list *lists, size_t count, void *stream)
{
    int error = 0;
    for (size_t i = 0; i < count && !error; i++)
        error = ra_device_down(lists[i].here, lists[i].there, lists[i].bytes, stream);
    return error ? error : ra_device_wait(stream);
}

static void lay_pool(cuda_pool *cuda, cuda_pieces *pieces, size_t ids)
{
    cuda->memory = ra_piece(pieces, ids, sizeof *cuda->memory);
    cuda->refs = ra_piece(pieces, ids, sizeof *cuda->refs);
    cuda->free_ids = ra_piece(pieces, ids, sizeof *cuda->free_ids);
}

static ra_status make_pool_room(ra_pool *pool)
{
    cuda_pool *cuda = ra_cuda_pool_of(pool), fresh = {0};
    if (cuda->ids >= pool->ids)
        return RA_OK;
    cuda_pieces pieces = {0};
    lay_pool(&fresh, &pieces, (size_t)pool->ids);
    pieces = (cuda_pieces){.memory = ra_device_new(pieces.used, pool->stream)};
    if (!pieces.memory)
        return RA_ERR_NO_MEMORY;
    ra_device_free(cuda->lists, pool->stream);
    cuda->lists = pieces.memory;
    cuda->ids = pool->ids;
    lay_pool(cuda, &pieces, (size_t)pool->ids);
    return RA_OK;
}

static ra_status push_pool(ra_pool *pool)
{
    cuda_pool *cuda = ra_cuda_pool_of(pool);
    ra_status status = pool->lists == RA_LISTS_HOST ? make_pool_room(pool) : RA_OK;
    if (status != RA_OK || pool->lists != RA_LISTS_HOST)
        return status;
    size_t ids = (size_t)pool->ids;
    ra_cuda_pool head = {.memory = cuda->memory,
                         .refs = cuda->refs,
                         .free_ids = cuda->free_ids,
                         .free_count = (int32_t)pool->free_count,
                         .least_free = (int32_t)pool->free_count,
                         .shared = (int32_t)pool->info.shared};
    const list lists[] = {{pool->memory, cuda->memory, ids * sizeof *cuda->memory},
                          {pool->refs, cuda->refs, ids * sizeof *cuda->refs},
                          {pool->free_ids, cuda->free_ids, (size_t)pool->free_count * sizeof *cuda->free_ids},
                          {&head, cuda->head, sizeof head}};
    int error = up_lists(lists, sizeof lists / sizeof lists[0], pool->stream);
    if (!error)
        pool->lists = RA_LISTS_BOTH;
    return ra_cuda_status(error);
}

static int pull_pool(ra_pool *pool)
{
    cuda_pool *cuda = ra_cuda_pool_of(pool);
    size_t ids = (size_t)pool->ids;
    ra_cuda_pool head;
    const list lists[] = {{&head, cuda->head, sizeof head},
                          {pool->refs, cuda->refs, ids * sizeof *cuda->refs},
                          {pool->free_ids, cuda->free_ids, ids * sizeof *cuda->free_ids}};
    int error = down_lists(lists, sizeof lists / sizeof lists[0], pool->stream);
    if (!error) {
        pool->free_count = head.free_count;
        pool->info.peak_used = ra_max(pool->info.peak_used, pool->info.pages - head.least_free);
    }
    return error;
}

/* ---- Layer ---- */

static void lay_figures(cuda_figures *figures, cuda_pieces *pieces, size_t rows, size_t pairs)
{
    figures->lost = ra_piece(pieces, pairs, sizeof(double));
    figures->cut = ra_piece(pieces, rows, sizeof(int32_t));
    figures->before = ra_piece(pieces, pairs, sizeof(int32_t));
    figures->budgets = ra_piece(pieces, pairs, sizeof(int32_t));
    figures->keep = ra_piece(pieces, pairs, sizeof(int32_t));
}

/* Room for a statistic's column; NULL where the layer does not keep it. */
static void *column_piece(const ra_layer *layer, int stat, size_t fields, cuda_pieces *pieces)
{
    size_t entries = (size_t)ra_pairs(layer) * (size_t)layer->pages * PAGE;
    return layer->columns[stat] ? ra_piece(pieces, entries * fields, sizeof(int32_t)) : NULL;
}

static void lay_lists(const ra_layer *layer, cuda_layer *cuda, cuda_pieces *pieces)
{
    size_t rows = (size_t)layer->rows, pairs = (size_t)ra_pairs(layer), pages = (size_t)layer->pages;
    size_t floats = (size_t)layer->query_heads * (size_t)layer->pool->head_dim;
    /* Lists that only some scorers need. */
    bool similar = layer->columns[RA_STAT_NEAREST_KEY] != NULL;
    int32_t *cached = similar ? ra_piece(pieces, pairs, sizeof(int32_t)) : NULL;
    float *cached_threshold = similar ? ra_piece(pieces, pairs, sizeof(float)) : NULL;
    cuda->lists = (ra_cuda_layer){.pool = ra_cuda_pool_of(layer->pool)->head,
                                  .format = (ra_dtype)layer->pool->format->id,
                                  .rows = (int32_t)layer->rows,
                                  .kv_heads = (int32_t)layer->kv_heads,
                                  .group = (int32_t)layer->group,
                                  .window = (int32_t)layer->window,
                                  .head_dim = (int32_t)layer->pool->head_dim,
                                  .pages = (int32_t)layer->pages,
                                  .table = ra_piece(pieces, pairs * pages, sizeof(int32_t)),
                                  .slots = ra_piece(pieces, pairs, sizeof(int32_t)),
                                  .positions = ra_piece(pieces, pairs * pages * PAGE, sizeof(int32_t)),
                                  .tokens = ra_piece(pieces, rows, sizeof(int32_t)),
                                  .queries = ra_piece(pieces, rows * (size_t)layer->window * floats, sizeof(float)),
                                  .q_begin = ra_piece(pieces, rows, sizeof(int32_t)),
                                  .q_end = ra_piece(pieces, rows, sizeof(int32_t)),
                                  .sinks = ra_piece(pieces, (size_t)layer->query_heads, sizeof(float)),
                                  .cached = cached,
                                  .cached_threshold = cached_threshold,
                                  .similar = similar ? ra_piece(pieces, pairs * pages * PAGE, sizeof(int32_t)) : NULL,
                                  .cosine = similar ? ra_piece(pieces, pairs * pages * PAGE, sizeof(float)) : NULL,
                                  .accumulated = column_piece(layer, RA_STAT_ACCUMULATED, 1, pieces),
                                  .recurrence = column_piece(layer, RA_STAT_RECURRENCE, 2, pieces),
                                  .tickets = ra_piece(pieces, RA_CUDA_TICKETS, sizeof(uint32_t)),
                                  .fault = cuda->fault};
}

static void free_figures(const ra_pool *pool, cuda_layer *cuda)
{
    ra_device_free(cuda->figure_memory, pool->stream);
    ra_device_free_shared(cuda->shared);
    ra_device_free_event(cuda->done);
    free(cuda->sent);
}

void ra_cuda_layer_close(ra_layer *layer)
{
    int before;
    cuda_layer *cuda = ra_cuda_layer_of(layer);
    if (cuda && ra_device_enter(layer->pool->device_id, &before) == 0) {
        ra_device_free(cuda->memory, layer->pool->stream);
        ra_device_free(cuda->centre_memory, layer->pool->stream);
        free_figures(layer->pool, cuda);
        ra_device_leave(before);
    }
    free(cuda);
    layer->device = NULL;
}

/* Room for faults and figures of the host's number of rows; what they were is lost where it is another, but for what was sent
 * of heads: a graph of the new rows may be captured next, which cannot send it. */
static ra_status make_figures(const ra_layer *layer, cuda_layer *cuda)
{
    const ra_pool *pool = layer->pool;
    if (cuda->rows == layer->rows)
        return RA_OK;
    cuda_layer fresh = {0};
    cuda_pieces count = {0}, pieces = {0};
    size_t rows = (size_t)layer->rows, pairs = (size_t)ra_pairs(layer), heads = (size_t)layer->kv_heads;
    size_t faults = (rows * sizeof(uint32_t) + 255) / 256 * 256;
    lay_figures(&fresh.there, &count, rows, pairs);
    size_t figures = count.used;
    (void)ra_piece(&count, 2 * rows, sizeof *cuda->totals);
    (void)ra_piece(&count, heads, sizeof *cuda->per_head);
    fresh.figure_memory = ra_device_new(count.used, pool->stream);
    fresh.shared = ra_device_new_shared(faults + figures);
    fresh.done = ra_device_new_event();
    fresh.sent = ra_new(3 * layer->rows + layer->kv_heads, sizeof *fresh.sent);
    if (!fresh.figure_memory || !fresh.shared || !fresh.done || !fresh.sent) {
        free_figures(pool, &fresh);
        return RA_ERR_NO_MEMORY;
    }
    pieces.memory = fresh.figure_memory;
    lay_figures(&cuda->there, &pieces, rows, pairs);
    cuda->totals = ra_piece(&pieces, 2 * rows, sizeof *cuda->totals);
    cuda->per_head = ra_piece(&pieces, heads, sizeof *cuda->per_head);
    pieces = (cuda_pieces){.memory = fresh.shared + faults};
    lay_figures(&cuda->here, &pieces, rows, pairs);
    memset(fresh.sent, 0xff,
           (3 * rows + heads) * sizeof *fresh.sent); /* leave all rows alone, protect and limit nothing */
    if (cuda->sent)
        memcpy(fresh.sent + 3 * rows, cuda->sent_per_head, heads * sizeof *fresh.sent);
    free_figures(pool, cuda);
    cuda->figure_memory = fresh.figure_memory;
    cuda->figure_bytes = figures;
    cuda->shared = fresh.shared;
    cuda->fault = (uint32_t *)(void *)fresh.shared;
    cuda->done = fresh.done;
    cuda->sent = fresh.sent;
    cuda->sent_per_head = cuda->sent + 3 * rows;
    cuda->was_cut = cuda->folds = false;
    int error = ra_device_up(cuda->totals, cuda->sent, 2 * rows * sizeof *cuda->sent, pool->stream);
    if (!error)
        error = ra_device_up(cuda->per_head, cuda->sent_per_head, heads * sizeof *cuda->per_head, pool->stream);
    return ra_cuda_status(error);
}

/* Room for lists of the host's size. */
static ra_status make_room(ra_layer *layer)
{
    ra_pool *pool = layer->pool;
    if (!layer->device && !(layer->device = ra_new_zeroed(1, sizeof(cuda_layer))))
        return RA_ERR_NO_MEMORY;
    cuda_layer *cuda = ra_cuda_layer_of(layer);
    if (cuda->rows == layer->rows && cuda->pages == layer->pages)
        return RA_OK;
    cuda_pieces count = {0};
    lay_lists(layer, cuda, &count);
    char *memory = ra_device_new(count.used, pool->stream);
    ra_status status = memory ? make_figures(layer, cuda) : RA_ERR_NO_MEMORY;
    if (status != RA_OK) {
        ra_device_free(memory, pool->stream);
        cuda->pages = 0; /* what the lists say now is nowhere */
        return status;
    }
    ra_device_free(cuda->memory, pool->stream);
    cuda->memory = memory;
    cuda->generation++;
    cuda->rows = layer->rows;
    cuda->pages = layer->pages;
    count = (cuda_pieces){.memory = memory};
    lay_lists(layer, cuda, &count);
    return ra_cuda_status(ra_device_zero(cuda->lists.tickets, RA_CUDA_TICKETS * sizeof(uint32_t), pool->stream));
}

enum { LISTS = 7 };

/* What a device alone knows; tokens and the ends of the ring the host counts itself. Returns how many there are. */
static size_t lists_of(const ra_layer *layer, list *out)
{
    const ra_cuda_layer *there = &ra_cuda_layer_of(layer)->lists;
    size_t pairs = (size_t)ra_pairs(layer), pages = pairs * (size_t)layer->pages;
    size_t floats = (size_t)(layer->rows * layer->window * layer->query_heads * layer->pool->head_dim);
    size_t column = pages * PAGE * sizeof(int32_t);
    const list all[LISTS] = {{layer->table, there->table, pages * sizeof(int32_t)},
                             {layer->slots, there->slots, pairs * sizeof(int32_t)},
                             {layer->positions, there->positions, pages * PAGE * sizeof(int32_t)},
                             {layer->queries, there->queries, floats * sizeof(float)},
                             {layer->sinks, there->sinks, (size_t)layer->query_heads * sizeof(float)},
                             {layer->columns[RA_STAT_ACCUMULATED], there->accumulated, column},
                             {layer->columns[RA_STAT_RECURRENCE], there->recurrence, 2 * column}};
    size_t count = 0;
    for (size_t i = 0; i < LISTS; i++)
        if (all[i].here)
            out[count++] = all[i];
    return count;
}

static ra_status push_layer(ra_layer *layer)
{
    ra_status status = layer->lists == RA_LISTS_HOST ? make_room(layer) : RA_OK;
    if (status != RA_OK || layer->lists != RA_LISTS_HOST)
        return status;
    const ra_cuda_layer *to = &ra_cuda_layer_of(layer)->lists;
    void *stream = layer->pool->stream;
    list lists[LISTS];
    int error = up_lists(lists, lists_of(layer, lists), stream);
    if (!error)
        error = ra_cuda_up_narrow(to->tokens, layer->tokens, layer->rows, stream);
    if (!error)
        error = ra_cuda_up_narrow(to->q_begin, layer->q_begin, layer->rows, stream);
    if (!error)
        error = ra_cuda_up_narrow(to->q_end, layer->q_end, layer->rows, stream);
    if (!error && to->cached) /* the host may have moved, dropped or replaced any slot */
        error = ra_device_zero(to->cached, (size_t)ra_pairs(layer) * sizeof *to->cached, stream);
    if (!error)
        layer->lists = RA_LISTS_BOTH;
    ra_cuda_layer_of(layer)->folds = false;
    return ra_cuda_status(error);
}

/* They seldom change, and never in a graph. */
static ra_status push_centres(ra_layer *layer)
{
    const ra_centres *c = layer->centres;
    cuda_layer *cuda = ra_cuda_layer_of(layer);
    void *stream = layer->pool->stream;
    if (!c || cuda->centres_set == layer->centres_set)
        return RA_OK;
    if (ra_device_is_capturing(stream))
        return RA_ERR_CAPTURE;
    size_t bytes = ra_centres_bytes(c->pairs, layer->query_heads, layer->pool->head_dim);
    char *memory = ra_device_new(bytes, stream);
    if (!memory)
        return RA_ERR_NO_MEMORY;
    ra_device_free(cuda->centre_memory, stream);
    cuda->centre_memory = memory;
    cuda->centres_set = 0;
    cuda->generation++;
    if (ra_device_up(memory, c->frequency, bytes, stream))
        return RA_ERR_DEVICE;
    const double *numbers = (const double *)(void *)memory;
    const float *mean = (const float *)(const void *)(numbers + 3 * c->pairs);
    cuda->centres = (ra_cuda_centres){.pairs = (int32_t)c->pairs,
                                      .step = (int32_t)c->step,
                                      .apart = (int32_t)c->apart,
                                      .offsets = RA_OFFSETS,
                                      .largest = c->largest,
                                      .group_mean = c->group_mean,
                                      .frequency = numbers,
                                      .turn = numbers + c->pairs,
                                      .mean = mean,
                                      .spread = mean + layer->query_heads * layer->pool->head_dim};
    cuda->centres_set = layer->centres_set;
    return RA_OK;
}

ra_status ra_cuda_push(ra_layer *layer)
{
    ra_status status = push_pool(layer->pool);
    if (status == RA_OK)
        status = push_layer(layer);
    return status == RA_OK ? push_centres(layer) : status;
}

RA_CUDA_HOOK(ra_cuda_push_on, layer->pool, ra_cuda_push(layer), ra_layer *layer)

static ra_status pull(ra_pool *pool, ra_layer *layer)
{
    int error = pool->lists == RA_LISTS_DEVICE ? pull_pool(pool) : 0;
    if (!error && layer && layer->lists == RA_LISTS_DEVICE) {
        list lists[LISTS];
        error = down_lists(lists, lists_of(layer, lists), pool->stream);
    }
    return ra_cuda_status(error);
}

RA_CUDA_HOOK(ra_cuda_pull, pool, pull(pool, layer), ra_pool *pool, ra_layer *layer)

bool ra_cuda_has_sent(const ra_layer *layer, const int64_t *totals, const int64_t *protect_below)
{
    const cuda_layer *cuda = ra_cuda_layer_of(layer);
    size_t rows = (size_t)layer->rows, bytes = rows * sizeof *totals;
    return cuda && cuda->rows == layer->rows && !memcmp(cuda->sent, totals, bytes) &&
           (!protect_below || !memcmp(cuda->sent + rows, protect_below, bytes));
}

static ra_status send(ra_layer *layer, const int64_t *totals, const int64_t *protect_below)
{
    cuda_layer *cuda = ra_cuda_layer_of(layer);
    size_t rows = (size_t)layer->rows, bytes = rows * sizeof *totals;
    if (ra_cuda_has_sent(layer, totals, protect_below))
        return RA_OK;
    memcpy(cuda->sent, totals, bytes);
    if (protect_below)
        memcpy(cuda->sent + rows, protect_below, bytes);
    return ra_cuda_status(ra_device_up(cuda->totals, cuda->sent, 2 * bytes, layer->pool->stream));
}

RA_CUDA_HOOK(ra_cuda_send, layer->pool, send(layer, totals, protect_below), ra_layer *layer, const int64_t *totals,
             const int64_t *protect_below)

/* Work under way on the stream before goes on beside what comes, where nothing says otherwise. A stream that is being
 * captured follows nothing that is not: who captures it sees to that. */
static ra_status follow(ra_pool *pool, void *stream)
{
    cuda_pool *cuda = ra_cuda_pool_of(pool);
    if (!cuda || ra_device_is_capturing(stream) || ra_device_is_capturing(pool->stream))
        return RA_OK;
    if (!cuda->turn && !(cuda->turn = ra_device_new_event()))
        return RA_ERR_NO_MEMORY;
    return ra_cuda_status(ra_device_follow(cuda->turn, pool->stream, stream));
}

RA_CUDA_HOOK(ra_cuda_set_stream, pool, follow(pool, stream), ra_pool *pool, void *stream)

int64_t ra_cuda_generation(const ra_layer *layer)
{
    const cuda_layer *cuda = ra_cuda_layer_of(layer);
    return ra_cuda_pool_of(layer->pool)->generation + (cuda ? cuda->generation : 0);
}

ra_status ra_cuda_fault(ra_layer *layer)
{
    const cuda_layer *cuda = ra_cuda_layer_of(layer);
    uint32_t bits = 0;
    for (int64_t row = 0; cuda && row < cuda->rows; row++) {
        if (!*(volatile uint32_t *)&cuda->fault[row])
            continue;
        for (int byte = 0; byte < 4; byte++) { /* one that comes meanwhile is reported next time */
            volatile uint8_t *one = (volatile uint8_t *)&cuda->fault[row] + byte;
            if (*one) {
                *one = 0;
                bits |= 1u << 8 * byte;
            }
        }
    }
    if (bits & RA_CUDA_FAULT_PAGES)
        return RA_ERR_DEVICE;
    if (bits & (RA_CUDA_FAULT_TOKENS | RA_CUDA_FAULT_SCORES))
        return RA_ERR_NOT_FINITE;
    return bits & RA_CUDA_FAULT_INFEASIBLE ? RA_ERR_INFEASIBLE : RA_OK;
}
