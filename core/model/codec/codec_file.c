// SPDX-License-Identifier: Apache-2.0
// The pca codec on disk: config.json says what it is, codec.safetensors holds mean, axes and scale of both transforms.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status.h"
#include "core/model/codec/codec_pca.h"
#include "core/store/safetensors.h"

enum { MAX_CONFIG_BYTES = 1 << 20, PARTS = 6 };

// The six tensors of a codec, in the order of their names in the file.
typedef struct part {
    const char *name;
    ts_shape shape;
    float *data;
} part;

static void list_parts(const ts_codec *codec, part parts[PARTS]) {
    const ts_codec_transform *first = &codec->first, *later = &codec->later;
    const int64_t channels = codec->channels;
    const part all[PARTS] = {
        {"first.axes", TS_SHAPE(channels, first->dims), first->axes},
        {"first.mean", TS_SHAPE(first->dims), first->mean},
        {"first.scale", TS_SHAPE(channels), first->scale},
        {"later.axes", TS_SHAPE(channels, later->dims), later->axes},
        {"later.mean", TS_SHAPE(later->dims), later->mean},
        {"later.scale", TS_SHAPE(channels), later->scale},
    };
    memcpy(parts, all, sizeof all);
}

int ts_codec_save(const ts_codec *codec, const char *folder) {
    char path[TS_PATH_BYTES], fingerprint[32];
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
    json_t *config =
        json_pack("{s:s, s:i, s:I, s:i, s:i, s:f, s:f, s:s}", "kind", "pca", "version", TS_CODEC_VERSION, "channels",
                  (json_int_t)codec->channels, "time_factor", TS_CODEC_TIME, "space_factor", TS_CODEC_SPACE,
                  "scale_power", codec->scale_power, "explained", codec->explained, "fingerprint", fingerprint);
    if (!config) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for its JSON", path);
    }
    const int status = ts_json_write_atomic(path, config);
    json_decref(config);
    return status;
}

// config.json -> a codec of the right size with nothing in it yet, and the fingerprint it claims.
static int read_config(const json_t *config, const char *path, ts_codec **out, const char **fingerprint) {
    const char *kind;
    int64_t version, channels, time, space;
    TS_TRY(ts_json_string(config, "kind", path, &kind));
    if (strcmp(kind, "pca") != 0) {
        return TS_FAIL(TS_EINPUT, "%s: \"kind\" is \"%s\"; the codec known here is pca", path, kind);
    }
    TS_TRY(ts_json_int(config, "version", path, TS_CODEC_VERSION, TS_CODEC_VERSION, &version));
    TS_TRY(ts_json_int(config, "channels", path, 1, TS_CODEC_MAX_CHANNELS, &channels));
    TS_TRY(ts_json_int(config, "time_factor", path, TS_CODEC_TIME, TS_CODEC_TIME, &time));
    TS_TRY(ts_json_int(config, "space_factor", path, TS_CODEC_SPACE, TS_CODEC_SPACE, &space));
    TS_TRY(ts_json_string(config, "fingerprint", path, fingerprint));
    TS_TRY(ts_codec_new(out, channels));
    TS_TRY(ts_json_real_or(config, "scale_power", path, 0, &(*out)->scale_power));
    return ts_json_real_or(config, "explained", path, 0, &(*out)->explained);
}

static int read_parts(ts_codec *codec, const char *path) {
    part parts[PARTS];
    ts_safetensors *file = NULL;
    int status = TS_OK;
    list_parts(codec, parts);
    TS_TRY(ts_safetensors_open(&file, path));
    for (int i = 0; i < PARTS && !status; i++) {
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

static int load(ts_codec **out, const json_t *config, const char *config_path, const char *weights_path) {
    const char *claimed;
    char fingerprint[32];
    TS_TRY(read_config(config, config_path, out, &claimed));
    TS_TRY(read_parts(*out, weights_path));
    TS_TRY(ts_codec_prepare(*out));
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, (*out)->fingerprint);
    if (strcmp(fingerprint, claimed) != 0) {
        return TS_FAIL(TS_EINPUT, "%s: has fingerprint %s, its config.json says %.32s; they do not belong together",
                       weights_path, fingerprint, claimed);
    }
    return TS_OK;
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
