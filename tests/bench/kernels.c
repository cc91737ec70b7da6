// SPDX-License-Identifier: Apache-2.0
// bench kernels: every entry of the table at the shapes of the models.
//
// Products and attention are set against the peak of their operands' dtype, everything else against memory bandwidth
// with each operand counted once (a share above 1 means that the caches served it).
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/base/status.h"
#include "tests/bench/bench.h"
#include "tests/bench/calibrate.h"

// Shapes of one model: the tokens of a batch, its width, and the prompt.
typedef struct model {
    const char *name;
    int64_t tokens, width, hidden, heads, text_rows, text_width;
} model;

static const model MODELS[] = {
    {"bench", 1024, 384, 1536, 6, 64, 512},
    {"tiny", 2560, 128, 512, 4, 512, 128},
};
// A GPU is filled by more: the 1.3 B Wan model's block, heads of 128.
static const model DEVICE_MODELS[] = {
    {"wan", 16384, 1536, 8960, 12, 512, 4096},
};

// Operands of all kernels: `f` are floats and `h` bf16, of `count` elements each.
typedef struct workspace {
    const ts_kernels *k;
    const model *m;
    int64_t count;
    float *f[8];
    uint16_t *h[8];
    int32_t *index;
} workspace;

typedef struct item {
    const char *name;
    int (*call)(const void *workspace);
    double flops, bytes;  // one of them 0
    ts_dtype dtype;
} item;

// ---- products

typedef struct product {
    const char *name;
    int64_t m, n, k;
    bool ta, tb, accumulate, gelu;
    ts_dtype ab, c;
} product;

typedef struct product_call {
    const ts_kernels *k;
    ts_gemm gemm;
} product_call;

static int call_product(const void *context) {
    const product_call *c = context;
    return c->k->gemm(&c->gemm);
}

// ---- one call of every other kernel

#define CALL(name, expression)                                                                                         \
    static int call_##name(const void *context) {                                                                      \
        const workspace *w = context;                                                                                  \
        const int64_t rows = w->m->tokens, width = w->m->width, n = rows * width;                                      \
        (void)n;                                                                                                       \
        return w->k->expression;                                                                                       \
    }

#define LAYER_NORM                                                                                                     \
    &(ts_layer_norm) {                                                                                                 \
        .rows = rows, .width = width, .eps = 1e-6f, .scale_offset = 1, .x = w->f[0], .y = w->h[0], .dtype_y = TS_BF16, \
        .scale = w->f[1], .shift = w->f[2], .table_stride = width, .table_rows = 16, .row_index = w->index,            \
        .mean = w->f[3], .rstd = w->f[4], .d_y = w->h[1], .d_x = w->f[5], .accumulate_d_x = true, .d_scale = w->f[6],  \
        .d_shift = w->f[7]                                                                                             \
    }
#define RMS_NORM                                                                                                       \
    &(ts_rms_norm) {                                                                                                   \
        .rows = rows, .width = width, .x_row = 3 * width, .y_row = width, .eps = 1e-6f, .x = w->h[0], .y = w->h[1],    \
        .dtype_x = TS_BF16, .dtype_y = TS_BF16, .weight = w->f[0], .rstd = w->f[1], .cosine = w->f[2],                 \
        .sine = w->f[3], .positions = rows, .head_dim = width / w->m->heads, .d_y = w->h[2], .d_x = w->h[3],           \
        .d_weight = w->f[4]                                                                                            \
    }
#define GATED                                                                                                          \
    &(ts_gated_residual) {                                                                                             \
        .rows = rows, .width = width, .x = w->f[0], .y = w->h[0], .dtype_y = TS_BF16, .out = w->f[1], .gate = w->f[2], \
        .table_stride = width, .table_rows = 16, .row_index = w->index, .d_out = w->f[3], .d_y = w->h[1],              \
        .d_gate = w->f[4]                                                                                              \
    }
