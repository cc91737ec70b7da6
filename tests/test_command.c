// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// A subcommand's command line: what wins over what, the file's place, and what is refused.
#include "core/config/command.h"

#include <stddef.h>
#include <unistd.h>

#include "tests/ts_test.h"

typedef struct settings {
    int64_t steps, batch, seed;
    const char *data;
} settings;

static const ts_option table[] = {
    {"steps", TS_OPTION_INT, offsetof(settings, steps), "1", "steps", 1, 100, NULL, false},
    {"batch", TS_OPTION_INT, offsetof(settings, batch), "2", "samples of a step", 1, 100, NULL, false},
    {"seed", TS_OPTION_INT, offsetof(settings, seed), "3", "seed", 0, 100, NULL, false},
    {"data", TS_OPTION_STRING, offsetof(settings, data), NULL, "folder of the data", 0, 0, NULL, true},
    {0}};
static const ts_command with_file = {"tessera try CONFIG.yaml", table, true};
static const ts_command without_file = {"tessera try", table, false};

static ts_arena *arena;
static char path[] = "/tmp/test_command_XXXXXX";
static bool help;

static int read_line(const ts_command *command, settings *s, int count, const char *a, const char *b, const char *c) {
    char *argv[] = {(char *)"try", (char *)a, (char *)b, (char *)c, NULL};
    *s = (settings){0};
    return ts_command_read(command, s, arena, 1 + count, argv, &help);
}

static void check_order(void) {
    settings s;
    CHECK_OK(read_line(&with_file, &s, 2, path, "--steps=7", NULL));
    CHECK(s.steps == 7 && s.batch == 20 && s.seed == 3);  // argument, file, default
    CHECK(!strcmp(s.data, "here") && !help);
    CHECK_OK(read_line(&with_file, &s, 2, "--steps=7", path, NULL));  // the file's place does not matter
    CHECK(s.steps == 7 && s.batch == 20 && s.seed == 3);
    CHECK_OK(read_line(&without_file, &s, 2, "--data", "there", NULL));
    CHECK(s.steps == 1 && s.batch == 2 && !strcmp(s.data, "there"));
}

static void check_refusals(void) {
    settings s;
    CHECK_FAILS(read_line(&with_file, &s, 1, "--steps=7", NULL, NULL), TS_EUSAGE, "tessera try CONFIG.yaml");
    CHECK_FAILS(read_line(&with_file, &s, 2, path, path, NULL), TS_EUSAGE, "one argument too many");
    CHECK_FAILS(read_line(&without_file, &s, 1, path, NULL, NULL), TS_EUSAGE, "one argument too many");
    CHECK_FAILS(read_line(&without_file, &s, 1, "--steps=7", NULL, NULL), TS_EUSAGE, "\"data\" is missing");
    CHECK_FAILS(read_line(&with_file, &s, 1, "/nowhere.yaml", NULL, NULL), TS_EINPUT, "/nowhere.yaml");
}

// Help asks for nothing else: neither the file nor what is required.
static void check_help(void) {
    settings s;
    CHECK_OK(read_line(&with_file, &s, 1, "--help", NULL, NULL));
    CHECK(help);
    CHECK_OK(read_line(&without_file, &s, 2, "--steps=7", "-h", NULL));
    CHECK(help);
}

int main(void) {
    static const char text[] = "steps: 10\nbatch: 20\ndata: here\n";
    const int file = mkstemp(path);
    CHECK(file >= 0 && write(file, text, sizeof text - 1) == (ssize_t)sizeof text - 1);
    close(file);
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 12, false));
    check_order();
    check_refusals();
    check_help();
    ts_arena_close(&arena);
    unlink(path);
    return ts_test_end();
}
