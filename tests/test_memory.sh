#!/usr/bin/env bash
# TEST: timeout=600
# SPDX-License-Identifier: Apache-2.0
# Memory as planned against the largest resident size of real runs, within 5 %; runs that cannot fit are refused.
. tests/lib.sh

"$TESSERA" world --clips 16 --size 256x256 --frames 13 --out "$scratch/clips" >"$scratch/world.log" 2>&1 &&
    printf 'source: %s\nout: %s\nbuckets: [256x256x13]\nchannels: 8\ncodec_sample: 8\n' \
        "$scratch/clips" "$scratch/data" >"$scratch/ingest.yaml" &&
    "$TESSERA" ingest "$scratch/ingest.yaml" >>"$scratch/world.log" 2>&1 || { cat "$scratch/world.log" >&2; exit 1; }

# 1,024 tokens a sample, width 384
cat >"$scratch/train.yaml" <<YAML
data: $scratch/data
model: {heads: 6, head_dim: 64, layers: 4, ffn_dim: 1536, freq_dim: 64, text_rows: 16}
text: {width: 64, heads: 2, head_dim: 32, ffn_dim: 128}
train: {steps: 2, batch: 4, micro_batch: 2, warmup: 1, recompute: none}
validate: {every: 0, clips: 2, levels: 1}
YAML

# planned RANKS option...: the peak of the largest rank is within 5 % of the plan
planned() {
    local count=$1 line
    shift
    checks=$((checks + 1))
    rm -rf "$scratch/run"
    ranks "$count" "$TESSERA" train "$scratch/train.yaml" --out="$scratch/run" "$@" >"$scratch/check.log" 2>&1 ||
        complain 'training failed' "$@"
    line=$(grep -o 'largest rank: [0-9.]* MiB planned, [0-9.]* MiB at the peak' "$scratch/check.log")
    echo "$count ranks, $*: $line"
    awk -v line="$line" 'BEGIN {
        split(line, word, " ")
        ratio = word[6] > 0 ? word[3] / word[6] : 0
        exit !(ratio > 0.95 && ratio < 1.05)
    }' || complain "not within 5 %: $line" "$@"
}

planned 1 --precision=bf16
planned 1 --precision=bf16 --train.recompute=elementwise
planned 1 --precision=bf16 --train.recompute=block --train.micro_batch=4
planned 1 --precision=f32 --train.batch=2 --train.micro_batch=1
planned 1 --precision=bf16 --model.heads=12 --model.ffn_dim=3072 --model.layers=2 --train.batch=2
planned 1 --precision=bf16 --train.optimizer=muon --train.gradients=bf16
planned 2 --precision=bf16
planned 2 --precision=bf16 --mesh.tensor=2 --train.recompute=elementwise
planned 2 --precision=bf16 --mesh.sequence=2 --train.gradients=bf16
planned 4 --precision=bf16 --mesh.sequence=2 --mesh.tensor=2
planned 4 --precision=f32 --train.recompute=elementwise --train.micro_batch=1

# A limit that no kind of recompute meets, one that a smaller kind would meet, and one that `auto` meets with it: between
# the needs of the two, which begin at what the program and its libraries take themselves.
out=$scratch/out
train=("$TESSERA" train "$scratch/train.yaml" --out="$out")
needs() {
    "${train[@]}" --train.recompute="$1" --train.memory_gib=0.1 2>&1 | sed -n 's/.*a rank needs \([0-9.]*\) GiB.*/\1/p'
}
limit=$(awk -v a="$(needs none)" -v b="$(needs elementwise)" 'BEGIN { print (a + b) / 2 }')
expect_fail 4 'a rank needs' "${train[@]}" --train.recompute=auto --train.memory_gib=0.1
expect_fail 4 'train.recompute=elementwise' "${train[@]}" --train.recompute=none --train.memory_gib="$limit"
check 'auto finds room' "${train[@]}" --train.recompute=auto --train.memory_gib="$limit"
said 'auto takes what fits' 'recompute elementwise'
end
