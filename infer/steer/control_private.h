// SPDX-License-Identifier: Apache-2.0
// Inside infer/steer/control*.c only: the socket with its clients, and what a message says.
#ifndef TS_INFER_CONTROL_PRIVATE_H
#define TS_INFER_CONTROL_PRIVATE_H

#include <sys/types.h>
#include <sys/un.h>

#include "core/base/json.h"
#include "infer/steer/control.h"

// ---- the socket (infer/steer/control_socket.c): rank 0's, and nothing of it ever waits but ts_control_receive

typedef struct ts_control_client {
    int fd;           // -1: the place is free
    uint64_t serial;  // tells it from others that had its place
    uint64_t joined;  // the look at which it was let in,
    uint64_t heard;   // and that at which something of it was last read or obeyed
    char *in;         // [TS_CONTROL_LINE_BYTES] what was not read yet
    size_t in_bytes;
    bool skipping;   // inside a line that was too long
    bool ended;      // it sends no more
    int unanswered;  // messages whose receipts are still to come
    char *out;       // what the socket would not take yet
    size_t out_bytes;
} ts_control_client;

typedef struct ts_control_server {
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    int fd;  // -1: closed
    dev_t device;
    ino_t inode;  // of the socket that this process made
    uint64_t serials, looks;
    ts_control_client client[TS_CONTROL_CLIENTS];
} ts_control_server;

// Fills an address; TS_EINPUT when the path is longer than a socket's may be.
int ts_control_address(struct sockaddr_un *out, const char *path);
int ts_control_listen(ts_control_server *server, const char *path);
void ts_control_shut(ts_control_server *server);  // of a server of zeros with fd -1: nothing

// A look: reads what clients sent, as much as there is room for, and lets new ones in; with no place free for them the
// one that was heard of longest ago is cut off. Waits up to `milliseconds` for something to come. Returns whether new
// ones came, and more may wait.
bool ts_control_receive(ts_control_server *server, int milliseconds);
// The next line of a client, without its end, in `line` [TS_CONTROL_LINE_BYTES]; false when there is no whole one.
bool ts_control_next_line(ts_control_client *client, char *line, size_t *bytes);
// Sends a JSON object and drops the reference.
void ts_control_send(ts_control_client *client, json_t *object);
void ts_control_send_error(ts_control_client *client, const json_t *id, const char *text);
// Closes the connections that have nothing more to say or to hear.
void ts_control_tidy(ts_control_server *server);

// ---- messages (infer/steer/control_message.c)

typedef enum {
    TS_VERB_PROMPT = TS_CONTROL_PROMPT,
    TS_VERB_PREVIEW = TS_CONTROL_PREVIEW,
    TS_VERB_BRANCH = TS_CONTROL_BRANCH,
    TS_VERB_CANCEL = TS_CONTROL_CANCEL,
    TS_VERB_PAUSE,
    TS_VERB_RESUME,
    TS_VERBS
} ts_control_verb;

typedef struct ts_control_message {
    json_t *object;  // owns the strings; NULL when the line is no JSON
    const json_t *id;
    ts_control_verb verb;
    const char *text;    // prompt, or name
    int64_t from_frame;  // pixel frame
} ts_control_message;

extern const char *const ts_control_verb_names[];  // NULL-terminated
// `out` is to be dropped (json_decref of its object) whatever the status. TS_EINPUT.
int ts_control_parse(ts_control_message *out, const char *line, size_t bytes, const ts_control_video *video);

#endif
