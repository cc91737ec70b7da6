// SPDX-License-Identifier: Apache-2.0
// Sharded attention: the exchange of tokens for heads, and the choice of scheme. The ring is in sequence_ring.c.
#include "core/nn/sequence.h"

#include "core/nn/sequence_private.h"

// ---- the exchange

// An all-to-all over the ulysses group between two ways of dealing out `pieces` matrices (q, k and v, or the output):
//   by tokens   each [B, n, all heads * head_dim], n the tokens of this rank
//   by heads    one [B, L_r, pieces, own heads * head_dim], L_r the tokens of the group
// The message between the tokens of one rank and the heads of another is [B, n, pieces, heads * head_dim]: of one
// sample, the messages to the owner of the heads are its matrix, in order, and need no copy there.
//
// What a rank has for itself is copied straight between the two, and the message to itself is empty, unless the
// messages are the matrix and its place is in their middle.
typedef struct exchange {
    const sequence_place *place;
    ts_dtype dtype;
    int pieces;
    bool direct;         // the message to itself is empty
    int64_t *to_heads;   // [U] elements sent between this rank's tokens and the heads of each rank
    int64_t *to_tokens;  // [U] between each rank's tokens and the heads of this rank
} exchange;

enum { MAX_PIECES = 3 };

typedef struct matrix {
    void *data;
    int64_t row;  // elements between rows
} matrix;

static int exchange_open(ts_tape *tape, const sequence_place *place, int pieces, exchange *out) {
    const int ranks = ts_comm_size(place->ulysses), own = ts_comm_rank(place->ulysses);
    const ts_attention_heads heads = place->all;
    *out = (exchange){.place = place, .dtype = ts_tape_operand_dtype(tape), .pieces = pieces};
    out->direct = heads.batch > 1 || own == 0 || own == ranks - 1;
    out->to_heads = ts_tape_object(tape, 2 * (size_t)ranks * sizeof *out->to_heads);
    if (!out->to_heads) {
        return ts_tape_status(tape);
    }
    out->to_tokens = out->to_heads + ranks;
    for (int rank = 0; rank < ranks; rank++) {
        const int64_t unit = rank == own && out->direct ? 0 : heads.batch * pieces * heads.head_dim;
        out->to_heads[rank] = unit * sequence_part(place, own).count * ts_split(heads.heads, ranks, rank).count;
        out->to_tokens[rank] = unit * sequence_part(place, rank).count * place->own.heads;
    }
    return 0;
}

static size_t message_bytes(const exchange *x, const int64_t *counts) {
    int64_t sum = 0;
    for (int rank = 0; rank < ts_comm_size(x->place->ulysses); rank++) {
        sum += counts[rank];
    }
    return (size_t)sum * ts_dtype_bytes(x->dtype);
}

static int copy_rows(ts_tape *tape, matrix from, matrix to, int64_t rows, int64_t width, ts_dtype dtype) {
    const int64_t element = (int64_t)ts_dtype_bytes(dtype);
    return TS_KERNEL(tape, copy_rows, from.data, from.row * element, to.data, to.row * element, rows, width * element);
}

static matrix matrix_at(matrix m, int64_t elements, ts_dtype dtype) {
    return (matrix){(char *)m.data + elements * (int64_t)ts_dtype_bytes(dtype), m.row};
}

// The columns that `heads` occupy in every piece, to or from their places in rows of the layout by heads.
static int copy_pieces(ts_tape *tape, const exchange *x, const matrix *piece, int64_t first_row, ts_part heads,
                       matrix message, int64_t rows, bool pack) {
    const int64_t d = x->place->all.head_dim, width = heads.count * d;
    for (int i = 0; i < x->pieces; i++) {
        const matrix columns = matrix_at(piece[i], first_row * piece[i].row + heads.first * d, x->dtype);
        const matrix at = matrix_at(message, i * width, x->dtype);
        TS_TRY(copy_rows(tape, pack ? columns : at, pack ? at : columns, rows, width, x->dtype));
    }
    return 0;
}

