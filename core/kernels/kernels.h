// SPDX-License-Identifier: Apache-2.0
// The kernel table: every arithmetic operation of the framework, with its formula.
//
// A backend fills a ts_kernels; an empty entry means "not supported on this backend" and is an error, never a silent
// fallback. The CPU backend fills all. Pointers are memory of the backend's device. All matrices are row-major.
//
// Precision: "operand" tensors (what GEMM and attention read) are bf16 or f32, told by a ts_dtype; accumulation is f32.
// The residual stream, norm statistics, modulation tables, biases, weights of norms, losses and gradients of parameters
// are f32.
//
// Gradient contract, said at each entry: parameters `+=`; activations `=` unless an `accumulate` flag says `+=`.
//
// Determinism: an entry gives the same bits for the same input and thread count. Sums over rows are cut into chunks of
// fixed size that do not depend on the thread count, so they give the same bits for any thread count too.
//
// All entries return 0 or a negative status (see core/base/status.h). Not collective. Entries run threads of their own:
// call them from one thread at a time.
#ifndef TS_KERNELS_KERNELS_H
#define TS_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/device.h"
#include "core/tensor/tensor.h"

// C = op(A) op(B) [+ C] [+ bias] [then GELU]     op(A) is [m, k], op(B) is [k, n], C is [m, n]; any side may be 0
// Epilogue order: accumulate, bias, GELU. When `before_gelu` is set, the value before GELU is stored there (for the
// backward pass) in dtype_c with the layout of C. GELU is taken of the value rounded to dtype_c, so that gelu_forward
// of before_gelu gives C, bit by bit.
typedef struct ts_gemm {
    int64_t m, n, k;
    const void *a, *b;
    void *c;
    int64_t lda, ldb, ldc;  // elements between rows as stored
    bool transpose_a;       // a is stored [k, m]
    bool transpose_b;       // b is stored [n, k]: the form of a Linear's weight
    ts_dtype dtype_ab;      // F32 or BF16
    ts_dtype dtype_c;       // F32 or BF16
    bool accumulate;        // C += ...; needs dtype_c F32
    const float *bias;      // [n] or NULL; a backend may round it to dtype_c first
    bool gelu;              // tanh form
    void *before_gelu;      // [m, n] dtype_c, or NULL
} ts_gemm;

// Softmax attention over L_q queries and L_k keys for `heads` heads of `head_dim`, per batch item:
//   S = scale * Q K^T + bias;  O = softmax(S) V;  lse = log sum exp S
// Tensors are [batch, L, heads, head_dim] views: element (b, l, h, i) is at b*batch_stride + l*row_stride + h*head_dim
// + i (strides in elements), so q, k and v may be columns of one fused projection.
// Counts may be 0. Without keys O is 0 and lse is -inf: what merging with other keys starts from.
typedef struct ts_attention {
    int64_t batch, heads, head_dim, queries, keys;
    ts_dtype dtype;    // of q, k, v, out and their gradients: F32 or BF16
    bool f32_results;  // out (of forward), d_q, d_k and d_v (of backward) are F32 whatever dtype is: parts of a sum
    float scale;
    const void *q, *k, *v;
    void *out;
    int64_t q_row, k_row, v_row, out_row;          // row strides
    int64_t q_batch, k_batch, v_batch, out_batch;  // batch strides
    float *lse;  // [batch, heads, queries]; may be NULL in a forward that is not recorded
    // [heads, queries + keys - 1] or NULL: bias of (query i, key j) is strip[h][j - i + queries - 1]
    const float *bias_strip;
    const int32_t *key_count;  // [batch] or NULL: keys from key_count[b] on are masked out; >= 1
    // backward only
    const void *d_out;      // layout of out
    void *d_q, *d_k, *d_v;  // `=`; layouts (strides) of q, k, v
    float *d_bias_strip;    // [heads, queries + keys - 1], `+=`, or NULL
} ts_attention;

