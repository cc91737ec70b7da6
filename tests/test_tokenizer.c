// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// The vocabulary from captions, encoding, the file and its hostile forms.
#include "core/model/tokenizer.h"

#include <unistd.h>

#include "core/base/file.h"
#include "core/base/rng.h"
#include "tests/ts_test.h"

static char folder[64];

// Ids of `text` as "260 259 1".
static const char *encoded(const ts_tokenizer *tokenizer, const char *text, int64_t max_ids) {
    static char out[1024];
    int32_t ids[256];
    int64_t count = 0;
    out[0] = '\0';
    CHECK_OK(ts_tokenizer_encode(tokenizer, text, max_ids, ids, &count));
    for (int64_t i = 0, used = 0; i < count; i++) {
        used += snprintf(out + used, sizeof out - (size_t)used, "%s%d", i ? " " : "", ids[i]);
    }
    return out;
}

static const char *const captions[] = {"a red circle moves left", "A red square, moves right!", "a blue circle",
                                       "a Caf\xc3\xa9"};

static void test_build_and_encode(void) {
    ts_tokenizer *t = NULL;
    CHECK_OK(ts_tokenizer_build(&t, captions, 4, 100, 1));
    // a 4; circle, moves, red 2; then ! , blue caf\xe9 left right square bytewise
    CHECK(ts_tokenizer_vocabulary(t) == 259 + 11);
    CHECK(strcmp(encoded(t, "a circle moves red", 10), "259 260 261 262 1") == 0);
    CHECK(strcmp(encoded(t, " !,\tblue ", 10), "263 264 265 1") == 0);
    CHECK(strcmp(encoded(t, "RED\n", 10), "262 1") == 0);
    CHECK(strcmp(encoded(t, "", 10), "1") == 0);
    CHECK(strcmp(encoded(t, " \n\xc2\xa0\xe3\x80\x80", 10), "1") == 0);
    // Unknown words are spelt, a space byte between two of them.
    CHECK(strcmp(encoded(t, "ab red cd ef", 20), "100 101 262 102 103 35 104 105 1") == 0);
    // Cut, the end id stays.
    CHECK(strcmp(encoded(t, "a circle moves red", 3), "259 260 1") == 0);
    CHECK(strcmp(encoded(t, "a circle", 1), "1") == 0);
    CHECK(strcmp(encoded(t, "abcdef", 4), "100 101 102 1") == 0);
    // Composed, decomposed and upper-case forms are the same word.
    char composed[64];
    strcpy(composed, encoded(t, "caf\xc3\xa9", 10));
    CHECK(strcmp(composed, "266 1") == 0);
    CHECK(strcmp(encoded(t, "cafe\xcc\x81", 10), composed) == 0);
    CHECK(strcmp(encoded(t, "CAF\xc3\x89", 10), composed) == 0);
    ts_tokenizer_close(&t);
    CHECK_OK(ts_tokenizer_build(&t, captions, 4, 100, 2));
    CHECK(ts_tokenizer_vocabulary(t) == 259 + 4);
    ts_tokenizer_close(&t);
    CHECK_OK(ts_tokenizer_build(&t, captions, 4, 2, 1));
    CHECK(strcmp(encoded(t, "circle a", 10), "260 259 1") == 0);
    ts_tokenizer_close(&t);
    CHECK_OK(ts_tokenizer_build(&t, NULL, 0, 100, 1));
    CHECK(strcmp(encoded(t, "a", 10), "100 1") == 0);
    ts_tokenizer_close(&t);
    ts_tokenizer_close(&t);
}

static void test_bad_text(void) {
    ts_tokenizer *t = NULL;
    CHECK_OK(ts_tokenizer_build(&t, captions, 4, 100, 1));
    static char text[(1 << 20) + 1];
    int32_t ids[16];
    int64_t count;
    memset(text, 'x', 1 << 20);
    CHECK_FAILS(ts_tokenizer_encode(t, text, 16, ids, &count), TS_EINPUT, "longer than 8192");
    text[TS_MAX_PROMPT_BYTES] = '\0';
    CHECK_OK(ts_tokenizer_encode(t, text, 16, ids, &count));
    CHECK(count == 16);
    CHECK_FAILS(ts_tokenizer_encode(t, "a\xff", 16, ids, &count), TS_EINPUT, "not UTF-8");
    CHECK_FAILS(ts_tokenizer_encode(t, "\xc3", 16, ids, &count), TS_EINPUT, "not UTF-8");
    CHECK_FAILS(ts_tokenizer_encode(t, "\xed\xa0\x80", 16, ids, &count), TS_EINPUT, "not UTF-8");
    ts_tokenizer *bad = NULL;
    CHECK_FAILS(ts_tokenizer_build(&bad, (const char *[]){"a", "\xff"}, 2, 10, 1), TS_EINPUT, "caption 1: ");
    CHECK(!bad);
    ts_tokenizer_close(&t);
}

