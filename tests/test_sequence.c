// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=120
// Attention over sharded tokens against attention on one rank, which every rank computes for itself: all products of
// ring and ulysses, uneven and empty parts; bytes against the formulas and against the count mode; recomputation. On
// one rank it prints the table of bytes in core/comm/README.md and expects to find it there.
#include "core/nn/sequence.h"

#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/base/split.h"
#include "core/nn/activation.h"
#include "core/nn/layer.h"
#include "core/nn/residual.h"
#include "tests/ts_test.h"

enum { HEAD_DIM = 12, MAX_HEADS = 5, MAX_TOKENS = 75, MAX_BATCH = 2, TENSORS = 5 };
enum { Q, K, V, D_OUT, SPARE };

static const ts_kernels *kernels;
static ts_comm *world;

typedef struct problem {
    ts_degrees degree;
    int64_t batch, heads, tokens;
    ts_dtype dtype;
    bool fused;         // q, k and v are columns of one variable
    bool reproducible;  // forward gives the bits of one rank
} problem;

// What one run gives: rows [B, n, width] of the output and of the gradients of q, k and v, in f32.
typedef struct result {
    float *out, *d[3];
    ts_tape_stats stats;
} result;

static int64_t width_of(const problem *p) {
    return p->heads * HEAD_DIM;
}

static void *allocate(size_t bytes) {
    void *block = calloc(1, bytes ? bytes : 1);
    if (!block) {
        abort();
    }
    return block;
}

static void free_result(result *r) {
    free(r->out);
    for (int i = 0; i < 3; i++) {
        free(r->d[i]);
    }
}

// ---- inputs

static float random_values[TENSORS][MAX_BATCH * MAX_TOKENS * MAX_HEADS * HEAD_DIM];

static void put(void *to, ts_dtype dtype, int64_t i, float value) {
    if (dtype == TS_BF16) {
        ((uint16_t *)to)[i] = ts_f32_to_bf16(value);
    } else {
        ((float *)to)[i] = value;
    }
}

static float get(const void *from, ts_dtype dtype, int64_t i) {
    return dtype == TS_BF16 ? ts_bf16_to_f32(((const uint16_t *)from)[i]) : ((const float *)from)[i];
}

// Tokens `part` of tensor `which` of the whole problem into columns [first, first + width) of to [B, part, row].
static void fill(const problem *p, int which, ts_part part, void *to, int64_t first, int64_t row) {
    const int64_t width = width_of(p);
    for (int64_t b = 0; b < p->batch; b++) {
        for (int64_t t = 0; t < part.count; t++) {
            for (int64_t i = 0; i < width; i++) {
                const float x = random_values[which][((b * p->tokens + part.first + t) * width + i)];
                put(to, p->dtype, (b * part.count + t) * row + first + i, x);
            }
        }
    }
}

static float *to_f32(const void *from, ts_dtype dtype, int64_t rows, int64_t first, int64_t row, int64_t width) {
    float *to = allocate((size_t)(rows * width) * sizeof *to);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < width; i++) {
            to[r * width + i] = get(from, dtype, r * row + first + i);
        }
    }
    return to;
}

// ---- one run

static ts_part own_part(const problem *p, const ts_mesh *mesh) {
    ts_comm *sequence = ts_mesh_axis(mesh, TS_AXIS_SEQUENCE);
    return ts_split(p->tokens, ts_comm_size(sequence), ts_comm_rank(sequence));
}

