#!/usr/bin/env bash
# TEST: timeout=120
# SPDX-License-Identifier: Apache-2.0
# tessera bench comm: every collective measured on each transport, and the file it writes for planning.
. tests/lib.sh

names="all_reduce reduce_scatter reduce_scatter_started all_gather all_gather_started all_to_all ring broadcast barrier"
for transport in mpi shared; do
    check "bench comm over $transport" env TESSERA_TRANSPORT=$transport \
        "${MPIRUN[@]}" -n 2 "$TESSERA" bench comm --runs 1 --max-bytes 4096 --write-hardware "$scratch/hardware.yaml" --json
    for name in $names; do
        said "$name is measured" "\"collective\": \"$name\""
        checks=$((checks + 1))
        grep -A 2 -e "^  $name:" "$scratch/hardware.yaml" | grep -q 'gb_per_s: [0-9]' || fail "$name is not in the file"
    done
    rm "$scratch/hardware.yaml"
done
expect_fail 2 "nothing to measure with one rank" "$TESSERA" bench comm
expect_fail 3 "cannot create" "${MPIRUN[@]}" -n 2 "$TESSERA" bench comm --runs 1 --max-bytes 1024 --filter barrier \
    --write-hardware "$scratch/nowhere/hardware.yaml"
check "three ranks over MPI alone" env TESSERA_TRANSPORT=mpi "${MPIRUN[@]}" -n 3 "$TESSERA" bench comm --runs 1 \
    --max-bytes 1024 --filter all_reduce
TESSERA_DEVICE_TRANSPORT=pigeon expect_fail 2 "TESSERA_DEVICE_TRANSPORT=pigeon: use auto, nccl or staged" \
    "${MPIRUN[@]}" -n 1 "$TESSERA" bench comm
TESSERA_NCCL_SUMS=pigeon expect_fail 2 "TESSERA_NCCL_SUMS=pigeon: use auto, ordered or nccl" \
    "${MPIRUN[@]}" -n 1 "$TESSERA" bench comm
TESSERA_TRANSPORT=pigeon expect_fail 2 "TESSERA_TRANSPORT=pigeon: use auto, mpi or shared" "${MPIRUN[@]}" -n 1 \
    "$TESSERA" bench comm
end
