#!/usr/bin/env bash
# TEST: timeout=120
# SPDX-License-Identifier: Apache-2.0
# generate over meshes: files of the same bytes where videos and branches are shared out, refusals in one line.
. tests/lib.sh

generate=("$TESSERA" generate --model configs/shapes-model --prompts configs/demo-prompts.txt --steps 4)

check "generate on one rank" "${generate[@]}" --out "$scratch/one" --sheet "$scratch/one/sheet.png"
for mesh in cfg=2 data=2; do
    check "generate on $mesh" ranks 2 "${generate[@]}" --mesh $mesh --out "$scratch/$mesh" --sheet "$scratch/$mesh/sheet.png"
    check "the files of $mesh are those of one rank" diff -r "$scratch/one" "$scratch/$mesh"
done
check "generate on cfg=2, the rest data" ranks 4 "${generate[@]}" --mesh cfg=2 --report comm --out "$scratch/four" \
    --sheet "$scratch/four/sheet.png"
said "the mesh is told" "mesh data=2 cfg=2"
said "the traffic is told" "^cfg  *all-gather  *4 "
check "the files of cfg=2, data=2 are those of one rank" diff -r "$scratch/one" "$scratch/four"
check "generate on tokens shared out" ranks 3 "${generate[@]}" --mesh sequence=3 --out "$scratch/three"
check "every file is there" test "$(ls "$scratch/three")" = "$(ls "$scratch/one" | grep -v sheet)"

# The bits of one rank where ranks add up, on processors whose products allow it.
if "${generate[@]}" --reproducible --instruction-set auto --out "$scratch/can" >"$scratch/can.log" 2>&1; then
    for mesh in tensor=4 tensor=2,ring=2; do
        check "generate on $mesh, reproducibly" ranks 4 "${generate[@]}" --reproducible --mesh $mesh \
            --out "$scratch/$mesh" --sheet "$scratch/$mesh/sheet.png"
        check "the files of $mesh are those of one rank" diff -r "$scratch/one" "$scratch/$mesh"
    done
else
    check "what cannot be reproduced is refused" grep -q 'reproducible: matrix products' "$scratch/can.log"
fi
expect_fail 2 "reproducible: matrix products" "${generate[@]}" --reproducible --instruction-set generic --out "$out"
expect_fail 2 "the product of its degrees must be 1" "${generate[@]}" --mesh tensor=2 --out "$out"
expect_fail 2 "axis=degree" "${generate[@]}" --mesh width=2 --out "$out"
expect_fail 2 "two branches" "${MPIRUN[@]}" -n 3 "${generate[@]}" --mesh cfg=3 --out "$out"
expect_fail 2 "leave cfg out" "${MPIRUN[@]}" -n 2 "${generate[@]}" --mesh cfg=2 --guidance 1 --out "$out"
end
