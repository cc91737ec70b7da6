// SPDX-License-Identifier: Apache-2.0
// `tessera steer`: one message to a job that listens, and its receipt.
#include <errno.h>
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
    {"from-frame", TS_OPTION_INT, FIELD(from_frame), "0", "pixel frame from which on the prompt counts", 0, 1e9, NULL, false},
    {"pause", TS_OPTION_BOOL, FIELD(pause), "false", "compute nothing until it is resumed", 0, 0, NULL, false},
    {"resume", TS_OPTION_BOOL, FIELD(resume), "false", "go on", 0, 0, NULL, false},
    {"cancel", TS_OPTION_BOOL, FIELD(cancel), "false", "end the job; nothing is written", 0, 0, NULL, false},
    {"preview", TS_OPTION_STRING, FIELD(preview), NULL, "FILE.png: write a contact sheet of what the video will be", 0, 0, NULL, false},
    {"seed-branch", TS_OPTION_STRING, FIELD(seed_branch), NULL, "STORE/NAME: save the state, for tessera branch", 0, 0, NULL, false},
    {"wait", TS_OPTION_REAL, FIELD(wait), "0", "seconds to wait for the receipt, which comes before the next step; 0: until the job ends", 0, 1e6, NULL, false},
    {0},
};
// clang-format on
#undef FIELD

// ---- the message

// Paths are those of whoever asks, not of the job's folder.
static json_t *absolute_path(const char *path) {
    char folder[TS_PATH_BYTES], whole[2 * TS_PATH_BYTES];
    if (*path == '/' || !getcwd(folder, sizeof folder)) {
        return json_string(path);
    }
    snprintf(whole, sizeof whole, "%s/%s", folder, path);
    return json_string(whole);
}

// Text that ends in one newline; the caller frees it.
static int compose(const options *o, char **text) {
    json_t *m = json_object();
    if (o->prompt) {
        json_object_set_new(m, "prompt", json_string(o->prompt));
    }
    if (o->from_frame) {
        json_object_set_new(m, "from_frame", json_integer(o->from_frame));
    }
    if (o->preview) {
        json_object_set_new(m, "preview", absolute_path(o->preview));
    }
    if (o->seed_branch) {
        json_object_set_new(m, "seed-branch", absolute_path(o->seed_branch));
    }
    const char *const verbs[] = {o->pause ? "pause" : NULL, o->resume ? "resume" : NULL, o->cancel ? "cancel" : NULL};
    for (int i = 0; i < 3; i++) {
        if (verbs[i]) {
            json_object_set_new(m, verbs[i], json_true());
        }
    }
    const bool named = json_object_size(m) > 0;
    char *body = o->message ? strdup(o->message) : json_dumps(m, 0);
    json_decref(m);
    if (named == (o->message != NULL)) {
        free(body);
        return TS_FAIL(TS_EUSAGE, "give one message%s; see tessera steer --help", named ? ", not two" : "");
    }
    for (char *c = body; c && *c; c++) {
        *c = *c == '\n' ? ' ' : *c;
    }
    if (!body || asprintf(text, "%s\n", body) < 0) {
        free(body);
        return TS_FAIL(TS_ERESOURCE, "out of memory for the message");
    }
    free(body);
    return TS_OK;
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

static int exchange(int fd, const struct sockaddr_un *address, const options *o, const char *text) {
    char answer[4096];
    json_t *receipt = NULL;
    const char *error;
    if (fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof *address)) {
        return TS_FAIL(TS_EINPUT, "%s: no job listens there: %s", o->socket, strerror(errno));
    }
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
                 "FILE.png | --seed-branch STORE/NAME\n"
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
