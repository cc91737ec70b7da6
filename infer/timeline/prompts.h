// SPDX-License-Identifier: Apache-2.0
// Prompts as people write them: checked before anything is computed.
#ifndef TS_INFER_PROMPTS_H
#define TS_INFER_PROMPTS_H

#include <stdint.h>

typedef struct ts_prompts {
    char *text;         // a prompt file cut into lines, or NULL
    const char **item;  // [count] borrowed from `text` or from the caller
    int64_t count;
} ts_prompts;

// Not empty, valid UTF-8, at most TS_MAX_PROMPT_BYTES; else TS_EINPUT. `where` ("--prompt", "prompts.txt:12") goes into
// the message.
int ts_prompt_check(const char *prompt, const char *where);

// Adds one prompt, borrowed, after checking it.
int ts_prompts_add(ts_prompts *prompts, const char *prompt, const char *where);
// Adds one prompt for each line of a file of at most 64 MiB and 100,000 prompts; blank lines are passed over.
int ts_prompts_read(ts_prompts *prompts, const char *path);
void ts_prompts_free(ts_prompts *prompts);

#endif
