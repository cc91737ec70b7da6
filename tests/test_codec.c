// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3 timeout=120
// The pca codec: exact on data of low rank, orthonormal, scaled as promised, and fitted and decoded to the same bits on
// any number of ranks.
#include "core/comm/mesh.h"
#include "core/model/codec.h"

#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/model/codec/codec_pca.h"
#include "core/model/codec/eigen.h"
#include "ts_test.h"

enum { FRAMES = 9, HEIGHT = 24, WIDTH = 40, CLIP_BYTES = FRAMES * HEIGHT * WIDTH * 3, CLIPS = 24 };

static ts_comm *world, *self;
static char folder[64] = "/tmp/ts-codec-XXXXXX";

static uint32_t draw(uint64_t index, uint32_t lane) {
    return ts_philox_draw(7, TS_RNG_TEST, index, lane).word[0];
}

// A soft coloured blob that moves over a gradient, with a little noise.
static void make_clip(int64_t clip, uint8_t *pixels) {
    const double x0 = draw((uint64_t)clip, 1) % WIDTH, y0 = draw((uint64_t)clip, 2) % HEIGHT;
    const double speed = (double)(draw((uint64_t)clip, 3) % 5) - 2;
    for (int64_t i = 0; i < CLIP_BYTES; i++) {
        const int64_t c = i % 3, x = i / 3 % WIDTH, y = i / 3 / WIDTH % HEIGHT, t = i / 3 / WIDTH / HEIGHT;
        const double dx = (double)x - x0 - speed * (double)t, dy = (double)y - y0;
        const double blob = exp(-(dx * dx + dy * dy) / 60) * (double)(draw((uint64_t)clip, (uint32_t)(4 + c)) % 150);
        pixels[i] = (uint8_t)(20 + (double)x + blob + draw((uint64_t)clip, (uint32_t)(i + 10)) % 4);
    }
}

// Adds the clips first, first + step, ... < CLIPS, the last one first when `backwards`.
static void fit_clips(ts_codec_fit *fit, int64_t first, int64_t step, bool backwards) {
    static uint8_t pixels[CLIP_BYTES];
    for (int64_t i = first; i < CLIPS; i += step) {
        make_clip(backwards ? CLIPS - 1 - i : i, pixels);
        CHECK_OK(ts_codec_fit_add(fit, pixels, FRAMES, HEIGHT, WIDTH));
    }
}

static ts_codec *fit_all(int64_t channels, double power) {
    ts_codec_fit *fit;
    ts_codec *codec;
    CHECK_OK(ts_codec_fit_open(&fit, channels, power));
    fit_clips(fit, 0, 1, false);
    CHECK_OK(ts_codec_fit_finish(fit, self, &codec));
    ts_codec_fit_close(&fit);
    return codec;
}

// ---- eigenvectors

static void test_eigen(int64_t n, int64_t rank) {
    double *x = malloc((size_t)(n * rank) * sizeof *x), *a = calloc((size_t)(n * n), sizeof *a);
    double *used = malloc((size_t)(n * n) * sizeof *used), *value = malloc((size_t)n * sizeof *value);
    double *vector = malloc((size_t)(n * n) * sizeof *vector);
    for (int64_t i = 0; i < n * rank; i++) {
        x[i] = (double)(draw(99, (uint32_t)i) % 1000) / 100 - 5;
    }
    for (int64_t r = 0; r < rank; r++) {
        for (int64_t i = 0; i < n * n; i++) {
            a[i] += x[r * n + i / n] * x[r * n + i % n];
        }
    }
    memcpy(used, a, (size_t)(n * n) * sizeof *a);
    CHECK_OK(ts_eigen_symmetric(used, n, value, vector));
    double residual = 0, skew = 0;
    for (int64_t i = 0; i < n; i++) {
        const double *v = vector + i * n;
        CHECK(i == 0 || value[i] <= value[i - 1]);
        for (int64_t row = 0; row < n; row++) {
            double product = 0, dot = 0;
            for (int64_t k = 0; k < n; k++) {
                product += a[row * n + k] * v[k];
                dot += vector[row * n + k] * v[k];
            }
            residual = fmax(residual, fabs(product - value[i] * v[row]));
            skew = fmax(skew, fabs(dot - (row == i)));
        }
    }
    CHECK(residual <= 1e-13 * (double)n * value[0] && skew <= 1e-13 * (double)(n + 1));
    if (rank < n) {
        CHECK_NEAR(value[rank], 0, 1e-12 * value[0]);
    }
    free(x);
    free(a);
    free(used);
    free(value);
    free(vector);
}

