// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// Lists of records in option tables: values and defaults, lines and places of messages, what is refused, the command
// line, help, and the round trip of what is saved.
#include <stddef.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/rng.h"
#include "core/config/option.h"
#include "tests/ts_test.h"

typedef struct box {
    double left;
    ts_string_list tags;
} box;
typedef struct card {
    const char *text;
    int64_t number, line;
    double weight, fade;
    int kind;
    bool loud;
    struct {
        int64_t count;
        box *item;
    } boxes;
} card;
typedef struct board {
    int64_t frames;
    double level;
    ts_size2 size;
    struct {
        int64_t count;
        card *item;
    } cards;
} board;

static const ts_option box_options[] = {
    {"left", TS_OPTION_REAL, offsetof(box, left), "0.5", "left edge", 0, 9, NULL, false},
    {"tags", TS_OPTION_LIST, offsetof(box, tags), "a,b", "words", 0, 0, NULL, false},
    {0}};
static const ts_record box_record = {box_options, sizeof(box), TS_RECORD_NO_LINE};
static const char *const kinds[] = {"plain", "fancy", NULL};
static const ts_option card_options[] = {
    {"text", TS_OPTION_STRING, offsetof(card, text), NULL, "what is shown", 0, 0, NULL, true},
    {"number", TS_OPTION_INT, offsetof(card, number), "7", "a number", 0, 0, NULL, false},
    {"look.weight", TS_OPTION_REAL, offsetof(card, weight), "1", "weight", 0, INFINITY, NULL, false},
    {"look.fade", TS_OPTION_REAL_OR_NAN, offsetof(card, fade), NULL, "weight at the end", 0, 1, NULL, false},
    {"kind", TS_OPTION_CHOICE, offsetof(card, kind), "fancy", "looks", 0, 0, kinds, false},
    {"loud", TS_OPTION_BOOL, offsetof(card, loud), NULL, "louder", 0, 0, NULL, false},
    {"boxes", TS_OPTION_RECORDS, offsetof(card, boxes), NULL, "where", 0, 0, &box_record, false},
    {0}};
static const ts_record card_record = {card_options, sizeof(card), offsetof(card, line)};
static const ts_option table[] = {
    {"frames", TS_OPTION_INT, offsetof(board, frames), "17", "frames", 0, 0, NULL, false},
    {"level", TS_OPTION_REAL_OR_NAN, offsetof(board, level), NULL, "level", 0, 1, NULL, false},
    {"size", TS_OPTION_SIZE, offsetof(board, size), NULL, "pixels", 8, 4096, NULL, false},
    {"cards", TS_OPTION_RECORDS, offsetof(board, cards), NULL, "what is shown when", 0, 0, &card_record, true},
    {0}};

static ts_arena *arena;
static char path[64];

static int read_text(board *b, const char *text) {
    unlink(path);
    FILE *file = fopen(path, "wb");
    fputs(text, file);
    fclose(file);
    CHECK_OK(ts_options_default(table, b, arena));
    return ts_options_read_yaml(table, b, arena, path);
}

static void test_values(void) {
    board b;
    CHECK_OK(ts_options_default(table, &b, arena));
    CHECK(b.cards.count == 0 && !b.cards.item && isnan(b.level));
    CHECK_FAILS(ts_options_check(table, &b), TS_EUSAGE, "\"cards\" is missing; give its entries in the file");
    CHECK_OK(read_text(&b, "frames: 33\nlevel: 0\n# first\ncards:\n  - text: one\n    look: {fade: 0, weight: 3}\n"
                           "    boxes:\n      - left: 2\n      - {}\n\n  - number: -1\n    text: \"two: 2\"\n"
                           "    kind: plain\n    look.fade: ~\n    loud: yes\n    boxes: []\n"));
    CHECK_OK(ts_options_check(table, &b));
    CHECK(b.frames == 33 && b.level == 0 && b.cards.count == 2);
    const card *one = &b.cards.item[0], *two = &b.cards.item[1];
    CHECK(strcmp(one->text, "one") == 0 && one->number == 7 && one->weight == 3 && one->fade == 0 && one->kind == 1);
    CHECK(!one->loud && one->line == 5 && one->boxes.count == 2 && one->boxes.item[0].left == 2);
    CHECK(one->boxes.item[1].left == 0.5 && one->boxes.item[1].tags.count == 2);
    CHECK(strcmp(two->text, "two: 2") == 0 && two->number == -1 && two->weight == 1 && isnan(two->fade));
    CHECK(two->kind == 0 && two->loud && two->line == 11 && two->boxes.count == 0);
    CHECK_OK(read_text(&b, "cards: [{text: a}, {text: b, boxes: [{left: 1, tags: [x, y, z]}]},\n {text: c}]\n"));
    CHECK(b.cards.count == 3 && b.cards.item[2].line == 2 && b.cards.item[1].boxes.item[0].tags.count == 3);
    CHECK_OK(read_text(&b, "cards: []\n"));
    CHECK_OK(read_text(&b, "cards:\n"));
    CHECK(b.cards.count == 0);
}