// Attention of the tokens `part`, forward and, recorded, backward. Without a mesh: the whole, unsharded.
static void run(const problem *p, const ts_mesh *mesh, ts_part part, ts_tape_mode mode, result *out) {
    const int64_t width = width_of(p), row = p->fused ? 3 * width : width, rows = p->batch * part.count;
    const ts_attention_heads heads = {p->batch, p->heads, HEAD_DIM, 0.3};
    ts_tape *tape;
    CHECK_OK(ts_tape_open(&tape, kernels, mode, p->dtype));
    void *input[3], *d_out = allocate((size_t)(rows * width) * sizeof(float));
    ts_var *var[3];
    ts_columns qkv[3];
    for (int i = 0; i < 3; i++) {
        input[i] = p->fused && i > 0 ? input[0] : allocate((size_t)(rows * row) * sizeof(float));
        fill(p, Q + i, part, input[i], p->fused ? i * width : 0, row);
        var[i] = p->fused && i > 0
                     ? var[0]
                     : ts_tape_input(tape, (ts_tensor){p->dtype, TS_SHAPE(p->batch, part.count, row), input[i]}, true);
        qkv[i] = p->fused ? (ts_columns){var[0], i * width, width} : ts_whole(var[i]);
    }
    fill(p, D_OUT, part, d_out, 0, width);
    ts_var *y = mesh ? ts_nn_sequence_attention(tape, mesh, heads, p->tokens, qkv[0], qkv[1], qkv[2])
                     : ts_nn_attention(tape, heads, qkv[0], qkv[1], qkv[2], NULL, NULL);
    CHECK_OK(ts_tape_status(tape));
    if (ts_tape_keeps(tape)) {
        CHECK_OK(ts_tape_backward(tape, y, d_out));
    }
    *out = (result){.stats = ts_tape_get_stats(tape)};
    if (ts_tape_computes(tape)) {
        out->out = to_f32(y->value.data, p->dtype, rows, 0, width, width);
        for (int i = 0; i < 3; i++) {
            out->d[i] = to_f32(var[i]->grad, var[i]->grad_dtype, rows, qkv[i].first, row, width);
        }
    }
    ts_tape_close(&tape);
    for (int i = 0; i < (p->fused ? 1 : 3); i++) {
        free(input[i]);
    }
    free(d_out);
}

// ---- comparison

// Largest difference of the tokens `part` of `whole` from `own`, over the largest value of the whole.
static double difference(const problem *p, ts_part part, const float *own, const float *whole) {
    const int64_t width = width_of(p);
    double worst = 0, size = 1;
    for (int64_t b = 0; b < p->batch; b++) {
        for (int64_t t = 0; t < p->tokens; t++) {
            for (int64_t i = 0; i < width; i++) {
                const double want = (double)whole[(b * p->tokens + t) * width + i];
                size = fmax(size, fabs(want));
                if (t >= part.first && t < part.first + part.count) {
                    const double got = (double)own[(b * part.count + t - part.first) * width + i];
                    worst = isnan(got) ? INFINITY : fmax(worst, fabs(got - want));
                }
            }
        }
    }
    return worst / size;
}

// The exchange moves bits about, and a head's sums run as on one rank; the ring adds up parts in another order.
static double tolerance(const problem *p, bool forward) {
    const bool same_bits = p->degree.ring == 1 || (forward && p->reproducible);
    return same_bits ? 0 : p->dtype == TS_F32 ? 1e-5 : 1.2e-2;
}

static void compare(const problem *p, ts_part part, const result *own, const result *whole, const char *what) {
    static const char *const NAMES[] = {"output", "gradient of q", "gradient of k", "gradient of v"};
    const float *const got[] = {own->out, own->d[0], own->d[1], own->d[2]};
    const float *const want[] = {whole->out, whole->d[0], whole->d[1], whole->d[2]};
    for (int i = 0; i < 4; i++) {
        const double off = difference(p, part, got[i], want[i]);
        if (!(off <= tolerance(p, i == 0))) {
            fprintf(stderr,
                    "%s: ring %d x ulysses %d, rank %d, %s, batch %lld, heads %lld, tokens %lld: %s off by %g\n", what,
                    p->degree.ring, p->degree.ulysses, ts_comm_rank(world), ts_dtype_name(p->dtype),
                    (long long)p->batch, (long long)p->heads, (long long)p->tokens, NAMES[i], off);
            ts_test_failures++;
        }
    }
}

// ---- bytes

typedef struct traffic {
    uint64_t exchanged, passed;  // by all-to-all along ulysses, by hops along ring
    uint64_t exchanges, hops;
} traffic;

// The formulas of core/nn/sequence.h, for one backward pass and so many forward passes of each scheme.
static traffic expected(const problem *p, const ts_mesh *mesh, int64_t exchange_passes, int64_t ring_passes) {
    const int R = p->degree.ring, U = p->degree.ulysses;
    const int r = ts_comm_rank(mesh->axis[TS_AXIS_RING]), u = ts_comm_rank(mesh->axis[TS_AXIS_ULYSSES]);
    const int64_t n = own_part(p, mesh).count, h = p->heads, h_u = ts_split(h, U, u).count, L = p->tokens;
    const int64_t L_r = ts_split(L, R, r).count, L_next = ts_split(L, R, (r + 1) % R).count;
    const int64_t e = (int64_t)ts_dtype_bytes(p->dtype), unit = p->batch * HEAD_DIM;
    const int64_t exchange_forward = unit * e * (3 * n * (h - h_u) + (L_r - n) * h_u);
    const int64_t exchange_backward = unit * e * (n * (h - h_u) + 3 * (L_r - n) * h_u);
    const int64_t ring_forward = unit * e * 2 * h_u * (L - L_next);
    const int64_t ring_backward = ring_forward + unit * 4 * 2 * h_u * (L - L_r);
    return (traffic){.exchanged = U > 1 ? (uint64_t)(exchange_passes * exchange_forward + exchange_backward) : 0,
                     .passed = R > 1 ? (uint64_t)(ring_passes * ring_forward + ring_backward) : 0,
                     .exchanges = U > 1 ? 2 * (uint64_t)exchange_passes + 2 : 0,
                     .hops = (uint64_t)((ring_passes + 2) * (R - 1))};
}

