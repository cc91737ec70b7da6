// SPDX-License-Identifier: Apache-2.0
// Ring attention: the blocks of keys and values travel round the ring, one hop for each stop, while the queries stay.
//
// At stop t rank r of R holds the block of rank r - t and sends it on while it attends to it. Forward merges the parts
// by their statistics. Backward makes the same tour: with the statistics of the whole softmax, each block's gradients
// are exact by themselves and only add up. Those of the queries stay; those of a block follow it in f32 from its second
// stop on, R - 1 hops, the last of which brings them home, where the part of its first stop waits.
//
// The order in which parts are merged depends on the ring, and so do the last digits. A reproducible forward lets all
// blocks arrive before it attends to them at once, in the order of the tokens: the same messages, the bits of one rank,
// but memory for all keys and values, and no overlap.
#include "core/nn/sequence_private.h"

typedef struct ring_call {
    const sequence_place *place;
    ts_dtype dtype;
    ts_columns q, k, v;
    ts_var *out;  // [B, L_r, width]
    float *lse;   // [B, heads, L_r]
} ring_call;

static int64_t width_of(const ring_call *c) {
    return c->place->own.heads * c->place->own.head_dim;
}

static int64_t own_tokens(const ring_call *c) {
    return sequence_group(c->place, ts_comm_rank(c->place->ring)).count;
}

// Tokens of the block that is here at stop t.
static int64_t block_tokens(const ring_call *c, int stop) {
    const int ranks = ts_comm_size(c->place->ring);
    return sequence_group(c->place, (ts_comm_rank(c->place->ring) - stop + ranks) % ranks).count;
}

// Elements of a block: [B, tokens, k | v, width].
static int64_t block_elements(const ring_call *c, int stop) {
    return c->place->own.batch * block_tokens(c, stop) * 2 * width_of(c);
}

// The first part of a split is never smaller than another.
static size_t largest_block(const ring_call *c, ts_dtype dtype) {
    const int64_t tokens = sequence_group(c->place, 0).count;
    return (size_t)(c->place->own.batch * tokens * 2 * width_of(c)) * ts_dtype_bytes(dtype);
}

static int64_t query_elements(const ring_call *c) {
    return c->place->own.batch * own_tokens(c) * width_of(c);
}

static void *at_element(void *data, int64_t element, ts_dtype dtype) {
    return (char *)data + element * (int64_t)ts_dtype_bytes(dtype);
}

// Copies `width` columns of this rank's rows between matrices with rows of other lengths.
static int copy_columns(ts_tape *tape, const ring_call *c, const void *from, int64_t from_row, void *to,
                        int64_t to_row) {
    const int64_t element = (int64_t)ts_dtype_bytes(c->dtype);
    return TS_KERNEL(tape, copy_rows, from, from_row * element, to, to_row * element,
                     c->place->own.batch * own_tokens(c), width_of(c) * element);
}

static int pack_block(ts_tape *tape, const ring_call *c, void *block) {
    const int64_t width = width_of(c);
    TS_TRY(copy_columns(tape, c, ts_columns_data(c->k), ts_var_width(c->k.var), block, 2 * width));
    return copy_columns(tape, c, ts_columns_data(c->v), ts_var_width(c->v.var), at_element(block, width, c->dtype),
                        2 * width);
}

// Attention of this rank's queries to `keys` tokens [B, keys, k | v, width].
static ts_attention block_attention(const ring_call *c, const void *block, int64_t keys) {
    const ts_attention_heads own = c->place->own;
    const int64_t width = width_of(c), queries = own_tokens(c);
    return (ts_attention){.batch = own.batch,
                          .heads = own.heads,
                          .head_dim = own.head_dim,
                          .queries = queries,
                          .keys = keys,
                          .dtype = c->dtype,
                          .scale = (float)own.scale,
                          .q = ts_columns_data(c->q),
                          .q_row = ts_var_width(c->q.var),
                          .q_batch = queries * ts_var_width(c->q.var),
                          .k = block,
                          .v = (const char *)block + width * (int64_t)ts_dtype_bytes(c->dtype),
                          .k_row = 2 * width,
                          .v_row = 2 * width,
                          .out_row = width,
                          .k_batch = keys * 2 * width,
                          .v_batch = keys * 2 * width,
                          .out_batch = queries * width};
}

// The block at hand goes on, the one of the next stop arrives; nothing at the last stop.
static int start_hop(ts_tape *tape, const ring_call *c, int stop, void *const block[2], ts_request **hop) {
    *hop = NULL;
    if (stop + 1 == ts_comm_size(c->place->ring)) {
        return 0;
    }
    return ts_tape_ring_start(tape, c->place->ring, block[stop % 2], block_elements(c, stop), block[(stop + 1) % 2],
                              block_elements(c, stop + 1), c->dtype, hop);
}