// ---- groups alone

static bool same(const void *a, const void *b, size_t bytes) {
    return memcmp(a, b, bytes) == 0;
}

// Groups are encoded and decoded as the later frames of a whole clip are.
static void test_groups(const ts_codec *codec) {
    enum { GROUPS = (FRAMES - 1) / 4, FRAME = HEIGHT * WIDTH * 3, POSITIONS = (HEIGHT / 8) * (WIDTH / 8) };
    static uint8_t pixels[CLIP_BYTES], back[CLIP_BYTES], groups_back[GROUPS * 4 * FRAME];
    const int64_t frame = POSITIONS * codec->channels;
    float *whole = malloc((size_t)((GROUPS + 1) * frame) * sizeof *whole);
    float *groups = malloc((size_t)(GROUPS * frame) * sizeof *groups);
    make_clip(3, pixels);
    CHECK_OK(ts_codec_encode(codec, pixels, FRAMES, HEIGHT, WIDTH, whole));
    CHECK_OK(ts_codec_encode_groups(codec, pixels + FRAME, GROUPS, HEIGHT, WIDTH, groups));
    CHECK(same(groups, whole + frame, (size_t)(GROUPS * frame) * sizeof *groups));
    CHECK_OK(ts_codec_decode(codec, whole, GROUPS + 1, HEIGHT / 8, WIDTH / 8, back));
    CHECK_OK(ts_codec_decode_groups(codec, groups, GROUPS, HEIGHT / 8, WIDTH / 8, groups_back));
    // The first two frames look at what was before them, and there are no groups before these.
    CHECK(same(groups_back + 2 * FRAME, back + 3 * FRAME, sizeof groups_back - 2 * FRAME));
    CHECK(!same(groups_back, back + FRAME, 2 * FRAME));
    const ts_codec_stretch rest = {whole, GROUPS + 1, HEIGHT / 8, WIDTH / 8, false, true, false};
    CHECK_OK(ts_codec_decode_stretch(codec, &rest, NULL, 0, groups_back));
    CHECK(same(groups_back, back + FRAME, sizeof groups_back));
    CHECK_FAILS(ts_codec_encode_groups(codec, pixels, 0, HEIGHT, WIDTH, groups), TS_EUSAGE, "0 groups");
    CHECK_FAILS(ts_codec_encode_groups(codec, pixels, INT64_MAX, HEIGHT, WIDTH, groups), TS_EUSAGE, "groups");
    CHECK_FAILS(ts_codec_encode_groups(codec, pixels, 1, HEIGHT, WIDTH - 1, groups), TS_EUSAGE, "multiples of 8");
    CHECK_FAILS(ts_codec_decode_groups(codec, groups, 0, 3, 5, back), TS_EUSAGE, "cannot be decoded");
    CHECK_FAILS(ts_codec_decode_groups(codec, groups, INT64_MAX, 3, INT64_MAX, back), TS_EUSAGE, "latent");
    free(whole);
    free(groups);
}

