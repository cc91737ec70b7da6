#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# TEST: timeout=120
# tessera plan as a program: table, JSON, refusals; a hardware file made by both benches; what it says can be pasted.
. tests/lib.sh

cat >"$scratch/train.yaml" <<END
model: {heads: 4, head_dim: 8, layers: 4, ffn_dim: 64, freq_dim: 16}
text: {width: 16, heads: 2, head_dim: 8, ffn_dim: 32}
train: {batch: 4}
END
plan=("$TESSERA" plan "$scratch/train.yaml")
latent=(--latent 3x8x8x4)

check 'help comes from the table' "$TESSERA" plan --help
said 'help names the devices' '--devices=N'
said 'help names the options of training' '--train.batch=N'

check 'a plan for H200' "${plan[@]}" "${latent[@]}" --devices 8
said 'a mesh to paste' '^  mesh: {.*}$'
said 'how blocks are recomputed' '^  train.recompute: '
{ cat "$scratch/train.yaml"; grep -E '^  (mesh|train.recompute):' "$scratch/check.log" | cut -c3-; } >"$scratch/pasted.yaml"
check 'the pasted mesh is read' "$TESSERA" plan "$scratch/pasted.yaml" "${latent[@]}" --devices 8
check 'all meshes' "${plan[@]}" "${latent[@]}" --devices 8 --all
said 'the slowest too' '{ring: 8}'

"${plan[@]}" "${latent[@]}" --devices 4 --json >"$scratch/plan.json"
check 'JSON of every mesh' python3 - "$scratch/plan.json" <<'END'
import json, sys
plan = json.load(open(sys.argv[1]))
seconds = [m["seconds"]["total"] for m in plan["meshes"]]
assert plan["devices"] == 4 and plan["tokens"] == 48 and seconds == sorted(seconds) and len(seconds) % 3 == 0
for m in plan["meshes"]:
    d = m["mesh"]
    assert d["data"] * d["ring"] * d["ulysses"] * d["tensor"] == 4 and m["fits"] and m["memory_bytes"] > 0
    assert bool(m["messages"].get("tensor")) == (d["tensor"] > 1) and bool(m["messages"].get("ring")) == (d["ring"] > 1)
    assert m["messages"]["world"]["reduce-scatter"]["bytes"] > 0
assert plan["recommended"] == plan["meshes"][0]
END

# ---- refusals
printf 'devices_per_host: 8\nmemory_gib: 0.0001\nbf16_gflops: 1\nf32_gflops: 1\nmemory_gb_per_s: 1\nlink: {latency_us: 1, gb_per_s: 1}\n' \
    >"$scratch/small.yaml"
printf 'devices_per_host: 8\nbf16_gflops: 1\nf32_gflops: 1\nmemory_gb_per_s: 1\nlink: {latency_us: 1}\n' \
    >"$scratch/unlinked.yaml"
expect_fail 2 'no configuration file' "$TESSERA" plan --devices 2
expect_fail 2 'devices' "${plan[@]}" "${latent[@]}"
expect_fail 2 'latent' "${plan[@]}" --devices 2
expect_fail 2 'latent' "${plan[@]}" --devices 2 --latent 3x8x8
expect_fail 2 'at most 1073741824 are planned' "${plan[@]}" --devices 2 --latent 65536x65536x65536x65536 \
    --model.rope_max_positions=65536
expect_fail 3 'nowhere.yaml' "${plan[@]}" "${latent[@]}" --devices 2 --hardware nowhere.yaml
expect_fail 4 'no mesh of 2 devices fits' "${plan[@]}" "${latent[@]}" --devices 2 --hardware "$scratch/small.yaml"
expect_fail 2 'neither comm.' "${plan[@]}" "${latent[@]}" --devices 2 --hardware "$scratch/unlinked.yaml"
expect_fail 2 '9973 devices have no mesh' "${plan[@]}" "${latent[@]}" --devices 9973

# ---- one file from both benches
hardware=$scratch/hardware.yaml
check 'messages measured' ranks 2 "$TESSERA" bench comm --runs 1 --max-bytes 4096 --write-hardware "$hardware"
check 'kernels measured' ranks 2 "$TESSERA" bench kernels --runs 1 --plan "$scratch/train.yaml" "${latent[@]}" \
    --write-hardware "$hardware"
check 'one kind of message again' ranks 2 "$TESSERA" bench comm --runs 1 --max-bytes 1024 --filter barrier \
    --write-hardware "$hardware"
check 'a line of each bench' grep -q -e 'all_to_all' "$hardware"
check 'a measured product' grep -q -e '- gemm BF16' "$hardware"
check 'a plan from it' "${plan[@]}" "${latent[@]}" --devices 2 --hardware "$hardware"

end
