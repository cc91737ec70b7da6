// SPDX-License-Identifier: Apache-2.0
#include "infer/edit/verbs.h"

#include <math.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/status.h"
#include "infer/edit/verbs_private.h"

static int too_short(const ts_clip *clip, int64_t group) {
    return TS_FAIL(TS_EINPUT, "%s: %lld frames of it are used and a latent frame takes %lld; give a longer part",
                   clip->path, (long long)clip->frames, (long long)group);
}

// Frames that fill no latent frame, or have no partner, are not dropped in silence.
static void tell_part(const ts_clip *clip, int64_t frames) {
    if (frames != clip->frames) {
        TS_INFO("%s: the first %lld of %lld frames are used", clip->path, (long long)frames, (long long)clip->frames);
    }
}

// ---- remix: the source as it is noised to a floor

// clang-format off
static const ts_option remix_table[] = {
    TS_VERB_VIDEO("the video to change"),
    TS_VERB_PROMPT("what the result shows"),
    {"strength", TS_OPTION_REAL, TS_VERB_FIELD(strength), "0.4", "how far it may go from the source: 0 is the source, 1 another video", 0, 1, NULL, false},
    {"mask", TS_OPTION_STRING, TS_VERB_FIELD(mask), NULL, "PNG or video: what is white may change, the rest is held", 0, 0, NULL, false},
    {"box", TS_OPTION_STRING, TS_VERB_FIELD(box), NULL, "x,y,width,height in pixels of the result, instead of a mask", 0, 0, NULL, false},
    {"feather", TS_OPTION_REAL, TS_VERB_FIELD(feather), "0", "pixels over which the edge of mask or box is softened", 0, 4096, NULL, false},
    TS_VERB_PART,
    TS_VERB_RESULT,
    {0},
};
// clang-format on

static int fill_remix(const void *options, const ts_timeline_model *model, ts_arena *arena, ts_edit_list *list) {
    ts_draft d;
    ts_clip clip;
    TS_TRY(ts_draft_open(&d, "remix", options, model, arena, list));
    TS_TRY(ts_draft_clip(&d, &clip, d.o->video, d.o->from, d.o->to));
    d.timeline->frames = ts_draft_most(&d, 0, clip.frames);
    tell_part(&clip, d.timeline->frames);
    ts_timeline_track *track = ts_draft_video(&d, 0, d.timeline->frames, &clip, 0);
    if (!track) {
        return TS_ERESOURCE;
    }
    track->strength = d.o->strength;
    track->mask = d.o->mask;
    track->feather = d.o->feather;
    if (d.o->box) {
        ts_timeline_box *box = ts_arena_zalloc(arena, sizeof *box);
        if (!box) {
            return TS_ERESOURCE;
        }
        box->box = d.o->box;
        track->boxes.count = 1;
        track->boxes.item = box;
    }
    return ts_draft_say(&d, 0, d.timeline->frames, d.o->strength);
}

static const ts_edit_command remix_command = {
    .command = {.usage = "tessera remix VIDEO --model DIR --prompt TEXT --strength S --out FILE.mp4 [options]\n"
                         "Changes a video and keeps its structure, or all that a mask does not show.",
                .table = remix_table,
                .arguments = (const char *const[]){"video", NULL}},
    .options_bytes = sizeof(ts_verb_options),
    .fill = fill_remix,
};
int ts_command_remix(ts_comm *world, int argc, char **argv) {
    return ts_edit_run(&remix_command, world, argc, argv);
}

// ---- loop: time on a circle

// clang-format off
static const ts_option loop_table[] = {
    TS_MODEL_OPTION(ts_verb_options, edit.session),
    {"video", TS_OPTION_STRING, TS_VERB_FIELD(video), NULL, "the video to close; absent: all is made from the prompt", 0, 0, NULL, false},
    TS_VERB_PROMPT("what the result shows"),
    {"seam", TS_OPTION_STRING, TS_VERB_FIELD(seam), "3s", "length of what is made between the end of the video and its beginning", 0, 0, NULL, false},
    {"ends", TS_OPTION_REAL, TS_VERB_FIELD(strength), "0", "how far the first and the last group of frames of the video may go to meet the seam: 0 not at all; 0.3 for a smoother one", 0, 1, NULL, false},
    {"frames", TS_OPTION_INT, TS_VERB_FIELD(frames), "0", "pixel frames of a loop from a prompt, 4k; 0: as the model's default", 0, 4096, NULL, false},
    TS_VERB_PART,
    TS_VERB_RESULT,
    {0},
};
// clang-format on