static void test_mistakes(void) {
    board b;
    CHECK_FAILS(read_text(&b, "cards:\n  - text: a\n  - number: 1\n"), TS_EUSAGE,
                ":3: cards[1]: \"text\" is missing; add \"text: ...\" (what is shown)");
    CHECK_FAILS(read_text(&b, "cards:\n  - text: a\n    txet: b\n"), TS_EUSAGE,
                ":3: cards[0]: unknown key \"txet\"; did you mean \"text\"?");
    CHECK_FAILS(read_text(&b, "cards:\n  - text: a\n    number: 1\n    text: b\n"), TS_EUSAGE,
                ":4: cards[0]: key \"text\" occurs twice; the first is on line 2");
    CHECK_FAILS(read_text(&b, "cards:\n  - text: a\n    boxes:\n      - left: 1\n      - left: 10\n"), TS_EUSAGE,
                ":5: cards[0].boxes[1]: \"left\" is 10; it must be 0 to 9");
    CHECK_FAILS(read_text(&b, "cards:\n  - text: a\n    boxes:\n      - left: 1\n    kind: plane\n"), TS_EUSAGE,
                ":5: cards[0]: \"kind\" is \"plane\"");
    CHECK_FAILS(read_text(&b, "cards:\n  - text: a\nframe: 1\n"), TS_EUSAGE, ":3: unknown key \"frame\"");
    CHECK_FAILS(read_text(&b, "cards:\n  - text: a\ncards:\n  - text: b\n"), TS_EUSAGE,
                ":3: key \"cards\" occurs twice");
    CHECK_FAILS(read_text(&b, "cards: a\n"), TS_EUSAGE,
                "\"cards\" must be a list of entries (\"- key: value\"), and is a value");
    CHECK_FAILS(read_text(&b, "cards: {text: a}\n"), TS_EUSAGE, "list of entries (\"- key: value\"), and is a map");
    CHECK_FAILS(read_text(&b, "cards:\n  - a\n"), TS_EUSAGE, ":2: each entry of \"cards\" must hold lines of the form");
    CHECK_FAILS(read_text(&b, "cards:\n  - [a]\n"), TS_EUSAGE, "each entry of \"cards\"");
    CHECK_FAILS(read_text(&b, "cards:\n  -\n"), TS_EUSAGE, "each entry of \"cards\"");
    CHECK_FAILS(read_text(&b, "cards:\n  - text: {a: 1}\n"), TS_EUSAGE, "cards[0]: \"text\" must be one plain value");
    CHECK_FAILS(read_text(&b, "cards:\n  - look: 1\n"), TS_EUSAGE, "cards[0]: \"look\" is a section");
    CHECK_FAILS(read_text(&b, "cards:\n  - {text: a, look: {fade: 2}}\n"), TS_EUSAGE,
                "\"look.fade\" is 2; it must be 0 to 1");
    CHECK_FAILS(read_text(&b, "cards:\n  - &a {text: a}\n  - *a\n"), TS_EUSAGE, ":2: anchors");
    CHECK_FAILS(read_text(&b, "cards.text: a\n"), TS_EUSAGE, "unknown key \"cards.text\"");
}

