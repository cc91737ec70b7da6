#!/usr/bin/env bash
# TEST: timeout=120
# SPDX-License-Identifier: Apache-2.0
# The commands of the README's section on editing run as they are printed.
. tests/lib.sh

mkdir "$scratch/root" "$scratch/bin"
ln -s "$PWD/configs" "$scratch/root/configs"
ln -s "$TESSERA" "$scratch/bin/tessera"
sed -n '/^## Editing/,/^## The timeline/p' README.md | sed -n '/^```$/,/^```$/p' | sed '/^```$/d' >"$scratch/commands.sh"
checks=$((checks + 1))
(cd "$scratch/root" && PATH=$scratch/bin:$PATH bash -e "$scratch/commands.sh") >"$scratch/check.log" 2>&1 ||
    { fail 'a command of the README failed'; tail -5 "$scratch/check.log" >&2; }
for name in remix part recut loop circle blend style into extend storyboard; do
    check "$name.mp4 is made" test -s "$scratch/root/out/edit/$name.mp4"
done
check 'four versions are made' test "$(ls "$scratch/root/out/edit/versions"/*.mp4 | wc -l)" = 4
end
