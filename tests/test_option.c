// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// Option tables: defaults, YAML and its attacks, the command line, help, and the round trip of what is saved.
#include "core/config/option.h"

#include <stddef.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/rng.h"
#include "tests/ts_test.h"

typedef struct settings {
    int64_t steps, seed;
    double rate, shift;
    bool ema;
    const char *data, *note;
    int precision;
    ts_size2 size;
    ts_string_list prompts;
} settings;

static const char *const precisions[] = {"fp32", "bf16", NULL};
static const ts_option table[] = {
    {"train.steps", TS_OPTION_INT, offsetof(settings, steps), "1000", "optimizer steps", 1, 1000000, NULL, false},
    {"seed", TS_OPTION_INT, offsetof(settings, seed), NULL, "seed of all random numbers", 0, 0, NULL, false},
    {"train.rate", TS_OPTION_REAL, offsetof(settings, rate), "1e-4", "largest learning rate", 0, 1, NULL, false},
    {"train.noise.shift", TS_OPTION_REAL, offsetof(settings, shift), "3", "shift", -INFINITY, INFINITY, NULL, false},
    {"train.ema", TS_OPTION_BOOL, offsetof(settings, ema), "true", "keep averaged weights", 0, 0, NULL, false},
    {"data", TS_OPTION_STRING, offsetof(settings, data), NULL, "folder of the data set", 0, 0, NULL, true},
    {"note", TS_OPTION_STRING, offsetof(settings, note), NULL, "free text", 0, 0, NULL, false},
    {"precision", TS_OPTION_CHOICE, offsetof(settings, precision), "bf16", "operands", 0, 0, precisions, false},
    {"size", TS_OPTION_SIZE, offsetof(settings, size), "64x48", "pixels", 8, 4096, NULL, false},
    {"sample.prompts", TS_OPTION_LIST, offsetof(settings, prompts), "a,b c", "prompts", 0, 0, NULL, false},
    {0}};

static ts_arena *arena;
static char path[64];

static void write_bytes(const char *text, size_t bytes) {
    unlink(path);  // a new file: some file systems flush one that is emptied and rewritten
    FILE *file = fopen(path, "wb");
    fwrite(text, 1, bytes, file);
    fclose(file);
}

static int read_text(settings *s, const char *text) {
    CHECK_OK(ts_options_default(table, s, arena));
    write_bytes(text, strlen(text));
    return ts_options_read_yaml(table, s, arena, path);
}

static void test_defaults(void) {
    settings s;
    memset(&s, 0xff, sizeof s);
    CHECK_OK(ts_options_default(table, &s, arena));
    CHECK(s.steps == 1000 && s.seed == 0 && s.rate == 1e-4 && s.shift == 3 && s.ema && !s.data && s.precision == 1);
    CHECK(s.size.width == 64 && s.size.height == 48);
    CHECK(s.prompts.count == 2 && strcmp(s.prompts.items[1], "b c") == 0);
    CHECK_FAILS(ts_options_check(table, &s), TS_EUSAGE, "\"data\" is missing");
    s.data = "x";
    CHECK_OK(ts_options_check(table, &s));
}

static void test_yaml_values(void) {
    settings s;
    CHECK_OK(read_text(&s, "# a comment\n"
                           "train:\n  steps: 10_000\n  rate: 2.5e-4\n  noise:\n    shift: -7\n  ema: off\n"
                           "seed: -5\ndata: /a/b\nnote: \"x: y\"\nprecision: fp32\nsize: 128x96\n"
                           "sample:\n  prompts:\n    - a red circle, small\n    - 'b'\n"));
    CHECK(s.steps == 10000 && s.rate == 2.5e-4 && s.shift == -7 && !s.ema && s.seed == -5 && s.precision == 0);
    CHECK(strcmp(s.data, "/a/b") == 0 && strcmp(s.note, "x: y") == 0 && s.size.width == 128 && s.size.height == 96);
    CHECK(s.prompts.count == 2 && strcmp(s.prompts.items[0], "a red circle, small") == 0);
    CHECK_OK(read_text(&s, "train.steps: 7\ntrain.noise: {shift: 1}\nsample.prompts: []\nnote: ~\n"));
    CHECK(s.steps == 7 && s.shift == 1 && s.prompts.count == 0 && !s.note);
    CHECK_OK(read_text(&s, ""));
    CHECK_OK(read_text(&s, "# nothing\n"));
    CHECK_OK(read_text(&s, "train:\n"));
    CHECK_OK(read_text(&s, "---\nnote: 'null'\n"));
    CHECK(s.note && strcmp(s.note, "null") == 0);
}

