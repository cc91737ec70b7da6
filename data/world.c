// SPDX-License-Identifier: Apache-2.0
// The command: options, the folder, clips shared out over the ranks, metadata.jsonl.
#include "data/world.h"

#include <ctype.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/status.h"
#include "core/config/command.h"
#include "core/media/video.h"

enum { KIND_SHAPES, MAX_CLIPS = 9999999, NAME_DIGITS = 7, MAX_METADATA_BYTES = 1 << 30 };
static const int64_t MAX_CLIP_BYTES = (int64_t)1 << 32;  // of one clip's pixels

typedef struct world_params {
    int kind, motion;
    int64_t clips, frames, fps, seed;
    ts_size2 size;
    const char *out, *hold_out;
} world_params;

static const char *const kinds[] = {"shapes", NULL};
static const char *const motions[] = {"cross", "wrap", "mixed", NULL};  // of ts_shapes_motion
static const ts_option options[] = {
    {"kind", TS_OPTION_CHOICE, offsetof(world_params, kind), "shapes", "what the clips show", 0, 0, kinds, false},
    {"clips", TS_OPTION_INT, offsetof(world_params, clips), "1000", "number of clips", 1, MAX_CLIPS, NULL, false},
    {"size", TS_OPTION_SIZE, offsetof(world_params, size), "64x64", "frame size in pixels, even", 16, 4096, NULL,
     false},
    {"frames", TS_OPTION_INT, offsetof(world_params, frames), "17", "frames of each clip", 2, 100000, NULL, false},
    {"fps", TS_OPTION_INT, offsetof(world_params, fps), "8", "frames a second", 1, 240, NULL, false},
    {"seed", TS_OPTION_INT, offsetof(world_params, seed), "1", "seed of every factor", 0, 9e15, NULL, false},
    {"motion", TS_OPTION_CHOICE, offsetof(world_params, motion), "cross",
     "cross: the shape stays inside the frame and crosses at least half of it; wrap: it begins anywhere, what leaves "
     "on "
     "one side comes in on the other, and a frame's step is 1/64 to 4/64 of the side; mixed: three of four wrap",
     0, 0, motions, false},
    {"out", TS_OPTION_STRING, offsetof(world_params, out), NULL, "folder to write: new, empty or an earlier world", 0,
     0, NULL, true},
    {"hold-out", TS_OPTION_STRING, offsetof(world_params, hold_out), NULL,
     "file of combinations that must not occur: COLOUR SHAPE DIRECTION a line, '*' for any", 0, 0, NULL, false},
    {0}};

static int read_params(world_params *p, ts_arena *arena, int argc, char **argv, bool *help) {
    static const ts_command command = {
        .usage = "tessera world --clips N --size WxH --frames F --out DIR [options]\n"
                 "Writes a captioned corpus of H.264 files and metadata.jsonl.",
        .table = options,
    };
    TS_TRY(ts_command_read(&command, p, arena, argc, argv, help));
    if (*help) {
        return TS_OK;
    }
    if (p->size.width % 2 || p->size.height % 2) {
        return TS_FAIL(TS_EUSAGE, "--size %" PRId64 "x%" PRId64 ": H.264 wants even sides", p->size.width,
                       p->size.height);
    }
    if (p->size.width * p->size.height * 3 > MAX_CLIP_BYTES / p->frames) {
        return TS_FAIL(TS_EUSAGE, "--size and --frames: a clip's pixels exceed 4 GiB; make it smaller or shorter");
    }
    return TS_OK;
}

// ---- the folder
// While the clips are written, metadata.jsonl.tmp lies in the folder; it becomes metadata.jsonl when all are there. So
// a folder with either is ours to write again, and one with metadata.jsonl is whole.

// metadata.jsonl, 0000001.mp4 and the same with .tmp.
static bool is_our_name(const char *name) {
    if (strcmp(name, "metadata.jsonl") == 0 || strncmp(name, "metadata.jsonl.tmp", 18) == 0) {
        return true;
    }
    for (int i = 0; i < NAME_DIGITS; i++) {
        if (!isdigit((unsigned char)name[i])) {
            return false;
        }
    }
    return strcmp(name + NAME_DIGITS, ".mp4") == 0 || strcmp(name + NAME_DIGITS, ".mp4.tmp") == 0;
}

// Whether the first line of the file has the factors of the shapes world.
static bool is_our_metadata(const char *folder, const char *name) {
    char path[PATH_MAX], *text;
    size_t bytes;
    if (ts_path_join(path, sizeof path, folder, name) || ts_file_read(path, MAX_METADATA_BYTES, &text, &bytes)) {
        return false;
    }
    json_t *line = NULL;
    bool ours = false;
    if (!ts_json_parse(text, strcspn(text, "\n"), path, &line)) {
        ours = json_object_get(line, "file_name") && json_object_get(line, "shape") &&
               json_object_get(line, "direction") && json_object_get(line, "background");
    }
    json_decref(line);
    free(text);
    return ours;
}

static int empty_folder(const char *folder, char **names, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (!is_our_name(names[i])) {
            return TS_FAIL(TS_EUSAGE, "%s: holds %s, which no shapes world has; give a new or empty folder", folder,
                           names[i]);
        }
    }
    if (count > 0 && !is_our_metadata(folder, "metadata.jsonl") && !is_our_metadata(folder, "metadata.jsonl.tmp")) {
        return TS_FAIL(TS_EUSAGE, "%s: holds files but not the metadata of a shapes world; give a new or empty folder",
                       folder);
    }
    for (int64_t i = 0; i < count; i++) {
        char path[PATH_MAX];
        TS_TRY(ts_path_join(path, sizeof path, folder, names[i]));
        if (strcmp(names[i], "metadata.jsonl.tmp") != 0 && unlink(path)) {  // the mark goes last: it is written over
            return TS_FAIL(TS_ERESOURCE, "%s: cannot be removed; check the folder's permissions", path);
        }
    }
    return TS_OK;
}

