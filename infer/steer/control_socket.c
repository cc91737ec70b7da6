// SPDX-License-Identifier: Apache-2.0
// The socket of a job and its clients. Nothing here trusts what comes in, or that anyone reads what goes out.
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/signal.h"
#include "core/base/status.h"
#include "infer/steer/control_private.h"

enum {
    OUT_BYTES = 256 * 1024,  // of receipts that a client may leave unread, beyond what the system keeps
    MAX_CALLERS = 1000       // let in at one look: of many at once most are gone already, or say nothing
};

// ---- the socket

int ts_control_address(struct sockaddr_un *out, const char *path) {
    const size_t bytes = strlen(path);
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (bytes == 0 || bytes >= sizeof out->sun_path) {
        return TS_FAIL(TS_EINPUT, "%.80s%s: a socket's path has 1 to %zu bytes, and this one %zu; take a shorter one",
                       path, bytes > 80 ? "..." : "", sizeof out->sun_path - 1, bytes);
    }
    memcpy(out->sun_path, path, bytes + 1);
    return TS_OK;
}

int ts_control_check_path(const char *path) {
    struct sockaddr_un address;
    return ts_control_address(&address, path);
}

// Removes the socket of a job that is gone, on which nobody listens.
static int remove_stale(const struct sockaddr_un *address) {
    struct stat about;
    const char *path = address->sun_path;
    if (lstat(path, &about)) {
        return errno == ENOENT ? TS_OK : TS_FILE_FAIL(path, "make a socket");
    }
    if (!S_ISSOCK(about.st_mode)) {
        return TS_FAIL(TS_EINPUT, "%s: exists and is no socket; give another path", path);
    }
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    const bool refused = fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof *address) &&
                         (errno == ECONNREFUSED || errno == ENOENT);
    close(fd);
    if (!refused) {
        return TS_FAIL(TS_EINPUT, "%s: another job listens there; give another path", path);
    }
    return unlink(path) && errno != ENOENT ? TS_FILE_FAIL(path, "replace") : TS_OK;
}

static int open_at(ts_control_server *s, const struct sockaddr_un *address) {
    struct stat about;
    // The mode that a socket has before it is bound is that of its file.
    if (fchmod(s->fd, 0600) || bind(s->fd, (const struct sockaddr *)address, sizeof *address)) {
        return TS_FILE_FAIL(address->sun_path, "make a socket");
    }
    memcpy(s->path, address->sun_path, sizeof s->path);
    if (lstat(s->path, &about)) {
        return TS_FILE_FAIL(s->path, "look at");
    }
    s->device = about.st_dev;  // from here on it is removed whatever fails
    s->inode = about.st_ino;
    TS_TRY(ts_signal_guard(s->path));
    return listen(s->fd, SOMAXCONN) ? TS_FILE_FAIL(s->path, "listen") : TS_OK;
}

int ts_control_listen(ts_control_server *s, const char *path) {
    struct sockaddr_un address;
    *s = (ts_control_server){.fd = -1};
    for (int i = 0; i < TS_CONTROL_CLIENTS; i++) {
        s->client[i].fd = -1;
    }
    TS_TRY(ts_control_address(&address, path));
    TS_TRY(remove_stale(&address));
    s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->fd < 0) {
        return TS_FILE_FAIL(path, "make a socket");
    }
    const int status = open_at(s, &address);
    if (status) {
        ts_control_shut(s);
    }
    return status;
}

static void hang_up(ts_control_client *c) {
    if (c->fd >= 0) {
        close(c->fd);
    }
    free(c->in);
    free(c->out);
    *c = (ts_control_client){.fd = -1};
}

void ts_control_shut(ts_control_server *s) {
    struct stat about;
    if (s->fd < 0) {
        return;
    }
    if (*s->path && !lstat(s->path, &about) && about.st_dev == s->device && about.st_ino == s->inode) {
        unlink(s->path);
    }
    (void)ts_signal_guard(NULL);  // cannot fail
    for (int i = 0; i < TS_CONTROL_CLIENTS; i++) {
        hang_up(&s->client[i]);
    }
    close(s->fd);
    s->fd = -1;
}

// ---- what goes out

static void flush(ts_control_client *c) {
    size_t done = 0;
    while (done < c->out_bytes) {
        const ssize_t sent = send(c->fd, c->out + done, c->out_bytes - done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent < 0 && errno != EAGAIN) {
            c->ended = true;  // it is gone: what it is owed is dropped, not what it has asked for
            done = c->out_bytes;
        }
        if (sent < 0) {
            break;
        }
        done += (size_t)sent;
    }
    memmove(c->out, c->out + done, c->out_bytes - done);
    c->out_bytes -= done;
}

void ts_control_send(ts_control_client *c, json_t *object) {
    char *text = object ? json_dumps(object, JSON_ENSURE_ASCII) : NULL;
    const size_t bytes = text ? strlen(text) : 0;
    json_decref(object);
    if (text && c->out_bytes + bytes + 1 <= OUT_BYTES) {
        memcpy(c->out + c->out_bytes, text, bytes);
        c->out[c->out_bytes + bytes] = '\n';
        c->out_bytes += bytes + 1;
        flush(c);
    } else {
        c->ended = true;  // a client that does not read, or no memory for an answer
        c->out_bytes = 0;
    }
    free(text);
}

