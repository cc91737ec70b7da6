// SPDX-License-Identifier: Apache-2.0
// The ways of editing, each a few lines that fill a timeline: what is held, what is remixed, what is free, and what
// each stretch shows. All print it with --print-timeline; `tessera edit` makes the same video of what was printed.
#ifndef TS_INFER_VERBS_H
#define TS_INFER_VERBS_H

#include "core/comm/comm.h"

// The subcommands. Collective over `world`; argv[0] is the name.
int ts_command_edit(ts_comm *world, int argc, char **argv);        // TIMELINE.yaml
int ts_command_remix(ts_comm *world, int argc, char **argv);       // VIDEO: its structure, other content
int ts_command_recut(ts_comm *world, int argc, char **argv);       // VIDEO: ranges reordered and retimed
int ts_command_loop(ts_comm *world, int argc, char **argv);        // VIDEO, or a prompt: circular time
int ts_command_blend(ts_comm *world, int argc, char **argv);       // A B: from one to the other
int ts_command_extend(ts_comm *world, int argc, char **argv);      // VIDEO: before and after
int ts_command_storyboard(ts_comm *world, int argc, char **argv);  // CARDS.yaml: prompts and pictures at times
int ts_command_vary(ts_comm *world, int argc, char **argv);        // one concept over a table of changed words

#endif
