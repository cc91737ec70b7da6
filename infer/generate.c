// SPDX-License-Identifier: Apache-2.0
#include "infer/generate.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "core/config/command.h"
#include "core/media/image.h"
#include "infer/decode.h"
#include "infer/output.h"
#include "infer/prompts.h"
#include "infer/session.h"

typedef struct options {
    ts_session_options session;
    const char *prompt, *prompts, *out, *sheet;
    int64_t frames;
    double fps;
    ts_size2 size;
} options;

#define FIELD(name) offsetof(options, name)
// clang-format off
static const ts_option table[] = {
    TS_MODEL_OPTION(options, session),
    {"prompt", TS_OPTION_STRING, FIELD(prompt), NULL, "what the video shows", 0, 0, NULL, false},
    {"prompts", TS_OPTION_STRING, FIELD(prompts), NULL, "text file with one prompt a line instead of --prompt", 0, 0, NULL, false},
    {"out", TS_OPTION_STRING, FIELD(out), NULL, "FILE.mp4 for one prompt, else a folder", 0, 0, NULL, true},
    {"sheet", TS_OPTION_STRING, FIELD(sheet), NULL, "also write a contact sheet, FILE.png", 0, 0, NULL, false},
    {"size", TS_OPTION_SIZE, FIELD(size), NULL, "pixels WxH, multiples of 16; absent: the model's default", 16, 8192, NULL, false},
    {"frames", TS_OPTION_INT, FIELD(frames), "0", "pixel frames, 1 + 4k; 0: the model's default", 0, 4097, NULL, false},
    {"fps", TS_OPTION_REAL, FIELD(fps), "0", "frames a second of the file; 0: the model's default", 0, 240, NULL, false},
    TS_SESSION_OPTIONS(options, session),
    {0},
};
// clang-format on
#undef FIELD

// ---- what is asked for

static int collect_prompts(ts_prompts *list, const options *o) {
    if (!o->prompt == !o->prompts) {
        return TS_FAIL(TS_EUSAGE, "give --prompt TEXT or --prompts FILE%s", o->prompt ? ", not both" : "");
    }
    if (o->session.negative && *o->session.negative) {
        TS_TRY(ts_prompt_check(o->session.negative, "--negative"));
    }
    return o->prompt ? ts_prompts_add(list, o->prompt, "--prompt") : ts_prompts_read(list, o->prompts);
}

// ---- size

// Latent tokens a call may ask for: beyond this a single machine cannot hold the activations.
enum { MAX_TOKENS = 1 << 20 };

// Fills what the command line left to the model, and checks what it gave.
static int resolve(options *o, const ts_model *model) {
    const ts_model_defaults *d = &model->defaults;
    const ts_codec_info codec = ts_codec_get_info(model->codec);
    const ts_dit_config *dit = ts_dit_get_config(model->dit);
    o->fps = o->fps > 0 ? o->fps : d->fps;
    o->frames = o->frames ? o->frames : d->frames;
    if (!o->size.width) {
        o->size = (ts_size2){d->width, d->height};
    }
    const int64_t step_w = codec.space_factor * dit->patch[2], step_h = codec.space_factor * dit->patch[1];
    if (o->size.width % step_w || o->size.height % step_h) {
        return TS_FAIL(TS_EUSAGE,
                       "--size %lldx%lld: this model wants a width in steps of %lld and a height in steps of %lld",
                       (long long)o->size.width, (long long)o->size.height, (long long)step_w, (long long)step_h);
    }
    if ((o->frames - 1) % codec.time_factor) {
        const int64_t below = (o->frames - 1) / codec.time_factor * codec.time_factor + 1;
        return TS_FAIL(TS_EUSAGE, "--frames %lld: the codec wants 1 + %lldk frames; give %lld or %lld",
                       (long long)o->frames, (long long)codec.time_factor, (long long)below,
                       (long long)(below + codec.time_factor));
    }
    const int64_t t = 1 + (o->frames - 1) / codec.time_factor;
    const int64_t h = o->size.height / codec.space_factor, w = o->size.width / codec.space_factor;
    const bool too_long = t > dit->rope_max_positions * dit->patch[0] || h > dit->rope_max_positions * dit->patch[1] ||
                          w > dit->rope_max_positions * dit->patch[2];
    if (t * h * w > MAX_TOKENS || too_long) {
        return TS_FAIL(
            TS_EUSAGE,
            "--size %lldx%lld --frames %lld: %lld latent positions, at most %d and %lld tokens along an axis; "
            "make the video smaller or shorter",
            (long long)o->size.width, (long long)o->size.height, (long long)o->frames, (long long)(t * h * w),
            MAX_TOKENS, (long long)dit->rope_max_positions);
    }
    return TS_OK;
}