// Waits even after a failure: what travels must not outlive its buffers.
static int finish_hop(ts_request **hop, int status) {
    const int arrived = ts_wait(hop);
    return status ? status : arrived;
}

// ---- forward

typedef struct forward_buffers {
    void *block[2];
    float *out, *part;  // [B, L_r, width]
    float *lse, *part_lse;
} forward_buffers;

static int forward_stop(ts_tape *tape, const ring_call *c, int stop, const forward_buffers *b) {
    const ts_attention_heads own = c->place->own;
    ts_attention args = block_attention(c, b->block[stop % 2], block_tokens(c, stop));
    args.f32_results = true;
    args.out = stop ? b->part : b->out;
    args.lse = stop ? b->part_lse : b->lse;
    TS_TRY(TS_KERNEL(tape, attention_forward, &args));
    if (stop == 0) {
        return 0;
    }
    const ts_attention_merge merge = {own.batch, args.queries, own.heads, own.head_dim,
                                      b->out,    b->lse,       b->part,   b->part_lse};
    return TS_KERNEL(tape, attention_merge, &merge);
}

static int forward_tour(ts_tape *tape, const ring_call *c, const forward_buffers *b) {
    TS_TRY(pack_block(tape, c, b->block[0]));
    for (int stop = 0; stop < ts_comm_size(c->place->ring); stop++) {
        ts_request *hop;
        TS_TRY(start_hop(tape, c, stop, b->block, &hop));
        TS_TRY(finish_hop(&hop, forward_stop(tape, c, stop, b)));
    }
    return 0;
}

// Makes out, and lse unless it is NULL. The sum is f32; a bf16 output is rounded once.
static int ring_forward(ts_tape *tape, const ring_call *c) {
    const int64_t n = query_elements(c);
    const size_t block = largest_block(c, c->dtype), out = (size_t)n * sizeof(float);
    const size_t lse = (size_t)(c->place->own.batch * c->place->own.heads * own_tokens(c)) * sizeof(float);
    forward_buffers b = {.block = {ts_pool_take(tape, block), ts_pool_take(tape, block)},
                         .out = c->dtype == TS_F32 ? c->out->value.data : ts_pool_take(tape, out),
                         .part = ts_pool_take(tape, out),
                         .lse = c->lse ? c->lse : ts_pool_take(tape, lse),
                         .part_lse = ts_pool_take(tape, lse)};
    TS_TRY(ts_tape_status(tape));
    TS_TRY(forward_tour(tape, c, &b));
    if (c->dtype != TS_F32) {
        TS_TRY(TS_KERNEL(tape, cast, b.out, TS_F32, c->out->value.data, c->dtype, n));
        ts_pool_give(tape, b.out, out);
    }
    if (!c->lse) {
        ts_pool_give(tape, b.lse, lse);
    }
    ts_pool_give(tape, b.part_lse, lse);
    ts_pool_give(tape, b.part, out);
    ts_pool_give(tape, b.block[1], block);
    ts_pool_give(tape, b.block[0], block);
    return 0;
}

// ---- reproducible forward

// Element of the block of stop t among the blocks of all ring ranks, one after another in the order of the tokens.
static int64_t block_offset(const ring_call *c, int stop) {
    const int ranks = ts_comm_size(c->place->ring);
    const int owner = (ts_comm_rank(c->place->ring) - stop + ranks) % ranks;
    return c->place->own.batch * sequence_group(c->place, owner).first * 2 * width_of(c);
}

// Blocks [B, tokens of one, k | v, width] of all ring ranks at `blocks`.
static int gather_blocks(ts_tape *tape, const ring_call *c, void *blocks) {
    TS_TRY(pack_block(tape, c, at_element(blocks, block_offset(c, 0), c->dtype)));
    for (int stop = 0; stop + 1 < ts_comm_size(c->place->ring); stop++) {
        ts_request *hop;
        TS_TRY(ts_tape_ring_start(tape, c->place->ring, at_element(blocks, block_offset(c, stop), c->dtype),
                                  block_elements(c, stop), at_element(blocks, block_offset(c, stop + 1), c->dtype),
                                  block_elements(c, stop + 1), c->dtype, &hop));
        TS_TRY(ts_wait(&hop));
    }
    return 0;
}

