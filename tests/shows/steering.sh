#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Steering: a prompt changed on the way wins, receipts name the step, nothing that is sent stops or splits the ranks.
. tests/shows/lib.sh

mapfile -t held_out <configs/shapes-held-out-prompts.txt

# changed I: at 40 % of the steps another colour is asked for
changed() {
    local first=${held_out[(2 * $1) % 96]} second
    second=${first/$(colour_of "$first")/$(other_colour "$first" "$1")}
    printf 'frames: 17\nprompts:\n  - {span: all, text: %s}\nevents:\n  - {at: 40%%, text: %s}\n' "$first" "$second" >"$scratch/$1.yaml"
    tessera edit "$scratch/$1.yaml" --seed "$1" --out "$scratch/changed$1.mp4" &&
        score "$scratch/changed$1.mp4" --prompt "$second" --print prompt.colour,prompt.direction,prompt.frames
}
each "${CASES:-40}" changed >"$scratch/changes"
title 'A colour changed at 40 % of the steps'
wanted 'the new colour wins' "$(share '$1 == "yes"' <"$scratch/changes")" '>=' 80 ' %'
measured 'and the direction is kept' "$(share '$1 == "yes" && $2 == "yes"' <"$scratch/changes") %"
measured 'frames of the new colour' "$(mean '100 * $3' <"$scratch/changes") %"

# hostile: a hundred messages that make no sense: cut off, huge, of wrong kinds, of another time
hostile() {
    awk 'BEGIN {
        srand(7)
        split("prompt from_frame pause resume preview seed-branch at step cancel", key, " ")
        for (i = 0; i < 100; i++) {
            kind = int(8 * rand())
            if (kind == 0) { for (k = 0; k < 200; k++) printf "%c", 33 + int(90 * rand()); print "" }
            else if (kind == 1) print "{\"prompt\": \"   \"}"
            else if (kind == 2) { printf "{\"prompt\": \""; for (k = 0; k < 80000; k++) printf "a"; print "\"}" }
            else if (kind == 3) print "{\"prompt\": \"a red circle\", \"from_frame\": " int(1e9 * rand()) + 17 "}"
            else if (kind == 4) print "{\"" key[1 + int(9 * rand())] "\": " -int(100 * rand()) "}"
            else if (kind == 5) print "{\"" key[1 + int(9 * rand())] "\": [[[[[[{}]]]]]]}"
            else if (kind == 6) print "{\"preview\": \"/nowhere/" i ".png\"}"
            else print "{\"prompt\": \"\\ud800 " i "\", \"pause\": true}"
        } }'
}
title 'A hundred messages that make no sense'
tessera generate --prompt "${held_out[0]}" --steps 400 --out "$scratch/plain.mp4" --save-latents "$scratch/plain.safetensors"
hostile >"$scratch/messages"
for n in 1 2 4; do
    ranks $n "$TESSERA" generate --model "$MODEL" --prompt "${held_out[0]}" --steps 400 --control "$scratch/socket" --watch 20 \
        --out "$scratch/hostile.mp4" --save-latents "$scratch/hostile.safetensors" >"$scratch/hostile.log" 2>&1 &
    job=$!
    timeout 60 "$TOOLS" steer "$scratch/socket" <"$scratch/messages" >"$scratch/answers" 2>/dev/null
    wait $job || cat "$scratch/hostile.log" >&2
    wanted "messages that $n ranks refused" "$(grep -c '^{"error"' "$scratch/answers")" = 100
    wanted "the video of $n ranks after them: largest difference of latents" \
        "$(compare "$scratch/hostile.safetensors" 0 "$scratch/plain.safetensors" 0 0 2>&1 | cut -d' ' -f1)" '<=' 1e-3
    wanted "sockets left by $n ranks" "$(find "$scratch" -name socket | wc -l)" = 0
    rm -f "$scratch"/hostile.*
done

title 'Receipts, bits before the named step, pause, cancel, signals (tests/test_steering.sh)'
wanted 'checks that failed' "$(env -u TESSERA_LOG bash tests/test_steering.sh 2>"$scratch/log" | sed -n 's/.*checks, \([0-9]*\) failed/\1/p')" = 0
cat "$scratch/log" >&2
end
