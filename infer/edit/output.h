// SPDX-License-Identifier: Apache-2.0
// Where finished videos go: places checked before hours of work, names for many, and a list of them.
#ifndef TS_INFER_OUTPUT_H
#define TS_INFER_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/json.h"

bool ts_ends_with(const char *text, const char *end);

// Whether a file may be written at `path`: its folder is there and takes files. `option` ("--out") opens the message.
// TS_EINPUT.
int ts_output_check_file(const char *option, const char *path);
// Makes a folder, with parents, and checks that it takes files.
int ts_output_make_folder(const char *option, const char *path);
// TS_EUSAGE unless `path`, which may be NULL, ends in `end` (".png").
int ts_output_check_end(const char *option, const char *path, const char *end);

// "00012-a-red-circle-moves.mp4": the number first, so that files sort in the order they were asked for.
void ts_output_name(char *out, size_t out_bytes, int64_t number, const char *prompt);

// FOLDER/metadata.jsonl, a line for each object of the array `lines`: with "file_name" and "text" the folder is itself
// a corpus in the Hugging Face videofolder form. Atomic.
int ts_output_write_metadata(const char *folder, const json_t *lines);

#endif
