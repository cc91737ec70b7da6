// SPDX-License-Identifier: Apache-2.0
// The program: a table of subcommands.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/status.h"
#include "core/comm/comm.h"
#include "core/doctor/doctor.h"
#include "core/model/parity.h"
#include "data/ingest.h"
#include "data/world.h"
#include "infer/edit/generate.h"
#include "infer/edit/score.h"
#include "infer/edit/verbs.h"
#include "infer/steer/control.h"
#include "infer/steer/state.h"
#include "tests/bench/bench.h"
#include "train/plan.h"
#include "train/train.h"

typedef struct command {
    const char *name, *help;
    int (*run)(ts_comm *world, int argc, char **argv);
} command;

static const command commands[] = {
    {"world", "make a captioned corpus of real video files", ts_command_world},
    {"ingest", "turn a folder of captioned videos into a data set", ts_command_ingest},
    {"train", "train a model on a data set", ts_command_train},
    {"plan", "foretell a training step on every mesh of some devices, and recommend one", ts_command_plan},
    {"generate", "prompts to videos", ts_command_generate},
    {"remix", "change a video and keep its structure", ts_command_remix},
    {"recut", "put ranges of a video in another order and at other speeds", ts_command_recut},
    {"loop", "make a video without an end", ts_command_loop},
    {"blend", "go from one video over to another", ts_command_blend},
    {"extend", "go on with a video, in both directions of time", ts_command_extend},
    {"storyboard", "prompts, pictures and videos at times", ts_command_storyboard},
    {"vary", "versions of one concept over a table of changed words", ts_command_vary},
    {"edit", "make the video that a timeline describes", ts_command_edit},
    {"branch", "go on from a saved state with another prompt", ts_command_branch},
    {"tree", "list saved states and what was changed from one to the next", ts_command_tree},
    {"steer", "tell a video that is being made what to do", ts_command_steer},
    {"score", "measure a finished video", ts_command_score},
    {"check", "compare a model with golden files, checkpoints with their sums", ts_command_check},
    {"doctor", "tell what this machine offers, what stands in the way and what to do", ts_command_doctor},
    {"bench", "measure this machine and what share of it the kernels reach", ts_command_bench},
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static void print_usage(FILE *out) {
    fprintf(out, "Tessera trains and serves video diffusion transformers.\n\n"
                 "usage: tessera COMMAND [options]      alone, or under mpirun -n N\n"
                 "       tessera COMMAND --help\n\n");
    for (int i = 0; i < COMMANDS; i++) {
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    }
    fprintf(out, "\nTESSERA_LOG in the environment: error, warn, info, debug or trace.\n"
                 "TESSERA_TRANSPORT, how ranks of one host talk: auto, mpi or shared (memory).\n"
                 "TESSERA_DEVICE_TRANSPORT, how memory of GPUs travels: auto, nccl or staged (through the host).\n"
                 "TESSERA_NCCL_SUMS, who adds up over NCCL: auto, ordered (as everywhere else) or nccl.\n"
                 "TESSERA_NCCL_REGISTER=1: memory is registered with NCCL.\n"
                 "Exit codes: 0 done, 2 wrong use, 3 bad input, 4 resource exhausted, 5 peer or device failed,\n"
                 "            6 internal error, 75 stopped by a signal or a client: of training, after a\n"
                 "            checkpoint (run again to go on).\n");
}

static const command *find_command(const char *name) {
    for (int i = 0; i < COMMANDS; i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

static int set_log_level(void) {
    const char *name = getenv("TESSERA_LOG");
    ts_log_level level;
    if (name) {
        TS_TRY(ts_log_parse_level(name, &level));
        ts_log_set_level(level);
    }
    return TS_OK;
}

static int dispatch(ts_comm *world, int argc, char **argv) {
    const bool wants_help = argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0);
    if (argc < 2 || wants_help) {
        if (ts_comm_rank(world) == 0) {
            print_usage(wants_help ? stdout : stderr);
        }
        return wants_help ? TS_OK : TS_FAIL(TS_EUSAGE, "no command given");
    }
    const command *chosen = find_command(argv[1]);
    if (!chosen) {
        return TS_FAIL(TS_EUSAGE, "\"%s\" is not a command; see tessera --help", argv[1]);
    }
    return chosen->run(world, argc - 1, argv + 1);
}

int main(int argc, char **argv) {
    ts_comm *world = NULL;
    signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is then an error of write(), with a message and a code
    int status = ts_world_open(&world, &argc, &argv);
    if (status) {
        TS_ERROR("%s", ts_error_text());
        return ts_exit_code(status);
    }
    status = set_log_level();
    status = status ? status : dispatch(world, argc, argv);
    ts_world_close(&world, status);  // prints the error, once for all ranks
    return ts_exit_code(status);
}
