// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=120
// The shipped model samples on every kind of mesh: the same noise to the bit, latents after 20 steps that differ by at
// most 1e-4 of the largest, or by nothing where that is asked for, the same pixels from the same latents; and the bytes
// of the cfg axis are those of the formula.
#include <xxhash.h>

#include "core/comm/mesh.h"
#include "core/model/model.h"
#include "infer/sampler/decode.h"
#include "infer/sampler/sample.h"
#include "tests/ts_test.h"

enum { VIDEOS = 3, T = 3, H = 8, W = 8, STEPS = 20 };

static const char *const prompts[VIDEOS] = {"a red circle moves left on a black background",
                                            "a cyan square moves down on a brown background",
                                            "a yellow triangle moves right on a navy background"};

static const struct {
    int ranks;
    const char *mesh;
} cases[] = {
    {1, "data=1"},
    {2, "tensor=2"},
    {2, "ulysses=2"},
    {2, "ring=2"},
    {2, "cfg=2"},
    {2, "data=2"},
    {3, "tensor=3"},
    {3, "ulysses=3"},
    {3, "ring=3"},
    {3, "data=3"},
    {4, "tensor=4"},
    {4, "ring=4"},
    {4, "sequence=4"},
    {4, "ulysses=2,ring=2"},
    {4, "tensor=2,ulysses=2"},
    {4, "tensor=2,ring=2"},
    {4, "ulysses=2,cfg=2"},
    {4, "tensor=2,cfg=2"},
    {4, "ring=2,cfg=2"},
    {4, "data=2,cfg=2"},
    {4, "data=2,ulysses=2"},
    {4, "data=2,tensor=2"},
};

static const ts_sample_params params = {.frames = T,
                                        .height = H,
                                        .width = W,
                                        .steps = STEPS,
                                        .guidance = 3.0,
                                        .shift = 3.0,
                                        .grid = TS_GRID_UNIPC,
                                        .solver = TS_SOLVER_UNIPC,
                                        .seed = 11,
                                        .batch = 2,
                                        .quiet = true};

static ts_comm *world;
static const ts_kernels *kernels;
static int64_t numbers;  // of a video's latents
static float *alone;     // [VIDEOS, T, H, W, C] as one rank makes them, in f32

// Whether all ranks hold the same bytes.
static bool alike(const void *data, size_t bytes) {
    const int64_t hash = (int64_t)(XXH3_64bits(data, bytes) >> 1);
    int64_t most[2] = {hash, -hash};
    CHECK_OK(ts_all_reduce(world, most, 2, TS_I64, TS_MAX));
    return most[0] == -most[1];
}

static float *sample(const ts_mesh *mesh, ts_dtype precision) {
    ts_model *model = NULL;
    CHECK_OK(ts_agree(world, ts_model_load(&model, "configs/shapes-model", NULL, mesh, precision, false)));
    numbers = T * H * W * ts_dit_get_config(model->dit)->out_channels;
    float *latents = malloc((size_t)(VIDEOS * numbers) * sizeof *latents);
    CHECK_OK(ts_sample(model, kernels, &params, prompts, VIDEOS, 5, latents));
    ts_model_close(&model);
    return latents;
}

// Where nothing is added up over ranks, the bits are those of one rank; elsewhere the last digits differ.
static void compare_latents(const char *mesh, const float *latents, bool adds_up) {
    double worst = 0.0, largest = 0.0;
    for (int64_t i = 0; i < VIDEOS * numbers; i++) {
        largest = fmax(largest, fabs((double)alone[i]));
        worst = fmax(worst, fabs((double)latents[i] - (double)alone[i]));
    }
    CHECK(worst <= (adds_up || !ts_kernels_cpu_products_fixed(TS_F32) ? 1e-4 * largest : 0.0));
    CHECK(alike(latents, (size_t)(VIDEOS * numbers) * sizeof *latents));
    if (ts_comm_rank(world) == 0) {
        if (memcmp(latents, alone, (size_t)(VIDEOS * numbers) * sizeof *latents) == 0) {
            printf("%-20s latents bitwise those of one rank\n", mesh);
        } else {
            printf("%-20s latents within %.1e of those of one rank, which reach %.1f\n", mesh, worst, largest);
        }
    }
}

