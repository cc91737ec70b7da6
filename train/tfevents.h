// SPDX-License-Identifier: Apache-2.0
// TensorBoard event files: scalars and PNG images, nothing else of TensorFlow.
//
// A record is u64 length, u32 masked crc32c(length bytes), data, u32 masked crc32c(data), little-endian. The data is an
// Event message of protocol buffers: 1 wall_time double, 2 step int64, 3 file_version string, 5 Summary; Summary: 1
// Value; Value: 1 tag, 2 simple_value float, 4 Image; Image: 1 height, 2 width, 3 colorspace, 4 encoded.
#ifndef TS_TRAIN_TFEVENTS_H
#define TS_TRAIN_TFEVENTS_H

#include <stddef.h>
#include <stdint.h>

typedef struct ts_tfevents ts_tfevents;

// A new file folder/events.out.tfevents.TIME.HOST; each start of a run writes its own, TensorBoard joins them.
int ts_tfevents_open(ts_tfevents **out, const char *folder);
void ts_tfevents_close(ts_tfevents **events);
int ts_tfevents_scalar(ts_tfevents *events, int64_t step, const char *tag, double value);
int ts_tfevents_png(ts_tfevents *events, int64_t step, const char *tag, const uint8_t *png, size_t bytes,
                    int64_t height, int64_t width);
int ts_tfevents_flush(ts_tfevents *events);

// CRC-32C (Castagnoli), and the mask that TFRecord puts over it so that a CRC of data holding CRCs stays strong.
uint32_t ts_crc32c(const void *data, size_t bytes);
uint32_t ts_crc32c_masked(const void *data, size_t bytes);

#endif