static void test_yaml_mistakes(void) {
    settings s;
    CHECK_FAILS(read_text(&s, "seed: 1\ntrain:\n  stepz: 3\n"), TS_EUSAGE,
                ":3: unknown key \"stepz\"; did you mean \"steps\"?");
    CHECK_FAILS(read_text(&s, "trian:\n  steps: 3\n"), TS_EUSAGE, ":1: unknown key \"trian\"; did you mean \"train\"?");
    CHECK_FAILS(read_text(&s, "steps: 3\n"), TS_EUSAGE, "did you mean \"train.steps\"?");
    CHECK_FAILS(read_text(&s, "qqqqqqqqq: 3\n"), TS_EUSAGE, "unknown key \"qqqqqqqqq\"; --help");
    CHECK_FAILS(read_text(&s, "train:\n  steps: 1.5\n"), TS_EUSAGE,
                ":2: \"train.steps\" must be a whole number, and is \"1.5\"");
    CHECK_FAILS(read_text(&s, "train:\n  steps: 12abc\n"), TS_EUSAGE, "whole number");
    CHECK_FAILS(read_text(&s, "train:\n  steps: 0\n"), TS_EUSAGE, "\"train.steps\" is 0; it must be 1 to 1000000");
    CHECK_FAILS(read_text(&s, "train:\n  steps: 99999999999999999999\n"), TS_EUSAGE, "whole number");
    CHECK_FAILS(read_text(&s, "train:\n  steps: 1__0\n"), TS_EUSAGE, "whole number");
    CHECK_FAILS(read_text(&s, "train:\n  steps:\n"), TS_EUSAGE, "whole number");
    CHECK_FAILS(read_text(&s, "train:\n  steps: [1]\n"), TS_EUSAGE, "must be one plain value, and is a list");
    CHECK_FAILS(read_text(&s, "train:\n  rate: 1e999\n"), TS_EUSAGE, "must be a number");
    CHECK_FAILS(read_text(&s, "train:\n  rate: nan\n"), TS_EUSAGE, "must be a number");
    CHECK_FAILS(read_text(&s, "train:\n  rate: 0x1p3\n"), TS_EUSAGE, "must be a number");
    CHECK_FAILS(read_text(&s, "train:\n  rate: 2\n"), TS_EUSAGE, "it must be 0 to 1");
    CHECK_FAILS(read_text(&s, "train:\n  ema: maybe\n"), TS_EUSAGE, "true or false");
    CHECK_FAILS(read_text(&s, "train: 5\n"), TS_EUSAGE, "\"train\" is a section");
    CHECK_FAILS(read_text(&s, "precision: bf61\n"), TS_EUSAGE, "one of fp32, bf16; did you mean \"bf16\"?");
    CHECK_FAILS(read_text(&s, "size: 64\n"), TS_EUSAGE, "a size such as 64x48");
    CHECK_FAILS(read_text(&s, "size: 64x2\n"), TS_EUSAGE, "it must be 8 to 4096");
    CHECK_FAILS(read_text(&s, "sample:\n  prompts: [a, [b]]\n"), TS_EUSAGE, "list of plain values");
    CHECK_FAILS(read_text(&s, "- a\n- b\n"), TS_EUSAGE, ":1: the file must hold lines");
    CHECK_FAILS(read_text(&s, "just text\n"), TS_EUSAGE, "the file must hold lines");
    CHECK_FAILS(read_text(&s, "? [a]\n: 1\n"), TS_EUSAGE, "a key must be a plain name");
    CHECK_FAILS(read_text(&s, "seed: \"1\n"), TS_EUSAGE, "not valid YAML");
    CHECK_FAILS(read_text(&s, "note: \"a\\0b\"\n"), TS_EUSAGE, "zero byte");
    CHECK_FAILS(ts_options_read_yaml(table, &s, arena, "/nonexistent/x.yaml"), TS_EINPUT, "x.yaml");
}

