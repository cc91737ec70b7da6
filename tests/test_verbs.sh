#!/usr/bin/env bash
# TEST: timeout=300
# SPDX-License-Identifier: Apache-2.0
# The verbs: each prints a timeline that makes the same file, on any number of ranks; what is wrong is refused in one
# line; a signal leaves nothing behind.
. tests/lib.sh

model=configs/shapes-model
common=(--model "$model" --steps 3 --threads 1)
prompt='a red circle moves left on a black background'
other='a yellow square moves up on a navy background'
verb() { "$TESSERA" "$1" "${common[@]}" "${@:2}"; }

check 'a video to work on' verb generate --prompt "$prompt" --out "$scratch/a.mp4" --save-latents "$scratch/a.safetensors"
check 'and another one' verb generate --prompt "$other" --seed 5 --out "$scratch/b.mp4"
a=$scratch/a.mp4 b=$scratch/b.mp4

cat >"$scratch/cards.yaml" <<END
duration: 4s
cards:
  - {at: 0s, text: $prompt}
  - {at: 1s, video: $a}
  - {at: 3s, text: $other}
END
printf 'cards:\n  - {at: 1s, text: a}\n  - {at: 0s, text: b}\n' >"$scratch/late.yaml"
printf 'cards:\n  - {at: 1s}\n' >"$scratch/empty.yaml"
printf 'duration: 17f\ncards:\n  - {at: 0s, text: a}\n  - {at: 16f, text: b}\n' >"$scratch/end.yaml"
cat >"$scratch/concept.yaml" <<END
frames: 9
prompts:
  - {span: all, text: "a {colour} circle moves {way} on a black background"}
END

# ---- every verb: its help, its timeline, the same file of it on one rank and on several

# Windows are added up in another order on several ranks: a few last digits of latents.
alike() { "$TESSERA" score "$1" --against "$2" --print against.equal,against.psnr | awk '{ exit !($1 == "yes" || $2 > 50) }'; }

# same_video NAME options...: what the timeline printed makes is what the verb makes
same_video() {
    local name=$1
    check "$name: help" "$TESSERA" "$name" --help
    said "$name: its usage" "usage: \|tessera $name"
    check "$name" verb "$@" --out "$scratch/one.mp4" --sheet "$scratch/one.png"
    verb "$@" --print-timeline >"$scratch/$name.yaml" 2>"$scratch/check.log" || fail "$name: --print-timeline"
    check "$name: the timeline is good" verb edit "$scratch/$name.yaml" --check
    check "$name: the timeline" verb edit "$scratch/$name.yaml" --out "$scratch/again.mp4"
    check "$name: the timeline makes the same file" cmp "$scratch/one.mp4" "$scratch/again.mp4"
    check "$name on two ranks" ranks 2 "$TESSERA" "$@" "${common[@]}" --out "$scratch/two.mp4" --sheet "$scratch/two.png"
    check "$name on two ranks: the same video" alike "$scratch/one.mp4" "$scratch/two.mp4"
    rm -f "$scratch"/{one,again,two}.mp4 "$scratch"/{one,two}.png
}
same_video remix "$a" --prompt "$other" --strength 0.5 --box 8,8,32,32 --feather 4
same_video recut "$a" --keep 1s-2s --keep 0s-1s@0.5x --fill-gaps 1s --extend-before 4f --prompt "$prompt"
same_video loop "$a" --seam 1s --ends 0.3
same_video loop --prompt "$prompt" --frames 24
same_video extend "$a" --before 8f --after 1s --prompt "$prompt"
same_video blend "$a" "$b" --ramp sigmoid
same_video blend "$a" "$b" --style --prompt "$other"
same_video blend "$a" "$b" --mask configs/timelines/mask.png
same_video storyboard "$scratch/cards.yaml"
same_video generate --prompt "$prompt" --frames 33

# ---- vary

versions=(vary --prompt 'a {colour} circle moves {way} on a black background' --words colour=red,blue
    --words way=left,right --frames 9)
check 'vary: help' "$TESSERA" vary --help
check 'vary' verb "${versions[@]}" --out "$scratch/versions" --sheet "$scratch/versions/sheet.png"
check 'a file for each combination, and two that tell of them' test "$(ls "$scratch/versions" | wc -l)" = 6
check 'which says what was changed' grep -q \
    '"file_name":"00002-a-blue-circle-moves-left-on-a-black-background.mp4".*"words":{"colour":"blue","way":"left"}' \
    "$scratch/versions/metadata.jsonl"
