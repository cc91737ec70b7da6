// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=120 backend=cuda
// A training step of a sharded transformer: bytes and calls against the formulas of core/comm/README.md and against the
// count mode, memory and FLOPs against the count mode, recomputation, the moment when gradients are final, the
// whole velocity, and on a reproducible mesh its bits. On one rank it prints the table of bytes in core/comm/README.md
// and expects to find it there.
#include "core/base/file.h"
#include "tests/shard_model.h"

static ts_comm *world;

// ---- formulas

// What a rank sends along tensor, ulysses and ring in some passes of the blocks.
typedef struct passes {
    int forward;  // complete forward passes
    int again;    // those of a block whose dear values were kept
    int backward;
} passes;

static const passes FORWARD = {1, 0, 0};
static const passes STEP[] = {
    [TS_RECOMPUTE_NONE] = {1, 0, 1}, [TS_RECOMPUTE_ELEMENTWISE] = {1, 1, 1}, [TS_RECOMPUTE_BLOCK] = {2, 0, 1}};

typedef struct traffic {
    uint64_t gather, scatter, reduce, exchange, ring;  // bytes
    uint64_t calls;                                    // of all five
} traffic;

static traffic expected(const ts_mesh *mesh, shard_size size, ts_dtype dtype, passes n) {
    const ts_dit_config c = shard_config();
    const int T = mesh->degree.tensor, U = mesh->degree.ulysses, R = mesh->degree.ring;
    const int r = ts_comm_rank(mesh->axis[TS_AXIS_RING]), u = ts_comm_rank(mesh->axis[TS_AXIS_ULYSSES]);
    const ts_tokens tokens = ts_tokens_of(mesh, size.batch, size.frames * size.height * size.width / 4);
    const int64_t e = (int64_t)ts_dtype_bytes(dtype), L = tokens.tokens, L_s = tokens.part.count;
    const int64_t N = size.batch * L_s, N_t = tokens.rows.count, d = ts_dit_width(&c);
    const int64_t gathers = 3 * (n.forward + n.again), sums = 3 * n.forward, back = 3 * n.backward;
    const int64_t up = (T - 1) * N_t * d * e, down = (N - N_t) * d * e;
    const int64_t norm = 3 * (2 * ((T - 1) * 4 * N / T)) + 2 * ((T - 1) * 4 * size.batch * SHARD_TEXT_ROWS / T);
    const int64_t norms = n.forward + n.backward;
    const int64_t h = ts_split(c.heads, T, ts_comm_rank(mesh->axis[TS_AXIS_TENSOR])).count;
    const int64_t h_u = ts_split(h, U, u).count, unit = size.batch * c.head_dim;
    const int64_t L_r = ts_split(L, R, r).count, L_next = ts_split(L, R, (r + 1) % R).count;
    const int64_t to_heads = L_s * (h - h_u), to_tokens = (L_r - L_s) * h_u;
    const int64_t hop = 2 * unit * h_u * e * (L - L_next), hop_back = hop + 8 * unit * h_u * (L - L_r);
    const int64_t exchanges = n.forward + n.again;
    const bool tensor = T > 1, ulysses = U > 1, ring = R > 1;
    traffic t = {
        .gather = (uint64_t)(gathers * up + back * up),
        .scatter = (uint64_t)(sums * down + back * down),
        .reduce = (uint64_t)(norms * norm),
        .exchange =
            (uint64_t)(unit * e * (exchanges * (3 * to_heads + to_tokens) + n.backward * (to_heads + 3 * to_tokens))),
        .ring = (uint64_t)(n.forward * hop + n.backward * hop_back),
        .calls = (uint64_t)(tensor * (gathers + sums + 2 * back + 4 * norms) + ulysses * 2 * (exchanges + n.backward) +
                            ring * (R - 1) * (n.forward + 2 * n.backward))};
    t.exchange = ulysses ? t.exchange : 0;
    const uint64_t layers = (uint64_t)c.layers;
    return (traffic){t.gather * layers,   t.scatter * layers, t.reduce * layers,
                     t.exchange * layers, t.ring * layers,    t.calls * layers};
}

