// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,4 timeout=120
// The denoiser with the shipped model: held latents are the source's bits on every mesh, what waits stands at its
// floor, prompts and guidance of frames reach those frames, and every mesh gives what one rank does, of long canvases
// and loops too, and goes on from what another one saved.
#include "core/base/rng.h"
#include "core/comm/mesh.h"
#include "infer/sampler/denoise_private.h"
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

// The first frame has one prompt and the rest another: each goes its prompt's way.
static void test_prompts_of_frames(const ts_model *model) {
    enum { SPLIT, ALL_LEFT, ALL_DOWN, PASSES };
    const ts_denoise_params params = params_of(TS_SOLVER_EULER);
    static float x[PASSES][NUMBERS];
    ts_denoiser *d = NULL;
    for (int pass = 0; pass < PASSES; pass++) {
        ts_canvas canvas = free_canvas();
        if (pass != ALL_LEFT) {
            CHECK_OK(ts_canvas_set_prompt(&canvas, pass == SPLIT, DOWN));
        }
        CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1));
        CHECK_OK(ts_denoiser_step(d, 0));
        CHECK_OK(ts_denoiser_latents(d, 0, x[pass]));
        ts_denoiser_close(&d);
        ts_canvas_close(&canvas);
    }
    CHECK(distance(x[SPLIT], x[ALL_LEFT], 0, FRAME) < distance(x[SPLIT], x[ALL_DOWN], 0, FRAME));
    CHECK(distance(x[SPLIT], x[ALL_DOWN], FRAME, 2 * FRAME) < distance(x[SPLIT], x[ALL_LEFT], FRAME, 2 * FRAME));
}

// Neighbouring frames with the same prompts share a context, in a window and in windows that go together; what is
// shared is what each frame would have alone.
static void test_shared_contexts(const ts_model *model) {
    const ts_denoise_params params = params_of(TS_SOLVER_EULER);
    static float x[T][NUMBERS];
    for (int repeats = 0; repeats < T; repeats++) {  // frames that are given the same words once more
        ts_canvas canvas[2] = {free_canvas(), free_canvas()};
        ts_denoiser *d = NULL;
        CHECK_OK(ts_canvas_set_prompt(&canvas[0], 1, DOWN));
        for (int i = 0; i < repeats; i++) {
            CHECK_OK(ts_canvas_set_prompt(&canvas[i], i ? 1 : 2, i ? LEFT : DOWN));
        }
        CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, canvas, 2));
        ts_windows windows;
        CHECK_OK(ts_windows_make(&windows, canvas, 0));
        const denoise_view view[2] = {{0, windows.item}, {1, windows.item}};
        CHECK(denoise_contexts(d, view, 2) == 2 + (repeats > 0));
        CHECK(denoise_contexts(d, view + 1, 1) == 1 + (repeats > 1));
        CHECK_OK(ts_denoiser_step(d, 0));
        CHECK_OK(ts_denoiser_latents(d, 0, x[repeats]));
        CHECK(distance(x[repeats], x[0], 0, NUMBERS) <= 1e-5);
        ts_windows_close(&windows);
        ts_denoiser_close(&d);
        ts_canvas_close(&canvas[0]);
        ts_canvas_close(&canvas[1]);
    }
}

// Whether guidance counts in the one window of a canvas.
static bool is_guided(const ts_denoiser *d) {
    ts_windows windows;
    CHECK_OK(ts_windows_make(&windows, d->canvas, 0));
    const bool guided = denoise_is_guided(d, &(denoise_view){0, windows.item}, 1);
    ts_windows_close(&windows);
    return guided;
}