// ---- output

typedef struct job {
    const options *o;
    const ts_model *model;
    const ts_prompts *prompts;
    int64_t t, h, w;       // latent
    const float *latents;  // [count, t, h, w, C]
} job;

static int video_path(const job *j, int64_t i, char *path, size_t path_bytes) {
    if (ts_ends_with(j->o->out, ".mp4")) {
        snprintf(path, path_bytes, "%s", j->o->out);
        return TS_OK;
    }
    char name[128];
    ts_output_name(name, sizeof name, i, j->prompts->item[i]);
    return ts_path_join(path, path_bytes, j->o->out, name);
}

static int write_video(const job *j, int64_t i, const uint8_t *pixels) {
    char path[4096];
    TS_TRY(video_path(j, i, path, sizeof path));
    return ts_write_video(path, pixels, j->o->frames, j->o->size.height, j->o->size.width, j->o->fps,
                          j->prompts->item[i]);
}

// Writes the videos that the ranks of `group` made together: as many at a time as there are ranks, each decoded by all
// of them and compressed by one. Collective over the group.
static int write_videos(const job *j, ts_part videos, ts_comm *group) {
    const int64_t numbers = j->t * j->h * j->w * ts_codec_get_info(j->model->codec).channels;
    const int64_t end = videos.first + videos.count;
    const int rank = ts_comm_rank(group), size = ts_comm_size(group);
    for (int64_t first = videos.first; first < end; first += size) {
        uint8_t *own = NULL;
        int status = TS_OK;
        for (int root = 0; root < size && first + root < end && !status; root++) {
            uint8_t *pixels = NULL;
            status = ts_decode(j->model->codec, j->latents + (first + root) * numbers, 1, j->t, j->h, j->w, group, root,
                               &pixels);
            own = pixels ? pixels : own;
        }
        status = status || !own ? status : write_video(j, first + rank, own);
        free(own);
        TS_TRY(ts_agree(group, status));
    }
    return TS_OK;
}

// A generated folder is itself a corpus.
static int write_metadata(const job *j) {
    if (ts_ends_with(j->o->out, ".mp4")) {
        return TS_OK;
    }
    char name[128];
    json_t *lines = json_array();
    for (int64_t i = 0; i < j->prompts->count; i++) {
        ts_output_name(name, sizeof name, i, j->prompts->item[i]);
        json_array_append_new(lines, json_pack("{s:s, s:s, s:I}", "file_name", name, "text", j->prompts->item[i],
                                               "seed", (json_int_t)j->o->session.seed));
    }
    const bool whole = (int64_t)json_array_size(lines) == j->prompts->count;
    const int status = whole ? ts_output_write_metadata(j->o->out, lines) : TS_FAIL(TS_ERESOURCE, "out of memory");
    json_decref(lines);
    return status;
}

enum { SHEET_ROWS = 32, SHEET_COLUMNS = 9 };

// Collective: all ranks decode, rank 0 writes.
static int write_sheet(const job *j, ts_comm *world) {
    const int64_t n = j->prompts->count < SHEET_ROWS ? j->prompts->count : SHEET_ROWS;
    ts_contact_row rows[SHEET_ROWS];
    uint8_t *pixels = NULL;
    TS_TRY(ts_decode(j->model->codec, j->latents, n, j->t, j->h, j->w, world, 0, &pixels));
    if (!pixels) {
        return TS_OK;
    }
    const int64_t bytes = j->o->frames * j->o->size.height * j->o->size.width * 3;
    for (int64_t i = 0; i < n; i++) {
        rows[i] = (ts_contact_row){pixels + i * bytes, j->o->frames, j->o->size.height, j->o->size.width,
                                   j->prompts->item[i]};
    }
    const int status = ts_contact_sheet_write(j->o->sheet, rows, n, SHEET_COLUMNS);
    free(pixels);
    return status;
}