// The last pixel frame of a group as a first latent frame, by its definition in double precision; the same bits however
// many groups there are.
static void test_first_of(const ts_codec *codec) {
    enum { GROUPS = 5, H = 3, W = 5, POSITIONS = GROUPS * H * W };
    const ts_codec_transform *first = &codec->first, *later = &codec->later;
    const int64_t channels = codec->channels, last = later->dims - first->dims;
    float *group = malloc((size_t)(POSITIONS * channels) * sizeof *group);
    float *got = malloc((size_t)(POSITIONS * channels) * sizeof *got), *one = malloc((size_t)channels * sizeof *one);
    for (int64_t i = 0; i < POSITIONS * channels; i++) {
        group[i] = (float)(draw(17, (uint32_t)i) % 4001) / 1000 - 2;
    }
    CHECK_OK(ts_codec_first_of(codec, group, GROUPS, H, W, got));
    for (int64_t p = 0; p < POSITIONS; p++) {
        double x[TS_CODEC_FIRST_DIMS];
        for (int64_t d = 0; d < first->dims; d++) {
            x[d] = (double)later->mean[last + d] - (double)first->mean[d];
            for (int64_t c = 0; c < channels; c++) {
                x[d] += (double)group[p * channels + c] / (double)later->scale[c] *
                        (double)later->axes[c * later->dims + last + d];
            }
        }
        for (int64_t j = 0; j < channels; j++) {
            double want = 0;
            for (int64_t d = 0; d < first->dims; d++) {
                want += (double)first->scale[j] * (double)first->axes[j * first->dims + d] * x[d];
            }
            CHECK_NEAR(got[p * channels + j], want, 2e-5);
        }
        CHECK_OK(ts_codec_first_of(codec, group + p * channels, 1, 1, 1, one));
        CHECK(same(one, got + p * channels, (size_t)channels * sizeof *one));
    }
    CHECK_OK(ts_codec_first_of(codec, group, 0, H, W, got));
    CHECK_FAILS(ts_codec_first_of(codec, group, -1, H, W, got), TS_EUSAGE, "-1 groups");
    free(group);
    free(got);
    free(one);
}

// Squares of got - want over `count` numbers, beside those of want.
static double distance(const float *got, const float *want, int64_t count) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        error += pow((double)got[i] - (double)want[i], 2);
        size += pow((double)want[i], 2);
    }
    return error / size;
}

// Of a real clip: beside what the codec makes of the frame as it decodes it, rounding apart.
static void test_first_of_clip(const ts_codec *codec) {
    static uint8_t pixels[CLIP_BYTES], back[CLIP_BYTES];
    const int64_t frame = (HEIGHT / 8) * (WIDTH / 8) * codec->channels;
    float *latent = malloc((size_t)(3 * frame) * sizeof *latent), *want = malloc((size_t)frame * sizeof *want);
    float *got = malloc((size_t)frame * sizeof *got);
    make_clip(5, pixels);
    CHECK_OK(ts_codec_encode(codec, pixels, FRAMES, HEIGHT, WIDTH, latent));
    CHECK_OK(ts_codec_decode(codec, latent, 3, HEIGHT / 8, WIDTH / 8, back));
    CHECK_OK(ts_codec_encode(codec, back + (FRAMES - 1) * HEIGHT * WIDTH * 3, 1, HEIGHT, WIDTH, want));
    CHECK_OK(ts_codec_first_of(codec, latent + 2 * frame, 1, HEIGHT / 8, WIDTH / 8, got));
    CHECK(distance(got, want, frame) < 0.02);
    free(latent);
    free(want);
    free(got);
}

// A clip that goes over into another pixel frame by pixel frame: crossed latents are much nearer to those of such
// pixels than latents mixed by one share a group. Shares that are alike give that mixture, and 1 the other clip.
static void test_cross(const ts_codec *codec) {
    static uint8_t a[CLIP_BYTES], b[CLIP_BYTES], mixed[CLIP_BYTES];
    const int64_t channels = codec->channels, count = (HEIGHT / 8) * (WIDTH / 8), frame = count * channels;
    const int64_t pixels = HEIGHT * WIDTH * 3;
    const float share[] = {0, 0.33f, 0.67f, 1}, half[] = {0.5f, 0.5f, 0.5f, 0.5f}, ones[] = {1, 1, 1, 1};
    float *z = malloc((size_t)(4 * 3 * frame) * sizeof *z), *za = z + frame, *zb = z + 4 * frame, *want = z + 7 * frame;
    float *got = z + 9 * frame;
    make_clip(5, a);
    make_clip(6, b);
    for (int64_t i = 0; i < CLIP_BYTES; i++) {
        a[i] = (uint8_t)(a[i] / 2), b[i] = (uint8_t)(b[i] / 2 + 100);  // another light, too
        const float s = share[(i / pixels + 3) % 4];                   // frame 0 is no group
        mixed[i] = (uint8_t)lrintf((float)a[i] + s * (float)(b[i] - a[i]));
    }
    CHECK_OK(ts_codec_encode(codec, a, FRAMES, HEIGHT, WIDTH, za - frame));
    CHECK_OK(ts_codec_encode(codec, b, FRAMES, HEIGHT, WIDTH, zb - frame));
    CHECK_OK(ts_codec_encode(codec, mixed, FRAMES, HEIGHT, WIDTH, want - frame));
    memcpy(got, za, (size_t)frame * sizeof *got);
    ts_codec_cross(codec, half, zb, count, got);
    for (int64_t i = 0; i < frame; i++) {
        CHECK_NEAR(got[i], ((double)za[i] + (double)zb[i]) / 2, 1e-4);
    }
    const double mean = distance(got, want, frame);
    memcpy(got, za, (size_t)frame * sizeof *got);
    ts_codec_cross(codec, share, zb, count, got);
    CHECK(distance(got, want, frame) < 0.5 * mean);
    memcpy(got, za, (size_t)frame * sizeof *got);
    ts_codec_cross(codec, ones, zb, count, got);
    CHECK(distance(got, zb, frame) < 1e-9);
    free(z);
}