// Without a prompt, or with that which is the negative one, one branch is computed, until another prompt comes. A blank
// is read as no prompt: with it as the negative one both branches are computed, and equal.
static void test_unguided(const ts_model *model) {
    static const struct {
        const char *prompt, *negative;
        bool guided;
    } passes[] = {{"", NULL, false}, {LEFT, LEFT, false}, {"", " ", true}, {LEFT, NULL, true}};
    static float x[4][STEPS][NUMBERS];
    for (int pass = 0; pass < 4; pass++) {
        ts_denoise_params params = params_of(TS_SOLVER_UNIPC);
        ts_canvas canvas = free_canvas();
        ts_denoiser *d = NULL;
        canvas.prompt[0] = passes[pass].prompt;
        params.negative = passes[pass].negative;
        CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1));
        CHECK(is_guided(d) == passes[pass].guided);
        for (int step = 0; step < STEPS; step++) {
            if (step == 2) {
                CHECK_OK(ts_denoiser_set_prompt(d, 0, 1, DOWN));
                CHECK(is_guided(d));
            }
            CHECK_OK(ts_denoiser_step(d, step));
            CHECK_OK(ts_denoiser_latents(d, 0, x[pass][step]));
        }
        canvas.guidance[0] = canvas.guidance[1] = canvas.guidance[2] = 1.0f;
        CHECK(!is_guided(d));
        ts_denoiser_close(&d);
        ts_canvas_close(&canvas);
    }
    for (int step = 0; step < STEPS; step++) {
        CHECK(distance(x[0][step], x[2][step], 0, NUMBERS) <= (ts_kernels_cpu_products_fixed(TS_F32) ? 0.0 : 1e-4));
    }
    CHECK(distance(x[1][1], x[3][1], 0, NUMBERS) > 1e-3);
}

// Two canvases together, one plain and one whose windows roll, are each what they are alone.
static void test_together(const ts_model *model) {
    const ts_denoise_params params = params_of(TS_SOLVER_UNIPC);
    static float alone[2][NUMBERS], x[NUMBERS];
    ts_canvas canvas[2] = {free_canvas(), free_canvas()};
    ts_denoiser *d = NULL;
    canvas[1].index = 8;
    canvas[1].loop = true;
    canvas[1].window = T + 1;
    for (int i = 0; i < 2; i++) {
        run(model, &params, &canvas[i], alone[i]);
    }
    CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, canvas, 2));
    for (int64_t step = 0; step < STEPS; step++) {
        CHECK_OK(ts_denoiser_step(d, step));
    }
    for (int i = 0; i < 2; i++) {
        CHECK_OK(ts_denoiser_latents(d, i, x));
        CHECK(distance(x, alone[i], 0, NUMBERS) <= 1e-4);
    }
    ts_denoiser_close(&d);
    for (int i = 0; i < 2; i++) {
        ts_canvas_close(&canvas[i]);
    }
}

// ---- kinds of canvases

enum { MIXED, LONG, LOOP, SHORT_LOOP, NO_PROMPT, KINDS, MOST = 9 * FRAME };
static const char *const kinds[] = {"mixed", "long", "loop", "short loop", "no prompt"};

// LONG: a held beginning and end, one frame between that waits, two prompts; LOOP: three windows, two frames held.
static ts_canvas canvas_of(int kind) {
    static const int64_t frames[] = {[LONG] = 9, [LOOP] = 7, [SHORT_LOOP] = 2};
    ts_canvas canvas;
    if (kind == MIXED) {
        return mixed_canvas();
    }
    if (kind == NO_PROMPT) {
        canvas = free_canvas();
        canvas.prompt[0] = "";
        return canvas;
    }
    CHECK_OK(ts_canvas_open(&canvas, frames[kind], H, W, C, 2, 2, LEFT, 3.0));
    CHECK_OK(ts_canvas_add_source(&canvas));
    ts_rng_normal_fill(canvas.source, ts_canvas_numbers(&canvas), 1, TS_RNG_TEST, 1, 0);
    canvas.window = 3;
    canvas.loop = kind != LONG;
    for (int64_t i = 0; i < TOKENS; i++) {
        canvas.strength[i] = kind == SHORT_LOOP;
        if (kind != SHORT_LOOP) {
            canvas.strength[4 * TOKENS + i] = kind == LOOP ? 0.0f : 0.5f;
        }
        if (kind == LONG) {
            canvas.strength[8 * TOKENS + i] = 0.0f;
        }
    }
    if (kind == LONG) {
        CHECK_OK(ts_canvas_set_prompt(&canvas, 5, DOWN));
    }
    return canvas;
}

