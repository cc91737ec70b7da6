// SPDX-License-Identifier: Apache-2.0
// The command line of a subcommand, read in the same way for all of them.
#ifndef TS_CONFIG_COMMAND_H
#define TS_CONFIG_COMMAND_H

#include "core/config/option.h"

typedef struct ts_command {
    const char *usage;  // how it is called and what it does: stands above the options in --help
    const ts_option *table;
    bool takes_file;  // one argument names a YAML file that holds the same options
    // Or NULL-terminated names of options, of text, that arguments without a name fill, in this order.
    const char *const *arguments;
    const ts_option
        *keys;  // of the file that an argument names, where it holds others: --help tells them, too; or NULL
} ts_command;

// Fills `target` with the defaults, then from the file, then from the arguments, which have the last word wherever they
// stand; then checks that nothing required is missing. argv[0] is the subcommand's name. With --help, rank 0 prints the
// usage and the options, *help is set and there is nothing more to do. Strings are allocated in `arena`.
int ts_command_read(const ts_command *command, void *target, ts_arena *arena, int argc, char **argv, bool *help);

#endif
