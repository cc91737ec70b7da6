#!/usr/bin/env bash
# TEST: timeout=300
# SPDX-License-Identifier: Apache-2.0
# Branches: what they have in common is on the disk once, each mesh goes on to the same video, and what is damaged or
# asked wrongly is refused in one line.
. tests/lib.sh

red='a red circle moves left on a black background' blue='a blue circle moves left on a black background'
colours=(blue green yellow cyan magenta white orange purple)
common=(--threads 1)
generate=("$TESSERA" generate "${common[@]}" --model configs/shapes-model --prompt "$red")
branch() { "$TESSERA" branch "$1" "${common[@]}" "${@:2}"; }
bytes() { "$TESSERA" tree "$1" --json | sed 's/.*"bytes":\([0-9]*\).*/\1/'; }

# at_most_half_more WHAT ONE EIGHT: bytes with one branch, and with eight
at_most_half_more() {
    printf '%s: %d bytes with one branch, %d with eight\n' "$@"
    check "$1: eight take at most half more than one" test $((2 * $3)) -le $((3 * $2))
}

# ---- of a video under work: a branch keeps its change, and its video is made when it is wanted

steps=$scratch/steps
check 'a state half-way' "${generate[@]}" --steps 6 --out "$scratch/a.mp4" --save-state "$steps/root" --save-at 50%
for colour in "${colours[@]}"; do
    check "a branch in $colour" branch "$steps/root" --prompt "${red/red/$colour}" --save "$colour"
    one=${one:-$(bytes "$steps")}
done
at_most_half_more 'half-way' "$one" "$(bytes "$steps")"
check 'the branch noted is made later' branch "$steps/blue" --out "$scratch/b.mp4"
check 'the branch made at once' branch "$steps/root" --prompt "$blue" --out "$scratch/c.mp4"
check 'they are one video' cmp "$scratch/b.mp4" "$scratch/c.mp4"
check 'nothing changed' branch "$steps/root" --out "$scratch/d.mp4"
check 'it is the video that was not stopped' cmp "$scratch/a.mp4" "$scratch/d.mp4"
check 'another video' test "$(cmp "$scratch/a.mp4" "$scratch/b.mp4" | wc -l)" = 1

check 'on two ranks' ranks 2 "$TESSERA" branch "$steps/blue" --threads 1 --mesh cfg=2 --out "$scratch/e.mp4"
check 'the same video' cmp "$scratch/b.mp4" "$scratch/e.mp4"
check 'on four ranks' ranks 4 "$TESSERA" branch "$steps/blue" --threads 1 --mesh tensor=2,ring=2 --out "$scratch/e.mp4"
check 'as good as the same video' "$TESSERA" score "$scratch/e.mp4" --against "$scratch/b.mp4"

# ---- of a long one that is done: ten times the length that the model was trained on

long=$scratch/long
check 'a long video' "${generate[@]}" --steps 2 --frames 161 --out "$scratch/a.mp4" --save-state "$long/root"
one=
for colour in "${colours[@]}"; do
    check "its last second in $colour" branch "$long/root" --from 153 --prompt "${red/red/$colour}" --save "$colour" \
        --out "$scratch/b.mp4"
    one=${one:-$(bytes "$long")}
done
at_most_half_more 'last second made anew' "$one" "$(bytes "$long")"
check 'longer by a second' branch "$long/blue" --extend 1s --save longer --out "$scratch/c.mp4"
check 'and by another' branch "$long/longer" --extend 1s --prompt "$red" --save longest --out "$scratch/c.mp4"
check 'frames before are held' "$TESSERA" score "$scratch/c.mp4" --against "$scratch/a.mp4" --frames 0..100
check 'the tree' "$TESSERA" tree "$long"
said 'the root' '^root  *done  *161 .* a red circle'
said 'a branch' '─ blue  *done  *161 .* a blue circle .*(from frame 153)'
said 'its branch' '─ longer  *done  *169 .* 8 frames longer'
said 'and that one'"'"'s' '─ longest  *done  *177 .* a red circle .*(8 frames longer)'
said 'the sum' '^11 states, [0-9.]* KiB'

