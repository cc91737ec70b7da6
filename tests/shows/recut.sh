#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Ranges at half and twice the speed move at half and twice the speed; extensions go on as the source went, both ways.
. tests/shows/lib.sh

clips 64 41 --frames 33
value() { score "$1" --shapes --print "${@:2}"; }

# retime SPEED I: a range of clip I at this speed. Prints speed measured over speed asked for, and the largest step of
# the result over its median step
retime() {
    local out=$scratch/retime$2.mp4 source range=8f-24f
    source=$(clip 41 "$2")
    [ "$1" = 2 ] && range=0f-32f
    tessera recut "$source" --keep "$range@$1x" --prompt "${caption[$2]}" --seed "$2" --out "$out" &&
        echo "$(value "$out" shapes.speed) $(value "$source" shapes.speed) $(value "$out" steps.largest,steps.median)" |
        awk -v k="$1" '{ print $1 / ($2 * k), $3 / $4 }'
}
for speed in 0.5 2; do
    each "${CASES:-24}" retime $speed >"$scratch/retimed"
    title "Re-cut at ${speed}x"
    wanted 'measured speed within 15 % of the asked one' "$(share '$1 >= 0.85 && $1 <= 1.15' <"$scratch/retimed")" '>=' 100 ' %'
    measured 'measured over asked: mean' "$(mean '$1' <"$scratch/retimed")"
    measured 'largest step over the median step: mean' "$(mean '$2' <"$scratch/retimed")"
done

# part FILE FRAMES DIRECTION COLOUR: yes when these frames go this way and most are of this colour
part() {
    score "$1" --frames "$2" --shapes --print shapes.direction,shapes.colour,shapes.speed |
        awk -v d="$3" -v c="$4" '{ printf "%s %s ", ($1 == d && $2 == c ? "yes" : "no"), $3 }'
}
# extend I: 17 frames of clip I with 16 more on either side. Prints whether the part before, the part after keep
# direction and colour, each with its speed; the source's speed; the steps where they join over the median step
extend() {
    local out=$scratch/extend$1.mp4 prompt=${caption[$1]} source options=()
    source=$(clip 41 "$1")
    [ -n "${UNPROMPTED-}" ] || options=(--prompt "$prompt")
    tessera extend "$source" --to 17f --before 16f --after 16f "${options[@]}" --seed "$1" --out "$out" || return
    part "$out" 0..17 "$(direction_of "$prompt")" "$(colour_of "$prompt")"
    part "$out" 32..49 "$(direction_of "$prompt")" "$(colour_of "$prompt")"
    score "$out" --frames 0..49 --print steps.profile,steps.median | awk '{ split($1, s, ","); printf "%s %s ", s[17] / $2, s[33] / $2 }'
    value "$source" shapes.speed
}
each "${CASES:-40}" extend >"$scratch/extended"
title 'Extension by the length of the source'
wanted 'before: direction and colour kept' "$(share '$1 == "yes"' <"$scratch/extended")" '>=' 90 ' %'
wanted 'after: direction and colour kept' "$(share '$3 == "yes"' <"$scratch/extended")" '>=' 90 ' %'
wanted 'both' "$(share '$1 == "yes" && $3 == "yes"' <"$scratch/extended")" '>=' 90 ' %'
measured 'speed before and after over that of the source: mean' "$(mean '$2 / $7' <"$scratch/extended") $(mean '$4 / $7' <"$scratch/extended")"
measured 'step where they join over the median step: mean, before, after' "$(mean '$5' <"$scratch/extended") $(mean '$6' <"$scratch/extended")"

title 'Ranks'
same_on_ranks 'recut' recut "$(clip 41 0)" --keep 8f-24f@0.5x --prompt "${caption[0]}"
same_on_ranks 'extend' extend "$(clip 41 0)" --to 17f --before 16f --after 16f --prompt "${caption[0]}"
end
