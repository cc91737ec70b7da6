// SPDX-License-Identifier: Apache-2.0
#include "infer/edit/session.h"

#include <stdio.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/status.h"
#include "core/comm/backend.h"
#include "core/comm/threads.h"
#include "core/comm/traffic.h"
#include "core/comm/watch.h"
#include "infer/timeline/compile.h"

const char *const ts_precision_names[] = {"f32", "bf16", NULL};
static const ts_dtype precision_dtypes[] = {TS_F32, TS_BF16};

enum { REPORT_NONE, REPORT_COMM };
const char *const ts_report_names[] = {"none", "comm", NULL};

// What the command line left to the model.
static ts_sample_params resolve(const ts_session_options *o, const ts_model_defaults *d) {
    return (ts_sample_params){
        .steps = o->steps ? o->steps : d->steps,
        .guidance = o->guidance < 0 ? d->guidance : o->guidance,
        .shift = o->shift > 0 ? o->shift : d->flow_shift,
        .grid = (ts_grid)o->grid,
        .solver = (ts_solver_kind)o->solver,
        .seed = (uint64_t)o->seed,
        .negative = o->negative,
        .batch = o->batch,
    };
}

// The kernels of the device that is asked for; the codec's work is the CPU's in any case. Collective.
static int open_kernels(const ts_kernels **kernels, ts_comm *world, const ts_session_options *o) {
    const ts_kernels *cpu;
    char text[160];
    TS_TRY(ts_backend_open(kernels, world, ts_device_names[o->device]));
    TS_TRY(ts_agree(world, ts_kernels_cpu(&cpu, o->instruction_set)));
    *kernels = (*kernels)->device->is_host ? cpu : *kernels;
    TS_INFO("on %s", ts_kernels_describe(*kernels, text, sizeof text));
    return TS_OK;
}

// The mesh that is asked for, refused before any weight is read. Collective.
static int open_mesh(ts_session *s, ts_comm *world, const ts_dit_config *dit) {
    const ts_session_options *o = s->options;
    ts_degrees degree;
    TS_TRY(ts_degrees_read(&degree, o->mesh ? o->mesh : "", dit->heads, ts_comm_size(world)));
    TS_TRY(ts_sample_check(&degree, s->sample.guidance));
    // The one answer that may differ between hosts.
    TS_TRY(ts_agree(world, o->reproducible ? ts_sample_check_reproducible(s->kernels, precision_dtypes[o->precision])
                                           : TS_OK));
    TS_TRY(ts_mesh_open(&s->mesh, world, &degree));
    s->mesh.reproducible = o->reproducible;
    if (ts_comm_size(world) > 1) {
        char text[80];
        TS_INFO("mesh %s", ts_degrees_text(&degree, text, sizeof text));
    }
    return TS_OK;
}

int ts_session_open(ts_session *s, ts_comm *world, const ts_session_options *options) {
    ts_model_params model;
    *s = (ts_session){.options = options};
    TS_TRY(ts_watch_open(world, &(ts_watch_params){.timeout = options->watch, .network = options->watch_network}));
    TS_TRY(ts_threads_set(world, options->threads));
    TS_TRY(open_kernels(&s->kernels, world, options));
    TS_TRY(ts_agree(world, ts_model_describe(&model, options->model)));
    s->sample = resolve(options, &model.defaults);
    TS_TRY(open_mesh(s, world, &model.dit));
    return ts_agree(world, ts_model_load(&s->model, options->model, s->kernels, &s->mesh,
                                         precision_dtypes[options->precision], false));
}

int ts_session_describe(ts_timeline_model *out, const ts_session_options *options) {
    ts_model_params model;
    ts_codec *codec;
    char folder[TS_PATH_BYTES];
    TS_TRY(ts_model_describe(&model, options->model));
    TS_TRY(ts_path_join(folder, sizeof folder, options->model, "codec"));
    TS_TRY(ts_codec_load(&codec, folder));
    const ts_codec_info info = ts_codec_get_info(codec);
    ts_codec_close(&codec);
    *out = ts_timeline_model_from(&model.defaults, &info, &model.dit);
    out->guidance = resolve(options, &model.defaults).guidance;
    return TS_OK;
}

// Collective.
static int report_traffic(const ts_mesh *mesh) {
    ts_traffic traffic;
    TS_TRY(ts_mesh_traffic(mesh, &traffic));
    if (ts_comm_rank(mesh->world) == 0) {
        ts_traffic_print(&traffic, stdout);
    }
    return TS_OK;
}

int ts_session_close(ts_session *s, int status) {
    if (!status && s->options->report == REPORT_COMM) {
        status = report_traffic(&s->mesh);
    }
    ts_model_close(&s->model);
    ts_mesh_close(&s->mesh);
    return status;
}

int ts_session_check_lengths(const ts_session *s, const char *const *prompt, int64_t count) {
    const char *first = NULL;
    int64_t cut = 0;
    for (int64_t i = 0; i < count; i++) {
        bool fits;
        TS_TRY(ts_model_text_fits(s->model, prompt[i], &fits));
        first = fits || first ? first : prompt[i];
        cut += !fits;
    }
    if (cut) {
        TS_WARN(
            "the end of %lld of %lld prompts has no effect: this model reads %lld tokens, and a word it does not know "
            "takes one for each byte; the first: \"%.80s\"",
            (long long)cut, (long long)count, (long long)ts_dit_get_config(s->model->dit)->text_rows, first);
    }
    return TS_OK;
}
