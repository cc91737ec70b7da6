// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4
// The sharded optimizer: the same bits as on one rank, on meshes with and without a tensor axis; the bytes of the
// formulas, sent and held. On one rank it prints the table of core/comm/README.md and expects to find it there.
#include "train/zero.h"

#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/model/dit.h"
#include "tests/ts_test.h"
#include "train/optimizer.h"

enum { BLOCKS = 3, STEPS = 3, WIDTH = 40, INNER = 72, UNIT = 8 };

static ts_param *declare(ts_params *params, const char *prefix, const char *name, ts_shape shape, int cut) {
    ts_param *param = NULL;
    const ts_declaration as = {shape, shape.ndim > 1, shape.ndim > 1, cut, cut < 0 ? 0 : UNIT};
    CHECK_OK(ts_params_declare_as(&param, params, prefix, name, &as));
    return param;
}

// A table, and blocks of matrices cut either way beside vectors that are whole.
static ts_params *make_params(const ts_mesh *mesh, ts_dtype dtype, ts_dtype grad_dtype) {
    ts_params *params = NULL;
    CHECK_OK(ts_params_open(&params));
    params->mesh = mesh;
    declare(params, "", "table", TS_SHAPE(33, 7), -1);
    for (int block = 0; block < BLOCKS; block++) {
        char prefix[16];
        snprintf(prefix, sizeof prefix, "%d.", block);
        ts_params_begin_group(params);
        declare(params, prefix, "norm", TS_SHAPE(WIDTH), -1);
        declare(params, prefix, "in", TS_SHAPE(INNER, WIDTH), 0)->hidden = true;
        declare(params, prefix, "bias", TS_SHAPE(INNER), 0);
        declare(params, prefix, "out", TS_SHAPE(WIDTH, INNER), 1)->hidden = true;
        declare(params, prefix, "few", TS_SHAPE(UNIT, WIDTH), 0)->hidden = true;  // of one unit: empty on most ranks
        ts_params_end_group(params);
    }
    declare(params, "", "head", TS_SHAPE(16, WIDTH), -1)->lr_scale = 0.5f;
    CHECK_OK(ts_params_allocate(params, dtype, false));
    CHECK_OK(ts_params_allocate_grad(params, grad_dtype));
    for (int64_t i = 0; i < params->count; i++) {
        ts_param_init_normal(params->item[i], 9, 0.1f);
    }
    ts_params_refresh_operands(params);
    return params;
}

// Gradients of a step that do not depend on the mesh: one rank of those that share a parameter has them, the others 0.
static void set_gradients(const ts_params *params, int group, uint64_t step) {
    for (int64_t i = 0; i < params->count; i++) {
        const ts_param *param = params->item[i];
        ts_comm *ranks = ts_mesh_axis(params->mesh, param->cut < 0 ? TS_AXIS_WORLD : TS_AXIS_REPLICA);
        if (param->group != group || ts_comm_rank(ranks) != ts_comm_size(ranks) - 1) {
            continue;
        }
        ts_piece piece[TS_MAX_PIECES];
        const int pieces = ts_param_pieces(param, 0, param->count, piece);
        float *grad = param->grad;
        for (int p = 0; p < pieces; p++) {
            for (int64_t run = 0; run < piece[p].runs; run++, grad += piece[p].length) {
                ts_rng_normal_fill(grad, piece[p].length, step, TS_RNG_TEST, (uint64_t)strlen(param->name),
                                   piece[p].first + run * piece[p].stride);
            }
        }
    }
}

// Backward in two micro-batches, of which the second adds nothing.
static double backward(ts_optimizer *o, uint64_t step, ts_comm *world) {
    double squares = 0;
    CHECK_OK(ts_zero_begin(o->zero));
    for (int last = 0; last < 2; last++) {
        for (int group = o->weights->groups - 1; group >= 0; group--) {
            if (!last) {
                set_gradients(o->weights, group, step);
            }
            CHECK_OK(ts_zero_group_done(o->zero, group, last));
        }
    }
    CHECK_OK(ts_optimizer_reduce(o, &squares));
    CHECK_OK(ts_all_reduce(world, &squares, 1, TS_F64, TS_SUM));
    return squares;
}

enum { KINDS = 4 };

typedef struct outcome {
    ts_params *params;
    float *state[KINDS];  // [params->total] weight, average, first and second moment of the own parts, 0 elsewhere
    bool *owned;          // [params->total]
    double squares;       // of the last step's gradients
} outcome;

