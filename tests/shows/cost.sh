#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What editing costs: a canvas beside the plainest loop of sampling, and what is held is not computed.
. tests/shows/lib.sh

title 'A video of a prompt, one thread'
read -r plain canvas more < <("$TOOLS" cost "$MODEL" "${CASES:-15}")
measured 'seconds of the plainest loop, as a canvas: medians' "$plain $canvas"
wanted 'the canvas takes more by' "$more" '<=' 2 ' %'

# seconds STEPS VERB argument..: of the processor
seconds() {
    "$TOOLS" peak "$TESSERA" "$2" --model "$MODEL" --threads 1 --steps "$1" --out "$scratch/v.mp4" "${@:3}" 2>&1 |
        awk '/^peak/ { print $4 }'
}
# steps VERB argument..: 200 steps, less what is no step: the median of three
steps() { for _ in 1 2 3; do awk "BEGIN { print $(seconds 201 "$@") - $(seconds 1 "$@") }"; done | median '$1'; }
title 'A held prefix of half the length'
clips 1 61 --frames 33
for frames in 33 65 129; do
    half=$((frames / 2 + 1))
    "$TESSERA" world --clips 1 --seed 6$frames --motion wrap --frames $half --out "$scratch/world6$frames" >"$scratch/log" 2>&1
    all=$(steps generate --prompt "${caption[0]}" --frames $frames)
    free=$(steps extend "$(clip 6$frames 0)" --after $((frames - half))f --prompt "${caption[0]}")
    measured "$frames frames: processor's seconds of 200 steps, all free and half held" "$all $free"
    saved=$(awk "BEGIN { printf \"%.1f\", 100 * (1 - $free / $all) }")
    if [ $frames -gt 33 ]; then
        wanted "$frames frames: time saved" "$saved" '>=' 30 ' %'
    else  # of two windows the held frames that they look at are a good part
        measured "$frames frames: time saved" "$saved %"
    fi
done
end
