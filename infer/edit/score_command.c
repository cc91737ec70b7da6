// SPDX-License-Identifier: Apache-2.0
// `tessera score`: everything measured becomes one JSON object, which is printed whole, as a table, or by chosen keys.
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/json.h"
#include "core/base/status.h"
#include "core/config/command.h"
#include "core/media/video.h"
#include "data/shapes_reader.h"
#include "infer/edit/score.h"

typedef struct options {
    const char *video, *frames, *against, *prompt;
    int64_t from, window, overlap, group, repeat;
    bool loop, shapes, json;
    ts_string_list print;
} options;

#define FIELD(name) offsetof(options, name)
// clang-format off
static const ts_option table[] = {
    {"video", TS_OPTION_STRING, FIELD(video), NULL, "the file that is measured", 0, 0, NULL, true},
    {"frames", TS_OPTION_STRING, FIELD(frames), NULL, "A..B, measure these alone: pixel frames from 0, B not included; absent: all", 0, 0, NULL, false},
    {"against", TS_OPTION_STRING, FIELD(against), NULL, "a video that the frames should equal: their PSNR", 0, 0, NULL, false},
    {"from", TS_OPTION_INT, FIELD(from), "-1", "frame of that video which the first of ours should equal; -1: the same", -1, 1e9, NULL, false},
    {"loop", TS_OPTION_BOOL, FIELD(loop), "false", "also the step from the last frame to the first", 0, 0, NULL, false},
    {"repeat", TS_OPTION_INT, FIELD(repeat), "1", "measure it as if shown so many times in a row", 1, 1000, NULL, false},
    {"window", TS_OPTION_INT, FIELD(window), "0", "pixel frames of the windows it was made in: the steps wherever one began or ended in any step of denoising, which of long videos and loops is nearly every step between groups; 0: none", 0, 1e6, NULL, false},
    {"overlap", TS_OPTION_INT, FIELD(overlap), "-1", "pixel frames that neighbouring windows shared; -1: half of a window", -1, 1e6, NULL, false},
    {"group", TS_OPTION_INT, FIELD(group), "4", "pixel frames of a latent frame: steps from one group to the next are larger than those within", 1, 1e6, NULL, false},
    {"shapes", TS_OPTION_BOOL, FIELD(shapes), "false", "read it as a video of the shapes world: colour, shape, way, speed, frame by frame", 0, 0, NULL, false},
    {"prompt", TS_OPTION_STRING, FIELD(prompt), NULL, "a prompt of the shapes world, and whether it is what is seen", 0, 0, NULL, false},
    {"json", TS_OPTION_BOOL, FIELD(json), "false", "print one JSON object", 0, 0, NULL, false},
    {"print", TS_OPTION_LIST, FIELD(print), NULL, "print the values of these keys alone, in one line: steps.median,shapes.colour", 0, 0, NULL, false},
    {0},
};
// clang-format on
#undef FIELD

// ---- pixels

typedef struct clip {
    uint8_t *rgb;  // [frames, height, width, 3]
    int64_t first, frames, height, width;
    int64_t whole;  // frames of the file
    double fps;
} clip;

static const int64_t MAX_BYTES = (int64_t)4 << 30;

// Appends frames [clip->first, end) of an open file; fewer when it ends before.
static int read_frames(ts_video_reader *reader, const char *path, int64_t end, clip *c) {
    const int64_t bytes = c->height * c->width * 3;
    for (int64_t i = 0, capacity = 0; i < end; i++) {
        const int64_t slot = i < c->first ? 0 : c->frames;  // frames before the first are read over
        if (slot >= capacity) {
            capacity = capacity ? 2 * capacity : 16;
            uint8_t *grown = (slot + 1) * bytes > MAX_BYTES ? NULL : realloc(c->rgb, (size_t)(capacity * bytes));
            if (!grown) {
                return TS_FAIL(TS_ERESOURCE,
                               "%s: %lld frames of %lldx%lld do not fit in memory; measure some: --frames", path,
                               (long long)slot, (long long)c->width, (long long)c->height);
            }
            c->rgb = grown;
        }
        double time;
        const int status = ts_video_reader_next(reader, c->rgb + slot * bytes, &time);
        if (status) {
            return status == TS_EOF ? TS_OK : status;
        }
        c->frames += i >= c->first;
    }
    return TS_OK;
}