// A file of `count` times `unit` after `head`: read or refused in no time and little memory.
static void attack(const char *head, const char *unit, int64_t count, const char *message) {
    const size_t bytes = strlen(head) + (size_t)count * strlen(unit);
    char *text = malloc(bytes + 1), *end = stpcpy(text, head);
    for (int64_t i = 0; i < count; i++) {
        end = stpcpy(end, unit);
    }
    board b;
    ts_arena_reset(arena);
    const double start = ts_clock_seconds();
    if (message) {
        CHECK_FAILS(read_text(&b, text), TS_EUSAGE, message);
    } else {
        CHECK_OK(read_text(&b, text));
    }
    CHECK(ts_clock_seconds() - start < 2);
    CHECK(ts_arena_used(arena) < (64 << 20));
    free(text);
}

static void test_attacks(void) {
    attack("cards:\n", "- text: a card of a long board\n", 33000, NULL);
    attack("cards:\n", "- {text: a, boxes: [{tags: [a]}, {}]}\n", 9000, NULL);
    attack("cards:\n", "- text: a card of a longer board\n", 34000, "more than 100000 values");
    attack("cards: [", "{text: a},", 60000, "more than 100000 values");
    attack("cards: [{text: a, boxes: [", "{},", 120000, "more than 100000 values");
    attack("cards: ", "[", 200000, "each entry of \"cards\"");
    attack("", "cards:\n- text: a\n  boxes:\n  - ", 1000, "boxes[0]: unknown key \"cards\"");
    attack("cards: [{text: a}, {boxes: ", "[{boxes: ", 1000, "unknown key \"boxes\"");
}

// Damaged files: read or refused with the file's name, never a crash.
static void test_mutants(void) {
    static const char original[] =
        "frames: 33\ncards:\n  - text: one\n    look: {fade: 0, weight: 3}\n    boxes:\n"
        "      - left: 2\n        tags: [a, b]\n      - {}\n  - number: -1\n    text: \"two: 2\"\n";
    static const char interesting[] = "[]{}&*!%|>'\":-?#,\n\t \\~@`0\xff\xc3";
    enum { LENGTH = sizeof original - 1 };
    for (uint32_t trial = 0; trial < 1000; trial++) {
        char text[LENGTH + 1];
        memcpy(text, original, sizeof text);
        for (uint32_t change = 0; change <= trial % 4; change++) {
            const uint64_t where = ts_rng_below(6, TS_RNG_TEST, trial, 2 * change, LENGTH);
            text[where] = interesting[ts_rng_below(6, TS_RNG_TEST, trial, 2 * change + 1, sizeof interesting - 1)];
        }
        text[trial % 5 ? LENGTH : ts_rng_below(6, TS_RNG_TEST, trial, 99, LENGTH)] = '\0';
        board b;
        ts_arena_reset(arena);
        const int status = read_text(&b, text);
        CHECK(status == TS_OK || (status == TS_EUSAGE && strncmp(ts_error_text(), path, strlen(path)) == 0) ||
              status == TS_EINPUT);
        CHECK(status != TS_OK || ts_options_to_json(table, &b, arena));
    }
    ts_arena_reset(arena);
}

static void test_args(void) {
    board b;
    char *argv[] = {(char[]){"show"}, (char[]){"--cards=a"}};
    const char *rest[1];
    int rest_count = 1;
    bool help;
    CHECK_OK(ts_options_default(table, &b, arena));
    CHECK_FAILS(ts_options_read_args(table, &b, arena, 2, argv, rest, &rest_count, &help), TS_EUSAGE,
                "command line: \"cards\" is a list of entries with keys of their own; give it in a YAML file");
}

static void read_back(char *text, size_t bytes) {
    FILE *file = fopen(path, "rb");
    text[fread(text, 1, bytes - 1, file)] = '\0';
    fclose(file);
}

static void check_round_trip(const board *b, int (*write)(const ts_option *, const void *, FILE *)) {
    board back;
    unlink(path);
    FILE *file = fopen(path, "wb");
    CHECK_OK(write(table, b, file));
    fclose(file);
    CHECK_OK(ts_options_default(table, &back, arena));
    CHECK_OK(ts_options_read_yaml(table, &back, arena, path));
    const char *first = ts_options_to_json(table, b, arena), *second = ts_options_to_json(table, &back, arena);
    CHECK(first && second && strcmp(first, second) == 0);
}