static traffic counted(const ts_mesh *mesh) {
    const ts_comm_counters exchange = ts_comm_get_counters(mesh->axis[TS_AXIS_ULYSSES], TS_ALL_TO_ALL);
    const ts_comm_counters ring = ts_comm_get_counters(mesh->axis[TS_AXIS_RING], TS_RING);
    return (traffic){exchange.bytes_sent, ring.bytes_sent, exchange.calls, ring.calls};
}

static void reset_counters(const ts_mesh *mesh) {
    ts_comm_reset_counters(mesh->axis[TS_AXIS_ULYSSES]);
    ts_comm_reset_counters(mesh->axis[TS_AXIS_RING]);
}

static void check_traffic(const problem *p, const ts_mesh *mesh, const char *what, int64_t exchange_passes,
                          int64_t ring_passes) {
    const traffic got = counted(mesh), want = expected(p, mesh, exchange_passes, ring_passes);
    if (memcmp(&got, &want, sizeof got) != 0) {
        fprintf(stderr, "%s: ring %d x ulysses %d: %llu bytes exchanged and %llu passed, wanted %llu and %llu\n", what,
                p->degree.ring, p->degree.ulysses, (unsigned long long)got.exchanged, (unsigned long long)got.passed,
                (unsigned long long)want.exchanged, (unsigned long long)want.passed);
        ts_test_failures++;
    }
    CHECK(ts_comm_total(mesh->axis[TS_AXIS_ULYSSES]).bytes_sent == want.exchanged);
    CHECK(ts_comm_total(mesh->axis[TS_AXIS_RING]).bytes_sent == want.passed);
}

// ---- cases

static void check_problem(const problem *p, const ts_mesh *mesh) {
    const ts_part part = own_part(p, mesh), whole_part = {0, p->tokens};
    result whole, own, counts;
    run(p, NULL, whole_part, TS_TAPE_RECORD, &whole);
    reset_counters(mesh);
    run(p, mesh, part, TS_TAPE_RECORD, &own);
    compare(p, part, &own, &whole, "record");
    check_traffic(p, mesh, "record", 1, 1);

    ts_mesh imagined;
    CHECK_OK(ts_mesh_imagine(&imagined, &p->degree, ts_comm_rank(world)));
    imagined.reproducible = p->reproducible;
    run(p, &imagined, part, TS_TAPE_COUNT, &counts);
    check_traffic(p, &imagined, "count", 1, 1);
    CHECK(counts.stats.flops == own.stats.flops);
    CHECK(counts.stats.peak_bytes == own.stats.peak_bytes);
    CHECK(counts.stats.activation_bytes == own.stats.activation_bytes);
    ts_mesh_close(&imagined);

    double flops = own.stats.flops;
    CHECK_OK(ts_all_reduce(world, &flops, 1, TS_F64, TS_SUM));
    CHECK(flops == whole.stats.flops);
    free_result(&own);
    free_result(&whole);
}

// ---- recomputation

typedef struct block_context {
    const problem *problem;
    const ts_mesh *mesh;
} block_context;

// x + attention(x, k, v)
static ts_var *block_forward(ts_tape *tape, const void *context, ts_var *const *inputs) {
    const block_context *bc = context;
    const problem *p = bc->problem;
    const ts_attention_heads heads = {p->batch, p->heads, HEAD_DIM, 0.3};
    ts_columns qkv[3];
    for (int i = 0; i < 3; i++) {
        qkv[i] = ts_whole(ts_nn_cast(tape, inputs[i], p->dtype));
    }
    ts_var *y = ts_nn_sequence_attention(tape, bc->mesh, heads, p->tokens, qkv[0], qkv[1], qkv[2]);
    return ts_nn_residual(tape, inputs[0], y);
}