// ---- properties

static void test_orthonormal(const ts_codec *codec) {
    const ts_codec_transform *both[2] = {&codec->first, &codec->later};
    for (int b = 0; b < 2; b++) {
        for (int64_t i = 0; i < codec->channels; i++) {
            for (int64_t j = 0; j <= i; j++) {
                double dot = 0;
                for (int64_t d = 0; d < both[b]->dims; d++) {
                    dot += (double)both[b]->axes[i * both[b]->dims + d] * (double)both[b]->axes[j * both[b]->dims + d];
                }
                CHECK_NEAR(dot, i == j, 1e-6);
            }
        }
    }
}

// Over the clips of the fit, latents have mean 0 and mean variance 1, and what decoding loses is what was said.
static void test_scale_and_loss(const ts_codec *codec) {
    static uint8_t pixels[CLIP_BYTES], back[CLIP_BYTES];
    const int64_t positions = 3 * 3 * 5, n = positions * codec->channels;
    float *latent = malloc((size_t)n * sizeof *latent);
    double sum = 0, square = 0, error = 0, *pixel_sum = calloc(2 * TS_CODEC_LATER_DIMS, sizeof(double)), spread = 0;
    for (int64_t clip = 0; clip < CLIPS; clip++) {
        make_clip(clip, pixels);
        CHECK_OK(ts_codec_encode(codec, pixels, FRAMES, HEIGHT, WIDTH, latent));
        CHECK_OK(ts_codec_decode(codec, latent, 3, 3, 5, back));
        for (int64_t i = 0; i < n; i++) {
            sum += (double)latent[i];
            square += (double)latent[i] * (double)latent[i];
        }
        for (int64_t i = 0; i < CLIP_BYTES; i++) {
            const int64_t c = i % 3, x = i / 3 % WIDTH % 8, y = i / 3 / WIDTH % HEIGHT % 8, t = i / 3 / WIDTH / HEIGHT;
            const ts_codec_transform *transform = t ? &codec->later : &codec->first;
            const int64_t d = (((t ? (t - 1) % 4 : 0) * 8 + y) * 8 + x) * 3 + c;
            const double off = (double)pixels[i] - (double)transform->mean[d];
            spread += off * off;
            error += pow((double)pixels[i] - (double)back[i], 2);
        }
    }
    CHECK_NEAR(sum / (double)(n * CLIPS), 0, 1e-4);
    CHECK_NEAR(square / (double)(n * CLIPS), 1, 1e-4);
    const double rounding = 1.0 / 12 * CLIP_BYTES * CLIPS / spread;  // decoding rounds to whole numbers
    // What a latent loses of its group, its neighbours give back in part.
    const double lost = 1 - codec->explained;
    CHECK(error / spread < 0.8 * lost + rounding && error / spread > 0.1 * lost + rounding);
    CHECK(codec->explained > 0.8 && codec->explained < 0.9999);
    free(latent);
    free(pixel_sum);
}

