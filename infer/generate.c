// SPDX-License-Identifier: Apache-2.0
#include "infer/generate.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "core/comm/backend.h"
#include "core/comm/threads.h"
#include "core/comm/traffic.h"
#include "core/comm/watch.h"
#include "core/config/command.h"
#include "core/media/image.h"
#include "infer/decode.h"
#include "infer/prompts.h"
#include "infer/sample.h"

typedef struct options {
    const char *model, *prompt, *prompts, *negative, *out, *sheet, *mesh, *instruction_set, *watch_network;
    int64_t steps, seed, frames, batch, threads;
    double guidance, shift, fps, watch;
    ts_size2 size;
    int device, grid, solver, precision, report;
    bool reproducible;
} options;

static const char *const precision_names[] = {"f32", "bf16", NULL};
enum { REPORT_NONE, REPORT_COMM };
static const char *const report_names[] = {"none", "comm", NULL};
static const ts_dtype precision_dtypes[] = {TS_F32, TS_BF16};

#define FIELD(name) offsetof(options, name)
// clang-format off
static const ts_option table[] = {
    {"model", TS_OPTION_STRING, FIELD(model), NULL, "model folder (runs/NAME/model, or the shipped configs/shapes-model)", 0, 0, NULL, true},
    {"prompt", TS_OPTION_STRING, FIELD(prompt), NULL, "what the video shows", 0, 0, NULL, false},
    {"prompts", TS_OPTION_STRING, FIELD(prompts), NULL, "text file with one prompt a line instead of --prompt", 0, 0, NULL, false},
    {"negative", TS_OPTION_STRING, FIELD(negative), NULL, "what the video should not show; guidance moves away from it", 0, 0, NULL, false},
    {"out", TS_OPTION_STRING, FIELD(out), NULL, "FILE.mp4 for one prompt, else a folder", 0, 0, NULL, true},
    {"sheet", TS_OPTION_STRING, FIELD(sheet), NULL, "also write a contact sheet, FILE.png", 0, 0, NULL, false},
    {"steps", TS_OPTION_INT, FIELD(steps), "0", "denoising steps; 0: the model's default", 0, TS_MAX_STEPS, NULL, false},
    {"guidance", TS_OPTION_REAL, FIELD(guidance), "-1", "classifier-free guidance, 1 is none; -1: the model's default", -1, 100, NULL, false},
    {"seed", TS_OPTION_INT, FIELD(seed), "0", "same seed, same video, on any number of ranks", 0, 9.0e15, NULL, false},
    {"size", TS_OPTION_SIZE, FIELD(size), NULL, "pixels WxH, multiples of 16; absent: the model's default", 16, 8192, NULL, false},
    {"frames", TS_OPTION_INT, FIELD(frames), "0", "pixel frames, 1 + 4k; 0: the model's default", 0, 4097, NULL, false},
    {"fps", TS_OPTION_REAL, FIELD(fps), "0", "frames a second of the file; 0: the model's default", 0, 240, NULL, false},
    {"shift", TS_OPTION_REAL, FIELD(shift), "0", "shift of the noise levels; 0: the model's default", 0, 1000, NULL, false},
    {"grid", TS_OPTION_CHOICE, FIELD(grid), "unipc", "grid of noise levels", 0, 0, ts_grid_names, false},
    {"solver", TS_OPTION_CHOICE, FIELD(solver), "unipc", "solver of the flow equation", 0, 0, ts_solver_names, false},
    {"batch", TS_OPTION_INT, FIELD(batch), "8", "videos sampled together on a rank", 1, 1024, NULL, false},
    {"precision", TS_OPTION_CHOICE, FIELD(precision), "f32", "operands of matrix products and attention", 0, 0, precision_names, false},
    {"device", TS_OPTION_CHOICE, FIELD(device), "auto", "where to sample: cuda, a GPU for each rank of a host in turn; cpu; auto: cuda where there is a GPU. Videos are decoded on the CPU", 0, 0, ts_device_names, false},
    {"mesh", TS_OPTION_STRING, FIELD(mesh), NULL, "ranks along each axis, as cfg=2,ulysses=2: data (videos), cfg (the two branches of guidance), sequence or ring and ulysses (tokens), tensor (layers); the ranks that are left go to data", 0, 0, NULL, false},
    {"reproducible", TS_OPTION_BOOL, FIELD(reproducible), "false", "the same bits on every mesh, as on one rank, for more messages", 0, 0, NULL, false},
    {"report", TS_OPTION_CHOICE, FIELD(report), "none", "what is printed at the end: comm, the calls and bytes of each axis and collective", 0, 0, report_names, false},
    {"watch", TS_OPTION_REAL, FIELD(watch), "300", "seconds after which a rank that gives no sign, or ranks that wait for each other, end the job; 0: never", 0, 1e6, NULL, false},
    {"watch-network", TS_OPTION_STRING, FIELD(watch_network), NULL, "interface or address of rank 0's host that the ranks' signs of life go to; absent: any that they reach", 0, 0, NULL, false},
    {"threads", TS_OPTION_INT, FIELD(threads), "0", "threads of each rank; 0: the cores of the machine shared out over its ranks", 0, 1024, NULL, false},
    {"instruction-set", TS_OPTION_STRING, FIELD(instruction_set), "auto", "cap of the CPU's instruction set: auto, amx, avx512bf16, avx512, avx2, generic", 0, 0, NULL, false},
    {0},
};
// clang-format on
#undef FIELD

