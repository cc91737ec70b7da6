// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=120 backend=cuda
// Causal 3-D convolution: forward and both gradients against double-precision loops.
#include "tests/kernels_test.h"

static const ts_conv3d SHAPES[] = {
    {.batch = 1,
     .frames = 1,
     .height = 1,
     .width = 1,
     .in_channels = 1,
     .out_channels = 1,
     .kernel_t = 1,
     .kernel_h = 1,
     .kernel_w = 1},
    {.batch = 2,
     .frames = 5,
     .height = 6,
     .width = 7,
     .in_channels = 3,
     .out_channels = 5,
     .kernel_t = 3,
     .kernel_h = 3,
     .kernel_w = 3},
    {.batch = 1,
     .frames = 2,
     .height = 5,
     .width = 4,
     .in_channels = 16,
     .out_channels = 32,
     .kernel_t = 3,
     .kernel_h = 1,
     .kernel_w = 1},
    {.batch = 1,
     .frames = 3,
     .height = 8,
     .width = 9,
     .in_channels = 24,
     .out_channels = 16,
     .kernel_t = 1,
     .kernel_h = 3,
     .kernel_w = 5},
};

typedef struct reference {
    double *x, *weight, *y, *d_y, *d_x, *d_weight, *d_bias;
} reference;

// Every (output, tap) pair of the convolution; taps that fall into the padding are left out.
static void convolve(const ts_conv3d *c, const reference *r) {
    const int64_t outputs = c->batch * c->frames * c->height * c->width;
    const int64_t taps = c->kernel_t * c->kernel_h * c->kernel_w;
    for (int64_t pair = 0; pair < outputs * taps; pair++) {
        const int64_t out = pair / taps, tap = pair % taps;
        const int64_t w = out % c->width, h = out / c->width % c->height, bt = out / c->width / c->height;
        const int64_t dw = tap % c->kernel_w, dh = tap / c->kernel_w % c->kernel_h,
                      dt = tap / c->kernel_w / c->kernel_h;
        const int64_t from_t = bt % c->frames + dt - (c->kernel_t - 1), from_h = h + dh - (c->kernel_h - 1) / 2;
        const int64_t from_w = w + dw - (c->kernel_w - 1) / 2;
        if (from_t < 0 || from_h < 0 || from_h >= c->height || from_w < 0 || from_w >= c->width) {
            continue;
        }
        const int64_t from = ((bt / c->frames * c->frames + from_t) * c->height + from_h) * c->width + from_w;
        for (int64_t o = 0; o < c->out_channels; o++) {
            for (int64_t i = 0; i < c->in_channels; i++) {
                const int64_t at_x = from * c->in_channels + i, at_w = (o * taps + tap) * c->in_channels + i;
                const int64_t at_y = out * c->out_channels + o;
                r->y[at_y] += r->x[at_x] * r->weight[at_w];
                r->d_x[at_x] += r->d_y[at_y] * r->weight[at_w];
                r->d_weight[at_w] += r->d_y[at_y] * r->x[at_x];
            }
        }
    }
}

static void conv_check(const ts_kernels *k, ts_conv3d c, bool bias) {
    const int64_t rows = c.batch * c.frames * c.height * c.width, taps = c.kernel_t * c.kernel_h * c.kernel_w;
    const int64_t nx = rows * c.in_channels, ny = rows * c.out_channels, nw = c.out_channels * taps * c.in_channels;
    c.x = test_random(TS_F32, nx, 1);
    c.weight = test_random(TS_F32, nw, 1);
    c.bias = bias ? test_random(TS_F32, c.out_channels, 1) : NULL;
    c.y = test_zeros((size_t)ny * sizeof *c.y);
    c.d_y = test_random(TS_F32, ny, 1);
    c.d_x = test_random(TS_F32, nx, 1);  // overwritten
    c.d_weight = test_random(TS_F32, nw, 1);
    c.d_bias = test_random(TS_F32, c.out_channels, 1);
    const reference r = {.x = test_doubles(c.x, TS_F32, nx),
                         .weight = test_doubles(c.weight, TS_F32, nw),
                         .y = test_zeros((size_t)ny * sizeof(double)),
                         .d_y = test_doubles(c.d_y, TS_F32, ny),
                         .d_x = test_zeros((size_t)nx * sizeof(double)),
                         .d_weight = test_doubles(c.d_weight, TS_F32, nw),
                         .d_bias = test_doubles(c.d_bias, TS_F32, c.out_channels)};
    for (int64_t i = 0; i < ny; i++) {
        r.y[i] = bias ? (double)c.bias[i % c.out_channels] : 0;
        r.d_bias[i % c.out_channels] += r.d_y[i];
    }
    convolve(&c, &r);
    CHECK_OK(k->conv3d_forward(&c));
    CHECK_OK(k->conv3d_backward(&c));
    const double reach = 8 * test_epsilon(TS_F32), sums = sqrt((double)(taps * c.in_channels) + 4);
    CHECK(test_close("conv3d", c.y, TS_F32, r.y, ny, reach * sums * sums, 1e-6));
    CHECK(test_close("conv3d d_x", c.d_x, TS_F32, r.d_x, nx, reach * (double)(taps * c.out_channels + 4), 1e-6));
    CHECK(test_close("conv3d d_weight", c.d_weight, TS_F32, r.d_weight, nw, reach * (double)(rows + 4), 1e-6));
    CHECK(test_close("conv3d d_bias", c.d_bias, TS_F32, r.d_bias, c.out_channels, reach * (double)(rows + 4), 1e-6));
    CHECK_OK(k->conv3d_forward(&c));  // again, from the table of primitives
    CHECK(test_close("conv3d", c.y, TS_F32, r.y, ny, reach * sums * sums, 1e-6));
}

static void conv_cases(const ts_kernels *k) {
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        conv_check(k, SHAPES[i], i % 2);
        conv_check(k, SHAPES[i], i % 2 == 0);
        test_free_blocks();
    }
    ts_conv3d even = SHAPES[0];
    even.kernel_h = 2;
    CHECK_FAILS(k->conv3d_forward(&even), TS_EINTERNAL, "odd");
}

int main(void) {
    test_close_can_fail();
    test_levels("amx", conv_cases);
    return ts_test_end();
}
