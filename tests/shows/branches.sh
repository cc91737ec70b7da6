#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Branches: eight from one state take little more of the disk than one, and go on to the same video on every mesh.
. tests/shows/lib.sh

red='a red circle moves left on a black background'
colours=(blue green yellow cyan magenta white orange)
bytes() { du -sb "$1" | cut -f1; }

# eight 'what' STATE option..: branches of a state; what one and what eight take
eight() {
    local what=$1 state=$2 store=${2%/*} one colour k=0
    shift 2
    for colour in "${colours[@]}" red; do
        "$TESSERA" branch "$state" "$@" --prompt "${red/red/$colour}" --save "branch$k" >"$scratch/log" 2>&1 || cat "$scratch/log" >&2
        one=${one:-$(bytes "$store")}
        k=$((k + 1))
    done
    measured "$what: bytes with one branch, with eight" "$one $(bytes "$store")"
    wanted "$what: eight over one" "$(awk "BEGIN { printf \"%.3f\", $(bytes "$store") / $one }")" '<=' 1.5
}
title 'Bytes on the disk'
tessera generate --prompt "$red" --out "$scratch/a.mp4" --save-state "$scratch/half/root" --save-at 50%
eight 'a video half-way' "$scratch/half/root"
tessera generate --prompt "$red" --frames 161 --out "$scratch/long.mp4" --save-state "$scratch/long/root"
eight 'last second of 161 frames made anew' "$scratch/long/root" --from 153 --out "$scratch/b.mp4"

title 'Other meshes'
"$TESSERA" branch "$scratch/half/branch0" --threads 1 --out "$scratch/b.mp4" --save-latents "$scratch/1.safetensors" >"$scratch/log" 2>&1
for mesh in cfg=2 ulysses=2 tensor=2 cfg=2,ring=2 tensor=2,ulysses=2; do
    n=$(tr ',' '\n' <<<"$mesh" | awk -F= 'BEGIN { n = 1 } { n *= $2 } END { print n }')
    ranks "$n" "$TESSERA" branch "$scratch/half/branch0" --threads 1 --mesh $mesh --out "$scratch/b.mp4" \
        --save-latents "$scratch/n.safetensors" >"$scratch/log" 2>&1 || cat "$scratch/log" >&2
    wanted "$mesh: largest difference of latents" "$(compare "$scratch/n.safetensors" 0 "$scratch/1.safetensors" 0 0 | cut -d' ' -f1)" '<=' 1e-3
    rm -f "$scratch/n.safetensors"
done
score "$scratch/b.mp4" --prompt "${red/red/blue}" --print prompt.colour >"$scratch/blue"
wanted 'the branch shows its colour' "$(cat "$scratch/blue")" = yes
end
