// SPDX-License-Identifier: Apache-2.0
#include "core/config/command.h"

#include "core/base/log.h"
#include "core/base/status.h"
#include "core/config/value.h"

enum { MAX_ARGUMENTS = 8 };

// What stands on the command line without a name, into the options that it is for.
static int set_arguments(const ts_command *command, void *target, ts_arena *arena, const char *const *value,
                         int count) {
    for (int i = 0; i < count; i++) {
        const ts_option *option = ts_option_find(command->table, command->arguments[i]);
        TS_ASSERT(option && option->type == TS_OPTION_STRING);
        TS_TRY(ts_option_set(option, target, arena, value[i], "command line"));
    }
    return TS_OK;
}

static int count_arguments(const ts_command *command) {
    int count = 0;
    while (command->arguments && command->arguments[count]) {
        count++;
    }
    TS_ASSERT(count <= MAX_ARGUMENTS && !(count && command->takes_file));
    return count + command->takes_file;
}

int ts_command_read(const ts_command *command, void *target, ts_arena *arena, int argc, char **argv, bool *help) {
    const char *plain[MAX_ARGUMENTS] = {NULL};
    int count = count_arguments(command);
    TS_TRY(ts_options_default(command->table, target, arena));
    TS_TRY(ts_options_read_args(command->table, target, arena, argc, argv, plain, &count, help));
    if (*help) {
        if (ts_log_rank() == 0) {
            printf("%s\n\n", command->usage);
            ts_options_print_help(command->table, stdout);
            if (command->keys) {
                printf("\nThe file's keys:\n");
                ts_options_print_keys(command->keys, stdout);
            }
        }
        return TS_OK;
    }
    if (command->takes_file) {
        if (count == 0) {
            return TS_FAIL(TS_EUSAGE, "%s: no configuration file is given; write tessera %s CONFIG.yaml", argv[0],
                           argv[0]);
        }
        TS_TRY(ts_options_read_yaml(command->table, target, arena, plain[0]));
        TS_TRY(ts_options_read_args(command->table, target, arena, argc, argv, plain, &count, help));
    } else {
        TS_TRY(set_arguments(command, target, arena, plain, count));
    }
    return ts_options_check(command->table, target);
}