static void take_parts(const ts_optimizer *o, outcome *out) {
    int64_t parts;
    const ts_state_part *part = ts_optimizer_parts(o, &parts);
    for (int64_t p = 0; p < parts; p++) {
        const float *const from[KINDS] = {part[p].weight, part[p].average, part[p].moment1, part[p].moment2};
        const int64_t at = part[p].param->offset + part[p].first;
        for (int kind = 0; kind < KINDS; kind++) {
            if (from[kind]) {
                memcpy(out->state[kind] + at, from[kind], (size_t)part[p].count * sizeof(float));
            }
        }
        memset(out->owned + at, true, (size_t)part[p].count);
    }
}

static const ts_optimizer_params ADAMW = {
    .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .average = true};
static const ts_optimizer_params MUON = {.beta1 = 0.9,
                                         .beta2 = 0.95,
                                         .eps = 1e-8,
                                         .average = true,
                                         .muon = true,
                                         .muon_lr_scale = 10,
                                         .muon_momentum = 0.95};

static outcome take_steps(const ts_mesh *mesh, const ts_kernels *kernels, ts_dtype dtype, ts_dtype grad_dtype,
                          const ts_optimizer_params *settings) {
    outcome out = {.params = make_params(mesh, dtype, grad_dtype)};
    ts_optimizer *o = NULL;
    CHECK_OK(ts_optimizer_open(&o, out.params, kernels, settings));
    for (int step = 1; step <= STEPS; step++) {
        out.squares = backward(o, (uint64_t)step, ts_mesh_axis(mesh, TS_AXIS_WORLD));
        CHECK_OK(ts_optimizer_step(o, step, 1e-2, 0.7, 0.9));
    }
    for (int kind = 0; kind < KINDS; kind++) {
        out.state[kind] = ts_calloc((size_t)out.params->total, sizeof(float));
    }
    out.owned = ts_calloc((size_t)out.params->total, sizeof *out.owned);
    take_parts(o, &out);
    ts_optimizer_close(&o);
    return out;
}

static void outcome_close(outcome *out) {
    ts_params_close(&out->params);
    for (int kind = 0; kind < KINDS; kind++) {
        free(out->state[kind]);
    }
    free(out->owned);
}

// ---- the same bits

// A slice of a parameter against the whole: all kinds of state of what is owned, and what kernels read. Returns the
// elements that are owned.
static int64_t check_slice(const outcome *one, const outcome *many, const ts_param *slice) {
    const ts_param *whole = ts_params_find(one->params, slice->name);
    ts_piece piece[TS_MAX_PIECES];
    const int pieces = ts_param_pieces(slice, 0, slice->count, piece);
    int64_t at = 0, owned = 0;
    bool same = true;
    for (int p = 0; p < pieces; p++) {
        for (int64_t run = 0; run < piece[p].runs; run++) {
            for (int64_t j = 0; j < piece[p].length; j++, at++) {
                const int64_t element = piece[p].first + run * piece[p].stride + j;
                const bool own = many->owned[slice->offset + at];
                owned += own;
                for (int kind = 0; own && kind < KINDS; kind++) {
                    same = same && many->state[kind][slice->offset + at] == one->state[kind][whole->offset + element];
                }
                same =
                    same && (slice->value ? slice->value[at] == whole->value[element]
                                          : ((uint16_t *)slice->operand)[at] == ((uint16_t *)whole->operand)[element]);
            }
        }
    }
    if (!same) {
        fprintf(stderr, "%s differs\n", slice->name);
    }
    CHECK(same && at == slice->count);
    return owned;
}

static void check_same_bits(const ts_mesh *mesh, const ts_kernels *kernels) {
    static const struct {
        ts_dtype operand, grad;
        const ts_optimizer_params *settings;
    } cases[] = {{TS_F32, TS_F32, &ADAMW},
                 {TS_BF16, TS_F32, &ADAMW},
                 {TS_BF16, TS_BF16, &ADAMW},
                 {TS_F32, TS_F32, &MUON},
                 {TS_BF16, TS_BF16, &MUON}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        outcome one = take_steps(NULL, kernels, cases[c].operand, cases[c].grad, cases[c].settings);
        outcome many = take_steps(mesh, kernels, cases[c].operand, cases[c].grad, cases[c].settings);
        CHECK(one.squares > 0);
        CHECK_NEAR(many.squares / one.squares, 1, 1e-6);
        int64_t owned = 0, elements = 0;
        for (int64_t i = 0; i < many.params->count; i++) {
            owned += check_slice(&one, &many, many.params->item[i]);
            elements += ts_shape_count(many.params->item[i]->whole);
        }
        CHECK_OK(ts_all_reduce(mesh->world, &owned, 1, TS_I64, TS_SUM));
        CHECK(owned == elements);
        outcome_close(&one);
        outcome_close(&many);
    }
}

