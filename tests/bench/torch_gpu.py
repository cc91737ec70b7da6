#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The peer on the same GPU, in the same call as our own benches: PyTorch's products, attention and a compiled block.

Random numbers, CUDA events, the median of many runs after a warm-up. One JSON object a line; FLOPs are counted as
`tessera bench` counts them (attention backward as 2.5 times forward, a training step as 3 forward passes).

    torch_gpu.py [--runs 20] [--tokens 16384] [--layers 30] [--skip-block]
"""
import argparse
import json
import statistics

import torch
import torch.nn.functional as F

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--runs", type=int, default=20)
options.add_argument("--tokens", type=int, default=16384)
options.add_argument("--layers", type=int, default=30)
options.add_argument("--skip-block", action="store_true", help="leave the compiled transformer out: it takes minutes")
options = options.parse_args()
WIDTH, HEADS, HIDDEN, TEXT_ROWS = 1536, 12, 8960, 512
torch.manual_seed(0)
torch.backends.cuda.matmul.allow_tf32 = False


def seconds(call):
    for _ in range(3):
        call()
    samples = []
    for _ in range(options.runs):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        samples.append(1e-3 * begin.elapsed_time(end))
    return statistics.median(samples)


def report(name, shape, call, flops=0, moved=0):
    median = seconds(call)
    rate = {"gflops": round(1e-9 * flops / median, 1)} if flops else {"gb_per_s": round(1e-9 * moved / median, 1)}
    print(json.dumps({"name": name, "shape": shape, "median_us": round(1e6 * median, 1), **rate,
                      "torch": torch.__version__}), flush=True)


def random(*shape, dtype=torch.bfloat16, grad=False):
    return torch.randn(*shape, device="cuda", dtype=dtype, requires_grad=grad)


def copies_and_products():
    a = random(1 << 26, dtype=torch.float32)
    b = torch.empty_like(a)
    report("copy", "256 MiB", lambda: b.copy_(a), moved=2 * 4 * a.numel())
    x, w = random(8192, 8192), random(8192, 8192)
    report("linear", "8192x8192x8192", lambda: F.linear(x, w), flops=2 * 8192**3)
    for n, k in ((3 * WIDTH, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN)):
        x, w = random(options.tokens, k), random(n, k)
        report("linear", f"{options.tokens}x{n}x{k}", lambda: F.linear(x, w), flops=2 * options.tokens * n * k)


def attention():
    head = WIDTH // HEADS
    q, k, v = (random(1, HEADS, options.tokens, head, grad=True) for _ in range(3))
    flops = 4 * options.tokens**2 * WIDTH
    shape = f"{HEADS} heads of {head}, {options.tokens} tokens"
    with torch.no_grad():
        report("attention", shape, lambda: F.scaled_dot_product_attention(q, k, v), flops=flops)
    out = F.scaled_dot_product_attention(q, k, v)
    d_out = torch.randn_like(out)
    backward = lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True)
    report("attention_backward", shape, backward, flops=2.5 * flops)


class Block(torch.nn.Module):
    """The Wan block: modulated self-attention, cross-attention to text, feed-forward; f32 residual stream."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.cross_norm = torch.nn.LayerNorm(WIDTH)
        self.qkv, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.cross_q, self.cross_kv = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.cross_out = torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, HIDDEN), torch.nn.Linear(HIDDEN, WIDTH)
        self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(WIDTH) for _ in range(4))
        self.table = torch.nn.Parameter(torch.randn(6, WIDTH) / WIDTH**0.5)

    def attend(self, q, k, v):
        split = lambda x: x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)

    def forward(self, x, text, rotation):
        modulation = self.table.unbind(0)
        n = self.norm(x) * (1 + modulation[1]) + modulation[0]
        q, k, v = self.qkv(n).chunk(3, -1)
        rotate = lambda y: torch.view_as_real(torch.view_as_complex(
            y.float().unflatten(-1, (HEADS, -1, 2))) * rotation).flatten(2).type_as(v)
        x = x + self.out(self.attend(rotate(self.norms[0](q)), rotate(self.norms[1](k)), v)) * modulation[2]
        k, v = self.cross_kv(text).chunk(2, -1)
        x = x + self.cross_out(self.attend(self.norms[2](self.cross_q(self.cross_norm(x))), self.norms[3](k), v))
        n = self.norm(x) * (1 + modulation[4]) + modulation[3]
        return x + self.down(F.gelu(self.up(n), approximate="tanh")) * modulation[5]


def blocks():
    layers = torch.nn.ModuleList(Block() for _ in range(options.layers)).cuda()
    run = [torch.compile(layer) for layer in layers]
    optimizer = torch.optim.AdamW(layers.parameters(), 1e-4, fused=True)
    x, text = random(1, options.tokens, WIDTH, dtype=torch.float32), random(1, TEXT_ROWS, WIDTH)
    angle = torch.rand(1, options.tokens, 1, WIDTH // HEADS // 2, device="cuda")
    rotation = torch.polar(torch.ones_like(angle), angle)
    n, d = options.tokens, WIDTH
    flops = options.layers * (n * (12 * d * d + 4 * d * HIDDEN + 4 * n * d + 4 * TEXT_ROWS * d) + 4 * TEXT_ROWS * d * d)

    def forward():
        y = x
        with torch.autocast("cuda", torch.bfloat16):
            for layer in run:
                y = layer(y, text, rotation)
        return y

    def step():
        optimizer.zero_grad(set_to_none=True)
        forward().square().mean().backward()
        optimizer.step()

    shape = f"{options.layers} blocks of {WIDTH}, {options.tokens} tokens, compiled"
    with torch.no_grad():
        report("forward", shape, forward, flops=flops)
    report("train_step", shape, step, flops=3 * flops)


copies_and_products()
attention()
if not options.skip_block:
    blocks()
