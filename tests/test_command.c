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
    ts_string_list keep;
} settings;

static const ts_option table[] = {
    {"steps", TS_OPTION_INT, offsetof(settings, steps), "1", "steps", 1, 100, NULL, false},
    {"batch", TS_OPTION_INT, offsetof(settings, batch), "2", "samples of a step", 1, 100, NULL, false},
    {"seed", TS_OPTION_INT, offsetof(settings, seed), "3", "seed", 0, 100, NULL, false},
    {"data", TS_OPTION_STRING, offsetof(settings, data), NULL, "folder of the data", 0, 0, NULL, true},
    {"keep", TS_OPTION_LIST, offsetof(settings, keep), "x", "what is kept", 0, 0, NULL, false},
    {0}};
static const ts_command with_file = {.usage = "tessera try CONFIG.yaml", .table = table, .takes_file = true};
static const ts_command without_file = {.usage = "tessera try", .table = table};
static const ts_command with_argument = {
    .usage = "tessera try DATA", .table = table, .arguments = (const char *const[]){"data", NULL}, .keys = table};

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

// Arguments without a name are options too, which may be named as well.
static void check_arguments(void) {
    settings s;
    CHECK_OK(read_line(&with_argument, &s, 2, "--steps=7", "there", NULL));
    CHECK(s.steps == 7 && !strcmp(s.data, "there"));
    CHECK_OK(read_line(&with_argument, &s, 1, "--data=there", NULL, NULL));
    CHECK(!strcmp(s.data, "there"));
    CHECK_FAILS(read_line(&with_argument, &s, 2, "here", "there", NULL), TS_EUSAGE,
                "\"there\" is one argument too many");
    CHECK_FAILS(read_line(&with_argument, &s, 1, "\xff", NULL, NULL), TS_EINPUT, "is not UTF-8");
    CHECK_FAILS(read_line(&with_argument, &s, 1, "--steps=7", NULL, NULL), TS_EUSAGE, "\"data\" is missing");
}

// A list may be given item by item; the first one takes the place of the default.
static void check_lists(void) {
    settings s;
    CHECK_OK(read_line(&with_argument, &s, 1, "there", NULL, NULL));
    CHECK(s.keep.count == 1 && !strcmp(s.keep.items[0], "x"));
    CHECK_OK(read_line(&with_argument, &s, 3, "--keep=a,b", "there", "--keep=c"));
    CHECK(s.keep.count == 3 && !strcmp(s.keep.items[0], "a") && !strcmp(s.keep.items[2], "c"));
}

// Help asks for nothing else: neither the file nor what is required.
static void check_help(void) {
    settings s;
    CHECK_OK(read_line(&with_file, &s, 1, "--help", NULL, NULL));
    CHECK(help);
    CHECK_OK(read_line(&without_file, &s, 2, "--steps=7", "-h", NULL));
    CHECK(help);
    // The keys of the file that is an argument stand below the options.
    fflush(stdout);
    const int kept = dup(STDOUT_FILENO);
    CHECK(freopen(path, "w", stdout) == stdout);
    CHECK_OK(read_line(&with_argument, &s, 1, "--help", NULL, NULL));
    fflush(stdout);
    CHECK(dup2(kept, STDOUT_FILENO) == STDOUT_FILENO);
    close(kept);
    char text[4096] = "";
    FILE *printed = fopen(path, "r");
    CHECK(printed && fread(text, 1, sizeof text - 1, printed) > 0);
    fclose(printed);
    const char *keys = strstr(text, "\nThe file's keys:\n");
    CHECK(keys && strstr(keys, "\n  steps: N ") && strstr(text, "\n  --steps=N ") < keys);
}

int main(void) {
    static const char text[] = "steps: 10\nbatch: 20\ndata: here\n";
    const int file = mkstemp(path);
    CHECK(file >= 0 && write(file, text, sizeof text - 1) == (ssize_t)sizeof text - 1);
    close(file);
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 12, false));
    check_order();
    check_refusals();
    check_arguments();
    check_lists();
    check_help();
    ts_arena_close(&arena);
    unlink(path);
    return ts_test_end();
}