// Packs this rank's tokens into messages to each rank's heads, or unpacks them from those; what is its own moves
// between the tokens and the matrix `all` by heads.
static int copy_by_tokens(ts_tape *tape, const exchange *x, const matrix *piece, void *messages, void *all, bool pack) {
    const sequence_place *place = x->place;
    const int ranks = ts_comm_size(place->ulysses), own = ts_comm_rank(place->ulysses);
    const int64_t batch = place->all.batch;
    const ts_part group = sequence_group(place, ts_comm_rank(place->ring)), part = sequence_part(place, own);
    int64_t at = 0;
    for (int rank = 0; rank < ranks; at += x->to_heads[rank++]) {
        const ts_part heads = ts_split(place->all.heads, ranks, rank);
        const int64_t row = x->pieces * heads.count * place->all.head_dim;
        if (rank != own || !x->direct) {
            const matrix message = matrix_at((matrix){messages, row}, at, x->dtype);
            TS_TRY(copy_pieces(tape, x, piece, 0, heads, message, batch * part.count, pack));
            continue;
        }
        for (int64_t b = 0; b < batch; b++) {
            const int64_t first = b * group.count + part.first - group.first;
            const matrix place_in_all = matrix_at((matrix){all, row}, first * row, x->dtype);
            TS_TRY(copy_pieces(tape, x, piece, b * part.count, heads, place_in_all, part.count, pack));
        }
    }
    return 0;
}

// The same on the side of the heads, for several samples: in a message a sample's tokens of one rank, in the matrix
// those of all ranks follow one another.
static int copy_by_heads(ts_tape *tape, const exchange *x, void *all, void *messages, bool pack) {
    const sequence_place *place = x->place;
    const ts_part group = sequence_group(place, ts_comm_rank(place->ring));
    const int64_t width = x->pieces * place->own.heads * place->own.head_dim;
    int64_t at = 0;
    for (int rank = 0; rank < ts_comm_size(place->ulysses); at += x->to_tokens[rank++]) {
        const ts_part part = sequence_part(place, rank);
        const int64_t run = rank == ts_comm_rank(place->ulysses) ? 0 : part.count * width;
        const matrix message = matrix_at((matrix){messages, run}, at, x->dtype);
        const matrix sample =
            matrix_at((matrix){all, group.count * width}, (part.first - group.first) * width, x->dtype);
        TS_TRY(copy_rows(tape, pack ? sample : message, pack ? message : sample, place->own.batch, run, x->dtype));
    }
    return 0;
}

// The messages on the side of the heads: of one sample, the matrix itself, without the first rank's own part; else a
// buffer from the pool.
static void *head_messages(ts_tape *tape, const exchange *x, void *all) {
    if (x->place->own.batch > 1) {
        return ts_pool_take(tape, message_bytes(x, x->to_tokens));
    }
    const int64_t own = sequence_part(x->place, 0).count * x->pieces * x->place->own.heads * x->place->own.head_dim;
    return matrix_at((matrix){all, 0}, ts_comm_rank(x->place->ulysses) == 0 ? own : 0, x->dtype).data;
}

static void head_messages_give(ts_tape *tape, const exchange *x, void *messages) {
    if (x->place->own.batch > 1) {
        ts_pool_give(tape, messages, message_bytes(x, x->to_tokens));
    }
}

static int tokens_to_heads(ts_tape *tape, const exchange *x, const matrix *piece, void *all) {
    const size_t bytes = message_bytes(x, x->to_heads);
    void *out = ts_pool_take(tape, bytes), *in = head_messages(tape, x, all);
    if (!out || !in) {
        return TS_ERESOURCE;
    }
    TS_TRY(copy_by_tokens(tape, x, piece, out, all, true));
    TS_TRY(ts_tape_all_to_all(tape, x->place->ulysses, out, x->to_heads, in, x->to_tokens, x->dtype));
    if (x->place->own.batch > 1) {
        TS_TRY(copy_by_heads(tape, x, all, in, false));
    }
    ts_pool_give(tape, out, bytes);
    head_messages_give(tape, x, in);
    return 0;
}

