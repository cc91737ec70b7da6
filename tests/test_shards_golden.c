// SPDX-License-Identifier: Apache-2.0
// `tessera check parity` on meshes, against the reference implementation: outputs, intermediates and every gradient.
// TEST: ranks=2,3,4 timeout=60
#include "core/model/parity.h"
#include "tests/ts_test.h"

static ts_comm *world;
static const char *shared;

// The check of SHARED/parity/MODEL/{transformer, io.safetensors} and, where asked for, grads.safetensors.
static int check(const char *model, bool grads, const char *mesh) {
    char text[4][512];
    char *argv[6] = {"check", "parity"};
    int argc = 2;
    snprintf(text[0], sizeof text[0], "--model=%s/parity/%s/transformer", shared, model);
    snprintf(text[1], sizeof text[1], "--io=%s/parity/%s/io.safetensors", shared, model);
    snprintf(text[2], sizeof text[2], "--mesh=%s", mesh);
    snprintf(text[3], sizeof text[3], "--grads=%s/parity/%s/grads.safetensors", shared, model);
    for (int i = 0; i < 3 + grads; i++) {
        argv[argc++] = text[i];
    }
    return ts_command_check(world, argc, argv);
}

static const char *const MESHES[5][8] = {
    [2] = {"tensor=2", "ulysses=2", "ring=2", "data=2"},
    [3] = {"tensor=3", "ulysses=3", "ring=3"},
    [4] = {"tensor=4", "ulysses=4", "ring=4", "ulysses=2,ring=2", "tensor=2,ulysses=2", "tensor=2,ring=2",
           "data=2,tensor=2"},
};

int main(int argc, char **argv) {
    shared = ts_test_shared();
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    const char *const *meshes = MESHES[ts_comm_size(world)];
    for (const char *const *mesh = meshes; *mesh; mesh++) {
        CHECK_OK(check("wan_t2v_tiny", true, *mesh));
    }
    char sequence[16];
    snprintf(sequence, sizeof sequence, "sequence=%d", ts_comm_size(world));
    CHECK_OK(check("wan_ti2v_tiny", false, sequence));
    CHECK_OK(check("wan_i2v21_tiny", false, meshes[0]));
    CHECK_OK(check("wan_flf2v_tiny", false, sequence));
    ts_world_close(&world, 0);
    return ts_test_end();
}
