// SPDX-License-Identifier: Apache-2.0
// The pca codec on disk: config.json says what it is, codec.safetensors holds mean, axes and scale of both
// transforms, and the joins of neighbours.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status.h"
#include "core/model/codec/codec_pca.h"
#include "core/store/safetensors.h"

enum { MAX_CONFIG_BYTES = 1 << 20, PARTS = 9, PARTS_1 = 6 };

// The tensors of a codec; those of version 1 first.
typedef struct part {
    const char *name;
    ts_shape shape;
    float *data;
} part;

static void list_parts(const ts_codec *codec, part parts[PARTS]) {
    const ts_codec_transform *first = &codec->first, *later = &codec->later;
    const int64_t channels = codec->channels;
    const ts_shape join = TS_SHAPE(TS_CODEC_HALF_DIMS, 2 * channels);
    const part all[PARTS] = {
        {"first.axes", TS_SHAPE(channels, first->dims), first->axes},
        {"first.mean", TS_SHAPE(first->dims), first->mean},
        {"first.scale", TS_SHAPE(channels), first->scale},
        {"later.axes", TS_SHAPE(channels, later->dims), later->axes},
        {"later.mean", TS_SHAPE(later->dims), later->mean},
        {"later.scale", TS_SHAPE(channels), later->scale},
        {"join.begin_first", join, codec->join[TS_CODEC_BEGIN_FIRST].matrix},
        {"join.begin", join, codec->join[TS_CODEC_BEGIN].matrix},
        {"join.end", join, codec->join[TS_CODEC_END].matrix},
    };
    memcpy(parts, all, sizeof all);
}

int ts_codec_save(const ts_codec *codec, const char *folder) {
    char path[TS_PATH_BYTES], fingerprint[32], joins[32];
    part parts[PARTS];
    ts_safetensors_item items[PARTS];
    list_parts(codec, parts);
    for (int i = 0; i < PARTS; i++) {
        items[i] = (ts_safetensors_item){parts[i].name, TS_F32, parts[i].shape, parts[i].data};
    }
    TS_TRY(ts_folder_make(folder));
    TS_TRY(ts_path_join(path, sizeof path, folder, "codec.safetensors"));
    TS_TRY(ts_safetensors_write(path, items, PARTS, NULL));
    TS_TRY(ts_path_join(path, sizeof path, folder, "config.json"));
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, codec->fingerprint);
    snprintf(joins, sizeof joins, "%016" PRIx64, ts_codec_join_sum(codec));
    json_t *config = json_pack("{s:s, s:i, s:I, s:i, s:i, s:f, s:f, s:s, s:s}", "kind", "pca", "version",
                               TS_CODEC_VERSION, "channels", (json_int_t)codec->channels, "time_factor", TS_CODEC_TIME,
                               "space_factor", TS_CODEC_SPACE, "scale_power", codec->scale_power, "explained",
                               codec->explained, "fingerprint", fingerprint, "joins", joins);
    if (!config) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for its JSON", path);
    }
    const int status = ts_json_write_atomic(path, config);
    json_decref(config);
    return status;
}

// What config.json claims.
typedef struct claims {
    int64_t version;
    const char *fingerprint, *joins;
} claims;

// config.json -> a codec of the right size with nothing in it yet.
static int read_config(const json_t *config, const char *path, ts_codec **out, claims *said) {
    const char *kind;
    int64_t channels, time, space;
    TS_TRY(ts_json_string(config, "kind", path, &kind));
    if (strcmp(kind, "pca") != 0) {
        return TS_FAIL(TS_EINPUT, "%s: \"kind\" is \"%s\"; the codec known here is pca", path, kind);
    }
    TS_TRY(ts_json_int(config, "version", path, 1, TS_CODEC_VERSION, &said->version));
    TS_TRY(ts_json_int(config, "channels", path, 1, TS_CODEC_MAX_CHANNELS, &channels));
    TS_TRY(ts_json_int(config, "time_factor", path, TS_CODEC_TIME, TS_CODEC_TIME, &time));
    TS_TRY(ts_json_int(config, "space_factor", path, TS_CODEC_SPACE, TS_CODEC_SPACE, &space));
    TS_TRY(ts_json_string(config, "fingerprint", path, &said->fingerprint));
    TS_TRY(said->version > 1 ? ts_json_string(config, "joins", path, &said->joins) : TS_OK);
    TS_TRY(ts_codec_new(out, channels));
    TS_TRY(ts_json_real_or(config, "scale_power", path, 0, &(*out)->scale_power));
    return ts_json_real_or(config, "explained", path, 0, &(*out)->explained);
}

static int read_parts(ts_codec *codec, const char *path, int count) {
    part parts[PARTS];
    ts_safetensors *file = NULL;
    int status = TS_OK;
    list_parts(codec, parts);
    TS_TRY(ts_safetensors_open(&file, path));
    for (int i = 0; i < count && !status; i++) {
        status = ts_safetensors_read_f32(file, parts[i].name, parts[i].shape, parts[i].data);
    }
    ts_safetensors_close(&file);
    TS_TRY(status);
    for (int64_t c = 0; c < codec->channels; c++) {
        if (!(codec->first.scale[c] > 0 && codec->later.scale[c] > 0)) {
            return TS_FAIL(TS_EINPUT, "%s: the scale of channel %lld is not positive; ingest again", path,
                           (long long)c);
        }
    }
    return TS_OK;
}

static int check_sum(const char *path, const char *what, uint64_t sum, const char *claimed) {
    char text[32];
    snprintf(text, sizeof text, "%016" PRIx64, sum);
    return strcmp(text, claimed) == 0
               ? TS_OK
               : TS_FAIL(TS_EINPUT, "%s: has %s %s, its config.json says %.32s; they do not belong together", path,
                         what, text, claimed);
}

static int load(ts_codec **out, const json_t *config, const char *config_path, const char *weights_path) {
    claims said;
    TS_TRY(read_config(config, config_path, out, &said));
    TS_TRY(read_parts(*out, weights_path, said.version > 1 ? PARTS : PARTS_1));
    for (int k = 0; said.version == 1 && k < TS_CODEC_JOINS; k++) {
        TS_TRY(ts_codec_join_fit(*out, (ts_codec_join_kind)k, &(ts_codec_pairs){0}));
    }
    TS_TRY(ts_codec_prepare(*out));
    TS_TRY(check_sum(weights_path, "fingerprint", (*out)->fingerprint, said.fingerprint));
    return said.version > 1 ? check_sum(weights_path, "joins", ts_codec_join_sum(*out), said.joins) : TS_OK;
}

int ts_codec_load(ts_codec **out, const char *folder) {
    char config_path[TS_PATH_BYTES], weights_path[TS_PATH_BYTES];
    json_t *config = NULL;
    *out = NULL;
    TS_TRY(ts_path_join(config_path, sizeof config_path, folder, "config.json"));
    TS_TRY(ts_path_join(weights_path, sizeof weights_path, folder, "codec.safetensors"));
    TS_TRY(ts_json_read(config_path, MAX_CONFIG_BYTES, &config));
    const int status = load(out, config, config_path, weights_path);
    json_decref(config);
    if (status) {
        ts_codec_close(out);
    }
    return status;
}