// all [B, L, k | v, width] from the blocks: a sample's tokens of one block follow those of the block before.
static int join_blocks(ts_tape *tape, const ring_call *c, void *blocks, void *all) {
    const int64_t row = 2 * width_of(c) * (int64_t)ts_dtype_bytes(c->dtype);
    for (int stop = 0; stop < ts_comm_size(c->place->ring); stop++) {
        const int64_t tokens = block_tokens(c, stop), offset = block_offset(c, stop);
        TS_TRY(TS_KERNEL(tape, copy_rows, at_element(blocks, offset, c->dtype), tokens * row,
                         at_element(all, offset / c->place->own.batch, c->dtype), c->place->tokens * row,
                         c->place->own.batch, tokens * row));
    }
    return 0;
}

static int reproducible_forward(ts_tape *tape, const ring_call *c) {
    const bool joined = c->place->own.batch == 1;  // as it is
    const size_t bytes = (size_t)(c->place->own.batch * c->place->tokens * 2 * width_of(c)) * ts_dtype_bytes(c->dtype);
    void *blocks = ts_pool_take(tape, bytes), *all = joined ? blocks : ts_pool_take(tape, bytes);
    TS_TRY(ts_tape_status(tape));
    TS_TRY(gather_blocks(tape, c, blocks));
    if (!joined) {
        TS_TRY(join_blocks(tape, c, blocks, all));
    }
    ts_attention args = block_attention(c, all, c->place->tokens);
    args.out = c->out->value.data;
    args.lse = c->lse;
    TS_TRY(TS_KERNEL(tape, attention_forward, &args));
    if (!joined) {
        ts_pool_give(tape, all, bytes);
    }
    ts_pool_give(tape, blocks, bytes);
    return 0;
}

// ---- backward

// Gradients of blocks are sums [B, tokens, d_k | d_v, width] like the blocks. Three of them are about: one is made,
// one is sent and one arrives.
enum { MOVING = 3 };

typedef struct backward_buffers {
    void *block[2];
    void *q;             // [B, L_r, width]
    float *d_q, *part;   // [B, L_r, width]
    float *home;         // gradient of this rank's block
    float *sum[MOVING];  // of visiting blocks; that of stop t is sum[t % 3]
} backward_buffers;

static int backward_stop(ts_tape *tape, const ring_call *c, int stop, const backward_buffers *b) {
    const int64_t width = width_of(c);
    float *d_block = stop ? b->sum[stop % MOVING] : b->home;
    ts_attention args = block_attention(c, b->block[stop % 2], block_tokens(c, stop));
    args.f32_results = true;
    args.q = b->q;
    args.q_row = width;
    args.q_batch = args.queries * width;
    args.out = c->out->value.data;
    args.lse = c->lse;
    args.d_out = c->out->grad;
    args.d_q = stop ? b->part : b->d_q;
    args.d_k = d_block;
    args.d_v = at_element(d_block, width, TS_F32);
    TS_TRY(TS_KERNEL(tape, attention_backward, &args));
    return stop ? TS_KERNEL(tape, axpy, 1.0f, b->part, b->d_q, query_elements(c)) : 0;
}

// What earlier stops found for the block at hand has arrived: adds this stop's part and sends the sum on.
static int pass_sum_on(ts_tape *tape, const ring_call *c, int stop, const backward_buffers *b, ts_request **hop) {
    float *sum = b->sum[stop % MOVING], *next = b->sum[(stop + 2) % MOVING];
    TS_TRY(ts_wait(hop));
    if (stop > 1) {
        TS_TRY(TS_KERNEL(tape, axpy, 1.0f, b->sum[(stop + 1) % MOVING], sum, block_elements(c, stop)));
    }
    return ts_tape_ring_start(tape, c->place->ring, sum, block_elements(c, stop), next, block_elements(c, stop + 1),
                              TS_F32, hop);
}

static int backward_tour(ts_tape *tape, const ring_call *c, const backward_buffers *b) {
    const int ranks = ts_comm_size(c->place->ring);
    ts_request *sum_hop = NULL;
    TS_TRY(pack_block(tape, c, b->block[0]));
    TS_TRY(copy_columns(tape, c, ts_columns_data(c->q), ts_var_width(c->q.var), b->q, width_of(c)));
    for (int stop = 0; stop < ranks; stop++) {
        ts_request *hop;
        int status = start_hop(tape, c, stop, b->block, &hop);
        status = status ? status : backward_stop(tape, c, stop, b);
        if (stop > 0 && !status) {
            status = pass_sum_on(tape, c, stop, b, &sum_hop);
        }
        status = finish_hop(&hop, status);
        if (status) {
            return finish_hop(&sum_hop, status);
        }
    }
    TS_TRY(ts_wait(&sum_hop));
    return TS_KERNEL(tape, axpy, 1.0f, b->sum[(ranks + 1) % MOVING], b->home, block_elements(c, 0));
}

