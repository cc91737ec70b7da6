// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3 backend=cuda
// Orthogonalised momentum: singular values end near 1, the direction keeps the gradient's, ranks share the work without
// changing a bit.
#include "core/base/arena.h"
#include "core/base/rng.h"
#include "core/comm/mesh.h"
#include "tests/device_test.h"
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

static void check_direction(ts_dtype operand, int64_t rows, int64_t columns) {
    const int64_t n = rows * columns, side = rows < columns ? rows : columns;
    const size_t bytes = (size_t)n * sizeof(float);
    float *grad = ts_calloc((size_t)n, sizeof *grad), *zeros = ts_calloc((size_t)n, sizeof *zeros);
    ts_muon *muon = NULL;
    CHECK_OK(ts_muon_open(&muon, test_kernels, operand, n, side));
    ts_rng_normal_fill(grad, n, 3, TS_RNG_TEST, (uint64_t)n, 0);
    float *moment = test_kernels->device->allocate(bytes);
    float *u = test_kernels->device->allocate(bytes);  // the gradient, u, its direction
    CHECK_OK(test_kernels->device->zero(moment, bytes));
    CHECK_OK(test_kernels->device->upload(u, grad, bytes));
    CHECK_OK(test_kernels->momentum(0.5f, 0.95f, moment, u, n));
    CHECK_NEAR(((const float *)test_host(moment, bytes))[n - 1], 0.5f * grad[n - 1], 1e-7);
    CHECK_NEAR(((const float *)test_host(u, bytes))[n - 1], 1.95f * 0.5f * grad[n - 1], 1e-6);
    CHECK_OK(ts_muon_direction(muon, rows, columns, u));
    const float *update = test_host(u, bytes);
    double least, most, along = 0.0, tall = rows > columns ? (double)rows / (double)columns : 1.0;
    gram_range(update, rows, columns, &least, &most);
    CHECK(least > 0.3 * tall && most < 1.6 * tall);  // the quintic brings singular values into about [0.7, 1.2]
    for (int64_t i = 0; i < n; i++) {
        along += (double)update[i] * grad[i];
    }
    CHECK(along > 0.0);
    CHECK_OK(test_kernels->device->zero(u, bytes));
    CHECK_OK(ts_muon_direction(muon, rows, columns, u));
    CHECK(test_same(u, zeros, bytes));
    ts_muon_close(&muon);
    test_kernels->device->release(moment);
    test_kernels->device->release(u);
    free(grad);
    free(zeros);
}

static ts_params *make_params(const ts_mesh *mesh) {
    ts_params *params = NULL;
    CHECK_OK(ts_params_open(&params));
    params->mesh = mesh;
    params->kernels = test_kernels;
    for (int i = 0; i < 5; i++) {
        char name[16];
        snprintf(name, sizeof name, "matrix.%d", i);
        ts_params_add(params, name, TS_SHAPE(24 + 8 * i, 40), true)->hidden = true;
        snprintf(name, sizeof name, "bias.%d", i);
        ts_params_add(params, name, TS_SHAPE(40), false);
    }
    CHECK_OK(ts_params_allocate(params, TS_F32, true));
    for (int64_t i = 0; i < params->count; i++) {
        CHECK_OK(ts_param_init_normal(params->item[i], 9, 0.1f));
    }
    return params;
}

// Three steps; gradients come from rank 0 alone, so that their sum is the same on any number of ranks.
static void take_steps(ts_params *params) {
    const ts_optimizer_params settings = {.beta1 = 0.9,
                                          .beta2 = 0.95,
                                          .eps = 1e-8,
                                          .weight_decay = 0.01,
                                          .average = true,
                                          .muon = true,
                                          .muon_lr_scale = 10.0,
                                          .muon_momentum = 0.95};
    ts_optimizer *optimizer = NULL;
    CHECK_OK(ts_optimizer_open(&optimizer, params, test_kernels, &settings));
    double *const squares = test_device(&(double){0}, sizeof *squares);
    for (int step = 1; step <= 3; step++) {
        CHECK_OK(ts_zero_begin(optimizer->zero));
        if (ts_comm_rank(ts_mesh_axis(params->mesh, TS_AXIS_WORLD)) == 0) {
            CHECK_OK(test_kernels->noise(params->grad, params->total, 4, TS_RNG_TEST, (uint64_t)step, 0));
        }
        CHECK_OK(ts_optimizer_reduce(optimizer, squares));
        CHECK_OK(ts_optimizer_step(optimizer, step, 1e-3, 0.7, 0.9));
    }
    ts_optimizer_close(&optimizer);
}

// Alone and with others: the same bits.
static void check_steps(ts_comm *world) {
    ts_mesh mesh;
    CHECK_OK(ts_mesh_open(&mesh, world, &(ts_degrees){ts_comm_size(world), 1, 1, 1, 1}));
    ts_params *alone = make_params(NULL), *shared = make_params(&mesh);
    float before, after;
    CHECK_OK(ts_param_read(alone->item[0], 0, 1, &before));
    take_steps(alone);
    take_steps(shared);
    CHECK_OK(ts_param_read(alone->item[0], 0, 1, &after));
    CHECK(after != before);
    CHECK(test_same(alone->value, shared->value, (size_t)alone->total * sizeof(float)));
    ts_params_close(&alone);
    ts_params_close(&shared);
    ts_mesh_close(&mesh);
}

int main(int argc, char **argv) {
    ts_comm *world = NULL;
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    for (int i = 0; test_choose(i); i++) {
        for (int bf16 = 0; bf16 < 2; bf16++) {
            check_direction(bf16 ? TS_BF16 : TS_F32, 32, 32);
            check_direction(bf16 ? TS_BF16 : TS_F32, 96, 32);
            check_direction(bf16 ? TS_BF16 : TS_F32, 33, 130);
        }
        check_steps(world);
    }
    ts_world_close(&world, 0);
    return ts_test_end();
}