// ---- bytes

// Every element of a span is in one part; what was sent is what the header says.
static void check_bytes(const ts_mesh *mesh, const ts_kernels *kernels, ts_dtype dtype, ts_dtype grad_dtype) {
    ts_params *params = make_params(mesh, dtype, grad_dtype);
    ts_optimizer *o = NULL;
    int64_t reduced = 0, gathered = 0;
    CHECK_OK(ts_optimizer_open(&o, params, kernels, &ADAMW));
    for (int s = 0; s < params->spans; s++) {
        const ts_span *span = &params->span[s];
        const ts_shard *shard = &o->zero->shard[s];
        const int ranks = ts_comm_size(shard->comm);
        int64_t sum = 0;
        for (int r = 0; r < ranks; r++) {
            sum += shard->counts[r];
        }
        CHECK(sum == span->count && shard->counts[ts_comm_rank(shard->comm)] == shard->count);
        reduced += (span->count - shard->count) * (grad_dtype == TS_BF16 ? 2 : 4) * (ranks > 1);
        gathered += shard->count * (ranks - 1) * (span->operand ? 2 : 4);
    }
    ts_comm *const world = mesh->axis[TS_AXIS_WORLD], *const replica = mesh->axis[TS_AXIS_REPLICA];
    ts_comm_reset_counters(world);
    ts_comm_reset_counters(replica);
    backward(o, 1, NULL);
    CHECK_OK(ts_optimizer_step(o, 1, 1e-2, 1, 0.9));
    int64_t sent[2] = {0, 0};
    for (int i = 0; i < (world == replica ? 1 : 2); i++) {
        ts_comm *const comm = i == 0 ? world : replica;
        sent[0] += (int64_t)ts_comm_get_counters(comm, TS_REDUCE_SCATTER).bytes_sent;
        sent[1] += (int64_t)ts_comm_get_counters(comm, TS_ALL_GATHER).bytes_sent;
    }
    CHECK(sent[0] == reduced && sent[1] == gathered);
    char text[80];
    if (ts_comm_rank(world) == 0) {
        printf("%-22s weights %s, gradients %s: reduce-scatter %lld bytes, all-gather %lld bytes on rank 0\n",
               ts_degrees_text(&mesh->degree, text, sizeof text), ts_dtype_name(dtype), ts_dtype_name(grad_dtype),
               (long long)sent[0], (long long)sent[1]);
    }
    ts_optimizer_close(&o);
    ts_params_close(&params);
}

// ---- the Wan 1.3B transformer, on imagined meshes

typedef struct wan {
    ts_mesh mesh;
    ts_params *params;
    ts_dit *dit;
} wan;

static void wan_open(wan *w, const ts_degrees *degree, int rank) {
    const ts_dit_config config = {.patch = {1, 2, 2},
                                  .heads = 12,
                                  .head_dim = 128,
                                  .in_channels = 16,
                                  .out_channels = 16,
                                  .text_dim = 4096,
                                  .freq_dim = 256,
                                  .ffn_dim = 8960,
                                  .layers = 30,
                                  .rope_max_positions = 1024,
                                  .text_rows = 512,
                                  .eps = 1e-6,
                                  .cross_attention_norm = true};
    CHECK_OK(ts_mesh_imagine(&w->mesh, degree, rank));
    CHECK_OK(ts_params_open(&w->params));
    w->params->mesh = &w->mesh;
    CHECK_OK(ts_dit_open(&w->dit, &config, w->params, ""));
    CHECK_OK(ts_params_place(w->params));
}

static void wan_close(wan *w) {
    ts_dit_close(&w->dit);
    ts_params_close(&w->params);
    ts_mesh_close(&w->mesh);
}

