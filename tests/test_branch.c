// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,4 timeout=120
// A video that was saved between two steps goes on as if it had never stopped: with the same bits on the mesh that
// saved it, within 1e-3 on any other; whatever is held, remixed, long or a loop, and with prompts that were changed.
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/comm/mesh.h"
#include "infer/steer/state.h"
#include "tests/ts_test.h"

enum { MAX_T = 9, H = 4, W = 4, C = 16, FRAME = H * W * C, STEPS = 8 };

static const char *const LEFT = "a red circle moves left on a black background",
                         *const DOWN = "a cyan square moves down on a brown background";

static const struct {
    int ranks;
    const char *mesh;
} meshes[] = {{2, "cfg=2"}, {2, "tensor=2"}, {2, "data=2"}, {4, "cfg=2,ulysses=2"}, {4, "data=2,ring=2"}};

typedef struct kind {
    const char *name;
    int64_t frames, window;
    bool loop, remix;
    ts_solver_kind solver;
    int64_t save_at;
} kind;

// Remixed tokens wait at their floor for the first steps: the third kind is saved before anything moves.
static const kind kinds[] = {
    {"short", 3, 5, false, false, TS_SOLVER_UNIPC, 3},     {"long, remixed", MAX_T, 4, false, true, TS_SOLVER_UNIPC, 5},
    {"early", MAX_T, 4, false, true, TS_SOLVER_EULER, 1},  {"loop", 6, 4, true, false, TS_SOLVER_UNIPC, 4},
    {"euler", MAX_T, 5, false, false, TS_SOLVER_EULER, 4},
};

static ts_comm *world;
static const ts_kernels *kernels;
static char folder[] = "/tmp/test_branch_XXXXXX";

static ts_canvas make_canvas(const kind *k) {
    ts_canvas c;
    CHECK_OK(ts_canvas_open(&c, k->frames, H, W, C, 2, 2, LEFT, 3.0));
    c.loop = k->loop;
    c.window = k->window;
    c.overlap = 2;
    c.index = 3;
    if (k->remix) {  // two frames held, two remixed, the rest free or remixed little
        CHECK_OK(ts_canvas_add_source(&c));
        ts_rng_normal_fill(c.source, k->frames * FRAME, 1, TS_RNG_TEST, 0, 0);
        for (int64_t i = 0; i < k->frames * 4; i++) {
            c.strength[i] = i < 8 ? 0.0f : i < 16 || k->save_at < 2 ? 0.4f : 1.0f;
        }
    }
    return c;
}

static ts_denoise_params params_of(const kind *k) {
    return (ts_denoise_params){.grid = TS_GRID_UNIPC,
                               .steps = STEPS,
                               .shift = 3.0,
                               .solver = k->solver,
                               .seed = 11,
                               .batch = 4,
                               .share_windows = true};
}

static ts_model *load(const ts_mesh *mesh) {
    ts_model *model = NULL;
    CHECK_OK(ts_agree(world, ts_model_load(&model, "configs/shapes-model", NULL, mesh, TS_F32, false)));
    return model;
}

static void steps(ts_denoiser *d, int64_t first, int64_t end) {
    const int64_t start = ts_denoiser_first_step(d);
    for (int64_t step = first > start ? first : start; step < end; step++) {
        CHECK_OK(ts_denoiser_step(d, step));
    }
}

// As a job saves it (infer/edit/edit_steer.c).
static void save(const kind *k, const ts_canvas *canvas, const ts_denoiser *d, const char *path) {
    static float memory[TS_DENOISER_ARRAYS][MAX_T * FRAME];
    ts_state s = {.model = "m",
                  .step = k->save_at,
                  .steps = STEPS,
                  .seed = 11,
                  .frames = 1,
                  .grid = TS_GRID_UNIPC,
                  .solver = (int)k->solver,
                  .shift = 3.0,
                  .fps = 8,
                  .compiled = {.canvas = *canvas}};
    for (int i = 0; i < TS_DENOISER_ARRAYS; i++) {
        s.array[i] = memory[i];
    }
    if (k->save_at > ts_denoiser_first_step(d)) {
        CHECK_OK(ts_denoiser_save(d, 0, s.array, &s.arrays));
    }
    CHECK_OK(ts_state_save(&s, path));
}

