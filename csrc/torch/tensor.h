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

/* Views stack slot `value`. shape: letters for the message ("[B, H, N]"); size[dim]: what each must be or RA_ANY_SIZE.
 * Only contiguous CPU tensors pass. */
bool ra_view_tensor(ra_stable_value value, const char *name, const char *shape, int64_t dim, const int64_t *size,
                    ra_view *out, ra_failure *failure);
/* One of torch's codes. */
bool ra_expect_dtype(const ra_view *view, int32_t dtype, ra_failure *failure);
/* One of the three that a cache can have. */
bool ra_cache_dtype(const ra_view *view, ra_dtype *out, ra_failure *failure);

/* A new contiguous CPU tensor, owned by the caller, and its memory. */
bool ra_new_tensor(int32_t dtype, int64_t dim, const int64_t *size, ra_tensor_handle *out, void **data,
                   ra_failure *failure);

static inline ra_tensor_handle ra_handle_of(ra_stable_value value) { return (ra_tensor_handle)(uintptr_t)value; }

/* The schema's float is a double. */
double ra_double_of(ra_stable_value value);

#endif
