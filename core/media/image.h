// SPDX-License-Identifier: Apache-2.0
// Pictures in, PNG images and contact sheets out.
#ifndef TS_MEDIA_IMAGE_H
#define TS_MEDIA_IMAGE_H

#include <stddef.h>
#include <stdint.h>

// A PNG or JPEG file, told by its first bytes, turned as it is displayed: new pixels that the caller frees. TS_EINPUT
// "path: ..." for files that are no such image or damaged, and for images of more than TS_IMAGE_MAX_SIDE a side or
// TS_IMAGE_MAX_PIXELS in all, for which nothing is allocated.
enum { TS_IMAGE_MAX_SIDE = 16384, TS_IMAGE_MAX_PIXELS = 64 << 20 };
// rgb [height, width, 3] u8. What is transparent shows white.
int ts_image_read(const char *path, uint8_t **rgb, int64_t *height, int64_t *width);
// Brightness, BT.709 of the stored values, in 256ths.
static inline uint8_t ts_image_brightness(const uint8_t rgb[3]) {
    return (uint8_t)((54 * rgb[0] + 183 * rgb[1] + 19 * rgb[2] + 128) >> 8);
}
// grey [height, width] u8, for masks: brightness. What is transparent is black.
int ts_image_read_grey(const char *path, uint8_t **grey, int64_t *height, int64_t *width);

// rgb [height, width, 3] u8. Atomic.
int ts_image_write_png(const char *path, const uint8_t *rgb, int64_t height, int64_t width);
// Same into memory (for TensorBoard); the caller frees *out.
int ts_image_encode_png(const uint8_t *rgb, int64_t height, int64_t width, uint8_t **out, size_t *out_bytes);

// A contact sheet: one row a video, `columns` frames each evenly spaced from first to last, thin borders, the label
// under the row in a small built-in font when not NULL.
typedef struct ts_contact_row {
    const uint8_t *rgb;  // [frames, height, width, 3]
    int64_t frames, height, width;
    const char *label;
} ts_contact_row;
int ts_contact_sheet_write(const char *path, const ts_contact_row *rows, int64_t count, int64_t columns);
// Which of a video's frames stands in a column: the nearest of `columns` moments from the first frame to the last.
int64_t ts_contact_sheet_frame(int64_t frames, int64_t columns, int64_t column);
// The pixels instead of a file; the caller frees *rgb.
int ts_contact_sheet_render(const ts_contact_row *rows, int64_t count, int64_t columns, uint8_t **rgb, int64_t *height,
                            int64_t *width);

#endif
