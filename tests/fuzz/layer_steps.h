/* Part of layer.c: steps of any shape, layout and dtype. */
#ifndef RA_FUZZ_LAYER_STEPS_H
#define RA_FUZZ_LAYER_STEPS_H

#include "layer_oracle.h"

typedef struct step_plan {
    int64_t begin[ROWS + 1], *index, tokens; /* tokens: in the tensors */
    bool packed, plain;                      /* plain: begin NULL */
    int64_t total;
} step_plan;

static int64_t fresh_of(const step_plan *p, int64_t row) { return p->begin[row + 1] - p->begin[row]; }

/* Where token i of a row stands in the tensors. */
static int64_t place_of(const step_plan *p, int64_t row, int64_t i)
{
    return p->index ? p->index[p->begin[row] + i] : i;
}

static bool draw_plan(const m_layer *m, int64_t wanted, step_plan *p)
{
    uint8_t mode = take_byte(w.b) % 4;
    *p = (step_plan){.packed = mode == 3 && !wanted, .plain = mode == 0 || wanted > 0};
    uint8_t size = take_byte(w.b);
    int64_t high = size < 150 ? 1 : size < 240 ? 1 + size % 24 : 1 + 2 * (size % 140);
    if (wanted)
        high = wanted;
    for (int64_t row = 0; row < m->rows; row++) {
        int64_t fresh = p->plain ? high : below(3) ? below(high + 1) : high, slots = 0;
        for (int64_t h = 0; h < w.heads; h++)
            slots = most(slots, m->row[row].head[h].slots);
        if (slots + fresh > SLOTS) {
            if (p->plain)
                return false;
            fresh = 0;
        }
        p->begin[row + 1] = p->begin[row] + fresh;
        p->tokens = most(p->tokens, fresh);
    }
    p->total = p->begin[m->rows];
    if (!p->total)
        return false;
    if (p->plain || mode == 1)
        return true;
    p->index = exactly((size_t)p->total * sizeof *p->index);
    p->tokens += below(4);
    for (int64_t row = 0; row < m->rows; row++) {
        int64_t left = p->tokens - fresh_of(p, row), at = 0; /* places that are padding */
        for (int64_t i = 0; i < fresh_of(p, row); i++, at++) {
            int64_t skip = left ? below(left + 1) : 0;
            left -= skip;
            at += skip;
            p->index[p->begin[row] + i] = at;
        }
    }
    for (int64_t i = 0; p->packed && i < p->total; i++)
        p->index[i] = i;
    p->tokens = p->packed ? p->total : p->tokens;
    return true;
}

/* Pages that the step takes: `shared` tails count for every head that has one. */
static int64_t pages_of_step(const m_layer *m, const step_plan *p)
{
    int64_t need = 0;
    for (int64_t row = 0; row < m->rows; row++)
        for (int64_t h = 0; h < w.heads && fresh_of(p, row); h++) {
            const m_head *head = &m->row[row].head[h];
            need += pages_for(head->slots + fresh_of(p, row)) - pages_for(head->slots);
            need += head->slots % T && w.refs[head->page[head->slots / T]] > 1;
        }
    return need;
}

static void reserve(m_layer *m, const step_plan *p)
{
    int64_t missing, need = pages_of_step(m, p), ahead = below(3) ? 0 : below(40);
    for (;;) {
        ra_status status;
        CALL(status,
             ra_layer_reserve(m->layer, p->plain ? NULL : p->begin, p->plain ? p->tokens : -1, ahead, &missing));
        if (status == RA_OK)
            break;
        m->reserved = 0; /* what was reserved before is free again */
        m->pending = false;
        PROMISE(status == RA_ERR_NO_PAGES);
        add_missing(missing, need);
    }
    m->reserved = need;
    m->pending = true;
}

/* A tensor [rows, heads, T, D] in a layout of its own, NaN where nothing is. */
typedef struct tensor {
    ra_tokens t;
    void *memory;
    int64_t heads;
} tensor;