// Frames [first, end) of a file, resized when a size is given. `out` is to be freed whatever the status.
static int read_clip(const char *path, int64_t first, int64_t end, int64_t width, int64_t height, clip *out) {
    const ts_video_limits limits = ts_video_limits_default();
    ts_video_reader *reader = NULL;
    TS_TRY(ts_video_reader_open(&reader, path, &limits));
    const ts_video_info info = ts_video_reader_info(reader);
    out->first = first;
    out->width = width ? width : info.width;
    out->height = height ? height : info.height;
    out->fps = info.fps;
    int status = width ? ts_video_reader_set_output(reader, width, height) : TS_OK;
    status = status ? status : read_frames(reader, path, end, out);
    ts_video_reader_close(&reader);
    out->whole = info.frames > first + out->frames ? info.frames : first + out->frames;
    if (!status && out->frames == 0) {
        status = TS_FAIL(TS_EINPUT, "%s: has no frame %lld", path, (long long)first);
    }
    return status;
}

static int repeat_clip(clip *c, int64_t times) {
    const int64_t frames = c->frames, bytes = frames * c->height * c->width * 3;
    uint8_t *grown = times * bytes > MAX_BYTES ? NULL : realloc(c->rgb, (size_t)(times * bytes));
    if (!grown) {
        return TS_FAIL(TS_ERESOURCE, "--repeat %lld: %lld frames do not fit in memory", (long long)times,
                       (long long)(times * frames));
    }
    c->rgb = grown;
    for (; c->frames < times * frames; c->frames += frames) {
        memcpy(c->rgb + c->frames * c->height * c->width * 3, c->rgb, (size_t)bytes);
    }
    return TS_OK;
}

// "3..17", "3..", "..17"; nothing is changed where nothing is said.
static int parse_span(const char *text, int64_t *first, int64_t *end) {
    if (!text) {
        return TS_OK;
    }
    char *rest = NULL;
    const char *dots = strstr(text, "..");
    bool good = dots && strspn(text, "0123456789.") == strlen(text);
    if (good && dots > text) {
        *first = strtoll(text, &rest, 10);
        good = rest == dots;
    }
    if (good && dots[2]) {
        *end = strtoll(dots + 2, &rest, 10);
        good = *rest == '\0';
    }
    return good && *first < *end ? TS_OK
                                 : TS_FAIL(TS_EUSAGE, "--frames %s: write A..B, frames from 0, A less than B", text);
}

// ---- measuring

