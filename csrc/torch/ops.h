/* The bodies of the operators. stack: the arguments in the order of the schema, still owned by the caller. place:
 * where to compute. *out: an owning handle, also on failure if it was made already. */
#ifndef RA_TORCH_OPS_H
#define RA_TORCH_OPS_H

#include "../core/operators.h"
#include "tensor.h"

typedef bool (*ra_op_body)(const ra_stable_value *stack, ra_place *place, ra_tensor_handle *out, ra_failure *failure);

bool ra_op_attend(const ra_stable_value *stack, ra_place *place, ra_tensor_handle *out, ra_failure *failure);
bool ra_op_append(const ra_stable_value *stack, ra_place *place, ra_tensor_handle *out, ra_failure *failure);
bool ra_op_rkv_score(const ra_stable_value *stack, ra_place *place, ra_tensor_handle *out, ra_failure *failure);
bool ra_op_redundancy(const ra_stable_value *stack, ra_place *place, ra_tensor_handle *out, ra_failure *failure);
bool ra_op_importance(const ra_stable_value *stack, ra_place *place, ra_tensor_handle *out, ra_failure *failure);

#endif
