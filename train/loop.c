// SPDX-License-Identifier: Apache-2.0
#include "train/loop.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/signal.h"
#include "core/base/status.h"
#include "core/comm/traffic.h"
#include "core/comm/watch.h"
#include "train/peak.h"
#include "train/preview.h"
#include "train/report.h"
#include "train/state.h"
#include "train/trainer.h"

typedef struct run {
    const ts_train_config *config;
    const char *config_json;
    ts_comm *world;
    ts_trainer *trainer;
    ts_report *report;  // NULL but on rank 0
    char checkpoints[4096], model[4096];
    int64_t saved_step;  // of the newest checkpoint
    struct {
        int64_t bytes;
        double began, stall;  // seconds that this rank's training stood still for it
    } save;                   // the one under way, trainer->saving
    double step_seconds;      // of the last step
    int lock;                 // on the run folder, rank 0; -1 when not held
} run;

// ---- the run folder

static int write_config(const run *r) {
    char path[4096], *text = NULL;
    size_t bytes = 0;
    TS_TRY(ts_path_join(path, sizeof path, r->config->out, "config.yaml"));
    FILE *memory = open_memstream(&text, &bytes);
    if (!memory) {
        return TS_FAIL(TS_ERESOURCE, "%s: %s", path, strerror(errno));
    }
    int status = ts_options_write_yaml(ts_train_options, r->config, memory);
    fclose(memory);
    if (!status) {
        status = ts_file_write_atomic(path, text, bytes);
    }
    free(text);
    return status;
}

static int name_folders(run *r) {
    TS_TRY(ts_path_join(r->checkpoints, sizeof r->checkpoints, r->config->out, "checkpoints"));
    return ts_path_join(r->model, sizeof r->model, r->config->out, "model");
}

// One run at a time. The ranks of one that was killed may need a moment to find that out.
static int lock_folder(run *r) {
    const double patience = 15;
    if (ts_comm_rank(r->world) != 0 || r->lock >= 0 || !ts_path_is_folder(r->config->out)) {
        return TS_OK;
    }
    return ts_folder_lock(r->config->out, patience, &r->lock);
}

static int open_folder(run *r) {
    char name[32], path[4096];
    snprintf(name, sizeof name, "log-%d.txt", ts_comm_rank(r->world));
    TS_TRY(ts_folder_make(r->config->out));
    TS_TRY(lock_folder(r));
    TS_TRY(ts_path_join(path, sizeof path, r->config->out, name));
    return ts_log_set_file(path);
}

static int open_report(run *r, double peak) {
    const double limit = r->config->train.minutes, used = r->trainer->seconds / 60.0;
    TS_TRY(write_config(r));
    return ts_report_open(&r->report, &(ts_report_params){.folder = r->config->out,
                                                          .steps = r->config->train.steps,
                                                          .done = r->trainer->step,
                                                          .every = r->config->log.every,
                                                          .peak = peak,
                                                          .minutes_left = limit > 0 ? limit - used : 0});
}

// Captions are not cut in silence.
static int check_captions(const ts_trainer *t) {
    enum { LOOKED_AT = 10000 };  // of a large data set, the first
    const int64_t clips = ts_dataset_clips(t->dataset), n = clips < LOOKED_AT ? clips : LOOKED_AT;
    int64_t cut = 0;
    for (int64_t i = 0; i < n; i++) {
        bool fits;
        TS_TRY(ts_model_text_fits(t->model, ts_dataset_caption(t->dataset, i), &fits));
        cut += !fits;
    }
    if (cut) {
        TS_WARN("%s: %" PRId64 " of %" PRId64 " captions have more tokens than the %" PRId64
                " of model.text_rows: their "
                "end has no effect; raise it for a new run",
                t->config->data, cut, n, ts_dit_get_config(t->model->dit)->text_rows);
    }
    return TS_OK;
}