// JSON has no NaN and no infinity: null.
static json_t *number(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

// Steps between the frames of a clip, and the medians that others are held against.
typedef struct profile {
    double *step;  // [count]
    int64_t count;
    double median, between_groups;
} profile;

static int make_profile(const options *o, const clip *c, profile *out) {
    *out = (profile){.step = ts_calloc((size_t)c->frames, sizeof *out->step), .count = c->frames - 1};
    if (!out->step) {
        return TS_ERESOURCE;
    }
    ts_score_steps(c->rgb, c->frames, c->height, c->width, out->step);
    out->median = ts_score_median(out->step, out->count);
    // The first group ends after frame 0 or, in a loop, a whole one; here those of our frames are counted.
    const int64_t first = ((o->loop ? o->group - 1 : 0) - c->first) % o->group;
    out->between_groups = ts_score_group_step(out->step, out->count, first < 0 ? first + o->group : first, o->group);
    return TS_OK;
}

static json_t *steps_object(const profile *p, const clip *c) {
    json_t *all = json_array();
    int64_t largest = 0;
    for (int64_t i = 0; i < p->count; i++) {
        json_array_append_new(all, number(p->step[i]));
        largest = p->step[i] > p->step[largest] ? i : largest;
    }
    return json_pack("{s:o, s:o, s:I, s:o, s:o}", "median", number(p->median), "largest",
                     number(p->count ? p->step[largest] : NAN), "largest_after", (json_int_t)(c->first + largest),
                     "between_groups", number(p->between_groups), "profile", all);
}

static json_t *seam_object(const profile *p, const clip *c) {
    const double ratio = ts_score_seam(c->rgb, c->frames, c->height, c->width);
    return json_pack("{s:o, s:o}", "ratio", number(ratio), "ratio_of_groups",
                     number(ratio * p->median / p->between_groups));
}

// Mean of each channel over frames [first, end), and the deviation of all from their mean.
static void measure_light(const clip *c, int64_t first, int64_t end, double mean[3], double *deviation) {
    double sum[3] = {0}, squares = 0.0;
    const int64_t pixels = c->height * c->width, n = (end - first) * pixels;
    for (int64_t i = first * pixels; i < end * pixels; i++) {
        for (int k = 0; k < 3; k++) {
            const double value = c->rgb[3 * i + k];
            sum[k] += value;
            squares += value * value;
        }
    }
    const double all = (sum[0] + sum[1] + sum[2]) / (double)(3 * n);
    for (int k = 0; k < 3; k++) {
        mean[k] = sum[k] / (double)n;
    }
    *deviation = sqrt(fmax(squares / (double)(3 * n) - all * all, 0.0));
}

// How the last quarter differs from the first in light: `light` is the largest change of a channel's mean, in units of
// 1/255, `contrast` the ratio of deviations.
static json_t *drift_object(const clip *c) {
    const int64_t quarter = c->frames < 4 ? 1 : c->frames / 4;
    double early[3], late[3], a, b, light = 0.0;
    measure_light(c, 0, quarter, early, &a);
    measure_light(c, c->frames - quarter, c->frames, late, &b);
    for (int k = 0; k < 3; k++) {
        light = fmax(light, fabs(late[k] - early[k]));
    }
    return json_pack("{s:o, s:o}", "light", number(light), "contrast", number(b / a));
}

static int measure_against(const options *o, const clip *c, json_t *out) {
    const int64_t from = o->from < 0 ? c->first : o->from;
    clip other = {0};
    int status = read_clip(o->against, from, from + c->frames, c->width, c->height, &other);
    if (!status && other.frames < c->frames) {
        status =
            TS_FAIL(TS_EINPUT, "%s: ends at frame %lld, and there are %lld to compare from frame %lld; see --frames",
                    o->against, (long long)(from + other.frames), (long long)c->frames, (long long)from);
    }
    if (!status) {
        const double psnr = ts_score_psnr(c->rgb, other.rgb, 0, c->frames, c->height, c->width);
        json_object_set_new(
            out, "against",
            json_pack("{s:s, s:b, s:o}", "file", o->against, "equal", isinf(psnr), "psnr", number(psnr)));
    }
    free(other.rgb);
    return status;
}

// After which frames of the clip windows had a border.
static int find_borders(const options *o, const clip *c, int64_t **border, int64_t *count) {
    const int64_t latent_frames =
        o->loop ? (c->whole + o->group - 1) / o->group : 1 + (c->whole - 2 + o->group) / o->group;
    ts_canvas canvas = {0};
    TS_TRY(ts_canvas_open(&canvas, latent_frames, 1, 1, 1, 1, 1, "", 1));
    canvas.loop = o->loop;
    canvas.window = 1 + (o->window - 1) / o->group;
    canvas.overlap = o->overlap < 0 ? (canvas.window - 1) / 2 : o->overlap / o->group;
    canvas.overlap = canvas.overlap > 1 ? canvas.overlap : 1;
    const int status =
        canvas.overlap + 1 < canvas.window
            ? ts_score_find_borders(&canvas, o->group, border, count)
            : TS_FAIL(TS_EUSAGE, "--window %lld: a window must be longer than what it shares, and its head",
                      (long long)o->window);
    ts_canvas_close(&canvas);
    for (int64_t i = 0; i < *count && !status; i++) {
        (*border)[i] -= c->first;
    }
    return status;
}

static int measure_borders(const options *o, const clip *c, const profile *p, json_t *out) {
    int64_t *border = NULL, count = 0;
    const int status = find_borders(o, c, &border, &count);
    if (!status) {
        const ts_score_border b = ts_score_borders(p->step, p->count, border, count);
        json_object_set_new(out, "borders",
                            json_pack("{s:I, s:o, s:o, s:o}", "count", (json_int_t)b.count, "mean", number(b.mean),
                                      "largest", number(b.largest), "mean_of_groups",
                                      number(b.mean * p->median / p->between_groups)));
    }
    free(border);
    return status;
}

// ---- the shapes world

static const char *colour_of(const ts_shapes_frame *f) {
    return f->found ? ts_shapes_colours[f->colour].name : "none";
}

// Frame by frame, and over the length: the share of frames whose colour is that of the first, and the speed and the
// area of the last quarter over those of the first.
static json_t *shapes_over_time(const ts_shapes_frame *frame, int64_t frames) {
    json_t *colours = json_array(), *x = json_array(), *y = json_array();
    const int64_t quarter = frames < 8 ? frames / 2 : frames / 4;
    double kept = 0.0, area[2] = {0}, v[2][2];
    for (int64_t i = 0; i < frames; i++) {
        json_array_append_new(colours, json_string(colour_of(&frame[i])));
        json_array_append_new(x, frame[i].found ? json_real(frame[i].x) : json_null());
        json_array_append_new(y, frame[i].found ? json_real(frame[i].y) : json_null());
        kept += frame[i].found && frame[0].found && frame[i].colour == frame[0].colour;
        area[0] += i < quarter ? frame[i].area : 0.0;
        area[1] += i >= frames - quarter ? frame[i].area : 0.0;
    }
    ts_shapes_velocity(frame, 0, quarter, &v[0][0], &v[0][1]);
    ts_shapes_velocity(frame, frames - quarter, frames, &v[1][0], &v[1][1]);
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "colours", colours, "x", x, "y", y, "colour_kept",
                     number(kept / (double)frames), "speed_kept",
                     number(hypot(v[1][0], v[1][1]) / hypot(v[0][0], v[0][1])), "area_kept", number(area[1] / area[0]));
}

