// SPDX-License-Identifier: Apache-2.0
#include "core/config/command.h"

#include "core/base/log.h"
#include "core/base/status.h"

int ts_command_read(const ts_command *command, void *target, ts_arena *arena, int argc, char **argv, bool *help) {
    const char *file[1] = {NULL};
    int files = command->takes_file;
    TS_TRY(ts_options_default(command->table, target, arena));
    TS_TRY(ts_options_read_args(command->table, target, arena, argc, argv, file, &files, help));
    if (*help) {
        if (ts_log_rank() == 0) {
            printf("%s\n\n", command->usage);
            ts_options_print_help(command->table, stdout);
        }
        return TS_OK;
    }
    if (command->takes_file) {
        if (files == 0) {
            return TS_FAIL(TS_EUSAGE, "%s: no configuration file is given; write tessera %s CONFIG.yaml", argv[0],
                           argv[0]);
        }
        TS_TRY(ts_options_read_yaml(command->table, target, arena, file[0]));
        files = 1;
        TS_TRY(ts_options_read_args(command->table, target, arena, argc, argv, file, &files, help));
    }
    return ts_options_check(command->table, target);
}
