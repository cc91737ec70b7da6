// SPDX-License-Identifier: Apache-2.0
// `tessera steer`: one message to a job that listens, and its receipt.
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/status.h"
#include "core/config/command.h"
#include "infer/steer/control_private.h"
#include "infer/timeline/prompts.h"

typedef struct options {
    const char *socket, *message, *prompt, *preview, *seed_branch;
    int64_t from_frame;
    double wait;
    bool pause, resume, cancel;
} options;

#define FIELD(name) offsetof(options, name)
// clang-format off
static const ts_option table[] = {
    {"socket", TS_OPTION_STRING, FIELD(socket), NULL, "where the job listens: its --control", 0, 0, NULL, true},
    {"message", TS_OPTION_STRING, FIELD(message), NULL, "the message as JSON, instead of the options below", 0, 0, NULL, false},
    {"prompt", TS_OPTION_STRING, FIELD(prompt), NULL, "what the video shows from now on", 0, 0, NULL, false},
    {"from-frame", TS_OPTION_INT, FIELD(from_frame), "-1", "pixel frame from which on the prompt counts; -1: the first", -1, 1e9, NULL, false},
    {"pause", TS_OPTION_BOOL, FIELD(pause), "false", "compute nothing until it is resumed", 0, 0, NULL, false},
    {"resume", TS_OPTION_BOOL, FIELD(resume), "false", "go on", 0, 0, NULL, false},
    {"cancel", TS_OPTION_BOOL, FIELD(cancel), "false", "end the job; nothing is written", 0, 0, NULL, false},
    {"preview", TS_OPTION_STRING, FIELD(preview), NULL, "NAME.png: write a contact sheet of what the video will be, beside it", 0, 0, NULL, false},
    {"seed-branch", TS_OPTION_STRING, FIELD(seed_branch), NULL, "NAME: save the state in the job's store, for tessera branch", 0, 0, NULL, false},
    {"wait", TS_OPTION_REAL, FIELD(wait), "0", "seconds to wait for the receipt, which comes before the next step; 0: until the job ends", 0, 1e6, NULL, false},
    {0},
};
// clang-format on
#undef FIELD

// ---- the message

// One thing is asked for.
static int check(const options *o) {
    const int asked = (o->message != NULL) + (o->prompt != NULL) + (o->preview != NULL) + (o->seed_branch != NULL) +
                      o->pause + o->resume + o->cancel;
    if (o->from_frame >= 0 && !o->prompt) {
        return TS_FAIL(TS_EUSAGE, "--from-frame %lld says from where on, and nothing what; give --prompt TEXT%s",
                       (long long)o->from_frame, o->message ? ", or \"from_frame\" inside the JSON" : "");
    }
    if (asked != 1) {
        return TS_FAIL(TS_EUSAGE,
                       "give one message, not %d: JSON, --prompt, --pause, --resume, --cancel, --preview or "
                       "--seed-branch",
                       asked);
    }
    TS_TRY(o->prompt ? ts_prompt_check(o->prompt, "--prompt") : TS_OK);
    return o->message && !o->message[strspn(o->message, " \t\r\n")]
               ? TS_FAIL(TS_EUSAGE, "the message is empty; give JSON, such as '{\"pause\": true}'")
               : TS_OK;
}

static void add(json_t *object, const char *key, const char *text) {
    if (text) {
        json_object_set_new(object, key, json_string(text));
    }
}

// The options, whose texts are UTF-8, as JSON; NULL without memory.
static char *as_json(const options *o) {
    json_t *m = json_object();
    add(m, "prompt", o->prompt);
    add(m, "preview", o->preview);
    add(m, "seed-branch", o->seed_branch);
    const char *verb = o->pause ? "pause" : o->resume ? "resume" : o->cancel ? "cancel" : NULL;
    if (verb) {
        json_object_set_new(m, verb, json_true());
    }
    const bool whole = json_object_size(m) == 1;
    if (o->from_frame >= 0) {
        json_object_set_new(m, "from_frame", json_integer(o->from_frame));
    }
    char *text = whole ? json_dumps(m, JSON_COMPACT) : NULL;
    json_decref(m);
    return text;
}

// A line, newline and all, that the caller frees.
static int compose(const options *o, char **line) {
    char *body = o->message ? strdup(o->message) : as_json(o);
    if (!body) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for the message");
    }
    for (char *c = body; *c; c++) {
        *c = *c == '\n' ? ' ' : *c;
    }
    const int bytes = asprintf(line, "%s\n", body);
    free(body);
    if (bytes > TS_CONTROL_LINE_BYTES) {
        free(*line);
        return TS_FAIL(TS_EUSAGE, "a message of %d bytes; at most %d are read", bytes, TS_CONTROL_LINE_BYTES);
    }
    return bytes < 0 ? TS_FAIL(TS_ERESOURCE, "out of memory for the message") : TS_OK;
}

