// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=30
#include "core/base/json.h"

#include <unistd.h>

#include "core/base/file.h"
#include "tests/ts_test.h"

static int parse(const char *text, json_t **out) {
    return ts_json_parse(text, strlen(text), "f.json", out);
}

static void test_parse(void) {
    json_t *value = NULL;
    CHECK_OK(parse("{\"a\": [1, 2]}", &value));
    json_decref(value);
    CHECK_FAILS(parse("{\"a\": 1,\n \"a\": 2}", &value), TS_EINPUT, "f.json: not valid JSON at line 2");
    CHECK(value == NULL);
    CHECK_FAILS(parse("{", &value), TS_EINPUT, "f.json");
    CHECK_FAILS(parse("", &value), TS_EINPUT, "f.json");
    CHECK_FAILS(parse("{} x", &value), TS_EINPUT, "f.json");
    CHECK_FAILS(parse("[1e999]", &value), TS_EINPUT, "f.json");
    CHECK_FAILS(parse("[99999999999999999999]", &value), TS_EINPUT, "f.json");
    CHECK_FAILS(parse("\"\xff\"", &value), TS_EINPUT, "f.json");
    static char deep[100001];
    memset(deep, '[', 100000);
    CHECK_FAILS(parse(deep, &value), TS_EINPUT, "f.json");
}

static void test_members(void) {
    json_t *o = NULL;
    CHECK_OK(parse("{\"i\":5,\"r\":1.5,\"b\":true,\"s\":\"x\",\"n\":null,\"o\":{},\"a\":[]}", &o));
    int64_t i = 0;
    double r = 0;
    bool b = false;
    const char *s = NULL;
    const json_t *inner = NULL;
    CHECK_OK(ts_json_int(o, "i", "f", 0, 5, &i));
    CHECK(i == 5);
    CHECK_FAILS(ts_json_int(o, "i", "f", 0, 4, &i), TS_EINPUT, "f: \"i\" is 5; it must be 0 to 4");
    CHECK_FAILS(ts_json_int(o, "r", "f", 0, 4, &i), TS_EINPUT, "f: \"r\" must be a whole number, and is a number");
    CHECK_FAILS(ts_json_int(o, "n", "f", 0, 4, &i), TS_EINPUT, "and is absent");
    CHECK_FAILS(ts_json_int(o, "none", "f", 0, 4, &i), TS_EINPUT, "and is absent");
    CHECK_OK(ts_json_int_or(o, "none", "f", 0, 4, 99, &i));
    CHECK(i == 99);
    CHECK_OK(ts_json_int_or(o, "n", "f", 0, 4, 98, &i));
    CHECK(i == 98);
    CHECK_FAILS(ts_json_int_or(o, "s", "f", 0, 4, 98, &i), TS_EINPUT, "and is a string");
    CHECK_OK(ts_json_real_or(o, "r", "f", 7, &r));
    CHECK(r == 1.5);
    CHECK_OK(ts_json_real_or(o, "i", "f", 7, &r));
    CHECK(r == 5);
    CHECK_OK(ts_json_real_or(o, "none", "f", 7, &r));
    CHECK(r == 7);
    CHECK_FAILS(ts_json_real_or(o, "b", "f", 7, &r), TS_EINPUT, "must be a number, and is true");
    CHECK_OK(ts_json_bool_or(o, "b", "f", false, &b));
    CHECK(b);
    CHECK_OK(ts_json_bool_or(o, "none", "f", false, &b));
    CHECK(!b);
    CHECK_FAILS(ts_json_bool_or(o, "i", "f", false, &b), TS_EINPUT, "true or false");
    CHECK_OK(ts_json_string(o, "s", "f", &s));
    CHECK(strcmp(s, "x") == 0);
    CHECK_OK(ts_json_string_or(o, "none", "f", "y", &s));
    CHECK(strcmp(s, "y") == 0);
    CHECK_FAILS(ts_json_string(o, "i", "f", &s), TS_EINPUT, "a string");
    CHECK_OK(ts_json_object(o, "o", "f", &inner));
    CHECK_FAILS(ts_json_object(o, "a", "f", &inner), TS_EINPUT, "an object, and is an array");
    CHECK_OK(ts_json_array(o, "a", "f", &inner));
    CHECK_FAILS(ts_json_array(inner, "a", "f", &inner), TS_EINPUT, "absent");  // not even an object
    json_decref(o);
}

static void test_files(void) {
    char path[] = "/tmp/tessera-json-XXXXXX";
    const int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    json_t *o = json_pack("{s:i, s:f, s:s}", "z", 1, "a", 0.1, "t", "\xc3\xa9"), *back = NULL;
    CHECK_OK(ts_json_write_atomic(path, o));
    char *text = NULL;
    size_t bytes = 0;
    CHECK_OK(ts_file_read(path, 1000, &text, &bytes));
    CHECK(strstr(text, "\"a\"") < strstr(text, "\"z\"") && text[bytes - 1] == '\n');
    free(text);
    CHECK_OK(ts_json_read(path, 1000, &back));
    CHECK(json_equal(o, back));
    json_decref(back);
    CHECK_FAILS(ts_json_read(path, 3, &back), TS_EINPUT, "more than the 3");
    json_decref(o);
    unlink(path);
    CHECK_FAILS(ts_json_read(path, 1000, &back), TS_EINPUT, path);
}

int main(void) {
    test_parse();
    test_members();
    test_files();
    return ts_test_end();
}