check 'vary on ranks' ranks 3 "$TESSERA" "${versions[@]}" "${common[@]}" --out "$scratch/shared" \
    --sheet "$scratch/shared/sheet.png" --mesh data=3
check 'the same files' diff -r "$scratch/versions" "$scratch/shared"
check 'vary a timeline, other noise' verb vary "$scratch/concept.yaml" --words colour=red --words way=up --n 2 \
    --out "$scratch/noise"
check 'two videos' test "$(ls "$scratch/noise" | wc -l)" = 3
check 'that differ' test "$(md5sum <"$scratch/noise/00000-a-red-circle-moves-up-on-a-black-background.mp4")" != \
    "$(md5sum <"$scratch/noise/00001-a-red-circle-moves-up-on-a-black-background.mp4")"

# ---- latents as a source

cat >"$scratch/latent.yaml" <<END
frames: 17
track:
  - {span: all, source: latent, file: $scratch/a.safetensors, strength: 0}
END
check 'a timeline of saved latents' verb edit "$scratch/latent.yaml" --out "$scratch/latent.mp4" \
    --save-latents "$scratch/latent.safetensors"
check 'held, they come out as they went in' cmp "$scratch/a.safetensors" "$scratch/latent.safetensors"

check 'frames that fill no latent frame' verb extend "$a" --to 8f --after 4f --check
said 'are told of' 'the first 5 of 8 frames are used'
check 'time that is no whole latent frame' verb extend "$a" --after 2f --check
said 'is told of' '--after: 4 frames instead of 2'
printf 'frames: 17\nprompts:\n  - {span: 6f..end, text: x}\n' >"$scratch/moved.yaml"
check 'a span that moves' verb edit "$scratch/moved.yaml" --check
said 'is told of when checked' 'moved.yaml:3: prompts.0.: span 6f..end moved to frames 5'

printf 'size: 128x64\ntrack:\n  - {span: all, source: video, file: %s, mask: configs/timelines/mask.png}\n' "$a" >"$scratch/wide.yaml"
check 'a mask of another shape' verb edit "$scratch/wide.yaml" --out "$scratch/wide.mp4"
said 'is told of' 'the mask is cropped from 64x64 to the shape of 128x64'

# ---- what is wrong

# wrong CODE 'text' VERB options...
wrong() {
    local code=$1 text=$2
    shift 2
    expect_fail "$code" "$text" "$TESSERA" "$@" "${common[@]}" --out "$out"
}
wrong 2 '"video" is missing' remix --prompt x
wrong 3 'none.mp4' remix none.mp4 --prompt x
wrong 2 'one argument too many' remix "$a" "$b" --prompt x
wrong 2 'must be 0 to 1' remix "$a" --prompt x --strength 2
wrong 3 'the prompt is empty' remix "$a" --prompt ''
wrong 2 'no frame of it lies from 9s' loop "$a" --from 9s
wrong 2 'is for a loop from a prompt' loop "$a" --frames 8
wrong 2 '4k frames' loop --prompt x --frames 10
wrong 2 'give a video, or --prompt' loop
printf '# nothing yet\n' >"$scratch/nothing.yaml"
wrong 3 'nothing says what the video shows' edit "$scratch/nothing.yaml"
expect_fail 2 'videos are written as MP4' "$TESSERA" loop "$a" "${common[@]}" --out "$scratch/o.avi"
wrong 2 'are of a video' loop --prompt x --ends 0.3
wrong 2 'give --before' extend "$a"
wrong 2 'none' extend "$a" --after none
wrong 2 '"keep" is missing' recut "$a"
wrong 2 'give a range' recut "$a" --keep 1s
wrong 2 'a speed from 1/64' recut "$a" --keep 0s-1s@fast
wrong 2 'a speed from 1/64 to 64' recut "$a" --keep 0s-1s@0.01x
wrong 2 '--keep 0s-: give a range' recut "$a" --keep 0s-
wrong 2 'no frame of it lies from 2s' recut "$a" --keep 2s-1s
wrong 2 'keep more' recut "$a" --keep 0s-1s --keep 16f-17f
wrong 2 '"b" is missing' blend "$a"
wrong 2 'give one of them' blend "$a" "$b" --style --mask configs/timelines/mask.png
wrong 2 'is of a --mask' blend "$a" "$b" --feather 3
wrong 2 'show both throughout' blend "$a" "$b" --mask configs/timelines/mask.png --ramp sigmoid
wrong 3 'none.png' blend "$a" "$b" --mask none.png
wrong 2 'in the order of their times' storyboard "$scratch/late.yaml"
wrong 2 'end.yaml:4: no latent frame begins' storyboard "$scratch/end.yaml"
wrong 2 'a card has a text' storyboard "$scratch/empty.yaml"
wrong 3 'none.txt' blend "$a" "$b" --ramp none.txt
wrong 3 'none.yaml' edit none.yaml
wrong 2 'unknown' edit "$scratch/cards.yaml"
wrong 2 'unknown' storyboard "$scratch/concept.yaml"
echo 'duration: 1s' >"$scratch/cardless.yaml"
wrong 2 'cardless.yaml: "cards" is missing' storyboard "$scratch/cardless.yaml"
wrong 2 'give --prompt TEXT or a timeline' vary --words a=b
wrong 2 'write them there' vary "$scratch/concept.yaml" --words colour=red --words way=up --fps 4
wrong 2 'write NAME=CHOICE' vary --prompt x --words a
wrong 2 'write NAME=CHOICE' vary --prompt '{a}' --words =b
wrong 2 'no text has {b}' vary --prompt '{a}' --words a=1 --words b=1
wrong 2 'has its choices already' vary --prompt x --words a=b --words a=c
wrong 2 'no --words for the brace' vary --prompt 'a {thing}' --words a=b
wrong 3 'more than 8192 bytes with its words' vary --prompt "$(head -c 90000 /dev/zero | sed 's/\x0/{a}/g' | head -c 90000)" \
    --words a=b,c
