// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// safetensors: round trip, the reference writer's bytes, and every way a file can lie.
#include "core/store/safetensors.h"

#include <fcntl.h>
#include <float.h>
#include <inttypes.h>
#include <unistd.h>

#include <xxhash.h>

#include "core/base/file.h"
#include "ts_test.h"

static char folder[] = "/tmp/ts-safetensors-XXXXXX";

static const char *in_folder(const char *name) {
    static char path[4][4096];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

// A file with this header and `data_bytes` bytes of zeros behind it; returns its path.
static const char *forge(const char *name, const char *header, size_t data_bytes) {
    const uint64_t length = strlen(header);
    const size_t bytes = 8 + length + data_bytes;
    char *file = calloc(1, bytes);
    memcpy(file, &length, 8);
    memcpy(file + 8, header, length);
    const char *path = in_folder(name);
    CHECK_OK(ts_file_write_atomic(path, file, bytes));
    free(file);
    return path;
}

static void refused(const char *header, size_t data_bytes, const char *text) {
    ts_safetensors *file = NULL;
    CHECK_FAILS(ts_safetensors_open(&file, forge("forged.safetensors", header, data_bytes)), TS_EINPUT, text);
    CHECK(file == NULL);
}

// ---- honest files

// A file that is planned, created and filled tensor by tensor is the one that is written at once.
static void check_plan(const char *written, const ts_safetensors_item *items, int64_t count,
                       const char *const *metadata) {
    const char *path = in_folder("planned.safetensors");
    char *bytes[2];
    size_t size[2];
    ts_safetensors_plan plan;
    ts_safetensors *file;
    CHECK_OK(ts_safetensors_plan_make(&plan, items, count, metadata, path));
    CHECK_OK(ts_safetensors_create(path, &plan));
    CHECK(ts_path_bytes(path) == plan.bytes);
    const int fd = open(path, O_WRONLY);
    for (int64_t i = count - 1; i >= 0; i--) {
        const size_t n = (size_t)ts_shape_count(items[i].shape) * ts_dtype_bytes(items[i].dtype);
        CHECK(n == 0 || pwrite(fd, items[i].data, n, plan.offset[i]) == (ssize_t)n);
    }
    close(fd);
    CHECK_OK(ts_file_read(written, 1 << 20, &bytes[0], &size[0]));
    CHECK_OK(ts_file_read(path, 1 << 20, &bytes[1], &size[1]));
    CHECK(size[0] == size[1] && !memcmp(bytes[0], bytes[1], size[0]));
    CHECK_OK(ts_safetensors_open(&file, path));
    CHECK(ts_safetensors_header_sum(file) == XXH3_64bits(plan.header, (size_t)plan.header_bytes));
    CHECK(!strcmp(ts_safetensors_path(file), path) && ts_safetensors_handle(file) >= 0);
    ts_safetensors_close(&file);
    ts_safetensors_plan_free(&plan);
    free(bytes[0]);
    free(bytes[1]);
}

static void test_round_trip(void) {
    const float weight[6] = {1, -2, 3.5f, FLT_MIN, -0.0f, FLT_MAX};
    const uint16_t half[3] = {0x3f80, 0xbf80, 0x4049};
    const int64_t id[2] = {-1, INT64_MAX};
    const uint8_t byte = 7;
    const ts_safetensors_item items[] = {
        {"weight", TS_F32, TS_SHAPE(2, 3), weight},
        {"half", TS_BF16, TS_SHAPE(3), half},
        {"id", TS_I64, TS_SHAPE(2), id},
        {"scalar", TS_U8, {.ndim = 0}, &byte},
        {"empty", TS_F32, TS_SHAPE(0, 5), NULL},
    };
    const char *const metadata[] = {"format", "pt", "note", "\"quoted\" é", NULL};
    const char *path = in_folder("round.safetensors");
    CHECK_OK(ts_safetensors_write(path, items, 5, metadata));
    check_plan(path, items, 5, metadata);

    ts_safetensors *file;
    CHECK_OK(ts_safetensors_open(&file, path));
    CHECK(ts_safetensors_count(file) == 5);
    CHECK(!strcmp(ts_safetensors_at(file, 0)->name, "empty") && !strcmp(ts_safetensors_at(file, 4)->name, "weight"));
    CHECK(!strcmp(ts_safetensors_metadata(file, "note"), "\"quoted\" é") && !ts_safetensors_metadata(file, "other"));
    CHECK(ts_safetensors_find(file, "weights") == NULL);
    float back[6], widened[3], part[2];
    CHECK_OK(ts_safetensors_read_f32(file, "weight", TS_SHAPE(2, 3), back));
    CHECK(!memcmp(back, weight, sizeof back));
    CHECK_OK(ts_safetensors_read_f32(file, "half", TS_SHAPE(3), widened));
    CHECK(widened[0] == 1 && widened[1] == -1 && widened[2] == ts_bf16_to_f32(0x4049));
    int64_t id_back[2];
    CHECK_OK(ts_safetensors_read(file, ts_safetensors_find(file, "id"), 0, 2, id_back, TS_I64));
    CHECK(!memcmp(id, id_back, sizeof id));
    CHECK_OK(ts_safetensors_read(file, ts_safetensors_find(file, "half"), 1, 2, part, TS_F32));
    CHECK(part[0] == -1 && part[1] == widened[2]);
    CHECK(ts_safetensors_find(file, "scalar")->shape.ndim == 0 && ts_safetensors_find(file, "empty")->bytes == 0);
    CHECK_FAILS(ts_safetensors_read(file, ts_safetensors_find(file, "half"), 2, 2, part, TS_F32), TS_EINTERNAL, "half");
    CHECK_FAILS(ts_safetensors_read_f32(file, "id", TS_SHAPE(2), back), TS_EINPUT, "tensor \"id\": cannot convert");
    CHECK_FAILS(ts_safetensors_read_f32(file, "weight", TS_SHAPE(3, 2), back), TS_EINPUT,
                "tensor \"weight\": shape [2, 3], wanted [3, 2]");
    CHECK_FAILS(ts_safetensors_read_f32(file, "bias", TS_SHAPE(2), back), TS_EINPUT, "tensor \"bias\": is missing");
    ts_safetensors_close(&file);
    CHECK(file == NULL);
    ts_safetensors_close(&file);
}

static void test_convert_many(void) {  // more elements than one conversion block
    enum { N = 40001 };
    uint16_t *half = malloc(N * sizeof *half);
    float *back = malloc(N * sizeof *back);
    for (int i = 0; i < N; i++) {
        half[i] = (uint16_t)(i % 0x7f80);
    }
    const ts_safetensors_item item = {"x", TS_BF16, TS_SHAPE(N), half};
    ts_safetensors *file;
    CHECK_OK(ts_safetensors_write(in_folder("many.safetensors"), &item, 1, NULL));
    CHECK_OK(ts_safetensors_open(&file, in_folder("many.safetensors")));
    CHECK_OK(ts_safetensors_read_f32(file, "x", TS_SHAPE(N), back));
    int wrong = 0;
    for (int i = 0; i < N; i++) {
        wrong += back[i] != ts_bf16_to_f32(half[i]);
    }
    CHECK(wrong == 0);
    ts_safetensors_close(&file);
    free(half);
    free(back);
}

static void test_not_finite(void) {
    float weight[3] = {0, NAN, 0};
    const ts_safetensors_item item = {"x", TS_F32, TS_SHAPE(3), weight};
    ts_safetensors *file;
    float back[3];
    CHECK_OK(ts_safetensors_write(in_folder("nan.safetensors"), &item, 1, NULL));
    CHECK_OK(ts_safetensors_open(&file, in_folder("nan.safetensors")));
    CHECK_FAILS(ts_safetensors_read_f32(file, "x", TS_SHAPE(3), back), TS_EINPUT, "tensor \"x\": element 1 is NaN");
    ts_safetensors_close(&file);
    weight[1] = 0;
    weight[2] = -INFINITY;
    CHECK_OK(ts_safetensors_write(in_folder("nan.safetensors"), &item, 1, NULL));
    CHECK_OK(ts_safetensors_open(&file, in_folder("nan.safetensors")));
    CHECK_FAILS(ts_safetensors_read_f32(file, "x", TS_SHAPE(3), back), TS_EINPUT,
                "tensor \"x\": element 2 is infinite");
    ts_safetensors_close(&file);
}

static void test_writer_refuses(void) {
    const float x = 1;
    const ts_safetensors_item twice[] = {{"x", TS_F32, TS_SHAPE(1), &x}, {"x", TS_U8, TS_SHAPE(1), &x}};
    CHECK_FAILS(ts_safetensors_write(in_folder("twice.safetensors"), twice, 2, NULL), TS_ERESOURCE, "given twice");
    CHECK_FAILS(ts_safetensors_write(in_folder("none/x.safetensors"), twice, 1, NULL), TS_EINPUT, "none/x");
    CHECK(!ts_path_exists(in_folder("twice.safetensors")) && !ts_path_exists(in_folder("twice.safetensors.tmp")));
}

// ---- forged files

#define ENTRY(name, dtype, shape, begin, end)                                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static void test_header_length(void) {
    ts_safetensors *file;
    const char *path = in_folder("short.safetensors");
    CHECK_OK(ts_file_write_atomic(path, "1234567", 7));
    CHECK_FAILS(ts_safetensors_open(&file, path), TS_EINPUT, "short.safetensors: has 7 bytes");
    CHECK_OK(ts_file_write_atomic(path, "\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10));
    CHECK_FAILS(ts_safetensors_open(&file, path), TS_EINPUT, "claims a header");
    CHECK_OK(ts_file_write_atomic(path, "\x03\0\0\0\0\0\0\0{}", 10));
    CHECK_FAILS(ts_safetensors_open(&file, path), TS_EINPUT, "claims a header of 3 bytes");
    CHECK_OK(ts_file_write_atomic(path, "\x01\xe1\xf5\x05\0\0\0\0{}", 10));  // 100,000,001 in a file that long
    CHECK(truncate(path, 200000000) == 0);
    CHECK_FAILS(ts_safetensors_open(&file, path), TS_EINPUT, "claims a header of 100000001 bytes");
    CHECK(unlink(path) == 0);
    CHECK_FAILS(ts_safetensors_open(&file, path), TS_EINPUT, "cannot open");
    CHECK_FAILS(ts_safetensors_open(&file, "/dev/zero"), TS_EINPUT, "not a regular file");
}

static void test_json(void) {
    refused("[]", 0, "does not start with '{'");
    refused(" {}", 0, "does not start with '{'");
    refused("{", 0, "not valid JSON");
    refused("{\"a\xff\":1}", 0, "not valid JSON");
    refused("{" ENTRY("a", "U8", "[1]", "0", "1") "," ENTRY("a", "U8", "[1]", "0", "1") "}", 1, "duplicate");
    refused("{\"a\":1}", 0, "tensor \"a\": is not an object");
    refused("{\"__metadata__\":[]}", 0, "__metadata__");
    refused("{\"__metadata__\":{\"a\":1}}", 0, "\"a\" is not text");
    refused("{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "\"dtype\" is missing");
    refused("{" ENTRY("a", "F7", "[1]", "0", "1") "}", 1, "dtype \"F7\" is not supported");
    refused("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "\"shape\" is missing");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "\"data_offsets\" is not a pair");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1, "\"data_offsets\" is not a pair");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1.0]}}", 1, "\"data_offsets\" is not a pair");
    refused("{" ENTRY("a", "U8", "[1,1,1,1,1,1,1,1,1]", "0", "1") "}", 1, "has 9 dimensions");
    char deep[5000];
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = '\0';
    memcpy(deep, "{\"a\":", 5);
    refused(deep, 0, "not valid JSON");
}