#define ATTENTION(key_rows)                                                                                            \
    &(ts_attention) {                                                                                                  \
        .batch = 1, .heads = w->m->heads, .head_dim = width / w->m->heads, .queries = rows, .keys = (key_rows),        \
        .dtype = TS_BF16, .scale = 0.125f, .q = w->h[0], .k = w->h[1], .v = w->h[2], .out = w->h[3], .q_row = width,   \
        .k_row = width, .v_row = width, .out_row = width, .lse = w->f[0], .d_out = w->h[4], .d_q = w->h[5],            \
        .d_k = w->h[6], .d_v = w->h[7]                                                                                 \
    }
#define MERGE                                                                                                          \
    &(ts_attention_merge) {                                                                                            \
        .batch = 1, .queries = rows, .heads = w->m->heads, .head_dim = width / w->m->heads, .out = w->f[0],            \
        .lse = w->f[1], .part = w->f[2], .part_lse = w->f[3]                                                           \
    }
#define PATCHES                                                                                                        \
    &(ts_patchify) {                                                                                                   \
        .batch = 1, .frames = 4, .height = rows / 64, .width = 64, .channels = 16, .patch_t = 1, .patch_h = 2,         \
        .patch_w = 2, .channels_first = true, .video = w->f[0], .tokens = w->h[0], .dtype_tokens = TS_BF16             \
    }
#define ADAMW                                                                                                          \
    &(ts_adamw) {                                                                                                      \
        .count = n, .step = 10, .lr = 1e-9f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .weight_decay = 0.1f,        \
        .grad_scale = 1, .weight = w->f[0], .m = w->f[1], .v = w->f[2], .grad = w->f[3], .operand = w->h[0],           \
        .ema = w->f[4], .ema_decay = 0.99f                                                                             \
    }
#define MSE                                                                                                            \
    &(ts_mse) {                                                                                                        \
        .rows = rows, .width = width, .v = w->f[0], .target = w->f[1], .scale = 1, .loss = (double *)w->f[2],          \
        .d_v = w->f[3]                                                                                                 \
    }
#define CONV                                                                                                           \
    &(ts_conv3d) {                                                                                                     \
        .batch = 1, .frames = 4, .height = 32, .width = 32, .in_channels = 32, .out_channels = 32, .kernel_t = 3,      \
        .kernel_h = 3, .kernel_w = 3, .x = w->f[0], .weight = w->f[1], .y = w->f[2], .d_y = w->f[3], .d_x = w->f[4],   \
        .d_weight = w->f[5], .d_bias = w->f[6]                                                                         \
    }

CALL(attention, attention_forward(ATTENTION(rows)))
CALL(attention_backward, attention_backward(ATTENTION(rows)))
CALL(cross_attention, attention_forward(ATTENTION(w->m->text_rows)))
CALL(cross_attention_backward, attention_backward(ATTENTION(w->m->text_rows)))
CALL(attention_merge, attention_merge(MERGE))
CALL(layer_norm, layer_norm_forward(LAYER_NORM))
CALL(layer_norm_backward, layer_norm_backward(LAYER_NORM))
CALL(rms_norm, rms_norm_forward(RMS_NORM))
CALL(rms_norm_backward, rms_norm_backward(RMS_NORM))
CALL(gated_residual, gated_residual_forward(GATED))
CALL(gated_residual_backward, gated_residual_backward(GATED))
CALL(bias_gradient, bias_gradient(w->h[0], TS_BF16, rows, w->m->hidden, w->m->hidden, w->f[0]))
CALL(gelu, gelu_forward(w->h[0], w->h[1], TS_BF16, rows * w->m->hidden))
CALL(gelu_backward, gelu_backward(w->h[0], w->h[1], w->h[2], TS_BF16, rows * w->m->hidden))
CALL(gated_gelu, gated_gelu_forward(w->h[0], w->h[1], w->h[2], TS_BF16, n))
CALL(gated_gelu_backward, gated_gelu_backward(w->h[0], w->h[1], w->h[2], w->h[3], w->h[4], TS_BF16, n))
CALL(silu, silu_forward(w->f[0], w->f[1], n))
CALL(silu_backward, silu_backward(w->f[0], w->f[1], w->f[2], n))
CALL(softmax, softmax(w->f[0], w->f[1], rows, width))
CALL(add_rows, add_rows(w->f[0], w->f[1], w->f[2], rows, rows / 4, width))
CALL(sum_rows, sum_rows(w->f[0], w->f[1], rows, rows / 4, width))
CALL(copy_rows, copy_rows(w->h[0], 6 * width, w->h[1], 2 * width, rows, 2 * width))
CALL(axpy, axpy(0.5f, w->f[0], w->f[1], n))
CALL(scale, scale(1.0f, w->f[0], n))
CALL(cast, cast(w->f[0], TS_F32, w->h[0], TS_BF16, n))
CALL(sum_squares, sum_squares(w->f[0], n, (double *)w->f[1]))
CALL(mse, mse(MSE))
CALL(adamw, adamw(ADAMW))
CALL(patchify, patchify(PATCHES))
CALL(unpatchify, unpatchify(PATCHES))
CALL(embedding, embedding_forward(w->f[0], w->index, w->f[1], rows, width))
CALL(embedding_backward, embedding_backward(w->f[0], w->index, w->f[1], rows, width))
CALL(sinusoid, sinusoid(w->f[0], w->f[1], 64, 128))
CALL(noise, noise(w->f[0], n, 1, TS_RNG_TEST, 1, 0))
CALL(conv3d, conv3d_forward(CONV))
CALL(conv3d_backward, conv3d_backward(CONV))