static json_t *shapes_object(const ts_shapes_reading *r, const ts_shapes_frame *frame, int64_t frames) {
    json_t *out = shapes_over_time(frame, frames);
    json_t *seen = json_pack("{s:b, s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:o}", "found", r->found, "colour",
                             r->found ? ts_shapes_colours[r->colour].name : "none", "shape",
                             r->found ? ts_shapes_shapes[r->shape] : "none", "direction",
                             r->found ? ts_shapes_directions[r->direction].name : "none", "background",
                             ts_shapes_backgrounds[r->background].name, "vx", number(r->vx), "vy", number(r->vy),
                             "speed", number(r->speed), "fit", number(r->fit[r->shape]));
    json_object_update(out, seen);
    json_decref(seen);
    return out;
}

// `frames`: the share of frames in which colour and background are the prompt's.
static json_t *prompt_object(const char *prompt, const ts_shapes_factors *said, const ts_shapes_reading *r,
                             const ts_shapes_frame *frame, int64_t frames) {
    double right = 0.0;
    for (int64_t i = 0; i < frames; i++) {
        right += frame[i].found && frame[i].colour == said->colour && frame[i].background == said->background;
    }
    const bool colour = r->found && r->colour == said->colour, shape = r->found && r->shape == said->shape;
    const bool direction = r->found && r->direction == said->direction, background = r->background == said->background;
    return json_pack("{s:s, s:b, s:b, s:b, s:b, s:b, s:o}", "text", prompt, "colour", colour, "shape", shape,
                     "direction", direction, "background", background, "all",
                     colour && shape && direction && background, "frames", number(right / (double)frames));
}

static int measure_shapes(const options *o, const clip *c, json_t *out) {
    ts_shapes_factors said = {0};
    if (o->prompt && !ts_shapes_parse_caption(o->prompt, &said)) {
        return TS_FAIL(TS_EINPUT,
                       "--prompt \"%s\" is not of the shapes world: \"a red circle moves left on a black "
                       "background\"",
                       o->prompt);
    }
    ts_shapes_frame *frame = ts_calloc((size_t)c->frames, sizeof *frame);
    ts_shapes_reading reading;
    int status = frame ? ts_shapes_read_frames(c->rgb, c->frames, c->height, c->width, frame) : TS_ERESOURCE;
    status = status ? status : ts_shapes_read(c->rgb, c->frames, c->height, c->width, &reading);
    if (!status) {
        json_object_set_new(out, "shapes", shapes_object(&reading, frame, c->frames));
        if (o->prompt) {
            json_object_set_new(out, "prompt", prompt_object(o->prompt, &said, &reading, frame, c->frames));
        }
    }
    free(frame);
    return status;
}

