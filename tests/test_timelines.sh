#!/usr/bin/env bash
# TEST: timeout=120
# SPDX-License-Identifier: Apache-2.0
# The example timelines: the commands of their own comments make them, with few steps, and so does the README's.
. tests/lib.sh

# Where they write is a folder of ours.
root=$PWD
cd "$scratch" || exit 1
ln -s "$root/configs" configs
mkdir out

# commands FILE: those of its comment, without "#"
commands() { sed -n 's/^#   tessera //p' "$1"; }

for file in configs/timelines/*.yaml; do
    commands "$file" >lines
    check "$file: its comment runs it" grep -q "^edit $file " lines
    while read -r line; do
        made=${line##*--out }
        if [ ! -e "$made" ]; then  # a source may be that of an example before
            eval "set -- $line"
            check "$file: $line" "$TESSERA" "$@" --steps 3 --threads 1
            check "$file: the video" test -s "$made"
        fi
    done <lines
done

awk '/^```yaml/ { inside = 1; next } /^```/ { inside = 0 } inside' "$root/README.md" >readme.yaml
check 'README.md: the timeline' "$TESSERA" edit readme.yaml --model configs/shapes-model --out out/readme.mp4 --steps 3 --threads 1
check 'help: the keys of the file' "$TESSERA" edit --help
said 'help: the keys of the file' "^The file's keys:"
said 'help: the keys of an entry' '^      strength: X '
end