static traffic counted(const ts_mesh *mesh) {
    const ts_comm *tensor = mesh->axis[TS_AXIS_TENSOR];
    const ts_comm_counters gather = ts_comm_get_counters(tensor, TS_ALL_GATHER);
    const ts_comm_counters scatter = ts_comm_get_counters(tensor, TS_REDUCE_SCATTER);
    const ts_comm_counters reduce = ts_comm_get_counters(tensor, TS_ALL_REDUCE);
    const ts_comm_counters exchange = ts_comm_get_counters(mesh->axis[TS_AXIS_ULYSSES], TS_ALL_TO_ALL);
    const ts_comm_counters ring = ts_comm_get_counters(mesh->axis[TS_AXIS_RING], TS_RING);
    return (traffic){gather.bytes_sent, scatter.bytes_sent,
                     reduce.bytes_sent, exchange.bytes_sent,
                     ring.bytes_sent,   gather.calls + scatter.calls + reduce.calls + exchange.calls + ring.calls};
}

static uint64_t all_calls(const ts_mesh *mesh) {
    uint64_t calls = 0;
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        calls += ts_comm_total(mesh->axis[axis]).calls;
    }
    return calls;
}

static void reset_counters(const ts_mesh *mesh) {
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        ts_comm_reset_counters(mesh->axis[axis]);
    }
}

static void check_traffic(const char *what, const ts_mesh *mesh, shard_size size, ts_dtype dtype, passes n) {
    const traffic got = counted(mesh), want = expected(mesh, size, dtype, n);
    CHECK(all_calls(mesh) == want.calls);  // none elsewhere
    if (memcmp(&got, &want, sizeof got) != 0) {
        char text[80];
        const uint64_t *g = &got.gather, *w = &want.gather;
        fprintf(stderr, "%s: %s:\n", what, ts_degrees_text(&mesh->degree, text, sizeof text));
        for (int i = 0; i < 6; i++) {
            fprintf(stderr, "  %llu, wanted %llu\n", (unsigned long long)g[i], (unsigned long long)w[i]);
        }
        ts_test_failures++;
    }
}

// ---- a step on the mesh, and counted

static shard_model real, counting;

static void check_step(const ts_mesh *mesh, const ts_mesh *imagined, shard_size size, ts_dtype dtype) {
    float *grad = NULL;
    const ts_recompute last = test_is_slow() ? TS_RECOMPUTE_ELEMENTWISE : TS_RECOMPUTE_BLOCK;
    for (ts_recompute recompute = TS_RECOMPUTE_NONE; recompute <= last; recompute++) {
        shard_open(&real, mesh, size, dtype, TS_TAPE_RECORD, true);
        shard_open(&counting, imagined, size, dtype, TS_TAPE_COUNT, false);
        const ts_dit_input input = shard_input(&real, recompute), same = shard_input(&counting, recompute);
        reset_counters(mesh);
        reset_counters(imagined);
        CHECK_OK(shard_step(&real, &input));
        CHECK_OK(shard_step(&counting, &same));
        check_traffic("step", mesh, size, dtype, STEP[recompute]);
        check_traffic("counted step", imagined, size, dtype, STEP[recompute]);
        const ts_tape_stats a = ts_tape_get_stats(real.tape), b = ts_tape_get_stats(counting.tape);
        CHECK(a.peak_bytes == b.peak_bytes && a.activation_bytes == b.activation_bytes && a.peak_bytes > 0);
        CHECK(a.flops == b.flops && a.calls == b.calls);
        // Recomputing gives the bits of keeping.
        const size_t bytes = (size_t)real.params->total * sizeof *grad;
        if (recompute == TS_RECOMPUTE_NONE) {
            grad = malloc(bytes);
            memcpy(grad, test_host(real.params->grad, bytes), bytes);
        }
        CHECK(test_same(grad, real.params->grad, bytes));
        shard_close(&real);
        shard_close(&counting);
    }
    free(grad);
    test_free_copies();
}