// How much is open between two ends that are held: more guidance than this makes seams that do not fit them.
static const double SEAM_OPEN = 0.25;

// The video on the circle, its two ends as free as they may be.
static int add_ring(ts_draft *d, const ts_clip *clip, int64_t held) {
    const double ends = d->o->strength;
    const int64_t end = ends > 0 ? d->group : 0, border[] = {0, end, held - end > end ? held - end : end, held};
    for (int i = 0; i < 3; i++) {
        if (border[i] == border[i + 1]) {
            continue;
        }
        ts_timeline_track *track = ts_draft_video(d, border[i], border[i + 1], clip, (double)border[i]);
        if (!track) {
            return TS_ERESOURCE;
        }
        track->strength = i == 1 ? 0 : ends;
    }
    return TS_OK;
}

static int fill_loop(const void *options, const ts_timeline_model *model, ts_arena *arena, ts_edit_list *list) {
    ts_draft d;
    TS_TRY(ts_draft_open(&d, "loop", options, model, arena, list));
    d.timeline->loop = true;
    if (!d.o->video && !d.o->prompt) {
        return TS_FAIL(TS_EUSAGE, "loop: give a video, or --prompt TEXT");
    }
    if (d.o->video && d.o->frames) {
        return TS_FAIL(TS_EUSAGE,
                       "--frames %lld is for a loop from a prompt; a loop of a video lasts as long as the "
                       "video and its --seam",
                       (long long)d.o->frames);
    }
    if (d.o->frames % d.group) {
        return TS_FAIL(TS_EUSAGE, "--frames %lld: a loop has %lldk frames; give %lld", (long long)d.o->frames,
                       (long long)d.group, (long long)ts_draft_whole(&d, 0, (double)d.o->frames));
    }
    if (!d.o->video && (d.o->strength > 0 || strcmp(d.o->seam, "3s") != 0 || strcmp(d.o->from, "start") != 0 ||
                        strcmp(d.o->to, "end") != 0)) {
        return TS_FAIL(TS_EUSAGE, "loop: --seam, --ends, --from and --to are of a video, and none is given");
    }
    if (!d.o->video) {
        d.timeline->frames = ts_draft_most(&d, 0, d.o->frames ? d.o->frames : model->frames);
        return ts_draft_say(&d, 0, d.timeline->frames, 1);
    }
    ts_clip clip;
    double seam;
    TS_TRY(ts_draft_clip(&d, &clip, d.o->video, d.o->from, d.o->to));
    TS_TRY(ts_draft_time(&d, &seam, "--seam", d.o->seam, clip.frames));
    const int64_t held = ts_draft_most(&d, 0, clip.frames);
    if (!held) {
        return too_short(&clip, d.group);
    }
    tell_part(&clip, held);
    d.timeline->frames = held + ts_draft_whole_of(&d, held, seam, "--seam");
    TS_TRY(add_ring(&d, &clip, held));
    return ts_draft_say(&d, 0, d.timeline->frames, SEAM_OPEN);
}

static const ts_edit_command loop_command = {
    .command = {.usage = "tessera loop VIDEO --model DIR --out FILE.mp4 [options]\n"
                         "tessera loop --prompt TEXT --model DIR --out FILE.mp4 [options]\n"
                         "Makes a video that goes on from its last frame to its first without a seam.",
                .table = loop_table,
                .arguments = (const char *const[]){"video", NULL}},
    .options_bytes = sizeof(ts_verb_options),
    .fill = fill_loop,
};
int ts_command_loop(ts_comm *world, int argc, char **argv) {
    return ts_edit_run(&loop_command, world, argc, argv);
}

// ---- extend: the source held, time before and after it free

// clang-format off
static const ts_option extend_table[] = {
    TS_VERB_VIDEO("the video to extend"),
    {"before", TS_OPTION_STRING, TS_VERB_FIELD(before), "0s", "time to add in front", 0, 0, NULL, false},
    {"after", TS_OPTION_STRING, TS_VERB_FIELD(after), "0s", "time to add behind", 0, 0, NULL, false},
    TS_VERB_PROMPT("what the result shows"),
    TS_VERB_PART,
    TS_VERB_RESULT,
    {0},
};
// clang-format on

