// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,4 timeout=120
// The denoiser with the shipped model: held latents are the source's bits on every mesh, what waits stands at its
// floor, prompts and guidance of frames reach those frames, saved steps go on with the same bits, and every mesh gives
// what one rank does.
#include "core/base/rng.h"
#include "core/comm/mesh.h"
#include "infer/denoise.h"
#include "tests/ts_test.h"

enum { T = 3, H = 4, W = 6, C = 16, FRAME = H * W * C, NUMBERS = T * FRAME, STEPS = 4, TOKENS = H / 2 * (W / 2) };

static const char *const LEFT = "a red circle moves left on a black background",
                         *const DOWN = "a cyan square moves down on a brown background";

static ts_comm *world;
static const ts_kernels *kernels;

static ts_denoise_params params_of(ts_solver_kind solver) {
    return (ts_denoise_params){.grid = TS_GRID_EULER,
                               .steps = STEPS,
                               .shift = 3.0,
                               .solver = solver,
                               .seed = 11,
                               .batch = 2,
                               .share_windows = true};
}

static ts_model *load(const ts_mesh *mesh) {
    ts_model *model = NULL;
    CHECK_OK(ts_agree(world, ts_model_load(&model, "configs/shapes-model", NULL, mesh, TS_F32, false)));
    return model;
}

static ts_canvas free_canvas(void) {
    ts_canvas canvas;
    CHECK_OK(ts_canvas_open(&canvas, T, H, W, C, 2, 2, LEFT, 3.0));
    canvas.index = 7;
    return canvas;
}

// A source of noise, the first frame and one token of the second held, the rest of the second half free, the last free.
static ts_canvas mixed_canvas(void) {
    ts_canvas canvas = free_canvas();
    CHECK_OK(ts_canvas_add_source(&canvas));
    ts_rng_normal_fill(canvas.source, NUMBERS, 1, TS_RNG_TEST, 0, 0);
    for (int i = 0; i < 2 * TOKENS; i++) {
        canvas.strength[i] = i <= TOKENS ? 0.0f : 0.5f;
    }
    return canvas;
}

static void run(const ts_model *model, const ts_denoise_params *params, ts_canvas *canvas, float *out) {
    ts_denoiser *d = NULL;
    CHECK_OK(ts_denoiser_open(&d, model, kernels, params, canvas, 1));
    for (int64_t step = ts_denoiser_first_step(d); step < ts_denoiser_steps(d); step++) {
        CHECK_OK(ts_denoiser_step(d, step));
    }
    CHECK_OK(ts_denoiser_latents(d, 0, out));
    ts_denoiser_close(&d);
}

static bool same(const float *a, const float *b, int64_t first, int64_t count) {
    return memcmp(a + first, b + first, (size_t)count * sizeof *a) == 0;
}

static double distance(const float *a, const float *b, int64_t first, int64_t count) {
    double worst = 0.0;
    for (int64_t i = first; i < first + count; i++) {
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
    }
    return worst;
}

// ---- one rank

// Whether number k of a latent [T, H, W, C] is of a token that mixed_canvas holds.
static bool is_held(int64_t k) {
    return k < FRAME || (k < 2 * FRAME && k / (W * C) % H < 2 && k / C % W < 2);
}

