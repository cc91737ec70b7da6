// SPDX-License-Identifier: Apache-2.0
#include "core/media/image.h"

#include <png.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/status.h"
#include "core/media/font.h"

enum { MAX_SIDE = 32768, BORDER = 2, LINE_HEIGHT = FONT_HEIGHT + 2, MAX_LABEL_LINES = 4 };
static const uint8_t PAPER[3] = {24, 24, 24}, INK[3] = {230, 230, 230};

// ---- PNG

int ts_image_encode_png(const uint8_t *rgb, int64_t height, int64_t width, uint8_t **out, size_t *out_bytes) {
    *out = NULL;
    *out_bytes = 0;
    if (height < 1 || width < 1 || height > MAX_SIDE || width > MAX_SIDE) {
        return TS_FAIL(TS_EUSAGE, "cannot make an image of %lldx%lld pixels; sides may be 1 to %d", (long long)width,
                       (long long)height, MAX_SIDE);
    }
    png_image image = {.version = PNG_IMAGE_VERSION,
                       .width = (png_uint_32)width,
                       .height = (png_uint_32)height,
                       .format = PNG_FORMAT_RGB};
    png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(image);
    uint8_t *png = ts_malloc(bytes);
    if (!png) {
        return TS_ERESOURCE;
    }
    if (!png_image_write_to_memory(&image, png, &bytes, 0, rgb, 0, NULL)) {
        free(png);
        return TS_FAIL(TS_ERESOURCE, "cannot make a PNG image: %s", image.message);
    }
    *out = png;
    *out_bytes = bytes;
    return TS_OK;
}

int ts_image_write_png(const char *path, const uint8_t *rgb, int64_t height, int64_t width) {
    uint8_t *png;
    size_t bytes;
    TS_TRY(ts_image_encode_png(rgb, height, width, &png, &bytes));
    const int status = ts_file_write_atomic(path, png, bytes);
    free(png);
    return status;
}

// ---- text

typedef struct canvas {
    uint8_t *rgb;  // [height, width, 3]
    int64_t height, width;
} canvas;

static void draw_glyph(canvas *c, int64_t left, int64_t top, unsigned char glyph) {
    const int index = glyph - 32;
    for (int64_t y = 0; y < FONT_HEIGHT; y++) {
        const char *dots = font[index / FONT_BLOCK][y] + index % FONT_BLOCK * FONT_ADVANCE;
        for (int64_t x = 0; x < FONT_WIDTH; x++) {
            if (dots[x] == '#') {
                memcpy(c->rgb + ((top + y) * c->width + left + x) * 3, INK, 3);
            }
        }
    }
}

// The glyph of the character at *text, which is moved past it: one box for a whole UTF-8 sequence.
static unsigned char next_glyph(const char **text) {
    const unsigned char first = (unsigned char)*(*text)++;
    if (first >= 32 && first < 127) {
        return first;
    }
    while ((**text & 0xc0) == 0x80) {
        ++*text;
    }
    return first < 32 ? ' ' : 127;
}

// Breaks `text` into lines of at most `columns` characters at spaces; draws them when `c` is not NULL. Returns how many
// lines there are; what does not fit into MAX_LABEL_LINES is left out.
static int64_t draw_label(canvas *c, const char *text, int64_t left, int64_t top, int64_t columns) {
    int64_t lines = 0;
    while (*text && columns > 0 && lines < MAX_LABEL_LINES) {
        const char *end = text, *space = NULL;  // of this line; behind the last space in it
        int64_t count = 0;
        while (*end && count < columns) {
            space = next_glyph(&end) == ' ' ? end : space;
            count++;
        }
        if (*end && *end != ' ' && space) {
            end = space;
        }
        for (int64_t x = left; text < end; x += FONT_ADVANCE) {
            const unsigned char glyph = next_glyph(&text);
            if (c) {
                draw_glyph(c, x, top + lines * LINE_HEIGHT, glyph);
            }
        }
        while (*text == ' ') {
            text++;
        }
        lines++;
    }
    return lines;
}

// ---- contact sheets

static int64_t label_columns(int64_t sheet_width) {
    return (sheet_width - 2 * BORDER) / FONT_ADVANCE;  // 0 on a sheet too narrow for letters
}

static int64_t row_height(const ts_contact_row *row, int64_t sheet_width) {
    const int64_t lines = row->label ? draw_label(NULL, row->label, 0, 0, label_columns(sheet_width)) : 0;
    return row->height + BORDER + (lines ? lines * LINE_HEIGHT + BORDER : 0);
}

int64_t ts_contact_sheet_frame(int64_t frames, int64_t columns, int64_t column) {
    return columns > 1 ? (column * (frames - 1) * 2 + columns - 1) / (2 * (columns - 1)) : 0;
}

static void draw_row(canvas *c, const ts_contact_row *row, int64_t top, int64_t columns) {
    for (int64_t i = 0; i < columns; i++) {
        const int64_t frame = ts_contact_sheet_frame(row->frames, columns, i);
        const uint8_t *from = row->rgb + frame * row->height * row->width * 3;
        const int64_t left = BORDER + i * (row->width + BORDER);
        for (int64_t y = 0; y < row->height; y++) {
            memcpy(c->rgb + ((top + y) * c->width + left) * 3, from + y * row->width * 3, (size_t)row->width * 3);
        }
    }
    if (row->label) {
        draw_label(c, row->label, BORDER, top + row->height + BORDER, label_columns(c->width));
    }
}

int ts_contact_sheet_render(const ts_contact_row *rows, int64_t count, int64_t columns, uint8_t **rgb, int64_t *height,
                            int64_t *width) {
    *rgb = NULL;
    canvas c = {.height = BORDER};
    for (int64_t i = 0; i < count; i++) {
        const int64_t row_width = BORDER + columns * (rows[i].width + BORDER);
        c.width = row_width > c.width ? row_width : c.width;
    }
    for (int64_t i = 0; i < count; i++) {
        c.height += row_height(&rows[i], c.width);
    }
    if (count < 1 || columns < 1 || c.width > MAX_SIDE || c.height > MAX_SIDE) {
        return TS_FAIL(TS_EUSAGE,
                       "a contact sheet of %lldx%lld pixels cannot be made; take 1 row or more and fewer "
                       "than %d pixels a side",
                       (long long)c.width, (long long)c.height, MAX_SIDE);
    }
    c.rgb = ts_malloc((size_t)(c.height * c.width * 3));
    if (!c.rgb) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < c.height * c.width; i++) {
        memcpy(c.rgb + i * 3, PAPER, 3);
    }
    int64_t top = BORDER;
    for (int64_t i = 0; i < count; i++) {
        draw_row(&c, &rows[i], top, columns);
        top += row_height(&rows[i], c.width);
    }
    *rgb = c.rgb;
    *height = c.height;
    *width = c.width;
    return TS_OK;
}

int ts_contact_sheet_write(const char *path, const ts_contact_row *rows, int64_t count, int64_t columns) {
    uint8_t *rgb;
    int64_t height, width;
    TS_TRY(ts_contact_sheet_render(rows, count, columns, &rgb, &height, &width));
    const int status = ts_image_write_png(path, rgb, height, width);
    free(rgb);
    return status;
}