static int fill_extend(const void *options, const ts_timeline_model *model, ts_arena *arena, ts_edit_list *list) {
    ts_draft d;
    ts_clip clip;
    double before, after;
    TS_TRY(ts_draft_open(&d, "extend", options, model, arena, list));
    TS_TRY(ts_draft_clip(&d, &clip, d.o->video, d.o->from, d.o->to));
    TS_TRY(ts_draft_time(&d, &before, "--before", d.o->before, clip.frames));
    TS_TRY(ts_draft_time(&d, &after, "--after", d.o->after, clip.frames));
    if (before == 0 && after == 0) {
        return TS_FAIL(TS_EUSAGE, "extend: give --before TIME, --after TIME or both");
    }
    const int64_t first = ts_draft_whole_of(&d, 0, before, "--before");
    const int64_t held = ts_draft_most(&d, first, clip.frames);
    if (!held) {
        return too_short(&clip, d.group);
    }
    tell_part(&clip, held);
    const int64_t end = first + held;
    d.timeline->frames = end + ts_draft_whole_of(&d, end, after, "--after");
    TS_TRY(ts_draft_video(&d, first, end, &clip, 0) ? TS_OK : TS_ERESOURCE);
    return ts_draft_say(&d, 0, d.timeline->frames, 1);
}

static const ts_edit_command extend_command = {
    .command = {.usage = "tessera extend VIDEO --model DIR --before TIME --after TIME --out FILE.mp4 [options]\n"
                         "Goes on with a video in both directions of time; its own frames stay as they are.",
                .table = extend_table,
                .arguments = (const char *const[]){"video", NULL}},
    .options_bytes = sizeof(ts_verb_options),
    .fill = fill_extend,
};
int ts_command_extend(ts_comm *world, int argc, char **argv) {
    return ts_edit_run(&extend_command, world, argc, argv);
}

// ---- blend: the weight of one source goes over to the other; or one takes the other's look, or its place in a mask

// clang-format off
static const ts_option blend_table[] = {
    TS_MODEL_OPTION(ts_verb_options, edit.session),
    {"a", TS_OPTION_STRING, TS_VERB_FIELD(a), NULL, "the video to begin with", 0, 0, NULL, true},
    {"b", TS_OPTION_STRING, TS_VERB_FIELD(b), NULL, "the video to end with", 0, 0, NULL, true},
    TS_VERB_PART,
    {"ramp", TS_OPTION_STRING, TS_VERB_FIELD(ramp), "linear", "how one goes over to the other: linear, sigmoid, or a text file with one number from 0 to 1 a line", 0, 0, NULL, false},
    {"style", TS_OPTION_BOOL, TS_VERB_FIELD(style), "false", "the structure of A throughout, with the look of B, of which --prompt should tell", 0, 0, NULL, false},
    {"mask", TS_OPTION_STRING, TS_VERB_FIELD(mask), NULL, "PNG or video: B stands where it is white, A elsewhere, throughout", 0, 0, NULL, false},
    {"feather", TS_OPTION_REAL_OR_NAN, TS_VERB_FIELD(feather), NULL, "pixels over which the edge of the mask is softened, and made to fit; absent: 8", 0, 4096, NULL, false},
    {"strength", TS_OPTION_REAL_OR_NAN, TS_VERB_FIELD(strength), NULL, "how far what is mixed may go from the mixture: little goes over evenly, much makes one clear picture of two; absent: 0.35, with --style 0.4, with --mask 0.8", 0, 1, NULL, false},
    TS_VERB_PROMPT("what the result shows"),
    TS_VERB_RESULT,
    {0},
};
// clang-format on

// How much of B there is in the start of a --style: its colours come through, its objects do not.
static const double STYLE_WEIGHT = 0.2;
static const double MASK_FEATHER = 8;  // pixels