// ---- what windows show

static void take(ts_denoiser *d, int64_t first, int64_t end) {
    first = first < ts_denoiser_first_step(d) ? ts_denoiser_first_step(d) : first;
    for (int64_t step = first; step < end; step++) {
        CHECK_OK(ts_denoiser_step(d, step));
    }
}

// The first frame of a window: what the last step foretold of its canvas frame, as a first frame at that frame's
// levels.
static void check_head(const ts_model *model, const ts_denoiser *d, const ts_window *window, const float *latent) {
    const ts_canvas *canvas = &d->canvas[0];
    static float clean[MOST], head[FRAME], noise[FRAME];
    CHECK_OK(ts_denoiser_foretold(d, 0, clean));
    CHECK_OK(ts_codec_first_of(model->codec, clean + window->start * FRAME, 1, H, W, head));
    ts_rng_normal_fill(noise, FRAME, 11, TS_RNG_HEAD, canvas->index, window->start * FRAME);
    for (int64_t k = 0; k < FRAME; k++) {
        const int strength = ts_canvas_strength(canvas, window->start, k / (W * C) / 2, k / C % W / 2);
        const float floor = ts_schedule_floor(TS_GRID_EULER, (double)strength / TS_STRENGTH_STEPS, 3.0);
        const float level = fminf(d->schedule.sigma[1], floor);
        CHECK_NEAR(latent[k], (1.0f - level) * head[k] + level * noise[k], 1e-6);
    }
}

// The other frames are the canvas's own, round the circle; every token is told its level, every frame its guidance.
static void check_frames(const ts_denoiser *d, const ts_window *window, const ts_velocity_batch *b) {
    const ts_canvas *canvas = &d->canvas[0];
    static float x[MOST];
    CHECK_OK(ts_denoiser_latents(d, 0, x));
    for (int64_t i = 0; i < window->frames; i++) {
        const int64_t t = (window->start + i) % canvas->frames;
        CHECK(i == 0 || memcmp(b->latent + i * FRAME, x + t * FRAME, FRAME * sizeof *x) == 0);
        CHECK(b->guidance[i] == 3.0f);
        for (int64_t token = 0; token < TOKENS; token++) {
            const int strength = ts_canvas_strength(canvas, t, token / (W / 2), token % (W / 2));
            const float floor = ts_schedule_floor(TS_GRID_EULER, (double)strength / TS_STRENGTH_STEPS, 3.0);
            CHECK_NEAR(b->timestep[i * TOKENS + token], 1000.0 * (double)fminf(d->schedule.sigma[1], floor), 1e-3);
        }
    }
}

static void test_views(const ts_model *model) {
    const ts_denoise_params params = params_of(TS_SOLVER_EULER);
    ts_canvas canvas = canvas_of(LOOP);
    ts_denoiser *d = NULL;
    ts_windows windows;
    canvas.strength[2 * TOKENS + 1] = 0.0f;
    canvas.strength[5 * TOKENS + 3] = 0.3f;  // waits
    CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1));
    take(d, 0, 2);
    for (int64_t step = 0; step < canvas.frames; step++) {
        CHECK_OK(ts_windows_make(&windows, &canvas, step));
        CHECK(windows.count == 4);
        for (int64_t k = 0; k < windows.count; k++) {
            const denoise_view view = {0, &windows.item[k]};
            ts_velocity_batch b = {.n = 1, .frames = view.window->frames, .height = H, .width = W, .contexts = 1};
            b.levels = b.frames * TOKENS;
            CHECK_OK(ts_velocity_begin(d->velocity, &b));
            CHECK_OK(denoise_fill(d, &view, &b));
            check_head(model, d, view.window, b.latent);
            check_frames(d, view.window, &b);
        }
        ts_windows_close(&windows);
    }
    ts_denoiser_close(&d);
    ts_canvas_close(&canvas);
}