static void test_yaml_attacks(void) {
    settings s;
    CHECK_FAILS(read_text(&s, "note: &a x\ndata: *a\n"), TS_EUSAGE, ":1: anchors");
    CHECK_FAILS(read_text(&s, "data: *a\n"), TS_EUSAGE, "aliases");
    CHECK_FAILS(read_text(&s, "a: &a [x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\n"), TS_EUSAGE, "unknown key \"a\"");
    CHECK_FAILS(read_text(&s, "sample: {prompts: &a [*a, *a]}\n"), TS_EUSAGE, "anchors");
    CHECK_FAILS(read_text(&s, "note: !!binary abcd\n"), TS_EUSAGE, "tags");
    CHECK_FAILS(read_text(&s, "seed: 1\nnote: x\nseed: 2\n"), TS_EUSAGE,
                ":3: key \"seed\" occurs twice; the first is on line 1");
    CHECK_FAILS(read_text(&s, "train: {steps: 5}\ntrain: {rate: 1}\n"), TS_EUSAGE, "occurs twice");
    CHECK_FAILS(read_text(&s, "train: {steps: 5}\ntrain.steps: 6\n"), TS_EUSAGE, "occurs twice");
    CHECK_FAILS(read_text(&s, "seed: 1\n---\nseed: 2\n"), TS_EUSAGE, "more than one document");
    CHECK_FAILS(read_text(&s, "%YAML 1.1\n---\nseed: 2\n"), TS_EUSAGE, ":1: directives");
    CHECK_FAILS(read_text(&s, "note: \xff\xfe\n"), TS_EUSAGE, "not UTF-8");
    CHECK_FAILS(read_text(&s, "note: {{{{{{{{{{{{{{{{{{{{{{{\n"), TS_EUSAGE, "\"note\" must be one plain value");
}

// `count` times `unit`, after `head`: must be refused, or read where `message` is NULL, in no time.
static void attack(const char *head, const char *unit, size_t count, const char *message) {
    const size_t bytes = strlen(head) + count * strlen(unit);
    char *text = malloc(bytes + 1), *end = stpcpy(text, head);
    for (size_t i = 0; i < count; i++) {
        end = stpcpy(end, unit);
    }
    settings s;
    CHECK_OK(ts_options_default(table, &s, arena));
    write_bytes(text, bytes);
    const double start = ts_clock_seconds();
    if (message) {
        CHECK_FAILS(ts_options_read_yaml(table, &s, arena, path), TS_EUSAGE, message);
    } else {
        CHECK_OK(ts_options_read_yaml(table, &s, arena, path));
    }
    const double seconds = ts_clock_seconds() - start;
    CHECK(seconds < 1);
    if (seconds > 0.1) {
        printf("%s%s...: %.2f s\n", head, unit, seconds);
    }
    free(text);
}

static void test_large_attacks(void) {
    settings settings_read;
    attack("", "[", 200000, "lines of the form");
    attack("sample:\n  prompts: ", "[", 200000, "list of plain values");
    attack("", "[\n", 200000, "lines of the form");
    attack("", "{", 200000, "a key must be a plain name");
    attack("", "{a: ", 200000, "unknown key");
    attack("", "- ", 200000, "lines of the form");
    attack("", "? ", 200000, "a key must be a plain name");
    attack("sample: {prompts: [", "[],", 200000, "list of plain values");
    attack("sample: {prompts: [", "a,", 200000, "more than 100000 values");
    attack("sample:\n  prompts:\n", "  - a\n", 100000, "more than 100000 values");
    attack("", "%TAG !a! b\n", 80000, "directives");
    attack("#\r", "%TAG !a! b\r", 80000, "directives");
    attack("#\xe2\x80\xa8", "%TAG !a! b\xe2\x80\xa8", 60000, "directives");
    CHECK_OK(read_text(&settings_read, "note: 50 %, caf\xc3\xa9%\n"));
    attack("note: \"", "x", 1000000, "not valid YAML");
    attack("", "seed: 1\n", 100000, "occurs twice");
    attack("# ", "#", 1000000, NULL);
    attack("", "&a ", 300000, "");
    attack("", "a: ", 300000, "");
    attack("note: ", "'' ", 300000, "");
    attack("note: |\n", "\n", 1000000, NULL);
    char huge[] = "seed: 1\n";
    FILE *file = fopen(path, "wb");
    fwrite(huge, 1, sizeof huge - 1, file);
    CHECK(ftruncate(fileno(file), (5 << 20)) == 0);
    fclose(file);
    settings s;
    CHECK_FAILS(ts_options_read_yaml(table, &s, arena, path), TS_EINPUT, "more than the 4194304");
}

