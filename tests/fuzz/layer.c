/* Fuzzes layers: any sequence of calls against a model in plain loops, with failing allocations in between.
 *
 *     make fuzz FUZZ_SECONDS=600          libFuzzer chooses the sequences
 *     build/sanitize/c/fuzz_layer 1000000 a million random operations (tests/c/fuzz_layer.c)
 *
 * layer_model.h is the model, layer_oracle.h computes in float64, layer_steps.h, layer_cuts.h and layer_rows.h are the
 * operations. */
#include "layer_rows.h"

static outcome op_isa(m_layer *m)
{
    (void)m;
    take_isa(w.b);
    return DONE;
}

/* How often, of 256. */
static const struct {
    const char *name;
    int often;
    outcome (*run)(m_layer *m);
} operations[] = {
    {"step", 109, op_step},      {"reserve", 6, op_reserve},
    {"cut", 40, op_cut},         {"announced cut", 10, op_announced_cut},
    {"apply", 3, op_apply},      {"fork", 12, op_fork},
    {"release", 8, op_release},  {"reorder", 12, op_reorder},
    {"crop", 12, op_crop},       {"trim", 10, op_trim},
    {"reset", 3, op_reset},      {"layers", 8, op_layers},
    {"restore", 10, op_restore}, {"refused", 6, op_refused},
    {"isa", 7, op_isa},
};
enum { OPERATIONS = sizeof operations / sizeof *operations };
static long outcomes[OPERATIONS][OUTCOMES];

static void operate(void)
{
    m_layer *m = &w.layer[take_byte(w.b) % LAYERS];
    if (!m->layer)
        m = &w.layer[0];
    uint8_t byte = take_byte(w.b);
    w.random += byte;
    int op = 0, left = byte;
    while (left >= operations[op].often)
        left -= operations[op++].often;
    outcomes[op][operations[op].run(m)]++;
    w.operations++;
    compare(w.operations % 8 == 0);
}

static void begin(bytes *b)
{
    size_t formats = 0;
    static const int64_t dims[] = {1, 3, 16, 20, 33, 40};
    memset(w.refs, 0, sizeof w.refs);
    memset(w.last_key, 0, sizeof w.last_key);
    w.b = b;
    w.used = w.pages = 0;
    w.random = take_word(b);
    while (ra_format_name(formats))
        formats++;
    w.format = ra_format_find(ra_format_name((size_t)below((int64_t)formats)));
    w.d = dims[below(6)];
    w.heads = 1 + below(HEADS);
    w.group = 1 + below(GROUP);
    w.window = 1 + below(WINDOW);
    w.scale = below(2) ? (float)(1 / sqrt((double)w.d)) : 0.3f;
    w.softcap = below(3) ? 0 : 1.5f;
    for (int i = 0; i < QUERY_HEADS; i++)
        w.sinks[i] = 2 * random_float();
    w.with_sinks = below(2);
    w.scorer = below(4) ? draw_score(false).scorer : NULL;
    take_isa(b);
    PROMISE(ra_pool_create(w.format, w.d, &w.pool) == RA_OK);
    create(&w.layer[0]);
}

static void end(void)
{
    compare(true);
    for (int i = 0; i < LAYERS; i++)
        if (w.layer[i].layer)
            destroy(&w.layer[i]);
    PROMISE(w.used == 0 && ra_pool_get_info(w.pool).used == 0 && ra_pool_get_info(w.pool).shared == 0);
    ra_pool_destroy(w.pool);
    for (int i = 0; i < SLABS; i++) {
        free(w.slab[i]);
        w.slab[i] = NULL;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bytes b = {data, size};
    begin(&b);
    while (b.left)
        operate();
    end();
    return 0;
}
