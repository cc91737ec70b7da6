// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=120 backend=cuda
// A noise level for each token and a context for each latent frame: every frame as if its context were everybody's, on
// one rank; the same velocity and gradients on every mesh, whose parts begin and end inside of frames.
#include "tests/shard_model.h"

static ts_comm *world;

// ---- cases

// 25 tokens a frame; and 3 of 4 frames, for what takes its time.
static const shard_size SIZE = {2, 3, 10, 10}, SMALL = {2, 4, 2, 6};
enum { MAX_FRAMES = 4, MAX_CONTEXTS = 5, MAX_TOKENS = 75, BATCH = 2, ONE_CONTEXT = SHARD_TEXT_ROWS * SHARD_TEXT_DIM };

typedef enum { PER_SAMPLE, PER_FRAME, PER_TOKEN } levels;
typedef struct condition {
    levels levels;
    int64_t contexts;  // 0: as many as frames
    const int32_t *frame_context;
} condition;

static const condition CASES[] = {
    {PER_FRAME, 0, NULL},
    {PER_TOKEN, 1, NULL},
    {PER_TOKEN, 2, (const int32_t[MAX_FRAMES]){0, 1, 1, 1}},
    {PER_SAMPLE, MAX_CONTEXTS, (const int32_t[MAX_FRAMES]){1, 3, 3, 3}},  // some that no frame sees
};
enum { CASE_COUNT = sizeof CASES / sizeof *CASES };

static int64_t contexts_of(const condition *c, shard_size size) {
    return c->contexts ? c->contexts : size.frames;
}

// Which context frame `frame` of a sample sees.
static int64_t context_of(const condition *c, int64_t frame) {
    return c->frame_context ? c->frame_context[frame] : c->contexts == 1 ? 0 : frame;
}

// Held and free tokens take turns in rows, with some in between.
static float level_of(int64_t sample, int64_t token) {
    return token % 5 < 2 ? 0.0f : token % 5 == 3 ? 437.5f : (float)(937 - 100 * sample);
}

// ---- a pass

typedef struct pass {
    shard_model m;
    float timestep[BATCH * MAX_TOKENS];
    float *contexts;  // [BATCH, MAX_CONTEXTS, rows, dim] of the device, packed for a case
} pass;

static void pass_open(pass *p, const ts_mesh *mesh, shard_size size, ts_dtype dtype, ts_tape_mode mode) {
    shard_open(&p->m, mesh, size, dtype, mode, mode == TS_TAPE_RUN || mode == TS_TAPE_RECORD);
    p->contexts = shard_numbers(BATCH * MAX_CONTEXTS * ONE_CONTEXT, 11);
}

static ts_dit_input input_of(pass *p, const condition *c, ts_recompute recompute) {
    const shard_size size = p->m.size;
    const int64_t tokens = size.frames * size.height * size.width / 4, contexts = contexts_of(c, size);
    ts_dit_input input = shard_input(&p->m, recompute);
    input.timestep = p->timestep;
    input.timesteps_per_sample = c->levels == PER_SAMPLE ? 1 : c->levels == PER_FRAME ? size.frames : tokens;
    for (int64_t i = 0; i < size.batch * input.timesteps_per_sample; i++) {
        p->timestep[i] = level_of(i / input.timesteps_per_sample, i % input.timesteps_per_sample);
    }
    const ts_shape shape = contexts > 1 ? TS_SHAPE(size.batch, contexts, SHARD_TEXT_ROWS, SHARD_TEXT_DIM)
                                        : TS_SHAPE(size.batch, SHARD_TEXT_ROWS, SHARD_TEXT_DIM);
    p->m.context_var = input.context = ts_tape_input(p->m.tape, (ts_tensor){TS_F32, shape, p->contexts}, true);
    input.contexts_per_sample = contexts;
    input.frame_context = c->frame_context;
    return input;
}

// The whole velocity, in memory of the host until test_free_copies.
static const float *velocity(pass *p, const ts_dit_input *input) {
    const ts_var *v = ts_dit_forward(p->m.tape, p->m.dit, input);
    CHECK_OK(ts_tape_status(p->m.tape));
    const size_t bytes = ts_tensor_bytes(&v->value);
    return memcpy(test_new_copy(&ts_device_host, bytes), test_host(v->value.data, bytes), bytes);
}