static void test_sizes(void) {
    refused("{" ENTRY("a", "F32", "[-1]", "0", "4") "}", 4, "dimension 0 is not a non-negative integer");
    refused("{" ENTRY("a", "F32", "[9223372036854775808]", "0", "4") "}", 4, "too big integer");
    refused("{" ENTRY("a", "F32", "[9223372036854775807]", "0", "4") "}", 4, "does not fill its 4 bytes");
    refused("{" ENTRY("a", "F32", "[4294967296,4294967296]", "0", "0") "}", 0, "does not fill its 0 bytes");
    refused("{" ENTRY("a", "F32", "[4294967296,4294967296,0]", "0", "4") "}", 4, "does not fill its 4 bytes");
    refused("{" ENTRY("a", "F32", "[3]", "0", "8") "}", 8, "shape [3] of F32 does not fill its 8 bytes");
    refused("{" ENTRY("a", "F32", "[2]", "0", "8") "}", 7, "truncated");
    refused("{" ENTRY("a", "U8", "[4]", "-4", "0") "}", 4, "lie outside");
    refused("{" ENTRY("a", "U8", "[4]", "4", "0") "}", 4, "lie outside");
    refused("{" ENTRY("a", "U8", "[4]", "9223372036854775800", "9223372036854775804") "}", 4, "lie outside");
}

