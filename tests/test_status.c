// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=30
// Error texts, exit codes, log lines, the progress line and the clock's text.
#include "core/base/status.h"

#include <pthread.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "tests/ts_test.h"

static void *other_thread(void *unused) {
    (void)unused;
    CHECK(strcmp(ts_error_text(), "") == 0);
    (void)TS_FAIL(TS_EINPUT, "theirs");
    return NULL;
}

static int inner(int code) {
    return code ? TS_FAIL(code, "inner %d", 5) : TS_OK;
}
static int outer(int code) {
    TS_TRY(inner(code));
    return 17;
}

static void test_errors(void) {
    CHECK(outer(TS_OK) == 17);
    CHECK(outer(TS_EINPUT) == TS_EINPUT && strcmp(ts_error_text(), "inner 5") == 0);
    CHECK(strncmp(ts_error_place(), "tests/test_status.c:", 20) == 0);
    CHECK(ts_fail_context(TS_EINPUT, "file %s", "x") == TS_EINPUT);
    CHECK(strcmp(ts_error_text(), "file x: inner 5") == 0);
    // The old text may be an argument of the new one, and control characters cannot break the line.
    (void)TS_FAIL(TS_EINPUT, "again\n\x1b[2J: %s", ts_error_text());
    CHECK(strcmp(ts_error_text(), "again  [2J: file x: inner 5") == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, other_thread, NULL) == 0);
    pthread_join(thread, NULL);
    CHECK(strncmp(ts_error_text(), "again", 5) == 0);
    static char huge[10000];
    memset(huge, 'x', sizeof huge - 1);
    (void)TS_FAIL(TS_EINPUT, "%s", huge);
    CHECK(strlen(ts_error_text()) < 2048);
    ts_fail_context(TS_EINPUT, "%s", huge);
    ts_error_set(TS_EPEER, ts_error_place(), ts_error_text());
    CHECK(strlen(ts_error_text()) < 2048);
    ts_error_set(TS_EPEER, "a.c:1", "peer");
    CHECK(strcmp(ts_error_text(), "peer") == 0 && strcmp(ts_error_place(), "a.c:1") == 0);
}

static void test_exit_codes(void) {
    CHECK(ts_exit_code(TS_OK) == 0 && ts_exit_code(TS_EUSAGE) == 2 && ts_exit_code(TS_EINPUT) == 3);
    CHECK(ts_exit_code(TS_ERESOURCE) == 4 && ts_exit_code(TS_EPEER) == 5 && ts_exit_code(TS_EINTERNAL) == 6);
    CHECK(ts_exit_code(TS_ESTOPPED) == 75 && ts_exit_code(TS_EOF) == 6 && ts_exit_code(-77) == 6 &&
          ts_exit_code(3) == 6);
}

static void test_clock(void) {
    char text[32];
    CHECK(strcmp(ts_clock_format(6.2, text, sizeof text), "6 s") == 0);
    CHECK(strcmp(ts_clock_format(245, text, sizeof text), "4:05") == 0);
    CHECK(strcmp(ts_clock_format(3723, text, sizeof text), "1:02:03") == 0);
    CHECK(strcmp(ts_clock_format(59.7, text, sizeof text), "1:00") == 0);
    CHECK(strcmp(ts_clock_format((double)NAN, text, sizeof text), "?") == 0);
    CHECK(strcmp(ts_clock_format(-1, text, sizeof text), "?") == 0);
    const double start = ts_clock_seconds();
    usleep(2000);
    CHECK(ts_clock_seconds() - start >= 0.002);
    CHECK(ts_clock_unix_seconds() > 1.7e9);
}

static void test_log(void) {
    char path[] = "/tmp/tessera-log-XXXXXX";
    const int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    CHECK_OK(ts_log_set_file(path));
    TS_INFO("two\nlines \x1b[2J");
    TS_INFO("stage %d", 1);
    TS_DEBUG("hidden");
    ts_log_level level = TS_LOG_INFO;
    CHECK_OK(ts_log_parse_level("debug", &level));
    ts_log_set_level(level);
    TS_DEBUG("shown");
    ts_log_set_rank(2, 4);
    TS_INFO("hidden on rank 2");
    TS_WARN("careful");
    static char huge[10000];
    memset(huge, 'x', sizeof huge - 1);
    TS_ERROR("%s", huge);
    ts_log_set_rank(0, 1);
    ts_progress progress;
    ts_progress_begin(&progress, "ingest", "clips", 10);
    progress.terminal = false;
    ts_progress_update(&progress, 5, NULL);  // too soon for a line
    ts_progress_update(&progress, 10, NULL);
    ts_progress_end(&progress, "2 skipped");
    CHECK_OK(ts_log_set_file(NULL));
    TS_INFO("not in the file");

    char *text = NULL;
    size_t bytes = 0;
    CHECK_OK(ts_file_read(path, 100000, &text, &bytes));
    const char *expected = "two lines  [2J\nstage 1\ndebug: shown\n[2/4] warn: careful\n[2/4] error: xxx";
    CHECK(strncmp(text, expected, strlen(expected)) == 0);
    CHECK(!strstr(text, "hidden") && !strstr(text, "not in the file"));
    const char *line = strstr(text, "\ningest 10/10 clips");
    CHECK(line && strstr(line, "in all") && strstr(line, "2 skipped\n"));
    free(text);
    unlink(path);
    CHECK_FAILS(ts_log_parse_level("loud", &level), TS_EUSAGE, "\"loud\" is unknown");
    CHECK_FAILS(ts_log_set_file("/nonexistent/log"), TS_EINPUT, "/nonexistent/log");
}

int main(void) {
    test_errors();
    test_exit_codes();
    test_clock();
    test_log();
    return ts_test_end();
}