// Merges attention over some keys with attention of the same queries over other keys, exactly (Milakov & Gimelshein
// 2018, "Online normalizer calculation for softmax"):
//   lse' = log(e^lse + e^lse_part);   out' = e^(lse - lse') out + e^(lse_part - lse') part
// An lse of -inf stands for no keys. Rows are (batch, query, head) in this order; statistics are [batch, heads,
// queries].
typedef struct ts_attention_merge {
    int64_t batch, queries, heads, head_dim;
    float *out, *lse;              // in and out; out [batch, queries, heads, head_dim]
    const float *part, *part_lse;  // same layouts
} ts_attention_merge;

// Rows of `table` chosen per row of x: modulation by noise level. row_index NULL means table row 0 for every row.
// In a backward pass row_index must be non-decreasing, so that gradients reduce over runs: tokens are ordered by sample
// and frame.

// Layer norm, then scale and shift:  y = (x - mean) * rstd * (scale_offset + scale[t]) + shift[t],  t = row_index[row]
// Affine layer norm: scale_offset 0, scale = weight, shift = bias, row_index NULL. Modulation: scale_offset 1.
// Plain: scale = shift = NULL. Ba et al. 2016; adaptive form: Peebles & Xie 2023, "Scalable diffusion models with
// transformers".
typedef struct ts_layer_norm {
    int64_t rows, width;
    float eps, scale_offset;
    const float *x;              // [rows, width]
    void *y;                     // [rows, width], dtype_y
    ts_dtype dtype_y;            // F32 or BF16
    const float *scale, *shift;  // table rows; element (t, i) at t*table_stride + i
    int64_t table_stride, table_rows;
    const int32_t *row_index;  // [rows] or NULL
    float *mean, *rstd;        // [rows] saved for backward, or NULL
    // backward only
    const void *d_y;  // [rows, width], dtype_y
    float *d_x;       // [rows, width], `=` or `+=`
    bool accumulate_d_x;
    float *d_scale, *d_shift;  // `+=`, layout of scale; may be NULL
} ts_layer_norm;

// RMS norm over the whole width (all heads), weight, then rotary position embedding per head, in one pass:
//   u = x * rstd * weight;   pairs (2p, 2p+1) of each head rotate by angle[row % positions][p]
// cosine/sine NULL: no rotation. Used for Q and K, for the text encoder's norms, and for any RMS norm.
// Zhang & Sennrich 2019; Su et al. 2021.
//
// Rows may be cut over ranks, each of which has `width` of `whole_width` columns. Then rms_norm_squares gives this
// part's sums of x^2, and rms_norm_products, in the backward pass, those of x d_x / rstd before the mean is taken off:
// of g x with g = (d_y rotated back) * weight. Their totals over the ranks are what forward and backward take.
typedef struct ts_rms_norm {
    int64_t rows, width;
    int64_t x_row, y_row;  // row strides in elements
    float eps;
    const void *x;
    void *y;
    ts_dtype dtype_x, dtype_y;   // F32 or BF16
    const float *weight;         // [width]
    float *rstd;                 // [rows] saved for backward, or NULL
    const float *cosine, *sine;  // [positions, head_dim / 2] or NULL
    int64_t positions, head_dim;
    float *sums;          // [rows] of the whole row, written by rms_norm_squares and rms_norm_products; NULL: not cut
    int64_t whole_width;  // with sums
    // backward only
    const void *d_y;  // dtype_y, stride y_row
    void *d_x;        // dtype_x, stride x_row; `=` or `+=` (`+=` needs F32)
    bool accumulate_d_x;
    float *d_weight;  // [width] `+=`
} ts_rms_norm;

// out = x + y * gate[t]   (gate NULL: out = x + y).  x, out f32 [rows, width]; y operand dtype. out may be x.
// Backward: d_x is d_out itself (the caller aliases it); d_y = d_out * gate; d_gate += sum over rows of d_out * y.
typedef struct ts_gated_residual {
    int64_t rows, width;
    const float *x;
    const void *y;
    ts_dtype dtype_y;
    float *out;
    const float *gate;  // table rows, or NULL
    int64_t table_stride, table_rows;
    const int32_t *row_index;
    // backward only
    const float *d_out;
    void *d_y;      // dtype_y `=`
    float *d_gate;  // `+=` or NULL
} ts_gated_residual;

