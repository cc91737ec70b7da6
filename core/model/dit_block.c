// SPDX-License-Identifier: Apache-2.0
// A block of the transformer. Between its three branches a rank sees its own rows only; each branch gathers them over
// the tensor axis, works on all tokens of the sequence part with this rank's heads and widths, and scatters the sum.
#include "core/model/dit_private.h"
#include "core/nn/activation.h"
#include "core/nn/residual.h"
#include "core/nn/sequence.h"

typedef struct block_context {
    const dit_pass *pass;
    const dit_block *block;
    int index;
} block_context;

// q or k of columns cut by heads: RMS norm over all heads, then rotation.
static ts_var *norm_heads(ts_tape *tape, const dit_pass *pass, ts_columns x, const ts_param *weight, ts_rope rope) {
    ts_rows rows = pass->rows;
    rows.total = x.var ? ts_var_rows(x.var) : 0;  // of tokens, text or image
    return ts_nn_rms_norm_cut(tape, rows, x, pass->dit->config.eps, weight, rope, ts_tape_operand_dtype(tape));
}

// n [own rows, D] -> [own rows, D]
static ts_var *self_attention(ts_tape *tape, const dit_pass *pass, const dit_block *b, ts_var *n) {
    const int64_t width = pass->heads.heads * pass->heads.head_dim;
    n = ts_nn_gather_rows(tape, n, pass->rows);
    ts_var *qkv = ts_nn_linear(tape, &b->self_qkv, n, ts_tape_operand_dtype(tape));  // [rows, 3 width]
    ts_var *q = norm_heads(tape, pass, (ts_columns){qkv, 0, width}, b->self_norm_q, pass->rope);
    ts_var *k = norm_heads(tape, pass, (ts_columns){qkv, width, width}, b->self_norm_k, pass->rope);
    ts_var *o = ts_nn_sequence_attention(tape, pass->dit->mesh, pass->heads, pass->tokens.tokens, ts_whole(q),
                                         ts_whole(k), (ts_columns){qkv, 2 * width, width});
    return ts_nn_linear_scatter(tape, &b->self_out, o, pass->rows);
}

// q [rows, width] attends to `text` [B, contexts, their rows, D], which every rank has whole, through one pair of key
// and value projections.
static ts_var *attend(ts_tape *tape, const dit_pass *pass, const ts_linear *kv_layer, const ts_param *norm_k, ts_var *q,
                      ts_var *text, ts_attention_contexts contexts) {
    const int64_t width = pass->heads.heads * pass->heads.head_dim;
    ts_var *kv = ts_nn_linear(tape, kv_layer, text, ts_tape_operand_dtype(tape));  // [B, .., rows, 2 width]
    ts_var *k = norm_heads(tape, pass, (ts_columns){kv, 0, width}, norm_k, (ts_rope){0});
    return ts_nn_attention_contexts(tape, pass->heads, ts_whole(q), ts_whole(k), (ts_columns){kv, width, width},
                                    contexts);
}

// n [own rows, D] -> [own rows, D]; the text's rows are attended without mask, those of an image in a softmax of their
// own.
static ts_var *cross_attention(ts_tape *tape, const dit_pass *pass, const dit_block *b, ts_var *n, ts_var *text,
                               ts_var *image) {
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    ts_var *q = ts_nn_linear(tape, &b->cross_q, ts_nn_gather_rows(tape, n, pass->rows), dtype);
    q = norm_heads(tape, pass, ts_whole(q), b->cross_norm_q, (ts_rope){0});
    ts_var *o = attend(tape, pass, &b->cross_kv, b->cross_norm_k, q, text, pass->contexts);
    if (image) {
        ts_var *o_image = attend(tape, pass, &b->image_kv, b->image_norm_k, q, image, (ts_attention_contexts){1, NULL});
        o = ts_nn_cast(tape, ts_nn_residual(tape, ts_nn_cast(tape, o, TS_F32), o_image), dtype);
    }
    return ts_nn_linear_scatter(tape, &b->cross_out, o, pass->rows);
}

static ts_var *feed_forward(ts_tape *tape, const dit_pass *pass, const dit_block *b, ts_var *n) {
    ts_var *u = ts_nn_linear_gelu(tape, &b->ffn_in, ts_nn_gather_rows(tape, n, pass->rows));
    return ts_nn_linear_scatter(tape, &b->ffn_out, u, pass->rows);
}

// m = table + modulation: shift, scale, gate of the self-attention, then of the feed-forward.
//   x += SelfAttention(LN(x) (1 + scale) + shift) gate
//   x += CrossAttention(LN(x) w + b, text)
//   x += FFN(LN(x) (1 + scale) + shift) gate
static ts_var *forward(ts_tape *tape, const void *context, ts_var *const *inputs) {
    const block_context *bc = context;
    const dit_pass *pass = bc->pass;
    const dit_block *b = bc->block;
    const int64_t D = pass->dit->width;
    const double eps = pass->dit->config.eps;
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    ts_var *x = inputs[0], *text = inputs[1], *image = inputs[3];
    ts_var *m = ts_nn_add_rows(tape, inputs[2], ts_tape_param_part(tape, b->table, 0, TS_SHAPE(1, 6 * D)));
    const ts_columns shift_sa = {m, 0, D}, scale_sa = {m, D, D}, gate_sa = {m, 2 * D, D};
    const ts_columns shift_ff = {m, 3 * D, D}, scale_ff = {m, 4 * D, D}, gate_ff = {m, 5 * D, D};

    ts_var *n = ts_nn_layer_norm(tape, x, eps, 1.0, scale_sa, shift_sa, pass->levels, dtype);
    ts_var *y = self_attention(tape, pass, b, n);
    ts_tape_probe(tape, y, "block.%d.attn1.output", bc->index);
    x = ts_nn_gated_residual(tape, x, y, gate_sa, pass->levels);

    n = b->cross_norm_weight ? ts_nn_layer_norm_affine(tape, x, eps, b->cross_norm_weight, b->cross_norm_bias, dtype)
                             : ts_nn_cast(tape, x, dtype);
    y = cross_attention(tape, pass, b, n, text, image);
    ts_tape_probe(tape, y, "block.%d.attn2.output", bc->index);
    x = ts_nn_residual(tape, x, y);

    n = ts_nn_layer_norm(tape, x, eps, 1.0, scale_ff, shift_ff, pass->levels, dtype);
    y = feed_forward(tape, pass, b, n);
    ts_tape_probe(tape, y, "block.%d.ffn.output", bc->index);
    x = ts_nn_block_sum(tape, x, y, gate_ff, pass->levels);
    ts_tape_probe(tape, x, "block.%d.output", bc->index);
    return x;
}

ts_var *dit_block_forward(ts_tape *tape, const dit_pass *pass, int index, ts_var *x, ts_var *text, ts_var *modulation,
                          ts_var *image, ts_recompute recompute) {
    block_context *context = ts_tape_object(tape, sizeof *context);
    if (!context) {
        return NULL;
    }
    *context = (block_context){pass, &pass->dit->block[index], index};
    ts_var *inputs[] = {x, text, modulation, image};
    return ts_tape_scope(tape, forward, context, inputs, 4, recompute);
}
