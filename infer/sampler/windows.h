// SPDX-License-Identifier: Apache-2.0
// Which stretches of a canvas the transformer sees at once, and how their velocities become one.
//
// A window that begins at the canvas's first frame (not of a loop) sees canvas frames 0 .. frames-1. Any other begins
// with a head: the last pixel frame of canvas frame `start`, as a first latent frame (ts_codec_first_of), followed by
// canvas frames start+1 .. start+frames-1, modulo T in a loop. The transformer so always sees one frame and then
// groups, as in training. The head is remade from the canvas before each step and its velocity is not used.
//
// Overlapping windows are fused at every step: v[t] = sum over windows of weight v_window[t], weights falling linearly
// towards the ends that are shared (as in MultiDiffusion, Bar-Tal et al. 2023), their sum 1 for each frame.
#ifndef TS_INFER_WINDOWS_H
#define TS_INFER_WINDOWS_H

#include "infer/sampler/canvas.h"

typedef struct ts_window {
    int64_t start;   // canvas frame of its first frame, the head's where there is one
    int64_t frames;  // latent frames that the transformer sees, the head's included
    bool head;
    float *weight;  // [frames] of each frame in the fused velocity; 0 for the head
} ts_window;

typedef struct ts_windows {
    int64_t count, room;
    ts_window *item;
    bool joined;  // a stretch or a circle is made of several, in this step or from one step to the next
} ts_windows;

// The windows of a step. Frames that are held, and farther than canvas->context from anything free, are left out; what
// remains is covered in stretches, with windows that move from step to step, so that no place is a border for long.
// Deterministic and alike on all ranks. TS_ERESOURCE.
int ts_windows_make(ts_windows *out, const ts_canvas *canvas, int64_t step);
void ts_windows_close(ts_windows *windows);
// Canvas frame of frame i of a window; of a head's the frame whose last pixel frame it is.
int64_t ts_window_frame(const ts_canvas *canvas, const ts_window *window, int64_t i);

#endif
