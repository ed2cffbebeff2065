/* Which kernel serves a step's attention. */
#include <initializer_list>

#include "attend_split.cuh"

int ra_cuda_attend_any(const ra_cuda_layer *layer, const ra_cuda_step *step, void *stream);

static bool is_fast(int head_dim)
{
    switch (head_dim) {
#define CASE(D) case D:
        RA_HEAD_SIZES(CASE)
#undef CASE
        return true;
    }
    return false;
}

/* Of any head with so many slots or less: where chunks grow there are fewer of them. */
static int most_chunks(int slots)
{
    int chunks = 0;
    for (int n : {slots, least(slots, SHORT_HEAD), least(slots, LONG_HEAD)})
        chunks = most(chunks, chunks_of(n, chunk_bits(n)));
    return chunks;
}

/* Queries of a head whose chunks may lie in scratch: of whole tiles, however many queries these have. */
static size_t split_queries(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    return ((size_t)layer->group * least(step->tokens, SPLIT_TOKENS) + 15) / 16 * 16;
}

static size_t split_heads(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    return is_fast(layer->head_dim) && most_chunks(step->most_slots) > 1 ? (size_t)layer->rows * layer->kv_heads : 0;
}

extern "C" size_t ra_cuda_attend_tickets(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    return split_heads(layer, step) * split_queries(layer, step);
}

extern "C" size_t ra_cuda_attend_bytes(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    return split_heads(layer, step) * split_queries(layer, step) * most_chunks(step->most_slots) *
           (size_t)(layer->head_dim + 4) * sizeof(float);
}

/* Whether matrix units serve it: queries are of the pages' dtype, and the device has the instructions and the room. */
static bool is_matrix(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    return is_fast(layer->head_dim) && layer->format != RA_F32 && step->queries.dtype == layer->format &&
           ra_cuda_capability() >= 80 && ra_cuda_shared_bytes() >= matrix_shared_bytes(layer->head_dim);
}

extern "C" size_t ra_cuda_logits_bytes(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    const size_t queries = (size_t)layer->rows * layer->kv_heads * layer->group;
    return is_matrix(layer, step) ? queries * (list_room(step->most_slots) + 2) * sizeof(float) : 0;
}

static bool aligned_to_vectors(const void *data, int dtype, int64_t a, int64_t b, int64_t c)
{
    const int64_t elements = 16 / size_of(dtype);
    return (uintptr_t)data % 16 == 0 && a % elements == 0 && b % elements == 0 && c % elements == 0;
}

extern "C" int ra_cuda_attend(const ra_cuda_layer *layer, const ra_cuda_step *step, uint32_t *tickets, void *scratch,
                              void *stream)
{
    if (step->tokens < 1 || layer->rows < 1)
        return 0;
    if (!is_fast(layer->head_dim))
        return ra_cuda_attend_any(layer, step, stream);
    const ra_tokens &q = step->queries;
    const ra_output &o = step->out;
    split_params p = {};
    p.a.l = *layer;
    p.a.s = *step;
    /* Where all rows have many new tokens, none is split. */
    p.most_chunks = !step->begin && step->tokens > SPLIT_TOKENS ? 1 : most_chunks(step->most_slots);
    p.split_queries = (int)split_queries(layer, step);
    p.query_vectors = aligned_to_vectors(q.data, q.dtype, q.stride_row, q.stride_head, q.stride_token);
    p.out_vectors = aligned_to_vectors(o.data, o.dtype, o.stride_row, o.stride_token, 0);
    p.factor = step->softcap > 0 ? step->scale / step->softcap : step->scale * LOG2_E;
    p.cap_log2 = step->softcap > 0 ? step->softcap * LOG2_E : 0;
    p.partial = (float *)scratch;
    p.tickets = tickets;
    if (step->logits)
        return layer->format == RA_BF16 ? ra_attend_matrix_logits_bf16(p, stream)
                                        : ra_attend_matrix_logits_f16(p, stream);
    switch (layer->format) {
    case RA_F32: return ra_attend_plain_f32(p, stream);
    case RA_BF16: return is_matrix(layer, step) ? ra_attend_matrix_bf16(p, stream) : ra_attend_plain_bf16(p, stream);
    case RA_F16: return is_matrix(layer, step) ? ra_attend_matrix_f16(p, stream) : ra_attend_plain_f16(p, stream);
    default: return -1;
    }
}
