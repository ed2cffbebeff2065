/* Page formats by name and by dtype. */
#include <string.h>

#include "format.h"

static const ra_format *const formats[] = {&ra_format_f32, &ra_format_bf16, &ra_format_f16};

enum { COUNT = sizeof formats / sizeof formats[0] };

const ra_format *ra_format_find(const char *name)
{
    for (size_t i = 0; name && i < COUNT; i++)
        if (!strcmp(formats[i]->name, name))
            return formats[i];
    return NULL;
}

const char *ra_format_name(size_t index) { return index < COUNT ? formats[index]->name : NULL; }

const ra_format *ra_format_of(ra_dtype dtype) { return ra_dtype_size(dtype) ? formats[dtype] : NULL; }
