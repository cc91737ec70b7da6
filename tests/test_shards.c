// SPDX-License-Identifier: Apache-2.0
// `tessera check parity` on meshes: every value and every gradient of a transformer that no mesh divides evenly,
// against those of one rank of the CPU. TEST: ranks=2,3,4 timeout=120 backend=cuda
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/model/parity.h"
#include "core/model/parity_private.h"
#include "core/model/weights.h"
#include "tests/shard_model.h"

enum { MAX_ITEMS = 128, NAME_BYTES = 64 };

static ts_comm *world;

// ---- the vectors: what one rank computes

// Tensors under construction, in the reference's layout.
typedef struct tensors {
    int count;
    ts_safetensors_item item[MAX_ITEMS];
    char name[MAX_ITEMS][NAME_BYTES];
} tensors;

static void add(tensors *t, const char *name, const float *data, ts_shape shape) {
    const int64_t n = ts_shape_count(shape);
    float *copy = malloc((size_t)n * sizeof *copy);
    CHECK(t->count < MAX_ITEMS && strlen(name) < NAME_BYTES);
    if (shape.ndim == 5) {  // video: [B, T, H, W, C] -> [B, C, T, H, W]
        const ts_shape s = shape;
        ts_channels_first(data, copy, s.dim[0], s.dim[4], n / (s.dim[0] * s.dim[4]));
        shape = TS_SHAPE(s.dim[0], s.dim[4], s.dim[1], s.dim[2], s.dim[3]);
    } else {
        memcpy(copy, data, (size_t)n * sizeof *copy);
    }
    strcpy(t->name[t->count], name);
    t->item[t->count] = (ts_safetensors_item){t->name[t->count], TS_F32, shape, copy};
    t->count++;
}

static void write_and_free(tensors *t, const char *folder, const char *name) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    CHECK_OK(ts_safetensors_write(path, t->item, t->count, NULL));
    for (int i = 0; i < t->count; i++) {
        free((void *)t->item[i].data);
    }
    t->count = 0;
}

static void keep_probe(void *user, const char *name, const ts_var *var) {
    if (var->value.dtype == TS_F32 && strncmp(name, "rope_", 5) != 0) {
        add(user, name, var->value.data, var->value.shape);
    }
}

static void write_model(const shard_model *m, const char *folder) {
    char path[128];
    const ts_dit_config config = shard_config();
    json_t *json = ts_dit_config_to_json(&config);
    snprintf(path, sizeof path, "%s/config.json", folder);
    CHECK(json_dump_file(json, path, 0) == 0);
    json_decref(json);
    snprintf(path, sizeof path, "%s/diffusion_pytorch_model.safetensors", folder);
    CHECK_OK(ts_weights_save(m->params, m->params->value, "", path));
}

// FOLDER/{config.json, weights, io.safetensors, grads.safetensors}
static void write_vectors(const char *folder, shard_size size) {
    static shard_model m;
    static tensors io, grads;
    const ts_shape video = shard_video(size);
    shard_open(&m, NULL, size, TS_F32, TS_TAPE_RECORD, true);
    write_model(&m, folder);
    ts_tape_set_probe(m.tape, keep_probe, &io);
    ts_dit_input input = shard_input(&m, TS_RECOMPUTE_NONE);
    ts_dit_forward(m.tape, m.dit, &input);
    CHECK_OK(ts_tape_status(m.tape));
    ts_tape_set_probe(m.tape, NULL, NULL);
    input = shard_input(&m, TS_RECOMPUTE_NONE);
    CHECK_OK(shard_step(&m, &input));
    add(&grads, "__input.hidden_states", m.latent_var->grad, m.latent_var->value.shape);
    add(&grads, "__input.encoder_hidden_states", m.context_var->grad, m.context_var->value.shape);
    // A video's gradient is compared in our layout's order of numbers only when it is one.
    for (int64_t i = 0; i < m.params->count; i++) {
        const ts_param *p = m.params->item[i];
        const ts_shape flat = p->shape.ndim == 5 ? TS_SHAPE(p->count) : p->shape;
        add(&grads, p->name, p->grad, flat);
    }
    const float loss = (float)m.loss;
    add(&io, "loss", &loss, TS_SHAPE(1));
    add(&io, "hidden_states", m.latent, video);
    add(&io, "target", m.target, video);
    add(&io, "encoder_hidden_states", m.context, m.context_var->value.shape);
    add(&io, "timestep", m.timestep, TS_SHAPE(size.batch, size.frames));
    write_and_free(&io, folder, "io.safetensors");
    write_and_free(&grads, folder, "grads.safetensors");
    shard_close(&m);
}

// ---- the check

static int check(const char *folder, const char *mesh, const char *dtype, const char *tolerance) {
    char text[7][160];
    char *argv[9] = {"check", "parity"};
    const char *const format[] = {"--model=%s", "--io=%s/io.safetensors", "--grads=%s/grads.safetensors"};
    for (int i = 0; i < 3; i++) {
        snprintf(text[i], sizeof text[i], format[i], folder);
    }
    snprintf(text[3], sizeof text[3], "--mesh=%s", mesh);
    snprintf(text[4], sizeof text[4], "--dtype=%s", dtype);
    snprintf(text[5], sizeof text[5], "--tolerance=%s", tolerance);
    snprintf(text[6], sizeof text[6], "--device=%s", ts_test_backend());
    for (int i = 0; i < 7; i++) {
        argv[2 + i] = text[i];
    }
    return ts_command_check(world, 9, argv);
}

static const char *const MESHES[5][9] = {
    [2] = {"tensor=2", "ulysses=2", "ring=2", "data=2"},
    [3] = {"tensor=3", "ulysses=3", "ring=3"},
    [4] = {"tensor=4", "ulysses=4", "ring=4", "ulysses=2,ring=2", "tensor=2,ulysses=2", "tensor=2,ring=2",
           "data=2,tensor=2", "data=2,ring=2"},
};

// On an imitated GPU, which takes its time, the fewest tokens do.
static bool is_slow(void) {
    return strcmp(ts_test_backend(), "cpu") != 0;
}

static void check_size(shard_size size) {
    char folder[] = "/tmp/ts-shards-XXXXXX";
    if (ts_comm_rank(world) == 0) {
        CHECK(mkdtemp(folder) != NULL);
        write_vectors(folder, size);
    }
    CHECK_OK(ts_broadcast(world, folder, sizeof folder, 0));
    for (const char *const *mesh = MESHES[ts_comm_size(world)]; *mesh; mesh++) {
        CHECK_OK(check(folder, *mesh, "f32", "1e-4"));
    }
    if (!is_slow()) {
        CHECK_OK(check(folder, MESHES[ts_comm_size(world)][0], "bf16", "0.1"));
    }
    // The check can fail, on all ranks alike.
    CHECK_FAILS(check(folder, MESHES[ts_comm_size(world)][0], "bf16", "1e-4"), TS_EINPUT, "differ");
    CHECK_FAILS(check(folder, "tensor=7", "f32", "1e-4"), TS_EUSAGE, "does not fit");
    if (ts_comm_size(world) == 2) {
        CHECK_FAILS(check(folder, "cfg=2", "f32", "1e-4"), TS_EUSAGE, "no guidance");
    }
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
}

int main(int argc, char **argv) {
    test_choose(0);
    CHECK_OK(ts_kernels_cpu(&test_kernels, "auto"));
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    if (!is_slow()) {
        check_size(SHARD_75);
    }
    check_size(SHARD_3);
    ts_world_close(&world, 0);
    return ts_test_end();
}