static int open_on_first_rank(run *r, double peak) {
    TS_TRY(check_captions(r->trainer));
    return open_report(r, peak);
}

// Of the model, whatever the part of it that this rank holds.
static int64_t count_parameters(const ts_params *params) {
    int64_t count = 0;
    for (int64_t i = 0; i < params->count; i++) {
        count += ts_shape_count(params->item[i]->whole);
    }
    return count;
}

// The folder is touched last, so that a run that cannot start leaves nothing behind.
static int open_run(run *r) {
    bool restored = false;
    double peak = 0;
    TS_TRY(ts_agree(r->world, name_folders(r)));
    TS_TRY(ts_agree(r->world, lock_folder(r)));
    TS_TRY(ts_trainer_open(&r->trainer, r->config, r->world));
    TS_TRY(ts_state_restore(r->trainer, r->checkpoints, r->config_json, &restored));
    r->saved_step = restored ? r->trainer->step : -1;
    TS_TRY(ts_peak_measure(r->trainer->kernels, ts_train_config_operands(r->config), r->world, &peak));
    TS_TRY(ts_agree(r->world, open_folder(r)));
    TS_TRY(ts_agree(r->world, ts_comm_rank(r->world) == 0 ? open_on_first_rank(r, peak) : TS_OK));
    const int ranks = ts_comm_size(r->world);
    char device[192];
    TS_INFO("%s: %.2f M parameters, %" PRId64 " clips, %" PRId64 " steps of %" PRId64 " samples on %d rank%s, on %s",
            r->config->out, 1e-6 * (double)count_parameters(r->trainer->model->params),
            ts_dataset_clips(r->trainer->dataset), r->config->train.steps, r->config->train.batch, ranks,
            ranks == 1 ? "" : "s", ts_kernels_describe(r->trainer->kernels, device, sizeof device));
    ts_memory_print(&r->trainer->memory, r->trainer->limit.available);
    if (restored) {
        TS_INFO("resumed after step %" PRId64, r->trainer->step);
    }
    return TS_OK;
}

// ---- what happens at step boundaries

// The noise patterns cost as much again each, so not every time.
static int validate(run *r, bool last) {
    const int64_t every = r->config->validate.every, nth = r->config->validate.patterns_every;
    if (!r->trainer->validation) {
        return TS_OK;
    }
    ts_validation_result result;
    TS_TRY(ts_trainer_validate(r->trainer, last || (nth > 0 && r->trainer->step / every % nth == 0), &result));
    return ts_agree(r->world, ts_report_validation(r->report, r->trainer->step, &result));
}

// The moving average of the weights, or where none is kept the weights.
static int export_model(run *r) {
    int64_t parts;
    const ts_state_part *state = ts_optimizer_parts(r->trainer->optimizer, &parts);
    ts_weights_part *part = ts_malloc((size_t)(parts + 1) * sizeof *part);
    int status = ts_agree(r->world, part ? r->trainer->kernels->device->finish() : TS_ERESOURCE);
    for (int64_t i = 0; !status && i < parts; i++) {
        const float *data = state[i].average ? state[i].average : state[i].weight;
        part[i] = (ts_weights_part){state[i].param, state[i].first, state[i].count, data};
    }
    status = status ? status : ts_model_save_parts(r->trainer->model, part, parts, r->model, r->world);
    free(part);
    return status;
}

// A save is over: from now on its checkpoint counts. What it cost is that of the slowest rank.
static int acknowledge(run *r, int64_t step) {
    ts_saving cost = {.bytes = r->save.bytes, .seconds = ts_clock_seconds() - r->save.began, .stall = r->save.stall};
    r->saved_step = step;
    TS_TRY(ts_all_reduce(r->world, &cost.stall, 1, TS_F64, TS_MAX));
    cost.stall_share = r->step_seconds > 0 ? cost.stall / r->step_seconds : 0;
    ts_report_clear_line(r->report);
    TS_INFO("checkpoint after step %" PRId64 ": %.1f MB in %.2f s, training waited %.4f s (%.1f%% of a step)", step,
            1e-6 * (double)cost.bytes, cost.seconds, cost.stall, 100.0 * cost.stall_share);
    return ts_agree(r->world, ts_report_checkpoint(r->report, step, &cost));
}

