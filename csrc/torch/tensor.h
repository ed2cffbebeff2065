/* Arguments of an operator: seen, checked, and described where they are wrong. */
#ifndef RA_TORCH_TENSOR_H
#define RA_TORCH_TENSOR_H

#include "reasonalloc.h"
#include "shim.h"

/* Message for the user; empty: nothing went wrong. The first failure is kept. */
typedef struct ra_failure {
    char text[512];
} ra_failure;

/* Always false, so that a check can end with `return ra_fail(...)`. */
bool ra_fail(ra_failure *failure, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool ra_fail_status(ra_failure *failure, ra_status status);

/* Borrowed from the handle on the stack. */
typedef struct ra_view {
    const char *name;
    ra_tensor_handle handle;
    const int64_t *size;
    int64_t dim;
    int32_t dtype;
    const void *data;
} ra_view;

#define RA_ANY_SIZE (-1)

/* The device where an operator computes and all its tensors lie. */
typedef struct ra_place {
    const struct ra_operators *operators; /* NULL: the CPU's, by the C library */
    int32_t type, index;                  /* as torch counts; the index is the first tensor's */
    bool has_index;
    ra_cuda_guard guard;
    void *stream; /* a CUDA stream; NULL in the emulation */
    ra_tensor_handle scratch;
    void *memory; /* of scratch */
} ra_place;

/* Until `leave` the device of an operator's tensors is current, its stream is known, and there are at least `bytes` of
 * scratch, which torch keeps until the kernels that are started meanwhile are done. */
bool ra_place_enter(ra_place *place, size_t bytes, ra_failure *failure);
void ra_place_leave(ra_place *place);

/* Views stack slot `value`. shape: letters for the message ("[B, H, N]"); size[dim]: what each must be or RA_ANY_SIZE.
 * Only contiguous tensors at the place pass. */
bool ra_view_tensor(ra_stable_value value, const char *name, const char *shape, int64_t dim, const int64_t *size,
                    ra_place *place, ra_view *out, ra_failure *failure);
/* One of torch's codes. */
bool ra_expect_dtype(const ra_view *view, int32_t dtype, ra_failure *failure);
/* One of the three that a cache can have. */
bool ra_cache_dtype(const ra_view *view, ra_dtype *out, ra_failure *failure);

/* A new contiguous tensor at the place, owned by the caller, and its memory. */
bool ra_new_tensor(const ra_place *place, int32_t dtype, int64_t dim, const int64_t *size, ra_tensor_handle *out,
                   void **data, ra_failure *failure);

static inline ra_tensor_handle ra_handle_of(ra_stable_value value) { return (ra_tensor_handle)(uintptr_t)value; }

/* The schema's float is a double. */
double ra_double_of(ra_stable_value value);

#endif
