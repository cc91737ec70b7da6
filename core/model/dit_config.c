// SPDX-License-Identifier: Apache-2.0
// The transformer's sizes: config.json both ways, and what follows from them.
#include <string.h>

#include "core/base/json.h"
#include "core/base/status.h"
#include "core/model/dit.h"

static const char *CLASS_NAME = "WanTransformer3DModel";
static const char *QK_NORM = "rms_norm_across_heads";

enum { MAX_SIZE = 1 << 20, MAX_LAYERS = 1024, MAX_PATCH = 16 };

// A whole number whose key may be absent or null (0).
static int size_or(const json_t *config, const char *key, const char *name, int64_t otherwise, int64_t *out) {
    return ts_json_int_or(config, key, name, 0, MAX_SIZE, otherwise, out);
}

static int read_patch(const json_t *config, const char *name, int64_t patch[3]) {
    patch[0] = 1;
    patch[1] = patch[2] = 2;
    if (!json_object_get(config, "patch_size")) {
        return 0;
    }
    const json_t *list;
    TS_TRY(ts_json_array(config, "patch_size", name, &list));
    if (json_array_size(list) != 3) {
        return TS_FAIL(TS_EINPUT, "%s: patch_size has %zu numbers, wanted 3 (t, h, w)", name, json_array_size(list));
    }
    for (size_t i = 0; i < 3; i++) {
        patch[i] = json_integer_value(json_array_get(list, i));
        if (patch[i] < 1 || patch[i] > MAX_PATCH) {
            return TS_FAIL(TS_EINPUT, "%s: patch_size must be three whole numbers from 1 to %d", name, MAX_PATCH);
        }
    }
    return 0;
}

static int check(const ts_dit_config *c, const char *name) {
    const struct {
        const char *key;
        int64_t value, max;
    } positive[] = {{"num_attention_heads", c->heads, MAX_SIZE}, {"attention_head_dim", c->head_dim, MAX_SIZE},
                    {"in_channels", c->in_channels, MAX_SIZE},   {"out_channels", c->out_channels, MAX_SIZE},
                    {"text_dim", c->text_dim, MAX_SIZE},         {"freq_dim", c->freq_dim, MAX_SIZE},
                    {"ffn_dim", c->ffn_dim, MAX_SIZE},           {"num_layers", c->layers, MAX_LAYERS},
                    {"text_len", c->text_rows, MAX_SIZE},        {"rope_max_seq_len", c->rope_max_positions, MAX_SIZE}};
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++) {
        if (positive[i].value < 1 || positive[i].value > positive[i].max) {
            return TS_FAIL(TS_EINPUT, "%s: %s is %lld, must be from 1 to %lld", name, positive[i].key,
                           (long long)positive[i].value, (long long)positive[i].max);
        }
    }
    if (c->head_dim % 2 || c->freq_dim % 2) {
        return TS_FAIL(TS_EINPUT, "%s: attention_head_dim and freq_dim must be even", name);
    }
    if (ts_dit_width(c) > MAX_SIZE) {
        return TS_FAIL(TS_EINPUT, "%s: num_attention_heads x attention_head_dim is above %d", name, MAX_SIZE);
    }
    if (!(c->eps > 0.0 && c->eps < 1.0)) {
        return TS_FAIL(TS_EINPUT, "%s: eps must be between 0 and 1", name);
    }
    if (!c->image_dim != !c->added_kv_dim || (c->image_positions && !c->image_dim)) {
        return TS_FAIL(TS_EINPUT, "%s: image_dim, added_kv_proj_dim and pos_embed_seq_len do not fit each other", name);
    }
    if (c->added_kv_dim && c->added_kv_dim != ts_dit_width(c)) {
        return TS_FAIL(TS_EINPUT, "%s: added_kv_proj_dim is %lld, must be the width %lld", name,
                       (long long)c->added_kv_dim, (long long)ts_dit_width(c));
    }
    return 0;
}