static int measure(const options *o, const clip *c, json_t *out) {
    profile p;
    TS_TRY(make_profile(o, c, &p));
    json_object_update_new(out, json_pack("{s:s, s:I, s:I, s:I, s:I, s:o, s:o, s:o}", "file", o->video, "first",
                                          (json_int_t)c->first, "frames", (json_int_t)c->frames, "width",
                                          (json_int_t)c->width, "height", (json_int_t)c->height, "fps", number(c->fps),
                                          "steps", steps_object(&p, c), "drift", drift_object(c)));
    if (o->loop) {
        json_object_set_new(out, "seam", seam_object(&p, c));
    }
    int status = o->against ? measure_against(o, c, out) : TS_OK;
    status = status || !o->window ? status : measure_borders(o, c, &p, out);
    status = status || !(o->shapes || o->prompt) ? status : measure_shapes(o, c, out);
    free(p.step);
    return status;
}

// ---- printing

static void print_value(const json_t *value) {
    if (json_is_string(value)) {
        fputs(json_string_value(value), stdout);
    } else if (json_is_boolean(value)) {
        fputs(json_is_true(value) ? "yes" : "no", stdout);
    } else if (json_is_integer(value)) {
        printf("%lld", (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        printf("%.4g", json_real_value(value));
    } else if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            fputs(i ? "," : "", stdout);
            print_value(json_array_get(value, i));
        }
    } else {
        fputs("-", stdout);
    }
}

static void print_table(const json_t *object, const char *group) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        if (json_is_object(value)) {
            print_table(value, key);
            continue;
        }
        char name[64];
        snprintf(name, sizeof name, "%s%s%s", group, *group ? "." : "", key);
        printf("%-22s ", name);
        print_value(value);
        printf("\n");
    }
}

static const json_t *find_key(const json_t *object, const char *key) {
    const char *dot = strchr(key, '.');
    char group[64];
    if (!dot) {
        return json_object_get(object, key);
    }
    snprintf(group, sizeof group, "%.*s", (int)(dot - key), key);
    return json_object_get(json_object_get(object, group), dot + 1);
}

static int print_keys(const json_t *object, const ts_string_list *keys) {
    for (int64_t i = 0; i < keys->count; i++) {
        if (!find_key(object, keys->items[i])) {
            return TS_FAIL(TS_EUSAGE, "--print %s: nothing of this name was measured; see the table without --print",
                           keys->items[i]);
        }
    }
    for (int64_t i = 0; i < keys->count; i++) {
        fputs(i ? "\t" : "", stdout);
        print_value(find_key(object, keys->items[i]));
    }
    printf("\n");
    return TS_OK;
}

static int print(const options *o, const json_t *object) {
    if (o->json) {
        json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
        printf("\n");
        return TS_OK;
    }
    if (o->print.count) {
        return print_keys(object, &o->print);
    }
    print_table(object, "");
    return TS_OK;
}

// ---- the command

static int score(const options *o) {
    clip c = {0};
    int64_t first = 0, end = INT64_MAX;
    json_t *object = json_object();
    int status = object ? parse_span(o->frames, &first, &end) : TS_FAIL(TS_ERESOURCE, "out of memory");
    if (!status && o->window && o->repeat > 1) {
        status = TS_FAIL(TS_EUSAGE, "--window and --repeat: windows are those of one round; leave one out");
    }
    status = status ? status : read_clip(o->video, first, end, 0, 0, &c);
    status = status || o->repeat == 1 ? status : repeat_clip(&c, o->repeat);
    status = status ? status : measure(o, &c, object);
    status = status ? status : print(o, object);
    json_decref(object);
    free(c.rgb);
    return status;
}

int ts_command_score(ts_comm *world, int argc, char **argv) {
    static const char *const arguments[] = {"video", NULL};
    static const ts_command command = {
        .usage = "tessera score FILE.mp4 [options]\n"
                 "Measures a finished video: steps between frames, drift, seam, likeness to a source, what it shows.",
        .table = table,
        .arguments = arguments,
    };
    ts_arena *arena = NULL;
    options o = {0};
    bool help = false;
    TS_TRY(ts_arena_open(&arena, "options", 1 << 16, false));
    int status = ts_agree(world, ts_command_read(&command, &o, arena, argc, argv, &help));
    if (!status && !help) {
        status = ts_agree(world, ts_comm_rank(world) == 0 ? score(&o) : TS_OK);
    }
    ts_arena_close(&arena);
    return status;
}