// A first step of Euler is the windows' velocities, each times its weight, along the way that a token's level falls.
static void test_fused(const ts_model *model) {
    const ts_denoise_params params = params_of(TS_SOLVER_EULER);
    static float x[MOST], stepped[MOST], fused[MOST];
    ts_canvas canvas = canvas_of(LONG);
    ts_denoiser *d = NULL, *by_hand = NULL;
    ts_windows windows;
    CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1));
    CHECK_OK(ts_denoiser_open(&by_hand, model, kernels, &params, &canvas, 1));
    CHECK_OK(ts_denoiser_latents(d, 0, x));
    take(d, 0, 1);
    CHECK_OK(ts_denoiser_latents(d, 0, stepped));
    memcpy(by_hand->level, d->level, sizeof d->level);
    memcpy(by_hand->timestep, d->timestep, sizeof d->timestep);
    CHECK_OK(ts_windows_make(&windows, &canvas, 0));
    CHECK(windows.count > 2);
    for (int64_t k = 0; k < windows.count; k++) {
        const ts_window *window = &windows.item[k];
        const denoise_view view = {0, window};
        const float *velocity;
        ts_velocity_batch b = {.n = 1, .frames = window->frames, .height = H, .width = W};
        b.levels = b.frames * TOKENS;
        b.contexts = denoise_contexts(by_hand, &view, 1);
        CHECK_OK(ts_velocity_begin(by_hand->velocity, &b));
        CHECK_OK(denoise_fill(by_hand, &view, &b));
        CHECK_OK(ts_velocity_take(by_hand->velocity, &b, &velocity));
        for (int64_t i = 0; i < window->frames * FRAME; i++) {
            fused[window->start * FRAME + i] += window->weight[i / FRAME] * velocity[i];
        }
    }
    for (int64_t i = 0; i < ts_canvas_numbers(&canvas); i++) {
        const int32_t class = d->class_of[i / C];
        const float fall = ts_solver_level(d->solver, 1, class) - ts_solver_level(d->solver, 0, class);
        CHECK_NEAR(stepped[i], x[i] + fall * fused[i], 1e-4);
    }
    ts_windows_close(&windows);
    ts_denoiser_close(&by_hand);
    ts_denoiser_close(&d);
    ts_canvas_close(&canvas);
}

// ---- on meshes

static void check_held(const ts_canvas *canvas, const float *x) {
    const int64_t numbers = ts_canvas_numbers(canvas);
    for (int64_t k = 0; k < numbers; k++) {
        const int64_t t = k / FRAME, h = k / (W * C) % H, w = k / C % W;
        if (ts_canvas_strength(canvas, t, h / 2, w / 2) == 0) {
            CHECK(memcmp(&x[k], &canvas->source[k], sizeof *x) == 0);
        }
    }
}

// What a rank alone makes of each kind with each solver, and what it has saved on the way.
enum { SAVED_STEP = 2 };
typedef struct reference {
    float latents[MOST], saved[TS_DENOISER_ARRAYS][MOST];
    int arrays;
} reference;
static reference wanted[KINDS][2];

static void make_reference(const ts_model *model, int kind, ts_solver_kind solver) {
    const ts_denoise_params params = params_of(solver);
    reference *r = &wanted[kind][solver];
    float *array[TS_DENOISER_ARRAYS];
    ts_canvas canvas = canvas_of(kind);
    ts_denoiser *d = NULL;
    for (int k = 0; k < TS_DENOISER_ARRAYS; k++) {
        array[k] = r->saved[k];
    }
    CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1));
    take(d, 0, SAVED_STEP);
    CHECK_OK(ts_denoiser_save(d, 0, array, &r->arrays));
    take(d, SAVED_STEP, STEPS);
    CHECK_OK(ts_denoiser_latents(d, 0, r->latents));
    check_held(&canvas, r->latents);
    ts_denoiser_close(&d);
    ts_canvas_close(&canvas);
}

// Windows are fused in one order on all meshes; products have the same bits on some processors, and sums without an
// axis that cuts them.
static bool has_bits_of_one(const char *mesh) {
    return ts_comm_size(world) == 1 ||
           (ts_kernels_cpu_products_fixed(TS_F32) && !strstr(mesh, "tensor") && !strstr(mesh, "ring"));
}

