// SPDX-License-Identifier: Apache-2.0
#include "core/model/tokenizer.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include <xxhash.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status.h"

enum {
    VERSION = 1,
    ID_END = 1,
    ID_BYTE = 3,          // id of byte 0
    ID_WORD = 3 + 256,    // id of the most frequent word
    MAX_WORD_BYTES = 64,  // longer words are always spelt
    MAX_WORDS = 1 << 20,
    MAX_FILE_BYTES = 64 << 20
};

typedef struct word {
    const char *text;  // in the arena
    int64_t count;     // occurrences, while the vocabulary is built
} word;

// Words by number, and an open-addressed index from text to number.
typedef struct lexicon {
    ts_arena *arena;
    word *words;     // [room]
    int32_t *slots;  // [slot_count], a power of two at least twice `count`; -1 is free
    int64_t count, room, slot_count;
} lexicon;

struct ts_tokenizer {
    lexicon words;
    uint64_t fingerprint;
};

// ---- lexicon

static void lexicon_close(lexicon *l) {
    ts_arena_close(&l->arena);
    free(l->words);
    free(l->slots);
    *l = (lexicon){0};
}

// The slot of the word, or the free one where it belongs.
static int32_t *find_slot(const lexicon *l, const char *text, size_t length) {
    uint64_t at = XXH3_64bits(text, length);
    for (;; at++) {
        int32_t *slot = &l->slots[at & (uint64_t)(l->slot_count - 1)];
        if (*slot < 0) {
            return slot;
        }
        const char *known = l->words[*slot].text;
        if (strncmp(known, text, length) == 0 && known[length] == '\0') {
            return slot;
        }
    }
}

static int index_words(lexicon *l, int64_t slot_count) {
    int32_t *slots = ts_malloc((size_t)slot_count * sizeof *slots);
    if (!slots) {
        return TS_ERESOURCE;
    }
    free(l->slots);
    l->slots = slots;
    l->slot_count = slot_count;
    memset(slots, 0xff, (size_t)slot_count * sizeof *slots);
    for (int64_t i = 0; i < l->count; i++) {
        *find_slot(l, l->words[i].text, strlen(l->words[i].text)) = (int32_t)i;
    }
    return TS_OK;
}

static int lexicon_open(lexicon *l) {
    *l = (lexicon){0};
    TS_TRY(ts_arena_open(&l->arena, "words", 1 << 16, false));
    return index_words(l, 1024);
}

// The number of the word, which is added when new; a negative status when memory is exhausted.
static int64_t add_word(lexicon *l, const char *text, size_t length) {
    if (2 * (l->count + 1) > l->slot_count) {
        TS_TRY(index_words(l, 2 * l->slot_count));
    }
    int32_t *slot = find_slot(l, text, length);
    if (*slot >= 0) {
        return *slot;
    }
    if (l->count == l->room) {
        const int64_t room = l->room ? 2 * l->room : 512;
        word *grown = realloc(l->words, (size_t)room * sizeof *grown);
        if (!grown) {
            return TS_FAIL(TS_ERESOURCE, "out of memory for %lld words", (long long)room);
        }
        l->words = grown;
        l->room = room;
    }
    char *copy = ts_arena_alloc(l->arena, length + 1);
    if (!copy) {
        return TS_ERESOURCE;
    }
    memcpy(copy, text, length);
    copy[length] = '\0';
    l->words[l->count] = (word){.text = copy};
    *slot = (int32_t)l->count;
    return l->count++;
}

// ---- text to pieces

// NFC with case folded, into *out, which the caller frees.
static int normalize(const char *text, char **out) {
    *out = NULL;
    if (strnlen(text, TS_MAX_PROMPT_BYTES + 1) > TS_MAX_PROMPT_BYTES) {
        return TS_FAIL(TS_EINPUT, "the text is longer than %d bytes; shorten it", TS_MAX_PROMPT_BYTES);
    }
    utf8proc_uint8_t *folded = NULL;
    const utf8proc_ssize_t length =
        utf8proc_map((const utf8proc_uint8_t *)text, 0, &folded,
                     UTF8PROC_NULLTERM | UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_CASEFOLD);
    if (length == UTF8PROC_ERROR_NOMEM) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for a text");
    }
    if (length < 0) {
        return TS_FAIL(TS_EINPUT, "the text is not UTF-8; convert it");
    }
    *out = (char *)folded;
    return TS_OK;
}