// Bytes a parameter on the last rank, with D ranks to share.
static void check_state(int data, int tensor) {
    wan w;
    ts_state_bytes bytes;
    wan_open(&w, &(ts_degrees){data, 1, 1, 1, tensor}, data * tensor - 1);
    double elements = 0;
    for (int64_t i = 0; i < w.params->count; i++) {
        elements += (double)w.params->item[i]->count;
    }
    ts_optimizer_params settings = ADAMW;
    settings.average = false;
    CHECK_OK(ts_optimizer_count(w.params, TS_BF16, TS_BF16, &settings, true, &bytes));
    const double state = (double)(bytes.weights + bytes.gradients + bytes.masters + bytes.moments) / elements;
    CHECK(state <= 1.02 * (4.0 + 12.0 / data) && bytes.average == 0);
    printf("data=%-3d tensor=%d: %.3f bytes of state a parameter, 4 + 12/D = %.3f; buffers %.0f MiB\n", data, tensor,
           state, 4.0 + 12.0 / data, (double)bytes.buffers / (1 << 20));
    settings.average = true;
    CHECK_OK(ts_optimizer_count(w.params, TS_BF16, TS_BF16, &settings, true, &bytes));
    CHECK_NEAR((double)bytes.average / elements, 4.0 / data, 0.02 * 4.0 / data);
    settings.muon = true;
    CHECK_OK(ts_optimizer_count(w.params, TS_BF16, TS_BF16, &settings, true, &bytes));
    CHECK(data > 1 || (double)bytes.moments < 0.55 * 8.0 * elements);  // no second moment of matrices
    wan_close(&w);
}

// What all ranks of a mesh send in a step: gradients, then weights in bf16.
static void step_bytes(const ts_degrees *degree, int64_t *gradients, int64_t *weights) {
    *gradients = *weights = 0;
    for (int rank = 0; rank < degree->data * degree->ulysses * degree->tensor; rank++) {
        wan w;
        ts_zero *zero = NULL;
        wan_open(&w, degree, rank);
        CHECK_OK(ts_zero_open(&zero, w.params, false));
        for (int s = 0; s < w.params->spans; s++) {
            const ts_shard *shard = &zero->shard[s];
            const ts_dtype dtype = shard->span->is_operand ? TS_BF16 : TS_F32;
            *gradients += ts_comm_bytes(shard->comm, TS_REDUCE_SCATTER, shard->counts, TS_F32);
            *weights += ts_comm_bytes(shard->comm, TS_ALL_GATHER, shard->counts, dtype);
        }
        ts_zero_close(&zero);
        wan_close(&w);
    }
}

static void check_table(void) {
    static const ts_degrees degrees[] = {{2, 1, 1, 1, 1}, {3, 1, 1, 1, 1}, {8, 1, 1, 1, 1},
                                         {2, 1, 1, 2, 1}, {1, 1, 1, 1, 2}, {4, 1, 1, 1, 2}};
    char *manual = NULL;
    size_t bytes;
    CHECK_OK(ts_file_read("core/comm/README.md", 1 << 20, &manual, &bytes));
    for (size_t i = 0; i < sizeof degrees / sizeof *degrees; i++) {
        int64_t gradients, weights;
        char text[80], line[160];
        step_bytes(&degrees[i], &gradients, &weights);
        snprintf(line, sizeof line, "| %s | %lld | %lld | %lld |", ts_degrees_text(&degrees[i], text, sizeof text),
                 (long long)gradients, (long long)(gradients / 2), (long long)weights);
        puts(line);
        CHECK(manual && strstr(manual, line));
    }
    free(manual);
}

int main(int argc, char **argv) {
    static const char *const meshes[5][5] = {[1] = {"", NULL},
                                             [2] = {"data=2", "tensor=2", "ulysses=2", NULL},
                                             [3] = {"data=3", "tensor=3", NULL},
                                             [4] = {"data=4", "tensor=4", "data=2,tensor=2", "ring=2,tensor=2", NULL}};
    ts_comm *world = NULL;
    const ts_kernels *kernels = NULL;
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    for (int i = 0; meshes[ts_comm_size(world)][i]; i++) {
        ts_mesh mesh;
        ts_degrees degree;
        int sequence;
        CHECK_OK(ts_degrees_parse(&degree, &sequence, meshes[ts_comm_size(world)][i]));
        CHECK_OK(ts_mesh_open(&mesh, world, &degree));
        check_same_bits(&mesh, kernels);
        check_bytes(&mesh, kernels, TS_F32, TS_F32);
        check_bytes(&mesh, kernels, TS_BF16, TS_F32);
        check_bytes(&mesh, kernels, TS_BF16, TS_BF16);
        ts_mesh_close(&mesh);
    }
    if (ts_comm_size(world) == 1) {
        for (int data = 1; data <= 64; data *= 4) {
            check_state(data, 1);
            check_state(data, 2);
        }
        check_table();
    }
    ts_world_close(&world, 0);
    return ts_test_end();
}
