// SPDX-License-Identifier: Apache-2.0
#include "train/preview.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/file.h"
#include "core/base/status.h"
#include "core/media/image.h"
#include "infer/sampler/decode.h"
#include "infer/sampler/sample.h"

// The prompts of the configuration, or captions of validation clips.
static int64_t choose_prompts(const ts_trainer *t, const char **own, const char *const **prompts) {
    if (t->config->sample.prompts.count) {
        *prompts = t->config->sample.prompts.items;
        return t->config->sample.prompts.count;
    }
    const int64_t *clips = NULL;
    int64_t count = ts_loader_validation(t->loader, &clips);
    count = count < TS_PREVIEW_CAPTIONS ? count : TS_PREVIEW_CAPTIONS;
    for (int64_t i = 0; i < count; i++) {
        own[i] = ts_dataset_caption(t->dataset, clips[i]);
    }
    *prompts = own;
    return count;
}

static int write_sheet(const ts_contact_row *rows, int64_t count, const char *path, int64_t step, ts_report *report) {
    uint8_t *rgb = NULL;
    int64_t height = 0, width = 0;
    TS_TRY(ts_contact_sheet_render(rows, count, 8, &rgb, &height, &width));
    int status = ts_image_write_png(path, rgb, height, width);
    if (!status) {
        status = ts_report_image(report, step, "samples", rgb, height, width);
    }
    free(rgb);
    return status;
}

// Writes videos [count, frames, height, width, 3] and their sheet.
static int write_samples(const ts_trainer *t, const char *folder, const char *const *prompts, int64_t count,
                         const uint8_t *pixels, ts_report *report) {
    const ts_model_defaults *size = &t->model->defaults;
    const int64_t video_bytes = size->frames * size->height * size->width * 3;
    char path[4096], name[80];
    ts_contact_row *row = ts_calloc((size_t)count, sizeof *row);
    int status = row ? ts_folder_make(folder) : TS_ERESOURCE;
    for (int64_t i = 0; !status && i < count; i++) {
        row[i] = (ts_contact_row){pixels + i * video_bytes, size->frames, size->height, size->width, prompts[i]};
        snprintf(name, sizeof name, "step-%08" PRId64 "-%" PRId64 ".mp4", t->step, i);
        TS_TRY_GOTO(status, ts_path_join(path, sizeof path, folder, name), done);
        status = ts_write_video(path, row[i].rgb, size->frames, size->height, size->width, size->fps, prompts[i]);
    }
    if (!status) {
        snprintf(name, sizeof name, "step-%08" PRId64 ".png", t->step);
        TS_TRY_GOTO(status, ts_path_join(path, sizeof path, folder, name), done);
        status = write_sheet(row, count, path, t->step, report);
    }
done:
    free(row);
    return status;
}

int ts_preview(ts_trainer *t, const char *folder, ts_report *report) {
    const char *own[TS_PREVIEW_CAPTIONS];
    const char *const *prompts = NULL;
    const int64_t count = choose_prompts(t, own, &prompts);
    if (count == 0) {
        return TS_OK;
    }
    const ts_shape shape = ts_dataset_bucket_shape(t->dataset, 0);
    const ts_sample_params params = {
        .frames = shape.dim[0],
        .height = shape.dim[1],
        .width = shape.dim[2],
        .steps = t->config->sample.steps,
        .guidance = t->config->sample.guidance,
        .shift = t->config->sample.shift,
        .grid = TS_GRID_EULER,
        .solver = TS_SOLVER_EULER,
        .seed = (uint64_t)t->config->seed,
        .batch = count < TS_PREVIEW_BATCH ? count : TS_PREVIEW_BATCH,
        .quiet = true,
    };
    float *latents = ts_malloc((size_t)(count * ts_shape_count(shape)) * sizeof *latents);
    TS_TRY(ts_agree(t->world, latents ? TS_OK : TS_ERESOURCE));
    ts_checkpoint_save_settle(t->saving);
    int status = ts_optimizer_swap_average(t->optimizer);
    status = status ? status : ts_sample(t->model, t->kernels, &params, prompts, count, 0, latents);
    status = status ? status : ts_optimizer_swap_average(t->optimizer);
    char path[4096];
    uint8_t *pixels = NULL;
    status = status ? status
                    : ts_decode(t->model->codec, latents, count, shape.dim[0], shape.dim[1], shape.dim[2], t->world, 0,
                                &pixels);
    if (pixels) {
        status = ts_path_join(path, sizeof path, folder, "samples");
        status = status ? status : write_samples(t, path, prompts, count, pixels, report);
    }
    free(pixels);
    free(latents);
    return ts_agree(t->world, status);
}
