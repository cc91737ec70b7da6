#!/usr/bin/env bash
# TEST: timeout=240
# SPDX-License-Identifier: Apache-2.0
# cluster/supervise: a run whose ranks are killed goes on from its checkpoint and ends in the bits of one that was left
# alone; what another run cannot mend is not run again; budgets end; a signal stops after a checkpoint.
. tests/lib.sh

supervise=(cluster/supervise --delay 0)

# code WANTED 'what' command...: its output is in $scratch/said
code() {
    local wanted=$1 what=$2 got
    shift 2
    "$@" >"$scratch/said" 2>&1
    got=$?
    check "$what: exit code $got, wanted $wanted" test "$got" = "$wanted"
}

# says COUNT PATTERN: so many lines of the last output
says() {
    check "$1 lines of \"$2\" in: $(tail -c 1000 "$scratch/said")" test "$(grep -c -e "$2" "$scratch/said")" = "$1"
}

# ---- the rules, on commands that only end

fake=$scratch/fake
cat >"$fake" <<'EOF2'
#!/usr/bin/env bash
# fake DIR CODES: the n-th run makes a checkpoint when its entry has a +, and ends with the entry's code
n=$(($(cat "$1/runs" 2>/dev/null || echo 0) + 1))
echo $n >"$1/runs"
entry=$(cut -d, -f$n <<<"$2")
case $entry in *+) mkdir -p "$1/checkpoints/$(printf 'step-%08d' $n)" ;; esac
entry=${entry%+}
[ "$entry" -le 128 ] || kill -$((entry - 128)) $$
exit "$entry"
EOF2
chmod +x "$fake"

# play CODE CODES [options]: under supervision, exits with CODE; sets $runs
play() {
    local wanted=$1 codes=$2 dir
    shift 2
    dir=$(mktemp -d "$scratch/play.XXXX")
    code "$wanted" "runs of $codes" "${supervise[@]}" --run "$dir" "$@" -- "$fake" "$dir" "$codes"
    runs=$(cat "$dir/runs")
}

ran() {
    check "$runs runs, wanted $1" test "$runs" = "$1"
}

play 0 0 && ran 1
play 0 5,137,139,1,4+,0 --stalls 4 && ran 6
says 5 '; restart [1-5] in 0 s, from '
says 1 'exit code 137 (killed by SIGKILL); restart 2 in 0 s, from the beginning'
says 1 'exit code 4 (resource exhausted); restart 5 in 0 s, from step-00000005'
says 1 'done after [0-9]* s and 5 restarts'
for end in 2 3 75; do
    play $end 5,$end,0 && ran 2
done
play 127 5,127,0 && ran 2
play 5 5,5,5,5,5 --stalls 2 && ran 3
says 1 'giving up after 2 restarts without a new checkpoint in '
play 5 5+,5+,5+,5+,5+ --retries 3 && ran 4
says 1 'giving up after 3 restarts within 86400 s'
play 0 75+,75+,0 --requeue && ran 3
play 0 5+,5+,5+,0 --retries 1 --window 0 && ran 4
code 2 'no command' cluster/supervise --retries 3
code 2 'no such option' cluster/supervise --retry 3 -- true
code 2 'no number' cluster/supervise --retries many -- true
code 2 'no run' cluster/supervise -- true
check 'help' cluster/supervise --help
said 'help' '--retries N'

started=$SECONDS
play 5 5,5,5 --delay 1 --stalls 2 && ran 3
check 'the delay doubles' test $((SECONDS - started)) -ge 3

# ---- a real run

mkdir "$scratch/corpus"
tiny_data "$scratch/corpus" 48
tiny_train_config "$scratch/corpus/data" "$scratch/run" >"$scratch/train.yaml"
cat >>"$scratch/train.yaml" <<'EOF2'
checkpoint: {every: 10, keep: 0}
EOF2
train=("${MPIRUN[@]}" -n 2 "$TESSERA" train "$scratch/train.yaml" --train.steps=600)

# lines FILE PATTERN
lines() {
    cat "$1" 2>/dev/null | grep -c -e "$2"
}

# until_lines FILE PATTERN COUNT: for 60 s at most
until_lines() {
    for _ in $(seq 3000); do
        [ "$(lines "$1" "$2")" -lt "$3" ] || return 0
        sleep 0.02
    done
    return 1
}

same_state() {
    local group
    for group in "$1"/*.safetensors; do
        cmp "$group" "$2/${group##*/}" || return 1
    done
}

log=$scratch/run/log-0.txt
"${supervise[@]}" --log "$scratch/events" -- "${train[@]}" >"$scratch/said" 2>&1 &
pid=$!
for kill in 1 2; do
    check "checkpoints before kill $kill" until_lines "$log" '^checkpoint after' $((2 * kill))
    rank=$(pgrep -f "^$TESSERA train $scratch/train.yaml" | sed -n "${kill}p")
    check "a rank is killed" kill -9 "$rank"
    check "run $((kill + 1)) goes on" until_lines "$log" '^resumed after' $kill
done
wait $pid
check 'the supervised run ends well' test $? = 0
says 2 'exit code 137 (killed by SIGKILL); restart [12] in 0 s, from step-'
says 1 'done after'
check 'the events are in the log file' test "$(lines "$scratch/events" ' supervise: ')" = 3
check 'an undisturbed run' "${train[@]}" --out="$scratch/alone"
check 'ends in the same bits' same_state "$scratch/run/checkpoints/step-00000600" "$scratch/alone/checkpoints/step-00000600"

# ---- a signal

"${supervise[@]}" -- "${train[@]}" --out="$scratch/stopped" --train.steps=100000 >"$scratch/said" 2>&1 &
pid=$!
check 'the run starts' until_lines "$scratch/stopped/log-0.txt" '^checkpoint after' 1
kill -TERM $pid
wait $pid
check 'a stopped run exits with 75' test $? = 75
says 1 'SIGTERM: stopping after a checkpoint'
says 1 'stopped; run the same command to go on'
check 'after a checkpoint' test "$(lines "$scratch/stopped/log-0.txt" '^stopped by a signal after step')" = 1
check 'nothing is left' bash -c "! pgrep -f '^$TESSERA train $scratch'"
end