static void test_layout(void) {
    const char *a = ENTRY("a", "U8", "[4]", "0", "4");
    char header[512];
    snprintf(header, sizeof header, "{%s,%s}", a, ENTRY("b", "U8", "[4]", "2", "6"));
    refused(header, 6, "tensor \"b\": starts at byte");
    refused(header, 6, "overlapping");
    snprintf(header, sizeof header, "{%s,%s}", a, ENTRY("b", "U8", "[4]", "5", "9"));
    refused(header, 9, "leaving a hole");
    snprintf(header, sizeof header, "{%s,%s}", a, ENTRY("b", "U8", "[4]", "0", "4"));
    refused(header, 4, "overlapping");
    snprintf(header, sizeof header, "{%s}", ENTRY("a", "U8", "[3]", "1", "4"));
    refused(header, 4, "leaving a hole");
    snprintf(header, sizeof header, "{%s}", a);
    refused(header, 5, "damaged");
    refused("{}", 1, "damaged");
    // Legal oddities: empty tensors share an offset, data need not be aligned, a file may hold nothing.
    ts_safetensors *file;
    snprintf(header, sizeof header, "{%s,%s,%s} ", ENTRY("b", "F32", "[1]", "1", "5"),
             ENTRY("a", "U8", "[1]", "0", "1"), ENTRY("c", "F32", "[0,7]", "1", "1"));
    float value;
    CHECK_OK(ts_safetensors_open(&file, forge("odd.safetensors", header, 5)));
    CHECK_OK(ts_safetensors_read_f32(file, "b", TS_SHAPE(1), &value));
    ts_safetensors_close(&file);
    CHECK_OK(ts_safetensors_open(&file, forge("odd.safetensors", "{}", 0)));
    CHECK(ts_safetensors_count(file) == 0 && ts_safetensors_find(file, "a") == NULL);
    ts_safetensors_close(&file);
}