static void test_file(void) {
    ts_tokenizer *t = NULL, *again = NULL, *other = NULL;
    CHECK_OK(ts_tokenizer_build(&t, captions, 4, 100, 1));
    CHECK_OK(ts_tokenizer_save(t, folder));
    CHECK_OK(ts_tokenizer_load(&again, folder));
    CHECK(ts_tokenizer_fingerprint(t) == ts_tokenizer_fingerprint(again));
    CHECK(ts_tokenizer_vocabulary(t) == ts_tokenizer_vocabulary(again));
    CHECK(strcmp(encoded(again, "a caf\xc3\xa9!", 10), "259 266 263 1") == 0);
    CHECK_OK(ts_tokenizer_build(&other, captions, 3, 100, 1));
    CHECK(ts_tokenizer_fingerprint(t) != ts_tokenizer_fingerprint(other));
    ts_tokenizer_close(&t);
    ts_tokenizer_close(&again);
    ts_tokenizer_close(&other);
}

static int load_text(const char *text) {
    char path[96];
    ts_tokenizer *t = NULL;
    CHECK_OK(ts_path_join(path, sizeof path, folder, "tokenizer.json"));
    CHECK_OK(ts_file_write_atomic(path, text, strlen(text)));
    const int status = ts_tokenizer_load(&t, folder);
    CHECK((t != NULL) == (status == 0));
    ts_tokenizer_close(&t);
    return status;
}

static void test_hostile_files(void) {
    CHECK_OK(load_text("{\"version\":1,\"words\":[\"a\",\"b\"]}"));
    CHECK_FAILS(load_text(""), TS_EINPUT, "not valid JSON");
    CHECK_FAILS(load_text("[]"), TS_EINPUT, "\"version\" must be");
    CHECK_FAILS(load_text("7"), TS_EINPUT, "\"version\" must be");
    CHECK_FAILS(load_text("{\"version\":2,\"words\":[]}"), TS_EINPUT, "\"version\" is 2");
    CHECK_FAILS(load_text("{\"version\":1}"), TS_EINPUT, "\"words\" must be an array");
    CHECK_FAILS(load_text("{\"version\":1,\"words\":{}}"), TS_EINPUT, "\"words\" must be an array");
    CHECK_FAILS(load_text("{\"version\":1,\"words\":[\"a\",\"a\"]}"), TS_EINPUT, "words 0 and 1 are the same");
    CHECK_FAILS(load_text("{\"version\":1,\"words\":[\"a\",7]}"), TS_EINPUT, "word 1 is not");
    CHECK_FAILS(load_text("{\"version\":1,\"words\":[\"\"]}"), TS_EINPUT, "word 0 is not");
    CHECK_FAILS(load_text("{\"version\":1,\"words\":[\"a b\"]}"), TS_EINPUT, "word 0 is not");
    CHECK_FAILS(load_text("{\"version\":1,\"words\":[\"A\"]}"), TS_EINPUT, "word 0 is not");
    CHECK_FAILS(load_text("{\"version\":1,\"words\":[\"e\\u0301\"]}"), TS_EINPUT, "word 0 is not");
    CHECK_FAILS(load_text("{\"version\":1,\"words\":[\"a\\u0000b\"]}"), TS_EINPUT, "not valid JSON");
    CHECK_FAILS(load_text("{\"version\":1,\"words\":[\"\xff\"]}"), TS_EINPUT, "not valid JSON");
    CHECK_FAILS(load_text("{\"version\":1,\"version\":1,\"words\":[]}"), TS_EINPUT, "duplicate");
    static char deep[200001];
    memset(deep, '[', 200000);
    CHECK_FAILS(load_text(deep), TS_EINPUT, "not valid JSON");
    CHECK_FAILS(ts_tokenizer_load(&(ts_tokenizer *){NULL}, "/nonexistent"), TS_EINPUT, "/nonexistent/tokenizer.json");
}

// Random bytes: never a crash, and whatever is accepted ends in the end id.
static void test_random_bytes(void) {
    ts_tokenizer *t = NULL;
    CHECK_OK(ts_tokenizer_build(&t, captions, 4, 100, 1));
    for (uint32_t trial = 0; trial < 2000; trial++) {
        char text[65];
        int32_t ids[32];
        int64_t count = 0;
        for (uint32_t i = 0; i < 64; i++) {
            const uint64_t kind = ts_rng_below(3, TS_RNG_TEST, trial, 2 * i, 3);
            const uint64_t byte = ts_rng_below(3, TS_RNG_TEST, trial, 2 * i + 1, 256);
            text[i] = (char)(kind == 0 ? byte : kind == 1 ? 0x20 + byte % 0x60 : 0xc2 + byte % 0x20);
        }
        text[ts_rng_below(3, TS_RNG_TEST, trial, 200, 64)] = '\0';
        text[64] = '\0';
        if (ts_tokenizer_encode(t, text, 32, ids, &count) == TS_OK) {
            CHECK(count >= 1 && count <= 32 && ids[count - 1] == 1);
            for (int64_t i = 0; i < count - 1; i++) {
                CHECK(ids[i] >= 3 && ids[i] < ts_tokenizer_vocabulary(t));
            }
        }
    }
    ts_tokenizer_close(&t);
}

int main(void) {
    strcpy(folder, "/tmp/tessera-tokenizer-XXXXXX");
    CHECK(mkdtemp(folder));
    test_build_and_encode();
    test_bad_text();
    test_file();
    test_hostile_files();
    test_random_bytes();
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
