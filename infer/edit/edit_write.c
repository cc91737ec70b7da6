// SPDX-License-Identifier: Apache-2.0
// What is written of videos: files, contact sheets, previews, latents, states, and the list of them.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/status.h"
#include "core/store/safetensors.h"
#include "infer/edit/edit_private.h"
#include "infer/edit/output.h"

ts_film ts_edit_film(const ts_edit_round *r, const float *latents, const char *title) {
    return (ts_film){
        .latents = latents,
        .frames = r->frames,
        .height = r->height,
        .width = r->width,
        .loop = r->loop,
        .fps = r->fps,
        .title = title,
    };
}

// ---- while it is made

int ts_edit_write_preview(const ts_edit_round *r, const char *path) {
    float *latents = ts_malloc((size_t)r->numbers * sizeof *latents);
    int status = latents ? ts_denoiser_foretold(r->denoiser, 0, latents) : TS_ERESOURCE;
    if (!status) {
        const ts_film film = ts_edit_film(r, latents, r->title[0]);
        status = ts_film_write_sheet(r->session->model->codec, &film, 1, path);
    }
    free(latents);
    return status;
}

// ---- when it is done

int ts_edit_prepare_output(const ts_edit_options *o) {
    TS_TRY(ts_ends_with(o->out, ".mp4") ? TS_OK : ts_output_make_folder("--out", o->out));
    return o->sheet ? ts_output_check_file("--sheet", o->sheet) : TS_OK;  // it may lie in the folder made just now
}

static int video_path(const ts_edit_round *r, int64_t i, char path[TS_PATH_BYTES]) {
    const char *out = r->options->out;
    if (ts_ends_with(out, ".mp4")) {
        snprintf(path, TS_PATH_BYTES, "%s", out);
        return TS_OK;
    }
    char name[128];
    ts_output_name(name, sizeof name, r->first + r->own.first + i, r->title[i]);
    return ts_path_join(path, TS_PATH_BYTES, out, name);
}

static int write_video(const ts_edit_round *r, int64_t i, ts_comm *comm) {
    char path[TS_PATH_BYTES];
    const ts_film film = ts_edit_film(r, r->latents + i * r->numbers, r->title[i]);
    TS_TRY(video_path(r, i, path));
    return ts_film_write(r->session->model->codec, &film, comm, 0, path);
}

static int write_latents(const ts_edit_round *r) {
    const ts_safetensors_item item = {"latents", TS_F32, TS_SHAPE(r->frames, r->height, r->width, r->channels),
                                      r->latents};
    char codec[20];
    snprintf(codec, sizeof codec, "%016llx",
             (unsigned long long)ts_codec_get_info(r->session->model->codec).fingerprint);
    const char *const about[] = {"codec", codec, "loop", r->loop ? "true" : "false", NULL};
    return ts_safetensors_write(r->options->save_latents, &item, 1, about);
}

// One video is decoded by all ranks; of several each rank of those that sampled them writes some.
int ts_edit_write_round(const ts_edit_round *r) {
    const ts_mesh *mesh = &r->session->mesh;
    int status = TS_OK;
    if (r->list->count == 1) {
        TS_TRY(write_video(r, 0, mesh->world));
        status = r->options->save_latents && ts_comm_rank(mesh->world) == 0 ? write_latents(r) : TS_OK;
    } else {
        ts_comm *video = mesh->axis[TS_AXIS_VIDEO];
        const ts_part part = ts_split(r->own.count, ts_comm_size(video), ts_comm_rank(video));
        for (int64_t i = part.first; i < part.first + part.count && !status; i++) {
            status = write_video(r, i, NULL);
        }
    }
    return ts_agree(mesh->world, status);
}

// ---- about all of them

// Brings the round's videos of every rank of the data axis to each of them: new memory.
static int gather(const ts_edit_round *r, float **all) {
    ts_comm *data = r->session->mesh.axis[TS_AXIS_DATA];
    const int size = ts_comm_size(data);
    int64_t *counts = ts_calloc((size_t)size, sizeof *counts);
    *all = ts_malloc((size_t)(r->count * r->numbers) * sizeof **all);
    int status = ts_agree(data, counts && *all ? TS_OK : TS_ERESOURCE);
    for (int rank = 0; rank < size && !status; rank++) {
        counts[rank] = ts_split(r->count, size, rank).count * r->numbers;
    }
    status = status ? status : ts_all_gather_v(data, r->latents, *all, counts, TS_F32);
    free(counts);
    return status;
}

static int keep(ts_edit_sheet *sheet, const ts_edit_round *r, const float *latents) {
    const int64_t room = TS_EDIT_SHEET_ROWS - sheet->count, added = r->count < room ? r->count : room;
    const size_t bytes = (size_t)r->numbers * sizeof *latents;
    float *longer = realloc(sheet->latents, (size_t)(sheet->count + added) * bytes);
    if (!longer) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for the contact sheet");
    }
    memcpy(longer + sheet->count * r->numbers, latents, (size_t)added * bytes);
    sheet->latents = longer;
    sheet->count += added;
    return TS_OK;
}

int ts_edit_sheet_add(ts_edit_sheet *sheet, const ts_edit_round *r) {
    const ts_mesh *mesh = &r->session->mesh;
    if (!r->options->sheet || r->first >= TS_EDIT_SHEET_ROWS) {
        return TS_OK;
    }
    float *all = NULL;
    int status = r->own.count < r->count || ts_comm_size(mesh->axis[TS_AXIS_DATA]) > 1 ? gather(r, &all) : TS_OK;
    if (!status && ts_comm_rank(mesh->world) == 0) {
        status = keep(sheet, r, all ? all : r->latents);
    }
    free(all);
    return ts_agree(mesh->world, status);
}

static const char *listed_title(const ts_edit_list *list, int64_t i) {
    return list->item[i].prompts.count ? list->item[i].prompts.item[0].text : "";
}

static int write_sheet(const ts_edit_round *last, const ts_edit_sheet *sheet) {
    ts_film film[TS_EDIT_SHEET_ROWS];
    for (int64_t i = 0; i < sheet->count; i++) {
        film[i] = ts_edit_film(last, sheet->latents + i * last->numbers, listed_title(last->list, i));
    }
    return ts_film_write_sheet(last->session->model->codec, film, sheet->count, last->options->sheet);
}

static int write_list(const ts_edit_round *last) {
    const ts_edit_list *list = last->list;
    char name[128];
    json_t *lines = json_array();
    for (int64_t i = 0; i < list->count; i++) {
        ts_output_name(name, sizeof name, i, listed_title(list, i));
        json_t *line = json_pack("{s:s, s:s, s:I}", "file_name", name, "text", listed_title(list, i), "seed",
                                 (json_int_t)last->options->session.seed);
        if (list->about) {
            json_object_update(line, json_array_get(list->about, (size_t)i));
        }
        json_array_append_new(lines, line);
    }
    const bool whole = (int64_t)json_array_size(lines) == list->count;
    const int status =
        whole ? ts_output_write_metadata(last->options->out, lines) : TS_FAIL(TS_ERESOURCE, "out of memory");
    json_decref(lines);
    return status;
}

int ts_edit_write_summary(const ts_edit_round *last, const ts_edit_sheet *sheet) {
    TS_TRY(last->options->sheet ? write_sheet(last, sheet) : TS_OK);
    return ts_ends_with(last->options->out, ".mp4") ? TS_OK : write_list(last);
}
