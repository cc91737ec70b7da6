// SPDX-License-Identifier: Apache-2.0
// tessera bench kernels --plan: measures what a plan needs to know of this machine, and writes it to a hardware file.
#ifndef TS_BENCH_CALIBRATE_H
#define TS_BENCH_CALIBRATE_H

#include "tests/bench/bench.h"

// Every kernel call of a training step on the meshes of params->devices devices, for the training configuration
// params->plan: a model of at most three blocks is rehearsed (train/plan_step.h) on all ranks at once, so that they
// disturb each other as in a run, and each call keeps the least of its times. With params->write_hardware they are
// written to that file, with rates, bandwidth and memory of this machine; what else is in it stays.
int ts_bench_calibrate(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, json_t *report);

#endif
