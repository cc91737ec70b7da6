// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3
// Orthogonalised momentum: singular values end near 1, the direction keeps the gradient's, ranks share the work without
// changing a bit.
#include "core/base/arena.h"
#include "core/base/rng.h"
#include "core/comm/mesh.h"
#include "tests/ts_test.h"
#include "train/muon.h"
#include "train/optimizer.h"

// Largest and smallest eigenvalue of the Gram matrix of the smaller side, by its quadratic form on random directions:
// bounds that every singular value squared must respect.
static void gram_range(const float *x, int64_t rows, int64_t columns, double *least, double *most) {
    *least = 1e30;
    *most = 0.0;
    const int64_t side = rows < columns ? rows : columns;
    for (int trial = 0; trial < 50; trial++) {
        double norm = 0.0, image = 0.0, direction[256];
        for (int64_t i = 0; i < side; i++) {
            direction[i] = ts_rng_normal(5, TS_RNG_TEST, (uint64_t)trial, (uint32_t)i);
            norm += direction[i] * direction[i];
        }
        for (int64_t j = 0; j < (rows < columns ? columns : rows); j++) {
            double sum = 0.0;
            for (int64_t i = 0; i < side; i++) {
                sum += direction[i] * (rows < columns ? x[i * columns + j] : x[j * columns + i]);
            }
            image += sum * sum;
        }
        *least = fmin(*least, image / norm);
        *most = fmax(*most, image / norm);
    }
}

static void check_direction(const ts_kernels *kernels, ts_dtype operand, int64_t rows, int64_t columns) {
    const int64_t n = rows * columns, side = rows < columns ? rows : columns;
    float *grad = ts_calloc((size_t)n, sizeof *grad), *moment = ts_calloc((size_t)n, sizeof *moment);
    float *update = ts_calloc((size_t)n, sizeof *update);  // the gradient, u, its direction
    ts_muon *muon = NULL;
    CHECK_OK(ts_muon_open(&muon, kernels, operand, n, side));
    ts_rng_normal_fill(grad, n, 3, TS_RNG_TEST, (uint64_t)n, 0);
    memcpy(update, grad, (size_t)n * sizeof *update);
    CHECK_OK(kernels->momentum(0.5f, 0.95f, moment, update, n));
    CHECK_NEAR(moment[n - 1], 0.5f * grad[n - 1], 1e-7);
    CHECK_NEAR(update[n - 1], 1.95f * 0.5f * grad[n - 1], 1e-6);
    CHECK_OK(ts_muon_direction(muon, rows, columns, update));
    double least, most, along = 0.0, tall = rows > columns ? (double)rows / (double)columns : 1.0;
    gram_range(update, rows, columns, &least, &most);
    CHECK(least > 0.3 * tall && most < 1.6 * tall);  // the quintic brings singular values into about [0.7, 1.2]
    for (int64_t i = 0; i < n; i++) {
        along += (double)update[i] * grad[i];
    }
    CHECK(along > 0.0);
    memset(update, 0, (size_t)n * sizeof *update);
    CHECK_OK(ts_muon_direction(muon, rows, columns, update));
    CHECK(update[0] == 0.0f && update[n - 1] == 0.0f);
    ts_muon_close(&muon);
    free(grad);
    free(moment);
    free(update);
}

static ts_params *make_params(const ts_mesh *mesh) {
    ts_params *params = NULL;
    CHECK_OK(ts_params_open(&params));
    params->mesh = mesh;
    for (int i = 0; i < 5; i++) {
        char name[16];
        snprintf(name, sizeof name, "matrix.%d", i);
        ts_params_add(params, name, TS_SHAPE(24 + 8 * i, 40), true)->hidden = true;
        snprintf(name, sizeof name, "bias.%d", i);
        ts_params_add(params, name, TS_SHAPE(40), false);
    }
    CHECK_OK(ts_params_allocate(params, TS_F32, true));
    for (int64_t i = 0; i < params->count; i++) {
        ts_param_init_normal(params->item[i], 9, 0.1f);
    }
    return params;
}

// Three steps; gradients come from rank 0 alone, so that their sum is the same on any number of ranks.
static void take_steps(ts_params *params, const ts_kernels *kernels) {
    const ts_optimizer_params settings = {.beta1 = 0.9,
                                          .beta2 = 0.95,
                                          .eps = 1e-8,
                                          .weight_decay = 0.01,
                                          .average = true,
                                          .muon = true,
                                          .muon_lr_scale = 10.0,
                                          .muon_momentum = 0.95};
    ts_optimizer *optimizer = NULL;
    CHECK_OK(ts_optimizer_open(&optimizer, params, kernels, &settings));
    for (int step = 1; step <= 3; step++) {
        double squares;
        CHECK_OK(ts_zero_begin(optimizer->zero));
        if (ts_comm_rank(ts_mesh_axis(params->mesh, TS_AXIS_WORLD)) == 0) {
            ts_rng_normal_fill(params->grad, params->total, 4, TS_RNG_TEST, (uint64_t)step, 0);
        }
        CHECK_OK(ts_optimizer_reduce(optimizer, &squares));
        CHECK_OK(ts_optimizer_step(optimizer, step, 1e-3, 0.7, 0.9));
    }
    ts_optimizer_close(&optimizer);
}

int main(int argc, char **argv) {
    ts_comm *world = NULL;
    const ts_kernels *kernels = NULL;
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    for (int bf16 = 0; bf16 < 2; bf16++) {
        check_direction(kernels, bf16 ? TS_BF16 : TS_F32, 32, 32);
        check_direction(kernels, bf16 ? TS_BF16 : TS_F32, 96, 32);
        check_direction(kernels, bf16 ? TS_BF16 : TS_F32, 33, 130);
    }
    ts_mesh mesh;
    CHECK_OK(ts_mesh_open(&mesh, world, &(ts_degrees){ts_comm_size(world), 1, 1, 1, 1}));
    ts_params *alone = make_params(NULL), *shared = make_params(&mesh);
    const float before = alone->value[0];
    take_steps(alone, kernels);
    take_steps(shared, kernels);
    CHECK(alone->value[0] != before);
    CHECK(memcmp(alone->value, shared->value, (size_t)alone->total * sizeof(float)) == 0);
    ts_params_close(&alone);
    ts_params_close(&shared);
    ts_mesh_close(&mesh);
    ts_world_close(&world, 0);
    return ts_test_end();
}
