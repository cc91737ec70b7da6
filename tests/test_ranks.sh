#!/usr/bin/env bash
# TEST: timeout=300
# SPDX-License-Identifier: Apache-2.0
# One, two and four ranks: the same data set, the same losses and the same videos.
. tests/lib.sh

mkdir "$scratch/corpus"
tiny_data "$scratch/corpus" 48

# ---- ingest: every byte alike

for n in 2 4; do
    check "ingest on $n ranks" ranks $n "$TESSERA" ingest "$scratch/corpus/ingest.yaml" --out="$scratch/data$n"
    check "the data set made on $n ranks is that of one" diff -r "$scratch/corpus/data" "$scratch/data$n"
done

# ---- train: the losses of 50 steps of one global batch

tiny_train_config "$scratch/corpus/data" "$scratch/unused" >"$scratch/train.yaml"
for n in 1 2 4; do
    check "train on $n ranks" ranks $n "$TESSERA" train "$scratch/train.yaml" --out="$scratch/run$n" --report=comm
    [ $n = 1 ] && sent='nothing was sent' || sent='^world *reduce-scatter  *[1-9]'
    said "what $n ranks sent" "$sent"
    sed -n 's/.*"step":\([0-9]*\),"loss":\([^,]*\),.*/\1 \2/p' "$scratch/run$n/metrics.jsonl" >"$scratch/loss$n"
done

# agree FILE: as many steps as on one rank, the losses within 1e-5 of it, the first within 1e-6: before any update it
# shows the clips and the noise alone.
agree() {
    paste -d ' ' "$scratch/loss1" "$1" | awk '
        function abs(x) { return x < 0 ? -x : x }
        { differ = abs($4 - $2) / abs($2); largest = differ > largest ? differ : largest }
        NF != 4 || $1 != $3 || $1 != NR || !(differ <= (NR == 1 ? 1e-6 : 1e-5)) { print; wrong = 1 }
        END { print NR " steps, largest relative difference " largest; exit wrong || NR != 50 }'
}
for n in 2 4; do
    check "the losses on $n ranks are those of one" agree "$scratch/loss$n"
    tail -1 "$scratch/check.log"
done

# ---- generate: every byte alike, with batches cut differently by the ranks

cat >"$scratch/prompts.txt" <<'EOF'
a red circle moves left on a black background
a cyan square moves down on a brown background
a yellow triangle moves right on a navy background
a white circle moves up on a grey background
nothing of the kind
EOF
for n in 1 2 4; do
    check "generate on $n ranks" ranks $n "$TESSERA" generate --model "$scratch/run1/model" --seed 7 --steps 6 \
        --prompts "$scratch/prompts.txt" --out "$scratch/videos$n" --sheet "$scratch/videos$n/sheet.png"
done
for n in 2 4; do
    check "the videos made on $n ranks are those of one" diff -r "$scratch/videos1" "$scratch/videos$n"
done
check "another seed makes another video" "$TESSERA" generate --model "$scratch/run1/model" --seed 8 --steps 6 \
    --prompts "$scratch/prompts.txt" --out "$scratch/other"
check "five videos and their captions" test "$(ls "$scratch/other" | wc -l)" = 6
check "the seed matters" bash -c "! diff -q '$scratch/other/00000-'*.mp4 '$scratch/videos1/00000-'*.mp4"
end