// ---- what is asked for

static int collect_prompts(ts_prompts *list, const options *o) {
    if (!o->prompt == !o->prompts) {
        return TS_FAIL(TS_EUSAGE, "give --prompt TEXT or --prompts FILE%s", o->prompt ? ", not both" : "");
    }
    if (o->negative) {
        if (strlen(o->negative) > 0) {
            TS_TRY(ts_prompt_check(o->negative, "--negative"));
        }
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
    o->steps = o->steps ? o->steps : d->steps;
    o->guidance = o->guidance < 0 ? d->guidance : o->guidance;
    o->shift = o->shift > 0 ? o->shift : d->flow_shift;
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

// A prompt is not cut in silence. A word that the corpus did not have takes a token for each byte.
static int check_lengths(const ts_model *model, const ts_prompts *prompts) {
    const char *first = NULL;
    int64_t cut = 0;
    for (int64_t i = 0; i < prompts->count; i++) {
        bool fits;
        TS_TRY(ts_model_text_fits(model, prompts->item[i], &fits));
        first = fits || first ? first : prompts->item[i];
        cut += !fits;
    }
    if (cut) {
        TS_WARN(
            "the end of %lld of %lld prompts has no effect: this model reads %lld tokens, and a word it does not know "
            "takes one for each byte; the first: \"%.80s\"",
            (long long)cut, (long long)prompts->count, (long long)ts_dit_get_config(model->dit)->text_rows, first);
    }
    return TS_OK;
}

// ---- output

// "00012-a-red-circle-moves.mp4": number first, so that files sort in the order of the prompts.
static void video_name(char *out, size_t out_bytes, int64_t number, const char *prompt) {
    int at = snprintf(out, out_bytes, "%05lld-", (long long)number);
    bool dash = true;
    for (const char *c = prompt; *c && at < 64; c++) {
        if (isalnum((unsigned char)*c)) {
            out[at++] = (char)tolower((unsigned char)*c);
            dash = false;
        } else if (!dash) {
            out[at++] = '-';
            dash = true;
        }
    }
    snprintf(out + at - (dash ? 1 : 0), out_bytes - (size_t)at, ".mp4");
}

static bool ends_with(const char *text, const char *end) {
    const size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

typedef struct job {
    const options *o;
    const ts_model *model;
    const ts_prompts *prompts;
    int64_t t, h, w;       // latent
    const float *latents;  // [count, t, h, w, C]
} job;

static int video_path(const job *j, int64_t i, char *path, size_t path_bytes) {
    if (ends_with(j->o->out, ".mp4")) {
        snprintf(path, path_bytes, "%s", j->o->out);
        return TS_OK;
    }
    char name[128];
    video_name(name, sizeof name, i, j->prompts->item[i]);
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

// A generated folder is itself a corpus in the Hugging Face videofolder form.
static int write_metadata(const job *j) {
    if (ends_with(j->o->out, ".mp4")) {
        return TS_OK;
    }
    char path[4096], name[128];
    TS_TRY(ts_path_join(path, sizeof path, j->o->out, "metadata.jsonl"));
    char *text = NULL;
    size_t bytes = 0;
    FILE *lines = open_memstream(&text, &bytes);
    if (!lines) {
        return TS_FAIL(TS_ERESOURCE, "%s: out of memory", path);
    }
    bool failed = false;
    for (int64_t i = 0; i < j->prompts->count && !failed; i++) {
        video_name(name, sizeof name, i, j->prompts->item[i]);
        json_t *line = json_pack("{s:s, s:s, s:I}", "file_name", name, "text", j->prompts->item[i], "seed",
                                 (json_int_t)j->o->seed);
        failed = !line || json_dumpf(line, lines, JSON_COMPACT | JSON_PRESERVE_ORDER) || fputc('\n', lines) == EOF;
        json_decref(line);
    }
    failed = fclose(lines) || failed;
    const int status =
        failed ? TS_FAIL(TS_ERESOURCE, "%s: out of memory", path) : ts_file_write_atomic(path, text, bytes);
    free(text);
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

static int generate(const ts_mesh *mesh, const options *o, const ts_model *model, const ts_kernels *kernels,
                    const ts_prompts *prompts) {
    const ts_codec_info codec = ts_codec_get_info(model->codec);
    job j = {.o = o, .model = model, .prompts = prompts};
    j.t = 1 + (o->frames - 1) / codec.time_factor;
    j.h = o->size.height / codec.space_factor;
    j.w = o->size.width / codec.space_factor;
    const int64_t n = prompts->count;
    float *latents = ts_aligned_alloc((size_t)(n * j.t * j.h * j.w * codec.channels) * sizeof *latents);
    TS_TRY(ts_agree(mesh->world, latents ? TS_OK : TS_ERESOURCE));
    const ts_sample_params params = {
        .frames = j.t,
        .height = j.h,
        .width = j.w,
        .steps = o->steps,
        .guidance = o->guidance,
        .shift = o->shift,
        .grid = (ts_grid)o->grid,
        .solver = (ts_solver_kind)o->solver,
        .seed = (uint64_t)o->seed,
        .negative = o->negative,
        .batch = o->batch,
    };
    const double start = ts_clock_seconds();
    int status = ts_sample(model, kernels, &params, prompts->item, n, 0, latents);
    j.latents = latents;
    status = status ? status : write_all(&j, mesh);
    if (!status) {
        TS_INFO("%lld video%s of %lldx%lldx%lld in %.1f s: %s%s%s", (long long)n, n == 1 ? "" : "s",
                (long long)o->size.width, (long long)o->size.height, (long long)o->frames, ts_clock_seconds() - start,
                o->out, o->sheet ? ", contact sheet " : "", o->sheet ? o->sheet : "");
    }
    free(latents);
    return status;
}

// Hours of sampling must not end at a folder that is not there or takes no files.
static int check_writable(const char *option, const char *path, const char *folder) {
    return access(folder, W_OK) ? TS_FAIL(TS_EINPUT, "%s %s: cannot write to %s: %s; give another place", option, path,
                                          folder, strerror(errno))
                                : TS_OK;
}

static int check_parent(const char *option, const char *path) {
    char folder[4096];
    const size_t length = (size_t)(ts_path_base(path) - path);
    if (length >= sizeof folder) {
        return TS_FAIL(TS_EINPUT, "%s %.80s...: the path is longer than %zu bytes", option, path, sizeof folder);
    }
    memcpy(folder, path, length);
    folder[length] = '\0';
    if (length && !ts_path_is_folder(folder)) {
        return TS_FAIL(TS_EINPUT, "%s %s: there is no folder %s; make it first", option, path, folder);
    }
    return check_writable(option, path, length ? folder : ".");
}

// Everything that can be refused is refused here, before the model is loaded.
static int prepare(const options *o, ts_prompts *prompts) {
    TS_TRY(collect_prompts(prompts, o));
    if (ends_with(o->out, ".mp4") && prompts->count > 1) {
        return TS_FAIL(TS_EUSAGE, "--out %s is one file and there are %lld prompts; name a folder", o->out,
                       (long long)prompts->count);
    }
    if (o->sheet && !ends_with(o->sheet, ".png")) {
        return TS_FAIL(TS_EUSAGE, "--sheet %s: give a name that ends in .png", o->sheet);
    }
    TS_TRY(ends_with(o->out, ".mp4") ? check_parent("--out", o->out) : TS_OK);
    return TS_OK;
}

// The folder is touched last, so that a failed start leaves nothing behind.
static int prepare_output(const options *o) {
    if (!ends_with(o->out, ".mp4")) {
        TS_TRY(ts_folder_make(o->out));
        TS_TRY(check_writable("--out", o->out, o->out));
    }
    return o->sheet ? check_parent("--sheet", o->sheet) : TS_OK;  // it may lie in the folder made just now
}

// The mesh that is asked for, refused before any weight is read.
static int open_mesh(ts_mesh *mesh, ts_comm *world, const options *o, const ts_kernels *kernels) {
    ts_model_params model;
    ts_degrees degree;
    TS_TRY(ts_agree(world, ts_model_describe(&model, o->model)));
    TS_TRY(ts_degrees_read(&degree, o->mesh ? o->mesh : "", model.dit.heads, ts_comm_size(world)));
    TS_TRY(ts_sample_check(&degree, o->guidance < 0 ? model.defaults.guidance : o->guidance));
    // The one answer that may differ between hosts.
    TS_TRY(ts_agree(world,
                    o->reproducible ? ts_sample_check_reproducible(kernels, precision_dtypes[o->precision]) : TS_OK));
    TS_TRY(ts_mesh_open(mesh, world, &degree));
    mesh->reproducible = o->reproducible;
    if (ts_comm_size(world) > 1) {
        char text[80];
        TS_INFO("mesh %s", ts_degrees_text(&degree, text, sizeof text));
    }
    return TS_OK;
}

// The kernels of the device that is asked for; the codec's work is the CPU's in any case. Collective.
static int open_kernels(const ts_kernels **kernels, ts_comm *world, const options *o) {
    const ts_kernels *cpu;
    char text[160];
    TS_TRY(ts_backend_open(kernels, world, ts_device_names[o->device]));
    TS_TRY(ts_agree(world, ts_kernels_cpu(&cpu, o->instruction_set)));
    *kernels = (*kernels)->device->is_host ? cpu : *kernels;
    TS_INFO("on %s", ts_kernels_describe(*kernels, text, sizeof text));
    return TS_OK;
}

// Collective.
static int report_traffic(const ts_mesh *mesh) {
    ts_traffic traffic;
    TS_TRY(ts_mesh_traffic(mesh, &traffic));
    if (ts_comm_rank(mesh->world) == 0) {
        ts_traffic_print(&traffic, stdout);
    }
    return TS_OK;
}

static int run(ts_comm *world, options *o) {
    ts_prompts prompts = {0};
    ts_mesh mesh = {0};
    ts_model *model = NULL;
    const ts_kernels *kernels = NULL;
    int status;
    TS_TRY_GOTO(status, ts_agree(world, prepare(o, &prompts)), done);
    TS_TRY_GOTO(status, ts_watch_open(world, &(ts_watch_params){.timeout = o->watch, .network = o->watch_network}),
                done);
    TS_TRY_GOTO(status, ts_threads_set(world, o->threads), done);
    TS_TRY_GOTO(status, open_kernels(&kernels, world, o), done);
    TS_TRY_GOTO(status, open_mesh(&mesh, world, o, kernels), done);
    TS_TRY_GOTO(status,
                ts_agree(world, ts_model_load(&model, o->model, kernels, &mesh, precision_dtypes[o->precision], false)),
                done);
    TS_TRY_GOTO(status, ts_agree(world, resolve(o, model)), done);
    if (ts_comm_rank(world) == 0) {
        status = check_lengths(model, &prompts);
        status = status ? status : prepare_output(o);
    }
    TS_TRY_GOTO(status, ts_agree(world, status), done);
    TS_TRY_GOTO(status, generate(&mesh, o, model, kernels, &prompts), done);
    status = o->report == REPORT_COMM ? report_traffic(&mesh) : TS_OK;
done:
    ts_model_close(&model);
    ts_mesh_close(&mesh);
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
