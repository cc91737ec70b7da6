// SPDX-License-Identifier: Apache-2.0
// `tessera generate`: prompts in, MP4 files out.
#ifndef TS_INFER_GENERATE_H
#define TS_INFER_GENERATE_H

#include "core/comm/comm.h"

// The subcommand. Collective over `world`; argv[0] is its name.
int ts_command_generate(ts_comm *world, int argc, char **argv);

#endif
