/* Attention mass of the newest query, kept for the cut that comes right after it: what evicted slots cost. */
#include "newest_mass.h"

typedef struct state {
    int64_t slots; /* length of the column */
    int64_t end;   /* tokens that the row had been given then */
} state;

static size_t head_bytes(int64_t head_dim)
{
    (void)head_dim;
    return sizeof(state);
}

static state *state_of(const ra_layer *layer, int64_t pair) { return ra_state_of(layer, RA_STAT_NEWEST_MASS, pair); }

static void add(ra_layer *layer, int64_t pair, int64_t cut_in, const ra_weights *weights, int64_t now, float *floats)
{
    (void)now, (void)floats;
    if (cut_in)
        return;
    float *mass = ra_column_of(layer, RA_STAT_NEWEST_MASS, 0, pair);
    ra_weights_sum(weights, 0, mass);
    ra_kernels_get()->scale(mass, (size_t)weights->slots, 1 / (float)weights->group);
    *state_of(layer, pair) = (state){.slots = weights->slots, .end = layer->tokens[pair / layer->kv_heads]};
}

static void forget(ra_layer *layer, int64_t pair) { *state_of(layer, pair) = (state){0}; }

static void crop(ra_layer *layer, int64_t pair, int64_t slots)
{
    (void)slots;
    forget(layer, pair);
}

static void move(ra_layer *layer, int64_t pair, const int32_t *kept, int64_t keep, int64_t before, int32_t *places)
{
    (void)kept, (void)keep, (void)before, (void)places;
    forget(layer, pair);
}

const ra_stat ra_stat_newest_mass = {
    .name = "newest-mass",
    .fields = 1,
    .head_bytes = head_bytes,
    .restart = forget,
    .add = add,
    .move = move,
    .crop = crop,
};

const float *ra_newest_mass_of(const ra_layer *layer, int64_t pair)
{
    if (!layer->states[RA_STAT_NEWEST_MASS])
        return NULL;
    const state *s = state_of(layer, pair);
    bool fits = s->slots && s->slots == layer->slots[pair] && s->end == layer->tokens[pair / layer->kv_heads];
    return fits ? ra_column_of(layer, RA_STAT_NEWEST_MASS, 0, pair) : NULL;
}