// Blocks of the form 128 + a u + b v: three channels are more than enough, and nothing may be lost.
static void test_low_rank(void) {
    enum { SIDE = 16, LENGTH = 9, BYTES = LENGTH * SIDE * SIDE * 3 };
    static uint8_t pixels[BYTES], back[BYTES];
    float latent[3 * 2 * 2 * 3];
    ts_codec_fit *fit;
    ts_codec *codec;
    CHECK_OK(ts_codec_fit_open(&fit, 3, 0.5));
    for (uint64_t clip = 0; clip < 20; clip++) {
        for (int64_t i = 0; i < BYTES; i++) {
            const int64_t x = i / 3 % SIDE, y = i / 3 / SIDE % SIDE, t = i / 3 / SIDE / SIDE;
            const int64_t block = ((t + 3) / 4 * 2 + y / 8) * 2 + x / 8;
            const int a = (int)(draw(clip, (uint32_t)(2 * block)) % 41) - 20;
            const int b = (int)(draw(clip, (uint32_t)(2 * block + 1)) % 41) - 20;
            const int u = x % 8 < 4 ? 1 : -1, v = i % 3 == 0 && y % 8 > 2 ? 2 : 1;
            pixels[i] = (uint8_t)(128 + a * u + b * v);
        }
        CHECK_OK(ts_codec_fit_add(fit, pixels, LENGTH, SIDE, SIDE));
    }
    CHECK_OK(ts_codec_fit_finish(fit, self, &codec));
    CHECK_NEAR(ts_codec_get_info(codec).explained, 1, 1e-12);
    for (int k = 0; k < TS_CODEC_JOINS; k++) {  // joins trust no latent wholly
        CHECK_OK(ts_codec_join_fit(codec, (ts_codec_join_kind)k, &(ts_codec_pairs){0}));
    }
    CHECK_OK(ts_codec_prepare(codec));
    CHECK_OK(ts_codec_encode(codec, pixels, LENGTH, SIDE, SIDE, latent));
    CHECK_OK(ts_codec_decode(codec, latent, 3, 2, 2, back));
    CHECK(!memcmp(pixels, back, sizeof pixels));
    ts_codec_fit_close(&fit);
    ts_codec_close(&codec);
}

// A scene that stands still: the first frame's leading channels agree with the later ones'.
static void test_alignment(void) {
    static uint8_t pixels[CLIP_BYTES];
    ts_codec_fit *fit;
    ts_codec *codec;
    CHECK_OK(ts_codec_fit_open(&fit, 8, 0.5));
    for (int64_t clip = 0; clip < CLIPS; clip++) {
        make_clip(clip, pixels);
        for (int64_t t = 1; t < FRAMES; t++) {
            memcpy(pixels + t * HEIGHT * WIDTH * 3, pixels, HEIGHT * WIDTH * 3);
        }
        CHECK_OK(ts_codec_fit_add(fit, pixels, FRAMES, HEIGHT, WIDTH));
    }
    CHECK_OK(ts_codec_fit_finish(fit, self, &codec));
    float latent[3 * 3 * 5 * 8];
    CHECK_OK(ts_codec_encode(codec, pixels, FRAMES, HEIGHT, WIDTH, latent));
    double worst = 0;
    for (int i = 0; i < 3 * 5 * 8; i++) {
        worst = fmax(worst, fabs((double)latent[i] - (double)latent[i + 3 * 5 * 8]));
    }
    CHECK_NEAR(worst, 0, 1e-3);
    ts_codec_fit_close(&fit);
    ts_codec_close(&codec);
}

// ---- ranks, files, refusals

// `alone` is what rank 0 fitted from all clips by itself.
static void test_ranks(const ts_codec *alone) {
    ts_codec_fit *fit;
    ts_codec *shared;
    const int rank = ts_comm_rank(world), size = ts_comm_size(world);
    CHECK_OK(ts_codec_fit_open(&fit, 16, 0.5));
    if (size == 1 || rank != 0) {  // rank 0 of several gives nothing
        fit_clips(fit, size == 1 ? 0 : rank - 1, size == 1 ? 1 : size - 1, true);
    }
    CHECK_OK(ts_codec_fit_finish(fit, world, &shared));
    uint64_t fingerprint = alone ? ts_codec_get_info(alone).fingerprint : 0;
    double explained = alone ? ts_codec_get_info(alone).explained : 0;
    CHECK_OK(ts_broadcast(world, &fingerprint, sizeof fingerprint, 0));
    CHECK_OK(ts_broadcast(world, &explained, sizeof explained, 0));
    CHECK(ts_codec_get_info(shared).fingerprint == fingerprint && shared->explained == explained);
    ts_codec_fit_close(&fit);
    ts_codec_close(&shared);
    CHECK_OK(ts_codec_fit_open(&fit, 4, 0.5));
    CHECK_FAILS(ts_codec_fit_finish(fit, world, &shared), TS_EINPUT, "no clips to fit");
    CHECK(shared == NULL);
    ts_codec_fit_close(&fit);
}