// ---- folders and indexes

static void index_refused(const char *json, const char *text) {
    ts_safetensors *file = NULL;
    const char *path = in_folder("two/model.safetensors.index.json");
    CHECK_OK(ts_file_write_atomic(path, json, strlen(json)));
    CHECK_FAILS(ts_safetensors_open(&file, path), TS_EINPUT, text);
    CHECK(file == NULL);
}

static void test_index(void) {
    CHECK_OK(ts_folder_make(in_folder("two")));
    forge("two/1.safetensors", "{" ENTRY("a", "U8", "[4]", "0", "4") "}", 4);
    forge("two/2.safetensors", "{" ENTRY("b", "U8", "[4]", "0", "4") "}", 4);
    forge("two/3.safetensors", "{" ENTRY("b", "U8", "[4]", "0", "4") "}", 4);
    ts_safetensors *file;
    CHECK_FAILS(ts_safetensors_open(&file, in_folder("two")), TS_EINPUT, "several without an index");
    index_refused("{}", "weight_map");
    index_refused("{\"weight_map\":{\"a\":\"../two/1.safetensors\"}}", "plain name");
    index_refused("{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "plain name");
    index_refused("{\"weight_map\":{\"a\":\"..\\\\1.safetensors\"}}", "plain name");
    index_refused("{\"weight_map\":{\"a\":7}}", "plain name");
    index_refused("{\"weight_map\":{\"a\":\"9.safetensors\"}}", "9.safetensors: cannot open");
    index_refused("{\"weight_map\":{\"c\":\"1.safetensors\"}}", "tensor \"c\": is not in its shard 1.safetensors");
    index_refused("{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"1.safetensors\"}}", "is not in its shard");
    index_refused("{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"2.safetensors\"}}", "tensor \"c\"");
    index_refused("{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\",\"c\":\"3.safetensors\"}}",
                  "tensor \"b\": is in");
    const char *good =
        "{\"metadata\":{\"total_size\":8},\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"3.safetensors\"}}";
    CHECK_OK(ts_file_write_atomic(in_folder("two/model.safetensors.index.json"), good, strlen(good)));
    CHECK_OK(ts_safetensors_open(&file, in_folder("two")));
    CHECK(ts_safetensors_count(file) == 2 &&
          ts_safetensors_find(file, "b")->file != ts_safetensors_find(file, "a")->file);
    ts_safetensors_close(&file);
    CHECK_OK(ts_folder_make(in_folder("none")));
    CHECK_FAILS(ts_safetensors_open(&file, in_folder("none")), TS_EINPUT, "holds no .safetensors");
}

// ---- the reference writer's files

static void rewrite_reference(const char *path) {
    ts_safetensors *file;
    CHECK_OK(ts_safetensors_open(&file, path));
    const int64_t count = ts_safetensors_count(file);
    ts_safetensors_item *items = calloc((size_t)count, sizeof *items);
    for (int64_t i = 0; i < count; i++) {
        const ts_safetensors_entry *entry = ts_safetensors_at(file, i);
        const int64_t n = ts_shape_count(entry->shape);
        void *data = malloc((size_t)entry->bytes + 1);
        CHECK_OK(ts_safetensors_read(file, entry, 0, n, data, entry->dtype));
        items[i] = (ts_safetensors_item){entry->name, entry->dtype, entry->shape, data};
    }
    const char *const metadata[] = {"format", ts_safetensors_metadata(file, "format"), NULL};
    uint64_t ours = 0, theirs = 1;
    CHECK_OK(ts_safetensors_write(in_folder("again.safetensors"), items, count, metadata));
    CHECK_OK(ts_file_hash(in_folder("again.safetensors"), &ours));
    CHECK_OK(ts_file_hash(path, &theirs));
    CHECK(ours == theirs);
    for (int64_t i = 0; i < count; i++) {
        free((void *)(uintptr_t)items[i].data);
    }
    free(items);
    ts_safetensors_close(&file);
}

static void test_reference(void) {
    const char *shared = getenv("TESSERA_SHARED");
    if (!shared) {
        fprintf(stderr, "the reference's files are not here: that part is left out\n");
        return;
    }
    static const char *const name[] = {"umt5_tiny/io.safetensors", "wan_t2v_tiny/io.safetensors",
                                       "wan_t2v_tiny/transformer_bf16/diffusion_pytorch_model.safetensors"};
    char path[4096];
    for (size_t i = 0; i < sizeof name / sizeof name[0]; i++) {
        snprintf(path, sizeof path, "%s/parity/%s", shared, name[i]);
        rewrite_reference(path);
    }
    ts_safetensors *whole, *sharded;
    snprintf(path, sizeof path, "%s/parity/wan_t2v_tiny/transformer", shared);
    CHECK_OK(ts_safetensors_open(&whole, path));
    snprintf(path, sizeof path, "%s/parity/wan_t2v_tiny/transformer_sharded", shared);
    CHECK_OK(ts_safetensors_open(&sharded, path));
    CHECK(ts_safetensors_count(whole) == ts_safetensors_count(sharded) && ts_safetensors_count(whole) > 40);
    for (int64_t i = 0; i < ts_safetensors_count(whole); i++) {
        const ts_safetensors_entry *a = ts_safetensors_at(whole, i), *b = ts_safetensors_at(sharded, i);
        CHECK(!strcmp(a->name, b->name) && ts_shape_equal(a->shape, b->shape));
        const size_t bytes = (size_t)ts_shape_count(a->shape) * sizeof(float);
        float *x = malloc(bytes), *y = malloc(bytes);
        CHECK_OK(ts_safetensors_read_f32(whole, a->name, a->shape, x));
        CHECK_OK(ts_safetensors_read_f32(sharded, b->name, b->shape, y));
        CHECK(!memcmp(x, y, bytes));
        free(x);
        free(y);
    }
    ts_safetensors_close(&whole);
    ts_safetensors_close(&sharded);
}

int main(void) {
    CHECK(mkdtemp(folder) != NULL);
    test_round_trip();
    test_convert_many();
    test_not_finite();
    test_writer_refuses();
    test_header_length();
    test_json();
    test_sizes();
    test_layout();
    test_index();
    test_reference();
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
