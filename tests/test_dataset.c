// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// The data set: what is written is read back; a damaged, foreign or hostile shard is refused by name.
#include "core/store/dataset.h"

#include <fcntl.h>
#include <hdf5.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/rng.h"
#include "ts_test.h"

enum { SMALL = 2 * 3 * 4 * 5, LARGE = 1 * 2 * 2 * 5 };
static const uint64_t CODEC = 0xfedcba9876543210u;
static char folder[] = "/tmp/ts-dataset-XXXXXX";

static const char *in_folder(const char *name) {
    static char path[4][4096];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static float latent_value(int64_t clip, int64_t i) {
    return ts_rng_normal(1, TS_RNG_TEST, (uint64_t)clip, (uint32_t)i);
}

static const char *const CAPTION[] = {"a red circle moves left", "", "une étoile «filante» 星", "x"};

static void add_clips(ts_shard_writer *writer, int64_t first, int64_t count, int64_t elements) {
    float latent[SMALL];
    char source[64];
    for (int64_t clip = first; clip < first + count; clip++) {
        for (int64_t i = 0; i < elements; i++) {
            latent[i] = latent_value(clip, i);
        }
        snprintf(source, sizeof source, "videos/%lld.mp4", (long long)clip);
        const ts_clip_record record = {source, CAPTION[clip % 4], 0.5 * (double)clip, 0.5 * (double)clip + 2,
                                       8 + (double)clip};
        CHECK_OK(ts_shard_writer_add(writer, latent, &record));
    }
}

static ts_shard_info write_shard(const char *name, ts_shape shape, int64_t first, int64_t count) {
    ts_shard_writer *writer;
    ts_shard_info info = {.shape = shape};
    snprintf(info.name, sizeof info.name, "%s", name);
    CHECK_OK(ts_shard_writer_open(&writer, in_folder(name), shape, CODEC));
    add_clips(writer, first, count, ts_shape_count(shape));
    CHECK_OK(ts_shard_writer_commit(&writer, &info.count, &info.sum));
    CHECK(writer == NULL && info.count == count);
    info.bytes = ts_path_bytes(in_folder(name));
    return info;
}

static ts_shard_info shard[3];

static void write_manifest(int64_t shards) {
    const ts_manifest manifest = {.codec_fingerprint = CODEC,
                                  .tokenizer_fingerprint = 2,
                                  .transform_fingerprint = UINT64_MAX,
                                  .shard_count = shards,
                                  .shard = shard,
                                  .skipped = 4,
                                  .latent_variance = 0.1};
    CHECK_OK(ts_manifest_write(folder, &manifest));
}

static void write_all(void) {
    shard[0] = write_shard("shard-b.h5", TS_SHAPE(2, 3, 4, 5), 3, 600);  // out of order: the manifest sorts
    shard[1] = write_shard("shard-a.h5", TS_SHAPE(2, 3, 4, 5), 0, 3);
    shard[2] = write_shard("shard-c.h5", TS_SHAPE(1, 2, 2, 5), 603, 7);
    write_manifest(3);
}

// ---- honest

static void *read_everything(void *argument) {
    const ts_dataset *dataset = argument;
    static _Thread_local uint16_t latent[SMALL];
    for (int64_t clip = 0; clip < ts_dataset_clips(dataset); clip++) {
        const int64_t n = ts_shape_count(ts_dataset_bucket_shape(dataset, ts_dataset_bucket_of(dataset, clip)));
        int wrong = ts_dataset_read_latent(dataset, clip, latent) != 0;
        for (int64_t i = 0; i < n; i++) {
            wrong += latent[i] != ts_f32_to_bf16(latent_value(clip, i));
        }
        if (wrong) {
            return "a latent came back changed";
        }
    }
    return NULL;
}

static void test_round_trip(void) {
    ts_dataset *dataset;
    CHECK_OK(ts_dataset_open(&dataset, folder, true));
    CHECK(ts_dataset_clips(dataset) == 610 && ts_dataset_buckets(dataset) == 2);
    CHECK(ts_shape_equal(ts_dataset_bucket_shape(dataset, 1), TS_SHAPE(1, 2, 2, 5)));
    for (int64_t clip = 0; clip < 610; clip++) {
        char source[64];
        snprintf(source, sizeof source, "videos/%lld.mp4", (long long)clip);
        CHECK(!strcmp(ts_dataset_caption(dataset, clip), CAPTION[clip % 4]));
        CHECK(!strcmp(ts_dataset_source(dataset, clip), source));
        CHECK(ts_dataset_fps(dataset, clip) == 8 + (double)clip);
        CHECK(ts_dataset_bucket_of(dataset, clip) == (clip >= 603));
    }
    pthread_t thread;
    void *problem = NULL;
    CHECK(pthread_create(&thread, NULL, read_everything, dataset) == 0);
    CHECK(read_everything(dataset) == NULL);
    CHECK(pthread_join(thread, &problem) == 0 && problem == NULL);
    const ts_manifest *m = ts_dataset_manifest(dataset);
    CHECK(m->codec_fingerprint == CODEC && m->tokenizer_fingerprint == 2 && m->transform_fingerprint == UINT64_MAX);
    CHECK(m->skipped == 4 && m->latent_variance == 0.1 && !strcmp(m->shard[0].name, "shard-a.h5"));
    const uint64_t fingerprint = ts_dataset_fingerprint(dataset);
    ts_dataset_close(&dataset);
    CHECK(dataset == NULL);
    write_manifest(2);
    CHECK_OK(ts_dataset_open(&dataset, folder, false));
    CHECK(ts_dataset_clips(dataset) == 603 && ts_dataset_fingerprint(dataset) != fingerprint);
    ts_dataset_close(&dataset);
    write_manifest(3);
}

static void test_writer(void) {
    CHECK(shard[1].bytes < 10000);  // a small shard is a small file
    char **names;
    int64_t before, after, count;
    uint64_t sum;
    float latent[LARGE] = {0};
    ts_shard_writer *writer;
    CHECK_OK(ts_folder_list(folder, &names, &before));
    ts_folder_list_free(names, before);
    CHECK_OK(ts_shard_writer_open(&writer, in_folder("none.h5"), TS_SHAPE(1, 2, 2, 5), CODEC));
    CHECK_OK(ts_shard_writer_commit(&writer, &count, &sum));
    CHECK(count == 0 && writer == NULL);
    CHECK_OK(ts_shard_writer_open(&writer, in_folder("none.h5"), TS_SHAPE(1, 2, 2, 5), CODEC));
    const ts_clip_record bad_text = {"a.mp4", "caf\xe9", 0, 1, 8}, good = {"a.mp4", "cafe", 0, 1, 8};
    CHECK_FAILS(ts_shard_writer_add(writer, latent, &bad_text), TS_EINPUT,
                "a.mp4: its name or its caption is not UTF-8");
    latent[3] = NAN;
    CHECK_FAILS(ts_shard_writer_add(writer, latent, &good), TS_EINPUT, "a.mp4: its latent is not finite");
    latent[3] = 1;
    CHECK_OK(ts_shard_writer_add(writer, latent, &good));
    ts_shard_writer_abandon(&writer);
    CHECK(writer == NULL);
    CHECK_FAILS(ts_shard_writer_open(&writer, "/nowhere/x.h5", TS_SHAPE(1, 1, 1, 1), 0), TS_EINPUT, "/nowhere/x.h5");
    CHECK_OK(ts_folder_list(folder, &names, &after));
    ts_folder_list_free(names, after);
    CHECK(before == after);
}

// Files may not grow beyond a limit: the same as a full disk, at every stage of writing a shard.
static void test_full_disk(void) {
    struct rlimit old, tight;
    uint64_t sum;
    int64_t count;
    ts_shard_writer *writer;
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    signal(SIGXFSZ, SIG_IGN);
    int refused = 0;
    for (rlim_t limit = 1000; limit < 40000; limit += 3000) {
        tight = (struct rlimit){.rlim_cur = limit, .rlim_max = old.rlim_max};
        CHECK(setrlimit(RLIMIT_FSIZE, &tight) == 0);
        CHECK_OK(ts_shard_writer_open(&writer, in_folder("full.h5"), TS_SHAPE(1, 2, 2, 5), CODEC));
        int status = 0;
        for (int64_t clip = 0; clip < 400 && !status; clip++) {
            float latent[LARGE] = {0};
            const ts_clip_record record = {"a.mp4", "a caption", 0, 1, 8};
            status = ts_shard_writer_add(writer, latent, &record);
        }
        if (status) {
            ts_shard_writer_abandon(&writer);
        } else {
            status = ts_shard_writer_commit(&writer, &count, &sum);
        }
        CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
        CHECK(status == 0 || status == TS_ERESOURCE);
        CHECK(ts_path_exists(in_folder("full.h5")) == !status && !ts_path_exists(in_folder("full.h5.tmp")));
        refused += status != 0;
        unlink(in_folder("full.h5"));
    }
    CHECK(refused > 5);
}

// ---- damage

static void open_fails(bool verify_sums, const char *text) {
    ts_dataset *dataset = NULL;
    CHECK_FAILS(ts_dataset_open(&dataset, folder, verify_sums), TS_EINPUT, text);
    CHECK(dataset == NULL);
}

static void test_damage(void) {
    const char *path = in_folder("shard-b.h5");
    char keep[4096], *bytes;
    size_t size;
    snprintf(keep, sizeof keep, "%s", path);
    CHECK_OK(ts_file_read(keep, 1 << 30, &bytes, &size));
    CHECK(truncate(keep, (off_t)size - 1) == 0);
    open_fails(false, "shard-b.h5: has");
    open_fails(true, "truncated");
    CHECK(unlink(keep) == 0);
    open_fails(false, "shard-b.h5: cannot open");
    // Any single flipped bit is found by the sums; without them opening may succeed but must not crash.
    for (size_t place = 0; place < size; place += 1 + size / 80) {
        ts_dataset *dataset = NULL;
        bytes[place] = (char)(bytes[place] ^ 1 << place % 8);
        CHECK_OK(ts_file_write_atomic(keep, bytes, size));
        open_fails(true, "shard-b.h5: its sum is");
        if (!ts_dataset_open(&dataset, folder, false)) {
            ts_dataset_close(&dataset);
        }
        bytes[place] = (char)(bytes[place] ^ 1 << place % 8);
    }
    memset(bytes, 0, 64);
    CHECK_OK(ts_file_write_atomic(keep, bytes, size));
    open_fails(false, "shard-b.h5: is not a readable HDF5 file");
    free(bytes);
}

static void replace_in_manifest(const char *from, const char *to, const char *text) {
    char *json, *place, *changed;
    size_t size;
    CHECK_OK(ts_file_read(in_folder("manifest.json"), 1 << 20, &json, &size));
    place = strstr(json, from);
    CHECK(place != NULL);
    changed = calloc(1, size + strlen(to) + 1);
    memcpy(changed, json, (size_t)(place - json));
    strcat(changed, to);
    strcat(changed, place + strlen(from));
    CHECK_OK(ts_file_write_atomic(in_folder("manifest.json"), changed, strlen(changed)));
    open_fails(false, text);
    CHECK_OK(ts_file_write_atomic(in_folder("manifest.json"), json, size));
    free(json);
    free(changed);
}

static void test_manifest(void) {
    replace_in_manifest("\"version\": 1", "\"version\": 2", "manifest.json: has version 2");
    replace_in_manifest("fedcba9876543210", "fedcba9876543211", "was made by codec fedcba9876543210");
    replace_in_manifest("fedcba9876543210", "fedcba987654321", "16 hexadecimal digits");
    replace_in_manifest("shard-a.h5", "../shard-a.h5", "plain name");
    replace_in_manifest("shard-a.h5", "shard-b.h5", "out of order or there twice");
    replace_in_manifest("shard-a.h5", "shard-0.h5", "shard-0.h5: cannot open");
    replace_in_manifest("\"count\": 3", "\"count\": 4", "/latents has another shape");
    replace_in_manifest("\"count\": 3", "\"count\": 0", "count");
    replace_in_manifest("\"count\": 3", "\"count\": 4611686018427387904", "do not fit");
    replace_in_manifest("\"count\": 3", "\"count\": 1000000", "do not fit");
    replace_in_manifest("shape\": [", "shape\": [1,", "four numbers");
    replace_in_manifest("shape\": [", "shape\": [-2,", "four numbers");
    replace_in_manifest("shards\": [", "shards\": [[[], ", "not valid JSON");
    replace_in_manifest("shards\": [", "shards\": [7, ", "shard 0");
    write_manifest(0);
    open_fails(false, "holds no clips");
    CHECK(unlink(in_folder("manifest.json")) == 0);
    open_fails(false, "manifest.json");
    write_manifest(3);
}

// ---- hostile shards: made with the HDF5 library itself

typedef enum { GOOD, CHUNKED, COMPACT, EXTERNAL, FILTERED, LATE, WRONG_TYPE } storage;

static void put(hid_t file, const char *name, hid_t type, int rank, const hsize_t *dims, const void *data,
                storage how) {
    const hid_t create = H5Pcreate(H5P_DATASET_CREATE), link = H5Pcreate(H5P_LINK_CREATE);
    const hid_t space = H5Screate_simple(rank, dims, NULL);
    H5Pset_create_intermediate_group(link, 1);
    H5Pset_alloc_time(create, how == LATE ? H5D_ALLOC_TIME_LATE : H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(create, H5D_FILL_TIME_NEVER);
    if (how == CHUNKED || how == FILTERED) {
        H5Pset_chunk(create, rank, dims);
    }
    if (how == FILTERED) {
        H5Pset_shuffle(create);
    }
    if (how == COMPACT) {
        H5Pset_layout(create, H5D_COMPACT);
    }
    if (how == EXTERNAL) {
        H5Pset_alloc_time(create, H5D_ALLOC_TIME_LATE);
        H5Pset_external(create, "/etc/passwd", 0, H5F_UNLIMITED);
    }
    const hid_t set =
        H5Dcreate2(file, name, how == WRONG_TYPE ? H5T_STD_U16BE : type, space, link, create, H5P_DEFAULT);
    CHECK(set >= 0);
    if (data && how != LATE && how != EXTERNAL) {
        H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data);
    }
    H5Dclose(set);
    H5Sclose(space);
    H5Pclose(create);
    H5Pclose(link);
}

static void put_attribute(hid_t file, const char *name, hid_t type, const void *value) {
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(attribute, type, value);
    H5Aclose(attribute);
    H5Sclose(space);
}

typedef struct forgery {
    storage latents;
    int64_t version;
    hsize_t count;       // of latents
    int64_t offsets[3];  // of the two captions "ab", "c"
    const char *caption;
    const char *link;  // NULL, "soft", "external", "group"
    double fps;
    bool no_fps;
} forgery;

static const forgery HONEST = {GOOD, 1, 2, {0, 2, 3}, "abc", NULL, 8, false};

static void put_clips(hid_t file, const forgery *f) {
    const hsize_t two = 2, three = 3;
    const double fps[2] = {8, f->fps};
    put(file, "/caption/bytes", H5T_STD_U8LE, 1, &three, f->caption, GOOD);
    put(file, "/caption/offsets", H5T_STD_I64LE, 1, &three, f->offsets, GOOD);
    put(file, "/clip/source/bytes", H5T_STD_U8LE, 1, &three, "xyz", GOOD);
    put(file, "/clip/source/offsets", H5T_STD_I64LE, 1, &three, HONEST.offsets, GOOD);
    if (!f->no_fps) {
        put(file, "/clip/fps", H5T_IEEE_F64LE, 1, &two, fps, GOOD);
    }
}

static void forge(forgery f, const char *text) {
    const char *path = in_folder("shard-f.h5");
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    const hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    CHECK(file >= 0);
    const hsize_t dims[5] = {f.count, 1, 2, 2, 5};
    const uint16_t zeros[2 * LARGE] = {0};
    put_attribute(file, "version", H5T_STD_I64LE, &f.version);
    put_attribute(file, "codec_fingerprint", H5T_STD_U64LE, &CODEC);
    const bool linked = f.link && strcmp(f.link, "group") != 0;
    put(file, linked ? "/elsewhere" : "/latents", H5T_STD_U16LE, 5, dims, f.count == 2 ? zeros : NULL, f.latents);
    if (linked && !strcmp(f.link, "soft")) {
        H5Lcreate_soft("/elsewhere", file, "/latents", H5P_DEFAULT, H5P_DEFAULT);
    } else if (linked) {
        H5Lcreate_external(in_folder("shard-a.h5"), "/latents", file, "/latents", H5P_DEFAULT, H5P_DEFAULT);
    }
    put_clips(file, &f);
    if (f.link && !linked) {
        H5Lmove(file, "/clip", file, "/other", H5P_DEFAULT, H5P_DEFAULT);
        H5Lcreate_soft("/other", file, "/clip", H5P_DEFAULT, H5P_DEFAULT);
    }
    H5Fclose(file);
    H5Pclose(access);
    shard[0] = (ts_shard_info){.name = "shard-f.h5", .shape = TS_SHAPE(1, 2, 2, 5), .count = 2, .sum = 1};
    shard[0].bytes = ts_path_bytes(path);
    write_manifest(1);
    if (text) {
        open_fails(false, text);
        return;
    }
    ts_dataset *dataset;
    CHECK_OK(ts_dataset_open(&dataset, folder, false));
    CHECK(!strcmp(ts_dataset_caption(dataset, 1), "c") && !strcmp(ts_dataset_source(dataset, 0), "xy"));
    ts_dataset_close(&dataset);
}

#define FORGE(text, ...)                                                                                               \
    do {                                                                                                               \
        forgery f = HONEST;                                                                                            \
        __VA_ARGS__;                                                                                                   \
        forge(f, text);                                                                                                \
    } while (0)

static void test_hostile(void) {
    FORGE(NULL, (void)f);  // the forger can make an honest shard, so what follows is refused for its own reason
    FORGE("shard-f.h5: has version 2", f.version = 2);
    FORGE("/latents is not contiguous", f.latents = CHUNKED);
    FORGE("/latents is not contiguous", f.latents = FILTERED);
    FORGE("/latents is not contiguous", f.latents = COMPACT);
    FORGE("/latents keeps its data in other files", f.latents = EXTERNAL);
    FORGE("/latents reaches beyond the end", f.latents = LATE);
    FORGE("/latents has the wrong type", f.latents = WRONG_TYPE);
    FORGE("/latents has another shape", f.count = 3);
    FORGE("/latents has another shape", f.count = (hsize_t)1 << 50; f.latents = LATE);
    FORGE("/latents is a link", f.link = "soft");
    FORGE("/latents is a link", f.link = "external");
    FORGE("/clip is a link", f.link = "group");
    FORGE("/clip/fps is missing", f.no_fps = true);
    FORGE("/clip/fps of clip 1", f.fps = (double)NAN);
    FORGE("/clip/fps of clip 1", f.fps = 0);
    FORGE("/caption/offsets do not rise", f.offsets[1] = 4);
    FORGE("/caption/offsets do not rise", f.offsets[0] = -1);
    FORGE("/caption/offsets do not rise", f.offsets[2] = INT64_MAX);
    FORGE("/caption 0 is not UTF-8", f.caption = "a\xffz");
    FORGE("/caption 0 is not UTF-8", f.caption = "a\0z");
}

int main(void) {
    CHECK(mkdtemp(folder) != NULL);
    write_all();
    test_round_trip();
    test_writer();
    test_full_disk();
    test_manifest();
    test_damage();
    test_hostile();
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
