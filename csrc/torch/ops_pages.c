/* attend and append_: attention over pages that the caller laid out (PagedAttention, arXiv 2309.06180). */
#include <inttypes.h>
#include <math.h>

#include "ops.h"
#include "torch_bridge.h"

typedef struct paged {
    ra_view pages, table, lengths;
    ra_dtype dtype;
    int64_t rows, kv_heads, tokens, head_dim, table_pages;
} paged;

/* `tokens_of`: the tensor that brings the new tokens, [B, *, T, D]. */
static bool view_pages(const ra_view *tokens_of, ra_stable_value pages, ra_stable_value table, ra_stable_value lengths,
                       int64_t kv_heads, ra_place *place, paged *out, ra_failure *failure)
{
    paged made = {.rows = tokens_of->size[0], .tokens = tokens_of->size[2], .head_dim = tokens_of->size[3]};
    if (!ra_cache_dtype(tokens_of, &made.dtype, failure))
        return false;
    if (made.head_dim < 1 || made.head_dim > RA_MAX_HEAD_DIM)
        return ra_fail(failure, "%s has head size %" PRId64 ", allowed are 1 to %d", tokens_of->name, made.head_dim,
                       RA_MAX_HEAD_DIM);
    const int64_t page_size[] = {RA_ANY_SIZE, 2 * RA_PAGE_TOKENS * made.head_dim};
    const int64_t table_size[] = {made.rows, kv_heads, RA_ANY_SIZE};
    if (!ra_view_tensor(pages, "pages", "[P, 32 D]", 2, page_size, place, &made.pages, failure) ||
        !ra_expect_dtype(&made.pages, tokens_of->dtype, failure) ||
        !ra_view_tensor(table, "table", "[B, H, M]", 3, table_size, place, &made.table, failure) ||
        !ra_expect_dtype(&made.table, ra_torch.aoti_torch_dtype_int32(), failure))
        return false;
    made.kv_heads = made.table.size[1];
    made.table_pages = made.table.size[2];
    const int64_t lengths_size[] = {made.rows, made.kv_heads};
    if (!ra_view_tensor(lengths, "lengths", "[B, H]", 2, lengths_size, place, &made.lengths, failure) ||
        !ra_expect_dtype(&made.lengths, ra_torch.aoti_torch_dtype_int32(), failure))
        return false;
    *out = made;
    return true;
}

/* The core has refused: says which entry is wrong. Lengths: `least` to `most`; `extra` more slots are used. */
static bool explain(const paged *p, int64_t least, int64_t most, int64_t extra, ra_status status, ra_failure *failure)
{
    const int32_t *lengths = p->lengths.data, *table = p->table.data;
    for (int64_t i = 0; i < p->rows * p->kv_heads; i++) {
        const int64_t row = i / p->kv_heads, head = i % p->kv_heads;
        if (lengths[i] < least || lengths[i] > most)
            return ra_fail(failure, "lengths[%" PRId64 ", %" PRId64 "] is %d, allowed are %" PRId64 " to %" PRId64, row,
                           head, lengths[i], least, most);
        const int64_t used = (lengths[i] + extra + RA_PAGE_TOKENS - 1) / RA_PAGE_TOKENS;
        for (int64_t k = 0; k < used; k++) {
            const int32_t page = table[i * p->table_pages + k];
            if (page < 0 || page >= p->pages.size[0])
                return ra_fail(failure, "table[%" PRId64 ", %" PRId64 ", %" PRId64 "] is page %d of %" PRId64, row,
                               head, k, page, p->pages.size[0]);
        }
    }
    return ra_fail_status(failure, status);
}

/* ---- On a device, where nobody looks at table and lengths before the kernels do ---- */

static bool as_device_has_them(const paged *p, int64_t query_heads, void *data, ra_paged *out, ra_failure *failure)
{
    const int64_t pairs = p->rows * p->kv_heads, queries = query_heads / p->kv_heads * p->tokens;
    if (pairs > INT32_MAX || p->tokens > INT32_MAX - RA_PAGE_TOKENS || queries > INT32_MAX ||
        p->table_pages > INT32_MAX / RA_PAGE_TOKENS - 1 || p->pages.size[0] > INT32_MAX - 1)
        return ra_fail(failure, "its sizes are beyond what kernels count to, 2^31");
    if ((uintptr_t)data % 16 != 0)
        return ra_fail(failure, "pages do not begin at a multiple of 16 bytes");
    *out = (ra_paged){.dtype = p->dtype,
                      .rows = p->rows,
                      .kv_heads = p->kv_heads,
                      .query_heads = query_heads,
                      .tokens = p->tokens,
                      .head_dim = p->head_dim,
                      .table_pages = p->table_pages,
                      .page_count = p->pages.size[0],
                      .pages = data,
                      .table = p->table.data,
                      .lengths = p->lengths.data};
    return true;
}