static void test_files(ts_codec *codec) {
    static uint8_t pixels[CLIP_BYTES];
    char path[4096];
    float before[3 * 3 * 5 * 16], after[3 * 3 * 5 * 16];
    ts_codec *back;
    CHECK_OK(ts_codec_save(codec, folder));
    CHECK_OK(ts_codec_load(&back, folder));
    CHECK(ts_codec_get_info(back).fingerprint == codec->fingerprint && back->channels == codec->channels);
    CHECK(back->scale_power == codec->scale_power && back->explained == codec->explained);
    make_clip(3, pixels);
    CHECK_OK(ts_codec_encode(codec, pixels, FRAMES, HEIGHT, WIDTH, before));
    CHECK_OK(ts_codec_encode(back, pixels, FRAMES, HEIGHT, WIDTH, after));
    CHECK(!memcmp(before, after, sizeof before));
    ts_codec_close(&back);

    char *config;
    size_t bytes;
    snprintf(path, sizeof path, "%s/config.json", folder);
    CHECK_OK(ts_file_read(path, 1 << 20, &config, &bytes));
    codec->later.axes[7] += 1e-3f;  // another codec
    CHECK_OK(ts_codec_prepare(codec));
    CHECK_OK(ts_codec_save(codec, folder));
    CHECK_OK(ts_file_write_atomic(path, config, bytes));  // the first one's config beside the second one's matrices
    CHECK_FAILS(ts_codec_load(&back, folder), TS_EINPUT, "do not belong together");
    CHECK(back == NULL);
    codec->later.axes[7] -= 1e-3f;
    codec->join[TS_CODEC_END].matrix[3] += 1e-3f;  // other joins
    CHECK_OK(ts_codec_prepare(codec));
    CHECK_OK(ts_codec_save(codec, folder));
    CHECK_OK(ts_file_write_atomic(path, config, bytes));
    CHECK_FAILS(ts_codec_load(&back, folder), TS_EINPUT, "do not belong together");
    char *version = strstr(config, "\"version\": 2");
    CHECK(version != NULL);
    if (version) {  // a folder of the time before joins: groups are decoded alone
        version[11] = '1';
        CHECK_OK(ts_file_write_atomic(path, config, bytes));
        CHECK_OK(ts_codec_load(&back, folder));
        CHECK(back && ts_codec_join_sum(back) != ts_codec_join_sum(codec));
        ts_codec_close(&back);
    }
    CHECK_OK(ts_file_write_atomic(path, "{\"kind\":\"vae\"}", 14));
    CHECK_FAILS(ts_codec_load(&back, folder), TS_EINPUT, "config.json: \"kind\" is \"vae\"");
    CHECK_FAILS(ts_codec_load(&back, "/nowhere"), TS_EINPUT, "/nowhere/config.json");
    free(config);
}

