// SPDX-License-Identifier: Apache-2.0
// From a folder of captioned videos to a data set of latents.
//
//   captions -> files in fixed groups, the groups shared out over the ranks -> clips -> codec -> shards -> manifest
//
// A group of files makes its own shards, so the data set is the same, bit for bit, on any number of ranks, and the
// group is what a stopped ingest resumes by. In the data set's folder (store/dataset.h says what else is there):
//
//   ingest.json          the options and the files it was begun with: it goes on only with the same
//   groups/000012.json   written when group 12 is done: its shards, sums and skipped files
//   skipped.jsonl        every file left out: file_name, kind, reason
#ifndef TS_DATA_INGEST_H
#define TS_DATA_INGEST_H

#include "core/comm/comm.h"

// tessera ingest CONFIG.yaml [--key=value ...]. Collective.
int ts_command_ingest(ts_comm *world, int argc, char **argv);

#endif
