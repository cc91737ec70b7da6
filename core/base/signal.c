// SPDX-License-Identifier: Apache-2.0
#include "core/base/signal.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/status.h"

static const struct {
    int number;
    const char *name;
} caught[] = {{SIGTERM, "SIGTERM"}, {SIGUSR1, "SIGUSR1"}, {SIGINT, "SIGINT"}};
enum { CAUGHT = sizeof caught / sizeof caught[0] };

static volatile sig_atomic_t pending;  // number of the last signal, 0 for none
static char guarded_path[TS_PATH_BYTES];
static atomic_bool guarded;

int ts_signal_guard(const char *path) {
    atomic_store(&guarded, false);
    if (path && strlen(path) >= sizeof guarded_path) {
        return TS_FAIL(TS_EINPUT, "%.80s...: the path is longer than %d bytes", path, TS_PATH_BYTES);
    }
    if (path) {
        strcpy(guarded_path, path);
        atomic_store(&guarded, true);
    }
    return TS_OK;
}

void ts_signal_remove_guarded(void) {
    if (atomic_load(&guarded)) {
        unlink(guarded_path);
    }
}

static void note(int number) {
    const int before = errno;
    ts_signal_remove_guarded();
    errno = before;
    if (number == SIGINT && pending == SIGINT) {
        // Impatience: the default action follows as soon as this handler returns.
        signal(SIGINT, SIG_DFL);
        raise(SIGINT);
        return;
    }
    pending = number;
}

static int set_handler(void (*handler)(int)) {
    for (int i = 0; i < CAUGHT; i++) {
        struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
        sigemptyset(&action.sa_mask);
        if (sigaction(caught[i].number, &action, NULL)) {
            return TS_FAIL(TS_EINTERNAL, "cannot catch %s: %s", caught[i].name, strerror(errno));
        }
    }
    return TS_OK;
}

int ts_signal_catch(void) {
    return set_handler(note);
}

void ts_signal_release(void) {
    (void)set_handler(SIG_DFL);  // fails only for signal numbers that catch would have refused
    pending = 0;
}

const char *ts_signal_pending(void) {
    const int number = pending;
    for (int i = 0; i < CAUGHT; i++) {
        if (caught[i].number == number) {
            return caught[i].name;
        }
    }
    return NULL;
}
