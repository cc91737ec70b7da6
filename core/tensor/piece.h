// SPDX-License-Identifier: Apache-2.0
// Where numbers that lie one after another in memory belong in a whole tensor: `runs` runs of `length` elements, the
// first at element `first`, `stride` elements apart. A rank's part of a parameter, or of its optimizer state, is a few
// of them, whichever way the tensor is cut.
#ifndef TS_TENSOR_PIECE_H
#define TS_TENSOR_PIECE_H

#include <stdint.h>

typedef struct ts_piece {
    int64_t first, runs, length, stride;
} ts_piece;

// A stretch of a cut tensor: a run that it begins inside of, whole runs, and one that it ends inside of.
enum { TS_MAX_PIECES = 3 };

#endif
