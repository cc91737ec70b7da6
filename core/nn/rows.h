// SPDX-License-Identifier: Apache-2.0
// Rows of activations, dealt out over the mesh.
//
// Each sample's L tokens are split over the sequence group; the B L_s rows that a sequence rank then has (a sample
// after another) are split once more over the tensor axis. A rank's part of those are its own rows: norms, residuals,
// embedding and head see nothing else. A pair of linear layers that is cut over the tensor axis takes all B L_s rows
// in and gives sums of own rows out:
//
//   own rows -> gather_rows -> columns of a layer -> .. -> rows of a layer -> sums of own rows (ts_nn_linear_scatter)
//
// Bytes a rank sends, with n tensor ranks, N = B L_s rows of which N_t are its own, width d, e bytes an element:
//   gather_rows             forward  (n - 1) N_t d e   all-gather       backward (N - N_t) d e   reduce-scatter
//   ts_nn_linear_scatter    forward  (N - N_t) d e     reduce-scatter   backward (n - 1) N_t d e all-gather
// With even parts each is (n - 1) / n N d e.
#ifndef TS_NN_ROWS_H
#define TS_NN_ROWS_H

#include "core/base/split.h"
#include "core/comm/mesh.h"
#include "core/nn/layer.h"

// `total` rows, consecutive parts of which (ts_split) belong to the ranks of `comm`. Of a lone rank nothing is copied.
typedef struct ts_rows {
    ts_comm *comm;
    int64_t total;
    bool reproducible;  // forward sums have the order of one rank (ts_mesh.reproducible)
} ts_rows;

static inline ts_part ts_rows_own(ts_rows rows) {
    return ts_split(rows.total, ts_comm_size(rows.comm), ts_comm_rank(rows.comm));
}

// Own rows [own, D] of all ranks -> [total, D]. The gradient is summed over the ranks, in x's dtype. Collective over
// rows.comm, forward and backward.
ts_var *ts_nn_gather_rows(ts_tape *tape, ts_var *x, ts_rows rows);
// The two messages, between memory of `width` columns: all = own rows of all ranks; own = sum of the ranks' `all`.
int ts_rows_gather(ts_tape *tape, ts_rows rows, const void *own, void *all, int64_t width, ts_dtype dtype);
int ts_rows_sum(ts_tape *tape, ts_rows rows, const void *all, void *own, int64_t width, ts_dtype dtype);

// All columns of own rows, out [own, width], of own columns of all rows, x [total, own columns] in rows of x_row
// elements: an all-to-all. The columns belong to the ranks as `cut`, a parameter, is cut. What a reproducible sum is
// taken of: (N - N_t) times own columns are sent.
int ts_rows_exchange(ts_tape *tape, ts_rows rows, const ts_param *cut, const void *x, int64_t x_row, void *out,
                     ts_dtype dtype);

// ---- tokens of a batch

typedef struct ts_tokens {
    int64_t batch, tokens;  // B, and L of each whole sample
    ts_part part;           // the tokens of every sample that this sequence rank has, L_s
    ts_part rows;           // this rank's own rows among [B * L_s]
} ts_tokens;

ts_tokens ts_tokens_of(const ts_mesh *mesh, int64_t batch, int64_t tokens);
// Own row r as a row of [B * L].
static inline int64_t ts_tokens_place(const ts_tokens *t, int64_t r) {
    const int64_t row = t->rows.first + r;
    return row / t->part.count * t->tokens + t->part.first + row % t->part.count;
}
// What holds for whole samples or for steps of them (latent frames, say), [B, per_sample] with L a multiple of
// per_sample, as numbers for own rows: out [rows]. Host memory.
void ts_tokens_spread(const ts_tokens *t, const float *values, int64_t per_sample, float *out);

// Own rows, out [rows] of `row_bytes`, of x [B * L]: device memory.
int ts_rows_take(ts_tape *tape, const ts_tokens *t, const void *x, void *out, size_t row_bytes);
// Own rows [rows, D] of what every rank of the model group holds whole, x [B, L, D]. The gradient of x is partial: own
// rows, and zero elsewhere.
ts_var *ts_nn_take_tokens(ts_tape *tape, ts_var *x, const ts_mesh *mesh, const ts_tokens *t);
// [B, L, D] on every rank of the model group, of own rows x [rows, D]; all-gather, each rank sends (ranks - 1) of its
// part. The gradient must be alike on all ranks: each takes its own rows of it, without a message. Collective over the
// model group, forward only.
ts_var *ts_nn_collect_tokens(ts_tape *tape, ts_var *x, const ts_mesh *mesh, const ts_tokens *t);

#endif
