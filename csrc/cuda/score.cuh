/* The ways to score; score.cu chooses among them. */
#pragma once
#include "launch.h"

int ra_cuda_score_any(const ra_cuda_layer *layer, const ra_cuda_cut *cut, void *scratch, void *stream);