// ---- measuring and reporting

typedef struct session {
    const ts_bench_params *params;
    const ts_bench_peak *peak;
    json_t *rows;
    const model *model;
} session;

static int measure(const session *s, const item *i, const void *context, const char *shape) {
    if (s->params->filter && !strstr(i->name, s->params->filter)) {
        return 0;
    }
    ts_bench_time time;
    TS_TRY(ts_bench_measure(i->call, context, s->params->runs, &time));
    const double peak = i->flops == 0 ? s->peak->memory : i->dtype == TS_BF16 ? s->peak->bf16 : s->peak->f32;
    const double rate = (i->flops + i->bytes) / time.median;
    const char *unit = i->flops > 0 ? "GFLOP/s" : "GB/s";
    json_array_append_new(s->rows,
                          json_pack("{s:s, s:s, s:s, s:f, s:f, s:f, s:s, s:f}", "model", s->model->name, "name",
                                    i->name, "shape", shape, "median_us", time.median * 1e6, "least_us",
                                    time.least * 1e6, "rate", rate * 1e-9, "unit", unit, "share", rate / peak));
    if (s->params->prints) {
        printf("%-6s %-26s %-26s %10.1f %10.1f %9.1f %-7s %6.2f\n", s->model->name, i->name, shape, time.median * 1e6,
               time.least * 1e6, rate * 1e-9, unit, rate / peak);
        fflush(stdout);
    }
    return 0;
}

static int measure_product(const session *s, const workspace *w, const product *p) {
    const bool bf16 = p->ab == TS_BF16;
    const product_call call = {w->k,
                               {.m = p->m,
                                .n = p->n,
                                .k = p->k,
                                .a = bf16 ? (void *)w->h[0] : w->f[0],
                                .b = bf16 ? (void *)w->h[1] : w->f[1],
                                .c = p->c == TS_BF16 ? (void *)w->h[2] : w->f[2],
                                .lda = p->ta ? p->m : p->k,
                                .ldb = p->tb ? p->k : p->n,
                                .ldc = p->n,
                                .transpose_a = p->ta,
                                .transpose_b = p->tb,
                                .dtype_ab = p->ab,
                                .dtype_c = p->c,
                                .accumulate = p->accumulate,
                                .bias = p->accumulate ? NULL : w->f[3],
                                .gelu = p->gelu,
                                .before_gelu = !p->gelu          ? NULL
                                               : p->c == TS_BF16 ? (void *)w->h[3]
                                                                 : w->f[4]}};
    char shape[64];
    snprintf(shape, sizeof shape, "%lldx%lldx%lld %s%s", (long long)p->m, (long long)p->n, (long long)p->k,
             p->ta ? "t" : "n", p->tb ? "t" : "n");
    const item i = {.name = p->name,
                    .call = call_product,
                    .dtype = p->ab,
                    .flops = 2.0 * (double)p->m * (double)p->n * (double)p->k};
    return measure(s, &i, &call, shape);
}