static double most_apart(const float *a, const float *b, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
    }
    return most;
}

// ---- one rank

// In a block of one layer a token's text comes in after tokens have met: a frame's velocity is that of a pass in which
// its context is everybody's.
static void check_frames(const condition *c, shard_size size) {
    static pass p;
    shard_layers = 1;
    pass_open(&p, NULL, size, TS_F32, TS_TAPE_RUN);
    const int64_t contexts = contexts_of(c, size), frame = size.height * size.width * SHARD_CHANNELS;
    ts_dit_input input = input_of(&p, c, TS_RECOMPUTE_NONE);
    const float *got = velocity(&p, &input);
    const condition alone = {c->levels, 1, NULL};
    float *const all = p.contexts, *one = test_new_copy(test_kernels->device, BATCH * ONE_CONTEXT * sizeof *one);
    for (int64_t f = 0; f < size.frames; f++) {
        const size_t bytes = ONE_CONTEXT * sizeof *one;
        for (int64_t b = 0; b < size.batch; b++) {
            const float *from = all + (b * contexts + context_of(c, f)) * ONE_CONTEXT;
            CHECK_OK(test_kernels->device->copy(one + b * ONE_CONTEXT, from, bytes));
        }
        p.contexts = one;
        input = input_of(&p, &alone, TS_RECOMPUTE_NONE);
        const float *want = velocity(&p, &input);
        for (int64_t b = 0; b < size.batch; b++) {
            const int64_t at = (b * size.frames + f) * frame;
            CHECK(most_apart(got + at, want + at, frame) < 2e-6);
        }
        // Another frame's context is another velocity.
        const int64_t other = (f + 1) % size.frames * frame;
        CHECK(context_of(c, f) == context_of(c, (f + 1) % size.frames) ||
              most_apart(got + other, want + other, frame) > 1e-3);
    }
    shard_close(&p.m);
    test_free_copies();
    shard_layers = 2;
}

// Equal levels beside each other and apart: a run's fewer rows of the modulation table against a recorded pass's, and
// against a level for every row.
static void check_rows(shard_size size) {
    static pass run, record;
    const condition c = {PER_TOKEN, 1, NULL};
    pass_open(&run, NULL, size, TS_F32, TS_TAPE_RUN);
    pass_open(&record, NULL, size, TS_F32, TS_TAPE_RECORD);
    const ts_dit_input a = input_of(&run, &c, TS_RECOMPUTE_NONE), b = input_of(&record, &c, TS_RECOMPUTE_NONE);
    const float *with_few = velocity(&run, &a), *with_many = velocity(&record, &b);
    CHECK(most_apart(with_few, with_many, ts_shape_count(shard_video(size))) < 2e-6);
    CHECK(ts_tape_get_stats(run.m.tape).flops < ts_tape_get_stats(record.m.tape).flops);
    shard_close(&run.m);
    shard_close(&record.m);
    test_free_copies();
}

// ---- meshes

static void check_run(const ts_mesh *mesh, const condition *c, shard_size size) {
    static pass alone, shared;
    pass_open(&alone, NULL, size, TS_F32, TS_TAPE_RUN);
    pass_open(&shared, mesh, size, TS_F32, TS_TAPE_RUN);
    const ts_dit_input a = input_of(&alone, c, TS_RECOMPUTE_NONE), b = input_of(&shared, c, TS_RECOMPUTE_NONE);
    const float *want = velocity(&alone, &a), *got = velocity(&shared, &b);
    const int64_t n = ts_shape_count(shard_video(size));
    const bool same_bits = mesh->reproducible || (mesh->degree.ring == 1 && mesh->degree.tensor == 1);
    const bool fixed = test_kernels->device->is_host && ts_kernels_cpu_products_fixed(TS_F32);
    CHECK(most_apart(got, want, n) <= (same_bits && fixed ? 0 : 1e-5));
    shard_close(&alone.m);
    shard_close(&shared.m);
    test_free_copies();
}