// Damaged files: read or refused with the file's name, never a crash.
static void test_mutants(void) {
    static const char original[] = "train:\n  steps: 10_000\n  rate: 2.5e-4\n  noise: {shift: -7}\nnote: \"x\\n\"\n"
                                   "sample:\n  prompts:\n    - a\n    - 'b'\nsize: 64x64\nprecision: fp32\n";
    static const char interesting[] = "[]{}&*!%|>'\":-?#,\n\t \\~@`0\xff\xc3";
    enum { LENGTH = sizeof original - 1 };
    ts_arena *scratch = NULL;
    CHECK_OK(ts_arena_open(&scratch, "mutants", 1 << 20, false));
    for (uint32_t trial = 0; trial < 2000; trial++) {
        char text[LENGTH];
        memcpy(text, original, LENGTH);
        for (uint32_t change = 0; change <= trial % 4; change++) {
            const uint64_t where = ts_rng_below(5, TS_RNG_TEST, trial, 2 * change, LENGTH);
            text[where] = interesting[ts_rng_below(5, TS_RNG_TEST, trial, 2 * change + 1, sizeof interesting)];
        }
        write_bytes(text, trial % 5 ? LENGTH : ts_rng_below(5, TS_RNG_TEST, trial, 99, LENGTH));
        settings s;
        CHECK_OK(ts_options_default(table, &s, scratch));
        const int status = ts_options_read_yaml(table, &s, scratch, path);
        CHECK(status == TS_OK || strncmp(ts_error_text(), path, strlen(path)) == 0);
        CHECK(status == TS_OK || status == TS_EUSAGE || status == TS_EINPUT);
        ts_arena_reset(scratch);
    }
    ts_arena_close(&scratch);
}

static int read_args(settings *s, int count, const char *const *arguments, bool *help) {
    const char *rest[2];
    int rest_count = 2;
    char *argv[16] = {(char[]){"train"}};
    for (int i = 0; i < count; i++) {
        argv[i + 1] = strdup(arguments[i]);
    }
    CHECK_OK(ts_options_default(table, s, arena));
    const int status = ts_options_read_args(table, s, arena, count + 1, argv, rest, &rest_count, help);
    if (!status && rest_count) {
        s->note = ts_arena_strdup(arena, rest[rest_count - 1]);
    }
    for (int i = 0; i < count; i++) {
        free(argv[i + 1]);
    }
    return status;
}
#define ARGS(...)                                                                                                      \
    (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)), (const char *[]) {                                  \
        __VA_ARGS__                                                                                                    \
    }

static void test_args(void) {
    settings s;
    bool help;
    CHECK_OK(
        read_args(&s, ARGS("run.yaml", "--train.steps=5", "--seed", "-3", "--train.ema=no", "--size", "16x8"), &help));
    CHECK(s.steps == 5 && s.seed == -3 && !s.ema && s.size.width == 16 && !help && strcmp(s.note, "run.yaml") == 0);
    CHECK_OK(read_args(&s, ARGS("--train.ema", "x", "--", "--y"), &help));
    CHECK(s.ema && strcmp(s.note, "--y") == 0);
    CHECK_OK(read_args(&s, ARGS("--sample.prompts=a,,c", "--help"), &help));
    CHECK(help && s.prompts.count == 3 && strcmp(s.prompts.items[1], "") == 0);
    CHECK_FAILS(read_args(&s, ARGS("--stepz=5"), &help), TS_EUSAGE, "command line: unknown option \"stepz\"");
    CHECK_FAILS(read_args(&s, ARGS("--seed"), &help), TS_EUSAGE, "--seed needs a value");
    CHECK_FAILS(read_args(&s, ARGS("--seed", "--train.ema"), &help), TS_EUSAGE, "--seed needs a value");
    CHECK_FAILS(read_args(&s, ARGS("--seed="), &help), TS_EUSAGE, "whole number");
    CHECK_FAILS(read_args(&s, ARGS("-x"), &help), TS_EUSAGE, "not an option");
    CHECK_FAILS(read_args(&s, ARGS("a", "b", "c"), &help), TS_EUSAGE, "\"c\" is one argument too many");
    CHECK_FAILS(read_args(&s, ARGS("--note=\xc3("), &help), TS_EINPUT, "not UTF-8");
}