void ts_control_send_error(ts_control_client *c, const json_t *id, const char *text) {
    char plain[1024];
    const size_t bytes = strnlen(text, sizeof plain - 1);
    for (size_t i = 0; i < bytes; i++) {
        plain[i] = (signed char)text[i] < ' ' ? '?' : text[i];  // it may quote what is no UTF-8
    }
    plain[bytes] = '\0';
    json_t *answer = json_pack("{s:s}", "error", plain);
    if (answer && id) {
        json_object_set(answer, "id", (json_t *)id);
    }
    ts_control_send(c, answer);
}

// ---- what comes in

static void read_from(ts_control_server *s, ts_control_client *c) {
    while (!c->ended && c->in_bytes < TS_CONTROL_LINE_BYTES) {
        const ssize_t got = recv(c->fd, c->in + c->in_bytes, TS_CONTROL_LINE_BYTES - c->in_bytes, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0 && errno == EAGAIN) {
            return;
        }
        c->ended = got <= 0;
        c->in_bytes += got > 0 ? (size_t)got : 0;
        c->heard = s->looks;
    }
}

// Whether a client may lose its place: what it has said so far was listened to, and it waits for no receipt.
static bool may_go(const ts_control_server *s, const ts_control_client *c) {
    return !c->unanswered && (c->joined < s->looks || !c->in_bytes);
}

// A free place, or that of the client that never said anything or was heard of longest ago.
static ts_control_client *next_place(ts_control_server *s) {
    ts_control_client *found = NULL;
    for (int i = 0; i < TS_CONTROL_CLIENTS; i++) {
        ts_control_client *c = &s->client[i];
        if (c->fd < 0) {
            return c;
        }
        const bool older = !found || c->heard < found->heard || (c->heard == found->heard && c->serial < found->serial);
        found = may_go(s, c) && older ? c : found;
    }
    return found;
}

// Whoever finds no place waits in the socket's queue for the next look. Returns whether anyone came.
static bool let_in(ts_control_server *s) {
    for (int i = 0; i < MAX_CALLERS; i++) {
        ts_control_client *c = next_place(s);
        const int fd = c ? accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
        if (fd < 0) {
            return i > 0;
        }
        if (c->fd >= 0) {
            ts_control_send_error(c, NULL, "cut off: another client needs the place; connect again");
            hang_up(c);
        }
        *c = (ts_control_client){.fd = fd, .serial = ++s->serials, .joined = s->looks};
        c->in = ts_malloc(TS_CONTROL_LINE_BYTES);
        c->out = ts_malloc(OUT_BYTES);
        if (c->in && c->out) {
            read_from(s, c);
        }
        if (!c->in || !c->out || (c->ended && !c->in_bytes)) {
            hang_up(c);
        }
    }
    return true;
}

bool ts_control_receive(ts_control_server *s, int milliseconds) {
    struct pollfd polled[TS_CONTROL_CLIENTS + 1] = {{.fd = s->fd, .events = POLLIN}};
    for (int i = 0; i < TS_CONTROL_CLIENTS; i++) {
        const ts_control_client *c = &s->client[i];
        const short out = c->out_bytes ? POLLOUT : 0;
        polled[1 + i] = (struct pollfd){.fd = c->ended ? -1 : c->fd, .events = (short)(POLLIN | out)};
    }
    if (poll(polled, TS_CONTROL_CLIENTS + 1, milliseconds) < 0) {
        return false;  // a signal: the caller looks for it
    }
    s->looks++;
    for (int i = 0; i < TS_CONTROL_CLIENTS; i++) {
        if (s->client[i].fd >= 0) {
            flush(&s->client[i]);
            read_from(s, &s->client[i]);
        }
    }
    ts_control_tidy(s);
    return let_in(s);
}

static void drop_front(ts_control_client *c, size_t bytes) {
    c->in_bytes -= bytes;
    memmove(c->in, c->in + bytes, c->in_bytes);
}

// A last line may lack its end, once the client sends no more.
bool ts_control_next_line(ts_control_client *c, char *line, size_t *bytes) {
    while (c->fd >= 0 && c->in_bytes) {
        const char *end = memchr(c->in, '\n', c->in_bytes);
        const bool whole = end || c->ended, full = !whole && c->in_bytes == TS_CONTROL_LINE_BYTES;
        const size_t length = end ? (size_t)(end - c->in) : c->in_bytes;
        if (!whole && !full) {
            return false;
        }
        const bool skipped = c->skipping;
        c->skipping = full;
        if (!skipped && whole) {
            memcpy(line, c->in, length);
        }
        drop_front(c, length + (end ? 1 : 0));
        if (!skipped && full) {
            ts_control_send_error(c, NULL, "message: the line is too long; 65536 bytes are read");
        } else if (!skipped && length) {
            *bytes = length;
            return true;
        }
    }
    return false;
}

void ts_control_tidy(ts_control_server *s) {
    for (int i = 0; i < TS_CONTROL_CLIENTS; i++) {
        ts_control_client *c = &s->client[i];
        if (c->fd >= 0 && c->ended && !c->in_bytes && !c->unanswered && !c->out_bytes) {
            hang_up(c);
        }
    }
}
