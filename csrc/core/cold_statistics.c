/* What statistics know of a head's slots, kept from cut to cut. A block of the positions that it is about; its records are,
 * of each statistic, the number of slots that are known, the state, and the columns of these. */
#include <stdlib.h>
#include <string.h>

#include "cold.h"

/* Not where keys come back as others than they went. */
static bool remembers(const ra_layer *layer, int s)
{
    return layer->columns[s] && ra_stats[s]->cached && layer->cold->format == RA_COLD_SAME;
}

static size_t state_bytes(const ra_layer *layer, int s) { return ra_stats[s]->head_bytes(layer->pool->head_dim); }

/* Bytes of a statistic's part for `slots` slots. */
static size_t part_bytes(const ra_layer *layer, int s, int64_t slots)
{
    return sizeof(int64_t) + state_bytes(layer, s) + (size_t)ra_stats[s]->fields * (size_t)slots * 4;
}

static char *write_part(const ra_layer *layer, int64_t pair, int s, int64_t slots, char *to)
{
    memcpy(to, &slots, sizeof slots);
    to += sizeof slots;
    memcpy(to, ra_state_of(layer, s, pair), state_bytes(layer, s));
    to += state_bytes(layer, s);
    for (int field = 0; field < ra_stats[s]->fields; field++, to += (size_t)slots * 4)
        memcpy(to, ra_column_of(layer, s, field, pair), (size_t)slots * 4);
    return to;
}

static const char *read_part(ra_layer *layer, int64_t pair, int s, const char *from)
{
    int64_t slots;
    memcpy(&slots, from, sizeof slots);
    from += sizeof slots;
    memcpy(ra_state_of(layer, s, pair), from, state_bytes(layer, s));
    from += state_bytes(layer, s);
    for (int field = 0; field < ra_stats[s]->fields; field++, from += (size_t)slots * 4)
        memcpy(ra_column_of(layer, s, field, pair), from, (size_t)slots * 4);
    return from;
}

/* A statistic forgets the slots goes[0, count): as a cut that keeps the others. */
static void forget(ra_layer *layer, int64_t pair, int s, const int32_t *goes, int64_t count, int32_t *lists)
{
    int64_t n = layer->slots[pair], keep = 0;
    int32_t *kept = lists, *places = lists + n;
    for (int64_t page = 0, i = 0; page * PAGE < n; page++) {
        bool leaves[PAGE] = {false};
        for (int64_t slot = page * PAGE; slot < ra_min(n, page * PAGE + PAGE); slot++) {
            leaves[slot % PAGE] = i < count && goes[i] == slot;
            if (leaves[slot % PAGE])
                i++;
            else
                kept[keep++] = (int32_t)slot;
        }
        if (ra_stats[s]->leave)
            ra_stats[s]->leave(layer, pair, page, leaves);
    }
    ra_stat_move(layer, s, pair, kept, keep, n, places);
}

bool ra_cold_save_statistics(ra_layer *layer, int64_t pair, const int32_t *goes, int64_t count, ra_cold_block **out)
{
    int64_t n = layer->slots[pair];
    size_t bytes = 0, most = 0;
    *out = NULL;
    for (int s = 0; s < RA_STATS; s++) {
        if (!remembers(layer, s))
            continue;
        bytes += part_bytes(layer, s, n - count);
        most = part_bytes(layer, s, n) > most ? part_bytes(layer, s, n) : most;
    }
    if (!bytes || n == count)
        return true;
    ra_cold_block *statistics = ra_cold_make(n - count, bytes);
    char *before = NULL; /* a statistic's part */
    int32_t *lists = NULL;
    if (count) {
        lists = ra_new(2 * n + 1, sizeof *lists);
        before = ra_new((int64_t)most, 1);
    }
    if (!statistics || (count && (!lists || !before))) {
        free(statistics);
        free(lists);
        free(before);
        return false;
    }
    const int32_t *positions = ra_positions_of(layer, pair);
    for (int64_t slot = 0, i = 0, at = 0; slot < n; slot++) {
        if (i < count && goes[i] == slot)
            i++;
        else
            statistics->positions[at++] = positions[slot];
    }
    char *to = statistics->records;
    for (int s = 0; s < RA_STATS; s++) {
        if (!remembers(layer, s))
            continue;
        if (count) {
            write_part(layer, pair, s, n, before);
            forget(layer, pair, s, goes, count, lists);
        }
        to = write_part(layer, pair, s, ra_min(ra_stats[s]->cached(layer, pair), n - count), to);
        if (count)
            read_part(layer, pair, s, before);
    }
    free(lists);
    free(before);
    *out = statistics;
    return true;
}

void ra_cold_restore_statistics(ra_layer *layer, int64_t pair, const ra_cold_block *statistics)
{
    const char *from = statistics ? statistics->records : NULL;
    for (int s = 0; s < RA_STATS; s++) {
        if (!layer->columns[s] || ra_stats[s]->lasting)
            continue;
        int64_t slots = 0;
        if (remembers(layer, s) && statistics)
            memcpy(&slots, from, sizeof slots);
        bool same = slots <= layer->slots[pair] &&
                    (!slots ||
                     !memcmp(statistics->positions, ra_positions_of(layer, pair), (size_t)slots * sizeof(int32_t)));
        if (ra_stats[s]->crop)
            ra_stats[s]->crop(layer, pair, 0);
        if (slots && same)
            read_part(layer, pair, s, from);
        if (remembers(layer, s) && statistics)
            from += part_bytes(layer, s, slots);
    }
}