// Rounds a sum of `n` elements to the operand dtype, into `room`; what is f32 already stays where it is.
static const void *round_sum(ts_tape *tape, const ring_call *c, float *sum, void *room, int64_t n) {
    if (c->dtype == TS_F32) {
        return sum;
    }
    ts_tape_try(tape, TS_KERNEL(tape, cast, sum, TS_F32, room, c->dtype, n));
    return room;
}

static int store_gradients(ts_tape *tape, const ring_call *c, const backward_buffers *b) {
    const int64_t width = width_of(c);
    const void *d_q = round_sum(tape, c, b->d_q, b->q, query_elements(c));
    const char *d_k = round_sum(tape, c, b->home, b->block[0], block_elements(c, 0));
    TS_TRY(ts_tape_status(tape));
    const ts_columns x[] = {c->q, c->k, c->v};
    const void *from[] = {d_q, d_k, d_k + width * (int64_t)ts_dtype_bytes(c->dtype)};
    const int64_t row[] = {width, 2 * width, 2 * width};
    for (int i = 0; i < 3; i++) {
        ts_grad_slot slot;
        TS_TRY(ts_grad_begin(tape, x[i], c->dtype, false, &slot));
        TS_TRY(copy_columns(tape, c, from[i], row[i], slot.data, ts_var_width(x[i].var)));
        TS_TRY(ts_grad_end(tape, x[i], &slot));
    }
    return 0;
}

static int ring_backward(ts_tape *tape, void *call) {
    const ring_call *c = call;
    const int moving = ts_comm_size(c->place->ring) < MOVING ? ts_comm_size(c->place->ring) : MOVING;
    const size_t block = largest_block(c, c->dtype), sum = largest_block(c, TS_F32);
    const size_t n = (size_t)query_elements(c), home = (size_t)block_elements(c, 0) * sizeof(float);
    TS_TRY(ts_grad_convert(tape, c->out, c->dtype));
    backward_buffers b = {.block = {ts_pool_take(tape, block), ts_pool_take(tape, block)},
                          .q = ts_pool_take(tape, n * ts_dtype_bytes(c->dtype)),
                          .d_q = ts_pool_take(tape, n * sizeof(float)),
                          .part = ts_pool_take(tape, n * sizeof(float)),
                          .home = ts_pool_take(tape, home)};
    for (int i = 0; i < moving; i++) {
        b.sum[i] = ts_pool_take(tape, sum);
    }
    TS_TRY(ts_tape_status(tape));
    TS_TRY(backward_tour(tape, c, &b));
    TS_TRY(store_gradients(tape, c, &b));
    for (int i = 0; i < moving; i++) {
        ts_pool_give(tape, b.sum[i], sum);
    }
    ts_pool_give(tape, b.home, home);
    ts_pool_give(tape, b.part, n * sizeof(float));
    ts_pool_give(tape, b.d_q, n * sizeof(float));
    ts_pool_give(tape, b.q, n * ts_dtype_bytes(c->dtype));
    ts_pool_give(tape, b.block[1], block);
    ts_pool_give(tape, b.block[0], block);
    return 0;
}

// ---- the layer

ts_var *sequence_ring_attention(ts_tape *tape, const sequence_place *place, ts_columns q, ts_columns k, ts_columns v) {
    ring_call call = {place, ts_tape_operand_dtype(tape), q, k, v, NULL, NULL};
    const ts_attention_heads own = place->own;
    const int64_t width = width_of(&call), tokens = own_tokens(&call);
    const bool needs_grad = q.var->needs_grad || k.var->needs_grad || v.var->needs_grad;
    TS_ASSERT(q.width == width && k.width == width && v.width == width);
    bool ready;
    call.out = ts_tape_new_kept(tape, call.dtype, ts_var_shape_with_width(q.var, width), needs_grad, &ready);
    if (!call.out) {
        return NULL;
    }
    if (call.out->needs_grad) {
        call.lse = ts_tape_alloc_kept(tape, (size_t)(own.batch * own.heads * tokens) * sizeof *call.lse, &ready);
    }
    if (!ready && !ts_tape_status(tape)) {
        ts_tape_try(tape, place->reproducible ? reproducible_forward(tape, &call) : ring_forward(tape, &call));
    }
    ts_tape_add_flops(tape, 4.0 * (double)own.batch * (double)tokens * (double)place->tokens * (double)width);
    ring_call *c = ts_tape_note(tape, call.out, ring_backward, sizeof *c);
    if (c) {
        *c = call;
        ts_columns_consume(q);
        ts_columns_consume(k);
        ts_columns_consume(v);
    }
    return ts_tape_status(tape) ? NULL : call.out;
}