// A recorded step: the sum of the ranks' gradients of the contexts is that of one rank, and what was counted is what
// was used.
static void check_step(const ts_mesh *mesh, const ts_mesh *imagined, const condition *c, shard_size size,
                       ts_recompute recompute) {
    static pass alone, shared, counted;
    pass_open(&alone, NULL, size, TS_F32, TS_TAPE_RECORD);
    pass_open(&shared, mesh, size, TS_F32, TS_TAPE_RECORD);
    pass_open(&counted, imagined, size, TS_F32, TS_TAPE_COUNT);
    const ts_dit_input a = input_of(&alone, c, recompute), b = input_of(&shared, c, recompute),
                       same = input_of(&counted, c, recompute);
    CHECK_OK(shard_step(&alone.m, &a));
    CHECK_OK(shard_step(&shared.m, &b));
    CHECK_OK(shard_step(&counted.m, &same));
    const ts_tape_stats used = ts_tape_get_stats(shared.m.tape), found = ts_tape_get_stats(counted.m.tape);
    CHECK(used.peak_bytes == found.peak_bytes && used.flops == found.flops && used.calls == found.calls);
    const int64_t n = ts_shape_count(shared.m.context_var->value.shape);
    const size_t bytes = (size_t)n * sizeof(float);
    float *sum = test_new_copy(&ts_device_host, bytes);
    memcpy(sum, test_host(shared.m.context_var->grad, bytes), bytes);
    CHECK_OK(ts_all_reduce(world, sum, n, TS_F32, TS_SUM));
    const float *want = test_host(alone.m.context_var->grad, bytes);
    double size_of_gradient = 0;
    for (int64_t i = 0; i < n; i++) {
        size_of_gradient = fmax(size_of_gradient, fabs((double)want[i]));
    }
    CHECK(size_of_gradient > 0 && most_apart(sum, want, n) < 1e-4 * size_of_gradient);
    shard_close(&alone.m);
    shard_close(&shared.m);
    shard_close(&counted.m);
    test_free_copies();
}

static void check_mesh(const ts_degrees *degree) {
    ts_mesh mesh, imagined;
    CHECK_OK(ts_mesh_open(&mesh, world, degree));
    CHECK_OK(ts_mesh_imagine(&imagined, degree, ts_comm_rank(world)));
    if (test_kernels->device->is_host) {
        for (int i = 0; i < CASE_COUNT; i++) {
            check_run(&mesh, &CASES[i], SMALL);
            check_run(&mesh, &CASES[i], SIZE);
            check_step(&mesh, &imagined, &CASES[i], i % 2 ? SMALL : SIZE, (ts_recompute)(i % 3));
            mesh.reproducible = true;
            check_run(&mesh, &CASES[i], SIZE);
            mesh.reproducible = false;
        }
    } else {
        check_run(&mesh, &CASES[2], SMALL);
        check_step(&mesh, &imagined, &CASES[2], SMALL, TS_RECOMPUTE_NONE);
    }
    ts_mesh_close(&imagined);
    ts_mesh_close(&mesh);
}

// Every product of tensor, ulysses and ring; away from the host those with tensor ranks.
static void check_meshes(int ranks) {
    const bool few = !test_kernels->device->is_host && ranks > 2;
    for (int tensor = few ? 2 : 1; tensor <= ranks; tensor++) {
        for (int ulysses = 1; tensor * ulysses <= ranks; ulysses++) {
            if (ranks % (tensor * ulysses) == 0) {
                check_mesh(&(ts_degrees){1, 1, ranks / tensor / ulysses, ulysses, tensor});
            }
        }
    }
}

int main(int argc, char **argv) {
    test_choose(0);  // a SKIP before there is a world
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    for (int table = 0; test_choose(table); table++) {
        const shard_size size = test_kernels->device->is_host ? SIZE : SMALL;
        if (ts_comm_size(world) == 1) {
            for (int i = 0; i < CASE_COUNT; i++) {
                check_frames(&CASES[i], size);
            }
            check_rows(size);
        }
        check_meshes(ts_comm_size(world));
    }
    ts_world_close(&world, 0);
    return ts_test_end();
}
