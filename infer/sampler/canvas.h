// SPDX-License-Identifier: Apache-2.0
// A canvas: what a timeline compiles to. The latents of one video under work, and for each token how far it may go from
// its source, for each latent frame what it is to show. An empty timeline is a canvas of free tokens and one prompt.
//
// Latent frame 0 stands for one pixel frame and each later one for a group of `time_factor`. In a loop all are groups,
// on a circle.
#ifndef TS_INFER_CANVAS_H
#define TS_INFER_CANVAS_H

#include <stdbool.h>
#include <stdint.h>

// Strengths are rounded to hundredths, so that a canvas has few different noise floors.
enum { TS_STRENGTH_STEPS = 100 };

typedef struct ts_canvas {
    int64_t frames, height, width, channels;  // latent: T, H, W, C
    int64_t rows, columns;                    // tokens of a frame: H / patch, W / patch (patches last one frame)
    bool loop;
    float *source;    // [T, H, W, C] x0, the codec's latents; NULL: there is none and every token is free
    float *strength;  // [T, rows, columns] 0 held .. 1 free; NULL: 1 everywhere
    int64_t prompts, copies;
    const char **prompt;               // [prompts] borrowed, but the last `copies` of them, which are the canvas's own
    float *weight;                     // [T, prompts] of each prompt's context in a frame's; each frame's sum is 1
    float *guidance;                   // [T] as it was asked for
    float *late;                       // [T] noise level at which a frame got its prompt: 1 from the start
    int64_t window, overlap, context;  // latent frames: of a window, shared by neighbours, held beside free ones
    uint64_t index;                    // number of the video: its noise is Philox(seed, TS_RNG_SAMPLE, index)
} ts_canvas;

// An empty canvas: free, one prompt, one guidance, one window over all. Arrays are new; `prompt` is borrowed. On
// failure there is nothing to close. TS_EUSAGE for sides that are not positive multiples of the patch, TS_ERESOURCE.
int ts_canvas_open(ts_canvas *out, int64_t frames, int64_t height, int64_t width, int64_t channels, int64_t patch_h,
                   int64_t patch_w, const char *prompt, double guidance);
// Adds source and strength, [T, H, W, C] zero and [T, rows, columns] one, where they are absent.
int ts_canvas_add_source(ts_canvas *canvas);
void ts_canvas_close(ts_canvas *canvas);  // of a canvas of zeros: nothing

// Refuses numbers that are no canvas: strengths outside 0..1, strengths without a source, weights that do not sum to 1,
// guidance that is not finite, a window of which neighbours share all or nothing. TS_EUSAGE.
int ts_canvas_check(const ts_canvas *canvas);

// Refuses, before anything is allocated, a canvas of these sides (frames, height, width, channels) that `holders`
// processes of this machine, which each hold it, have no memory for. TS_ERESOURCE "name: ...".
int ts_canvas_check_memory(const ts_canvas *sides, int64_t holders, const char *name);

int64_t ts_canvas_numbers(const ts_canvas *canvas);        // T H W C
int64_t ts_canvas_frame_numbers(const ts_canvas *canvas);  // H W C
// Strength of a token as it counts, a whole number of hundredths.
int ts_canvas_strength(const ts_canvas *canvas, int64_t frame, int64_t row, int64_t column);
bool ts_canvas_frame_is_held(const ts_canvas *canvas, int64_t frame);  // every token of it

// From latent frame `first` on this prompt is the only one (steering). The string is copied. TS_EUSAGE for a frame that
// is not there.
int ts_canvas_set_prompt(ts_canvas *canvas, int64_t first, const char *prompt);
// The same on the way, at noise level `level`, 0..1.
int ts_canvas_steer(ts_canvas *canvas, int64_t first, const char *prompt, double level);
// Guidance of a frame as it counts. What is said late, when another prompt has formed much of the video, is said
// louder: 1 + (guidance - 1) / late^4, its second part at most four times what was asked for.
double ts_canvas_guidance(const ts_canvas *canvas, int64_t frame);

#endif