// Moves the save under way on, or waits for its end.
static int pursue_save(run *r, bool wait) {
    ts_trainer *t = r->trainer;
    if (!t->saving) {
        return TS_OK;
    }
    const double before = ts_clock_seconds();
    const int64_t step = ts_checkpoint_save_step(t->saving);
    bool done = wait;
    ts_watch_note("waiting for the checkpoint");
    TS_TRY(wait ? ts_checkpoint_save_finish(&t->saving) : ts_checkpoint_save_advance(&t->saving, &done));
    ts_watch_note(NULL);
    r->save.stall += ts_clock_seconds() - before;
    return done ? acknowledge(r, step) : TS_OK;
}

// Begins to save what is not saved yet; the next steps run meanwhile.
static int checkpoint(run *r) {
    ts_trainer *t = r->trainer;
    if (r->saved_step == t->step || (t->saving && ts_checkpoint_save_step(t->saving) == t->step)) {
        return TS_OK;
    }
    if (t->saving) {
        ts_report_clear_line(r->report);
        TS_INFO("step %" PRId64 ": waiting for the checkpoint of step %" PRId64 ", which is still being written",
                t->step, ts_checkpoint_save_step(t->saving));
        TS_TRY(pursue_save(r, true));
    }
    r->save.began = ts_clock_seconds();
    ts_watch_note("beginning a checkpoint");
    TS_TRY(ts_state_save_start(&t->saving, t, r->checkpoints, r->config_json));
    ts_watch_note(NULL);
    r->save.bytes = ts_checkpoint_save_bytes(t->saving);
    r->save.stall = ts_clock_seconds() - r->save.began;
    return r->config->checkpoint.export_model ? export_model(r) : TS_OK;
}

static int checkpoint_and_wait(run *r) {
    TS_TRY(checkpoint(r));
    return pursue_save(r, true);
}

static bool due(int64_t step, int64_t every) {
    return every > 0 && step % every == 0;
}

// Validation and samples before the checkpoint: a run that is resumed does not owe them.
static int after_step(run *r, bool last) {
    const ts_train_config *c = r->config;
    const int64_t step = r->trainer->step;
    if (due(step, c->validate.every) || last) {
        TS_TRY(validate(r, last));
    }
    if (due(step, c->sample.every) || (last && c->sample.every > 0)) {
        TS_TRY(ts_preview(r->trainer, c->out, r->report));
    }
    if (last) {
        return checkpoint_and_wait(r);
    }
    return due(step, c->checkpoint.every) ? checkpoint(r) : TS_OK;
}

static bool time_is_up(const run *r) {
    const double limit = 60.0 * r->config->train.minutes;
    return limit > 0 && r->trainer->seconds >= limit;
}

static ts_stop wish(const run *r) {
    return ts_signal_pending() ? TS_STOP_SIGNAL : time_is_up(r) ? TS_STOP_TIME : TS_STOP_NONE;
}

static int not_finite(run *r, const ts_step_result *result) {
    const ts_trainer *t = r->trainer;
    TS_TRY(pursue_save(r, true));  // what it has read is good
    return TS_FAIL(TS_EUSAGE,
                   "step %" PRId64 ": loss %g, gradient norm %g; nothing was updated; lower train.lr or train.clip and "
                   "start anew or from an earlier checkpoint",
                   t->step + 1, result->loss, result->grad_norm);
}