typedef enum { SPACE, MARK, LETTER } character;

static character classify(utf8proc_int32_t code) {
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_CC:
        return SPACE;
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
    case UTF8PROC_CATEGORY_SM:
    case UTF8PROC_CATEGORY_SC:
    case UTF8PROC_CATEGORY_SK:
    case UTF8PROC_CATEGORY_SO:
        return MARK;
    default:
        return LETTER;
    }
}

// The next word or single punctuation mark of normalised text; false at its end. *at moves behind it.
static bool next_piece(const char **at, const char **piece, size_t *length) {
    *piece = NULL;
    while (**at) {
        utf8proc_int32_t code;
        const utf8proc_ssize_t bytes = utf8proc_iterate((const utf8proc_uint8_t *)*at, -1, &code);
        TS_ASSERT(bytes > 0);  // normalize() lets nothing else pass
        const character kind = classify(code);
        if (*piece && kind != LETTER) {
            break;
        }
        if (!*piece && kind != SPACE) {
            *piece = *at;
        }
        *at += bytes;
        if (kind == MARK) {
            break;
        }
    }
    *length = *piece ? (size_t)(*at - *piece) : 0;
    return *piece != NULL;
}

// ---- vocabulary

static int count_words(lexicon *l, const char *caption) {
    char *text;
    TS_TRY(normalize(caption, &text));
    const char *at = text, *piece;
    size_t length;
    int64_t number = 0;
    while (number >= 0 && next_piece(&at, &piece, &length)) {
        if (length <= MAX_WORD_BYTES) {
            number = add_word(l, piece, length);
            if (number >= 0) {
                l->words[number].count++;
            }
        }
    }
    free(text);
    return number < 0 ? (int)number : TS_OK;
}

// Frequent words first; ties bytewise, so that the order is that of the captions' content alone.
static int compare_words(const void *a, const void *b) {
    const word *x = a, *y = b;
    return x->count != y->count ? (x->count < y->count ? 1 : -1) : strcmp(x->text, y->text);
}

static int keep_frequent(lexicon *l, int64_t max_words, int64_t min_count) {
    if (l->count) {
        qsort(l->words, (size_t)l->count, sizeof *l->words, compare_words);
    }
    max_words = max_words < MAX_WORDS ? max_words : MAX_WORDS;
    int64_t kept = l->count < max_words ? l->count : max_words;
    while (kept > 0 && l->words[kept - 1].count < min_count) {
        kept--;
    }
    l->count = kept;
    return index_words(l, l->slot_count);
}

static uint64_t hash_words(const lexicon *l) {
    uint64_t hash = VERSION;
    for (int64_t i = 0; i < l->count; i++) {
        hash = XXH3_64bits_withSeed(l->words[i].text, strlen(l->words[i].text), hash);
    }
    return hash;
}

int ts_tokenizer_build(ts_tokenizer **out, const char *const *captions, int64_t count, int64_t max_words,
                       int64_t min_count) {
    *out = NULL;
    ts_tokenizer *tokenizer = ts_calloc(1, sizeof *tokenizer);
    if (!tokenizer) {
        return TS_ERESOURCE;
    }
    int status = lexicon_open(&tokenizer->words);
    for (int64_t i = 0; i < count && !status; i++) {
        status = count_words(&tokenizer->words, captions[i]);
        if (status) {
            ts_fail_context(status, "caption %lld", (long long)i);
        }
    }
    if (!status) {
        status = keep_frequent(&tokenizer->words, max_words, min_count);
    }
    if (status) {
        ts_tokenizer_close(&tokenizer);
        return status;
    }
    tokenizer->fingerprint = hash_words(&tokenizer->words);
    *out = tokenizer;
    return TS_OK;
}

void ts_tokenizer_close(ts_tokenizer **tokenizer) {
    if (*tokenizer) {
        lexicon_close(&(*tokenizer)->words);
        free(*tokenizer);
        *tokenizer = NULL;
    }
}

int64_t ts_tokenizer_vocabulary(const ts_tokenizer *tokenizer) {
    return ID_WORD + tokenizer->words.count;
}

uint64_t ts_tokenizer_fingerprint(const ts_tokenizer *tokenizer) {
    return tokenizer->fingerprint;
}

// ---- file

