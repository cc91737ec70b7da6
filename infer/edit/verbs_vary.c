// SPDX-License-Identifier: Apache-2.0
// Vary: versions of one concept, over all combinations of changed words.
#include <string.h>

#include "core/base/status.h"
#include "infer/edit/verbs.h"
#include "infer/edit/verbs_private.h"
#include "infer/timeline/prompts.h"

enum { MAX_SLOTS = 16, MAX_VERSIONS = 10000, MAX_TEXT = TS_MAX_PROMPT_BYTES };

// clang-format off
static const ts_option table[] = {
    TS_MODEL_OPTION(ts_verb_options, edit.session),
    {"file", TS_OPTION_STRING, TS_VERB_FIELD(file), NULL, "a timeline, YAML, whose texts have words in braces; absent: a video of --prompt", 0, 0, NULL, false},
    TS_VERB_PROMPT("what the videos show, with words in braces: \"a {colour} circle moves {way}\""),
    {"words", TS_OPTION_LIST, TS_VERB_FIELD(words), NULL, "what may stand in braces, as colour=red,blue; several times", 0, 0, NULL, true},
    {"n", TS_OPTION_INT, TS_VERB_FIELD(count), "0", "videos; 0: one of each combination. More than there are: with other noise", 0, MAX_VERSIONS, NULL, false},
    {"frames", TS_OPTION_INT, TS_VERB_FIELD(frames), "0", "pixel frames, 1 + 4k; 0: the model's default", 0, 4097, NULL, false},
    TS_VERB_RESULT,
    {0},
};
// clang-format on

// A word in braces and what may stand for it.
typedef struct slot {
    const char *name;
    int64_t count;
    const char *const *choice;  // [count]
} slot;

typedef struct slots {
    int64_t count, combinations;
    slot item[MAX_SLOTS];
} slots;

static const slot *find_slot(const slots *s, const char *name, size_t length) {
    for (int64_t i = 0; i < s->count; i++) {
        if (strlen(s->item[i].name) == length && memcmp(s->item[i].name, name, length) == 0) {
            return &s->item[i];
        }
    }
    return NULL;
}

// "colour=red", "blue", "way=left", "right": what has no name is one more choice of the slot before it.
static int read_slots(slots *out, const ts_string_list *words, ts_arena *arena) {
    const char **choice = ts_arena_alloc(arena, (size_t)words->count * sizeof *choice);
    if (!choice) {
        return TS_ERESOURCE;
    }
    *out = (slots){.combinations = 1};
    for (int64_t i = 0; i < words->count; i++) {
        const char *word = words->items[i], *equals = strchr(word, '=');
        choice[i] = equals ? equals + 1 : word;
        if (equals && out->count == MAX_SLOTS) {
            return TS_FAIL(TS_EUSAGE, "--words %.80s: at most %d words in braces", word, MAX_SLOTS);
        }
        if (equals == word || (!out->count && !equals)) {
            return TS_FAIL(TS_EUSAGE, "--words %.80s: write NAME=CHOICE,CHOICE, as colour=red,blue", word);
        }
        if (equals) {
            char *name = ts_arena_strdup(arena, word);
            if (!name) {
                return TS_ERESOURCE;
            }
            name[equals - word] = '\0';
            if (find_slot(out, name, strlen(name))) {
                return TS_FAIL(TS_EUSAGE, "--words %.80s: \"%.40s\" has its choices already", word, name);
            }
            out->item[out->count++] = (slot){name, 0, &choice[i]};
        }
        out->item[out->count - 1].count++;
    }
    for (int64_t i = 0; i < out->count; i++) {
        out->combinations *= out->item[i].count;
        if (out->combinations > MAX_VERSIONS) {
            return TS_FAIL(TS_EUSAGE, "--words: more than %d combinations; give fewer choices", MAX_VERSIONS);
        }
    }
    return TS_OK;
}

// What stands for slot i in version v: the last slot changes first.
static const char *choice_of(const slots *s, int64_t i, int64_t version) {
    for (int64_t k = s->count - 1; k > i; k--) {
        version /= s->item[k].count;
    }
    return s->item[i].choice[version % s->item[i].count];
}

// The text with its words in braces replaced, in the arena.
static int put_words(const char **out, const char *text, const slots *s, int64_t version, ts_arena *arena) {
    char done[MAX_TEXT + 1];
    size_t length = 0;
    while (*text) {
        const size_t plain = strcspn(text, "{"), word = text[plain] ? strcspn(text + plain, "}") : 0;
        const slot *found = word ? find_slot(s, text + plain + 1, word - 1) : NULL;
        if (text[plain] && (!text[plain + word] || !found)) {
            return TS_FAIL(TS_EUSAGE, "\"%.80s\": no --words for the brace at \"%.40s\"", text, text + plain);
        }
        const char *choice = found ? choice_of(s, found - s->item, version) : "";
        const size_t more = plain + strlen(choice);
        if (more > MAX_TEXT - length) {
            return TS_FAIL(TS_EINPUT, "vary: a text has more than %d bytes with its words; shorten it", MAX_TEXT);
        }
        memcpy(done + length, text, plain);
        memcpy(done + length + plain, choice, strlen(choice));
        length += more;
        text += found ? plain + word + 1 : plain;
    }
    done[length] = '\0';
    *out = ts_arena_strdup(arena, done);
    return *out ? TS_OK : TS_ERESOURCE;
}

