// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2 timeout=180
// World -> ingest -> data set: what is kept and skipped, the same bits on any number of ranks, going on after a stop.
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/comm/comm.h"
#include "core/comm/mesh.h"
#include "core/model/codec.h"
#include "core/store/dataset.h"
#include "data/ingest.h"
#include "data/world.h"
#include "tests/ts_test.h"

static ts_comm *world;
static char folder[64];

enum { WHOLE = 22 };  // clips of the corpus that can be used

static const char *in_folder(const char *name) {
    static char path[4][PATH_MAX];
    static int next;
    char *out = path[next = (next + 1) % 4];
    snprintf(out, PATH_MAX, "%s/%s", folder, name);
    return out;
}

static void write_text(const char *name, const char *text) {
    CHECK_OK(ts_file_write_atomic(in_folder(name), text, strlen(text)));
}

static int ingest(ts_comm *comm, const char *out, const char *extra) {
    char config[PATH_MAX], option[PATH_MAX], more[256];
    snprintf(config, sizeof config, "%s", in_folder("ingest.yaml"));
    snprintf(option, sizeof option, "--out=%s", in_folder(out));
    snprintf(more, sizeof more, "%s", extra ? extra : "--seed=1");
    char *arguments[] = {(char[]){"ingest"}, config, option, more, NULL};
    return ts_command_ingest(comm, 4, arguments);
}

// 22 clips of the shapes world, a text file that pretends to be the 23rd, the 24th cut in half, a 25th that is missing.
static void make_corpus(ts_comm *comm) {
    char out[PATH_MAX];
    snprintf(out, sizeof out, "--out=%s", in_folder("videos"));
    char *arguments[] = {(char[]){"world"}, (char[]){"--clips=25"}, (char[]){"--frames=17"}, out, NULL};
    CHECK_OK(ts_command_world(comm, 4, arguments));
    if (ts_comm_rank(comm) == 0) {
        char text[2 * PATH_MAX], *bytes;
        size_t size;
        write_text("videos/0000023.mp4", "I am not a video");
        CHECK_OK(ts_file_read(in_folder("videos/0000024.mp4"), 1 << 20, &bytes, &size));
        CHECK_OK(ts_file_write_atomic(in_folder("videos/0000024.mp4"), bytes, size - 600));
        free(bytes);
        CHECK(unlink(in_folder("videos/0000025.mp4")) == 0);
        snprintf(text, sizeof text,
                 "source: %s\nbuckets: [64x64x17, 32x32x33]\nchannels: 8\ncodec_sample: 12\nfiles_per_group: 4\n"
                 "clips_per_shard: 3\ntokenizer:\n  min_count: 1\n",
                 in_folder("videos"));
        write_text("ingest.yaml", text);
    }
    CHECK_OK(ts_barrier(comm));
}

// A sum over manifest and shards.
static uint64_t sum_of(const char *name) {
    char path[PATH_MAX];
    uint64_t sum = 0;
    ts_manifest manifest;
    snprintf(path, sizeof path, "%s/manifest.json", in_folder(name));
    CHECK_OK(ts_file_hash(path, &sum));
    CHECK_OK(ts_manifest_read(in_folder(name), &manifest));
    for (int64_t i = 0; i < manifest.shard_count; i++) {
        uint64_t shard = 0;
        snprintf(path, sizeof path, "%s/%s", in_folder(name), manifest.shard[i].name);
        CHECK_OK(ts_file_hash(path, &shard));
        CHECK(shard == manifest.shard[i].sum);
        sum = sum * 31 + shard;
    }
    ts_manifest_free(&manifest);
    return sum;
}

