/* Which kernel serves a step's attention. */
#include "attend_split.cuh"

int ra_cuda_attend_any(const ra_cuda_layer *layer, const ra_cuda_step *step, void *stream);
int ra_cuda_attend_matrix(const split_run &run);
int ra_cuda_attend_plain(const split_run &run);

static bool has_size(int d)
{
#define RA_IS(D)                                                                                                       \
    if (d == D)                                                                                                        \
        return true;
    RA_SIZES(RA_IS)
#undef RA_IS
    return false;
}

/* bfloat16 has matrix units from compute capability 8 on. */
static bool has_matrix_units(int format)
{
#ifdef RA_EMULATE
    (void)format;
    return true;
#else
    static int major[64]; /* by device; 0: not asked yet. Whoever asks twice gets the same answer. */
    int device = 0, found = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device >= 64)
        return false;
    if (!major[device] && cudaDeviceGetAttribute(&found, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess)
        major[device] = found;
    return major[device] >= (format == RA_BF16 ? 8 : 7);
#endif
}

static bool divides(int64_t x, int64_t by) { return x % by == 0; }

/* Vectors of 16 bytes can be used, and everything is of one type. */
static bool is_split(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    const ra_tokens &q = step->queries;
    const ra_output &o = step->out;
    return !step->visible && has_size(layer->head_dim) && q.dtype == layer->format && o.dtype == layer->format &&
           divides((int64_t)(uintptr_t)q.data, 16) && divides((int64_t)(uintptr_t)o.data, 16) &&
           divides(q.stride_row, 8) && divides(q.stride_head, 8) && divides(q.stride_token, 8) &&
           divides(o.stride_row, 8) && divides(o.stride_token, 8) &&
           (layer->format == RA_F32 || has_matrix_units(layer->format));
}

/* More than any tiling needs. */
static size_t most_tiles(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    return (size_t)layer->group * (size_t)step->tokens + 16;
}

extern "C" size_t ra_cuda_attend_tickets(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    return (size_t)layer->rows * (size_t)layer->kv_heads * most_tiles(layer, step);
}

extern "C" size_t ra_cuda_attend_bytes(const ra_cuda_layer *layer, const ra_cuda_step *step)
{
    const int chunks = most_chunks(step->most_slots);
    if (chunks == 1)
        return 256;
    return (size_t)layer->rows * (size_t)layer->kv_heads * most_tiles(layer, step) * (size_t)chunks *
           (size_t)(layer->head_dim + 4) * sizeof(float);
}

extern "C" int ra_cuda_attend(const ra_cuda_layer *layer, const ra_cuda_step *step, uint32_t *tickets, void *scratch,
                              void *stream)
{
    if (step->tokens < 1)
        return 0;
    if (!is_split(layer, step))
        return ra_cuda_attend_any(layer, step, stream);
    const split_run run = {{{*layer, *step}, most_chunks(step->most_slots), (float *)scratch, tickets}, stream};
    return layer->format == RA_F32 ? ra_cuda_attend_plain(run) : ra_cuda_attend_matrix(run);
}
