#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# TEST: timeout=240
# tessera train as a program on an imitated GPU: the same bits whatever the order in which its streams do what they may
# do in any order, runs that go on from the one device to the other, ranks that share it, and what is refused.
. tests/lib.sh
[ -x "$TESSERA_SHIM" ] || { echo 'SKIP: no imitated GPU was built' >&2; exit 77; }

tiny_data "$scratch/data" 12 || { cat "$scratch/data.log" >&2; exit 1; }
cat >"$scratch/train.yaml" <<YAML
data: $scratch/data/data
model: {heads: 2, head_dim: 16, layers: 2, ffn_dim: 64, freq_dim: 32, text_rows: 8}
text: {width: 16, heads: 2, head_dim: 8, ffn_dim: 32}
train: {steps: 3, batch: 4, micro_batch: 2, warmup: 1, schedule: constant, lr: 0.003}
validate: {every: 0, clips: 2, levels: 2}
checkpoint: {every: 0}
log: {every: 1}
YAML
shim=("$TESSERA_SHIM" train "$scratch/train.yaml" --device=cuda)

# losses RUN: of its steps and validations
losses() {
    python3 - "$scratch/$1/metrics.jsonl" <<'END'
import json, sys
for line in open(sys.argv[1]):
    row = json.loads(line)
    row = row.get("validation", row)
    if "loss" in row:
        print(row["loss"], row.get("grad_norm", ""))
END
}

for order in alternate forward reverse random; do
    TESSERA_SHIM_ORDER=$order check "trains, order $order" "${shim[@]}" --out="$scratch/$order"
    said 'the log names the device' ' on cuda: '
    said 'the GPU is measured against the plan' 'of the GPU taken'
    checks=$((checks + 1))
    [ "$(losses "$order")" = "$(losses alternate)" ] || fail "order $order gives other losses than alternate"
done
checks=$((checks + 1))
[ "$(losses alternate | grep -c .)" = 4 ] || fail 'not the losses of three steps and a validation'

# From the GPU to the CPU and back.
cpu=("$TESSERA" train "$scratch/train.yaml" --out="$scratch/alternate" --device=cpu)
check 'the CPU goes on' "${cpu[@]}" --train.steps=5
said 'from the last step' 'resumed after step 3'
check 'the GPU goes on' "${shim[@]}" --out="$scratch/alternate" --train.steps=6
said 'from the last step' 'resumed after step 5'

check 'two ranks share a GPU' ranks 2 "${shim[@]}" --out="$scratch/two" --precision=f32
check 'their tensor slices, too' ranks 2 "${shim[@]}" --out="$scratch/cut" --precision=f32 --mesh.tensor=2

# A rank without a GPU among ranks with one; a program without a GPU.
expect_fail 2 'rank 1 has no GPU that it can use, and rank 0 has one' \
    "${MPIRUN[@]}" -n 1 -x TESSERA_SHIM_DEVICES=1 "$TESSERA_SHIM" train "$scratch/train.yaml" --out="$out" \
    : -n 1 -x TESSERA_SHIM_DEVICES=0 "$TESSERA_SHIM" train "$scratch/train.yaml" --out="$out"
TESSERA_SHIM_DEVICES=0 expect_fail 5 'GPU' "${shim[@]}" --out="$out"
end