// Nothing recorded: a forward pass, and the whole velocity on every rank.
static void check_run(const ts_mesh *mesh, const ts_mesh *imagined, shard_size size, ts_dtype dtype) {
    shard_open(&real, mesh, size, dtype, TS_TAPE_RUN, true);
    shard_open(&counting, imagined, size, dtype, TS_TAPE_COUNT_RUN, false);
    const ts_dit_input input = shard_input(&real, TS_RECOMPUTE_NONE), same = shard_input(&counting, TS_RECOMPUTE_NONE);
    reset_counters(mesh);
    reset_counters(imagined);
    ts_var *own = ts_dit_forward_tokens(real.tape, real.dit, &input);
    ts_dit_forward_tokens(counting.tape, counting.dit, &same);
    check_traffic("run", mesh, size, dtype, FORWARD);
    check_traffic("counted run", imagined, size, dtype, FORWARD);
    reset_counters(mesh);
    ts_var *whole = ts_dit_collect(real.tape, real.dit, own, shard_video(size));
    CHECK_OK(ts_tape_status(real.tape));
    const ts_comm *model = mesh->axis[TS_AXIS_MODEL];
    const int64_t others = ts_comm_size(model) - 1, part = ts_shape_count(own->value.shape);
    CHECK(ts_comm_total(model).bytes_sent == (uint64_t)(others * part * 4));
    // The same on all ranks, and own tokens are found where they belong.
    const int64_t n = ts_shape_count(whole->value.shape);
    const size_t bytes = (size_t)n * sizeof(float);
    float *first = test_new_copy(&ts_device_host, bytes), *velocity = whole->value.data;
    float *picked = test_new_copy(test_kernels->device, (size_t)part * sizeof *picked);
    memcpy(first, test_host(velocity, bytes), bytes);
    CHECK_OK(ts_broadcast(mesh->axis[TS_AXIS_MODEL], first, (int64_t)bytes, 0));
    CHECK(test_same(first, velocity, bytes));
    CHECK_OK(ts_dit_take_tokens(real.tape, real.dit, shard_video(size), velocity, picked));
    CHECK(test_same(picked, own->value.data, (size_t)part * sizeof *picked));
    shard_close(&real);
    shard_close(&counting);
    test_free_copies();
}

// ---- reproducible

// What is sent along the tensor axis in a reproducible forward pass: own rows of all columns are brought together for
// sums of squares and for the layers that are cut by input features, whose weights are gathered.
static void check_reproducible_traffic(const ts_mesh *mesh, shard_size size, ts_dtype dtype) {
    const ts_dit_config c = shard_config();
    const int T = mesh->degree.tensor, t = ts_comm_rank(mesh->axis[TS_AXIS_TENSOR]);
    const ts_tokens tokens = ts_tokens_of(mesh, size.batch, size.frames * size.height * size.width / 4);
    const int64_t e = (int64_t)ts_dtype_bytes(dtype), d = ts_dit_width(&c);
    const int64_t N = size.batch * tokens.part.count, N_t = tokens.rows.count;
    const int64_t M = size.batch * SHARD_TEXT_ROWS, M_t = ts_split(M, T, t).count;
    const int64_t w = ts_split(c.heads, T, t).count * c.head_dim, f = ts_split(c.ffn_dim, T, t).count;
    const int64_t exchanged = (N - N_t) * (5 * w + f) * e + (M - M_t) * w * e;
    const int64_t gathered = (T - 1) * (3 * N_t * d * e + d * (2 * w + f) * e + 4 * (3 * N_t + M_t));
    const ts_comm *tensor = mesh->axis[TS_AXIS_TENSOR];
    CHECK(ts_comm_get_counters(tensor, TS_ALL_TO_ALL).bytes_sent == (uint64_t)(c.layers * exchanged));
    CHECK(ts_comm_get_counters(tensor, TS_ALL_GATHER).bytes_sent == (uint64_t)(c.layers * gathered));
    CHECK(ts_comm_total(tensor).bytes_sent == (uint64_t)(c.layers * (exchanged + gathered)));
}

