#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Loops have no seam: the step from the last frame to the first is like the others, beside that of a video that is cut.
. tests/shows/lib.sh

clips 40 31
mapfile -t held_out <configs/shapes-held-out-prompts.txt

# seam_of FILE: frames to add to its 16 so that, at the speed it has, it comes round: what leaves the frame of 64 pixels on
# one side comes in on the other
seam_of() {
    score "$1" --shapes --print shapes.speed | awk '{
        for (way = 64; ; way += 64) {
            frames = 4 * int(way / $1 / 4 + 0.5)
            if (frames >= 20) break
        }
        print frames - 16 }'
}
# loop_of I: loops of a prompt (even I) and of a clip (odd I). Prints kind, seam over the median step, frames, largest step
# of three rounds, median step, after which frame the largest is, whether the prompt is seen, the seam over other steps
# between groups
loop_of() {
    local out=$scratch/loop$1.mp4 prompt=${held_out[(2 * $1) % 96]} kind=prompt options=(--frames 32)
    if (($1 % 2)); then
        prompt=${caption[$1]} kind=clip
        options=("$(clip 31 "$1")" --seam "$(seam_of "$(clip 31 "$1")")f")
    fi
    tessera loop "${options[@]}" --prompt "$prompt" --seed "$1" --out "$out" || return
    echo "$kind $(score "$out" --loop --print seam.ratio,frames) $(score "$out" --repeat 3 --loop --prompt "$prompt" \
        --print steps.largest,steps.median,steps.largest_after,prompt.colour,prompt.direction,prompt.shape)" \
        "$(score "$out" --loop --print seam.ratio_of_groups)"
}
# cut_of I: the same prompt as an ordinary video, repeated
cut_of() {
    tessera generate --prompt "${held_out[(2 * $1) % 96]}" --seed "$1" --out "$scratch/cut$1.mp4" &&
        score "$scratch/cut$1.mp4" --loop --print seam.ratio
}
each "${CASES:-40}" loop_of >"$scratch/loops"
each "${CASES:-40}" cut_of >"$scratch/cuts"

title 'Loops'
wanted 'step from the last frame to the first at most 1.2 x the median' "$(share '$2 <= 1.2' <"$scratch/loops")" '>=' 95 ' %'
for kind in prompt clip; do
    measured "that step over the median step, loops of a $kind: mean" "$(grep "^$kind" "$scratch/loops" | mean '$2')"
    measured '... largest; at most 1.2' "$(grep "^$kind" "$scratch/loops" | largest '$2') $(grep "^$kind" "$scratch/loops" | share '$2 <= 1.2') %"
    measured '... over the other steps between groups: mean' "$(grep "^$kind" "$scratch/loops" | mean '$10')"
done
measured 'the same of videos that are cut: mean' "$(mean '$1' <"$scratch/cuts")"
measured '... at most 1.2' "$(share '$1 <= 1.2' <"$scratch/cuts") %"
# Of three rounds of N frames the seams are the steps after frames N - 1 and 2 N - 1.
wanted 'three rounds whose largest step is not at a seam' \
    "$(share '($6 + 1) % $3' <"$scratch/loops")" '>=' 95 ' %'
measured 'largest step of a round over the median step: mean' "$(mean '$4 / $5' <"$scratch/loops")"
measured 'colour, direction and shape are those of the prompt' \
    "$(share '$7 == "yes" && $8 == "yes" && $9 == "yes"' <"$scratch/loops") %"

title 'Ranks'
same_on_ranks 'loop of a prompt' loop --prompt "${held_out[0]}"
same_on_ranks 'loop of a clip' loop "$(clip 31 0)" --prompt "${caption[0]}"
end