static void test_refusals(const ts_codec *codec) {
    ts_codec_fit *fit;
    ts_codec *none;
    uint8_t pixels[8 * 8 * 3] = {0};
    float latent[192];
    CHECK_FAILS(ts_codec_fit_open(&fit, 0, 0.5), TS_EUSAGE, "0 channels");
    CHECK_FAILS(ts_codec_fit_open(&fit, 193, 0.5), TS_EUSAGE, "193 channels");
    CHECK_FAILS(ts_codec_fit_open(&fit, 4, (double)NAN), TS_EUSAGE, "scale power");
    CHECK_FAILS(ts_codec_encode(codec, pixels, 2, 8, 8, latent), TS_EUSAGE, "2 frames");
    CHECK_FAILS(ts_codec_encode(codec, pixels, 1, 8, 9, latent), TS_EUSAGE, "9 x 8 pixels");
    CHECK_FAILS(ts_codec_encode(codec, pixels, 1, 0, 8, latent), TS_EUSAGE, "8 x 0 pixels");
    CHECK_FAILS(ts_codec_decode(codec, latent, INT64_MAX / 2, 1, 1, pixels), TS_EUSAGE, "cannot be decoded");
    CHECK_FAILS(ts_codec_decode(codec, latent, 1 << 20, 1 << 10, 1 << 10, pixels), TS_EUSAGE, "2^31");
    CHECK_OK(ts_codec_encode(codec, pixels, 1, 8, 8, latent));  // a picture is a clip
    for (int i = 0; i < 16; i++) {
        latent[i] = i ? 1e30f : NAN;
    }
    CHECK_OK(ts_codec_decode(codec, latent, 1, 1, 1, pixels));  // clamped, no trap
    CHECK_OK(ts_codec_fit_open(&fit, 4, 0.5));
    CHECK_OK(ts_codec_fit_add(fit, pixels, 1, 8, 8));
    CHECK_FAILS(ts_codec_fit_finish(fit, self, &none), TS_EINPUT, "single frame");
    ts_codec_fit_close(&fit);
    static uint8_t still[5 * 8 * 8 * 3];
    CHECK_OK(ts_codec_fit_open(&fit, 4, 0.5));
    CHECK_OK(ts_codec_fit_add(fit, still, 5, 8, 8));
    CHECK_FAILS(ts_codec_fit_finish(fit, self, &none), TS_EINPUT, "one still colour");
    ts_codec_fit_close(&fit);
}

// ---- neighbours

// Step from the last frame of a group to the next over the step before it, mean over the clips of the fit.
static double unevenness(const ts_codec *codec) {
    enum { FRAME = HEIGHT * WIDTH * 3 };
    static uint8_t pixels[CLIP_BYTES], back[CLIP_BYTES];
    float latent[3 * 3 * 5 * TS_CODEC_MAX_CHANNELS];
    double between = 0, within = 0;
    for (int64_t clip = 0; clip < CLIPS; clip++) {
        make_clip(clip, pixels);
        CHECK_OK(ts_codec_encode(codec, pixels, FRAMES, HEIGHT, WIDTH, latent));
        CHECK_OK(ts_codec_decode(codec, latent, 3, 3, 5, back));
        for (int64_t i = 0; i < FRAME; i++) {
            between += abs(back[5 * FRAME + i] - back[4 * FRAME + i]);
            within += abs(back[4 * FRAME + i] - back[3 * FRAME + i]);
        }
    }
    return between / within;
}

// Motion goes on evenly from group to group, as it does not where groups are decoded alone.
static void test_joins(ts_codec *codec) {
    ts_codec *alone = fit_all(codec->channels, codec->scale_power);
    for (int k = 0; k < TS_CODEC_JOINS; k++) {
        CHECK_OK(ts_codec_join_fit(alone, (ts_codec_join_kind)k, &(ts_codec_pairs){0}));
    }
    CHECK_OK(ts_codec_prepare(alone));
    CHECK(alone->fingerprint == codec->fingerprint && ts_codec_join_sum(alone) != ts_codec_join_sum(codec));
    const double before = unevenness(alone), after = unevenness(codec);
    printf("steps between groups over steps within: alone %.2f, joined %.2f\n", before, after);
    CHECK(before > 1.3 && fabs(after - 1) < 0.15);
    ts_codec_close(&alone);
}

// Stretches, each with a frame more on either side, are the whole; of any number of ranks.
static void test_stretches(void) {
    enum { T = 6, H = 2, W = 3, PIXELS = 8 * H * 8 * W * 3 };
    ts_codec *codec = fit_all(5, 0.5);
    float latent[T * H * W * 5];
    uint8_t whole[(1 + 4 * (T - 1)) * PIXELS], part[4 * T * PIXELS];
    ts_rng_normal_fill(latent, T * H * W * 5, 3, TS_RNG_TEST, 0, 0);
    CHECK_OK(ts_codec_decode(codec, latent, T, H, W, whole));
    for (int64_t first = 0; first < T; first++) {
        for (int64_t end = first + 1; end <= T; end++) {
            ts_codec_stretch s = {.h = H, .w = W, .groups = first > 1, .before = first > 0, .after = end < T};
            s.latent = latent + (first - s.before) * H * W * 5;
            s.t = end - first + s.before + s.after;
            CHECK_OK(ts_codec_decode_stretch(codec, &s, world, 0, ts_comm_rank(world) == 0 ? part : NULL));
            const int64_t pixel = first ? 4 * first - 3 : 0, frames = 4 * end - 3 - pixel;
            CHECK(ts_comm_rank(world) > 0 || same(part, whole + pixel * PIXELS, (size_t)(frames * PIXELS)));
        }
    }
    const ts_codec_stretch nothing = {latent, 2, H, W, true, true, true};
    CHECK_FAILS(ts_codec_decode_stretch(codec, &nothing, world, 0, part), TS_EUSAGE, "cannot be decoded");
    ts_codec_close(&codec);
}

