#!/usr/bin/env bash
# TEST: timeout=30
# SPDX-License-Identifier: Apache-2.0
# What the scripts of tests/shows count with: what was not measured is never counted as good.
. tests/shows/lib.sh

# shares EXPRESSION SHARE: of six lines, some of which have no number
shares() {
    local got
    got=$(printf '1 2\n- 0\n3 -\nnan 1\n-inf 4\n5\n' | share "$1")
    check "share of $1 is $got, not $2" test "$got" = "$2"
}
shares '$1 <= 3' 33.3
shares '$1 >= 0' 50.0
shares '$2 <= 3' 50.0
shares '$1 <= 3 && $2 <= 3' 16.7
check 'the share of nothing' test "$(share '$1' </dev/null)" = -

# even I: prints I when it is even
even() { (($1 % 2)) || echo "$1"; }
each 4 even >"$scratch/even" 2>"$scratch/named"
failures=$((failures - 2))
check 'two cases without a result are failures, which are named' grep -q 'even 3: nothing was measured' "$scratch/named"
check 'and no others' test $failures = 0
check 'the others are there, in order' test "$(tr '\n' ' ' <"$scratch/even")" = '0 2 '

failed=$failures
wanted 'a limit that is missed' 2 '<=' 1 >"$scratch/row"
wanted 'nothing measured' '' '<=' 1 >>"$scratch/row"
wanted 'no number' - '<=' 1 >>"$scratch/row"
failures=$((failures - 3))
check 'rows that are missed count' test $failures = "$failed"
wanted 'a limit that is kept' 0.5 '<=' 1 >>"$scratch/row"
check 'a row that is kept does not' test "$(grep -c 'NO$' "$scratch/row") $(grep -c 'yes$' "$scratch/row")" = '3 1'
end