static void run_block(const problem *p, const ts_mesh *mesh, ts_recompute recompute, result *out) {
    problem f32 = *p;
    f32.dtype = TS_F32;
    const ts_part part = own_part(p, mesh);
    const int64_t width = width_of(p), rows = p->batch * part.count;
    const block_context context = {p, mesh};
    ts_tape *tape;
    CHECK_OK(ts_tape_open(&tape, kernels, TS_TAPE_RECORD, p->dtype));
    float *input[4];
    ts_var *var[3];
    for (int i = 0; i < 4; i++) {
        input[i] = allocate((size_t)(rows * width) * sizeof *input[i]);
        fill(&f32, Q + i, part, input[i], 0, width);
    }
    for (int i = 0; i < 3; i++) {
        var[i] = ts_tape_input(tape, (ts_tensor){TS_F32, TS_SHAPE(p->batch, part.count, width), input[i]}, true);
    }
    ts_var *y = ts_tape_scope(tape, block_forward, &context, var, 3, recompute);
    CHECK_OK(ts_tape_status(tape));
    *out = (result){.out = to_f32(y->value.data, TS_F32, rows, 0, width, width)};  // backward releases it
    CHECK_OK(ts_tape_backward(tape, y, input[3]));
    out->stats = ts_tape_get_stats(tape);
    for (int i = 0; i < 3; i++) {
        out->d[i] = to_f32(var[i]->grad, TS_F32, rows, 0, width, width);
    }
    ts_tape_close(&tape);
    for (int i = 0; i < 4; i++) {
        free(input[i]);
    }
}

static void check_recompute(const problem *p, const ts_mesh *mesh) {
    const size_t bytes = (size_t)(p->batch * own_part(p, mesh).count * width_of(p)) * sizeof(float);
    result kept, again;
    run_block(p, mesh, TS_RECOMPUTE_NONE, &kept);
    for (int recompute = TS_RECOMPUTE_ELEMENTWISE; recompute <= TS_RECOMPUTE_BLOCK; recompute++) {
        reset_counters(mesh);
        run_block(p, mesh, (ts_recompute)recompute, &again);
        check_traffic(p, mesh, "recompute", 2, recompute == TS_RECOMPUTE_BLOCK ? 2 : 1);
        CHECK(memcmp(kept.out, again.out, bytes) == 0);
        for (int i = 0; i < 3; i++) {
            CHECK(memcmp(kept.d[i], again.d[i], bytes) == 0);
        }
        CHECK(kept.stats.flops == again.stats.flops);
        free_result(&again);
    }
    free_result(&kept);
}

// ---- sampling

// Nothing is recorded: the same output as when it is.
static void check_run(const problem *p, const ts_mesh *mesh) {
    const ts_part part = own_part(p, mesh);
    const int64_t width = width_of(p), rows = p->batch * part.count;
    const ts_attention_heads heads = {p->batch, p->heads, HEAD_DIM, 0.3};
    result recorded;
    run(p, mesh, part, TS_TAPE_RECORD, &recorded);
    ts_tape *tape;
    CHECK_OK(ts_tape_open(&tape, kernels, TS_TAPE_RUN, p->dtype));
    void *input[3];
    ts_columns qkv[3];
    for (int i = 0; i < 3; i++) {
        input[i] = allocate((size_t)(rows * width) * sizeof(float));
        fill(p, Q + i, part, input[i], 0, width);
        qkv[i] = ts_whole(
            ts_tape_input(tape, (ts_tensor){p->dtype, TS_SHAPE(p->batch, part.count, width), input[i]}, false));
    }
    const ts_var *y = ts_nn_sequence_attention(tape, mesh, heads, p->tokens, qkv[0], qkv[1], qkv[2]);
    CHECK_OK(ts_tape_status(tape));
    float *out = to_f32(y->value.data, p->dtype, rows, 0, width, width);
    CHECK(memcmp(out, recorded.out, (size_t)(rows * width) * sizeof *out) == 0);
    free(out);
    ts_tape_close(&tape);
    for (int i = 0; i < 3; i++) {
        free(input[i]);
    }
    free_result(&recorded);
}