static int fill_blend(const void *options, const ts_timeline_model *model, ts_arena *arena, ts_edit_list *list) {
    ts_draft d;
    ts_clip clip[2];
    TS_TRY(ts_draft_open(&d, "blend", options, model, arena, list));
    TS_TRY(ts_draft_clip(&d, &clip[0], d.o->a, d.o->from, d.o->to));
    TS_TRY(ts_draft_clip(&d, &clip[1], d.o->b, d.o->from, d.o->to));
    if (d.o->style && d.o->mask) {
        return TS_FAIL(TS_EUSAGE, "blend: --style is of whole pictures and --mask of parts; give one of them");
    }
    if (!d.o->mask && !isnan(d.o->feather)) {
        return TS_FAIL(TS_EUSAGE, "blend: --feather is of a --mask, and none is given");
    }
    if ((d.o->style || d.o->mask) && strcmp(d.o->ramp, "linear") != 0) {
        return TS_FAIL(TS_EUSAGE, "blend: --ramp goes from A over to B, and --style and --mask show both throughout; "
                                  "give one of them");
    }
    d.timeline->frames = ts_draft_most(&d, 0, clip[0].frames < clip[1].frames ? clip[0].frames : clip[1].frames);
    tell_part(&clip[0], d.timeline->frames);
    tell_part(&clip[1], d.timeline->frames);
    d.timeline->mix = !isnan(d.o->strength) ? d.o->strength : d.o->style ? 0.4 : d.o->mask ? 0.8 : 0.35;
    for (int i = 0; i < 2; i++) {
        ts_timeline_track *track = ts_draft_video(&d, 0, d.timeline->frames, &clip[i], 0);
        if (!track) {
            return TS_ERESOURCE;
        }
        if (d.o->style) {
            track->weight = i ? STYLE_WEIGHT : 1;
            track->strength = d.timeline->mix;
        } else if (d.o->mask) {
            track->mask = d.o->mask;
            track->invert = !i;
            track->feather = isnan(d.o->feather) ? MASK_FEATHER : d.o->feather;
        } else {
            track->weight = 1 - i;
            track->weight_end = i;
            track->ramp = d.o->ramp;
        }
    }
    return ts_draft_say(&d, 0, d.timeline->frames, 1);
}

static const ts_edit_command blend_command = {
    .command = {.usage = "tessera blend A B --model DIR --out FILE.mp4 [options]\n"
                         "Goes from one video over to another; the first frame is A's, the last B's. With --style or\n"
                         "--mask, gives A the look of B, or puts parts of B into A.",
                .table = blend_table,
                .arguments = (const char *const[]){"a", "b", NULL}},
    .options_bytes = sizeof(ts_verb_options),
    .fill = fill_blend,
};
int ts_command_blend(ts_comm *world, int argc, char **argv) {
    return ts_edit_run(&blend_command, world, argc, argv);
}

// ---- edit: a timeline as it is written

// clang-format off
static const ts_option edit_table[] = {
    TS_MODEL_OPTION(ts_verb_options, edit.session),
    {"file", TS_OPTION_STRING, TS_VERB_FIELD(file), NULL, "the timeline, a YAML file", 0, 0, NULL, true},
    TS_EDIT_OPTIONS(ts_verb_options, edit),
    TS_SESSION_OPTIONS(ts_verb_options, edit.session),
    {0},
};
// clang-format on

static int fill_edit(const void *options, const ts_timeline_model *model, ts_arena *arena, ts_edit_list *list) {
    const ts_verb_options *o = options;
    (void)model;
    list->item = ts_arena_alloc(arena, sizeof *list->item);
    list->count = 1;
    TS_TRY(list->item ? ts_timeline_read(list->item, o->file, arena) : TS_ERESOURCE);
    return list->item->track.count || list->item->prompts.count
               ? TS_OK
               : TS_FAIL(TS_EINPUT, "%s: nothing says what the video shows; give a track, prompts or both", o->file);
}

static const ts_edit_command edit_command = {
    .command = {.usage = "tessera edit TIMELINE.yaml --model DIR --out FILE.mp4 [options]\n"
                         "Makes the video that a timeline describes.",
                .table = edit_table,
                .arguments = (const char *const[]){"file", NULL},
                .keys = ts_timeline_options},
    .options_bytes = sizeof(ts_verb_options),
    .fill = fill_edit,
};
int ts_command_edit(ts_comm *world, int argc, char **argv) {
    return ts_edit_run(&edit_command, world, argc, argv);
}
