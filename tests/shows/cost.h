// SPDX-License-Identifier: Apache-2.0
// What a canvas costs beside the plainest loop of sampling there is.
#ifndef TS_TESTS_SHOWS_COST_H
#define TS_TESTS_SHOWS_COST_H

// Makes a video of the model's size in both ways, in turn, `rounds` times, on one thread, and prints the processor's
// seconds of each, the medians, and how much more the canvas takes, in per cent. TS_EINTERNAL when the videos differ.
int shows_cost(const char *model_folder, int rounds);

#endif