// With the reproducible flag every mesh gives the bits of one rank.
static void test_reproducible(const char *name, ts_mesh *mesh, ts_dtype precision, const float *one_rank) {
    if (!ts_kernels_cpu_products_fixed(precision)) {
        CHECK_FAILS(ts_sample_check_reproducible(kernels, precision), TS_EUSAGE, "reproducible");
        return;
    }
    CHECK_OK(ts_sample_check_reproducible(kernels, precision));
    mesh->reproducible = true;
    float *latents = sample(mesh, precision);
    const bool same = memcmp(latents, one_rank, (size_t)(VIDEOS * numbers) * sizeof *latents) == 0;
    if (!same) {
        fprintf(stderr, "%s: not the bits of one rank in %s\n", name, ts_dtype_name(precision));
    }
    CHECK(same);
    free(latents);
}

// Each of the two ranks sends its branch once a step: n T H W C numbers for the n videos under way.
static void check_cfg_bytes(const ts_mesh *mesh) {
    const ts_comm *data = mesh->axis[TS_AXIS_DATA];
    const ts_part videos = ts_split(VIDEOS, ts_comm_size(data), ts_comm_rank(data));
    const ts_comm_counters sent = ts_comm_get_counters(mesh->axis[TS_AXIS_CFG], TS_ALL_GATHER);
    CHECK((int64_t)sent.bytes_sent == (mesh->degree.cfg - 1) * STEPS * videos.count * numbers * 4);
    CHECK(mesh->degree.cfg == 1 || (int64_t)sent.calls == STEPS * ((videos.count + 1) / 2));
}

// Decoded by all ranks for any of them: the pixels that one rank makes of the same latents.
static void test_decode(void) {
    ts_codec *codec = NULL;
    uint8_t *all = NULL, *own = NULL;
    const size_t bytes = (size_t)VIDEOS * (1 + 4 * (T - 1)) * 8 * H * 8 * W * 3;
    CHECK_OK(ts_codec_load(&codec, "configs/shapes-model/codec"));
    CHECK_OK(ts_decode(codec, alone, VIDEOS, T, H, W, NULL, 0, &own));
    for (int root = 0; root < ts_comm_size(world); root++) {
        CHECK_OK(ts_decode(codec, alone, VIDEOS, T, H, W, world, root, &all));
        CHECK(!all == (root != ts_comm_rank(world)));
        CHECK(!all || memcmp(all, own, bytes) == 0);
        free(all);
    }
    free(own);
    ts_codec_close(&codec);
}

static void test_refusals(void) {
    ts_degrees d;
    CHECK_FAILS(ts_degrees_read(&d, "cfg=2,data=2", 4, 2), TS_EUSAGE, "the product");
    CHECK_FAILS(ts_degrees_read(&d, "cfg=2", 4, 3), TS_EUSAGE, "must be 3");
    CHECK_OK(ts_degrees_read(&d, "cfg=2,sequence=6", 4, 24));
    CHECK(d.data == 2 && d.cfg == 2 && d.ulysses == 3 && d.ring == 2 && d.tensor == 1);
    CHECK_OK(ts_sample_check(&d, 3.0));
    CHECK_FAILS(ts_sample_check(&d, 1.0), TS_EUSAGE, "guidance 1");
    d.cfg = 3;
    CHECK_FAILS(ts_sample_check(&d, 3.0), TS_EUSAGE, "cfg=3");
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    alone = sample(NULL, TS_F32);
    float *alone_bf16 = sample(NULL, TS_BF16);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].ranks == ts_comm_size(world)) {
            ts_degrees degree;
            ts_mesh mesh;
            CHECK_OK(ts_degrees_read(&degree, cases[i].mesh, 4, ts_comm_size(world)));
            CHECK_OK(ts_mesh_open(&mesh, world, &degree));
            float *latents = sample(&mesh, TS_F32);
            const bool adds_up = degree.tensor > 1 || degree.ring > 1;
            compare_latents(cases[i].mesh, latents, adds_up);
            check_cfg_bytes(&mesh);
            free(latents);
            if (adds_up) {
                test_reproducible(cases[i].mesh, &mesh, TS_F32, alone);
            }
            test_reproducible(cases[i].mesh, &mesh, TS_BF16, alone_bf16);
            ts_mesh_close(&mesh);
        }
    }
    test_decode();
    test_refusals();
    free(alone);
    free(alone_bf16);
    const int failed = ts_test_end();
    ts_world_close(&world, 0);
    return failed;
}