// x [B, T, H, W, C] f32  <->  tokens [B, T/pt * H/ph * W/pw, features]
// Features in order (c, pt, ph, pw) with channels_first (the order of a Conv3d weight), else (pt, ph, pw, c).
typedef struct ts_patchify {
    int64_t batch, frames, height, width, channels;
    int64_t patch_t, patch_h, patch_w;
    bool channels_first;
    float *video;
    void *tokens;
    ts_dtype dtype_tokens;
} ts_patchify;

// The straight path between data and noise, and its velocity (Liu et al. 2022; Lipman et al. 2022), a level for each
// row:
//   x = (1 - sigma[row]) x0 + sigma[row] eps;   target = eps - x0, which takes the place of eps
typedef struct ts_mix {
    int64_t rows, width;
    const float *x0;       // [rows, width]
    const float *sigma;    // [rows]
    float *x;              // [rows, width] `=`
    float *eps_to_target;  // [rows, width] eps in, target out
} ts_mix;

// A sum of up to six terms, in f64, in order:  out[i] = (float)(c[0] x[0][i] + c[1] x[1][i] + ..)
// Coefficients are numbers of the call, not of the device. out may be any x[k].
//
// With row_class the n numbers are rows of `width`, and each row has the coefficients of its class: of term k
// class_c[row_class[row] * TS_MAX_TERMS + k]; c is not read. Terms of coefficient 0 count for nothing there, whatever
// is in them, inf and NaN too: a row whose one other term is 1 of out itself keeps its bits. Classes are not checked:
// the caller has made sure that they are rows of class_c.
enum { TS_MAX_TERMS = 6 };
typedef struct ts_combine {
    int64_t n;
    int terms;
    double c[TS_MAX_TERMS];
    const float *x[TS_MAX_TERMS];  // [n] each
    float *out;                    // [n]
    int64_t width;                 // with row_class: a divisor of n
    const int32_t *row_class;      // [n / width] in the device's memory, or NULL
    const double *class_c;         // [classes, TS_MAX_TERMS] in the device's memory; with row_class
} ts_combine;

// How a bf16 copy of an f32 number is rounded. Stochastic: up with the probability of the part that is cut off, so that
// the mean of many roundings is the number (Gupta et al. 2015): 16 random bits are added below the mantissa that stays.
// Number e = first + i takes half e % 2 (the lower first) of word e % 8 / 2 of draw e / 8 of the Philox stream (seed,
// TS_RNG_ROUND, step).
typedef enum { TS_ROUND_NEAREST, TS_ROUND_STOCHASTIC } ts_rounding;

// AdamW (Loshchilov & Hutter 2019) with bias correction and gradient scaling:
//   g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   w -= lr * ( (m/(1-b1^step)) / (sqrt(v/(1-b2^step)) + eps) + weight_decay * w )
// One pass also writes the operand copy (bf16) and the moving average: ema = ema_decay * ema + (1-ema_decay) * w.
typedef struct ts_adamw {
    int64_t count, step;  // step from 1
    float lr, beta1, beta2, eps, weight_decay, grad_scale;
    float *weight, *m, *v;
    const float *grad;
    uint16_t *operand;  // bf16 copy or NULL
    float *ema;         // or NULL
    float ema_decay;
    ts_rounding rounding;  // of the bf16 copy
    uint64_t seed;         // of stochastic rounding, with the step
    int64_t first;         // place of element 0 among the numbers that are rounded with this seed
} ts_adamw;

// Squared error of the velocity with a weight per row (held frames have weight 0):
//   loss = sum_r weight[r] * sum_i (v[r,i] - target[r,i])^2 * scale;   d_v = 2 * scale * weight[r] * (v - target)
// scale is chosen by the caller: 1 / (global number of weighted elements).
typedef struct ts_mse {
    int64_t rows, width;
    const float *v, *target;
    const float *weight;  // [rows] or NULL
    double scale;
    double *loss;      // [1] `=`
    double *row_loss;  // [rows] `=` unscaled weighted sums, or NULL
    float *d_v;        // `=`, or NULL in a forward that is not recorded
} ts_mse;

