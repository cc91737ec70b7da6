// SPDX-License-Identifier: Apache-2.0
// Storyboard: cards at times. A short form of a timeline, for people.
#include <string.h>

#include "core/base/status.h"
#include "infer/edit/verbs.h"
#include "infer/edit/verbs_private.h"

// ---- the file

typedef struct card {
    int64_t line;
    const char *at, *text, *image, *video, *from;
    double strength;
} card;

typedef struct board {
    const char *duration;
    bool loop;
    struct {
        int64_t count;
        card *item;
    } cards;
} board;

// clang-format off
#define CARD(name) offsetof(card, name)
static const ts_option card_options[] = {
    {"at", TS_OPTION_STRING, CARD(at), NULL, "when the card's turn comes: 2s, 0:02 or frames, 16f", 0, 0, NULL, true},
    {"text", TS_OPTION_STRING, CARD(text), NULL, "what is shown from here on", 0, 0, NULL, false},
    {"image", TS_OPTION_STRING, CARD(image), NULL, "picture that stands at this time", 0, 0, NULL, false},
    {"video", TS_OPTION_STRING, CARD(video), NULL, "video that plays from here to the next card", 0, 0, NULL, false},
    {"from", TS_OPTION_STRING, CARD(from), "start", "where in the video", 0, 0, NULL, false},
    {"strength", TS_OPTION_REAL, CARD(strength), "0", "how far picture or video may be changed: 0 not at all", 0, 1, NULL, false},
    {0},
};
#undef CARD
static const ts_record card_record = {card_options, sizeof(card), offsetof(card, line)};
static const ts_option board_options[] = {
    {"duration", TS_OPTION_STRING, offsetof(board, duration), NULL, "length of the result; absent: the model's", 0, 0, NULL, false},
    {"loop", TS_OPTION_BOOL, offsetof(board, loop), "false", "whether the last frame is followed by the first", 0, 0, NULL, false},
    {"cards", TS_OPTION_RECORDS, offsetof(board, cards), NULL, "in the order of their times", 0, 0, &card_record, true},
    {0},
};
static const ts_option table[] = {
    TS_MODEL_OPTION(ts_verb_options, edit.session),
    {"file", TS_OPTION_STRING, TS_VERB_FIELD(file), NULL, "the cards, a YAML file", 0, 0, NULL, true},
    TS_VERB_RESULT,
    {0},
};
// clang-format on

// ---- to a timeline

typedef struct storyboard {
    ts_draft draft;
    board board;
    const char *path;
} storyboard;

static int card_fail(const storyboard *s, const card *c, const char *why) {
    return TS_FAIL(TS_EUSAGE, "%s:%lld: %s", s->path, (long long)c->line, why);
}

// The frame of a card, at which a latent frame begins.
static int card_frame(const storyboard *s, const card *c, int64_t *frame) {
    char place[512];
    double at;
    snprintf(place, sizeof place, "%s:%lld: at", s->path, (long long)c->line);
    TS_TRY(ts_draft_time(&s->draft, &at, place, c->at, s->draft.timeline->frames));
    *frame = at < 0.5 ? 0 : ts_draft_whole(&s->draft, 0, at);
    return *frame < s->draft.timeline->frames
               ? TS_OK
               : card_fail(s, c, "no latent frame begins between this time and the end; give a longer duration");
}

// The frame at which the next card with a text (`texts`), or any card, has its turn.
static int next_turn(const storyboard *s, int64_t i, bool texts, int64_t *frame) {
    *frame = s->draft.timeline->frames;
    for (int64_t k = i + 1; k < s->board.cards.count; k++) {
        if (!texts || s->board.cards.item[k].text) {
            return card_frame(s, &s->board.cards.item[k], frame);
        }
    }
    return TS_OK;
}

static int add_picture(storyboard *s, const card *c, int64_t at) {
    ts_draft *d = &s->draft;
    const int64_t end = at + (at == 0 && !d->timeline->loop ? 1 : d->group);
    ts_timeline_track *track = ts_draft_track(d, at, end, TS_SOURCE_IMAGE);
    if (!track) {
        return TS_ERESOURCE;
    }
    track->file = c->image;
    track->strength = c->strength;
    return TS_OK;
}

static int add_video(storyboard *s, const card *c, int64_t at, int64_t turn) {
    ts_clip clip;
    TS_TRY(ts_draft_clip(&s->draft, &clip, c->video, c->from, "end"));
    const int64_t most = ts_draft_most(&s->draft, at, clip.frames < turn - at ? clip.frames : turn - at);
    if (most < 1) {
        return card_fail(s, c, "the video, or its time before the next card, is shorter than a latent frame");
    }
    ts_timeline_track *track = ts_draft_video(&s->draft, at, at + most, &clip, 0);
    if (!track) {
        return TS_ERESOURCE;
    }
    track->strength = c->strength;
    return TS_OK;
}

static int add_card(storyboard *s, int64_t i) {
    const card *c = &s->board.cards.item[i];
    int64_t at, turn, text_turn;
    TS_TRY(card_frame(s, c, &at));
    TS_TRY(next_turn(s, i, false, &turn));
    TS_TRY(next_turn(s, i, true, &text_turn));
    if (turn <= at || text_turn <= at) {
        return card_fail(s, c, "the next card comes no later; cards stand in the order of their times");
    }
    if (!c->text + !c->image + !c->video == 3 || (c->image && c->video)) {
        return card_fail(s, c, "a card has a text, and a picture or a video, or one of these");
    }
    TS_TRY(c->image ? add_picture(s, c, at) : c->video ? add_video(s, c, at, turn) : TS_OK);
    return !c->text || ts_draft_prompt(&s->draft, at, text_turn, c->text) ? TS_OK : TS_ERESOURCE;
}

static int fill(const void *options, const ts_timeline_model *model, ts_arena *arena, ts_edit_list *list) {
    storyboard s = {.path = ((const ts_verb_options *)options)->file};
    double frames = (double)model->frames;
    TS_TRY(ts_draft_open(&s.draft, "storyboard", options, model, arena, list));
    TS_TRY(ts_options_default(board_options, &s.board, arena));
    TS_TRY(ts_options_read_yaml(board_options, &s.board, arena, s.path));
    if (!s.board.cards.count) {
        return TS_FAIL(TS_EUSAGE, "%s: \"cards\" is missing; give a list: - {at: 0s, text: ...}", s.path);
    }
    s.draft.timeline->loop = s.board.loop;
    if (s.board.duration) {
        TS_TRY(ts_draft_time(&s.draft, &frames, "duration", s.board.duration, model->frames));
    }
    s.draft.timeline->frames = ts_draft_whole(&s.draft, 0, frames);
    for (int64_t i = 0; i < s.board.cards.count; i++) {
        TS_TRY(add_card(&s, i));
    }
    return TS_OK;
}

static const ts_edit_command storyboard_command = {
    .command = {.usage = "tessera storyboard CARDS.yaml --model DIR --out FILE.mp4 [options]\n"
                         "Makes a video of prompts, pictures and videos at times:\n"
                         "  duration: 4s\n"
                         "  cards:\n"
                         "    - {at: 0s, text: a red circle moves left on a black background}\n"
                         "    - {at: 2s, text: a blue circle moves left on a black background, image: blue.png}",
                .table = table,
                .keys = board_options,
                .arguments = (const char *const[]){"file", NULL}},
    .options_bytes = sizeof(ts_verb_options),
    .fill = fill,
};
int ts_command_storyboard(ts_comm *world, int argc, char **argv) {
    return ts_edit_run(&storyboard_command, world, argc, argv);
}