static void *without_const(const void *data)
{
    union {
        const void *constant;
        void *plain; /* attention only reads */
    } both = {.constant = data};
    return both.plain;
}

static bool attend_on_device(ra_place *place, const paged *p, int64_t query_heads, const void *query, float scale,
                             void *out, ra_failure *failure)
{
    ra_paged pages;
    if (!as_device_has_them(p, query_heads, without_const(p->pages.data), &pages, failure) ||
        !ra_place_enter(place, place->operators->attend_bytes(&pages), failure))
        return false;
    const ra_status status = place->operators->attend(&pages, query, scale, out, place->memory, place->stream);
    ra_place_leave(place);
    return status == RA_OK || ra_fail_status(failure, status);
}

static bool append_on_device(ra_place *place, const paged *p, const void *keys, const void *values, void *data,
                             ra_failure *failure)
{
    ra_paged pages;
    if (!as_device_has_them(p, p->kv_heads, data, &pages, failure) ||
        !ra_place_enter(place, place->operators->append_bytes(&pages), failure))
        return false;
    const ra_status status = place->operators->append(&pages, keys, values, place->memory, place->stream);
    ra_place_leave(place);
    return status == RA_OK || ra_fail_status(failure, status);
}

bool ra_op_attend(const ra_stable_value *stack, ra_place *place, ra_tensor_handle *out, ra_failure *failure)
{
    static const int64_t any[] = {RA_ANY_SIZE, RA_ANY_SIZE, RA_ANY_SIZE, RA_ANY_SIZE};
    ra_view query;
    paged p;
    if (!ra_view_tensor(stack[0], "query", "[B, Hq, T, D]", 4, any, place, &query, failure) ||
        !view_pages(&query, stack[1], stack[2], stack[3], RA_ANY_SIZE, place, &p, failure))
        return false;
    const int64_t query_heads = query.size[1];
    if (p.kv_heads < 1 || query_heads % p.kv_heads != 0)
        return ra_fail(failure, "query has %" PRId64 " heads, which is no multiple of table's %" PRId64, query_heads,
                       p.kv_heads);
    const float scale = (float)ra_double_of(stack[4]);
    if (!isfinite(scale))
        return ra_fail(failure, "scale is %g, expected a finite number", (double)scale);
    void *data = NULL;
    const int64_t size[] = {p.rows, p.tokens, query_heads, p.head_dim};
    if (!ra_new_tensor(place, query.dtype, 4, size, out, &data, failure))
        return false;
    if (p.rows == 0 || p.tokens == 0 || query_heads == 0)
        return true;
    if (place->operators)
        return attend_on_device(place, &p, query_heads, query.data, scale, data, failure);
    const ra_status status = ra_attend_paged(p.dtype, query.data, p.pages.data, p.pages.size[0], p.table.data,
                                             p.lengths.data, p.rows, p.kv_heads, query_heads, p.tokens, p.head_dim,
                                             p.table_pages, scale, data, ra_torch_parallel());
    return status == RA_OK || explain(&p, p.tokens, p.table_pages * RA_PAGE_TOKENS, 0, status, failure);
}

bool ra_op_append(const ra_stable_value *stack, ra_place *place, ra_tensor_handle *out, ra_failure *failure)
{
    (void)out;
    static const int64_t any[] = {RA_ANY_SIZE, RA_ANY_SIZE, RA_ANY_SIZE, RA_ANY_SIZE};
    ra_view keys, values;
    paged p;
    if (!ra_view_tensor(stack[1], "keys", "[B, H, T, D]", 4, any, place, &keys, failure) ||
        !ra_view_tensor(stack[2], "values", "[B, H, T, D]", 4, keys.size, place, &values, failure) ||
        !ra_expect_dtype(&values, keys.dtype, failure) ||
        !view_pages(&keys, stack[0], stack[3], stack[4], keys.size[1], place, &p, failure))
        return false;
    if (p.rows == 0 || p.tokens == 0 || p.kv_heads == 0)
        return true;
    void *pages = NULL;
    if (ra_torch.torch_get_mutable_data_ptr(p.pages.handle, &pages) != 0)
        return ra_fail(failure, "pages cannot be written");
    if (place->operators)
        return append_on_device(place, &p, keys.data, values.data, pages, failure);
    const ra_status status = ra_append_paged(p.dtype, keys.data, values.data, pages, p.pages.size[0], p.table.data,
                                             p.lengths.data, p.rows, p.kv_heads, p.tokens, p.head_dim, p.table_pages);
    return status == RA_OK || explain(&p, 0, p.table_pages * RA_PAGE_TOKENS - p.tokens, p.tokens, status, failure);
}
