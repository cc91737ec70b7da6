// SPDX-License-Identifier: Apache-2.0
// The end of an ingest: the records of all groups become the manifest, the tokenizer and the list of skipped files.
#ifndef TS_DATA_INGEST_MANIFEST_H
#define TS_DATA_INGEST_MANIFEST_H

#include "core/model/codec.h"
#include "data/captions.h"
#include "data/ingest_config.h"

// "OUT/groups/000012.json" into out.
int ts_ingest_record_path(const ts_ingest_config *config, int64_t group, char *out, size_t out_bytes);
// Whether the group was done before: its record is there and its shards have the size it says.
bool ts_ingest_record_is_whole(const ts_ingest_config *config, int64_t group);

// Called by one rank when every group is done. Writes skipped.jsonl and the tokenizer, then manifest.json, which makes
// the data set whole; opens it once to see that it is. Prints the summary. TS_EINPUT when there is no clip.
int ts_ingest_finish(const ts_ingest_config *config, const ts_captions *captions, const ts_codec *codec,
                     int64_t groups);

#endif
