#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Real footage, a folder of videos and captions in $FOOTAGE: a model is trained on it for five minutes (EDITS_MINUTES), and
# every way of editing makes its contact sheet, which are to be looked at: cluster/up edits --real. SHEETS keeps them.
. tests/shows/lib.sh
FOOTAGE=${FOOTAGE:-../shared/videos}
[ -f "$FOOTAGE/metadata.jsonl" ] || { echo "FOOTAGE=$FOOTAGE: no metadata.jsonl there; name a folder of videos and captions"; exit 77; }

EDITS_OUT=$scratch/edits BUILD=$(dirname "$TESSERA") cluster/up edits --real "$FOOTAGE" >"$scratch/log" 2>&1 || tail -5 "$scratch/log" >&2
title "Edits of $FOOTAGE"
for name in remix remix-box recut loop loop-prompt blend blend-style extend storyboard vary; do
    wanted "$name: its contact sheet is there" "$([ -s "$scratch/edits/$name.png" ] && echo yes || echo no)" = yes
done
title 'Steps between frames'
for name in remix recut loop blend extend storyboard; do
    option=()
    [ $name = loop ] && option=(--loop)
    measured "$name: largest over median; drift of light" \
        "$(score "$scratch/edits/$name.mp4" "${option[@]}" --print steps.largest,steps.median,drift.light | awk '{ printf "%.2f %s", $1 / $2, $3 }')"
done
measured 'loop: seam over the median step' "$(score "$scratch/edits/loop.mp4" --loop --print seam.ratio)"
[ -z "${SHEETS-}" ] || { mkdir -p "$SHEETS" && cp "$scratch"/edits/*.png "$SHEETS"; }
end
