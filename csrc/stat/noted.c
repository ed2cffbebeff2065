/* What attention leaves behind for the next cut, so that scores need no pass over the keys of their own.
 *
 * The newest `window` queries before a cut are those of the last `window` decoded tokens. Which tokens will then count
 * as older is known at each of these steps, so that each query's softmax over them can be taken on the spot. */
#include <stdlib.h>
#include <string.h>

#include "attend.h"

/* Tokens that will be older than the window at the cut. */
static int64_t older_then(const ra_layer *layer, const ra_head *head, int64_t cut_in)
{
    return head->slots + cut_in - layer->window;
}

/* Whether the queries noted so far are the ones just before this one, for the same cut. */
static bool continues(const ra_layer *layer, int64_t row, const ra_head *head, int64_t cut_in)
{
    const ra_noted *n = &head->noted;
    return n->importance && n->end == layer->seen[row] - 1 && n->queries == layer->window - 1 - cut_in &&
           n->older == older_then(layer, head, cut_in);
}

bool ra_noted_wants(const ra_layer *layer, int64_t row, const ra_head *head, int64_t cut_in)
{
    if (cut_in < 0 || cut_in >= layer->window || older_then(layer, head, cut_in) < 1)
        return false;
    return cut_in == 0 || cut_in == layer->window - 1 || continues(layer, row, head, cut_in);
}

/* Softmax over the older tokens of the maximum over the group, added to the sum. */
static void add_importance(const ra_layer *layer, ra_noted *n, const float *logits, int64_t stride, float *row)
{
    memcpy(row, logits, (size_t)n->older * sizeof *row);
    for (int64_t g = 1; g < layer->group; g++)
        for (int64_t i = 0; i < n->older; i++)
            row[i] = logits[g * stride + i] > row[i] ? logits[g * stride + i] : row[i];
    ra_softmax(row, n->older);
    for (int64_t i = 0; i < n->older; i++)
        n->importance[i] += row[i];
}

static void take_mass(const ra_layer *layer, ra_head *head, float *logits, int64_t stride)
{
    ra_noted *n = &head->noted;
    n->mass = ra_new(head->slots, sizeof *n->mass);
    if (!n->mass)
        return;
    n->mass_slots = head->slots;
    for (int64_t g = 0; g < layer->group; g++) {
        ra_softmax(logits + g * stride, head->slots);
        for (int64_t i = 0; i < head->slots; i++)
            n->mass[i] = (g ? n->mass[i] : 0) + logits[g * stride + i];
    }
    ra_kernels_get()->scale(n->mass, (size_t)head->slots, 1 / (float)layer->group);
}

void ra_noted_take(const ra_layer *layer, int64_t row, ra_head *head, int64_t cut_in, float *logits, int64_t stride)
{
    ra_noted *n = &head->noted;
    if (cut_in == layer->window - 1) {
        ra_noted_clear(head);
        n->older = older_then(layer, head, cut_in);
        n->importance = calloc((size_t)n->older, sizeof *n->importance);
    } else if (!continues(layer, row, head, cut_in)) {
        ra_noted_clear(head);
    }
    float *scratch = n->importance ? ra_new(n->older, sizeof *scratch) : NULL;
    if (scratch) {
        add_importance(layer, n, logits, stride, scratch);
        n->queries++;
        free(scratch);
    }
    if (cut_in == 0)
        take_mass(layer, head, logits, stride);
    n->end = layer->seen[row];
}

const float *ra_noted_importance(const ra_layer *layer, int64_t row, const ra_head *head)
{
    const ra_noted *n = &head->noted;
    bool whole = n->queries == layer->window && n->end == layer->seen[row] && n->older == head->slots - layer->window &&
                 layer->q_end[row] == layer->seen[row] && layer->q_end[row] - layer->q_begin[row] == layer->window;
    return whole ? n->importance : NULL;
}

const float *ra_noted_mass(const ra_layer *layer, int64_t row, const ra_head *head)
{
    const ra_noted *n = &head->noted;
    return n->mass_slots == head->slots && n->end == layer->seen[row] ? n->mass : NULL;
}

void ra_noted_clear(ra_head *head)
{
    free(head->noted.importance);
    free(head->noted.mass);
    head->noted = (ra_noted){0};
}
