// SPDX-License-Identifier: Apache-2.0
// One group of files: clips -> latents -> the group's own shards, and a record that says it is done.
//
// A file's clips join the shards only when all of it was read within its limits; until then they wait in a spool.
#ifndef TS_DATA_INGEST_GROUP_H
#define TS_DATA_INGEST_GROUP_H

#include <jansson.h>
#include <stdint.h>

#include "core/model/codec.h"
#include "data/captions.h"
#include "data/ingest_config.h"

typedef struct ts_ingest_group {
    const ts_ingest_config *config;
    const ts_codec *codec;
    int64_t number;
    const ts_captioned_file *file;  // [count]
    int64_t count;
} ts_ingest_group;

// Writes the group's shards. `on_file` is called after each file with the clips it gave. *record: what goes into
// groups/NUMBER.json; the caller owns it. A file that cannot be used is put into the record; only what would hit every
// file (a full disk, no memory) is an error.
//
//   {"kept": files, "damaged": frames passed over in them,
//    "shards": [{"name", "bucket", "shape", "count", "bytes", "sum"}], "skipped": [{"file_name", "kind", "reason"}],
//    "latent": {"count": elements of a channel, "sum": [C], "square": [C]}}
int ts_ingest_group_run(const ts_ingest_group *group, void (*on_file)(void *context, int64_t clips), void *context,
                        json_t **record);

#endif