int ts_tokenizer_save(const ts_tokenizer *tokenizer, const char *folder) {
    char path[TS_PATH_BYTES];
    TS_TRY(ts_path_join(path, sizeof path, folder, "tokenizer.json"));
    json_t *words = json_array();
    for (int64_t i = 0; i < tokenizer->words.count; i++) {
        json_array_append_new(words, json_string(tokenizer->words.words[i].text));
    }
    json_t *root = json_pack("{s:i, s:o}", "version", VERSION, "words", words);
    if (!root || json_array_size(words) != (size_t)tokenizer->words.count) {
        json_decref(root);
        return TS_FAIL(TS_ERESOURCE, "%s: out of memory", path);
    }
    const int status = ts_json_write_atomic(path, root);
    json_decref(root);
    return status;
}

// Whether encoding could ever meet this word: normalised, one piece, not too long.
static bool is_word(const char *text) {
    if (strlen(text) > MAX_WORD_BYTES) {
        return false;
    }
    char *normal;
    if (normalize(text, &normal)) {
        return false;
    }
    const char *at = normal, *piece;
    size_t length;
    const bool same = strcmp(normal, text) == 0 && next_piece(&at, &piece, &length) && length == strlen(text);
    free(normal);
    return same;
}

static int read_words(lexicon *l, const json_t *root, const char *path) {
    int64_t version;
    const json_t *words, *item;
    TS_TRY(ts_json_int(root, "version", path, VERSION, VERSION, &version));
    TS_TRY(ts_json_array(root, "words", path, &words));
    if (json_array_size(words) > MAX_WORDS) {
        return TS_FAIL(TS_EINPUT, "%s: has %zu words, more than %d", path, json_array_size(words), MAX_WORDS);
    }
    for (size_t i = 0; i < json_array_size(words); i++) {
        item = json_array_get(words, i);
        if (!json_is_string(item) || !is_word(json_string_value(item))) {
            return TS_FAIL(TS_EINPUT, "%s: word %zu is not a single word in lower case; the file is damaged", path, i);
        }
        const int64_t number = add_word(l, json_string_value(item), json_string_length(item));
        if (number < 0) {
            return (int)number;
        }
        if ((size_t)number != i) {
            return TS_FAIL(TS_EINPUT, "%s: words %lld and %zu are the same; the file is damaged", path,
                           (long long)number, i);
        }
    }
    return TS_OK;
}

int ts_tokenizer_load(ts_tokenizer **out, const char *folder) {
    *out = NULL;
    char path[TS_PATH_BYTES];
    TS_TRY(ts_path_join(path, sizeof path, folder, "tokenizer.json"));
    json_t *root;
    TS_TRY(ts_json_read(path, MAX_FILE_BYTES, &root));
    ts_tokenizer *tokenizer = ts_calloc(1, sizeof *tokenizer);
    int status = tokenizer ? lexicon_open(&tokenizer->words) : TS_ERESOURCE;
    if (!status) {
        status = read_words(&tokenizer->words, root, path);
    }
    json_decref(root);
    if (status) {
        ts_tokenizer_close(&tokenizer);
        return status;
    }
    tokenizer->fingerprint = hash_words(&tokenizer->words);
    *out = tokenizer;
    return TS_OK;
}

// ---- encoding

typedef struct id_list {
    int32_t *ids;
    int64_t count, room;  // room without the end id
} id_list;

static void push(id_list *list, int32_t id) {
    if (list->count < list->room) {
        list->ids[list->count++] = id;
    }
}

int ts_tokenizer_encode(const ts_tokenizer *tokenizer, const char *text, int64_t max_ids, int32_t *ids,
                        int64_t *count) {
    TS_ASSERT(max_ids >= 1);
    char *normal;
    TS_TRY(normalize(text, &normal));
    id_list list = {.ids = ids, .room = max_ids - 1};
    const char *at = normal, *piece;
    size_t length;
    bool spelt_before = false;
    while (list.count < list.room && next_piece(&at, &piece, &length)) {
        const int32_t number = *find_slot(&tokenizer->words, piece, length);
        if (number >= 0) {
            push(&list, ID_WORD + number);
            spelt_before = false;
            continue;
        }
        if (spelt_before) {
            push(&list, ID_BYTE + ' ');
        }
        for (size_t i = 0; i < length; i++) {
            push(&list, ID_BYTE + (unsigned char)piece[i]);
        }
        spelt_before = true;
    }
    ids[list.count++] = ID_END;
    *count = list.count;
    free(normal);
    return TS_OK;
}
