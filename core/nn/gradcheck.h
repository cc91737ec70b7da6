// SPDX-License-Identifier: Apache-2.0
// Gradient check: the derivative of a scalar function along random directions, from its gradients and by differences.
//
// Along direction u of a tensor w:   analytic = sum_i grad_i u_i
//   numeric = (8 (f(w + h u) - f(w - h u)) - (f(w + 2 h u) - f(w - 2 h u))) / (12 h)       error O(h^4)
// Use it in f32 mode on functions whose value is summed in f64.
#ifndef TS_NN_GRADCHECK_H
#define TS_NN_GRADCHECK_H

#include "core/nn/param.h"

// Computes the value; with `gradients` also sets (not adds to) the gradients of all targets.
typedef int (*ts_gradcheck_fn)(void *user, bool gradients, double *value);

// A tensor to check: an input, or a parameter.
typedef struct ts_gradcheck_target {
    const char *name;
    // device memory
    float *value;        // [count] changed and restored bit by bit
    float *const *grad;  // where the gradient's address stands after a call with gradients
    int64_t count;
} ts_gradcheck_target;

typedef struct ts_gradcheck_params {
    double step;     // h, relative to the tensor's root mean square (1 when that is 0); 0: 0.02
    int directions;  // for each tensor; 0: 2
    uint64_t seed;
} ts_gradcheck_params;

typedef struct ts_gradcheck_result {
    double worst;  // largest |analytic - numeric| / max(|analytic|, |numeric|, largest / 100)
    char name[128];
    double analytic, numeric;  // of the worst
} ts_gradcheck_result;

// Checks every target and, with `set` not NULL, every parameter of the set (their gradients are zeroed before a call).
int ts_gradcheck(ts_gradcheck_fn f, void *user, const ts_gradcheck_target *targets, int target_count, ts_params *set,
                 const ts_gradcheck_params *params, ts_gradcheck_result *out);

#endif