// All steps, with a prompt changed before step 2; saved on the way where `path` says.
static void run(const kind *k, const ts_model *model, const char *path, float *out) {
    ts_canvas canvas = make_canvas(k);
    const ts_denoise_params params = params_of(k);
    ts_denoiser *d = NULL;
    CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1));
    steps(d, 0, 1);
    CHECK_OK(ts_denoiser_set_prompt(d, 0, 1, DOWN));
    steps(d, 1, k->save_at);
    if (path) {
        save(k, &canvas, d, path);
    }
    steps(d, k->save_at, STEPS);
    CHECK_OK(ts_denoiser_latents(d, 0, out));
    ts_denoiser_close(&d);
    ts_canvas_close(&canvas);
}

static void go_on(const kind *k, const ts_model *model, const char *path, float *out) {
    ts_arena *arena = NULL;
    ts_denoiser *d = NULL;
    ts_state s = {0};
    const ts_denoise_params params = params_of(k);
    CHECK_OK(ts_arena_open(&arena, "state", 1 << 16, false));
    CHECK_OK(ts_state_load(&s, path, arena));
    CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, &s.compiled.canvas, 1));
    if (s.step > ts_denoiser_first_step(d)) {
        CHECK_OK(ts_denoiser_restore(d, 0, s.step, (const float *const *)s.array, s.arrays));
    }
    steps(d, s.step, STEPS);
    CHECK_OK(ts_denoiser_latents(d, 0, out));
    ts_denoiser_close(&d);
    ts_state_close(&s);
    ts_arena_close(&arena);
}

static double distance(const float *a, const float *b, int64_t count) {
    double worst = 0.0;
    for (int64_t i = 0; i < count; i++) {
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
    }
    return worst;
}

// Whether two videos have the same bits; said where they have not.
static void check_same(const kind *k, const char *mesh, const float *a, const float *b) {
    if (memcmp(a, b, (size_t)(k->frames * FRAME) * sizeof *a) != 0) {
        fprintf(stderr, "%s on %s: not as if it had never stopped, %g off\n", k->name, mesh,
                distance(a, b, k->frames * FRAME));
        ts_test_failures++;
    }
}

static void test_kind(const kind *k, const ts_model *alone, const ts_model *shared, const char *mesh) {
    static float whole[MAX_T * FRAME], resumed[MAX_T * FRAME], elsewhere[MAX_T * FRAME];
    char by_one[TS_PATH_BYTES], by_all[TS_PATH_BYTES];
    snprintf(by_one, sizeof by_one, "%s/rank-%d/one", folder, ts_comm_rank(world));
    snprintf(by_all, sizeof by_all, "%s/rank-%d/all", folder, ts_comm_rank(world));
    run(k, alone, by_one, whole);
    go_on(k, alone, by_one, resumed);
    check_same(k, "one rank", whole, resumed);
    if (shared) {
        go_on(k, shared, by_one, elsewhere);
        CHECK_NEAR(distance(whole, elsewhere, k->frames * FRAME), 0, 1e-3);
        run(k, shared, by_all, elsewhere);
        go_on(k, shared, by_all, resumed);
        check_same(k, mesh, elsewhere, resumed);
        go_on(k, alone, by_all, resumed);
        CHECK_NEAR(distance(whole, resumed, k->frames * FRAME), 0, 1e-3);
    }
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    if (ts_comm_rank(world) == 0) {
        CHECK(mkdtemp(folder));
    }
    CHECK_OK(ts_broadcast(world, folder, sizeof folder, 0));
    ts_model *alone = load(NULL);
    for (size_t i = 0; i < sizeof meshes / sizeof *meshes; i++) {
        ts_mesh mesh;
        ts_degrees degree;
        if (meshes[i].ranks != ts_comm_size(world)) {
            continue;
        }
        CHECK_OK(ts_degrees_read(&degree, meshes[i].mesh, 4, ts_comm_size(world)));
        CHECK_OK(ts_mesh_open(&mesh, world, &degree));
        ts_model *shared = load(&mesh);
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            test_kind(&kinds[k], alone, shared, meshes[i].mesh);
        }
        ts_model_close(&shared);
        ts_mesh_close(&mesh);
    }
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds && ts_comm_size(world) == 1; k++) {
        test_kind(&kinds[k], alone, NULL, "");
    }
    ts_model_close(&alone);
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    ts_world_close(&world, TS_OK);
    return ts_test_end();
}
