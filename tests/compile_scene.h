// SPDX-License-Identifier: Apache-2.0
// What tests of the compiler share: a folder, a model, short films of 64x64 at 8 frames a second, and timelines.
#ifndef TS_TEST_COMPILE_SCENE_H
#define TS_TEST_COMPILE_SCENE_H

#include <limits.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/media/image.h"
#include "core/media/video.h"
#include "infer/timeline/compile.h"
#include "tests/read_frames.h"
#include "tests/ts_test.h"

enum { SIDE = 64, PIXELS = SIDE * SIDE * 3, LATENT = 8 * 8 * 16, TOKENS = 4 * 4 };

static char scene_folder[64];
static ts_model *scene_model;

static inline const char *in_scene(const char *name) {
    static char path[16][PATH_MAX];
    static int next;
    char *out = path[next = (next + 1) % 16];
    snprintf(out, PATH_MAX, "%s/%s", scene_folder, name);
    return out;
}

static inline void scene_open(void) {
    snprintf(scene_folder, sizeof scene_folder, "/tmp/tessera-compile-XXXXXX");
    CHECK(mkdtemp(scene_folder) != NULL);
    CHECK_OK(ts_model_load(&scene_model, "configs/shapes-model", NULL, NULL, TS_F32, false));
}

static inline void scene_close(void) {
    ts_model_close(&scene_model);
    CHECK_OK(ts_folder_remove(scene_folder));
}

// A disc of its own colour that moves right, a pixel a frame, from column `first`; written at 8 frames a second.
static inline void scene_film(const char *name, int64_t frames, int64_t first, int colour) {
    uint8_t *rgb = calloc((size_t)(frames * PIXELS), 1);
    for (int64_t i = 0; i < frames * SIDE * SIDE; i++) {
        const int64_t x = i % SIDE, y = i / SIDE % SIDE, dx = x - first - i / (SIDE * SIDE), dy = y - 32;
        rgb[i * 3 + colour] = dx * dx + dy * dy < 100 ? 230 : (uint8_t)(20 + x);
    }
    const ts_video_writer_params params = {.width = SIDE, .height = SIDE, .fps_numerator = 8, .fps_denominator = 1};
    CHECK_OK(ts_video_write(in_scene(name), rgb, frames, &params));
    free(rgb);
}

// The film's frames first, first + step, ... as the reader gives them. The caller frees.
static inline uint8_t *scene_pixels(const char *name, int64_t first, int64_t step, int64_t frames) {
    uint8_t *rgb = malloc((size_t)(frames * PIXELS));
    int64_t filled;
    CHECK_OK(read_frames(in_scene(name), (double)first / 8, (double)step / 8, frames, SIDE, SIDE, rgb, &filled));
    CHECK(filled == frames);
    return rgb;
}

// Whether latent frames [t, t + n) of the canvas are, bit for bit, those frames of the film: encoded as a whole clip
// from its first frame on when t is 0 and the canvas no loop, else as groups.
static inline bool scene_stands(const ts_canvas *c, int64_t t, int64_t n, const char *name, int64_t first,
                                int64_t step) {
    const bool begins = t == 0 && !c->loop;
    const int64_t frames = begins ? 1 + 4 * (n - 1) : 4 * n;
    uint8_t *rgb = scene_pixels(name, first, step, frames);
    float *latent = malloc((size_t)(n * LATENT) * sizeof *latent);
    CHECK_OK(begins ? ts_codec_encode(scene_model->codec, rgb, frames, SIDE, SIDE, latent)
                    : ts_codec_encode_groups(scene_model->codec, rgb, n, SIDE, SIDE, latent));
    const bool same = memcmp(c->source + t * LATENT, latent, (size_t)(n * LATENT) * sizeof *latent) == 0;
    free(latent);
    free(rgb);
    return same;
}

// Whether all tokens of latent frames [t, t + n) have that strength.
static inline bool scene_strength(const ts_canvas *c, int64_t t, int64_t n, double strength) {
    for (int64_t i = t * TOKENS; i < (t + n) * TOKENS; i++) {
        if (fabs((double)c->strength[i] - strength) > 1e-6) {
            return false;
        }
    }
    return true;
}

// ---- timelines

static inline ts_timeline scene_timeline(int64_t frames) {
    ts_timeline t = ts_timeline_default();
    t.path = "edit.yaml";
    t.size = (ts_size2){SIDE, SIDE};
    t.frames = frames;
    t.fps = 8;
    return t;
}

static inline ts_timeline_track scene_entry(const char *span, int source, const char *file) {
    ts_timeline_track e = ts_timeline_track_default();
    e.line = 7;
    e.span = span;
    e.source = source;
    e.file = file;
    return e;
}

static inline ts_timeline_prompt scene_prompt(const char *span, const char *text, double weight, double guidance) {
    ts_timeline_prompt p = ts_timeline_prompt_default();
    p.span = span;
    p.text = text;
    p.weight = weight;
    p.guidance = guidance;
    return p;
}

static inline int scene_compile(ts_compiled *out, ts_timeline *timeline, ts_timeline_track *track, int64_t count) {
    timeline->track.item = track;
    timeline->track.count = count;
    const ts_timeline_model model = ts_timeline_model_of(scene_model);
    TS_TRY(ts_timeline_resolve(timeline, &model));
    return ts_timeline_compile(out, timeline, scene_model, 20, 1);
}

#endif