// ---- the exchange

static int send_all(int fd, const char *path, const char *text) {
    for (size_t left = strlen(text); left;) {
        const ssize_t sent = send(fd, text, left, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR) {
            return TS_FILE_FAIL(path, "send to the job that listens there");
        }
        text += sent > 0 ? sent : 0;
        left -= sent > 0 ? (size_t)sent : 0;
    }
    return TS_OK;
}

// One line into `answer`.
static int receive_line(int fd, const options *o, char *answer, size_t room) {
    const double start = ts_clock_seconds();
    for (size_t got = 0; got + 1 < room;) {
        const double left = o->wait > 0 ? o->wait - (ts_clock_seconds() - start) : 0;
        struct pollfd in = {.fd = fd, .events = POLLIN};
        if (left < 0 || poll(&in, 1, o->wait > 0 ? (int)(left * 1000) + 1 : -1) == 0) {
            return TS_FAIL(TS_EPEER, "%s: no receipt within %g s; the message may still be obeyed", o->socket, o->wait);
        }
        const ssize_t more = recv(fd, answer + got, room - 1 - got, MSG_DONTWAIT);
        if (more == 0 || (more < 0 && errno != EAGAIN && errno != EINTR)) {
            return TS_FAIL(TS_EPEER, "%s: the job ended before it answered", o->socket);
        }
        got += more > 0 ? (size_t)more : 0;
        answer[got] = '\0';
        char *end = strchr(answer, '\n');
        if (end) {
            *end = '\0';
            return TS_OK;
        }
    }
    return TS_FAIL(TS_EPEER, "%s: the answer is no receipt; another program listens there", o->socket);
}

// Connecting waits, as sending does, while the job has others to let in.
static int reach(int fd, const struct sockaddr_un *address, const options *o) {
    const struct timeval wait = {.tv_sec = (time_t)ceil(o->wait)};
    if (fd >= 0 && !setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) &&
        !connect(fd, (const struct sockaddr *)address, sizeof *address)) {
        return TS_OK;
    }
    return errno == EAGAIN ? TS_FAIL(TS_EPEER, "%s: the job let nobody in within %g s", o->socket, o->wait)
                           : TS_FAIL(TS_EINPUT, "%s: no job listens there: %s", o->socket, strerror(errno));
}

static int exchange(int fd, const struct sockaddr_un *address, const options *o, const char *text) {
    char answer[4096];
    json_t *receipt = NULL;
    const char *error;
    TS_TRY(reach(fd, address, o));
    TS_TRY(send_all(fd, o->socket, text));
    TS_TRY(receive_line(fd, o, answer, sizeof answer));
    TS_TRY(ts_json_parse(answer, strlen(answer), o->socket, &receipt));
    int status = ts_json_string_or(receipt, "error", o->socket, NULL, &error);
    status = status || !error ? status : TS_FAIL(TS_EINPUT, "%s", error);
    json_decref(receipt);
    if (!status) {
        printf("%s\n", answer);
    }
    return status;
}

static int steer(const options *o) {
    struct sockaddr_un address;
    char *text = NULL;
    TS_TRY(ts_control_address(&address, o->socket));
    TS_TRY(check(o));
    TS_TRY(compose(o, &text));
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int status = exchange(fd, &address, o, text);
    if (fd >= 0) {
        close(fd);
    }
    free(text);
    return status;
}

int ts_command_steer(ts_comm *world, int argc, char **argv) {
    static const char *const arguments[] = {"socket", "message", NULL};
    static const ts_command command = {
        .usage = "tessera steer SOCKET --prompt TEXT [--from-frame N] | --pause | --resume | --cancel | --preview "
                 "NAME.png | --seed-branch NAME\n"
                 "tessera steer SOCKET '{\"prompt\": ..}'\n"
                 "Tells a job that runs with --control SOCKET what to do before its next step, and prints its receipt.",
        .table = table,
        .arguments = arguments,
    };
    ts_arena *arena = NULL;
    options o = {0};
    bool help = false;
    TS_TRY(ts_arena_open(&arena, "options", 1 << 14, false));
    int status = ts_agree(world, ts_command_read(&command, &o, arena, argc, argv, &help));
    if (!status && !help) {
        status = ts_agree(world, ts_comm_rank(world) == 0 ? steer(&o) : TS_OK);
    }
    ts_arena_close(&arena);
    return status;
}
