#include "tensor.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_DIM = 4, SHAPE_TEXT = 128 };

bool ra_fail(ra_failure *failure, const char *format, ...)
{
    if (failure->text[0] != '\0')
        return false;
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(failure->text, sizeof failure->text, format, arguments);
    va_end(arguments);
    return false;
}

bool ra_fail_status(ra_failure *failure, ra_status status) { return ra_fail(failure, "%s", ra_status_text(status)); }

/* "[2, *, 64]"; cut short where it is too long. */
static const char *shape_text(const int64_t *size, int64_t dim, char text[SHAPE_TEXT])
{
    size_t used = 1;
    text[0] = '[';
    for (int64_t i = 0; i < dim && used < SHAPE_TEXT - 32; i++) {
        const char *comma = i > 0 ? ", " : "";
        int n = size[i] == RA_ANY_SIZE ? snprintf(text + used, SHAPE_TEXT - used, "%s*", comma)
                                       : snprintf(text + used, SHAPE_TEXT - used, "%s%" PRId64, comma, size[i]);
        used += n > 0 ? (size_t)n : 0;
    }
    (void)snprintf(text + used, SHAPE_TEXT - used, "]");
    return text;
}

static const char *dtype_text(int32_t dtype)
{
    if (dtype == ra_torch.aoti_torch_dtype_float32())
        return "float32";
    if (dtype == ra_torch.aoti_torch_dtype_bfloat16())
        return "bfloat16";
    if (dtype == ra_torch.aoti_torch_dtype_float16())
        return "float16";
    if (dtype == ra_torch.aoti_torch_dtype_float64())
        return "float64";
    if (dtype == ra_torch.aoti_torch_dtype_int32())
        return "int32";
    if (dtype == ra_torch.aoti_torch_dtype_int64())
        return "int64";
    return "of another dtype";
}

static bool same_shape(const ra_view *view, int64_t dim, const int64_t *size)
{
    if (view->dim != dim)
        return false;
    for (int64_t i = 0; i < dim; i++)
        if (size[i] != RA_ANY_SIZE && size[i] != view->size[i])
            return false;
    return true;
}

bool ra_view_tensor(ra_stable_value value, const char *name, const char *shape, int64_t dim, const int64_t *size,
                    ra_place *place, ra_view *out, ra_failure *failure)
{
    ra_view view = {.name = name, .handle = ra_handle_of(value)};
    int32_t type = 0, index = 0;
    bool contiguous = false;
    int64_t *sizes = NULL;
    if (ra_torch.aoti_torch_get_dim(view.handle, &view.dim) != 0 ||
        ra_torch.aoti_torch_get_sizes(view.handle, &sizes) != 0 ||
        ra_torch.aoti_torch_get_dtype(view.handle, &view.dtype) != 0 ||
        ra_torch.aoti_torch_get_device_type(view.handle, &type) != 0 ||
        (place->operators && ra_torch.aoti_torch_get_device_index(view.handle, &index) != 0) ||
        ra_torch.aoti_torch_is_contiguous(view.handle, &contiguous) != 0 ||
        ra_torch.torch_get_const_data_ptr(view.handle, &view.data) != 0)
        return ra_fail(failure, "%s cannot be read", name);
    view.size = sizes;
    if (!same_shape(&view, dim, size)) {
        char given[SHAPE_TEXT], wanted[SHAPE_TEXT];
        return ra_fail(failure, "%s has shape %s, expected %s = %s", name, shape_text(view.size, view.dim, given),
                       shape, shape_text(size, dim, wanted));
    }
    if (type != place->type)
        return ra_fail(failure,
                       place->operators ? "%s is not on the CUDA device of the others" : "%s is not on the CPU", name);
    if (place->has_index && index != place->index)
        return ra_fail(failure, "%s is on cuda:%d, others are on cuda:%d", name, index, place->index);
    place->has_index = true;
    place->index = index;
    if (!contiguous)
        return ra_fail(failure, "%s is not contiguous, call .contiguous() on it", name);
    *out = view;
    return true;
}

bool ra_expect_dtype(const ra_view *view, int32_t dtype, ra_failure *failure)
{
    if (view->dtype == dtype)
        return true;
    return ra_fail(failure, "%s is %s, expected %s", view->name, dtype_text(view->dtype), dtype_text(dtype));
}

bool ra_cache_dtype(const ra_view *view, ra_dtype *out, ra_failure *failure)
{
    if (view->dtype == ra_torch.aoti_torch_dtype_float32())
        *out = RA_F32;
    else if (view->dtype == ra_torch.aoti_torch_dtype_bfloat16())
        *out = RA_BF16;
    else if (view->dtype == ra_torch.aoti_torch_dtype_float16())
        *out = RA_F16;
    else
        return ra_fail(failure, "%s is %s, expected float32, bfloat16 or float16", view->name, dtype_text(view->dtype));
    return true;
}

bool ra_new_tensor(const ra_place *place, int32_t dtype, int64_t dim, const int64_t *size, ra_tensor_handle *out,
                   void **data, ra_failure *failure)
{
    int64_t strides[MAX_DIM];
    int64_t stride = 1;
    for (int64_t i = dim - 1; i >= 0; i--) {
        strides[i] = stride;
        stride *= size[i] > 0 ? size[i] : 1;
    }
    ra_tensor_handle made = NULL;
    if (ra_torch.aoti_torch_empty_strided(dim, size, strides, dtype, place->type, place->index, &made))
        return ra_fail(failure, "no memory for the result");
    if (ra_torch.torch_get_mutable_data_ptr(made, data) != 0) {
        (void)ra_torch.aoti_torch_delete_tensor_object(made);
        return ra_fail(failure, "the result has no memory");
    }
    *out = made;
    return true;
}

static bool make_current(ra_place *place, ra_failure *failure)
{
    if (place->type == ra_torch.aoti_torch_device_type_cpu()) /* the emulation */
        return true;
    const char *missing = NULL;
    if (ra_torch_load_cuda(&missing) != 0)
        return ra_fail(failure, "torch's CUDA library was not found: %s", missing);
    if (ra_torch_cuda.aoti_torch_create_cuda_guard(place->index, &place->guard) != 0)
        return ra_fail(failure, "cuda:%d cannot be made current", place->index);
    if (ra_torch_cuda.aoti_torch_get_current_cuda_stream(place->index, &place->stream) != 0)
        return ra_fail(failure, "cuda:%d has no current stream", place->index);
    return true;
}

bool ra_place_enter(ra_place *place, size_t bytes, ra_failure *failure)
{
    const int64_t floats = (int64_t)((bytes + 3) / 4), size[] = {floats > 0 ? floats : 1};
    if (make_current(place, failure) &&
        ra_new_tensor(place, ra_torch.aoti_torch_dtype_float32(), 1, size, &place->scratch, &place->memory, failure))
        return true;
    ra_place_leave(place);
    return false;
}

void ra_place_leave(ra_place *place)
{
    if (place->scratch != NULL)
        (void)ra_torch.aoti_torch_delete_tensor_object(place->scratch);
    if (place->guard != NULL)
        (void)ra_torch_cuda.aoti_torch_delete_cuda_guard(place->guard);
    place->scratch = NULL;
    place->guard = NULL;
}

double ra_double_of(ra_stable_value value)
{
    double number;
    memcpy(&number, &value, sizeof number);
    return number;
}
