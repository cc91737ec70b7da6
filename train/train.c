// SPDX-License-Identifier: Apache-2.0
#include "train/train.h"

#include "core/base/status.h"
#include "core/comm/threads.h"
#include "core/config/command.h"
#include "train/loop.h"

static const ts_command train_command = {
    .usage = "tessera train CONFIG.yaml [--key=value ...]\n"
             "Trains a model on a data set. Stop it with SIGTERM; the same command goes on.",
    .table = ts_train_options,
    .takes_file = true,
};

static int read_config(ts_train_config *config, ts_arena *arena, int argc, char **argv, bool *help) {
    TS_TRY(ts_command_read(&train_command, config, arena, argc, argv, help));
    return *help ? TS_OK : ts_train_config_finish(config, arena);
}

int ts_command_train(ts_comm *world, int argc, char **argv) {
    ts_arena *arena = NULL;
    ts_train_config config = {0};
    bool help = false;
    TS_TRY(ts_agree(world, ts_arena_open(&arena, "configuration", 1 << 16, false)));
    int status = ts_agree(world, read_config(&config, arena, argc, argv, &help));
    if (!status && !help) {
        status = ts_threads_set(world, config.threads);
        status = status ? status : ts_train_run(&config, arena, world);
    }
    ts_arena_close(&arena);
    return status;
}
