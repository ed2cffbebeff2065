/* What the kernels of an append share: which pages heads need, and elements eight at a time from any dtype to any. */
#pragma once
#include "common.cuh"

struct append_job {
    ra_cuda_layer l;
    ra_cuda_step s;
    int32_t *lists; /* scratch: 2 [R, H] + 2 */
};

RA_DEVICE int pairs_of(const append_job &j) { return j.l.rows * j.l.kv_heads; }
RA_DEVICE int place_of(const ra_cuda_step &s, int row, int i) { return s.index ? s.index[s.begin[row] + i] : i; }

RA_DEVICE const char *token_at(const ra_tokens &t, int row, int head, int place)
{
    int64_t at = row * t.stride_row + head * t.stride_head + place * t.stride_token;
    return (const char *)t.data + at * size_of(t.dtype);
}

/* take(pair, slots) for the thread's share of the heads that get a token; slots: before it. */
template <class F> RA_DEVICE void each_fresh_head(const append_job &j, F take)
{
    constexpr int SOME = 4; /* loads under way together: the compiler cannot know that no store comes in between */
    for (int first = threadIdx.x; first < pairs_of(j); first += SOME * THREADS) {
        int slots[SOME];
        RA_UNROLL for (int i = 0; i < SOME; i++) /* -1: none for this head */
        {
            const int pair = first + i * THREADS;
            slots[i] = pair < pairs_of(j) && fresh_of(j.s, pair / j.l.kv_heads) ? j.l.slots[pair] : -1;
        }
        RA_UNROLL for (int i = 0; i < SOME; i++) if (slots[i] >= 0)
            take(first + i * THREADS, slots[i]);
    }
}

/* ---- Shared tails ---- */

/* The page that a head's next token goes to, if it has other owners too; else -1. */
RA_DEVICE int32_t shared_tail(const append_job &j, int pair)
{
    const int slots = j.l.slots[pair];
    if (slots % PAGE == 0)
        return -1;
    const int32_t id = pages_of(j.l, pair)[slots / PAGE];
    return j.l.pool->refs[id] > 1 ? id : -1;
}

/* Whether a head copies its shared tail: heads come in their order, and who then owns the page alone keeps it. Its
 * owners in a layer are rows of the same head. */
RA_DEVICE bool is_copied(const append_job &j, int pair, int32_t tail)
{
    const int H = j.l.kv_heads, place = j.l.slots[pair] / PAGE;
    int owners = j.l.pool->refs[tail];
    for (int other = pair - H; other >= 0 && owners > 1; other -= H) {
        const int slots = j.l.slots[other];
        if (slots % PAGE && slots / PAGE == place && fresh_of(j.s, other / H))
            owners -= pages_of(j.l, other)[place] == tail;
    }
    return owners > 1;
}

RA_DEVICE void copy_page(const ra_cuda_layer &l, int32_t from, int32_t to)
{
    const int vectors = 2 * PAGE * l.head_dim * (int)size_of(l.format) / 16;
    const char *source = (const char *)l.pool->memory[from];
    char *target = (char *)l.pool->memory[to];
    for (int i = threadIdx.x; i < vectors; i += THREADS)
        store16(target + 16 * (int64_t)i, load16(source + 16 * (int64_t)i, true));
}

/* ---- Eight elements of a token from dimension c on, of which those past its end are zero ---- */

RA_DEVICE void load8(const char *from, int dtype, int c, int d, float *x)
{
    const char *at = from + c * size_of(dtype);
    const bool whole = c + 8 <= d && (uintptr_t)at % 16 == 0;
    if (dtype == RA_F32) {
        vec16 v[2];
        if (whole) {
            v[0] = load16(at, true);
            v[1] = load16(at + 16, true);
        } else {
            RA_UNROLL for (int i = 0; i < 8; i++) v[i / 4].w[i % 4] = c + i < d ? as_bits(((const float *)at)[i]) : 0;
        }
        RA_UNROLL for (int i = 0; i < 8; i++) x[i] = element(v[i / 4], i % 4, 0.0f);
        return;
    }
    vec16 v;
    if (whole) {
        v = load16(at, true);
    } else {
        uint32_t bits[8];
        RA_UNROLL for (int i = 0; i < 8; i++) bits[i] = c + i < d ? ((const uint16_t *)at)[i] : 0;
        RA_UNROLL for (int i = 0; i < 4; i++) v.w[i] = bits[2 * i] | bits[2 * i + 1] << 16;
    }
    if (dtype == RA_BF16) {
        RA_UNROLL for (int i = 0; i < 8; i++) x[i] = element(v, i, bf16());
    } else {
        RA_UNROLL for (int i = 0; i < 8; i++) x[i] = element(v, i, f16());
    }
}

/* As E has them. */
template <class E> struct eight {
    vec16 v[sizeof(E) / 2];

    /* False if one of them is not finite any more. */
    RA_MEMBER bool set(const float *x)
    {
        bool finite = true;
        RA_UNROLL for (int i = 0; i < 8; i++)
        {
            E e;
            narrow(x[i], &e);
            finite &= is_finite(widen(e));
            put(i, e);
        }
        return finite;
    }
    RA_MEMBER void put(int i, float e) { v[i / 4].w[i % 4] = as_bits(e); }
    template <class H> RA_MEMBER void put(int i, H e)
    {
        v[0].w[i / 2] = i % 2 ? v[0].w[i / 2] | (uint32_t)e.bits << 16 : e.bits;
    }
    RA_MEMBER void store(int i, float *to) const { *to = as_float(v[i / 4].w[i % 4]); }
    template <class H> RA_MEMBER void store(int i, H *to) const
    {
        to->bits = (uint16_t)(i % 2 ? v[0].w[i / 2] >> 16 : v[0].w[i / 2]);
    }
    /* To where the token's dimension 0 goes. */
    RA_MEMBER void store_all(E *to, int c, int d) const
    {
        to += c;
        if (c + 8 <= d && (uintptr_t)to % 16 == 0) {
            RA_UNROLL for (int i = 0; i < (int)sizeof(E) / 2; i++) store16((char *)to + 16 * i, v[i]);
        } else {
            RA_UNROLL for (int i = 0; i < 8; i++) if (c + i < d) store(i, to + i);
        }
    }
};

/* ---- Afterwards ---- */

/* Lists of slots, tokens and queries; one block. */
RA_DEVICE void settle_lists(const append_job &j)
{
    each_fresh_head(j, [&](int pair, int slots) { j.l.slots[pair] = slots + fresh_of(j.s, pair / j.l.kv_heads); });
    for (int row = threadIdx.x; row < j.l.rows; row += THREADS) {
        const int fresh = fresh_of(j.s, row), end = j.l.tokens[row] + fresh;
        if (fresh) {
            j.l.tokens[row] = j.l.q_end[row] = end;
            j.l.q_begin[row] = most(j.l.q_begin[row], end - j.l.window);
        }
    }
    for (int h = threadIdx.x; h < j.l.kv_heads * j.l.group; h += THREADS)
        j.l.sinks[h] = j.s.sinks ? j.s.sinks[h] : -INFINITY;
}

int ra_append_prompt(const append_job &j, void *stream);