static void test_start(const ts_model *model) {
    const ts_denoise_params params = params_of(TS_SOLVER_EULER);
    static float x[NUMBERS], noise[NUMBERS], clean[NUMBERS];
    const float floor = ts_schedule_floor(params.grid, 0.5, params.shift);
    ts_canvas canvas = mixed_canvas();
    ts_denoiser *d = NULL;
    CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1));
    CHECK(ts_denoiser_steps(d) == STEPS && ts_denoiser_first_step(d) == 0);
    CHECK_OK(ts_denoiser_latents(d, 0, x));
    CHECK_OK(ts_denoiser_foretold(d, 0, clean));
    ts_rng_normal_fill(noise, NUMBERS, 11, TS_RNG_SAMPLE, 7, 0);
    CHECK(same(clean, canvas.source, 0, NUMBERS) && same(x, noise, 2 * FRAME, FRAME));
    for (int64_t k = 0; k < 2 * FRAME; k++) {
        const float level = is_held(k) ? 0.0f : floor;
        CHECK_NEAR(x[k], (1.0f - level) * canvas.source[k] + level * noise[k], level > 0 ? 1e-6 : 0.0);
    }
    // Shift 3 brings strength 0.5 to level 0.75, below which the schedule comes with its third step.
    static float after[NUMBERS];
    CHECK_OK(ts_denoiser_step(d, 0));
    CHECK_OK(ts_denoiser_latents(d, 0, after));
    CHECK(same(after, x, 0, 2 * FRAME) && !same(after, x, 2 * FRAME, FRAME));
    CHECK_OK(ts_denoiser_foretold(d, 0, clean));
    CHECK(same(clean, canvas.source, 0, FRAME) && !same(clean, canvas.source, FRAME, FRAME));
    CHECK_OK(ts_denoiser_step(d, 1));
    CHECK_OK(ts_denoiser_step(d, 2));
    CHECK_OK(ts_denoiser_latents(d, 0, after));
    for (int64_t k = FRAME; k < 2 * FRAME; k++) {
        CHECK(is_held(k) == (after[k] == x[k]));
    }
    ts_denoiser_close(&d);
    ts_canvas_close(&canvas);
}

// A canvas of strength 0 everywhere has no step; one of strength 1 everywhere is a free one.
static void test_ends(const ts_model *model) {
    const ts_denoise_params params = params_of(TS_SOLVER_UNIPC);
    static float x[NUMBERS], wanted[NUMBERS];
    ts_canvas plain = free_canvas(), canvas = free_canvas();
    CHECK_OK(ts_canvas_add_source(&canvas));
    ts_rng_normal_fill(canvas.source, NUMBERS, 1, TS_RNG_TEST, 0, 0);
    run(model, &params, &plain, wanted);
    run(model, &params, &canvas, x);
    CHECK(same(x, wanted, 0, NUMBERS));
    for (int i = 0; i < T * TOKENS; i++) {
        canvas.strength[i] = 0.0f;
    }
    run(model, &params, &canvas, x);
    CHECK(same(x, canvas.source, 0, NUMBERS));
    ts_canvas_close(&canvas);
    ts_canvas_close(&plain);
}

static void test_guidance(const ts_model *model) {
    const ts_denoise_params params = params_of(TS_SOLVER_EULER);
    static float alike[NUMBERS], x[NUMBERS];
    ts_denoiser *d = NULL;
    ts_canvas canvas = free_canvas();
    for (int pass = 0; pass < 2; pass++) {
        canvas.guidance[1] = pass ? 1.0f : 3.0f;
        CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1));
        CHECK_OK(ts_denoiser_step(d, 0));
        CHECK_OK(ts_denoiser_latents(d, 0, pass ? x : alike));
        ts_denoiser_close(&d);
    }
    CHECK(same(x, alike, 0, FRAME) && same(x, alike, 2 * FRAME, FRAME) && !same(x, alike, FRAME, FRAME));
    ts_canvas_close(&canvas);
}

// The steps before a prompt is set are not touched by it.
static void test_prompt(const ts_model *model) {
    const ts_denoise_params params = params_of(TS_SOLVER_UNIPC);
    static float before[2][NUMBERS], after[2][NUMBERS];
    for (int pass = 0; pass < 2; pass++) {
        ts_canvas canvas = free_canvas();
        ts_denoiser *d = NULL;
        CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1));
        CHECK_OK(ts_denoiser_step(d, 0));
        CHECK_OK(ts_denoiser_step(d, 1));
        CHECK_OK(ts_denoiser_latents(d, 0, before[pass]));
        if (pass) {
            CHECK_FAILS(ts_denoiser_set_prompt(d, 0, T, DOWN), TS_EUSAGE, "frame 3 of 3");
            CHECK_OK(ts_denoiser_set_prompt(d, 0, 0, DOWN));
        }
        CHECK_OK(ts_denoiser_step(d, 2));
        CHECK_OK(ts_denoiser_latents(d, 0, after[pass]));
        ts_denoiser_close(&d);
        ts_canvas_close(&canvas);
    }
    CHECK(same(before[0], before[1], 0, NUMBERS) && distance(after[0], after[1], 0, NUMBERS) > 1e-3);
}

