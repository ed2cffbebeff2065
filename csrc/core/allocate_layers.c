/* Budgets of a row's layers by the scores of all of them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layer.h"

#define MOST_SLOTS INT32_MAX /* of a row: products of two such numbers are exact */

/* ---- The k-th largest of many lists, without a copy of them ---- */

enum { DIGIT_BITS = 8, DIGITS = 1 << DIGIT_BITS };

/* A float's bits as a number that is ordered as the floats are. */
static uint32_t key_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

static float float_of(uint32_t key)
{
    uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* k >= 1, and no more than there are. */
static float kth_largest(const float *const *lists, const int64_t *counts, int64_t n, int64_t k)
{
    uint32_t prefix = 0, mask = 0;
    for (int shift = 32 - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        int64_t found[DIGITS] = {0};
        for (int64_t list = 0; list < n; list++)
            for (int64_t i = 0; i < counts[list]; i++) {
                uint32_t key = key_of(lists[list][i]);
                if ((key & mask) == prefix)
                    found[(key >> shift) & (DIGITS - 1)]++;
            }
        uint32_t digit = DIGITS - 1;
        while (found[digit] < k)
            k -= found[digit--];
        prefix |= digit << shift;
        mask |= (uint32_t)(DIGITS - 1) << shift;
    }
    return float_of(prefix);
}

/* ---- Shares ---- */

/* A layer while slots are dealt out. remainder: of the largest-remainder rule, negative: it takes no part. */
typedef struct share {
    int64_t claim, room, remainder;
} share;

/* Deals `left` slots out in proportion to the claims, to none more than its room, whole by largest remainder with ties to
 * the lower index. All numbers are whole and exact. Returns what found no room. */
static int64_t deal(share *shares, int64_t n, int64_t left, int64_t *out)
{
    int64_t claims = 0;
    for (bool full = true; full;) { /* those whose part is more than their room get that, and the others more */
        int64_t before = left;
        full = false;
        claims = 0;
        for (int64_t i = 0; i < n; i++)
            claims += shares[i].room ? shares[i].claim : 0;
        for (int64_t i = 0; i < n && claims; i++)
            if (shares[i].room && shares[i].claim && shares[i].room * claims <= before * shares[i].claim) {
                out[i] += shares[i].room;
                left -= shares[i].room;
                shares[i].room = 0;
                full = true;
            }
    }
    if (!claims || !left)
        return left;
    int64_t odd = left;
    for (int64_t i = 0; i < n; i++) {
        bool takes = shares[i].room && shares[i].claim;
        int64_t whole = takes ? left * shares[i].claim / claims : 0;
        shares[i].remainder = takes ? left * shares[i].claim % claims : -1;
        shares[i].room -= whole;
        out[i] += whole;
        odd -= whole;
    }
    for (; odd; odd--) {
        int64_t best = 0;
        for (int64_t i = 1; i < n; i++)
            if (shares[i].remainder > shares[best].remainder)
                best = i;
        shares[best].remainder = -1;
        shares[best].room--;
        out[best]++;
    }
    return 0;
}

/* For lists that are finite and a total within what the layers hold. */
static void route(const float *const *scores, const int64_t *counts, int64_t layers, int64_t heads, int64_t window,
                  int64_t total, double r_max, share *shares, int64_t *out)
{
    int64_t chosen = total - layers * heads * window, all = 0;
    for (int64_t i = 0; i < layers * heads; i++)
        all += counts[i];
    float tau = chosen > 0 && chosen < all ? kth_largest(scores, counts, layers * heads, chosen) : -INFINITY;
    /* As in robustify, the nearest whole bound outside where there is none inside. */
    double most = fmax(floor(r_max * (double)chosen / (double)layers), (double)((chosen + layers - 1) / layers));
    for (int64_t l = 0; l < layers; l++) {
        int64_t slots = 0, demand = 0;
        for (int64_t i = l * heads; i < (l + 1) * heads; i++) {
            slots += counts[i];
            for (int64_t t = 0; t < counts[i]; t++)
                demand += scores[i][t] >= tau;
        }
        shares[l] = (share){.claim = demand, .room = most < (double)slots ? (int64_t)most : slots};
        out[l] = heads * window;
    }
    int64_t left = deal(shares, layers, chosen, out);
    /* The rest goes evenly to the layers that are below the bound, then above it. */
    for (int64_t l = 0; l < layers; l++)
        shares[l].claim = 1;
    left = deal(shares, layers, left, out);
    for (int64_t l = 0; l < layers && left; l++) {
        int64_t slots = heads * window;
        for (int64_t i = l * heads; i < (l + 1) * heads; i++)
            slots += counts[i];
        shares[l].room = slots - out[l];
    }
    (void)deal(shares, layers, left, out);
}

size_t ra_route_layers_bytes(int64_t layers)
{
    ra_scratch count = {0};
    ra_scratch_take(&count, layers, sizeof(share));
    return count.used + 64;
}

ra_status ra_route_layers_in(const float *const *scores, const int64_t *counts, int64_t layers, int64_t heads,
                             int64_t window, int64_t total, double r_max, ra_scratch *scratch, int64_t *out)
{
    int64_t windows = layers, all = 0;
    for (int64_t i = 0; i < layers * heads; i++)
        all += counts[i];
    if (!ra_size_times(&windows, heads) || !ra_size_times(&windows, window) || total < windows || total - windows > all)
        return RA_ERR_INFEASIBLE;
    if (total > MOST_SLOTS || all > MOST_SLOTS || !(r_max >= 1))
        return RA_ERR_ARGUMENT;
    for (int64_t i = 0; i < layers * heads; i++)
        if (!ra_all_finite(RA_F32, scores[i], counts[i]))
            return RA_ERR_NOT_FINITE;
    share *shares = ra_scratch_take(scratch, layers, sizeof *shares);
    if (!shares)
        return RA_ERR_NO_MEMORY;
    route(scores, counts, layers, heads, window, total, r_max, shares, out);
    return RA_OK;
}

ra_status ra_route_layers(const float *const *scores, const int64_t *counts, int64_t layers, int64_t heads,
                          int64_t window, int64_t total, double r_max, int64_t *out)
{
    if (!scores || !counts || !out || layers < 1 || heads < 1 || layers > INT32_MAX / heads || window < 0 || total < 0)
        return RA_ERR_ARGUMENT;
    for (int64_t i = 0; i < layers * heads; i++)
        if (counts[i] < 0 || counts[i] > MOST_SLOTS || (counts[i] && !scores[i]))
            return RA_ERR_ARGUMENT;
    ra_scratch scratch = {0};
    if (!ra_scratch_grow(&scratch, ra_route_layers_bytes(layers)))
        return RA_ERR_NO_MEMORY;
    ra_status status = ra_route_layers_in(scores, counts, layers, heads, window, total, r_max, &scratch, out);
    free(scratch.memory);
    return status;
}
