// SPDX-License-Identifier: Apache-2.0
// What a line of a client says.
#include <string.h>

#include "core/base/status.h"
#include "core/config/option.h"
#include "infer/edit/output.h"
#include "infer/steer/control_private.h"
#include "infer/steer/state.h"
#include "infer/timeline/prompts.h"

enum { MAX_ID_BYTES = 1000 };

const char *const ts_control_verb_names[] = {"prompt", "preview", "seed-branch", "cancel", "pause", "resume", NULL};
static const char *const keys[] = {"prompt", "preview",    "seed-branch", "cancel", "pause",
                                   "resume", "from_frame", "id",          NULL};

static bool is_among(const char *key, const char *const *names) {
    for (; *names; names++) {
        if (strcmp(key, *names) == 0) {
            return true;
        }
    }
    return false;
}

static int check_keys(json_t *object) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        if (!is_among(key, keys)) {
            const char *near = ts_nearest_name(key, keys);
            return TS_FAIL(TS_EINPUT, "message: \"%.40s\" is no key of one%s%s%s", key, near ? "; do you mean \"" : "",
                           near ? near : "", near ? "\"?" : "");
        }
    }
    return TS_OK;
}

// The one thing that it asks for.
static int find_verb(ts_control_message *m) {
    int found = 0;
    for (int i = 0; i < TS_VERBS; i++) {
        if (json_object_get(m->object, ts_control_verb_names[i])) {
            m->verb = (ts_control_verb)i;
            found++;
        }
    }
    return found == 1 ? TS_OK
                      : TS_FAIL(TS_EINPUT,
                                "message: asks for %d things; give one of prompt, pause, resume, cancel, preview and "
                                "seed-branch",
                                found);
}

static int read_values(ts_control_message *m, const ts_control_video *video) {
    const char *name = ts_control_verb_names[m->verb];
    bool on = true;
    switch (m->verb) {
    case TS_VERB_PROMPT:
        TS_TRY(ts_json_string(m->object, name, "message", &m->text));
        TS_TRY(ts_json_int_or(m->object, "from_frame", "message", 0, video->frames - 1, 0, &m->from_frame));
        return ts_prompt_check(m->text, "prompt");
    case TS_VERB_PREVIEW:
        TS_TRY(ts_json_string(m->object, name, "message", &m->text));
        TS_TRY(ts_state_check_name(name, m->text));
        return ts_output_check_end(name, m->text, ".png");
    case TS_VERB_BRANCH:
        TS_TRY(ts_json_string(m->object, name, "message", &m->text));
        return ts_state_check_name(name, m->text);
    default:
        TS_TRY(ts_json_bool_or(m->object, name, "message", false, &on));
        return on ? TS_OK : TS_FAIL(TS_EINPUT, "message: \"%s\" can only be true", name);
    }
}

// It is given back, and a receipt is a short line.
static int read_id(ts_control_message *m) {
    const json_t *id = json_object_get(m->object, "id");
    const size_t bytes = id ? json_dumpb(id, NULL, 0, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : 0;
    if (bytes > MAX_ID_BYTES) {
        return TS_FAIL(TS_EINPUT, "message: an \"id\" of %zu bytes; at most %d are given back", bytes, MAX_ID_BYTES);
    }
    m->id = id;
    return TS_OK;
}

int ts_control_parse(ts_control_message *out, const char *line, size_t bytes, const ts_control_video *video) {
    *out = (ts_control_message){.text = ""};
    TS_TRY(ts_json_parse(line, bytes, "message", &out->object));
    if (!json_is_object(out->object)) {
        return TS_FAIL(TS_EINPUT, "message: must be a JSON object, such as {\"pause\": true}");
    }
    TS_TRY(read_id(out));
    TS_TRY(check_keys(out->object));
    TS_TRY(find_verb(out));
    if (out->verb != TS_VERB_PROMPT && json_object_get(out->object, "from_frame")) {
        return TS_FAIL(TS_EINPUT, "message: \"from_frame\" goes with \"prompt\" only");
    }
    return read_values(out, video);
}