static void check_round_trip(const settings *s) {
    settings back;
    FILE *file = fopen(path, "wb");
    CHECK_OK(ts_options_write_yaml(table, s, file));
    fclose(file);
    CHECK_OK(ts_options_default(table, &back, arena));
    CHECK_OK(ts_options_read_yaml(table, &back, arena, path));
    const char *first = ts_options_to_json(table, s, arena), *second = ts_options_to_json(table, &back, arena);
    CHECK(first && second && strcmp(first, second) == 0);
    CHECK(back.rate == s->rate && back.shift == s->shift);
}

static void test_round_trip(void) {
    static const char *const texts[] = {"",
                                        " ",
                                        "null",
                                        "~",
                                        "true",
                                        "- a",
                                        "a: b",
                                        "#x",
                                        "x #y",
                                        "\"",
                                        "\\",
                                        "'",
                                        "a\nb\n",
                                        "\n",
                                        "\t",
                                        "\r\n",
                                        "\x01\x7f",
                                        "[a]",
                                        "{",
                                        "%",
                                        "@",
                                        "`",
                                        "1.5",
                                        "0x10",
                                        "\xc3\xa9",
                                        "\xe2\x80\xa8",
                                        "\xef\xbb\xbf"
                                        "x",
                                        "\xf0\x9f\x8e\xac",
                                        "\xc2\x85",
                                        "\xef\xbf\xbf",
                                        "a  b",
                                        " lead",
                                        "trail ",
                                        "---",
                                        "...",
                                        "&a",
                                        "*a",
                                        "!t",
                                        "|",
                                        ">",
                                        "?",
                                        "C:\\dir",
                                        "a,b",
                                        "no",
                                        NULL};
    settings s;
    CHECK_OK(ts_options_default(table, &s, arena));
    check_round_trip(&s);
    int count = 0;
    for (; texts[count]; count++) {
        s.note = texts[count];
        check_round_trip(&s);
    }
    s.prompts = (ts_string_list){count, texts};
    s.rate = 0.1;
    s.shift = -1.0 / 3;
    s.steps = 999999;
    s.seed = INT64_MIN;
    check_round_trip(&s);
    // A string that is not text cannot be saved, and says so.
    s.note = "\xff";
    FILE *file = fopen("/dev/null", "w");
    CHECK_FAILS(ts_options_write_yaml(table, &s, file), TS_EINPUT, "not UTF-8");
    fclose(file);
    CHECK(ts_options_to_json(table, &s, arena) == NULL);
}

static void test_help(void) {
    FILE *file = fopen(path, "wb+");
    ts_options_print_help(table, file);
    char text[8192];
    rewind(file);
    const size_t bytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[bytes] = '\0';
    CHECK(strstr(text, "  --train.steps=N                 optimizer steps (1 to 1000000; default 1000)\n"));
    CHECK(strstr(text, "(fp32 or bf16; default bf16)"));
    CHECK(strstr(text, "folder of the data set (required)"));
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        CHECK(strlen(line) <= 100);
    }
}

static void test_json(void) {
    settings s;
    CHECK_OK(ts_options_default(table, &s, arena));
    const char *text = ts_options_to_json(table, &s, arena);
    CHECK(text && strstr(text, "\"train\":{\"ema\":true,\"noise\":{\"shift\":3.0}"));
    CHECK(text && strstr(text, "\"size\":[64,48]") && strstr(text, "\"note\":null"));
}

static void test_nearest(void) {
    const char *const names[] = {"steps", "rate", "warmup", NULL};
    CHECK(strcmp(ts_nearest_name("stesp", names), "steps") == 0);
    CHECK(strcmp(ts_nearest_name("warm-up", names), "warmup") == 0);
    CHECK(ts_nearest_name("banana", names) == NULL);
    CHECK(ts_nearest_name("", names) == NULL);
}

int main(void) {
    strcpy(path, "/tmp/tessera-option-XXXXXX");
    const int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    CHECK_OK(ts_arena_open(&arena, "options", 1 << 16, false));
    test_defaults();
    test_yaml_values();
    test_yaml_mistakes();
    test_yaml_attacks();
    test_large_attacks();
    test_mutants();
    test_args();
    test_round_trip();
    test_help();
    test_json();
    test_nearest();
    ts_arena_close(&arena);
    unlink(path);
    return ts_test_end();
}