wrong 2 'is for one video' vary --prompt 'a {a}' --words a=b,c --save-latents "$scratch/x.safetensors"
expect_fail 2 '"out" is missing' "$TESSERA" loop "$a" "${common[@]}"
expect_fail 2 'one file and there are 2 videos' "$TESSERA" vary --prompt 'a {a}' --words a=b,c "${common[@]}" --out "$out.mp4"
expect_fail 2 'name that ends in .png' "$TESSERA" loop "$a" "${common[@]}" --out "$out.mp4" --sheet "$out"
ln "$a" "$scratch/link.mp4"
expect_fail 2 'is a source of itself' "$TESSERA" loop "$a" "${common[@]}" --out "$scratch/link.mp4"
check 'a range longer than its source' verb recut "$a" --keep 1s-9s --check
said 'a range longer than its source is told' 'a.mp4: lasts 2.125 s only'
mkdir "$scratch/folder.mp4"
expect_fail 3 'is no regular file' "$TESSERA" loop "$a" "${common[@]}" --out "$scratch/folder.mp4"
expect_fail 3 'there is no folder' "$TESSERA" loop "$a" "${common[@]}" --out "$scratch/nowhere/a.mp4"
expect_fail 3 'not a model folder' "$TESSERA" loop "$a" --model nowhere --out "$out"

# ---- stopped

# interrupted RANKS: a signal in the middle ends it with 75 and leaves nothing
interrupted() {
    mkdir "$scratch/stop"
    "${MPIRUN[@]}" -n "$1" "$TESSERA" extend "$a" --after 60s "${common[@]}" --steps 1000 --out "$scratch/stop/a.mp4" \
        --preview-every 1 >"$scratch/check.log" 2>&1 &
    local job=$! waited=0
    until [ -e "$scratch/stop/a.preview.png" ] || [ $((waited++)) = 200 ]; do sleep 0.1; done
    kill -INT "$(pgrep -P $job -n tessera || echo $job)"
    wait $job
    said "stopped on $1 ranks" 'stopped by a signal before step'
    checks=$((checks + 1))
    [ -z "$(ls "$scratch/stop")" ] || fail "left $(ls "$scratch/stop")"
    rm -r "$scratch/stop"
}
interrupted 1
interrupted 2
# Of several videos the folder goes, too.
timeout -s INT 3 "$TESSERA" generate --prompts configs/demo-prompts.txt --frames 161 --out "$scratch/many" "${common[@]}" \
    --steps 1000 >"$scratch/check.log" 2>&1
said 'several videos were at work' 'nothing was written'
check 'a folder with nothing in it is not left' test ! -e "$scratch/many"
end
