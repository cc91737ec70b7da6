// SPDX-License-Identifier: Apache-2.0
// One training step and one forward pass of a transformer, timed as a trainer and a sampler run them.
#ifndef TS_BENCH_STEP_H
#define TS_BENCH_STEP_H

#include "tests/bench/bench.h"

// The targets `train` (zero gradients, forward, squared error, backward, AdamW) and `infer` (forward, then a denoising
// step with both branches of guidance) at the sizes of params->config, in bf16 and in f32: milliseconds of a call,
// tokens a second, model GFLOP/s (a training step counts as three forward passes, a guided step as two), share of the
// peak of the operand type, and how often the timed steps asked the system for memory (never, is the promise).
//
// With params->mesh the ranks make each call together, every data rank its own samples; tokens and GFLOP/s are those of
// all ranks, the time is the slowest rank's, and the forward pass alone is left out where a cfg axis would make it
// twice.
int ts_bench_train(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, json_t *report);
int ts_bench_infer(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, json_t *report);

#endif