// Causal 3-D convolution, channels last. x [B, T, H, W, Ci], weight [Co, kt, kh, kw, Ci], y [B, T, H, W, Co], stride 1:
// kt - 1 zero frames in front, (kh-1)/2 and (kw-1)/2 zeros on each side in space.
typedef struct ts_conv3d {
    int64_t batch, frames, height, width, in_channels, out_channels;
    int64_t kernel_t, kernel_h, kernel_w;
    const float *x, *weight, *bias;  // bias [Co] or NULL
    float *y;
    // backward only
    const float *d_y;
    float *d_x;                // `=` or NULL
    float *d_weight, *d_bias;  // `+=` or NULL
} ts_conv3d;

typedef struct ts_kernels {
    const char *name;         // "cpu", "cuda"
    const ts_device *device;  // whose memory the pointers are

    int (*gemm)(const ts_gemm *p);
    // d_bias[n] += sum over m rows of d_y [m, n]
    int (*bias_gradient)(const void *d_y, ts_dtype dtype, int64_t m, int64_t n, int64_t row_stride, float *d_bias);
    int (*attention_forward)(const ts_attention *p);
    int (*attention_backward)(const ts_attention *p);  // reads q, k, v, out, lse, d_out
    int (*attention_merge)(const ts_attention_merge *p);
    int (*layer_norm_forward)(const ts_layer_norm *p);
    int (*layer_norm_backward)(const ts_layer_norm *p);
    int (*rms_norm_forward)(const ts_rms_norm *p);
    int (*rms_norm_backward)(const ts_rms_norm *p);
    int (*rms_norm_squares)(const ts_rms_norm *p);   // sums[row] = sum of x^2
    int (*rms_norm_products)(const ts_rms_norm *p);  // sums[row] = sum of g x
    int (*gated_residual_forward)(const ts_gated_residual *p);
    int (*gated_residual_backward)(const ts_gated_residual *p);
    int (*patchify)(const ts_patchify *p);
    int (*unpatchify)(const ts_patchify *p);  // also patchify's gradient, and the other way round

    // y = gelu_tanh(x);  d_x = d_y * gelu'(x); d_x may be d_y
    int (*gelu_forward)(const void *x, void *y, ts_dtype dtype, int64_t n);
    int (*gelu_backward)(const void *x, const void *d_y, void *d_x, ts_dtype dtype, int64_t n);
    // y = x Phi(x), Phi the normal distribution function by erf: the exact form, f32
    int (*gelu_erf_forward)(const float *x, float *y, int64_t n);
    int (*gelu_erf_backward)(const float *x, const float *d_y, float *d_x, int64_t n);
    // T5's gated unit: y = gelu_tanh(a) * b
    int (*gated_gelu_forward)(const void *a, const void *b, void *y, ts_dtype dtype, int64_t n);
    int (*gated_gelu_backward)(const void *a, const void *b, const void *d_y, void *d_a, void *d_b, ts_dtype dtype,
                               int64_t n);
    // y = x * sigmoid(x), f32
    int (*silu_forward)(const float *x, float *y, int64_t n);
    int (*silu_backward)(const float *x, const float *d_y, float *d_x, int64_t n);
    // y[r, :] = softmax(x[r, :]), f32
    int (*softmax)(const float *x, float *y, int64_t rows, int64_t width);

    // y[i, :] = table[id[i], :] (f32 table [vocab, width], y f32);  d_table[id[i], :] += d_y[i, :]
    int (*embedding_forward)(const float *table, const int32_t *id, float *y, int64_t n, int64_t width);
    int (*embedding_backward)(const float *d_y, const int32_t *id, float *d_table, int64_t n, int64_t width);
    // y[r, 0..half) = cos(t[r] w_i), y[r, half..2 half) = sin(t[r] w_i), w_i = exp(-ln(10000) i / half). f32, computed
    // in f64.
    int (*sinusoid)(const float *t, float *y, int64_t rows, int64_t half);

    // out[r, i] = a[r, i] + b[r % b_rows, i], f32; out may be a
    int (*add_rows)(const float *a, const float *b, float *out, int64_t rows, int64_t b_rows, int64_t width);
    // d_b[r % b_rows, i] += sum d_out[r, i]: gradient of the broadcast operand
    int (*sum_rows)(const float *d_out, float *d_b, int64_t rows, int64_t b_rows, int64_t width);
    // to[r * to_stride + i] = from[r * from_stride + i] for i < row_bytes, r < rows: strides in bytes; no overlap
    int (*copy_rows)(const void *from, int64_t from_stride, void *to, int64_t to_stride, int64_t rows,
                     int64_t row_bytes);
    // y += alpha * x, f32
    int (*axpy)(float alpha, const float *x, float *y, int64_t n);
    int (*scale)(float alpha, float *x, int64_t n);
    int (*cast)(const void *from, ts_dtype from_dtype, void *to, ts_dtype to_dtype, int64_t n);
    // *sum += sum of x_i^2 in f64, in fixed chunks of 65,536 elements
    int (*sum_squares)(const float *x, int64_t n, double *sum);
    // x *= 1 / (sqrt(*squares) + 1e-20)
    int (*normalize)(const double *squares, float *x, int64_t n);
    int (*combine)(const ts_combine *p);
    int (*mix)(const ts_mix *p);
    // kept = bf16(kept + grad); grad = 0: f32 gradients go into their bf16 sums
    int (*fold)(float *grad, uint16_t *kept, int64_t n);
    // Nesterov momentum (Jordan et al. 2024, "Muon"): g = u * grad_scale;  m = momentum m + g;  u = g + momentum m
    int (*momentum)(float grad_scale, float momentum, float *m, float *u, int64_t n);
    // square [side, side] = a I + b gram + c square: the polynomial of a Newton-Schulz step, square = gram gram before
    int (*newton_schulz)(float a, float b, float c, const float *gram, float *square, int64_t side);
    int (*mse)(const ts_mse *p);
    int (*adamw)(const ts_adamw *p);
    // standard normals: see ts_rng_normal_fill
    int (*noise)(float *out, int64_t n, uint64_t seed, uint32_t purpose, uint64_t index, int64_t first);
    int (*conv3d_forward)(const ts_conv3d *p);
    int (*conv3d_backward)(const ts_conv3d *p);
} ts_kernels;