int ts_dit_config_from_json(ts_dit_config *out, const json_t *config, const char *name) {
    ts_dit_config c = {0};
    const char *text;
    TS_TRY(ts_json_string_or(config, "_class_name", name, CLASS_NAME, &text));
    if (strcmp(text, CLASS_NAME) != 0) {
        return TS_FAIL(TS_EINPUT, "%s: _class_name is '%s', wanted %s", name, text, CLASS_NAME);
    }
    TS_TRY(ts_json_string_or(config, "qk_norm", name, QK_NORM, &text));
    if (strcmp(text, QK_NORM) != 0) {
        return TS_FAIL(TS_EINPUT, "%s: qk_norm is '%s', only %s is supported", name, text, QK_NORM);
    }
    TS_TRY(read_patch(config, name, c.patch));
    TS_TRY(size_or(config, "num_attention_heads", name, 40, &c.heads));
    TS_TRY(size_or(config, "attention_head_dim", name, 128, &c.head_dim));
    TS_TRY(size_or(config, "in_channels", name, 16, &c.in_channels));
    TS_TRY(size_or(config, "out_channels", name, c.in_channels, &c.out_channels));
    TS_TRY(size_or(config, "text_dim", name, 4096, &c.text_dim));
    TS_TRY(size_or(config, "freq_dim", name, 256, &c.freq_dim));
    TS_TRY(size_or(config, "ffn_dim", name, 13824, &c.ffn_dim));
    TS_TRY(size_or(config, "num_layers", name, 40, &c.layers));
    TS_TRY(size_or(config, "rope_max_seq_len", name, 1024, &c.rope_max_positions));
    TS_TRY(size_or(config, "text_len", name, 512, &c.text_rows));
    TS_TRY(size_or(config, "image_dim", name, 0, &c.image_dim));
    TS_TRY(size_or(config, "added_kv_proj_dim", name, 0, &c.added_kv_dim));
    TS_TRY(size_or(config, "pos_embed_seq_len", name, 0, &c.image_positions));
    TS_TRY(ts_json_real_or(config, "eps", name, 1e-6, &c.eps));
    TS_TRY(ts_json_bool_or(config, "cross_attn_norm", name, true, &c.cross_attention_norm));
    TS_TRY(ts_json_bool_or(config, "absolute_positions", name, false, &c.absolute_positions));
    TS_TRY(check(&c, name));
    *out = c;
    return 0;
}

static json_t *integer_or_null(int64_t value) {
    return value ? json_integer(value) : json_null();
}

json_t *ts_dit_config_to_json(const ts_dit_config *c) {
    return json_pack(
        "{s:s, s:[I,I,I], s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:b, s:s, s:b, s:o, s:o, s:o}",
        "_class_name", CLASS_NAME,                                                                //
        "patch_size", (json_int_t)c->patch[0], (json_int_t)c->patch[1], (json_int_t)c->patch[2],  //
        "num_attention_heads", (json_int_t)c->heads,                                              //
        "attention_head_dim", (json_int_t)c->head_dim,                                            //
        "in_channels", (json_int_t)c->in_channels,                                                //
        "out_channels", (json_int_t)c->out_channels,                                              //
        "text_dim", (json_int_t)c->text_dim,                                                      //
        "freq_dim", (json_int_t)c->freq_dim,                                                      //
        "ffn_dim", (json_int_t)c->ffn_dim,                                                        //
        "num_layers", (json_int_t)c->layers,                                                      //
        "rope_max_seq_len", (json_int_t)c->rope_max_positions,                                    //
        "text_len", (json_int_t)c->text_rows,                                                     //
        "eps", c->eps,                                                                            //
        "cross_attn_norm", c->cross_attention_norm,                                               //
        "qk_norm", QK_NORM,                                                                       //
        "absolute_positions", c->absolute_positions,                                              //
        "image_dim", integer_or_null(c->image_dim),                                               //
        "added_kv_proj_dim", integer_or_null(c->added_kv_dim),                                    //
        "pos_embed_seq_len", integer_or_null(c->image_positions));
}

int64_t ts_dit_width(const ts_dit_config *config) {
    return config->heads * config->head_dim;
}

double ts_dit_flops(const ts_dit_config *config, int64_t frames, int64_t height, int64_t width) {
    const int64_t *patch = config->patch;
    const double patch_size = (double)(patch[0] * patch[1] * patch[2]);
    const double L = (double)(frames * height * width) / patch_size;
    const double D = (double)ts_dit_width(config), F = (double)config->ffn_dim, T = (double)config->text_rows;
    const double layer = L * (12 * D * D + 4 * D * F + 4 * L * D + 4 * T * D) + 4 * T * D * D;
    return (double)config->layers * layer +
           2 * L * D * patch_size * (double)(config->in_channels + config->out_channels);
}
