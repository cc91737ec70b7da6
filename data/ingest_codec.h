// SPDX-License-Identifier: Apache-2.0
// The codec of a data set: fitted once on a sample of its clips, then kept beside the shards.
#ifndef TS_DATA_INGEST_CODEC_H
#define TS_DATA_INGEST_CODEC_H

#include "core/comm/comm.h"
#include "core/model/codec.h"
#include "data/captions.h"
#include "data/ingest_config.h"

// Loads OUT/codec, or fits it on about config->codec_sample clips of files chosen by Philox and saves it there.
// The sums behind the fit are exact, so the codec does not depend on the number of ranks. Collective; every rank
// returns the same status. TS_EINPUT with a first reason when no clip of the sample could be read.
int ts_ingest_codec(ts_codec **out, const ts_ingest_config *config, const ts_captions *captions, ts_comm *world);

#endif