// The velocity has the bits of one rank, where products allow it.
static void check_reproducible(ts_mesh *mesh, ts_mesh *imagined, shard_size size, ts_dtype dtype) {
    if (strcmp(test_kernels->name, "cuda") == 0 || !ts_kernels_cpu_products_fixed(dtype)) {
        return;
    }
    mesh->reproducible = imagined->reproducible = true;
    shard_open(&real, NULL, size, dtype, TS_TAPE_RUN, true);
    ts_dit_input input = shard_input(&real, TS_RECOMPUTE_NONE);
    const ts_var *one = ts_dit_forward(real.tape, real.dit, &input);
    CHECK_OK(ts_tape_status(real.tape));
    const size_t bytes = ts_tensor_bytes(&one->value);
    void *const alone = malloc(bytes);
    memcpy(alone, test_host(one->value.data, bytes), bytes);
    shard_close(&real);

    shard_open(&real, mesh, size, dtype, TS_TAPE_RUN, true);
    shard_open(&counting, imagined, size, dtype, TS_TAPE_COUNT_RUN, false);
    input = shard_input(&real, TS_RECOMPUTE_NONE);
    const ts_dit_input same = shard_input(&counting, TS_RECOMPUTE_NONE);
    reset_counters(mesh);
    reset_counters(imagined);
    const ts_var *own = ts_dit_forward(real.tape, real.dit, &input);
    ts_dit_forward(counting.tape, counting.dit, &same);
    CHECK_OK(ts_tape_status(real.tape));
    CHECK(test_same(alone, own->value.data, bytes));
    check_reproducible_traffic(mesh, size, dtype);
    check_reproducible_traffic(imagined, size, dtype);
    CHECK(ts_tape_get_stats(real.tape).peak_bytes == ts_tape_get_stats(counting.tape).peak_bytes);
    free(alone);
    shard_close(&real);
    shard_close(&counting);
    test_free_copies();
    mesh->reproducible = imagined->reproducible = false;
}

// ---- gradients through the whole velocity, and when they are final

typedef struct watcher {
    const ts_params *params;
    int next;     // group that must be announced next
    float *seen;  // gradients as they were then
} watcher;

static int grad_ready(void *user, int group) {
    watcher *w = user;
    CHECK(group == w->next);
    w->next--;
    for (int i = 0; i < w->params->spans; i++) {
        const ts_span *s = &w->params->span[i];
        if (s->group == group) {
            const size_t bytes = (size_t)s->count * sizeof(float);
            memcpy(w->seen + s->first, test_host(w->params->grad + s->first, bytes), bytes);
        }
    }
    return 0;
}

static void check_whole(const ts_mesh *mesh, shard_size size, ts_recompute recompute) {
    shard_open(&real, mesh, size, TS_F32, TS_TAPE_RECORD, true);
    const size_t bytes = (size_t)real.params->total * sizeof(float);
    watcher w = {real.params, real.params->groups - 1, calloc(1, bytes)};
    ts_dit_input input = shard_input(&real, recompute);
    input.grad_ready = grad_ready;
    input.grad_user = &w;
    CHECK_OK(shard_step(&real, &input));
    CHECK(w.next == 0);
    for (int i = 0; i < real.params->spans; i++) {
        const ts_span *s = &real.params->span[i];
        CHECK(s->group == 0 ||
              test_same(w.seen + s->first, real.params->grad + s->first, (size_t)s->count * sizeof(float)));
    }
    // The loss of the whole velocity, computed on every rank, has the same gradients bit by bit.
    memcpy(w.seen, test_host(real.params->grad, bytes), bytes);
    input = shard_input(&real, recompute);
    CHECK_OK(ts_params_zero_grad(real.params));
    ts_var *v = ts_dit_forward(real.tape, real.dit, &input);
    const ts_shape video = shard_video(size);
    const ts_velocity_loss mean = {
        .target = real.target, .rows = 1, .scale = 1.0 / (double)ts_shape_count(video), .loss = real.loss_sum};
    CHECK_OK(ts_nn_velocity_loss(real.tape, v, &mean));
    CHECK_OK(ts_tape_backward(real.tape, v, NULL));
    CHECK(test_same(w.seen, real.params->grad, bytes));
    free(w.seen);
    shard_close(&real);
    test_free_copies();
}

// ---- meshes