// ---- decoding shared out

// Any root, sizes that leave ranks without work: the bits of one rank, and every pixel travels once.
static void test_shared_decode(void) {
    static const int64_t sizes[][3] = {{3, 3, 5}, {1, 1, 1}, {2, 2, 3}, {5, 1, 2}, {1, 7, 2}};
    const int rank = ts_comm_rank(world), size = ts_comm_size(world);
    ts_codec *codec = fit_all(5, 0.5);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int64_t t = sizes[i][0], h = sizes[i][1], w = sizes[i][2], n = t * h * w * 5;
        const int64_t bytes = (1 + 4 * (t - 1)) * h * w * 64 * 3;
        float *latent = malloc((size_t)n * sizeof *latent);
        uint8_t *alone = malloc((size_t)bytes), *shared = malloc((size_t)bytes);
        ts_rng_normal_fill(latent, n, 3, TS_RNG_TEST, i, 0);
        CHECK_OK(ts_codec_decode(codec, latent, t, h, w, alone));
        for (int root = 0; root < size; root++) {
            const uint64_t before = ts_comm_get_counters(world, TS_ALL_TO_ALL).bytes_sent;
            memset(shared, 0, (size_t)bytes);
            CHECK_OK(ts_codec_decode_shared(codec, latent, t, h, w, world, root, rank == root ? shared : NULL));
            CHECK(rank != root || memcmp(shared, alone, (size_t)bytes) == 0);
            int64_t sent = (int64_t)(ts_comm_get_counters(world, TS_ALL_TO_ALL).bytes_sent - before);
            CHECK(rank != root || sent == 0);
            CHECK_OK(ts_all_reduce(world, &sent, 1, TS_I64, TS_SUM));
            CHECK(sent <= (size == 1 ? 0 : bytes));
            // Parts of a latent of many rows differ by less than a row of blocks: 4 frames of 8 x 40 pixels.
            CHECK(i > 0 || llabs(sent - bytes * (size - 1) / size) < 4 * 8 * 40 * 3);
        }
        free(latent);
        free(alone);
        free(shared);
    }
    CHECK_FAILS(ts_codec_decode_shared(codec, NULL, 0, 1, 1, world, 0, NULL), TS_EUSAGE, "cannot be decoded");
    ts_codec_close(&codec);
}

int main(int argc, char **argv) {
    ts_mesh mesh;
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_mesh_open(&mesh, world, &(ts_degrees){ts_comm_size(world), 1, 1, 1, 1}));
    self = mesh.axis[TS_AXIS_TENSOR];
    CHECK(ts_comm_size(self) == 1);
    CHECK(mkdtemp(folder) != NULL);
    ts_codec *codec = ts_comm_rank(world) == 0 ? fit_all(16, 0.5) : NULL;
    test_ranks(codec);
    test_shared_decode();
    test_stretches();
    if (ts_comm_size(world) == 1) {
        test_eigen(1, 1);
        test_eigen(2, 3);
        test_eigen(7, 3);
        test_eigen(96, 200);
        test_eigen(100, 5);
        test_orthonormal(codec);
        test_scale_and_loss(codec);
        test_groups(codec);
        test_joins(codec);
        ts_codec *odd = fit_all(5, 0.5);  // no whole panel
        test_first_of(codec);
        test_first_of(odd);
        ts_codec_close(&odd);
        test_first_of_clip(codec);
        test_cross(codec);
        test_low_rank();
        test_alignment();
        test_refusals(codec);
        test_files(codec);
    }
    ts_codec_close(&codec);
    ts_mesh_close(&mesh);
    CHECK_OK(ts_folder_remove(folder));
    const int failed = ts_test_end();
    ts_world_close(&world, 0);
    return failed;
}