// The table of a device: "auto" (cuda where a GPU can be used, else cpu), "cpu" or "cuda". NULL is "auto".
// `local_rank`, the rank of this process on its host, chooses among the GPUs there. TS_EUSAGE for another name and for
// a backend that this program was built without, TS_EPEER when there is no GPU or its driver fails.
int ts_kernels_open(const ts_kernels **out, const char *device, int local_rank);
extern const char *const ts_device_names[];  // these names, for tables of options; NULL ends them
// What it computes with, in words, into `text`: "cpu: amx", "cuda: NVIDIA H200, 141 GB". Returns text.
const char *ts_kernels_describe(const ts_kernels *kernels, char *text, size_t text_bytes);
// The CUDA table; linked in where the program was built with CUDA. Reached through ts_kernels_open.
int ts_kernels_cuda(const ts_kernels **out, int local_rank);
int ts_kernels_cuda_devices(void);         // usable GPUs; 0 without a driver
const char *ts_kernels_cuda_device(void);  // the GPU of this process in words, once the table was reached
bool ts_kernels_have_cuda(void);           // whether the program was built with the CUDA backend
int ts_kernels_gpus(void);                 // usable GPUs, in any program

// The CPU table, chosen once for this processor. `instruction_set` caps the choice for tests and for reproducing other
// machines: "auto", "amx" (AMX bf16), "avx512bf16", "avx512", "avx2", "generic". TS_EUSAGE when the processor lacks it.
int ts_kernels_cpu(const ts_kernels **out, const char *instruction_set);
// Whether an element of a product of these operands has the same bits however many rows and columns are around it and
// however many threads share them, where the rows of A and C follow one another without gaps: so with AVX-512 for f32
// and with its bf16 instructions for bf16.
bool ts_kernels_cpu_products_fixed(ts_dtype operands);
// The name that was chosen.
const char *ts_kernels_cpu_instruction_set(void);

#endif
