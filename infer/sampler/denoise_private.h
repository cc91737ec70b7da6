// SPDX-License-Identifier: Apache-2.0
// The denoiser's own: what its parts (denoise_open.c, denoise_view.c, denoise.c) share.
#ifndef TS_INFER_DENOISE_PRIVATE_H
#define TS_INFER_DENOISE_PRIVATE_H

#include "infer/sampler/contexts.h"
#include "infer/sampler/denoise.h"
#include "infer/sampler/velocity.h"
#include "infer/sampler/windows.h"

// Tokens of equal strength are a class, those of canvases whose windows are joined apart from others.
enum { DENOISE_CLASSES = 2 * (TS_STRENGTH_STEPS + 1) };

struct ts_denoiser {
    const ts_model *model;
    const ts_kernels *kernels;
    ts_denoise_params p;
    ts_canvas *canvas;  // [n]
    int64_t n;
    bool guided;        // somewhere
    int64_t *first;     // [n + 1] place of each canvas's first latent frame among those of all
    bool *joined;       // [n] whether its windows are
    int32_t *class_of;  // [all frames, H, W]
    int64_t classes;
    bool class_joined[DENOISE_CLASSES];
    float floor[DENOISE_CLASSES];
    float level[DENOISE_CLASSES];     // before the step under way
    float timestep[DENOISE_CLASSES];  // as the transformer is told them
    ts_schedule schedule;
    int64_t next;  // step
    ts_solver *solver;
    ts_tape *tape;
    ts_contexts *contexts;
    ts_velocity *velocity;
    float *x, *fused;  // [all frames, H, W, C] device: latents, and the velocities of all windows as one
    float *gathered;   // device: velocities of all windows, each for itself, where ranks share them; or NULL
    int64_t gathered_room;
    int32_t *device_class;      // class_of in the device's memory, where windows are joined, or NULL
    double *device_c;           // [classes, TS_MAX_TERMS] likewise
    float *clean, *head, *eps;  // [H, W, C] host: of the head that is being made
};

// A window of a canvas.
typedef struct denoise_view {
    int64_t canvas;
    const ts_window *window;
} denoise_view;

static inline int64_t denoise_frame_numbers(const ts_denoiser *d) {
    return ts_canvas_frame_numbers(&d->canvas[0]);
}

static inline int64_t denoise_all_numbers(const ts_denoiser *d) {
    return d->first[d->n] * denoise_frame_numbers(d);
}

// Numbers before frame t of canvas i.
static inline int64_t denoise_place(const ts_denoiser *d, int64_t i, int64_t t) {
    return (d->first[i] + t) * denoise_frame_numbers(d);
}

// The ranks that work on the same canvases.
static inline ts_comm *denoise_ranks(const ts_denoiser *d) {
    return ts_mesh_axis(d->model->params->mesh, d->p.share_windows ? TS_AXIS_WORLD : TS_AXIS_VIDEO);
}

static inline const char *denoise_negative(const ts_denoiser *d) {
    return d->p.negative ? d->p.negative : "";
}

// Whether this rank computes a branch of guidance.
bool denoise_computes(const ts_denoiser *d, int branch);

// Latent frames [t, t + frames) of canvas i without noise, as far as is known: foretold in the last step, or the
// source's, or zeros. Host memory.
int denoise_clean(const ts_denoiser *d, int64_t i, int64_t t, int64_t frames, float *out);

// What windows [b->n] of equal length show goes into a batch, before the step of d->level.
int denoise_fill(const ts_denoiser *d, const denoise_view *view, const ts_velocity_batch *b);
// How many contexts each of windows [n] of equal length has: neighbouring frames with the same prompts in all windows
// share one.
int64_t denoise_contexts(const ts_denoiser *d, const denoise_view *view, int64_t n);
// Whether guidance changes the velocity of any of windows [n]: not where it is 1, or all prompts are the negative one.
bool denoise_is_guided(const ts_denoiser *d, const denoise_view *view, int64_t n);
// How many frames of a window from frame i on follow one another on the canvas, too, with the same weight.
int64_t denoise_run(const ts_denoiser *d, denoise_view v, int64_t i);

#endif
