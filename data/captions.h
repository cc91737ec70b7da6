// SPDX-License-Identifier: Apache-2.0
// Which videos a folder holds, and what is said about each. One of three conventions, tried in this order:
//
//   metadata.jsonl   a JSON object a line with file_name and text (Hugging Face videofolder); other keys are ignored
//   NAME.csv         the folder's only .csv file; a header line with columns path (or file_name) and text, RFC 4180
//   a.mp4 + a.txt    a text file beside each video
//
// A malformed line, and a path that leaves the folder, fail with file:line. A record whose video is missing, whose
// caption is not UTF-8 or longer than TS_MAX_PROMPT_BYTES, or which names a video twice is passed over and kept in
// `skipped` with its reason.
#ifndef TS_DATA_CAPTIONS_H
#define TS_DATA_CAPTIONS_H

#include <stdint.h>

#include "core/base/arena.h"

typedef struct ts_captioned_file {
    const char *path;     // relative to the folder
    const char *caption;  // UTF-8
} ts_captioned_file;

typedef struct ts_skipped_file {
    const char *path;
    const char *kind;    // a word or two for counting: "missing", "caption", "duplicate"
    const char *reason;  // one line
} ts_skipped_file;

typedef struct ts_captions {
    int64_t count;
    ts_captioned_file *file;  // sorted by path
    int64_t skipped_count;
    ts_skipped_file *skipped;
} ts_captions;

// Not collective. Everything is allocated in `arena`. TS_EINPUT when the folder has no captions at all.
int ts_captions_read(ts_captions *out, const char *folder, ts_arena *arena);

#endif
