// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=30
#include "core/base/signal.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/ts_test.h"

static void test_each(void) {
    static const int numbers[] = {SIGTERM, SIGUSR1, SIGINT};
    static const char *const names[] = {"SIGTERM", "SIGUSR1", "SIGINT"};
    for (int i = 0; i < 3; i++) {
        CHECK_OK(ts_signal_catch());
        CHECK(ts_signal_pending() == NULL);
        raise(numbers[i]);
        CHECK(ts_signal_pending() && strcmp(ts_signal_pending(), names[i]) == 0);
        ts_signal_release();
        CHECK(ts_signal_pending() == NULL);
    }
}

// How a child ends that raises these signals: its wait status.
static int end_of_child(int first, int second, int release) {
    const pid_t child = fork();
    if (child == 0) {
        ts_signal_catch();
        raise(first);
        if (release) {
            ts_signal_release();
        }
        raise(second);
        _exit(ts_signal_pending() ? 7 : 8);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}

static void test_second(void) {
    int status = end_of_child(SIGINT, SIGINT, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
    status = end_of_child(SIGTERM, SIGTERM, 0);  // a batch system may repeat itself
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    status = end_of_child(SIGTERM, SIGINT, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    status = end_of_child(SIGTERM, SIGTERM, 1);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

// The guarded file goes with the first request, and not before.
static void test_guard(void) {
    char path[] = "/tmp/test_signal_XXXXXX";
    const int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK_OK(ts_signal_catch());
    CHECK_OK(ts_signal_guard(path));
    CHECK_OK(ts_signal_guard(NULL));
    ts_signal_remove_guarded();
    CHECK(access(path, F_OK) == 0);
    CHECK_OK(ts_signal_guard(path));
    raise(SIGUSR1);
    CHECK(access(path, F_OK) != 0);
    CHECK_OK(ts_signal_guard(NULL));
    ts_signal_release();
    close(fd);
}

int main(void) {
    test_each();
    test_guard();
    test_second();
    return ts_test_end();
}
