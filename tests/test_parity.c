// SPDX-License-Identifier: Apache-2.0
// `tessera check parity` on the golden files that travel with the repository: the text encoder and a transformer with a
// timestep for each token, against the reference implementation's outputs. TEST: ranks=1 timeout=120 backend=cuda
#include "core/model/parity.h"

#include <unistd.h>

#include "core/base/file.h"
#include "core/store/safetensors.h"
#include "tests/device_test.h"

static ts_comm *world;

static char device[32];

#define CHECK_PARITY(...)                                                                                              \
    ts_command_check(world, (int)(sizeof((char *[]){"check", "parity", device, __VA_ARGS__}) / sizeof(char *)),        \
                     (char *[]){"check", "parity", device, __VA_ARGS__})

#define TEXT        "--model=tests/vectors/umt5_tiny/text_encoder"
#define TRANSFORMER "--model=tests/vectors/wan_ti2v_tiny/transformer"
#define TEXT_IO     "--io=tests/vectors/umt5_tiny/io.safetensors"
#define IO          "--io=tests/vectors/wan_ti2v_tiny/io.safetensors"

static void test_golden(void) {
    CHECK_OK(CHECK_PARITY(TEXT, TEXT_IO, "--tolerance=2e-5"));
    CHECK_OK(CHECK_PARITY(TRANSFORMER, IO));
    CHECK_OK(CHECK_PARITY(TEXT, TEXT_IO, "--dtype=bf16", "--tolerance=0.1"));
    CHECK_OK(CHECK_PARITY(TRANSFORMER, IO, "--dtype=bf16", "--tolerance=5e-2"));
}

// The checker can fail: rounding alone exceeds a tolerance far below it.
static void test_exceeds(void) {
    CHECK_FAILS(CHECK_PARITY(TEXT, TEXT_IO, "--tolerance=1e-9"), TS_EINPUT, "differ");
    CHECK_FAILS(CHECK_PARITY(TRANSFORMER, IO, "--dtype=bf16"), TS_EINPUT, "differ");
}

// A NaN among good values is a difference, too.
static void test_nan(void) {
    char folder[] = "/tmp/ts-parity-XXXXXX", path[64], *bytes;
    const float nan_value = NAN;
    size_t count;
    ts_safetensors *file;
    CHECK(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/io.safetensors", folder);
    CHECK_OK(ts_safetensors_open(&file, "tests/vectors/umt5_tiny/io.safetensors"));
    CHECK_OK(ts_file_read("tests/vectors/umt5_tiny/io.safetensors", 1 << 24, &bytes, &count));
    memcpy(bytes + ts_safetensors_find(file, "last_hidden_state")->offset, &nan_value, sizeof nan_value);
    CHECK_OK(ts_file_write_atomic(path, bytes, count));
    char option[80];
    snprintf(option, sizeof option, "--io=%s", path);
    CHECK_FAILS(CHECK_PARITY(TEXT, option), TS_EINPUT, "differ");
    free(bytes);
    ts_safetensors_close(&file);
    CHECK_OK(ts_folder_remove(folder));
}

// Sizes that only a config.json claims are compared with the weights before memory is asked for.
static void test_claims(void) {
    char folder[] = "/tmp/ts-parity-XXXXXX", path[64], option[80];
    const char claims[] = "{\"architectures\": [\"UMT5EncoderModel\"], \"vocab_size\": 16000000, \"d_model\": 1000000}";
    CHECK(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/config.json", folder);
    snprintf(option, sizeof option, "--config=%s", path);
    CHECK_OK(ts_file_write_atomic(path, claims, strlen(claims)));
    CHECK_FAILS(CHECK_PARITY(TEXT, TEXT_IO, option), TS_EINPUT, "wanted [16000000, 1000000]");
    CHECK_OK(ts_folder_remove(folder));
}

static void test_errors(void) {
    CHECK_FAILS(CHECK_PARITY(TRANSFORMER, TEXT_IO), TS_EINPUT, "hidden_states");
    CHECK_FAILS(CHECK_PARITY(TEXT, IO), TS_EINPUT, "input_ids");
    CHECK_FAILS(CHECK_PARITY(TRANSFORMER, IO, "--grads=tests/vectors/wan_ti2v_tiny/io.safetensors"), TS_EINPUT,
                "target");
    CHECK_FAILS(CHECK_PARITY(TEXT, TEXT_IO, "--config=tests/vectors/wan_ti2v_tiny/transformer/config.json"), TS_EINPUT,
                "missing");
    CHECK_FAILS(CHECK_PARITY(TEXT, TEXT_IO, "--mesh=tensor=2,data=1"), TS_EUSAGE, "does not fit");
    CHECK_FAILS(CHECK_PARITY(TEXT, TEXT_IO, "--mesh=tensor"), TS_EUSAGE, "mesh");
    CHECK_FAILS(CHECK_PARITY(TEXT, TEXT_IO, "--mesh=colour=1"), TS_EUSAGE, "mesh");
    CHECK_OK(CHECK_PARITY(TEXT, TEXT_IO, "--mesh=tensor=1,ulysses=1,ring=1,data=1"));
    CHECK_FAILS(CHECK_PARITY(TEXT), TS_EUSAGE, "io");
    CHECK_FAILS(CHECK_PARITY("--model=/nonexistent", IO), TS_EINPUT, "/nonexistent");
    CHECK_OK(CHECK_PARITY("--help"));
    CHECK_FAILS(ts_command_check(world, 2, (char *[]){"check", "sum"}), TS_EUSAGE, "sum");
}

int main(int argc, char **argv) {
    test_choose(0);
    snprintf(device, sizeof device, "--device=%s", ts_test_backend());
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    test_golden();
    test_exceeds();
    test_nan();
    test_claims();
    test_errors();
    ts_world_close(&world, 0);
    return ts_test_end();
}