static tensor new_tensor(const step_plan *p, int64_t rows, int64_t heads)
{
    ra_dtype dtype = (ra_dtype)below(RA_DTYPES);
    int64_t gap = below(3), tokens = p->tokens, size = (int64_t)ra_dtype_size(dtype), floats;
    bool token_major = below(2);
    ra_tokens t = {.dtype = dtype,
                   .stride_token = token_major ? heads * w.d + gap : w.d + gap,
                   .stride_head = token_major ? w.d : tokens * (w.d + gap)};
    t.stride_row = p->packed ? 0 : token_major ? tokens * t.stride_token : heads * t.stride_head;
    floats = token_major ? tokens * t.stride_token : heads * t.stride_head;
    floats *= p->packed ? 1 : rows;
    void *memory = exactly((size_t)(floats * size));
    memset(memory, 0xff, (size_t)(floats * size));
    t.data = memory;
    return (tensor){.t = t, .memory = memory, .heads = heads};
}

static int64_t element(const tensor *x, int64_t row, int64_t head, int64_t place)
{
    return row * x->t.stride_row + head * x->t.stride_head + place * x->t.stride_token;
}

static void draw_key(float *key)
{
    int64_t kind = below(8);
    for (int64_t c = 0; c < w.d; c++)
        key[c] = kind == 0   ? 0
                 : kind == 1 ? w.last_key[c]
                 : kind <= 4 ? 0.9f * w.last_key[c] + 0.3f * random_float()
                 : kind == 5 ? 1e-3f * random_float()
                             : random_float();
    memcpy(w.last_key, key, sizeof w.last_key);
}

/* Fills the new tokens' places; `keys`: whether neighbours resemble each other. */
static void fill(const m_layer *m, const step_plan *p, tensor *x, bool keys)
{
    float row_of[DIM];
    for (int64_t row = 0; row < m->rows; row++)
        for (int64_t h = 0; h < x->heads; h++)
            for (int64_t i = 0; i < fresh_of(p, row); i++) {
                int64_t at = element(x, row, h, place_of(p, row, i));
                if (keys)
                    draw_key(row_of);
                for (int64_t c = 0; c < w.d; c++)
                    put(x->t.dtype, x->memory, at + c, rounded(x->t.dtype, keys ? row_of[c] : 2 * random_float()));
            }
}

/* One number that the format cannot hold, somewhere among the new tokens of keys or values; undo with what it returns. */
static int64_t spoil(const m_layer *m, const step_plan *p, tensor *x, float *before)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f};
    int64_t row = below(m->rows);
    while (!fresh_of(p, row))
        row = (row + 1) % m->rows;
    int64_t at = element(x, row, below(x->heads), place_of(p, row, below(fresh_of(p, row)))) + below(w.d);
    bool narrow = w.format == ra_format_find("float16") && x->t.dtype != RA_F16; /* 3e38 is infinite in it */
    float value = bad[below(narrow ? 4 : 3)];
    *before = get(x->t.dtype, x->memory, at);
    put(x->t.dtype, x->memory, at, value);
    return at;
}

