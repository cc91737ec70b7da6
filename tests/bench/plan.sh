#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# How far tessera plan is off: calibrates it on this machine, then foretells and measures the training step of
# configs/bench.yaml on every mesh of 1 and of RANKS ranks, one thread each.
#
#   tests/bench/plan.sh [RANKS] [RUNS]         2 ranks, 9 runs; the least time of each mesh counts
#
# Run from the source root, on a machine that nobody else uses; TESSERA is the executable (build/tessera when unset).
set -eu
ranks=${1:-2} runs=${2:-9}
export LC_ALL=C OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
tessera=${TESSERA:-$PWD/build/tessera}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/tessera-plan.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# run N command..: on N ranks
run() {
    mpirun --allow-run-as-root --oversubscribe --bind-to none -n "$@" </dev/null
}

# The step of configs/bench.yaml as a training configuration. It has no text encoder: this one hardly computes.
cat >"$scratch/train.yaml" <<END
precision: bf16
model: {heads: 6, head_dim: 64, layers: 6, ffn_dim: 1536, freq_dim: 256, text_rows: 64}
text: {width: 512, heads: 1, head_dim: 4, ffn_dim: 1, layers: 1}
train: {micro_batch: 1}
END
latent=(--latent 4x32x32x16 --vocabulary 1)

# degrees N: data, ring, ulysses, tensor of every mesh of N ranks
degrees() {
    "$tessera" plan "$scratch/train.yaml" "${latent[@]}" --devices "$1" --hardware "$2" --json | python3 -c '
import json, sys
for m in json.load(sys.stdin)["meshes"]:
    if m["recompute"] == "none":
        print(*[m["mesh"][a] for a in ("data", "ring", "ulysses", "tensor")])'
}

# foretell N FILE MESH: milliseconds; a sample for each data rank, as bench train has it
foretell() {
    "$tessera" plan "$scratch/train.yaml" "${latent[@]}" --devices "$1" --hardware "$2" --train.batch="$3" --json |
        python3 -c '
import json, sys
for m in json.load(sys.stdin)["meshes"]:
    if m["recompute"] == "none" and [str(m["mesh"][a]) for a in ("data", "ring", "ulysses", "tensor")] == sys.argv[1:]:
        print(1e3 * m["seconds"]["total"])' "${@:3}"
}

measure() {
    run "$1" "$tessera" bench train --config configs/bench.yaml --threads=1 --runs="$runs" --filter bf16 --json \
        --mesh="data=$2,ring=$3,ulysses=$4,tensor=$5" | python3 -c '
import json, sys
print(json.load(sys.stdin)["bf16"]["least_ms"])'
}

for n in 1 "$ranks"; do
    hardware=$scratch/hardware$n.yaml
    [ "$n" = 1 ] || run "$n" "$tessera" bench comm --max-bytes 16777216 --threads=1 --write-hardware "$hardware" \
        >"$scratch/log"
    run "$n" "$tessera" bench kernels --plan "$scratch/train.yaml" "${latent[@]}" --threads=1 \
        --write-hardware "$hardware" | grep different
    degrees "$n" "$hardware" | while read -r mesh; do
        # shellcheck disable=SC2086
        awk -v mesh="$mesh" -v f="$(foretell "$n" "$hardware" $mesh)" -v l="$(measure "$n" $mesh)" 'BEGIN {
            split(mesh, d)
            printf "data=%d ring=%d ulysses=%d tensor=%d  foretold %8.1f ms  measured %8.1f ms  %+6.1f %%\n",
                d[1], d[2], d[3], d[4], f, l, 100 * (f / l - 1) }'
    done
done
