// SPDX-License-Identifier: Apache-2.0
// Two checkpoints of training that must hold the same bits.
#ifndef TS_TEST_SAME_CHECKPOINT_H
#define TS_TEST_SAME_CHECKPOINT_H

#include "core/store/checkpoint.h"
#include "tests/ts_test.h"

static void check_same_files(const char *a, const char *b) {
    static const char *const groups[] = {"weights", "ema", "moment1", "moment2"};
    for (int g = 0; g < 4; g++) {
        ts_safetensors *left = NULL, *right = NULL;
        CHECK_OK(ts_checkpoint_open_group(a, groups[g], &left));
        CHECK_OK(ts_checkpoint_open_group(b, groups[g], &right));
        CHECK(ts_safetensors_count(left) == ts_safetensors_count(right));
        for (int64_t i = 0; i < ts_safetensors_count(left); i++) {
            const ts_safetensors_entry *entry = ts_safetensors_at(left, i);
            const size_t bytes = (size_t)ts_shape_count(entry->shape) * sizeof(float);
            float *x = malloc(bytes), *y = malloc(bytes);
            CHECK_OK(ts_safetensors_read_f32(left, entry->name, entry->shape, x));
            CHECK_OK(ts_safetensors_read_f32(right, entry->name, entry->shape, y));
            CHECK(!memcmp(x, y, bytes));
            free(x);
            free(y);
        }
        ts_safetensors_close(&left);
        ts_safetensors_close(&right);
    }
}

#endif