static void append(m_layer *m, const step_plan *p, const tensor *q, const tensor *k, const tensor *v)
{
    ra_dtype stored = dtype_of(w.format == ra_format_find("bfloat16")  ? "bfloat16"
                               : w.format == ra_format_find("float16") ? "float16"
                                                                       : "float32");
    int64_t Hq = w.heads * w.group;
    for (int64_t r = 0; r < m->rows; r++) {
        m_row *row = &m->row[r];
        int64_t fresh = fresh_of(p, r);
        for (int64_t h = 0; h < w.heads && fresh; h++) {
            m_head *head = &row->head[h];
            int64_t n = head->slots;
            if (n % T && w.refs[head->page[n / T]] > 1) {
                drop_page(head->page[n / T]);
                head->page[n / T] = take_page();
            }
            for (int64_t i = 0; i < fresh; i++, n++) {
                int64_t place = place_of(p, r, i), key = element(k, r, h, place), value = element(v, r, h, place);
                if (n % T == 0)
                    head->page[n / T] = take_page();
                head->positions[n] = (int32_t)(row->tokens + i);
                for (int64_t c = 0; c < w.d; c++) {
                    head->keys[n * w.d + c] = rounded(stored, get(k->t.dtype, k->memory, key + c));
                    head->values[n * w.d + c] = rounded(stored, get(v->t.dtype, v->memory, value + c));
                }
            }
            head->slots = n;
        }
        for (int64_t i = 0; i < fresh; i++) {
            if (row->queries == w.window)
                memmove(row->query, row->query + Hq * w.d, (size_t)(--row->queries * Hq * w.d) * sizeof *row->query);
            for (int64_t h = 0; h < Hq; h++)
                for (int64_t c = 0; c < w.d; c++)
                    row->query[(row->queries * Hq + h) * w.d + c] = get(q->t.dtype, q->memory,
                                                                        element(q, r, h, place_of(p, r, i)) + c);
            row->queries++;
        }
        row->tokens += fresh;
    }
}

/* One new token of each row, all its heads. */
static void check_output(const m_layer *m, const step_plan *p, const ra_step *s, const tensor *q)
{
    static double x[SLOTS];
    for (int64_t r = 0; r < m->rows; r++) {
        if (!fresh_of(p, r))
            continue;
        int64_t i = below(fresh_of(p, r)), place = place_of(p, r, i);
        for (int64_t h = 0; h < w.heads * w.group; h++) {
            const m_head *head = &m->row[r].head[h / w.group];
            int64_t n = head->slots - (fresh_of(p, r) - 1 - i);
            float query[DIM];
            for (int64_t c = 0; c < w.d; c++)
                query[c] = get(q->t.dtype, q->memory, element(q, r, h, place) + c);
            for (int64_t j = 0; j < n; j++) {
                x[j] = logit(query, head->keys + j * w.d);
                if (s->visible && !s->visible[(p->begin[r] + i) * s->visible_stride + head->positions[j]])
                    x[j] = -INFINITY;
            }
            softmax(x, n, s->sinks ? (double)s->sinks[h] : -INFINITY);
            for (int64_t c = 0; c < w.d; c++) {
                double want = 0;
                for (int64_t j = 0; j < n; j++)
                    want += x[j] * (double)head->values[j * w.d + c];
                double got = (double)get(s->out.dtype, s->out.data,
                                         r * s->out.stride_row + place * s->out.stride_token + h * w.d + c);
                double unit = s->out.dtype == RA_F32 ? 0 : s->out.dtype == RA_BF16 ? 0x1p-8 : 0x1p-11;
                PROMISE(fabs(got - want) <= 2e-4 + unit * fabs(want));
            }
        }
    }
}

/* What does not belong to a new token is as it was. */
static void check_padding(const m_layer *m, const step_plan *p, const ra_step *s, int64_t size_of_out, uint8_t before)
{
    int64_t size = (int64_t)ra_dtype_size(s->out.dtype), each = w.heads * w.group * w.d * size;
    uint8_t *out = s->out.data;
    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t i = 0; i < fresh_of(p, r); i++)
            memset(out + (r * s->out.stride_row + place_of(p, r, i) * s->out.stride_token) * size, before,
                   (size_t)each);
    for (int64_t i = 0; i < size_of_out; i++)
        PROMISE(out[i] == before);
}

