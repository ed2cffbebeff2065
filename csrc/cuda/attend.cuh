/* What the attention kernels share: which token a query is of, what it sees, where its result goes. */
#pragma once
#include "common.cuh"

struct attend_params {
    ra_cuda_layer l;
    ra_cuda_step s;
};

/* A query of a head: token-major within its row. */
struct query_ref {
    int token, group, place; /* number among the row's new tokens; query head within the group; where it stands */
    int limit;               /* slots that it sees, but for a mask */
    const uint8_t *visible;  /* by position, or NULL */
};

RA_DEVICE query_ref query_number(const attend_params &p, int row, int slots, int fresh, int query)
{
    query_ref q;
    q.token = query / p.l.group;
    q.group = query % p.l.group;
    const int number = p.s.begin ? p.s.begin[row] + q.token : row * p.s.tokens + q.token;
    q.place = p.s.index ? p.s.index[number] : q.token;
    q.limit = slots - (fresh - 1 - q.token);
    q.visible = p.s.visible ? p.s.visible + number * p.s.visible_stride : 0;
    return q;
}
RA_DEVICE const char *query_at(const attend_params &p, int row, int head, const query_ref &q)
{
    const ra_tokens &t = p.s.queries;
    int64_t at = row * t.stride_row + (head * p.l.group + q.group) * t.stride_head + q.place * t.stride_token;
    return (const char *)t.data + at * size_of(t.dtype);
}
RA_DEVICE char *out_at(const attend_params &p, int row, int head, const query_ref &q)
{
    const ra_output &o = p.s.out;
    int64_t at = row * o.stride_row + q.place * o.stride_token + (int64_t)(head * p.l.group + q.group) * p.l.head_dim;
    return (char *)o.data + at * size_of(o.dtype);
}
RA_DEVICE float sink_of(const attend_params &p, int head, const query_ref &q)
{
    return p.s.sinks ? p.s.sinks[head * p.l.group + q.group] : -INFINITY;
}