// The products of a block: forward, gradient of the input, gradient of the weight.
static int measure_products(const session *s, const workspace *w, ts_dtype dtype) {
    const bool bf16 = dtype == TS_BF16;
    const int64_t t = w->m->tokens, d = w->m->width, f = w->m->hidden;
    const product products[] = {
        {bf16 ? "gemm qkv bf16" : "gemm qkv f32", t, 3 * d, d, false, true, false, false, dtype, dtype},
        {bf16 ? "gemm out bf16" : "gemm out f32", t, d, d, false, true, false, false, dtype, dtype},
        {bf16 ? "gemm up gelu bf16" : "gemm up gelu f32", t, f, d, false, true, false, true, dtype, dtype},
        {bf16 ? "gemm down bf16" : "gemm down f32", t, d, f, false, true, false, false, dtype, dtype},
        {bf16 ? "gemm text bf16" : "gemm text f32", w->m->text_rows, 2 * d, w->m->text_width, false, true, false, false,
         dtype, dtype},
        {bf16 ? "gemm up d_x bf16" : "gemm up d_x f32", t, d, f, false, false, false, false, dtype, dtype},
        {bf16 ? "gemm down d_x bf16" : "gemm down d_x f32", t, f, d, false, false, false, false, dtype, dtype},
        {bf16 ? "gemm up d_w bf16" : "gemm up d_w f32", f, d, t, true, false, true, false, dtype, TS_F32},
        {bf16 ? "gemm down d_w bf16" : "gemm down d_w f32", d, f, t, true, false, true, false, dtype, TS_F32},
        {bf16 ? "gemm out d_w bf16" : "gemm out d_w f32", d, d, t, true, false, true, false, dtype, TS_F32},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        TS_TRY(measure_product(s, w, &products[i]));
    }
    return 0;
}

static int measure_others(const session *s, const workspace *w) {
    const double rows = (double)w->m->tokens, n = rows * (double)w->m->width, wide = rows * (double)w->m->hidden;
    const double own = 4 * n * rows, cross = 4 * n * (double)w->m->text_rows, conv = 2.0 * 4 * 1024 * 27 * 1024;
    const item items[] = {
        {"attention", call_attention, own, 0, TS_BF16},
        {"attention_backward", call_attention_backward, 2.5 * own, 0, TS_BF16},
        {"cross_attention", call_cross_attention, cross, 0, TS_BF16},
        {"cross_attention_backward", call_cross_attention_backward, 2.5 * cross, 0, TS_BF16},
        {"attention_merge", call_attention_merge, 0, 12 * n, TS_F32},
        {"layer_norm", call_layer_norm, 0, 6 * n, TS_F32},
        {"layer_norm_backward", call_layer_norm_backward, 0, 14 * n, TS_F32},
        {"rms_norm", call_rms_norm, 0, 8 * n, TS_F32},
        {"rms_norm_backward", call_rms_norm_backward, 0, 10 * n, TS_F32},
        {"gated_residual", call_gated_residual, 0, 10 * n, TS_F32},
        {"gated_residual_backward", call_gated_residual_backward, 0, 8 * n, TS_F32},
        {"bias_gradient", call_bias_gradient, 0, 2 * wide, TS_F32},
        {"gelu", call_gelu, 0, 4 * wide, TS_F32},
        {"gelu_backward", call_gelu_backward, 0, 6 * wide, TS_F32},
        {"gated_gelu", call_gated_gelu, 0, 6 * n, TS_F32},
        {"gated_gelu_backward", call_gated_gelu_backward, 0, 10 * n, TS_F32},
        {"silu", call_silu, 0, 8 * n, TS_F32},
        {"silu_backward", call_silu_backward, 0, 12 * n, TS_F32},
        {"softmax", call_softmax, 0, 8 * n, TS_F32},
        {"add_rows", call_add_rows, 0, 9 * n, TS_F32},
        {"sum_rows", call_sum_rows, 0, 6 * n, TS_F32},
        {"copy_rows", call_copy_rows, 0, 4 * n, TS_BF16},
        {"axpy", call_axpy, 0, 12 * n, TS_F32},
        {"scale", call_scale, 0, 8 * n, TS_F32},
        {"cast", call_cast, 0, 6 * n, TS_F32},
        {"sum_squares", call_sum_squares, 0, 4 * n, TS_F32},
        {"mse", call_mse, 0, 12 * n, TS_F32},
        {"adamw", call_adamw, 0, 38 * n, TS_F32},
        {"patchify", call_patchify, 0, 6 * rows * 64, TS_F32},
        {"unpatchify", call_unpatchify, 0, 6 * rows * 64, TS_F32},
        {"embedding", call_embedding, 0, 8 * n, TS_F32},
        {"embedding_backward", call_embedding_backward, 0, 12 * n, TS_F32},
        {"sinusoid", call_sinusoid, 0, 4 * 64 * 256, TS_F32},
        {"noise", call_noise, 0, 4 * n, TS_F32},
        {"conv3d", call_conv3d, conv, 0, TS_F32},
        {"conv3d_backward", call_conv3d_backward, 2 * conv, 0, TS_F32},
    };
    char shape[64];
    snprintf(shape, sizeof shape, "%lldx%lld", (long long)w->m->tokens, (long long)w->m->width);
    for (size_t i = 0; i < sizeof items / sizeof *items; i++) {
        TS_TRY(measure(s, &items[i], w, shape));
    }
    return 0;
}

