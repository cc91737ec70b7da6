// SPDX-License-Identifier: Apache-2.0
// What all commands that edit have in common, from the command line to the open session.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/log.h"
#include "core/base/status.h"
#include "infer/edit/edit_private.h"
#include "infer/edit/output.h"
#include "infer/timeline/prompts.h"

// ---- what can be refused before anything is read

// The places of states and of the socket.
static int check_steering(const ts_edit_options *o) {
    TS_TRY(o->save_state ? ts_state_check_place("--save-state", o->save_state) : TS_OK);
    if (o->store && !o->control) {
        return TS_FAIL(TS_EUSAGE, "--store %s is for states that clients ask for; give --control SOCKET for these",
                       o->store);
    }
    TS_TRY(o->store ? ts_state_check_store("--store", o->store) : TS_OK);
    return o->control ? ts_control_check_path(o->control) : TS_OK;
}

// A folder named like a video of another kind is not what was meant.
static int check_folder(const char *out) {
    static const char *const video[] = {".avi", ".mov", ".mkv", ".webm", ".m4v", ".gif", ".MP4"};
    for (size_t i = 0; i < sizeof video / sizeof *video; i++) {
        if (ts_ends_with(out, video[i])) {
            return TS_FAIL(TS_EUSAGE, "--out %s: videos are written as MP4; give FILE.mp4, or a folder", out);
        }
    }
    return TS_OK;
}

int ts_edit_check(const ts_edit_options *o, int64_t count) {
    const char *several = o->control         ? "--control"
                          : o->save_latents  ? "--save-latents"
                          : o->save_state    ? "--save-state"
                          : o->preview_every ? "--preview-every"
                                             : NULL;
    if (!o->out) {
        return TS_FAIL(TS_EUSAGE, "\"out\" is missing; give --out=FILE.mp4%s", count > 1 ? ", or a folder" : "");
    }
    if (ts_ends_with(o->out, ".mp4") && count > 1) {
        return TS_FAIL(TS_EUSAGE, "--out %s is one file and there are %lld videos; name a folder", o->out,
                       (long long)count);
    }
    if (several && count > 1) {
        return TS_FAIL(TS_EUSAGE, "%s is for one video, and there are %lld; make them one by one", several,
                       (long long)count);
    }
    if (o->preview_every && !ts_ends_with(o->out, ".mp4")) {
        return TS_FAIL(TS_EUSAGE, "--preview-every: previews stand beside --out, which must be a FILE.mp4 then");
    }
    if (o->session.negative && *o->session.negative) {
        TS_TRY(ts_prompt_check(o->session.negative, "--negative"));
    }
    TS_TRY(check_steering(o));
    TS_TRY(ts_output_check_end("--sheet", o->sheet, ".png"));
    TS_TRY(ts_output_check_end("--save-latents", o->save_latents, ".safetensors"));
    TS_TRY(o->save_latents ? ts_output_check_file("--save-latents", o->save_latents) : TS_OK);
    return ts_ends_with(o->out, ".mp4") ? ts_output_check_file("--out", o->out) : check_folder(o->out);
}

// ---- the timelines

// The timelines as they were filled, new text that the caller frees: what resolving adds, it adds again when they are
// read.
static int write_list(const ts_edit_list *list, char **text) {
    size_t bytes = 0;
    FILE *out = open_memstream(text, &bytes);
    int status = out ? TS_OK : TS_ERESOURCE;
    for (int64_t i = 0; i < list->count && !status; i++) {
        fputs(i ? "---\n" : "", out);
        status = ts_timeline_write(&list->item[i], out);
    }
    return out && fclose(out) ? TS_FAIL(TS_ERESOURCE, "out of memory for a timeline") : status;
}

// Guidance that a prompt leaves open is the command line's.
static int resolve_list(const ts_edit_list *list, const ts_timeline_model *model) {
    for (int64_t i = 0; i < list->count; i++) {
        ts_timeline *t = &list->item[i];
        TS_TRY(ts_timeline_resolve(t, model));
        for (int64_t k = 0; k < t->prompts.count; k++) {
            double *guidance = &t->prompts.item[k].guidance;
            *guidance = isnan(*guidance) ? model->guidance : *guidance;
        }
    }
    return TS_OK;
}