static int heads_to_tokens(ts_tape *tape, const exchange *x, void *all, const matrix *piece) {
    const size_t bytes = message_bytes(x, x->to_heads);
    void *out = head_messages(tape, x, all), *in = ts_pool_take(tape, bytes);
    if (!out || !in) {
        return TS_ERESOURCE;
    }
    if (x->place->own.batch > 1) {
        TS_TRY(copy_by_heads(tape, x, all, out, true));
    }
    TS_TRY(ts_tape_all_to_all(tape, x->place->ulysses, out, x->to_tokens, in, x->to_heads, x->dtype));
    TS_TRY(copy_by_tokens(tape, x, piece, in, all, false));
    head_messages_give(tape, x, out);
    ts_pool_give(tape, in, bytes);
    return 0;
}

// ---- as calls on the tape

typedef struct exchange_call {
    exchange x;
    ts_columns by_tokens[MAX_PIECES];
    ts_var *by_heads;
} exchange_call;

static matrix columns_matrix(ts_columns x) {
    const matrix all = {x.var->value.data, ts_var_width(x.var)};
    return matrix_at(all, x.first, x.var->value.dtype);
}

static int gather_heads_backward(ts_tape *tape, void *call) {
    const exchange_call *c = call;
    ts_grad_slot slot[MAX_PIECES];
    matrix piece[MAX_PIECES];
    TS_TRY(ts_grad_convert(tape, c->by_heads, c->x.dtype));
    for (int i = 0; i < c->x.pieces; i++) {
        TS_TRY(ts_grad_begin(tape, c->by_tokens[i], c->x.dtype, false, &slot[i]));
        piece[i] = (matrix){slot[i].data, ts_var_width(c->by_tokens[i].var)};
    }
    TS_TRY(heads_to_tokens(tape, &c->x, c->by_heads->grad, piece));
    for (int i = 0; i < c->x.pieces; i++) {
        TS_TRY(ts_grad_end(tape, c->by_tokens[i], &slot[i]));
    }
    return 0;
}

// [B, L_r, 3 * own heads * head_dim] from q, k and v by tokens.
static ts_var *gather_heads(ts_tape *tape, const sequence_place *place, const ts_columns qkv[MAX_PIECES]) {
    exchange x;
    if (exchange_open(tape, place, MAX_PIECES, &x)) {
        return NULL;
    }
    const ts_attention_heads own = place->own;
    const int64_t tokens = sequence_group(place, ts_comm_rank(place->ring)).count;
    const bool needs_grad = qkv[0].var->needs_grad || qkv[1].var->needs_grad || qkv[2].var->needs_grad;
    ts_var *all =
        ts_tape_new(tape, x.dtype, TS_SHAPE(own.batch, tokens, MAX_PIECES * own.heads * own.head_dim), needs_grad);
    if (!all) {
        return NULL;
    }
    matrix piece[MAX_PIECES];
    for (int i = 0; i < MAX_PIECES; i++) {
        piece[i] = columns_matrix(qkv[i]);
    }
    ts_tape_try(tape, tokens_to_heads(tape, &x, piece, all->value.data));
    exchange_call *c = ts_tape_note(tape, all, gather_heads_backward, sizeof *c);
    if (c) {
        *c = (exchange_call){.x = x, .by_heads = all};
        for (int i = 0; i < MAX_PIECES; i++) {
            c->by_tokens[i] = qkv[i];
            ts_columns_consume(qkv[i]);
        }
    }
    return ts_tape_status(tape) ? NULL : all;
}

