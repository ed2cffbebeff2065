/* What kernels share: elements of any dtype, pages, prefixes and sums over a block. */
#pragma once
#include "launch.h"
#include "machine.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS, PAGE = RA_PAGE_TOKENS;

/* 10 * major + minor of the current device; 0 if it cannot be known. */
int ra_cuda_capability();
/* Shared memory that a block may have there. */
size_t ra_cuda_shared_bytes();

RA_HOST_DEVICE int pages_for(int slots) { return (slots + PAGE - 1) / PAGE; }
RA_HOST_DEVICE int least(int a, int b) { return a < b ? a : b; }
RA_HOST_DEVICE int most(int a, int b) { return a > b ? a : b; }
/* Entries of a head's list that has room for that many slots. */
RA_HOST_DEVICE int64_t list_room(int slots) { return (int64_t)pages_for(most(1, slots)) * PAGE; }
RA_HOST_DEVICE int64_t size_of(int dtype) { return dtype == RA_F32 ? 4 : 2; }
RA_HOST_DEVICE size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

RA_DEVICE float load_element(const void *from, int64_t i, int dtype)
{
    if (dtype == RA_F32)
        return ((const float *)from)[i];
    return dtype == RA_BF16 ? widen(((const bf16 *)from)[i]) : widen(((const f16 *)from)[i]);
}
RA_DEVICE void store_element(void *to, int64_t i, int dtype, float x)
{
    if (dtype == RA_F32)
        ((float *)to)[i] = x;
    else if (dtype == RA_BF16)
        narrow(x, (bf16 *)to + i);
    else
        narrow(x, (f16 *)to + i);
}
RA_DEVICE bool is_finite(float x) { return (as_bits(x) & 0x7f800000u) != 0x7f800000u; }
/* What is left of a number that is stored. */
RA_DEVICE float as_stored(float x, int dtype)
{
    float out;
    store_element(&out, 0, dtype, x);
    return load_element(&out, 0, dtype);
}

/* ---- Lists and pages ---- */

RA_DEVICE int64_t entries_of(const ra_cuda_layer &l) { return (int64_t)l.pages * PAGE; }
RA_DEVICE int32_t *pages_of(const ra_cuda_layer &l, int pair) { return l.table + (int64_t)pair * l.pages; }
RA_DEVICE int32_t *positions_of(const ra_cuda_layer &l, int pair) { return l.positions + pair * entries_of(l); }
RA_DEVICE char *page_at(const ra_cuda_layer &l, int pair, int page)
{
    return (char *)l.pool->memory[pages_of(l, pair)[page]];
}
RA_DEVICE char *values_in(const ra_cuda_layer &l, char *page) { return page + PAGE * l.head_dim * size_of(l.format); }
/* The query of a row's token, of the heads of one KV head: [group][D]. */
RA_DEVICE float *query_of(const ra_cuda_layer &l, int row, int64_t token, int head)
{
    int64_t each = (int64_t)l.group * l.head_dim;
    return l.queries + ((row * (int64_t)l.window + token % l.window) * l.kv_heads + head) * each;
}
/* New tokens of a row. */
RA_DEVICE int fresh_of(const ra_cuda_step &s, int row) { return s.begin ? s.begin[row + 1] - s.begin[row] : s.tokens; }
/* An owner less. The free stack is the caller's. */
RA_DEVICE void drop_owner(ra_cuda_pool *pool, int32_t id)
{
    if (global_add(&pool->refs[id], -1) == 2)
        global_add(&pool->shared, -1);
}
/* After pages were taken; one thread. */
RA_DEVICE void note_least_free(ra_cuda_pool *pool)
{
    if (pool->free_count < pool->least_free)
        pool->least_free = pool->free_count;
}
RA_DEVICE void set_fault(const ra_cuda_layer &l, int row, uint32_t bit)
{
    const int byte = (bit > 0xffff ? 2 : 0) + (bit & 0xff00ff00u ? 1 : 0);
    ((volatile uint8_t *)&l.fault[row])[byte] = 1;
}

/* ---- A block ---- */

/* Sum and exclusive prefix over the block's threads, in their order. scratch: an int a warp. */
RA_DEVICE int block_prefix(int value, shared<int> scratch, int *total)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = value;
    for (int by = 1; by < 32; by *= 2) {
        int before = shuffle_up(sum, by);
        sum += lane >= by ? before : 0;
    }
    block_sync();
    if (lane == 31)
        scratch[warp] = sum;
    block_sync();
    int base = 0;
    *total = 0;
    for (int w = 0; w < (int)blockDim.x / 32; w++) {
        base += w < warp ? (int)scratch[w] : 0;
        *total += scratch[w];
    }
    return base + sum - value;
}

/* Of all threads, in a fixed order. scratch: a number a warp. */
template <class F, class Join> RA_DEVICE F block_reduce(F value, shared<F> scratch, Join join)
{
    for (int mask = 16; mask; mask /= 2)
        value = join(value, shuffle_xor(value, mask));
    block_sync();
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = value;
    block_sync();
    F all = scratch[0];
    for (int w = 1; w < (int)blockDim.x / 32; w++)
        all = join(all, (F)scratch[w]);
    return all;
}
template <class F> RA_DEVICE F block_sum(F value, shared<F> scratch)
{
    return block_reduce(value, scratch, [](F a, F b) { return a + b; });
}
RA_DEVICE float block_max(float value, shared<float> scratch)
{
    return block_reduce(value, scratch, [](float a, float b) { return fmaxf(a, b); });
}

/* True in the last block of the grid to come; then the ticket is zero again, and what others wrote is there to load_fresh.
 * flag_at: where shared memory has a word for it. */
RA_DEVICE bool last_block(uint32_t *ticket, size_t flag_at)
{
    const shared<uint32_t> flag = shared_at<uint32_t>(flag_at);
    device_fence();
    block_sync();
    if (threadIdx.x == 0) {
        const bool last = global_add(ticket, 1u) + 1 == gridDim.x * gridDim.y;
        flag[0] = last;
        if (last)
            *ticket = 0;
    }
    block_sync();
    if (!flag[0])
        return false;
    device_fence();
    return true;
}

RA_DEVICE float softcapped(float x, float cap) { return cap > 0 ? cap * tanhf(x / cap) : x; }