static void test_round_trip(void) {
    static const char *const tags[] = {"- x", "#", "", "[]", "a b"};
    box boxes[] = {
        {.left = 1.0 / 3, .tags = {5, tags}}, {.left = 0.5, .tags = {2, (const char *[]){"a", "b"}}}, {.left = 0}};
    card cards[] = {
        {.text = "- a: {b}\n\"c\"", .number = INT64_MIN, .weight = 0, .fade = 0, .kind = 0, .loud = true},
        {.text = "d", .number = 7, .weight = 1, .fade = NAN, .kind = 1, .boxes = {3, boxes}},
        {.text = "e", .number = 7, .weight = 2, .fade = 0.25, .kind = 1},
    };
    board b = {.frames = 9, .level = NAN, .size = {16, 24}, .cards = {3, cards}};
    check_round_trip(&b, ts_options_write_yaml);
    check_round_trip(&b, ts_options_write_changed);
    char text[4096];
    read_back(text, sizeof text);
    CHECK(strstr(text, "frames: 9\nsize: 16x24\ncards:\n  - text: "));  // level is unset and left out
    CHECK(strstr(text, "  - text: d\n    look:\n    boxes:\n      - left: 0.3333333333333333\n"));
    CHECK(strstr(text, "      - {}\n      - left: 0\n        tags: []\n"));
    CHECK(strstr(text, "  - text: e\n    look:\n      weight: 2\n      fade: 0.25\n"));
    b.cards.count = 0;
    b.level = 0.5;
    check_round_trip(&b, ts_options_write_yaml);
    read_back(text, sizeof text);
    CHECK(strcmp(text, "frames: 9\nlevel: 0.5\nsize: 16x24\ncards: []\n") == 0);
    CHECK_OK(ts_options_default(table, &b, arena));
    check_round_trip(&b, ts_options_write_changed);
    read_back(text, sizeof text);
    CHECK(strcmp(text, "") == 0);
    cards[1].text = "\xff";
    b.cards.item = cards;
    b.cards.count = 2;
    FILE *file = fopen("/dev/null", "w");
    CHECK_FAILS(ts_options_write_yaml(table, &b, file), TS_EINPUT, "not UTF-8");
    fclose(file);
    CHECK(ts_options_to_json(table, &b, arena) == NULL);
}

static void test_json(void) {
    board b;
    CHECK_OK(read_text(&b, "cards: [{text: a, boxes: [{}]}]\n"));
    const char *text = ts_options_to_json(table, &b, arena);
    CHECK(text &&
          strcmp(text, "{\"cards\":[{\"boxes\":[{\"left\":0.5,\"tags\":[\"a\",\"b\"]}],\"kind\":\"fancy\",\"look\":{"
                       "\"fade\":null,\"weight\":1.0},\"loud\":false,\"number\":7,\"text\":\"a\"}],\"frames\":17,"
                       "\"level\":null,\"size\":[0,0]}") == 0);
}

static void test_help(void) {
    char text[4096];
    FILE *file = fopen(path, "wb");
    ts_options_print_help(table, file);
    fclose(file);
    read_back(text, sizeof text);
    CHECK(strstr(text, "  --frames=N                      frames (default 17)\n"));
    CHECK(strstr(text, "  cards:                          what is shown when (required)\n"
                       "      text: TEXT                  what is shown (required)\n"));
    CHECK(strstr(text, "      boxes:                      where\n          left: X                 left edge"));
    file = fopen(path, "wb");
    ts_options_print_keys(table, file);
    fclose(file);
    read_back(text, sizeof text);
    CHECK(strstr(text, "  frames: N                       frames (default 17)\n") && !strstr(text, "--"));
}

int main(void) {
    strcpy(path, "/tmp/tessera-records-XXXXXX");
    const int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    CHECK_OK(ts_arena_open(&arena, "records", 1 << 16, false));
    test_values();
    test_mistakes();
    test_args();
    test_round_trip();
    test_json();
    test_help();
    test_mutants();
    test_attacks();
    ts_arena_close(&arena);
    unlink(path);
    return ts_test_end();
}