static int gather_tokens_backward(ts_tape *tape, void *call) {
    const exchange_call *c = call;
    const ts_columns out = c->by_tokens[0];
    ts_grad_slot slot;
    TS_TRY(ts_grad_convert(tape, out.var, c->x.dtype));
    TS_TRY(ts_grad_begin(tape, ts_whole(c->by_heads), c->x.dtype, false, &slot));
    const matrix piece = {out.var->grad, ts_var_width(out.var)};
    TS_TRY(tokens_to_heads(tape, &c->x, &piece, slot.data));
    return ts_grad_end(tape, ts_whole(c->by_heads), &slot);
}

// The output by tokens, in `shape`, from [B, L_r, own heads * head_dim].
static ts_var *gather_tokens(ts_tape *tape, const sequence_place *place, ts_var *all, ts_shape shape) {
    exchange x;
    if (ts_tape_status(tape) || exchange_open(tape, place, 1, &x)) {
        return NULL;
    }
    ts_var *out = ts_tape_new(tape, x.dtype, shape, all->needs_grad);
    if (!out) {
        return NULL;
    }
    const matrix piece = columns_matrix(ts_whole(out));
    ts_tape_try(tape, heads_to_tokens(tape, &x, all->value.data, &piece));
    exchange_call *c = ts_tape_note(tape, out, gather_tokens_backward, sizeof *c);
    if (c) {
        *c = (exchange_call){.x = x, .by_tokens = {ts_whole(out)}, .by_heads = all};
        ts_var_consume(all);
    }
    return ts_tape_status(tape) ? NULL : out;
}

// ---- the layer

static sequence_place *place_on(ts_tape *tape, const ts_mesh *mesh, ts_attention_heads heads, int64_t tokens) {
    sequence_place *place = ts_tape_object(tape, sizeof *place);
    if (place) {
        *place = (sequence_place){.ulysses = ts_mesh_axis(mesh, TS_AXIS_ULYSSES),
                                  .ring = ts_mesh_axis(mesh, TS_AXIS_RING),
                                  .reproducible = mesh && mesh->reproducible,
                                  .tokens = tokens,
                                  .all = heads,
                                  .own = heads};
        place->own.heads = ts_split(heads.heads, ts_comm_size(place->ulysses), ts_comm_rank(place->ulysses)).count;
    }
    return place;
}

static ts_var *attend(ts_tape *tape, const sequence_place *place, ts_columns q, ts_columns k, ts_columns v) {
    return ts_comm_size(place->ring) > 1 ? sequence_ring_attention(tape, place, q, k, v)
                                         : ts_nn_attention(tape, place->own, q, k, v, NULL, NULL);
}

ts_var *ts_nn_sequence_attention(ts_tape *tape, const ts_mesh *mesh, ts_attention_heads heads, int64_t tokens,
                                 ts_columns q, ts_columns k, ts_columns v) {
    const sequence_place *place = ts_tape_status(tape) ? NULL : place_on(tape, mesh, heads, tokens);
    if (!place) {
        return NULL;
    }
    const int64_t rows = heads.batch * sequence_part(place, ts_comm_rank(place->ulysses)).count;
    TS_ASSERT(ts_var_rows(q.var) == rows && ts_var_rows(k.var) == rows && ts_var_rows(v.var) == rows);
    if (ts_comm_size(place->ulysses) == 1) {
        return attend(tape, place, q, k, v);
    }
    ts_var *all = gather_heads(tape, place, (ts_columns[]){q, k, v});
    if (!all) {
        return NULL;
    }
    const int64_t width = place->own.heads * place->own.head_dim;
    ts_var *out = attend(tape, place, (ts_columns){all, 0, width}, (ts_columns){all, width, width},
                         (ts_columns){all, 2 * width, width});
    return gather_tokens(tape, place, out, ts_var_shape_with_width(q.var, heads.heads * heads.head_dim));
}
