// SPDX-License-Identifier: Apache-2.0
// The default tokenizer: the frequent words of the captions, bytes for the rest.
//
// Ids: 0 pad, 1 end, 2 unknown (never produced), 3..258 the bytes, then words by falling frequency (ties bytewise).
// Text is NFC-normalised, case-folded and split at white space and punctuation, each mark being a word of its own. A
// word outside the vocabulary becomes its bytes, with a space byte between two such words.
#ifndef TS_MODEL_TOKENIZER_H
#define TS_MODEL_TOKENIZER_H

#include <stdint.h>

typedef struct ts_tokenizer ts_tokenizer;

enum { TS_MAX_PROMPT_BYTES = 8192 };

// Builds the vocabulary from captions: words seen at least min_count times, at most max_words.
int ts_tokenizer_build(ts_tokenizer **out, const char *const *captions, int64_t count, int64_t max_words,
                       int64_t min_count);
int ts_tokenizer_load(ts_tokenizer **out, const char *folder);  // folder/tokenizer.json
int ts_tokenizer_save(const ts_tokenizer *tokenizer, const char *folder);
void ts_tokenizer_close(ts_tokenizer **tokenizer);
int64_t ts_tokenizer_vocabulary(const ts_tokenizer *tokenizer);
uint64_t ts_tokenizer_fingerprint(const ts_tokenizer *tokenizer);
// Ids of `text` with the end id last, cut to `max_ids` (the end id stays). *count >= 1: the empty text is just the end
// id. TS_EINPUT when text is not UTF-8 or longer than TS_MAX_PROMPT_BYTES.
int ts_tokenizer_encode(const ts_tokenizer *tokenizer, const char *text, int64_t max_ids, int32_t *ids, int64_t *count);

#endif
