// SPDX-License-Identifier: Apache-2.0
// `tessera check parity` on all golden files: outputs, intermediates and every gradient. TEST: ranks=1 timeout=120
// backend=cuda
#include "core/model/parity.h"
#include "tests/device_test.h"

static ts_comm *world;
static const char *shared;

// The check of SHARED/parity/MODEL with IO (and GRADS beside it) at a dtype and tolerance.
static int check(const char *model, const char *io, const char *grads, const char *config, const char *dtype,
                 const char *tolerance) {
    char text[7][512];
    char *argv[9] = {"check", "parity"};
    int argc = 2;
    const struct {
        const char *option, *value;
    } paths[] = {{"model", model}, {"io", io}, {"grads", grads}, {"config", config}};
    for (int i = 0; i < 4; i++) {
        if (paths[i].value) {
            snprintf(text[i], sizeof text[i], "--%s=%s/parity/%s", paths[i].option, shared, paths[i].value);
            argv[argc++] = text[i];
        }
    }
    snprintf(text[4], sizeof text[4], "--dtype=%s", dtype);
    argv[argc++] = text[4];
    snprintf(text[5], sizeof text[5], "--tolerance=%s", tolerance);
    argv[argc++] = text[5];
    snprintf(text[6], sizeof text[6], "--device=%s", ts_test_backend());
    argv[argc++] = text[6];
    return ts_command_check(world, argc, argv);
}

#define T2V "wan_t2v_tiny/"

int main(int argc, char **argv) {
    shared = ts_test_shared();
    test_choose(0);
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(check(T2V "transformer", T2V "io.safetensors", T2V "grads.safetensors", NULL, "f32", "1e-4"));
    CHECK_OK(check(T2V "transformer_sharded", T2V "io.safetensors", T2V "grads.safetensors", NULL, "f32", "1e-4"));
    CHECK_OK(check(T2V "transformer", T2V "io.safetensors", T2V "grads.safetensors", NULL, "bf16", "3e-2"));
    CHECK_OK(check(T2V "transformer_bf16", T2V "io.safetensors", T2V "grads.safetensors", T2V "transformer/config.json",
                   "f32", "3e-2"));
    CHECK_OK(check("wan_ti2v_tiny/transformer", "wan_ti2v_tiny/io.safetensors", NULL, NULL, "f32", "1e-4"));
    CHECK_OK(check("wan_i2v21_tiny/transformer", "wan_i2v21_tiny/io.safetensors", NULL, NULL, "f32", "1e-4"));
    CHECK_OK(check("wan_flf2v_tiny/transformer", "wan_flf2v_tiny/io.safetensors", NULL, NULL, "f32", "1e-4"));
    CHECK_OK(check("umt5_tiny/text_encoder", "umt5_tiny/io.safetensors", NULL, NULL, "f32", "1e-4"));
    ts_world_close(&world, 0);
    return ts_test_end();
}
