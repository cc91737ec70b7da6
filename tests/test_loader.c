// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// The loader: one order for any number of ranks, exact resumption, every clip at most once an epoch. Ranks are played
// one after the other: the loader is not collective.
#include "data/loader.h"

#include <unistd.h>

#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/base/split.h"
#include "ts_test.h"

enum { CLIPS_A = 37, CLIPS_B = 22, CLIPS = CLIPS_A + CLIPS_B, BATCH = 5, STEPS = 40 };
static char folder[] = "/tmp/ts-loader-XXXXXX";
static ts_dataset *dataset;
static const ts_shape SHAPE[2] = {{4, {2, 2, 2, 4}}, {4, {1, 2, 3, 4}}};

static ts_shard_info write_shard(const char *name, ts_shape shape, int64_t first, int64_t count, float poison) {
    char path[4096], source[64];
    float latent[64];
    ts_shard_writer *writer;
    ts_shard_info info = {.shape = shape};
    snprintf(info.name, sizeof info.name, "%s", name);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    CHECK_OK(ts_shard_writer_open(&writer, path, shape, 1));
    for (int64_t clip = first; clip < first + count; clip++) {
        for (int64_t i = 0; i < ts_shape_count(shape); i++) {
            latent[i] = (float)clip + poison;
        }
        snprintf(source, sizeof source, "%lld", (long long)clip);
        CHECK_OK(ts_shard_writer_add(writer, latent, &(ts_clip_record){source, source, 0, 1, 8}));
    }
    CHECK_OK(ts_shard_writer_commit(&writer, &info.count, &info.sum));
    info.bytes = ts_path_bytes(path);
    return info;
}

static void write_dataset(void) {
    ts_shard_info shard[2] = {write_shard("a.h5", SHAPE[0], 0, CLIPS_A, 0),
                              write_shard("b.h5", SHAPE[1], CLIPS_A, CLIPS_B, 0)};
    CHECK_OK(ts_manifest_write(folder, &(ts_manifest){.codec_fingerprint = 1, .shard_count = 2, .shard = shard}));
    CHECK_OK(ts_dataset_open(&dataset, folder, true));
}

static ts_loader *open_loader(int rank, int size, uint64_t seed) {
    ts_loader *loader;
    const ts_loader_params params = {.batch = BATCH, .seed = seed, .rank = rank, .size = size, .held_out = 6};
    CHECK_OK(ts_loader_open(&loader, dataset, &params));
    return loader;
}

// Clip numbers of the first STEPS global batches as `size` ranks see them, with all checks of a batch.
static void collect(int size, uint64_t seed, int64_t order[STEPS][BATCH]) {
    for (int rank = 0; rank < size; rank++) {
        ts_loader *loader = open_loader(rank, size, seed);
        const ts_part own = ts_split(BATCH, size, rank);
        const int64_t first = own.first, count = own.count;
        for (int64_t step = 0; step < STEPS; step++) {
            ts_batch batch;
            CHECK_OK(ts_loader_next(loader, &batch));
            CHECK(batch.count == count && batch.global_count == BATCH && batch.first_sample == step * BATCH + first);
            CHECK(batch.cursor.samples == step * BATCH && ts_shape_equal(batch.shape, SHAPE[batch.bucket]));
            CHECK(batch.cursor.epoch * ts_loader_batches_per_epoch(loader) + batch.cursor.batch == step);
            const int64_t elements = ts_shape_count(batch.shape);
            for (int64_t i = 0; i < count; i++) {
                const int64_t clip = batch.clip[i];
                order[step][first + i] = clip;
                CHECK(atoi(batch.caption[i]) == clip && ts_dataset_bucket_of(dataset, clip) == batch.bucket);
                CHECK(batch.latent[i * elements] == (float)clip && batch.latent[(i + 1) * elements - 1] == (float)clip);
            }
        }
        ts_loader_close(&loader);
        CHECK(loader == NULL);
    }
}

static void test_ranks(void) {
    static int64_t alone[STEPS][BATCH], shared[STEPS][BATCH];
    collect(1, 7, alone);
    for (int size = 2; size <= 8; size++) {  // 8 ranks of a batch of 5: some have nothing
        memset(shared, -1, sizeof shared);
        collect(size, 7, shared);
        CHECK(!memcmp(alone, shared, sizeof alone));
    }
    collect(1, 8, shared);
    CHECK(memcmp(alone, shared, sizeof alone) != 0);
}

static void test_epochs(void) {
    ts_loader *loader = open_loader(0, 1, 7);
    const int64_t *validation, batches = ts_loader_batches_per_epoch(loader);
    CHECK(ts_loader_validation(loader, &validation) == 6);
    int64_t left[2] = {CLIPS_A, CLIPS_B};
    for (int i = 0; i < 6; i++) {
        left[ts_dataset_bucket_of(dataset, validation[i])]--;
        CHECK(i == 0 || validation[i] > validation[i - 1]);
    }
    CHECK(batches == left[0] / BATCH + left[1] / BATCH);
    int times[CLIPS] = {0}, same = 0;
    int64_t previous[64] = {0};
    for (int64_t epoch = 0; epoch < 20; epoch++) {
        int seen[CLIPS] = {0};
        for (int64_t k = 0; k < batches; k++) {
            ts_batch batch;
            CHECK_OK(ts_loader_next(loader, &batch));
            CHECK(batch.cursor.epoch == epoch && batch.cursor.batch == k);
            CHECK(batch.next.epoch == epoch + (k + 1 == batches) && batch.next.batch == (k + 1) % batches);
            CHECK(batch.next.samples == batch.cursor.samples + BATCH);
            for (int64_t i = 0; i < batch.count; i++) {
                CHECK(seen[batch.clip[i]]++ == 0);
                times[batch.clip[i]]++;
            }
            same += previous[k] == batch.clip[0];
            previous[k] = batch.clip[0];
        }
    }
    for (int64_t clip = 0, held = 0; clip < CLIPS; clip++) {
        const bool is_held = held < 6 && validation[held] == clip;
        held += is_held;
        CHECK(is_held ? times[clip] == 0 : times[clip] >= 10);  // what waits this epoch comes in another
    }
    CHECK(same < 20);
    CHECK(ts_loader_wait_seconds(loader) > 0 && ts_loader_wait_seconds(loader) == 0);
    ts_loader_close(&loader);
}

