// SPDX-License-Identifier: Apache-2.0
#include "core/nn/embed.h"

#include "core/nn/layer.h"

// ---- patches

typedef struct patch_call {
    ts_patchify args;  // .video and .tokens are set when called
    ts_var *video, *tokens;
} patch_call;

static ts_patchify patch_args(ts_shape video, const int64_t patch[3], bool channels_first, ts_dtype dtype) {
    return (ts_patchify){.batch = video.dim[0],
                         .frames = video.dim[1],
                         .height = video.dim[2],
                         .width = video.dim[3],
                         .channels = video.dim[4],
                         .patch_t = patch[0],
                         .patch_h = patch[1],
                         .patch_w = patch[2],
                         .channels_first = channels_first,
                         .dtype_tokens = dtype};
}

static int64_t token_count(const ts_patchify *p) {
    return (p->frames / p->patch_t) * (p->height / p->patch_h) * (p->width / p->patch_w);
}

static int patchify_backward(ts_tape *tape, void *call) {
    patch_call *c = call;
    const ts_columns video = ts_whole(c->video);
    ts_grad_slot d_video;
    TS_TRY(ts_grad_begin(tape, video, TS_F32, false, &d_video));
    c->args.video = d_video.data;
    c->args.tokens = c->tokens->grad;
    c->args.dtype_tokens = c->tokens->grad_dtype;
    TS_TRY(TS_KERNEL(tape, unpatchify, &c->args));
    return ts_grad_end(tape, video, &d_video);
}

ts_var *ts_nn_patchify(ts_tape *tape, ts_var *video, const int64_t patch[3], ts_dtype dtype) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    ts_patchify args = patch_args(video->value.shape, patch, true, dtype);
    const int64_t features = args.channels * patch[0] * patch[1] * patch[2];
    ts_var *tokens = ts_tape_new(tape, dtype, TS_SHAPE(args.batch, token_count(&args), features), video->needs_grad);
    if (!tokens) {
        return NULL;
    }
    args.video = video->value.data;
    args.tokens = tokens->value.data;
    ts_tape_try(tape, TS_KERNEL(tape, patchify, &args));
    patch_call *c = ts_tape_note(tape, tokens, patchify_backward, sizeof *c);
    if (c) {
        *c = (patch_call){args, video, tokens};
        ts_var_consume(video);
    }
    return ts_tape_status(tape) ? NULL : tokens;
}

static int unpatchify_backward(ts_tape *tape, void *call) {
    patch_call *c = call;
    const ts_columns tokens = ts_whole(c->tokens);
    ts_grad_slot d_tokens;
    TS_TRY(ts_grad_begin(tape, tokens, c->tokens->grad_dtype, false, &d_tokens));
    c->args.video = c->video->grad;
    c->args.tokens = d_tokens.data;
    c->args.dtype_tokens = d_tokens.dtype;
    TS_TRY(TS_KERNEL(tape, patchify, &c->args));
    return ts_grad_end(tape, tokens, &d_tokens);
}

ts_var *ts_nn_unpatchify(ts_tape *tape, ts_var *tokens, const int64_t patch[3], ts_shape shape) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    ts_patchify args = patch_args(shape, patch, false, tokens->value.dtype);
    TS_ASSERT(ts_shape_count(shape) == ts_shape_count(tokens->value.shape));
    ts_var *video = ts_tape_new(tape, TS_F32, shape, tokens->needs_grad);
    if (!video) {
        return NULL;
    }
    args.video = video->value.data;
    args.tokens = tokens->value.data;
    ts_tape_try(tape, TS_KERNEL(tape, unpatchify, &args));
    patch_call *c = ts_tape_note(tape, video, unpatchify_backward, sizeof *c);
    if (c) {
        *c = (patch_call){args, video, tokens};
        ts_var_consume(tokens);
    }
    return ts_tape_status(tape) ? NULL : video;
}

// ---- embedding

typedef struct embedding_call {
    const ts_param *table;
    const int32_t *id;
    ts_var *y;
} embedding_call;

static int embedding_backward(ts_tape *tape, void *call) {
    const embedding_call *c = call;
    return TS_KERNEL(tape, embedding_backward, c->y->grad, c->id, c->table->grad, ts_var_rows(c->y),
                     ts_var_width(c->y));
}

ts_var *ts_nn_embedding(ts_tape *tape, const ts_param *table, const int32_t *id, ts_shape shape) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    TS_ASSERT(shape.ndim < TS_MAX_DIMS && table->shape.ndim == 2);
    const int64_t n = ts_shape_count(shape), width = table->shape.dim[1];
    shape.dim[shape.ndim++] = width;
    ts_var *y = ts_tape_new(tape, TS_F32, shape, ts_tape_trains(tape, table));
    if (!y) {
        return NULL;
    }
    ts_tape_try(tape, TS_KERNEL(tape, embedding_forward, table->value, id, y->value.data, n, width));
    embedding_call *c = ts_tape_note(tape, y, embedding_backward, sizeof *c);
    if (c) {
        *c = (embedding_call){table, id, y};
    }
    return ts_tape_status(tape) ? NULL : y;
}

// ---- sinusoid

ts_var *ts_nn_sinusoid(ts_tape *tape, const float *t, int64_t rows, int64_t half) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    ts_var *y = ts_tape_new(tape, TS_F32, TS_SHAPE(rows, 2 * half), false);
    if (y) {
        ts_tape_try(tape, TS_KERNEL(tape, sinusoid, t, y->value.data, rows, half));
    }
    return ts_tape_status(tape) ? NULL : y;
}