# ---- one that is done as a source: the same video, and its latents for a timeline

check 'written again' branch "$long/root" --out "$scratch/again.mp4" --save-latents "$scratch/again.safetensors"
check 'the same video' cmp "$scratch/again.mp4" "$scratch/a.mp4"
printf 'frames: 17\ntrack:\n  - {file: %s, source: latent, span: all, strength: 0}\n' "$scratch/again.safetensors" >"$scratch/cut.yaml"
check 'a timeline of its beginning' "$TESSERA" edit "$scratch/cut.yaml" "${common[@]}" --model configs/shapes-model --out "$scratch/cut.mp4" --save-latents "$scratch/cut.safetensors"
frame=$((8 * 8 * 16 * 4))
check 'shows its beginning' cmp <(tail -c $((5 * frame)) "$scratch/cut.safetensors") <(tail -c $((41 * frame)) "$scratch/again.safetensors" | head -c $((5 * frame)))

# ---- a long chain, each the parent of the next

chain=$scratch/chain
mkdir -p "$chain/states"
cp -r "$steps/objects" "$chain"
awk -v folder="$chain/states" '{ text = text $0 "\n" } END {
    for (i = 1; i <= 3000; i++) {
        sub(/"parent": [^,]*/, "\"parent\": \"s" i - 1 "\"", text)
        file = folder "/s" i ".json"
        printf "%s", text >file
        close(file)
    } }' "$steps/states/root.json"
cp "$steps/states/root.json" "$chain/states/s0.json"
cp "$steps/states/root.json" "$chain/states/"$'\033'"]0;x.json"
check 'the tree of a chain' timeout 5 "$TESSERA" tree "$chain"
said 'its end' '^  *s3000  *3/6'
said 'a name that is none' '^?]0;x  *cannot be used'
check 'and does nothing to a terminal' bash -c "! grep -q $'\033' '$scratch/check.log'"

# ---- what is wrong

expect_fail 3 'there is no such state' "$TESSERA" branch "$steps/none" --out "$out"
expect_fail 2 'give STORE/NAME' "$TESSERA" branch root --out "$out"
expect_fail 2 'give --out FILE.mp4, --save NAME, or both' "$TESSERA" branch "$steps/root" --prompt "$blue"
expect_fail 2 'is for one that is done' "$TESSERA" branch "$steps/root" --extend 1s --out "$out.mp4"
expect_fail 2 'is for one that is done' "$TESSERA" branch "$steps/root" --seed 4 --out "$out.mp4"
expect_fail 2 'is done: say from which frame' "$TESSERA" branch "$long/root" --prompt "$blue" --out "$out.mp4"
expect_fail 2 'from 0 on' "$TESSERA" branch "$long/root" --from 161 --out "$out.mp4"
expect_fail 2 'is no time' "$TESSERA" branch "$long/root" --from soon --out "$out.mp4"
expect_fail 2 'latent frames; at most' "$TESSERA" branch "$long/root" --extend 1000000 --out "$out.mp4"
expect_fail 2 'give a new name' "$TESSERA" branch "$steps/root" --save root
expect_fail 2 'give a new name' "$TESSERA" branch "$steps/root" --save other/name
expect_fail 2 'without --out no step is taken' "$TESSERA" branch "$steps/root" --save new --save-at end
expect_fail 2 'goes on from step 3' "$TESSERA" branch "$steps/root" --save new --save-at 1 --out "$out.mp4"
expect_fail 2 'nothing is to be saved' "$TESSERA" branch "$steps/root" --save-at end --out "$out.mp4"
expect_fail 3 'prompt is empty' "$TESSERA" branch "$steps/root" --prompt ' ' --save new
expect_fail 3 'its model' "$TESSERA" branch "$steps/root" --model "$scratch/none" --save new
cp -r configs/shapes-model "$scratch/model"
printf ' ' >>"$scratch/model/transformer/config.json"
expect_fail 3 'was made by another model' "$TESSERA" branch "$steps/root" --model "$scratch/model" --save new
expect_fail 3 'is no store of states' "$TESSERA" tree "$scratch"
expect_fail 2 'give STORE/NAME' "${generate[@]}" --out "$out.mp4" --save-state "$scratch/a b"
mkdir "$scratch/home"
touch "$scratch/home/letter"
expect_fail 3 'is no store of states' "${generate[@]}" --out "$out.mp4" --save-state "$scratch/home/a"
expect_fail 3 'is no store of states' "${generate[@]}" --out "$out.mp4" --control "$out" --store "$scratch/home"
expect_fail 2 'give --control' "${generate[@]}" --out "$out.mp4" --store "$scratch/new"
expect_fail 3 'is a file' "${generate[@]}" --out "$out.mp4" --save-state "$scratch/home/letter/a"
check 'nothing came to that folder' test "$(ls "$scratch/home")" = letter