// A result never takes the place of what it is made of, under whatever name.
static int check_sources(const ts_edit_list *list, const char *result) {
    struct stat out, source;
    if (!result || stat(result, &out) || !S_ISREG(out.st_mode)) {
        return TS_OK;
    }
    for (int64_t i = 0; i < list->count; i++) {
        for (int64_t k = 0; k < list->item[i].track.count; k++) {
            const char *file = list->item[i].track.item[k].file;
            if (file && !stat(file, &source) && source.st_dev == out.st_dev && source.st_ino == out.st_ino) {
                return TS_FAIL(TS_EUSAGE, "--out %s is a source of itself, and would be lost; give another name",
                               result);
            }
        }
    }
    return TS_OK;
}

// How many steps there are may be the model's to say, and is then not known yet.
static int check_save(const ts_edit_options *o) {
    const int64_t most = o->session.steps ? o->session.steps : TS_MAX_STEPS;
    const char *at = o->save_at;
    int64_t step;
    if (at && !o->save_state) {
        return TS_FAIL(TS_EUSAGE, "--save-at %s says when and nothing what; give --save-state STORE/NAME", at);
    }
    return !at || strcmp(at, "start") == 0 || strcmp(at, "end") == 0 ? TS_OK
                                                                     : ts_step_parse(&step, at, most, "--save-at");
}

// Fills and checks; what is only to be printed is printed. Rank 0 alone.
static int make_list(const ts_edit_command *command, const ts_edit_options *o, ts_arena *arena, ts_edit_list *list) {
    ts_timeline_model model;
    char *text = NULL;
    TS_TRY(check_save(o));
    TS_TRY(ts_session_describe(&model, &o->session));
    TS_TRY(command->fill(o, &model, arena, list));
    int status = o->print_timeline || o->check ? TS_OK : ts_edit_check(o, list->count);
    status = status || !o->print_timeline ? status : write_list(list, &text);
    status = status ? status : resolve_list(list, &model);
    status = status || o->print_timeline ? status : check_sources(list, o->out);
    for (int64_t i = 0; i < list->count && !status && o->check; i++) {
        status = ts_timeline_tell_spans(&list->item[i], &model);
    }
    if (!status && text) {
        fputs(text, stdout);
    }
    free(text);
    return status;
}

// A prompt is not cut in silence.
static int check_lengths(const ts_session *session, const ts_edit_list *list) {
    int64_t count = 0;
    for (int64_t i = 0; i < list->count; i++) {
        count += list->item[i].prompts.count;
    }
    const char **prompt = ts_malloc((size_t)(count + 1) * sizeof *prompt);
    if (!prompt) {
        return TS_ERESOURCE;
    }
    count = 0;
    for (int64_t i = 0; i < list->count; i++) {
        for (int64_t k = 0; k < list->item[i].prompts.count; k++) {
            prompt[count++] = list->item[i].prompts.item[k].text;
        }
    }
    const int status = ts_session_check_lengths(session, prompt, count);
    free(prompt);
    return status;
}

// ---- the command

// The videos of a list that only rank 0 has yet. Collective.
static int make_videos(ts_comm *world, const ts_edit_options *o, ts_edit_list *list) {
    ts_session session = {.options = &o->session};
    const bool is_root = ts_comm_rank(world) == 0;
    int status = ts_broadcast(world, &list->count, sizeof list->count, 0);
    status = status ? status : ts_session_open(&session, world, &o->session);
    if (!status) {
        status = ts_agree(world, is_root ? check_lengths(&session, list) : TS_OK);
    }
    status = status ? status : ts_edit(&session, o, list);
    return ts_session_close(&session, status);
}

static int run(const ts_edit_command *command, ts_comm *world, const ts_edit_options *o, ts_arena *arena) {
    ts_edit_list list = {0};
    int status = ts_agree(world, ts_comm_rank(world) == 0 ? make_list(command, o, arena, &list) : TS_OK);
    if (!status && o->check) {
        TS_INFO("nothing is wrong with it");
    } else if (!status && !o->print_timeline) {
        status = make_videos(world, o, &list);
    }
    json_decref(list.about);
    return status;
}

int ts_edit_run(const ts_edit_command *command, ts_comm *world, int argc, char **argv) {
    ts_arena *arena = NULL;
    bool help = false;
    TS_TRY(ts_arena_open(&arena, "options", 1 << 16, false));
    void *options = ts_arena_zalloc(arena, command->options_bytes);
    int status = options ? ts_command_read(&command->command, options, arena, argc, argv, &help) : TS_ERESOURCE;
    status = ts_agree(world, status);
    if (!status && !help) {
        status = run(command, world, options, arena);
    }
    ts_arena_close(&arena);
    return status;
}
