// SPDX-License-Identifier: Apache-2.0
// Prompts to videos: timelines that hold nothing but a prompt.
#include "infer/edit/generate.h"

#include "core/base/status.h"
#include "infer/edit/edit.h"
#include "infer/timeline/prompts.h"

typedef struct options {
    ts_edit_options edit;  // the first member: ts_edit_run
    const char *prompt, *prompts;
    int64_t frames;
    double fps;
    ts_size2 size;
} options;

#define FIELD(name) offsetof(options, name)
// clang-format off
static const ts_option table[] = {
    TS_MODEL_OPTION(options, edit.session),
    {"prompt", TS_OPTION_STRING, FIELD(prompt), NULL, "what the video shows", 0, 0, NULL, false},
    {"prompts", TS_OPTION_STRING, FIELD(prompts), NULL, "text file with one prompt a line instead of --prompt", 0, 0, NULL, false},
    {"size", TS_OPTION_SIZE, FIELD(size), NULL, "pixels WxH, multiples of 16; absent: the model's default", 16, 8192, NULL, false},
    {"frames", TS_OPTION_INT, FIELD(frames), "0", "pixel frames, 1 + 4k; 0: the model's default", 0, 4097, NULL, false},
    {"fps", TS_OPTION_REAL, FIELD(fps), "0", "frames a second of the file; 0: the model's default", 0, 240, NULL, false},
    TS_EDIT_OPTIONS(options, edit),
    TS_SESSION_OPTIONS(options, edit.session),
    {0},
};
// clang-format on
#undef FIELD

static int collect_prompts(ts_prompts *list, const options *o) {
    if (!o->prompt == !o->prompts) {
        return TS_FAIL(TS_EUSAGE, "give --prompt TEXT or --prompts FILE%s", o->prompt ? ", not both" : "");
    }
    return o->prompt ? ts_prompts_add(list, o->prompt, "--prompt") : ts_prompts_read(list, o->prompts);
}

static int add_timeline(ts_edit_list *list, const options *o, const char *prompt, ts_arena *arena) {
    ts_timeline *t = &list->item[list->count++];
    ts_timeline_prompt *entry = ts_arena_alloc(arena, sizeof *entry);
    const char *text = ts_arena_strdup(arena, prompt);
    if (!entry || !text) {
        return TS_ERESOURCE;
    }
    *entry = ts_timeline_prompt_default();
    entry->span = "all";
    entry->text = text;
    *t = ts_timeline_default();
    t->path = "generate";
    t->size = o->size;
    t->frames = o->frames;
    t->fps = o->fps;
    t->prompts.count = 1;
    t->prompts.item = entry;
    return TS_OK;
}

static int fill(const void *options_read, const ts_timeline_model *model, ts_arena *arena, ts_edit_list *list) {
    const options *o = options_read;
    ts_prompts prompts = {0};
    (void)model;
    int status = collect_prompts(&prompts, o);
    if (!status) {
        list->item = ts_arena_alloc(arena, (size_t)prompts.count * sizeof *list->item);
        status = list->item ? TS_OK : TS_ERESOURCE;
    }
    for (int64_t i = 0; i < prompts.count && !status; i++) {
        status = add_timeline(list, o, prompts.item[i], arena);
    }
    ts_prompts_free(&prompts);
    return status;
}

static const ts_edit_command command = {
    .command = {.usage = "tessera generate --model DIR --prompt TEXT --out FILE.mp4 [options]\n"
                         "Makes a video of each prompt.",
                .table = table},
    .options_bytes = sizeof(options),
    .fill = fill,
};
int ts_command_generate(ts_comm *world, int argc, char **argv) {
    return ts_edit_run(&command, world, argc, argv);
}
