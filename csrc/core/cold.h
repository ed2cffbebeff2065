/* The cold tier's insides: what each head has evicted and may get back, in host memory beside the layer.
 *
 * A head's cold tokens are one block that is never written to once it is made: rows that fork share it, a cut makes
 * another one. A token is a record: its key and value, then what statistics carry along of it. What other statistics have
 * found out about all tokens, hot and cold, is a block beside it, so that the next cut need not begin from nothing. */
#ifndef RA_COLD_H
#define RA_COLD_H

#include "layer.h"

typedef struct ra_cold_block {
    int64_t owners, count;
    size_t bytes;        /* of the whole block */
    char *records;       /* behind the positions: [count] of cold tokens */
    int32_t positions[]; /* [count], ascending */
} ra_cold_block;

struct ra_cold {
    int64_t limit; /* tokens of a head; negative: none */
    ra_cold_format format;
    size_t row_bytes, record_bytes; /* of a key or a value; of a token */
    ra_cold_block **blocks;         /* [R, H], NULL: no token */
    ra_cold_block **statistics;     /* [R, H] what statistics knew at the newest cut; NULL: nothing */
    ra_cold_block **fresh;          /* [R, H] what they become when the cut is applied */
    ra_cold_block **fresh_statistics;
    int64_t *recalled; /* [R, H] tokens that came back at the newest cut */
    bool *merged;      /* [R] rows whose cold tokens are among their slots, until their cut ends */
    bool retired;      /* `fresh` is made */
};

static inline int64_t ra_cold_count(const ra_cold_block *block) { return block ? block->count : 0; }

/* ---- cold.c ---- */

/* A block of `count` positions and `bytes` of records with one owner, nothing in it yet; NULL without memory. */
ra_cold_block *ra_cold_make(int64_t count, size_t bytes);
void ra_cold_free(ra_cold *cold);
/* One for `rows` rows of a layer, row r with the blocks of the layer's row source[r] (-1: empty; NULL: r); *out NULL if the
 * layer has no cold tier. False without memory. */
bool ra_cold_for_rows(const ra_layer *layer, const int64_t *source, int64_t rows, ra_cold **out);
/* A row lets go of its tokens; row `to` takes those of row `from`. */
void ra_cold_empty_row(ra_layer *layer, int64_t row);
void ra_cold_fork(ra_layer *layer, int64_t from, int64_t to);
/* All rows do, also in the middle of a cut: none is recalled any more. */
void ra_cold_empty(ra_layer *layer);
/* A pair's blocks in the place of those that it has. */
void ra_cold_put(ra_layer *layer, int64_t pair, ra_cold_block *block, ra_cold_block *statistics);
/* A row has been cropped: tokens at the positions that are free again will be others. */
void ra_cold_crop(ra_layer *layer, int64_t row);
/* Tokens as a page takes them: rows of `dtype`, in `floats` [2][PAGE][D] where they are not stored so. */
void ra_cold_rows(const ra_layer *layer, const ra_cold_block *block, int64_t begin, int64_t count, float *floats,
                  ra_rows *keys, ra_rows *values);
/* Slot `slot` of a head as a record. */
void ra_cold_store(const ra_layer *layer, int64_t pair, int64_t slot, char *record);

/* ---- cold_statistics.c ---- */

/* What statistics know of a head's slots but those that are dropped, goes[0, count) ascending; *out NULL where they know
 * nothing. False without memory. They are changed on the way, and then as they were. */
bool ra_cold_save_statistics(ra_layer *layer, int64_t pair, const int32_t *goes, int64_t count, ra_cold_block **out);
/* Back to them, once the slots begin with those that it is about; else they know nothing of the head. */
void ra_cold_restore_statistics(ra_layer *layer, int64_t pair, const ra_cold_block *statistics);

/* ---- cold_cut.c ---- */

/* A cut with a cold tier between its choice and its end: makes the blocks that heads will have; then either takes them, or
 * forgets them. */
ra_status ra_cold_retire(ra_layer *layer, ra_parallel parallel);
void ra_cold_settle(ra_layer *layer);
void ra_cold_forget(ra_layer *layer);
/* A cut is given up: slots that came from the cold tier go. */
void ra_cold_separate(ra_layer *layer);

/* A row that is cut has none of its tokens apart. */
bool ra_cold_is_recalled(const ra_layer *layer, int64_t row);

static inline bool ra_cold_is_merged(const ra_layer *layer)
{
    for (int64_t row = 0; layer->cold && row < layer->rows; row++)
        if (layer->cold->merged[row])
            return true;
    return false;
}

#endif
