// SPDX-License-Identifier: Apache-2.0
// A model folder: saved and loaded bit by bit, replaced atomically, refused when damaged or when parts do not fit.
// TEST: ranks=1 timeout=60
#include <fcntl.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/model/model.h"
#include "core/model/weights.h"
#include "tests/ts_test.h"

static char folder[64], path[256];
static const char *const CAPTIONS[] = {"a red circle moves left", "a blue square moves right", "a red square moves up"};

static const char *at(const char *name) {
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static ts_codec *fit_codec(int64_t channels) {
    enum { FRAMES = 5, SIDE = 32 };
    static uint8_t pixels[FRAMES * SIDE * SIDE * 3];
    ts_codec_fit *fit = NULL;
    ts_codec *codec = NULL;
    static ts_comm *world;
    int argc = 0;
    char **argv = NULL;
    if (!world) {
        CHECK_OK(ts_world_open(&world, &argc, &argv));
    }
    CHECK_OK(ts_codec_fit_open(&fit, channels, 0.5));
    for (uint32_t clip = 0; clip < 20; clip++) {
        for (size_t i = 0; i < sizeof pixels; i++) {
            pixels[i] = (uint8_t)((i * (clip * 7 + 3) + i / 97 * clip + i * i / 131) % 251);
        }
        CHECK_OK(ts_codec_fit_add(fit, pixels, FRAMES, SIDE, SIDE));
    }
    CHECK_OK(ts_codec_fit_finish(fit, world, &codec));
    ts_codec_fit_close(&fit);
    return codec;
}

static ts_model_params small_params(int64_t vocabulary) {
    return (ts_model_params){
        .dit = {.patch = {1, 2, 2},
                .heads = 2,
                .head_dim = 12,
                .in_channels = 4,
                .out_channels = 4,
                .text_dim = 16,
                .freq_dim = 16,
                .ffn_dim = 40,
                .layers = 2,
                .rope_max_positions = 64,
                .text_rows = 8,
                .eps = 1e-6,
                .cross_attention_norm = true,
                .absolute_positions = true},
        .text = {.vocabulary = vocabulary,
                 .width = 16,
                 .head_dim = 8,
                 .heads = 2,
                 .ffn_dim = 24,
                 .layers = 1,
                 .buckets = 32,
                 .max_distance = 128,
                 .eps = 1e-6},
        .defaults = {.width = 32, .height = 32, .frames = 5, .fps = 8, .flow_shift = 2, .guidance = 3, .steps = 20},
        .operand_dtype = TS_F32,
        .seed = 11};
}

static ts_model *new_model(void) {
    ts_tokenizer *tokenizer = NULL;
    ts_model *model = NULL;
    CHECK_OK(ts_tokenizer_build(&tokenizer, CAPTIONS, 3, 100, 1));
    const ts_model_params params = small_params(ts_tokenizer_vocabulary(tokenizer));
    CHECK_OK(ts_model_new(&model, &params, tokenizer, fit_codec(4)));
    return model;
}

static void test_round_trip(void) {
    ts_model *model = new_model(), *back = NULL;
    if (!model) {
        return;
    }
    const size_t bytes = (size_t)model->params->total * sizeof(float);
    CHECK_OK(ts_model_save(model, model->params->value, at("model")));
    CHECK_OK(ts_model_load(&back, at("model"), NULL, NULL, TS_F32, false));
    CHECK(back && back->params->total == model->params->total);
    CHECK(back && !memcmp(back->params->value, model->params->value, bytes));
    CHECK(back && !memcmp(&back->defaults, &model->defaults, sizeof back->defaults));
    CHECK(back && !memcmp(ts_dit_get_config(back->dit), ts_dit_get_config(model->dit), sizeof(ts_dit_config)));
    CHECK(back && ts_codec_get_info(back->codec).fingerprint == ts_codec_get_info(model->codec).fingerprint);
    CHECK(back && ts_tokenizer_fingerprint(back->tokenizer) == ts_tokenizer_fingerprint(model->tokenizer));
    ts_model_close(&back);
    // To sample in bf16 nothing but the operands is left of a matrix.
    CHECK_OK(ts_model_load(&back, at("model"), NULL, NULL, TS_BF16, false));
    CHECK(back && back->params->operand[0] == ts_f32_to_bf16(model->params->value[0]) && !back->params->value);
    ts_model_close(&back);
    // A second save replaces the first and leaves nothing beside it.
    model->params->value[0] += 1.0f;
    CHECK_OK(ts_model_save(model, model->params->value, at("model")));
    CHECK(!ts_path_exists(at("model.tmp")) && !ts_path_exists(at("model.old")));
    CHECK_OK(ts_model_load(&back, at("model"), NULL, NULL, TS_F32, true));
    CHECK(back && back->params->value[0] == model->params->value[0]);
    ts_model_close(&back);
    // The transformer's folder stands on its own, under the names of diffusers.
    ts_params *params = NULL;
    ts_dit *dit = NULL;
    CHECK_OK(ts_params_open(&params));
    CHECK_OK(ts_dit_open(&dit, ts_dit_get_config(model->dit), params, ""));
    CHECK_OK(ts_params_allocate(params, TS_F32, false));
    CHECK_OK(ts_weights_load(params, "", at("model/transformer")));
    CHECK(ts_params_find(params, "blocks.1.attn2.to_out.0.bias") != NULL);
    ts_dit_close(&dit);
    ts_params_close(&params);
    ts_model_close(&model);
}

static void test_text(void) {
    ts_model *model = new_model();
    const ts_kernels *kernels;
    ts_tape *tape = NULL;
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    CHECK_OK(ts_tape_open(&tape, kernels, TS_TAPE_RUN, TS_F32));
    const char *const prompts[] = {"a red circle", ""};
    const ts_var *text = ts_model_encode_text(tape, model, prompts, 2);
    CHECK(text && ts_shape_equal(text->value.shape, TS_SHAPE(2, 8, 16)));
    const float *rows = text ? text->value.data : NULL;
    CHECK(rows && rows[3 * 16] != 0.0f && rows[5 * 16] == 0.0f);  // three words and the end, then zeros
    CHECK(rows && rows[8 * 16] != 0.0f && rows[9 * 16] == 0.0f);  // the empty prompt is its end
    ts_tape_reset(tape);
    const char *const bad[] = {"fine", "\xff\xfe"};
    CHECK(ts_model_encode_text(tape, model, bad, 2) == NULL);
    CHECK_FAILS(ts_tape_status(tape), TS_EINPUT, "prompt 2");
    ts_tape_close(&tape);
    ts_model_close(&model);
}

static void test_text_fits(void) {
    ts_model *model = new_model();
    const int64_t rows = ts_dit_get_config(model->dit)->text_rows;
    char prompt[256] = "";
    bool fits;
    for (int64_t i = 1; i <= rows + 1; i++) {  // a word and the end mark
        strcat(prompt, i == 1 ? "a" : " a");
        CHECK_OK(ts_model_text_fits(model, prompt, &fits));
        CHECK(fits == (i + 1 <= rows));
    }
    CHECK_OK(ts_model_text_fits(model, "", &fits));
    CHECK(fits);
    CHECK_FAILS(ts_model_text_fits(model, "\xff", &fits), TS_EINPUT, "UTF-8");
    ts_model_close(&model);
}

static void test_misfits(void) {
    ts_tokenizer *tokenizer = NULL;
    ts_model *model = NULL;
    ts_codec *codec = fit_codec(4);
    CHECK_OK(ts_tokenizer_build(&tokenizer, CAPTIONS, 3, 100, 1));
    ts_model_params params = small_params(ts_tokenizer_vocabulary(tokenizer));
    params.dit.in_channels = 5;
    CHECK_FAILS(ts_model_new(&model, &params, tokenizer, codec), TS_EINPUT, "channels");
    params = small_params(ts_tokenizer_vocabulary(tokenizer));
    params.text.width = 15;
    CHECK_FAILS(ts_model_new(&model, &params, tokenizer, codec), TS_EINPUT, "width");
    params = small_params(4);
    CHECK_FAILS(ts_model_new(&model, &params, tokenizer, codec), TS_EINPUT, "tokenizer");
    CHECK(model == NULL);
    ts_tokenizer_close(&tokenizer);  // still the caller's
    ts_codec_close(&codec);
}

// Writes `text` over a file of the saved model, loads, and puts the file back.
static int load_with(const char *name, const char *text) {
    char *saved = NULL;
    size_t bytes = 0;
    ts_model *model = NULL;
    CHECK_OK(ts_file_read(at(name), 1 << 24, &saved, &bytes));
    CHECK_OK(ts_file_write_atomic(at(name), text, strlen(text)));
    const int status = ts_model_load(&model, at("model"), NULL, NULL, TS_F32, false);
    CHECK(model == NULL);
    CHECK_OK(ts_file_write_atomic(at(name), saved, bytes));
    free(saved);
    return status;
}

// For the last number of a file.
static void put_nan(const char *file) {
    const float value = NAN;
    const int fd = open(file, O_WRONLY);
    CHECK(pwrite(fd, &value, sizeof value, ts_path_bytes(file) - (int64_t)sizeof value) == sizeof value);
    close(fd);
}

static void test_damage(void) {
    ts_model *model = NULL;
    CHECK_FAILS(ts_model_load(&model, at("nowhere"), NULL, NULL, TS_F32, false), TS_EINPUT, "nowhere");
    CHECK_FAILS(load_with("model/transformer/config.json", "{\"num_layers\": 3}"), TS_EINPUT, "channels");
    CHECK(load_with("model/transformer/config.json", "[") == TS_EINPUT);
    CHECK(load_with("model/transformer/config.json", "{\"num_layers\": \"three\"}") == TS_EINPUT);
    CHECK_FAILS(load_with("model/model_index.json", "{}"), TS_EINPUT, "tessera");
    CHECK(load_with("model/transformer/diffusion_pytorch_model.safetensors", "x") == TS_EINPUT);
    CHECK_FAILS(load_with("model/scheduler/scheduler_config.json", "{\"flow_shift\": -1.0}"), TS_EINPUT, "flow_shift");
    model = new_model();
    CHECK_OK(ts_model_save(model, model->params->value, at("model")));
    model->params->value[40] = NAN;
    CHECK_FAILS(ts_model_save(model, model->params->value, at("model")), TS_EINPUT, "is not finite");
    ts_model_close(&model);
    CHECK_OK(ts_model_load(&model, at("model"), NULL, NULL, TS_F32, false));  // the one before stands
    ts_model_close(&model);
    put_nan(at("model/transformer/diffusion_pytorch_model.safetensors"));
    CHECK_FAILS(ts_model_load(&model, at("model"), NULL, NULL, TS_F32, false), TS_EINPUT, "NaN");
}

int main(void) {
    snprintf(folder, sizeof folder, "/tmp/tessera-model-XXXXXX");
    if (!mkdtemp(folder)) {
        return 1;
    }
    test_round_trip();
    test_text();
    test_text_fits();
    test_misfits();
    test_damage();
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