static void test_dataset(void) {
    ts_dataset *d;
    CHECK_OK(ts_dataset_open(&d, in_folder("whole"), true));
    CHECK(ts_dataset_clips(d) == WHOLE && ts_dataset_buckets(d) == 1);
    CHECK(ts_shape_equal(ts_dataset_bucket_shape(d, 0), TS_SHAPE(5, 8, 8, 8)));
    CHECK(ts_dataset_manifest(d)->skipped == 3);
    CHECK(ts_dataset_manifest(d)->shard_count == 5 * 2 + 1);  // groups of 4 files in shards of 3 clips; the last has 2
    const ts_shapes_world shapes = {.seed = 1, .width = 64, .height = 64, .frames = 17};
    double sum = 0, square = 0;
    uint16_t latent[5 * 8 * 8 * 8];
    float values[5 * 8 * 8 * 8];
    ts_codec *codec;
    CHECK_OK(ts_codec_load(&codec, in_folder("whole/codec")));
    CHECK(ts_codec_get_info(codec).fingerprint == ts_dataset_manifest(d)->codec_fingerprint);
    for (int64_t i = 0; i < WHOLE; i++) {
        char name[32], caption[128];
        const ts_shapes_factors f = ts_shapes_draw(&shapes, i);
        snprintf(name, sizeof name, "%07" PRId64 ".mp4", i + 1);
        CHECK(strcmp(ts_dataset_source(d, i), name) == 0);  // in the order of the files
        CHECK(strcmp(ts_dataset_caption(d, i), ts_shapes_caption(&f, caption, sizeof caption)) == 0);
        CHECK(ts_dataset_fps(d, i) == 8);
        CHECK_OK(ts_dataset_read_latent(d, i, latent));
        for (int k = 0; k < 5 * 8 * 8 * 8; k++) {
            values[k] = ts_bf16_to_f32(latent[k]);
            sum += (double)values[k];
            square += (double)values[k] * (double)values[k];
        }
        // The latent decodes to the clip: the pixel in the middle of the shape has its colour.
        uint8_t *pixels = malloc(17 * 64 * 64 * 3);
        CHECK_OK(ts_codec_decode(codec, values, 5, 8, 8, pixels));
        const uint8_t *pixel = pixels + ((int64_t)f.y * 64 + (int64_t)f.x) * 3;
        for (int c = 0; c < 3; c++) {
            CHECK_NEAR(pixel[c], ts_shapes_colours[f.colour].rgb[c], 60);
        }
        free(pixels);
    }
    const double n = WHOLE * 5 * 8 * 8 * 8, variance = ts_dataset_manifest(d)->latent_variance;
    CHECK(variance > 0 && variance <= square / n - sum * sum / n / n + 1e-9);  // a mean a channel predicts better
    ts_codec_close(&codec);
    ts_dataset_close(&d);
}

static void test_skipped(void) {
    char *text;
    size_t bytes;
    CHECK_OK(ts_file_read(in_folder("whole/skipped.jsonl"), 1 << 20, &text, &bytes));
    const char *missing = strstr(text, "0000025.mp4"), *fake = strstr(text, "0000023.mp4"),
               *cut = strstr(text, "0000024.mp4");
    CHECK(missing && strstr(missing, "\"kind\": \"missing\""));
    CHECK(fake && strstr(fake, "\"kind\": \"unreadable\"") && strstr(fake, "cannot be opened as a video"));
    CHECK(cut && strstr(cut, "\"kind\": \"damaged\"") && strstr(cut, "damaged or missing"));
    free(text);
}

// What a stop leaves: some groups without a record, one with a shard cut off, a temporary file.
static void test_going_on(void) {
    const uint64_t whole = sum_of("whole");
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK(unlink(in_folder("whole/manifest.json")) == 0 && unlink(in_folder("whole/groups/000002.json")) == 0);
        CHECK(truncate(in_folder("whole/shard-000003-64x64x17-000.h5"), 1000) == 0);
        write_text("whole/shard-000002-64x64x17-000.h5.tmp", "half a shard");
        CHECK(unlink(in_folder("videos/0000001.mp4")) == 0);  // group 0 is done: it must not be read again,
        write_text("videos/0000001.mp4", "");                 // but its file may not change either
    }
    CHECK_OK(ts_barrier(world));
    CHECK_FAILS(ingest(world, "whole", NULL), TS_EUSAGE, "have changed");
    if (ts_comm_rank(world) == 0) {  // another file of the same size passes
        char *bytes;
        size_t size;
        CHECK_OK(ts_file_read(in_folder("first.mp4"), 1 << 20, &bytes, &size));
        memset(bytes, 0, size);
        CHECK_OK(ts_file_write_atomic(in_folder("videos/0000001.mp4"), bytes, size));
        free(bytes);
    }
    CHECK_OK(ts_barrier(world));
    CHECK_OK(ingest(world, "whole", NULL));
    CHECK(sum_of("whole") == whole);
    CHECK(!ts_path_exists(in_folder("whole/shard-000002-64x64x17-000.h5.tmp")));
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        char *bytes;
        size_t size;
        CHECK_OK(ts_file_read(in_folder("first.mp4"), 1 << 20, &bytes, &size));
        CHECK_OK(ts_file_write_atomic(in_folder("videos/0000001.mp4"), bytes, size));
        free(bytes);
    }
    CHECK_OK(ts_barrier(world));
}

