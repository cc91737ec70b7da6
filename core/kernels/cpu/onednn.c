// SPDX-License-Identifier: Apache-2.0
// oneDNN 2.x: matrix products and convolutions, the only file that includes dnnl.h.
//
// Creating a primitive generates code and takes milliseconds, so primitives are kept in a table keyed by everything
// that shapes them (the thread count too: oneDNN cuts the work up when it creates). Memory objects are made with the
// primitive and get their pointers at each call; scratchpads are ours. A call after the first of its shape allocates
// nothing.
#include <dnnl.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/kernels/cpu/cpu.h"
#include "core/kernels/cpu/onednn.h"

enum { KEY_WORDS = 16, MAX_ARGS = 6, TABLE_SIZE = 4096, TABLE_FULL = 3072 };

typedef enum { MATMUL = 1, CONV_FORWARD, CONV_BACKWARD_DATA, CONV_BACKWARD_WEIGHTS } operation;

typedef struct key {
    int64_t word[KEY_WORDS];
} key;

typedef struct primitive {
    key key;
    dnnl_primitive_t handle;
    size_t scratch_bytes;
    int arg_count;
    dnnl_exec_arg_t arg[MAX_ARGS];  // the last one is the scratchpad
    // Convolution weights are laid out anew for the library, or back from it.
    dnnl_primitive_t reorder;
    dnnl_exec_arg_t reorder_arg[2];  // from, to
    size_t reordered_bytes;
} primitive;

static dnnl_engine_t engine;
static dnnl_stream_t stream;
static primitive *table[TABLE_SIZE];
static int table_used;
static ts_isa library_level;