// Collective.
static int write_all(const job *j, const ts_mesh *mesh) {
    ts_comm *world = mesh->world, *data = mesh->axis[TS_AXIS_DATA];
    const ts_part videos = ts_split(j->prompts->count, ts_comm_size(data), ts_comm_rank(data));
    TS_TRY(ts_agree(world, write_videos(j, videos, mesh->axis[TS_AXIS_VIDEO])));
    TS_TRY(ts_agree(world, ts_comm_rank(world) == 0 ? write_metadata(j) : TS_OK));
    return j->o->sheet ? ts_agree(world, write_sheet(j, world)) : TS_OK;
}

// ---- the command

static int generate(const ts_session *session, const options *o, const ts_prompts *prompts) {
    const ts_codec_info codec = ts_codec_get_info(session->model->codec);
    ts_sample_params params = session->sample;
    params.frames = 1 + (o->frames - 1) / codec.time_factor;
    params.height = o->size.height / codec.space_factor;
    params.width = o->size.width / codec.space_factor;
    const int64_t n = prompts->count, numbers = params.frames * params.height * params.width * codec.channels;
    float *latents = ts_aligned_alloc((size_t)(n * numbers) * sizeof *latents);
    TS_TRY(ts_agree(session->mesh.world, latents ? TS_OK : TS_ERESOURCE));
    const job j = {o, session->model, prompts, params.frames, params.height, params.width, latents};
    const double start = ts_clock_seconds();
    int status = ts_sample(session->model, session->kernels, &params, prompts->item, n, 0, latents);
    status = status ? status : write_all(&j, &session->mesh);
    if (!status) {
        TS_INFO("%lld video%s of %lldx%lldx%lld in %.1f s: %s%s%s", (long long)n, n == 1 ? "" : "s",
                (long long)o->size.width, (long long)o->size.height, (long long)o->frames, ts_clock_seconds() - start,
                o->out, o->sheet ? ", contact sheet " : "", o->sheet ? o->sheet : "");
    }
    free(latents);
    return status;
}

// Everything that can be refused is refused here, before the model is loaded.
static int prepare(const options *o, ts_prompts *prompts) {
    TS_TRY(collect_prompts(prompts, o));
    if (ts_ends_with(o->out, ".mp4") && prompts->count > 1) {
        return TS_FAIL(TS_EUSAGE, "--out %s is one file and there are %lld prompts; name a folder", o->out,
                       (long long)prompts->count);
    }
    TS_TRY(ts_output_check_end("--sheet", o->sheet, ".png"));
    return ts_ends_with(o->out, ".mp4") ? ts_output_check_file("--out", o->out) : TS_OK;
}

// The folder is touched last, so that a failed start leaves nothing behind.
static int prepare_output(const options *o) {
    TS_TRY(ts_ends_with(o->out, ".mp4") ? TS_OK : ts_output_make_folder("--out", o->out));
    return o->sheet ? ts_output_check_file("--sheet", o->sheet) : TS_OK;  // it may lie in the folder made just now
}

static int run(ts_comm *world, options *o) {
    ts_prompts prompts = {0};
    ts_session session = {.options = &o->session};
    int status;
    TS_TRY_GOTO(status, ts_agree(world, prepare(o, &prompts)), done);
    TS_TRY_GOTO(status, ts_session_open(&session, world, &o->session), done);
    TS_TRY_GOTO(status, ts_agree(world, resolve(o, session.model)), done);
    if (ts_comm_rank(world) == 0) {
        status = ts_session_check_lengths(&session, prompts.item, prompts.count);
        status = status ? status : prepare_output(o);
    }
    TS_TRY_GOTO(status, ts_agree(world, status), done);
    status = generate(&session, o, &prompts);
done:
    status = ts_session_close(&session, status);
    ts_prompts_free(&prompts);
    return status;
}

int ts_command_generate(ts_comm *world, int argc, char **argv) {
    static const ts_command command = {
        .usage = "tessera generate --model DIR --prompt TEXT --out FILE.mp4 [options]\n"
                 "Makes a video of each prompt.",
        .table = table,
    };
    ts_arena *arena = NULL;
    options o = {0};
    bool help = false;
    TS_TRY(ts_arena_open(&arena, "options", 1 << 16, false));
    int status = ts_agree(world, ts_command_read(&command, &o, arena, argc, argv, &help));
    if (!status && !help) {
        status = run(world, &o);
    }
    ts_arena_close(&arena);
    return status;
}