static void test_seek(void) {
    static int64_t order[STEPS][BATCH];
    collect(1, 7, order);
    ts_loader *loader = open_loader(0, 1, 7);
    const int64_t batches = ts_loader_batches_per_epoch(loader);
    static const int64_t starts[] = {17, 3, 0, 23, 8, 9, 10, 39};
    for (size_t s = 0; s < sizeof starts / sizeof starts[0]; s++) {
        CHECK_OK(ts_loader_seek(loader, (ts_cursor){starts[s] / batches, starts[s] % batches, starts[s] * BATCH}));
        for (int64_t step = starts[s]; step < STEPS && step < starts[s] + 12; step++) {
            ts_batch batch;
            CHECK_OK(ts_loader_next(loader, &batch));
            CHECK(!memcmp(batch.clip, order[step], sizeof order[step]) && batch.first_sample == step * BATCH);
        }
    }
    ts_batch batch;
    CHECK_OK(ts_loader_seek(loader, (ts_cursor){0, batches, batches * BATCH}));
    CHECK_OK(ts_loader_next(loader, &batch));
    CHECK(batch.cursor.epoch == 1 && batch.cursor.batch == 0 && !memcmp(batch.clip, order[batches], sizeof order[0]));
    CHECK_FAILS(ts_loader_seek(loader, (ts_cursor){0, batches + 1, 0}), TS_EINPUT, "no place in this data set");
    CHECK_FAILS(ts_loader_seek(loader, (ts_cursor){-1, 0, 0}), TS_EINPUT, "epoch -1");
    ts_loader_close(&loader);
}

static void test_refusals(void) {
    ts_loader *loader;
    CHECK_FAILS(ts_loader_open(&loader, dataset, &(ts_loader_params){.batch = 0, .size = 1}), TS_EUSAGE, "batch 0");
    CHECK_FAILS(ts_loader_open(&loader, dataset, &(ts_loader_params){.batch = 1, .size = 1, .held_out = CLIPS + 1}),
                TS_EUSAGE, "held out");
    CHECK_FAILS(ts_loader_open(&loader, dataset, &(ts_loader_params){.batch = CLIPS_A + 1, .size = 1}), TS_EINPUT,
                "no latent shape has the 38 clips");
    ts_loader_close(&loader);
    CHECK_FAILS(ts_loader_open(&loader, dataset, &(ts_loader_params){.batch = INT32_MAX, .size = 1}), TS_EINPUT,
                "no latent shape");
    ts_loader_close(&loader);
    ts_loader_close(&loader);
}

// Errors of the thread reach the caller with their text: a shard that shrinks, a latent that is not finite.
static void test_damage(void) {
    char path[4096];
    ts_loader *loader;
    ts_batch batch;
    int status = 0;
    snprintf(path, sizeof path, "%s/a.h5", folder);
    ts_shard_info shard = {.shape = SHAPE[0], .count = CLIPS_A, .bytes = ts_path_bytes(path), .name = "a.h5"};
    CHECK(ts_dataset_manifest(dataset)->shard[0].bytes == shard.bytes);
    char *bytes;
    size_t size;
    CHECK_OK(ts_file_read(path, 1 << 20, &bytes, &size));
    for (size_t i = 0; i + 1 < size; i += 2) {  // bf16 of 3.0 becomes a NaN, wherever the latents lie
        if (!memcmp(bytes + i, "\x40\x40\x40\x40", 4)) {
            memcpy(bytes + i, "\xc0\x7f", 2);
            break;
        }
    }
    FILE *file = fopen(path, "r+b");  // the same file, still open in the data set
    CHECK(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
    CHECK_OK(ts_loader_open(&loader, dataset, &(ts_loader_params){.batch = CLIPS_A, .size = 1, .seed = 1}));
    CHECK_FAILS(ts_loader_next(loader, &batch), TS_EINPUT, "clip 3 (3): its latent is not finite");
    ts_loader_close(&loader);
    CHECK(truncate(path, 0) == 0);
    loader = open_loader(0, 1, 7);
    for (int step = 0; step < 30 && !status; step++) {
        status = ts_loader_next(loader, &batch);
    }
    CHECK(status == TS_EINPUT && strstr(ts_error_text(), "a.h5"));
    ts_loader_close(&loader);
    free(bytes);
}

int main(void) {
    CHECK(mkdtemp(folder) != NULL);
    write_dataset();
    test_ranks();
    test_epochs();
    test_seek();
    test_refusals();
    test_damage();
    ts_dataset_close(&dataset);
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