// ---- operands

static void close_workspace(workspace *w) {
    const ts_device *device = w->k->device;
    for (int i = 0; i < 8; i++) {
        device->release(w->f[i]);
        device->release(w->h[i]);
    }
    device->release(w->index);
}

// Random numbers of the size that activations have: zeros would flatter the processor.
static int open_workspace(workspace *w, const ts_kernels *k, const model *models, int count) {
    *w = (workspace){.k = k};
    for (int i = 0; i < count; i++) {
        const int64_t most = models[i].tokens * models[i].hidden;
        w->count = most > w->count ? most : w->count;
    }
    w->index = k->device->allocate((size_t)w->count * sizeof *w->index);
    for (int i = 0; i < 8; i++) {
        // Second moments, in f[2], are not negative.
        w->f[i] = (i == 2 ? ts_bench_squares : ts_bench_numbers)(k, w->count, (uint64_t)i);
        w->h[i] = k->device->allocate((size_t)w->count * sizeof(uint16_t));
        if (!w->index || !w->f[i] || !w->h[i]) {
            return TS_ERESOURCE;
        }
        TS_TRY(k->cast(w->f[i], TS_F32, w->h[i], TS_BF16, w->count));
    }
    return 0;
}

// Rows of the modulation table: runs, as frames make them.
static int fill_index(workspace *w, int64_t tokens) {
    int32_t *index = ts_malloc((size_t)tokens * sizeof *index);
    if (!index) {
        return TS_ERESOURCE;
    }
    for (int64_t row = 0; row < tokens; row++) {
        index[row] = (int32_t)(row * 16 / tokens);
    }
    const int status = w->k->device->upload(w->index, index, (size_t)tokens * sizeof *index);
    free(index);
    return status;
}

static int measure_model(session *s, workspace *w, const model *m) {
    s->model = w->m = m;
    TS_TRY(fill_index(w, m->tokens));
    TS_TRY(measure_products(s, w, TS_BF16));
    TS_TRY(measure_products(s, w, TS_F32));
    return measure_others(s, w);
}

int ts_bench_kernels(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, json_t *report) {
    if (params->plan) {
        return ts_bench_calibrate(world, params, peak, report);
    }
    session s = {.params = params, .peak = peak, .rows = json_array()};
    json_object_set_new(report, "kernels", s.rows);
    if (params->prints) {
        printf("%-6s %-26s %-26s %10s %10s %9s %-7s %6s\n", "model", "kernel", "shape", "median us", "least us", "rate",
               "", "share");
    }
    const bool host = params->kernels->device->is_host;
    const model *const models = host ? MODELS : DEVICE_MODELS;
    const int count = host ? sizeof MODELS / sizeof *MODELS : sizeof DEVICE_MODELS / sizeof *DEVICE_MODELS;
    workspace w;
    int status = open_workspace(&w, params->kernels, models, count);
    for (int i = 0; i < count && !status; i++) {
        status = measure_model(&s, &w, &models[i]);
    }
    close_workspace(&w);
    return status;
}