static void check_mesh(const ts_degrees *degree) {
    ts_mesh mesh, imagined;
    CHECK_OK(ts_mesh_open(&mesh, world, degree));
    CHECK_OK(ts_mesh_imagine(&imagined, degree, ts_comm_rank(world)));
    check_step(&mesh, &imagined, SHARD_3, TS_BF16);
    if (!test_is_slow()) {
        check_run(&mesh, &imagined, SHARD_75, TS_BF16);
        check_whole(&mesh, SHARD_3, TS_RECOMPUTE_ELEMENTWISE);
        check_reproducible(&mesh, &imagined, SHARD_75, TS_BF16);
    }
    if (test_kernels->device->is_host) {
        check_step(&mesh, &imagined, SHARD_75, TS_F32);
        check_step(&mesh, &imagined, SHARD_75, TS_BF16);
        check_run(&mesh, &imagined, SHARD_3, TS_F32);
        check_whole(&mesh, SHARD_75, TS_RECOMPUTE_NONE);
        check_reproducible(&mesh, &imagined, SHARD_75, TS_F32);
        check_reproducible(&mesh, &imagined, SHARD_3, TS_F32);
        check_reproducible(&mesh, &imagined, SHARD_3, TS_BF16);
    }
    ts_mesh_close(&imagined);
    ts_mesh_close(&mesh);
}

// Every product of tensor, ulysses and ring; of many slow ranks those with tensor ranks.
static void check_meshes(int ranks) {
    for (int tensor = test_is_slow() && ranks > 2 ? 2 : 1; tensor <= ranks; tensor++) {
        for (int ulysses = 1; tensor * ulysses <= ranks; ulysses++) {
            if (ranks % (tensor * ulysses) == 0) {
                check_mesh(&(ts_degrees){1, 1, ranks / tensor / ulysses, ulysses, tensor});
            }
        }
    }
}

// ---- the table

// Sent by all ranks along all axes.
static int64_t all_bytes(const ts_degrees *degree, ts_tape_mode mode) {
    const int ranks = degree->ring * degree->ulysses * degree->tensor;
    int64_t sum = 0;
    for (int rank = 0; rank < ranks; rank++) {
        ts_mesh mesh;
        CHECK_OK(ts_mesh_imagine(&mesh, degree, rank));
        shard_open(&counting, &mesh, SHARD_75, TS_BF16, mode, false);
        const ts_dit_input input = shard_input(&counting, TS_RECOMPUTE_NONE);
        if (mode == TS_TAPE_COUNT) {
            CHECK_OK(shard_step(&counting, &input));
        } else {
            CHECK(ts_dit_forward_tokens(counting.tape, counting.dit, &input) != NULL);
        }
        for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
            sum += (int64_t)ts_comm_total(mesh.axis[axis]).bytes_sent;
        }
        shard_close(&counting);
        test_free_copies();
        ts_mesh_close(&mesh);
    }
    return sum;
}

static void check_table(void) {
    static const ts_degrees DEGREES[] = {{1, 1, 1, 1, 2}, {1, 1, 1, 1, 3}, {1, 1, 1, 1, 4},
                                         {1, 1, 1, 2, 2}, {1, 1, 2, 1, 2}, {1, 1, 2, 2, 4}};
    char *manual = NULL;
    size_t bytes;
    CHECK_OK(ts_file_read("core/comm/README.md", 1 << 20, &manual, &bytes));
    for (size_t i = 0; i < sizeof DEGREES / sizeof *DEGREES; i++) {
        const int64_t forward = all_bytes(&DEGREES[i], TS_TAPE_COUNT_RUN), both = all_bytes(&DEGREES[i], TS_TAPE_COUNT);
        char text[80], line[160];
        snprintf(line, sizeof line, "| %s | %lld | %lld |", ts_degrees_text(&DEGREES[i], text, sizeof text),
                 (long long)forward, (long long)(both - forward));
        puts(line);
        CHECK(manual && strstr(manual, line));
    }
    free(manual);
}

int main(int argc, char **argv) {
    test_choose(0);  // a SKIP before there is a world
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    for (int table = 0; test_choose(table); table++) {
        check_meshes(ts_comm_size(world));
        if (ts_comm_size(world) == 1) {
            check_table();
        }
    }
    ts_world_close(&world, 0);
    return ts_test_end();
}
