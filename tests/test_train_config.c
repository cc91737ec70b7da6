// SPDX-License-Identifier: Apache-2.0
// The training configuration: derived values, checks, and which changes make another run of it.
#include <unistd.h>

#include "core/base/file.h"
#include "tests/ts_test.h"
#include "train/config.h"

static ts_arena *arena;

static ts_train_config fresh(void) {
    ts_train_config config = {0};
    CHECK_OK(ts_options_default(ts_train_options, &config, arena));
    config.data = "corpus";
    return config;
}

static void test_finish(void) {
    ts_train_config config = fresh();
    config.name = "first";
    CHECK_OK(ts_train_config_finish(&config, arena));
    CHECK(!strcmp(config.out, "runs/first"));
    CHECK(config.model.patch_size[0] == 1 && config.model.patch_size[1] == 2 && config.model.patch_size[2] == 2);
    config.data = NULL;
    CHECK_FAILS(ts_train_config_finish(&config, arena), TS_EUSAGE, "data");
    static const char *const bad_patches[] = {"", "1", "1x2", "0x2x2", "1x2x2x2", "axbxc", "1x2x-2", "999x999x999"};
    for (size_t i = 0; i < sizeof bad_patches / sizeof bad_patches[0]; i++) {
        config = fresh();
        config.model.patch = bad_patches[i];
        CHECK_FAILS(ts_train_config_finish(&config, arena), TS_EUSAGE, "model.patch");
    }
    config = fresh();
    config.model.head_dim = 9;
    CHECK_FAILS(ts_train_config_finish(&config, arena), TS_EUSAGE, "head_dim");
    config = fresh();
    config.patterns.all = 0;
    CHECK_FAILS(ts_train_config_finish(&config, arena), TS_EUSAGE, "patterns");
    config = fresh();
    config.train.rounding = TS_ROUND_STOCHASTIC;
    config.train.optimizer = TS_OPTIMIZER_ADAMW;
    CHECK_OK(ts_train_config_finish(&config, arena));
    config.train.optimizer = TS_OPTIMIZER_MUON;
    CHECK_FAILS(ts_train_config_finish(&config, arena), TS_EUSAGE, "train.rounding");
    // A prompt that cannot be sampled is found at the start, not at the first sample.
    static const char *const prompts[] = {"a red circle", " "};
    config = fresh();
    config.sample.prompts = (ts_string_list){2, prompts};
    CHECK_FAILS(ts_train_config_finish(&config, arena), TS_EINPUT, "sample.prompts: the prompt is empty");
}

static int same(const ts_train_config *before, const ts_train_config *now) {
    return ts_train_config_same_run(ts_options_to_json(ts_train_options, before, arena),
                                    ts_options_to_json(ts_train_options, now, arena), "step-00000010");
}

static void test_same_run(void) {
    const ts_train_config before = fresh();
    ts_train_config now = before;
    now.data = "elsewhere", now.name = "b", now.out = "runs/c", now.threads = 3, now.mesh.data = 2;
    now.train.minutes = 9, now.train.micro_batch = 4, now.train.recompute = TS_RECOMPUTE_BLOCK, now.sample.every = 5;
    now.checkpoint.every = 7, now.log.every = 1, now.validate.every = 3;
    CHECK_OK(same(&before, &now));
    now = before, now.train.beta2 = 0.9;
    CHECK_FAILS(same(&before, &now), TS_EUSAGE, "train.beta2: 0.99, now it is 0.9");
    now = before, now.seed = 2;
    CHECK_FAILS(same(&before, &now), TS_EUSAGE, "step-00000010 was made with seed: 1, now it is 2");
    now = before, now.init = "model";
    CHECK_FAILS(same(&before, &now), TS_EUSAGE, "init");
    now = before, now.precision = TS_PRECISION_F32;
    CHECK_FAILS(same(&before, &now), TS_EUSAGE, "precision");
    now = before, now.validate.clips++;  // they are taken off the training order
    CHECK_FAILS(same(&before, &now), TS_EUSAGE, "validate.clips");
    now = before, now.train.steps *= 2;  // the cosine is stretched
    CHECK_FAILS(same(&before, &now), TS_EUSAGE, "train.steps");
    ts_train_config constant = before;
    constant.train.schedule = TS_DECAY_CONSTANT;
    now = constant, now.train.steps *= 2;
    CHECK_OK(same(&constant, &now));
}

// What is saved with a run reads back as the same run.
static void test_round_trip(void) {
    ts_train_config config = fresh(), again = fresh();
    static const char *const prompts[] = {"a red circle, moving", "caf\xc3\xa9: \"#1\""};
    config.sample.prompts = (ts_string_list){2, prompts};
    config.train.lr = 0.1 / 3;
    config.seed = 123456789012345;
    char path[] = "/tmp/tessera-config-XXXXXX";
    const int fd = mkstemp(path);
    FILE *file = fdopen(fd, "w");
    CHECK_OK(ts_options_write_yaml(ts_train_options, &config, file));
    fclose(file);
    CHECK_OK(ts_options_read_yaml(ts_train_options, &again, arena, path));
    const char *a = ts_options_to_json(ts_train_options, &config, arena);
    const char *b = ts_options_to_json(ts_train_options, &again, arena);
    CHECK(a && b && !strcmp(a, b));
    unlink(path);
}

static void test_sizes(void) {
    ts_train_config config = fresh();
    config.text.width = 48, config.model.text_rows = 12;
    CHECK_OK(ts_train_config_finish(&config, arena));
    const ts_dit_config dit = ts_train_config_dit(&config, 16);
    const ts_text_config text = ts_train_config_text(&config, 300);
    CHECK(dit.in_channels == 16 && dit.out_channels == 16 && dit.text_dim == 48 && dit.text_rows == 12);
    CHECK(text.vocabulary == 300 && text.width == 48);
}

static void test_degrees(void) {
    ts_train_config config = fresh();
    ts_degrees degree;
    config.mesh.tensor = 2, config.mesh.ring = 3;
    CHECK_OK(ts_train_config_degrees(&config, 12, &degree));
    CHECK(degree.data == 2 && degree.ring == 3 && degree.ulysses == 1 && degree.tensor == 2);
    CHECK_FAILS(ts_train_config_degrees(&config, 8, &degree), TS_EUSAGE,
                "sequence 3 x tensor 2 ranks are asked for, or a multiple of that, 8 run");
    config.mesh.data = 2;
    CHECK_FAILS(ts_train_config_degrees(&config, 8, &degree), TS_EUSAGE,
                "data 2 x sequence 3 x tensor 2 ranks are asked for, 8 run");
    config.mesh.sequence = 4;
    CHECK_FAILS(ts_train_config_degrees(&config, 24, &degree), TS_EUSAGE, "mesh.sequence=4 is not");
    // The largest degrees that can be written: their product is beyond 64 bits.
    config.mesh.data = config.mesh.tensor = config.mesh.ring = config.mesh.ulysses = 1 << 20, config.mesh.sequence = 0;
    CHECK_FAILS(ts_train_config_degrees(&config, 4, &degree), TS_EUSAGE, "sequence 1099511627776 x tensor 1048576");
}

int main(void) {
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 16, false));
    test_finish();
    test_same_run();
    test_round_trip();
    test_sizes();
    test_degrees();
    ts_arena_close(&arena);
    return ts_test_end();
}
