#!/usr/bin/env bash
# TEST: timeout=300
# SPDX-License-Identifier: Apache-2.0
# Every kernel of the CUDA backend runs on the imitated GPU in the tests of kernels, or its source says why it cannot:
#   // not on the shim: NAME: reason
# Prints the list and its length.
set -u
build=$(dirname "$TESSERA_SHIM")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=0

# The names of all kernels that a source defines.
kernels_of() {
    sed 's://.*$::' "$1" | tr '\n' ' ' |
        sed -E 's/__launch_bounds__ *\(([^()]|\([^()]*\))*\)//g' |
        grep -oE '__global__[^(;]*\(' | grep -oE '[A-Za-z0-9_]+ *\($' | tr -d ' ('
}

for source in core/kernels/cuda/*.cu core/kernels/cuda/*.cuh; do
    for kernel in $(kernels_of "$source"); do
        echo "$kernel ${source##*/}"
    done
done | sort -u >"$folder/kernels"
sed -nE 's:^ *// not on the shim\: ([A-Za-z0-9_]+).*:\1:p' core/kernels/cuda/*.cu* | sort -u >"$folder/excused"

export TESSERA_BACKEND=shim TESSERA_SHIM_KERNELS=$folder/launched OMP_WAIT_POLICY=passive
run() {
    local code
    "$@" >"$folder/said" 2>&1
    code=$?
    if [ $code -ne 0 ]; then
        echo "$* failed with $code: $(tail -n 3 "$folder/said")"
        failed=1
    fi
}
for program in "$build"/test_kernels_*-shim "$build"/test_cuda_*-shim; do
    run "$program"
done
TESSERA_SHIM_CAPABILITY=90 run "$build/test_cuda_attention-shim"
OMP_NUM_THREADS=1 TESSERA_TEST_RANKS=2 run mpirun --oversubscribe --allow-run-as-root --bind-to none -n 2 "$build/test_comm_device-shim"
touch "$folder/launched"
sort -u "$folder/launched" -o "$folder/launched"

while read -r kernel source; do
    if grep -qx "$kernel" "$folder/launched"; then
        echo "ran       $kernel ($source)"
    elif grep -qx "$kernel" "$folder/excused"; then
        echo "excused   $kernel ($source)"
    else
        echo "NEVER RAN $kernel ($source)"
        failed=1
    fi
done <"$folder/kernels"
echo "$(grep -c . "$folder/kernels") kernels, $(grep -c . "$folder/excused") of them excused"
[ -s "$folder/kernels" ] || failed=1
exit $failed
