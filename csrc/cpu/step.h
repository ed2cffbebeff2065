/* The CPU backend's parts; backend.c puts them together. */
#ifndef RA_CPU_STEP_H
#define RA_CPU_STEP_H

#include "backend.h"

size_t ra_cpu_step_bytes(const ra_layer *layer, int64_t tokens, int64_t slots);
ra_status ra_cpu_step(ra_layer *layer, const ra_step *step, ra_parallel parallel);

size_t ra_cpu_cut_bytes(const ra_layer *layer, int64_t slots);
ra_status ra_cpu_score(ra_layer *layer, const ra_score_config *config, ra_parallel parallel);
ra_status ra_cpu_choose(ra_layer *layer, const int64_t *protect_below, const int64_t *budgets, double *lost,
                        ra_parallel parallel);
int64_t ra_cpu_apply_pages(const ra_layer *layer);
ra_status ra_cpu_apply(ra_layer *layer, ra_parallel parallel);

#endif
