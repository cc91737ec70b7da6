#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Blends begin as A, end as B and have no jump between; each card of a storyboard shows its colour, from the time it names.
. tests/shows/lib.sh

CLIPS=600
clips $CLIPS 51
# partner KIND I: what clip I goes over to: its own scene in another colour (look), another scene of that shape, direction
# and background (scene), or one with another background (ground). Sets `other` and `other_caption`
partner() {
    local k
    if [ "$1" = look ]; then
        other=$scratch/partner$2.mp4
        other_caption=${caption[$2]/$(colour_of "${caption[$2]}")/$(other_colour "${caption[$2]}" "$2")}
        tessera remix "$(clip 51 "$2")" --prompt "$other_caption" --strength 0.8 --out "$other"
        return
    fi
    for ((k = $2 + 1; k < CLIPS; k++)); do
        if [ "$1" = scene ]; then
            [ "${caption[k]#a * }" = "${caption[$2]#a * }" ] && [ "${caption[k]}" != "${caption[$2]}" ] && break
        else
            [ "${caption[k]##* on }" != "${caption[$2]##* on }" ] && break
        fi
    done
    [ "$k" -lt $CLIPS ] || { echo "clip $2 has no partner among $CLIPS" >&2; return 1; }
    other=$(clip 51 $k) other_caption=${caption[k]}
}

# blend KIND RAMP I: clip I into its partner, at $strength. Prints numbers of other bits in the first and the last latent frame, the
# largest step over the median, and whether the first frame has A's colour and the last one B's
blend() {
    local a out=$scratch/blend$3 other other_caption
    a=$(clip 51 "$3")
    partner "$1" "$3" || return
    tessera blend "$a" "$other" --ramp "$2" --strength "$strength" --seed "$3" --out "$out.mp4" --save-latents "$out.safetensors" || return
    "$TOOLS" encode "$MODEL/codec" "$a" 0 1 "$out.a.safetensors"
    "$TOOLS" encode "$MODEL/codec" "$other" 13 4 "$out.b.safetensors"
    score "$out.mp4" --shapes --print steps.largest,steps.median,shapes.colours |
        awk -v a="$(compare "$out.safetensors" 0 "$out.a.safetensors" 0 1)" -v b="$(compare "$out.safetensors" 4 "$out.b.safetensors" 0 1)" \
            -v ca="$(colour_of "${caption[$3]}")" -v cb="$(colour_of "$other_caption")" '{
                split(a, x, " "); split(b, y, " "); n = split($3, c, ",")
                print x[3] + y[3], $1 / $2, (c[1] == ca && c[n] == cb ? "yes" : "no") }'
}
declare -A kinds=([look]='two looks of one scene' [scene]='two scenes on one background' [ground]='two scenes on two backgrounds')
for kind in look scene ground; do
    # A model that never saw a background change makes it at once where it may: such a change goes over evenly only as
    # far as the model is not asked.
    [ $kind = ground ] && strength=0 || strength=0.35
    for ramp in linear sigmoid; do
        each "${CASES:-24}" blend $kind $ramp >"$scratch/blended"
        title "Blend of ${kinds[$kind]}, $ramp ramp, strength $strength"
        wanted 'first and last latent frame those of A and B, to the bit' "$(share '$1 == 0' <"$scratch/blended")" '>=' 100 ' %'
        wanted 'no step above twice the median' "$(share '$2 <= 2' <"$scratch/blended")" '>=' 95 ' %'
        measured 'largest step over the median: median, largest' \
            "$(median '$2' <"$scratch/blended") $(largest '$2' <"$scratch/blended")"
        measured 'first and last frame have their colours' "$(share '$3 == "yes"' <"$scratch/blended") %"
    done
done
strength=0.35
each "${CASES:-24}" blend ground linear >"$scratch/blended"
measured 'the same, linear ramp, at strength 0.35: no step above twice the median' "$(share '$2 <= 2' <"$scratch/blended") %"

# board I: two cards of 2 s that differ in colour. Prints the share of right frames of each card, and how many frames the
# change is off
board() {
    local out=$scratch/board$1 first=${caption[$1]} second a b
    b=$(other_colour "$first" "$1") a=$(colour_of "$first") second=${first/$a/$b}
    printf 'duration: 4s\ncards:\n  - {at: 0s, text: %s}\n  - {at: 2s, text: %s}\n' "$first" "$second" >"$out.yaml"
    tessera storyboard "$out.yaml" --seed "$1" --out "$out.mp4" || return
    # The change: where a cut makes the fewest frames wrong.
    score "$out.mp4" --shapes --print shapes.colours | awk -v a="$a" -v b="$b" '{
        n = split($1, c, ","); best = n + 1
        for (k = 1; k <= 16; k++) x += c[k] == a
        for (k = 17; k <= n; k++) y += c[k] == b
        for (cut = 0; cut <= n; cut++) {
            wrong = 0
            for (k = 1; k <= n; k++) wrong += c[k] != (k <= cut ? a : b)
            if (wrong < best || (wrong == best && (cut - 16) ^ 2 < (at - 16) ^ 2)) { best = wrong; at = cut }
        }
        print x / 16, y / (n - 16), (at > 16 ? at - 16 : 16 - at), best }'
}
each "${CASES:-40}" board >"$scratch/boards"
title 'Storyboard of two cards, another colour each'
wanted 'most frames of both cards have the right colour' "$(share '$1 > 0.5 && $2 > 0.5' <"$scratch/boards")" '>=' 85 ' %'
wanted 'frames of the right colour' "$(mean '50 * ($1 + $2)' <"$scratch/boards")" '>=' 85 ' %'
wanted 'the change within 4 frames of the asked time' "$(share '$3 <= 4' <"$scratch/boards")" '>=' 85 ' %'
measured 'frames off: mean' "$(mean '$3' <"$scratch/boards")"

title 'Ranks'
same_on_ranks 'blend' blend "$(clip 51 0)" "$(clip 51 1)" --prompt "${caption[1]}"
same_on_ranks 'storyboard' storyboard "$scratch/board0.yaml"
end