/* wanted: tokens of every row, or 0: any. cut_in: of every row, or -2: as it comes. */
static outcome step_once(m_layer *m, int64_t wanted, int64_t cut_in)
{
    step_plan p;
    if (!draw_plan(m, wanted, &p)) {
        free(p.index);
        return SKIPPED;
    }
    tensor q = new_tensor(&p, m->rows, w.heads * w.group), k = new_tensor(&p, m->rows, w.heads),
           v = new_tensor(&p, m->rows, w.heads);
    fill(m, &p, &q, false);
    fill(m, &p, &k, true);
    fill(m, &p, &v, false);
    ra_step s = {.begin = p.plain ? NULL : p.begin,
                 .index = p.index,
                 .tokens = p.tokens,
                 .queries = q.t,
                 .keys = k.t,
                 .values = v.t,
                 .scale = w.scale,
                 .softcap = w.softcap};
    int64_t announced[ROWS], out_bytes = 0, longest = 0;
    uint8_t options = take_byte(w.b), *visible = NULL, sentinel = 0x55;
    for (int64_t r = 0; r < m->rows; r++) {
        announced[r] = cut_in > -2 ? cut_in : below(w.window + 3) - 1;
        longest = most(longest, m->row[r].tokens + fresh_of(&p, r));
    }
    s.cut_in = cut_in > -2 || options & 1 ? announced : NULL;
    s.sinks = w.with_sinks ? w.sinks : NULL;
    if ((options & 12) == 12 && p.total * longest < 1 << 16) {
        s.visible_stride = longest + below(3);
        s.visible = visible = exactly((size_t)(p.total * s.visible_stride));
        for (int64_t i = 0; i < p.total * s.visible_stride; i++)
            visible[i] = below(4) != 0;
        if (!below(4))
            memset(visible, 0, (size_t)s.visible_stride); /* nothing at all */
    }
    if (options & 48) { /* three of four */
        s.out.dtype = (ra_dtype)below(RA_DTYPES);
        s.out.stride_token = w.heads * w.group * w.d + below(3);
        s.out.stride_row = p.packed ? 0 : p.tokens * s.out.stride_token + below(3);
        out_bytes = (p.packed ? p.tokens * s.out.stride_token : m->rows * s.out.stride_row) *
                    (int64_t)ra_dtype_size(s.out.dtype);
        s.out.data = exactly((size_t)out_bytes);
        memset(s.out.data, sentinel, (size_t)out_bytes);
    }
    if (options >> 6 == 3 && !m->pending)
        PROMISE(ra_layer_step(m->layer, &s, NULL) == RA_ERR_ARGUMENT); /* nothing was reserved for it */
    reserve(m, &p);
    if (options >> 6 == 2) {
        float before;
        tensor *x = below(2) ? &k : &v;
        int64_t at = spoil(m, &p, x, &before);
        PROMISE(ra_layer_step(m->layer, &s, NULL) == RA_ERR_NOT_FINITE);
        put(x->t.dtype, x->memory, at, before);
        compare(false);
    }
    for (int i = 0; options >> 6 == 1 && i < 2; i++) /* memory that is given back is not what was reserved */
        (void)op_trim(m);
    int64_t allocations = ra_allocations();
    ra_status status = ra_layer_step(m->layer, &s, any_parallel());
    PROMISE(status == RA_OK);
    PROMISE(ra_allocations() == allocations);
    append(m, &p, &q, &k, &v);
    m->reserved = 0;
    m->pending = false;
    m->sinks = s.sinks != NULL;
    m->begun = false;
    if (s.out.data) {
        check_output(m, &p, &s, &q);
        check_padding(m, &p, &s, out_bytes, sentinel);
    }
    free(s.out.data);
    free(visible);
    free(q.memory);
    free(k.memory);
    free(v.memory);
    free(p.index);
    return DONE;
}

static outcome op_step(m_layer *m) { return step_once(m, 0, -2); }

/* For a step that does not come: another reserve, or a call that changes rows, is next. */
static outcome op_reserve(m_layer *m)
{
    step_plan p;
    bool drawn = draw_plan(m, 0, &p);
    if (drawn)
        reserve(m, &p);
    free(p.index);
    return drawn ? DONE : SKIPPED;
}

#endif