static void test_refusals(const ts_model *model) {
    ts_denoise_params params = params_of(TS_SOLVER_EULER);
    ts_denoiser *d = NULL;
    ts_canvas canvas = free_canvas();
    params.batch = 0;
    CHECK_FAILS(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1), TS_EUSAGE, "at a time");
    CHECK(!d);
    params.batch = 1;
    canvas.channels = C - 1;
    CHECK_FAILS(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1), TS_EUSAGE, "does not fit the model");
    canvas.channels = C;
    canvas.weight[1] = 0.0f;
    CHECK_FAILS(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1), TS_EUSAGE, "weights");
    canvas.weight[1] = 1.0f;
    params.steps = 0;
    CHECK_FAILS(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1), TS_EUSAGE, "sampling steps");
    ts_canvas_close(&canvas);
}

// ---- on meshes

static const struct {
    int ranks;
    const char *mesh;
} cases[] = {
    {1, "data=1"},         {2, "tensor=2"},     {2, "ulysses=2"},        {2, "ring=2"},
    {2, "cfg=2"},          {2, "data=2"},       {4, "tensor=4"},         {4, "ulysses=2,ring=2"},
    {4, "cfg=2,tensor=2"}, {4, "data=2,cfg=2"}, {4, "data=2,ulysses=2"}, {4, "data=4"},
};

static void test_mesh(const char *name, const ts_model *model, const float *const *wanted) {
    static float x[NUMBERS];
    for (int solver = TS_SOLVER_EULER; solver <= TS_SOLVER_UNIPC; solver++) {
        const ts_denoise_params params = params_of((ts_solver_kind)solver);
        ts_canvas canvas = mixed_canvas();
        run(model, &params, &canvas, x);
        for (int64_t k = 0; k < NUMBERS; k++) {
            CHECK(!is_held(k) || memcmp(&x[k], &canvas.source[k], sizeof *x) == 0);
        }
        const double worst = distance(x, wanted[solver], 0, NUMBERS);
        CHECK(worst <= 1e-3);
        if (ts_comm_rank(world) == 0) {
            printf("%-18s %s: latents within %.1e of those of one rank\n", name, ts_solver_names[solver], worst);
        }
        ts_canvas_close(&canvas);
    }
}

int main(int argc, char **argv) {
    static float wanted[2][NUMBERS];
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    ts_model *alone = load(NULL);
    for (int solver = TS_SOLVER_EULER; solver <= TS_SOLVER_UNIPC; solver++) {
        const ts_denoise_params params = params_of((ts_solver_kind)solver);
        ts_canvas canvas = mixed_canvas();
        run(alone, &params, &canvas, wanted[solver]);
        ts_canvas_close(&canvas);
    }
    if (ts_comm_size(world) == 1) {
        test_start(alone);
        test_ends(alone);
        test_guidance(alone);
        test_prompt(alone);
        test_refusals(alone);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].ranks == ts_comm_size(world)) {
            ts_degrees degree;
            ts_mesh mesh;
            CHECK_OK(ts_degrees_read(&degree, cases[i].mesh, 4, ts_comm_size(world)));
            CHECK_OK(ts_mesh_open(&mesh, world, &degree));
            ts_model *model = load(&mesh);
            test_mesh(cases[i].mesh, model, (const float *const[]){wanted[0], wanted[1]});
            ts_model_close(&model);
            ts_mesh_close(&mesh);
        }
    }
    ts_model_close(&alone);
    const int failed = ts_test_end();
    ts_world_close(&world, 0);
    return failed;
}