# ---- a state that cannot be saved does not take the video with it

mkdir -p "$scratch/stuck/states/x.json" "$scratch/stuck/objects"
expect_fail 3 'the state was not saved' "${generate[@]}" --steps 3 --out "$scratch/kept.mp4" --save-state "$scratch/stuck/x"
check 'the video is there' test -s "$scratch/kept.mp4"
check 'nothing of the state is' test -z "$(ls "$scratch/stuck/objects")"

# ---- objects that no state names, and broken ones

check 'the tree, checked' "$TESSERA" tree "$long" --check
said 'the sum' '^11 states'
before=$(bytes "$long")
rm "$long/states/longest.json" "$long/states/orange.json"
check 'the tree with objects left over' "$TESSERA" tree "$long"
said 'it tells of them' '^[0-9]* objects that no state names, [0-9.]* KiB: --prune removes them'
check 'they are removed' "$TESSERA" tree "$long" --prune
said 'it tells that' '^[0-9]* objects that no state names, [0-9.]* KiB: removed'
check 'nothing else is' "$TESSERA" tree "$long" --check
check 'all that is left is named' grep -q '"unused":0,' <("$TESSERA" tree "$long" --json)
check 'there is less' test "$(bytes "$long")" -lt "$before"
expect_fail 3 'nothing was removed' "$TESSERA" tree --prune "$(cp -r "$long" "$scratch/torn" && printf '{' >"$scratch/torn/states/blue.json" && echo "$scratch/torn")"
expect_fail 3 'of its states and objects are broken' "$TESSERA" tree "$scratch/torn" --check
said 'it names the state' '^broken: .*states/blue.json.*not valid JSON'
expect_fail 2 'give --save-state' "${generate[@]}" --out "$out.mp4" --save-at 40%
expect_fail 2 'save-at' "${generate[@]}" --steps 4 --out "$out.mp4" --save-state "$steps/x" --save-at 7
expect_fail 2 'are over with the last one' "${generate[@]}" --out "$out" --save-state "$scratch/new/x" --save-at 100%
check 'and no store is made for it' test ! -e "$scratch/new"

object=$(find "$steps/objects" -type f | sort | head -1)
printf x | dd of="$object" bs=1 seek=9 conv=notrunc 2>/dev/null
expect_fail 3 '1 of its states and objects are broken' "$TESSERA" tree "$steps" --check
said 'it names the object' "^broken: $object: is damaged"
expect_fail 3 "$object: is damaged" "$TESSERA" branch "$steps/root" --out "$out.mp4"
rm "$object"
expect_fail 3 'is missing' "$TESSERA" branch "$steps/root" --out "$out.mp4"
check 'the tree of a damaged store' "$TESSERA" tree "$steps"
said 'tells what is missing' '^root  *cannot be used: .* is missing'
printf '{' >"$steps/states/blue.json"
check 'the tree with a broken state' "$TESSERA" tree "$steps"
said 'tells what is broken' 'blue  *cannot be used: .*not valid JSON'
end