// From the beginning, and from what a rank alone saved, there a window of each rank at a time. Ranks that share windows
// keep the velocities of one batch each, however many windows there are.
static void test_mesh(const char *name, const ts_model *model, int kind, ts_solver_kind solver) {
    static float x[MOST];
    ts_denoise_params params = params_of(solver);
    const reference *r = &wanted[kind][solver];
    double worst[2];
    ts_canvas canvas = canvas_of(kind);
    const int64_t numbers = ts_canvas_numbers(&canvas);
    for (int resumed = 0; resumed < 2; resumed++) {
        ts_denoiser *d = NULL;
        const float *array[TS_DENOISER_ARRAYS];
        for (int k = 0; k < TS_DENOISER_ARRAYS; k++) {
            array[k] = r->saved[k];
        }
        params.batch = resumed ? 1 : 2;
        CHECK_OK(ts_denoiser_open(&d, model, kernels, &params, &canvas, 1));
        if (resumed) {
            CHECK_FAILS(ts_denoiser_restore(d, 0, SAVED_STEP, array, r->arrays - 1), TS_EUSAGE, "another solver");
            CHECK_OK(ts_denoiser_restore(d, 0, SAVED_STEP, array, r->arrays));
        }
        take(d, resumed ? SAVED_STEP : 0, STEPS);
        CHECK_OK(ts_denoiser_latents(d, 0, x));
        check_held(&canvas, x);
        const int64_t batches = params.batch * ts_comm_size(ts_mesh_axis(model->params->mesh, TS_AXIS_DATA));
        CHECK(d->gathered_room <= batches * 3 * FRAME);
        worst[resumed] = distance(x, r->latents, 0, numbers);
        CHECK(worst[resumed] <= (has_bits_of_one(name) ? 0.0 : 1e-3));
        ts_denoiser_close(&d);
    }
    if (ts_comm_rank(world) == 0) {
        printf("%-18s %-10s %s: latents within %.1e of those of one rank, resumed %.1e\n", name, kinds[kind],
               ts_solver_names[solver], worst[0], worst[1]);
    }
    ts_canvas_close(&canvas);
}

static const struct {
    int ranks;
    const char *mesh;
} cases[] = {
    {1, "data=1"},         {2, "tensor=2"},     {2, "ulysses=2"},        {2, "ring=2"},
    {2, "cfg=2"},          {2, "data=2"},       {4, "tensor=4"},         {4, "ulysses=2,ring=2"},
    {4, "cfg=2,tensor=2"}, {4, "data=2,cfg=2"}, {4, "data=2,ulysses=2"}, {4, "data=4"},
};

static void test_meshes(void) {
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].ranks == ts_comm_size(world)) {
            ts_degrees degree;
            ts_mesh mesh;
            CHECK_OK(ts_degrees_read(&degree, cases[i].mesh, 4, ts_comm_size(world)));
            CHECK_OK(ts_mesh_open(&mesh, world, &degree));
            ts_model *model = load(&mesh);
            for (int k = 0; k < 2 * KINDS; k++) {
                test_mesh(cases[i].mesh, model, k / 2, k % 2 ? TS_SOLVER_UNIPC : TS_SOLVER_EULER);
            }
            ts_model_close(&model);
            ts_mesh_close(&mesh);
        }
    }
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    ts_model *alone = load(NULL);
    for (int k = 0; k < 2 * KINDS; k++) {
        make_reference(alone, k / 2, k % 2 ? TS_SOLVER_UNIPC : TS_SOLVER_EULER);
    }
    if (ts_comm_size(world) == 1) {
        test_start(alone);
        test_ends(alone);
        test_guidance(alone);
        test_prompt(alone);
        test_prompts_of_frames(alone);
        test_shared_contexts(alone);
        test_unguided(alone);
        test_together(alone);
        test_views(alone);
        test_fused(alone);
        test_refusals(alone);
    }
    test_meshes();
    ts_model_close(&alone);
    const int failed = ts_test_end();
    ts_world_close(&world, 0);
    return failed;
}