static void test_refusals(void) {
    CHECK_FAILS(ingest(world, "whole", "--fps=4"), TS_EUSAGE, "begun with fps 8");
    CHECK_FAILS(ingest(world, "whole", "--tokenizer.min_count=2"), TS_EUSAGE, "tokenizer");
    CHECK_FAILS(ingest(world, "bad", "--buckets=64x64x16"), TS_EUSAGE, "64x64x16");
    CHECK_FAILS(ingest(world, "bad", "--buckets=64x64x17,64x64x17"), TS_EUSAGE, "twice");
    CHECK_FAILS(ingest(world, "videos", NULL), TS_EUSAGE, "holds files but no data set");
    CHECK_FAILS(ingest(world, "ingest.yaml", NULL), TS_EUSAGE, "is a file");
    CHECK_FAILS(ingest(world, "bad", "--source=/no/such/folder"), TS_EINPUT, "/no/such/folder");
    CHECK(!ts_path_exists(in_folder("bad")));
    CHECK_FAILS(ingest(world, "none", "--buckets=32x32x33"), TS_EINPUT, "nothing could be ingested");
    CHECK(!ts_path_exists(in_folder("none/manifest.json")));
    char *arguments[] = {(char[]){"ingest"}, NULL};
    CHECK_FAILS(ts_command_ingest(world, 1, arguments), TS_EUSAGE, "no configuration file");
}

// Ingests in a process of its own, killed after `seconds` unless that is 0. Returns whether it came to its end.
static bool ingest_in_child(const char *out, double seconds, bool corpus_first) {
    const pid_t child = fork();
    if (child == 0) {
        ts_log_set_level(TS_LOG_ERROR);
        int argc = 0, status;
        char **argv = NULL;
        CHECK_OK(ts_world_open(&world, &argc, &argv));
        if (corpus_first) {
            make_corpus(world);
        }
        CHECK_OK(status = ingest(world, out, NULL));
        ts_world_close(&world, status);
        _exit(ts_test_end());
    }
    if (seconds > 0) {
        usleep((useconds_t)(seconds * 1e6));
        kill(child, SIGKILL);
    }
    int state;
    CHECK(waitpid(child, &state, 0) == child);
    CHECK(!WIFEXITED(state) || WEXITSTATUS(state) == 0);
    return WIFEXITED(state);
}

// Killed at random moments and begun again, it ends with what an ingest left alone makes.
// Called before this process opens MPI: the children open it themselves.
static void test_killed(void) {
    CHECK(ingest_in_child("unkilled", 0, true));
    const double start = ts_clock_seconds();
    CHECK(ingest_in_child("timed", 0, false));
    const double whole = ts_clock_seconds() - start;
    int kills = 0;
    for (int trial = 0; trial < 12; trial++) {
        // From the middle on: the first half is MPI's start.
        const double share = 0.4 + 0.6 * (double)ts_rng_uniform(3, TS_RNG_TEST, 0, (uint32_t)trial);
        kills += !ingest_in_child("killed", whole * share, false);
    }
    CHECK(kills > 0);
    CHECK(ingest_in_child("killed", 0, false));
    CHECK(sum_of("killed") == sum_of("unkilled"));
    CHECK(sum_of("timed") == sum_of("unkilled"));
    CHECK_OK(ts_folder_remove(in_folder("videos")));
}

// The sum of the data set made by one rank alone, whatever the number of ranks of this test.
static void test_same_on_one_rank(void) {
    const uint64_t together = sum_of("whole");
    CHECK_OK(ts_barrier(world));
    ts_mesh alone;
    CHECK_OK(ts_mesh_open(&alone, world, &(ts_degrees){ts_comm_size(world), 1, 1, 1, 1}));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ingest(alone.axis[TS_AXIS_TENSOR], "alone", NULL));
        CHECK(sum_of("alone") == together);
    }
    ts_mesh_close(&alone);
    CHECK_OK(ts_barrier(world));
}

int main(int argc, char **argv) {
    strcpy(folder, "/tmp/tessera-ingest-XXXXXX");
    const char *ranks = getenv("TESSERA_TEST_RANKS");
    const bool single = !ranks || strcmp(ranks, "1") == 0;
    if (single) {
        CHECK(mkdtemp(folder) != NULL);
        test_killed();
    }
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    ts_log_set_level(TS_LOG_WARN);
    if (!single) {
        if (ts_comm_rank(world) == 0) {
            CHECK(mkdtemp(folder) != NULL);
        }
        CHECK_OK(ts_broadcast(world, folder, sizeof folder, 0));
    }
    make_corpus(world);
    CHECK_OK(ingest(world, "whole", NULL));
    if (ts_comm_rank(world) == 0) {
        test_dataset();
        test_skipped();
        char *bytes;
        size_t size;
        CHECK_OK(ts_file_read(in_folder("videos/0000001.mp4"), 1 << 20, &bytes, &size));
        CHECK_OK(ts_file_write_atomic(in_folder("first.mp4"), bytes, size));
        free(bytes);
    }
    CHECK_OK(ts_barrier(world));
    test_going_on();
    test_same_on_one_rank();
    test_refusals();
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    const int result = ts_test_end();
    ts_world_close(&world, result);
    return result;
}