static void check_mesh(int ring, int ulysses) {
    static const int64_t HEADS[] = {0, 1, 3, 4, 5}, TOKENS[] = {1, 3, 17, 75};
    const ts_degrees degree = {1, 1, ring, ulysses, 1};
    ts_mesh mesh;
    CHECK_OK(ts_mesh_open(&mesh, world, &degree));
    problem p = {.degree = degree};
    for (size_t h = 0; h < sizeof HEADS / sizeof *HEADS; h++) {
        for (size_t t = 0; t < sizeof TOKENS / sizeof *TOKENS; t++) {
            for (int variant = 0; variant < 4; variant++) {
                p.heads = HEADS[h];
                p.tokens = TOKENS[t];
                p.batch = 1 + variant % 2;
                p.dtype = variant / 2 ? TS_BF16 : TS_F32;
                p.fused = (h + t) % 2;
                p.reproducible = mesh.reproducible = (h + t + (size_t)variant) % 3 == 0;
                check_problem(&p, &mesh);
            }
        }
    }
    for (int variant = 0; variant < 4; variant++) {
        p = (problem){.degree = degree,
                      .batch = 1 + variant % 2,
                      .heads = variant % 2 ? 5 : 3,
                      .tokens = variant ? 75 : 3,
                      .dtype = variant / 2 ? TS_BF16 : TS_F32,
                      .reproducible = variant == 3};
        mesh.reproducible = p.reproducible;
        check_recompute(&p, &mesh);
        check_run(&p, &mesh);
    }
    ts_mesh_close(&mesh);
}

// A mesh that is not there is one rank.
static void check_alone(void) {
    const problem p = {{1, 1, 1, 1, 1}, 2, 3, 17, TS_F32, true, false};
    const ts_part part = {0, p.tokens};
    ts_mesh lone;
    CHECK_OK(ts_mesh_imagine(&lone, &p.degree, 0));
    result want, got;
    run(&p, NULL, part, TS_TAPE_RECORD, &want);
    run(&p, &lone, part, TS_TAPE_RECORD, &got);
    CHECK(difference(&p, part, got.out, want.out) == 0);
    CHECK(difference(&p, part, got.d[2], want.d[2]) == 0);
    got.out[5] += 1e-3f;  // the comparison must notice
    CHECK(difference(&p, part, got.out, want.out) > 1e-5);
    free_result(&want);
    free_result(&got);
    ts_mesh_close(&lone);
}

// ---- the table of the manual

static int64_t all_bytes(const problem *p, ts_tape_mode mode) {
    int64_t sum = 0;
    for (int rank = 0; rank < p->degree.ring * p->degree.ulysses; rank++) {
        ts_mesh mesh;
        result none;
        CHECK_OK(ts_mesh_imagine(&mesh, &p->degree, rank));
        run(p, &mesh, own_part(p, &mesh), mode, &none);
        const traffic sent = counted(&mesh);
        sum += (int64_t)(sent.exchanged + sent.passed);
        ts_mesh_close(&mesh);
    }
    return sum;
}

static void check_table(void) {
    static const int RING_ULYSSES[][2] = {{1, 2}, {1, 3}, {1, 4}, {2, 1}, {3, 1}, {4, 1}, {2, 2}, {4, 8}};
    char *manual = NULL;
    size_t bytes;
    CHECK_OK(ts_file_read("core/comm/README.md", 1 << 20, &manual, &bytes));
    for (size_t i = 0; i < sizeof RING_ULYSSES / sizeof *RING_ULYSSES; i++) {
        const int ring = RING_ULYSSES[i][0], ulysses = RING_ULYSSES[i][1];
        const problem p = {{1, 1, ring, ulysses, 1}, 1, 5, MAX_TOKENS, TS_BF16, true, false};
        const int64_t forward = all_bytes(&p, TS_TAPE_COUNT_RUN), both = all_bytes(&p, TS_TAPE_COUNT);
        char line[128];
        snprintf(line, sizeof line, "| ring=%d,ulysses=%d | %lld | %lld |", ring, ulysses, (long long)forward,
                 (long long)(both - forward));
        puts(line);
        CHECK(manual && strstr(manual, line));
    }
    free(manual);
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    for (int i = 0; i < TENSORS; i++) {
        ts_rng_normal_fill(random_values[i], (int64_t)(sizeof random_values[i] / sizeof(float)), 3, TS_RNG_TEST,
                           (uint64_t)i, 0);
    }
    check_alone();
    const int ranks = ts_comm_size(world);
    for (int ring = 1; ring <= ranks; ring++) {
        if (ranks % ring == 0) {
            check_mesh(ring, ranks / ring);
        }
    }
    if (ranks == 1) {
        check_table();
    }
    ts_world_close(&world, 0);
    return ts_test_end();
}
