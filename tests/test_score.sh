#!/usr/bin/env bash
# TEST: timeout=60
# SPDX-License-Identifier: Apache-2.0
# `tessera score` on real clips of the shapes world: what it prints, and what it refuses.
. tests/lib.sh

check 'a corpus' "$TESSERA" world --clips 2 --seed 3 --motion wrap --out "$scratch/world"
clip=$scratch/world/0000001.mp4 other=$scratch/world/0000002.mp4
prompt=$(sed -n '1s/.*"text": *"\([^"]*\)".*/\1/p' "$scratch/world/metadata.jsonl")
read -r _ colour shape _ direction _ <<<"$prompt"

# keys KEY,..: what is printed of the clip, with the options that follow
keys() {
    "$TESSERA" score "$clip" --print "$@" 2>"$scratch/check.log" || head -3 "$scratch/check.log" >&2
}

[ "$(keys shapes.colour,shapes.shape,shapes.direction --shapes)" = "$colour	$shape	$direction" ] ||
    fail "not what the caption says: $prompt"
[ "$(keys prompt.all,prompt.frames,shapes.colour_kept --prompt "$prompt")" = 'yes	1	1' ] || fail 'the prompt is not seen'
other_colour=red
[ "$colour" = red ] && other_colour=blue
[ "$(keys prompt.all,prompt.colour,prompt.frames --prompt "${prompt/$colour/$other_colour}")" = 'no	no	0' ] ||
    fail 'another colour is seen as well'
[ "$(keys frames,first,against.equal --frames 3..9 --against "$clip")" = '6	3	yes' ] || fail 'a clip differs from itself'
[ "$(keys against.equal --frames 3..9 --against "$clip" --from 4)" = no ] || fail 'a clip equals itself a frame later'
[ "$(keys against.equal --against "$other")" = no ] || fail 'two clips are equal'
# A plain cut of an even motion shows: of 17 frames few loop by themselves.
keys steps.median,steps.largest,seam.ratio --loop |
    awk '{ exit !($2 < 1.5 * $1 && $3 > 1.5) }' || fail 'steps are not even, or the cut does not show'
keys frames,steps.largest_after --repeat 3 | grep -q '^51	\(16\|33\)$' || fail 'the seam of three rounds is not their largest step'
check 'a JSON object' "$TESSERA" score "$clip" --json --window 9
said 'with the borders' '"borders":{"count":[1-9]'
# Of five latent frames two windows of three meet behind frame 8; in a loop they have met everywhere.
[ "$(keys borders.count --window 9)" = 1 ] || fail 'borders of windows are not counted'
[ "$(keys borders.count --window 9 --frames 2..12)" = 1 ] || fail 'windows are taken to end where what is measured does'
[ "$(keys borders.count --window 9 --loop)" = 4 ] || fail 'borders of windows of a loop are not counted'
check 'several ranks' ranks 2 "$TESSERA" score "$clip"
said 'print once' 'steps.median'

expect_fail 3 'has no frame 17' "$TESSERA" score "$clip" --frames 17..20
expect_fail 2 'write A..B' "$TESSERA" score "$clip" --frames 9..3
expect_fail 3 'is not of the shapes world' "$TESSERA" score "$clip" --prompt 'a red dog'
expect_fail 2 'nothing of this name' "$TESSERA" score "$clip" --print seam.ratio
expect_fail 2 'windows are those of one round' "$TESSERA" score "$clip" --window 9 --repeat 2
expect_fail 2 'longer than what it shares' "$TESSERA" score "$clip" --window 9 --overlap 8
expect_fail 3 'ends at frame 17' "$TESSERA" score "$clip" --against "$other" --from 1
expect_fail 3 'tessera.c' "$TESSERA" score tessera.c
end
