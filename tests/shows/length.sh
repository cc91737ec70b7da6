#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Ten times the length of training: the object keeps its colour, borders of windows do not show, memory does not grow.
. tests/shows/lib.sh

mapfile -t held_out <configs/shapes-held-out-prompts.txt
FRAMES=173 SHORT=33  # ten and two times 17, as far as 1 + 4k goes

# long I: prints whether colour and direction are the prompt's in nine frames of ten, the borders' mean and largest step
# over the median, how even the speed is, the area kept. Windows move: borders have stood at nearly every place between
# latent frames, and all of these are measured.
long() {
    local out=$scratch/long$1.mp4 prompt=${held_out[(7 * $1) % 96]}
    tessera generate --prompt "$prompt" --frames $FRAMES --seed "$1" --out "$out" || return
    score "$out" --prompt "$prompt" --window 17 \
        --print prompt.frames,prompt.direction,shapes.colour_kept,borders.mean,borders.largest,shapes.speed_kept,shapes.area_kept
}
# single I: prints the median step between latent frames over the median step of a video of one window, which has no
# border: what the codec alone makes of these steps
single() {
    local out=$scratch/single$1.mp4
    tessera generate --prompt "${held_out[(7 * $1) % 96]}" --seed "$1" --out "$out" || return
    score "$out" --print steps.between_groups,steps.median
}
each "${CASES:-20}" long >"$scratch/long"
each "${CASES:-20}" single >"$scratch/single"
title "$FRAMES frames, ten times the length of training"
wanted 'colour that of the prompt in every frame' "$(share '$1 == 1' <"$scratch/long")" '>=' 90 ' %'
measured '... in nine frames of ten' "$(share '$1 >= 0.9' <"$scratch/long") %"
wanted 'direction that of the prompt' "$(share '$2 == "yes"' <"$scratch/long")" '>=' 90 ' %'
wanted 'mean step where windows had borders over the median: largest' "$(largest '$4' <"$scratch/long")" '<=' 1.3
measured '... mean' "$(mean '$4' <"$scratch/long")"
measured '... steps between latent frames of one window: mean' "$(mean '$1 / $2' <"$scratch/single")"
measured 'largest step at a border over the median: median, largest' "$(median '$5' <"$scratch/long") $(largest '$5' <"$scratch/long")"
measured 'speed and area of the last quarter over the first: median' "$(median '$6' <"$scratch/long") $(median '$7' <"$scratch/long")"

# peak FRAMES: KiB of the process that makes so many
peak() {
    "$TOOLS" peak "$TESSERA" generate --model "$MODEL" --prompt "${held_out[0]}" --frames "$1" --batch 1 --threads 1 \
        --out "$scratch/peak.mp4" 2>&1 | awk '/^peak/ { print $2 }'
}
title 'Memory'
short=$(peak $SHORT) long=$(peak $FRAMES)
measured "peak for $SHORT and $FRAMES frames, MiB" "$((short / 1024)) $((long / 1024))"
wanted "peak for $FRAMES frames over that for $SHORT" "$(awk "BEGIN { printf \"%.3f\", $long / $short }")" '<=' 1.1

title 'Ranks'
same_on_ranks "$FRAMES frames" generate --prompt "${held_out[0]}" --frames $FRAMES
end