// A copy of the concept with the words of a version.
static int make_version(ts_timeline *out, const ts_timeline *concept, const slots *s, int64_t version,
                        ts_arena *arena) {
    *out = *concept;
    const int64_t prompts = concept->prompts.count, events = concept->events.count;
    out->prompts.item = ts_arena_alloc(arena, (size_t)prompts * sizeof *out->prompts.item);
    out->events.item = ts_arena_alloc(arena, (size_t)events * sizeof *out->events.item);
    if (!out->prompts.item || !out->events.item) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < prompts; i++) {
        out->prompts.item[i] = concept->prompts.item[i];
        TS_TRY(put_words(&out->prompts.item[i].text, concept->prompts.item[i].text, s, version, arena));
    }
    for (int64_t i = 0; i < events; i++) {
        out->events.item[i] = concept->events.item[i];
        TS_TRY(put_words(&out->events.item[i].text, concept->events.item[i].text, s, version, arena));
    }
    return TS_OK;
}

// Whether a text has the slot's word in braces.
static bool stands_in(const slot *s, const char *text) {
    const size_t length = strlen(s->name);
    for (const char *brace = text ? strchr(text, '{') : NULL; brace; brace = strchr(brace + 1, '{')) {
        if (strncmp(brace + 1, s->name, length) == 0 && brace[1 + length] == '}') {
            return true;
        }
    }
    return false;
}

// Words that stand nowhere would make copies of one video.
static int check_slots(const slots *s, const ts_timeline *concept) {
    for (int64_t i = 0; i < s->count; i++) {
        bool used = false;
        for (int64_t k = 0; k < concept->prompts.count; k++) {
            used = used || stands_in(&s->item[i], concept->prompts.item[k].text);
        }
        for (int64_t k = 0; k < concept->events.count; k++) {
            used = used || stands_in(&s->item[i], concept->events.item[k].text);
        }
        if (!used) {
            return TS_FAIL(TS_EUSAGE, "--words %.40s=..: no text has {%.40s}; put it where its choices are to stand",
                           s->item[i].name, s->item[i].name);
        }
    }
    return TS_OK;
}

static int describe(json_t *about, const slots *s, int64_t version) {
    json_t *words = json_object();
    for (int64_t i = 0; i < s->count; i++) {
        json_object_set_new(words, s->item[i].name, json_string(choice_of(s, i, version)));
    }
    const bool whole = (int64_t)json_object_size(words) == s->count;
    json_t *line = json_pack("{s:o}", "words", words);
    return line && whole && !json_array_append_new(about, line) ? TS_OK : TS_FAIL(TS_ERESOURCE, "out of memory");
}

static int read_concept(ts_timeline *out, const ts_verb_options *o, const ts_timeline_model *model, ts_arena *arena) {
    if (!o->file == !o->prompt) {
        return TS_FAIL(TS_EUSAGE, "vary: give --prompt TEXT or a timeline%s", o->file ? ", not both" : "");
    }
    if (o->file && (o->frames || o->fps > 0 || o->size.width)) {
        return TS_FAIL(TS_EUSAGE, "vary: frames, fps and size of %s are its own; write them there", o->file);
    }
    if (o->file) {
        return ts_timeline_read(out, o->file, arena);
    }
    ts_draft d;
    ts_edit_list one;
    TS_TRY(ts_draft_open(&d, "vary", o, model, arena, &one));
    d.timeline->frames = o->frames ? o->frames : model->frames;
    TS_TRY(ts_draft_prompt(&d, 0, d.timeline->frames, o->prompt) ? TS_OK : TS_ERESOURCE);
    *out = *d.timeline;
    return TS_OK;
}

static int fill(const void *options, const ts_timeline_model *model, ts_arena *arena, ts_edit_list *list) {
    const ts_verb_options *o = options;
    ts_timeline concept;
    slots s;
    TS_TRY(read_slots(&s, &o->words, arena));
    TS_TRY(read_concept(&concept, o, model, arena));
    const int64_t count = o->count ? o->count : s.combinations;
    *list = (ts_edit_list){.item = ts_arena_alloc(arena, (size_t)count * sizeof *list->item), .about = json_array()};
    if (!list->item || !list->about) {
        return TS_ERESOURCE;
    }
    for (; list->count < count; list->count++) {
        TS_TRY(make_version(&list->item[list->count], &concept, &s, list->count % s.combinations, arena));
        TS_TRY(describe(list->about, &s, list->count % s.combinations));
    }
    return check_slots(&s, &concept);
}

static const ts_edit_command vary_command = {
    .command = {.usage =
                    "tessera vary --model DIR --prompt \"a {colour} circle\" --words colour=red,blue --out FOLDER\n"
                    "tessera vary TIMELINE.yaml --model DIR --words colour=red,blue --out FOLDER [options]\n"
                    "Makes versions of one concept over a table of changed words; metadata.jsonl says which is which.",
                .table = table,
                .arguments = (const char *const[]){"file", NULL}},
    .options_bytes = sizeof(ts_verb_options),
    .fill = fill,
};
int ts_command_vary(ts_comm *world, int argc, char **argv) {
    return ts_edit_run(&vary_command, world, argc, argv);
}