static int write_metadata(const world_params *p, const ts_shapes_world *shapes, const char *path) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out) {
        return TS_FAIL(TS_ERESOURCE, "%s: out of memory", path);
    }
    bool failed = false;
    for (int64_t i = 0; i < p->clips && !failed; i++) {
        const ts_shapes_factors f = ts_shapes_draw(shapes, i);
        char name[32], caption[128];
        snprintf(name, sizeof name, "%07" PRId64 ".mp4", i + 1);
        json_t *line = json_pack(
            "{ss ss ss ss ss ss sf sf sf sf}", "file_name", name, "text",
            ts_shapes_caption(&f, caption, sizeof caption), "colour", ts_shapes_colours[f.colour].name, "shape",
            ts_shapes_shapes[f.shape], "background", ts_shapes_backgrounds[f.background].name, "direction",
            ts_shapes_directions[f.direction].name, "radius", f.radius, "x", f.x, "y", f.y, "speed", f.speed);
        failed = !line || json_dumpf(line, out, JSON_REAL_PRECISION(8)) || fputc('\n', out) == EOF;
        json_decref(line);
    }
    failed = fclose(out) || failed;
    const int status =
        failed ? TS_FAIL(TS_ERESOURCE, "%s: out of memory", path) : ts_file_write_atomic(path, text, bytes);
    free(text);
    return status;
}

// Rank 0: the folder, emptied of an earlier world, marked as ours.
static int prepare_folder(const world_params *p, const ts_shapes_world *shapes, const char *mark) {
    if (ts_path_exists(p->out) && !ts_path_is_folder(p->out)) {
        return TS_FAIL(TS_EUSAGE, "%s: is a file; give a folder", p->out);
    }
    TS_TRY(ts_folder_make(p->out));
    char **names;
    int64_t count;
    TS_TRY(ts_folder_list(p->out, &names, &count));
    const int status = empty_folder(p->out, names, count);
    ts_folder_list_free(names, count);
    TS_TRY(status);
    return write_metadata(p, shapes, mark);
}

// ---- the clips

static int write_clips(const world_params *p, const ts_shapes_world *shapes, int rank, int size) {
    const int64_t width = p->size.width, height = p->size.height;
    uint8_t *rgb = ts_aligned_alloc((size_t)(p->frames * height * width * 3));
    if (!rgb) {
        return TS_ERESOURCE;
    }
    ts_progress progress;
    ts_progress_begin(&progress, "world", "clips", p->clips);
    int status = TS_OK;
    for (int64_t i = rank; i < p->clips && !status; i += size) {
        const ts_shapes_factors f = ts_shapes_draw(shapes, i);
        ts_world_shapes_render(&f, width, height, p->frames, rgb);
        char name[32], path[PATH_MAX], caption[128];
        snprintf(name, sizeof name, "%07" PRId64 ".mp4", i + 1);
        status = ts_path_join(path, sizeof path, p->out, name);
        const ts_video_writer_params video = {.width = width,
                                              .height = height,
                                              .fps_numerator = (int)p->fps,
                                              .fps_denominator = 1,
                                              .title = ts_shapes_caption(&f, caption, sizeof caption)};
        status = status ? status : ts_video_write(path, rgb, p->frames, &video);
        const int64_t done = i - rank + size;  // the others are about as far
        ts_progress_update(&progress, done < p->clips ? done : p->clips, NULL);
    }
    ts_progress_end(&progress, NULL);
    free(rgb);
    return status;
}

static int make_world(ts_comm *world, const world_params *p) {
    ts_shapes_world shapes = {.seed = (uint64_t)p->seed,
                              .motion = (ts_shapes_motion)p->motion,
                              .width = p->size.width,
                              .height = p->size.height,
                              .frames = p->frames};
    char mark[PATH_MAX], metadata[PATH_MAX];
    const int rank = ts_comm_rank(world), size = ts_comm_size(world);
    int status = p->hold_out ? ts_shapes_hold_out_read(&shapes.hold_out, p->hold_out) : TS_OK;
    status = status ? status : ts_path_join(mark, sizeof mark, p->out, "metadata.jsonl.tmp");
    status = status ? status : ts_path_join(metadata, sizeof metadata, p->out, "metadata.jsonl");
    if (!status && rank == 0) {
        status = prepare_folder(p, &shapes, mark);
    }
    TS_TRY(ts_agree(world, status));
    TS_TRY(ts_agree(world, write_clips(p, &shapes, rank, size)));
    TS_TRY(ts_agree(world, rank == 0 ? ts_file_rename(mark, metadata) : TS_OK));
    TS_INFO("%s: %" PRId64 " clips of %" PRId64 "x%" PRId64 ", %" PRId64 " frames at %" PRId64 " a second; %" PRId64
            " of %d combinations",
            p->out, p->clips, p->size.width, p->size.height, p->frames, p->fps, ts_shapes_allowed(&shapes.hold_out),
            TS_SHAPES_COLOURS * TS_SHAPES_SHAPES * TS_SHAPES_DIRECTIONS);
    return TS_OK;
}

int ts_command_world(ts_comm *world, int argc, char **argv) {
    ts_arena *arena;
    TS_TRY(ts_arena_open(&arena, "world", 1 << 16, false));
    world_params params = {0};
    bool help = false;
    int status = ts_agree(world, read_params(&params, arena, argc, argv, &help));
    if (!status && !help) {
        status = make_world(world, &params);
    }
    ts_arena_close(&arena);
    return status;
}