// Fails with the library's status when it is not success.
#define DNN_TRY(call)                                                                                                  \
    do {                                                                                                               \
        const dnnl_status_t dnn_status_ = (call);                                                                      \
        if (dnn_status_ != dnnl_success) {                                                                             \
            return TS_FAIL(dnn_status_ == dnnl_out_of_memory ? TS_ERESOURCE : TS_EINTERNAL, "oneDNN: status %d of %s", \
                           (int)dnn_status_, #call);                                                                   \
        }                                                                                                              \
    } while (0)

// The level at the first call holds for the whole process: the library fixes its instruction set once.
static int open_library(void) {
    if (engine) {
        return 0;
    }
    static const dnnl_cpu_isa_t cap[TS_ISA_COUNT] = {dnnl_cpu_isa_sse41, dnnl_cpu_isa_avx2,
                                                     dnnl_cpu_isa_avx512_core_vnni, dnnl_cpu_isa_avx512_core_bf16,
                                                     dnnl_cpu_isa_all};
    library_level = ts_cpu_isa();
    DNN_TRY(dnnl_set_max_cpu_isa(cap[library_level]));
    DNN_TRY(dnnl_engine_create(&engine, dnnl_cpu, 0));
    DNN_TRY(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    return 0;
}

bool ts_onednn_multiplies_bf16(void) {
    return (engine ? library_level : ts_cpu_isa()) >= TS_ISA_AVX512;
}

// ---- the table of primitives

static uint64_t hash(const key *k) {
    uint64_t h = 0xcbf29ce484222325u;  // FNV-1a over words, then folded
    for (int i = 0; i < KEY_WORDS; i++) {
        h = (h ^ (uint64_t)k->word[i]) * 0x100000001b3u;
        h ^= h >> 29;
    }
    return h;
}

static void primitive_free(primitive *p) {
    for (int i = 0; i < p->arg_count; i++) {
        dnnl_memory_destroy(p->arg[i].memory);
    }
    for (int i = 0; i < 2 && p->reorder_arg[i].memory; i++) {
        dnnl_memory_destroy(p->reorder_arg[i].memory);
    }
    dnnl_primitive_destroy(p->reorder);
    dnnl_primitive_destroy(p->handle);
    free(p);
}

// The slot of the key: its primitive, or NULL where it would go.
static primitive **table_slot(const key *k) {
    uint64_t at = hash(k) % TABLE_SIZE;
    while (table[at] && memcmp(&table[at]->key, k, sizeof *k) != 0) {
        at = (at + 1) % TABLE_SIZE;
    }
    return &table[at];
}

// Programs with ever new shapes start over now and then.
static void table_clear_when_full(void) {
    if (table_used < TABLE_FULL) {
        return;
    }
    for (int i = 0; i < TABLE_SIZE; i++) {
        if (table[i]) {
            primitive_free(table[i]);
            table[i] = NULL;
        }
    }
    table_used = 0;
}

static int add_arg(primitive *p, int index, const dnnl_memory_desc_t *desc) {
    DNN_TRY(dnnl_memory_create(&p->arg[p->arg_count].memory, desc, engine, DNNL_MEMORY_NONE));
    p->arg[p->arg_count++].arg = index;
    return 0;
}

// Creates the primitive of `desc` with the library's choice of implementation. The caller adds the other arguments
// first and passes their indices; the scratchpad comes last.
static int primitive_create(primitive *p, const_dnnl_primitive_desc_t desc) {
    const dnnl_memory_desc_t *scratchpad = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
    p->scratch_bytes = dnnl_memory_desc_get_size(scratchpad);
    TS_TRY(add_arg(p, DNNL_ARG_SCRATCHPAD, scratchpad));
    DNN_TRY(dnnl_primitive_create(&p->handle, desc));
    return 0;
}

typedef int (*primitive_maker)(primitive *p, const void *params);

static int primitive_find(primitive **out, const key *k, primitive_maker make, const void *params) {
    TS_TRY(open_library());
    primitive **slot = table_slot(k);
    if (!*slot) {
        table_clear_when_full();
        primitive *p = ts_calloc(1, sizeof *p);
        if (!p) {
            return TS_ERESOURCE;
        }
        p->key = *k;
        const int status = make(p, params);
        if (status) {
            primitive_free(p);
            return status;
        }
        slot = table_slot(k);
        *slot = p;
        table_used++;
    }
    *out = *slot;
    return 0;
}

// `data` in the order of the arguments.
static int primitive_run(primitive *p, const void *const *data) {
    for (int i = 0; i < p->arg_count - 1; i++) {
        DNN_TRY(dnnl_memory_set_data_handle(p->arg[i].memory, (void *)(uintptr_t)data[i]));
    }
    void *scratch = ts_cpu_scratch(TS_SCRATCH_LIBRARY, p->scratch_bytes);
    if (!scratch) {
        return TS_ERESOURCE;
    }
    DNN_TRY(dnnl_memory_set_data_handle(p->arg[p->arg_count - 1].memory, scratch));
    DNN_TRY(dnnl_primitive_execute(p->handle, stream, p->arg_count, p->arg));
    return 0;
}

// Attributes with our scratchpad, and C += when asked.
static int attributes_create(dnnl_primitive_attr_t *out, bool accumulate) {
    DNN_TRY(dnnl_primitive_attr_create(out));
    DNN_TRY(dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user));
    if (accumulate) {
        dnnl_post_ops_t sum;
        DNN_TRY(dnnl_post_ops_create(&sum));
        const dnnl_status_t status = dnnl_post_ops_append_sum(sum, 1.0f);
        const dnnl_status_t set = dnnl_primitive_attr_set_post_ops(*out, sum);
        dnnl_post_ops_destroy(sum);
        DNN_TRY(status);
        DNN_TRY(set);
    }
    return 0;
}

// ---- matrix products

static dnnl_data_type_t data_type(ts_dtype dtype) {
    return dtype == TS_BF16 ? dnnl_bf16 : dnnl_f32;
}

static int matrix(dnnl_memory_desc_t *out, int64_t rows, int64_t columns, int64_t ld, bool transposed, ts_dtype dtype) {
    const dnnl_dims_t dims = {rows, columns}, strides = {transposed ? 1 : ld, transposed ? ld : 1};
    DNN_TRY(dnnl_memory_desc_init_by_strides(out, 2, dims, data_type(dtype), strides));
    return 0;
}

static int matmul_create(primitive *p, const void *params) {
    const ts_gemm *g = params;
    dnnl_memory_desc_t a, b, c, bias;
    TS_TRY(matrix(&a, g->m, g->k, g->lda, g->transpose_a, g->dtype_ab));
    TS_TRY(matrix(&b, g->k, g->n, g->ldb, g->transpose_b, g->dtype_ab));
    TS_TRY(matrix(&c, g->m, g->n, g->ldc, false, g->dtype_c));
    TS_TRY(matrix(&bias, 1, g->n, g->n, false, TS_F32));
    dnnl_matmul_desc_t desc;
    DNN_TRY(dnnl_matmul_desc_init(&desc, &a, &b, g->bias ? &bias : NULL, &c));
    TS_TRY(add_arg(p, DNNL_ARG_SRC, &a));
    TS_TRY(add_arg(p, DNNL_ARG_WEIGHTS, &b));
    TS_TRY(add_arg(p, DNNL_ARG_DST, &c));
    if (g->bias) {
        TS_TRY(add_arg(p, DNNL_ARG_BIAS, &bias));
    }
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_primitive_desc_t chosen = NULL;
    int status = attributes_create(&attributes, g->accumulate);
    if (!status && dnnl_primitive_desc_create(&chosen, &desc, attributes, engine, NULL) != dnnl_success) {
        status = TS_FAIL(TS_EINTERNAL, "oneDNN: no matrix product %s -> %s", ts_dtype_name(g->dtype_ab),
                         ts_dtype_name(g->dtype_c));
    }
    if (!status) {
        status = primitive_create(p, chosen);
    }
    dnnl_primitive_desc_destroy(chosen);
    dnnl_primitive_attr_destroy(attributes);
    return status;
}

int ts_onednn_matmul(const ts_gemm *p) {
    const int64_t flags = p->transpose_a | p->transpose_b << 1 | p->accumulate << 2 | (p->bias != NULL) << 3;
    const key k = {
        {MATMUL, p->m, p->n, p->k, p->lda, p->ldb, p->ldc, flags, p->dtype_ab, p->dtype_c, omp_get_max_threads()}};
    primitive *matmul;
    TS_TRY(primitive_find(&matmul, &k, matmul_create, p));
    return primitive_run(matmul, (const void *[]){p->a, p->b, p->c, p->bias});
}

// ---- convolution

typedef struct conv_memory {
    dnnl_memory_desc_t x, y, plain, any, bias;  // weights as ours, and as the library likes them
    dnnl_dims_t ones, before, after;
} conv_memory;

static int conv_describe(conv_memory *out, const ts_conv3d *c) {
    const dnnl_dims_t x = {c->batch, c->in_channels, c->frames, c->height, c->width};
    const dnnl_dims_t y = {c->batch, c->out_channels, c->frames, c->height, c->width};
    const dnnl_dims_t w = {c->out_channels, c->in_channels, c->kernel_t, c->kernel_h, c->kernel_w};
    const dnnl_dims_t bias = {c->out_channels};
    const int64_t h = (c->kernel_h - 1) / 2, v = (c->kernel_w - 1) / 2;
    *out = (conv_memory){.ones = {1, 1, 1}, .before = {c->kernel_t - 1, h, v}, .after = {0, h, v}};
    DNN_TRY(dnnl_memory_desc_init_by_tag(&out->x, 5, x, dnnl_f32, dnnl_ndhwc));
    DNN_TRY(dnnl_memory_desc_init_by_tag(&out->y, 5, y, dnnl_f32, dnnl_ndhwc));
    DNN_TRY(dnnl_memory_desc_init_by_tag(&out->plain, 5, w, dnnl_f32, dnnl_odhwi));
    DNN_TRY(dnnl_memory_desc_init_by_tag(&out->any, 5, w, dnnl_f32, dnnl_format_tag_any));
    DNN_TRY(dnnl_memory_desc_init_by_tag(&out->bias, 1, bias, dnnl_f32, dnnl_x));
    return 0;
}

// The primitive that lays weights out anew, from one description to the other.
static int reorder_create(primitive *p, const dnnl_memory_desc_t *from, const dnnl_memory_desc_t *to) {
    dnnl_primitive_desc_t desc;
    DNN_TRY(dnnl_reorder_primitive_desc_create(&desc, from, engine, to, engine, NULL));
    const dnnl_status_t status = dnnl_primitive_create(&p->reorder, desc);
    dnnl_primitive_desc_destroy(desc);
    DNN_TRY(status);
    p->reorder_arg[0].arg = DNNL_ARG_FROM;
    p->reorder_arg[1].arg = DNNL_ARG_TO;
    DNN_TRY(dnnl_memory_create(&p->reorder_arg[0].memory, from, engine, DNNL_MEMORY_NONE));
    DNN_TRY(dnnl_memory_create(&p->reorder_arg[1].memory, to, engine, DNNL_MEMORY_NONE));
    return 0;
}

static int reorder_run(primitive *p, const void *from, void *to) {
    DNN_TRY(dnnl_memory_set_data_handle(p->reorder_arg[0].memory, (void *)(uintptr_t)from));
    DNN_TRY(dnnl_memory_set_data_handle(p->reorder_arg[1].memory, to));
    DNN_TRY(dnnl_primitive_execute(p->reorder, stream, 2, p->reorder_arg));
    return 0;
}

// Chooses an implementation for a convolution's descriptor; `hint` is the forward one that backward passes ask for.
static int conv_choose(dnnl_primitive_desc_t *out, const dnnl_convolution_desc_t *desc,
                       const_dnnl_primitive_desc_t hint) {
    dnnl_primitive_attr_t attributes = NULL;
    int status = attributes_create(&attributes, false);
    if (!status && dnnl_primitive_desc_create(out, desc, attributes, engine, hint) != dnnl_success) {
        status = TS_FAIL(TS_EINTERNAL, "oneDNN: no convolution for this shape");
    }
    dnnl_primitive_attr_destroy(attributes);
    return status;
}

static int conv_forward_choose(dnnl_primitive_desc_t *out, const conv_memory *m, bool bias) {
    dnnl_convolution_desc_t desc;
    DNN_TRY(dnnl_convolution_forward_desc_init(&desc, dnnl_forward_training, dnnl_convolution_direct, &m->x, &m->any,
                                               bias ? &m->bias : NULL, &m->y, m->ones, m->before, m->after));
    return conv_choose(out, &desc, NULL);
}

static int conv_backward_choose(dnnl_primitive_desc_t *out, const conv_memory *m, operation op) {
    dnnl_convolution_desc_t desc;
    if (op == CONV_BACKWARD_DATA) {
        DNN_TRY(dnnl_convolution_backward_data_desc_init(&desc, dnnl_convolution_direct, &m->x, &m->any, &m->y, m->ones,
                                                         m->before, m->after));
    } else {
        DNN_TRY(dnnl_convolution_backward_weights_desc_init(&desc, dnnl_convolution_direct, &m->x, &m->any, NULL, &m->y,
                                                            m->ones, m->before, m->after));
    }
    dnnl_primitive_desc_t hint = NULL;
    TS_TRY(conv_forward_choose(&hint, m, false));
    const int status = conv_choose(out, &desc, hint);
    dnnl_primitive_desc_destroy(hint);
    return status;
}

typedef struct conv_request {
    const ts_conv3d *conv;
    operation op;
} conv_request;

// Arguments in order: forward x, weight, y [, bias]; backward data d_y, weight, d_x; backward weights d_y, x, d_weight.
static int conv_finish(primitive *p, const conv_request *r, const conv_memory *m, const_dnnl_primitive_desc_t chosen) {
    const bool of_weights = r->op == CONV_BACKWARD_WEIGHTS;
    const dnnl_memory_desc_t *weights =
        dnnl_primitive_desc_query_md(chosen, of_weights ? dnnl_query_diff_weights_md : dnnl_query_weights_md, 0);
    p->reordered_bytes = dnnl_memory_desc_get_size(weights);
    TS_TRY(reorder_create(p, of_weights ? weights : &m->plain, of_weights ? &m->plain : weights));
    if (r->op == CONV_FORWARD) {
        TS_TRY(add_arg(p, DNNL_ARG_SRC, &m->x));
        TS_TRY(add_arg(p, DNNL_ARG_WEIGHTS, weights));
        TS_TRY(add_arg(p, DNNL_ARG_DST, &m->y));
        if (r->conv->bias) {
            TS_TRY(add_arg(p, DNNL_ARG_BIAS, &m->bias));
        }
    } else {
        TS_TRY(add_arg(p, DNNL_ARG_DIFF_DST, &m->y));
        TS_TRY(add_arg(p, of_weights ? DNNL_ARG_SRC : DNNL_ARG_WEIGHTS, of_weights ? &m->x : weights));
        TS_TRY(add_arg(p, of_weights ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_DIFF_SRC, of_weights ? weights : &m->x));
    }
    return primitive_create(p, chosen);
}

static int conv_create(primitive *p, const void *params) {
    const conv_request *r = params;
    conv_memory m;
    TS_TRY(conv_describe(&m, r->conv));
    dnnl_primitive_desc_t chosen = NULL;
    TS_TRY(r->op == CONV_FORWARD ? conv_forward_choose(&chosen, &m, r->conv->bias != NULL)
                                 : conv_backward_choose(&chosen, &m, r->op));
    const int status = conv_finish(p, r, &m, chosen);
    dnnl_primitive_desc_destroy(chosen);
    return status;
}

static int conv_find(primitive **out, void **weights, const ts_conv3d *c, operation op) {
    if (c->kernel_h % 2 == 0 || c->kernel_w % 2 == 0 || c->kernel_t < 1) {
        return TS_FAIL(TS_EINTERNAL, "conv3d: kernel %lldx%lldx%lld; height and width must be odd",
                       (long long)c->kernel_t, (long long)c->kernel_h, (long long)c->kernel_w);
    }
    const key k = {{op, c->batch, c->frames, c->height, c->width, c->in_channels, c->out_channels, c->kernel_t,
                    c->kernel_h, c->kernel_w, c->bias != NULL, omp_get_max_threads()}};
    TS_TRY(primitive_find(out, &k, conv_create, &(conv_request){c, op}));
    *weights = ts_cpu_scratch(TS_SCRATCH_OPERAND, (*out)->reordered_bytes);
    return *weights ? 0 : TS_ERESOURCE;
}

int ts_cpu_conv3d_forward(const ts_conv3d *c) {
    primitive *p;
    void *weights;
    TS_TRY(conv_find(&p, &weights, c, CONV_FORWARD));
    TS_TRY(reorder_run(p, c->weight, weights));
    return primitive_run(p, (const void *[]){c->x, weights, c->y, c->bias});
}

int ts_cpu_conv3d_backward(const ts_conv3d *c) {
    primitive *p;
    void *weights;
    if (c->d_x) {
        TS_TRY(conv_find(&p, &weights, c, CONV_BACKWARD_DATA));
        TS_TRY(reorder_run(p, c->weight, weights));
        TS_TRY(primitive_run(p, (const void *[]){c->d_y, weights, c->d_x}));
    }
    if (c->d_weight) {
        const int64_t count = c->out_channels * c->kernel_t * c->kernel_h * c->kernel_w * c->in_channels;
        float *plain = ts_cpu_scratch(TS_SCRATCH_RESULT, (size_t)count * sizeof *plain);
        if (!plain) {
            return TS_ERESOURCE;
        }
        TS_TRY(conv_find(&p, &weights, c, CONV_BACKWARD_WEIGHTS));
        TS_TRY(primitive_run(p, (const void *[]){c->d_y, c->x, weights}));
        TS_TRY(reorder_run(p, weights, plain));
        TS_TRY(ts_cpu_table()->axpy(1.0f, plain, c->d_weight, count));
    }
    if (c->d_bias) {
        const int64_t rows = c->batch * c->frames * c->height * c->width;
        TS_TRY(ts_cpu_table()->bias_gradient(c->d_y, TS_F32, rows, c->out_channels, c->out_channels, c->d_bias));
    }
    return 0;
}