// One step with its time; a rank that fails alone ends the job, since the others wait for it inside a collective.
static int timed_step(run *r, ts_step_result *result) {
    ts_trainer *t = r->trainer;
    const double start = ts_clock_seconds();
    ts_watch_step(t->step + 1);
    int status = ts_trainer_step(t, wish(r), result);
    const double seconds = ts_clock_seconds() - start;
    t->seconds += seconds;
    r->step_seconds = seconds - result->stall;
    r->save.stall += result->stall;
    if (!status && !result->finite) {
        return not_finite(r, result);  // alike on all ranks
    }
    if (!status) {
        status = ts_report_step(r->report, t->step, result, seconds, ts_loader_wait_seconds(t->loader));
    }
    if (status && ts_comm_size(r->world) > 1) {
        ts_comm_abort(r->world, status);
    }
    return status;
}

// The model in the folder may be that of an earlier checkpoint, when a kill came between the last one and its export.
static int trained_already(run *r) {
    const bool by_clock = r->trainer->step < r->config->train.steps;
    const bool open_end = r->config->train.schedule == TS_DECAY_CONSTANT;
    TS_TRY(export_model(r));
    TS_INFO("%s: trained already, the model is in %s; %s", r->config->out, r->model,
            by_clock   ? "raise train.minutes to go on"
            : open_end ? "raise train.steps to go on"
                       : "its learning rate has come down, so more steps are another run: give it another name");
    return TS_OK;
}

static int train(run *r) {
    const int64_t steps = r->config->train.steps;
    bool done = r->trainer->step >= steps || time_is_up(r);  // as restored: alike on all ranks
    if (done && ts_path_is_folder(r->model)) {
        return trained_already(r);
    }
    while (!done) {
        ts_step_result result;
        TS_TRY(timed_step(r, &result));
        TS_TRY(result.saving_idle ? pursue_save(r, false) : TS_OK);
        if (result.stop == TS_STOP_SIGNAL) {
            TS_TRY(checkpoint_and_wait(r));
            TS_INFO("stopped by a signal after step %" PRId64 ", checkpoint written; run the same command to go on",
                    r->trainer->step);
            return TS_FAIL(TS_ESTOPPED, "stopped by a signal after step %" PRId64, r->trainer->step);
        }
        done = r->trainer->step == steps || result.stop == TS_STOP_TIME;
        if (!done) {
            TS_TRY(after_step(r, false));
        }
    }
    TS_TRY(after_step(r, true));
    TS_TRY(export_model(r));
    ts_report_clear_line(r->report);
    TS_TRY(ts_memory_report(r->world, &r->trainer->memory, r->trainer->kernels, &r->trainer->limit));
    TS_INFO("trained %" PRId64 " steps; the model is in %s", r->trainer->step, r->model);
    return TS_OK;
}

// What this start of the run sent, its last checkpoint and model included. Collective.
static int report_traffic(const run *r) {
    ts_traffic traffic;
    TS_TRY(ts_mesh_traffic(&r->trainer->mesh, &traffic));
    if (ts_comm_rank(r->world) == 0) {
        ts_traffic_print(&traffic, stdout);
    }
    return TS_OK;
}

int ts_train_run(const ts_train_config *config, ts_arena *arena, ts_comm *world) {
    run r = {.config = config,
             .world = world,
             .config_json = ts_options_to_json(ts_train_options, config, arena),
             .lock = -1};
    int status = ts_agree(world, r.config_json ? ts_signal_catch() : TS_ERESOURCE);
    TS_TRY_GOTO(status, status, done);
    TS_TRY_GOTO(
        status,
        ts_watch_open(world, &(ts_watch_params){.timeout = config->watch.timeout, .network = config->watch.network}),
        done);
    TS_TRY_GOTO(status, open_run(&r), done);
    TS_TRY_GOTO(status, train(&r), done);
    status = config->report == TS_RUN_REPORT_COMM ? report_traffic(&r) : TS_OK;
done:
    ts_report_close(&r.report);
    ts_trainer_close(&r.trainer);
    ts_log_set_file(NULL);
    if (r.lock >= 0) {
        close(r.lock);
    }
    return status;
}
