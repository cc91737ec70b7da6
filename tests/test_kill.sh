#!/usr/bin/env bash
# TEST: timeout=600
# SPDX-License-Identifier: Apache-2.0
# Training under murder: kills at random instants, on 1, 2 and 4 ranks, lose no checkpoint that the log has
# acknowledged, and the run that went through them ends in the same bits as one that was left alone. A polite signal
# stops within a step.
#
#   TESSERA_KILLS   how many, over all numbers of ranks (20 when unset; 200 takes about ten minutes on idle cores)
#   TESSERA_SEED    of the instants
. tests/lib.sh

KILLS=${TESSERA_KILLS:-20}
RANDOM=${TESSERA_SEED:-4711}  # seeds bash's generator

mkdir "$scratch/corpus"
tiny_data "$scratch/corpus" 48
tiny_train_config "$scratch/corpus/data" "$scratch/unused" >"$scratch/train.yaml"
cat >>"$scratch/train.yaml" <<'EOF'
checkpoint: {every: 2, keep: 2}
EOF
endless="--train.schedule=constant --train.steps=1000000000"  # a constant rate may be given other steps later

on() {
    TRAIN=("${MPIRUN[@]}" -n "$1" "$TESSERA" train "$scratch/train.yaml")
}

# The last step in a run's log of the lines that begin with $2.
last_step() {
    sed -n "s/^$2 \([0-9]*\).*/\1/p" "$1/log-0.txt" 2>/dev/null | tail -1
}

# wait_for SECONDS command...: until it succeeds, looking fifty times a second
wait_for() {
    local left=$(($1 * 50))
    shift
    until "$@"; do
        [ $((left -= 1)) -gt 0 ] || return 1
        sleep 0.02
    done
}

# How many lines of a run's log begin with $2.
count() {
    cat "$1/log-0.txt" 2>/dev/null | grep -c "^$2"
}

has_lines() {
    [ "$(count "$1" "$2")" -ge "$3" ]
}

# Nothing with this folder on its command line is left.
is_over() {
    ! pgrep -f -- "--out=$1( |$)" >/dev/null
}

# same_state RUN RUN STEP: weights, averages, moments, data cursor
same_state() {
    local a b group
    a=$(printf '%s/checkpoints/step-%08d' "$1" "$3")
    b=$(printf '%s/checkpoints/step-%08d' "$2" "$3")
    for group in weights ema moment1 moment2; do
        cmp "$a/$group.safetensors" "$b/$group.safetensors" || return 1
    done
    diff <(sed -n '/"cursor"/,/}/p' "$a/manifest.json") <(sed -n '/"cursor"/,/}/p' "$b/manifest.json") &&
        grep -q '"samples"' "$a/manifest.json"
}

# ---- kill -9

# murder RUN PID RANKS: mpirun and all ranks, one of the ranks, or mpirun alone, whose ranks then find themselves orphaned
murder() {
    local children victim=$2
    children=$(pgrep -P "$2")
    case $((RANDOM % 3)) in
    0) victim="$2 $children" ;;
    1) victim=$(printf '%s\n' "${children:-$2}" | sed -n "$((RANDOM % $3 + 1))p") ;;
    esac
    kill -9 ${victim:-$2}
    wait "$2"
    wait_for 30 is_over "$1"
}

# one_kill RUN RANKS START: a run that is killed while it starts, or some time after it has written a checkpoint
one_kill() {
    local run=$1 pid saves resumes resumed
    resumes=$(count "$run" "resumed after")
    saves=$(count "$run" "checkpoint after")
    "${TRAIN[@]}" --out="$run" $endless >"$scratch/killed.log" 2>&1 &
    pid=$!
    if [ "$3" = yes ]; then
        sleep "0.$((RANDOM % 9))"
    else
        if [ "$acknowledged" -gt 0 ]; then
            check "the run goes on" wait_for 60 has_lines "$run" 'resumed after step' $((resumes + 1))
            resumed=$(last_step "$run" 'resumed after step')
            check "from the newest checkpoint" test "${resumed:-0}" -ge "$acknowledged"
        fi
        check "checkpoints are written" wait_for 60 has_lines "$run" 'checkpoint after' $((saves + 1))
        sleep "0.$(printf %02d $((RANDOM % 25)))"
    fi
    murder "$run" "$pid" "$2" 2>/dev/null
    acknowledged=$(last_step "$run" 'checkpoint after step')
    acknowledged=${acknowledged:-0}
    compgen -G "$run/checkpoints/*.tmp" >/dev/null && inside=$((inside + 1))
}

# kills RANKS COUNT
kills() {
    local run=$scratch/killed$1 alone=$scratch/alone$1 kill end
    acknowledged=0
    on "$1"
    for kill in $(seq "$2"); do
        one_kill "$run" "$1" "$([ $((kill % 5)) = 0 ] && echo yes)"
    done
    end=$((acknowledged + 7))
    check "$1 ranks: the run comes to its end" "${TRAIN[@]}" --out="$run" --train.schedule=constant --train.steps=$end
    check "$1 ranks: an undisturbed run does too" "${TRAIN[@]}" --out="$alone" --train.schedule=constant \
        --train.steps=$end --checkpoint.every=0
    check "$1 ranks: $2 kills change no bit of step $end" same_state "$run" "$alone" "$end"
    check "$1 ranks: nothing half-written is left" bash -c "! find '$run' -name '*.tmp*' | grep ."
    check "$1 ranks: its checkpoints are whole" "$TESSERA" check checkpoint "$run"
    check "$1 ranks: the metrics have every step once" test "$(grep -c '"grad_norm"' "$run/metrics.jsonl")" = "$end"
    echo "$1 ranks: $2 kills, $(grep -c '^resumed after' "$run/log-0.txt") resumes, $end steps"
}

inside=0
kills 1 $((KILLS * 3 / 10))
kills 2 $((KILLS - KILLS * 3 / 10 * 2))
kills 4 $((KILLS * 3 / 10))
check "at least three in ten of $KILLS kills fall inside a save: $inside" test "$inside" -ge $((KILLS * 3 / 10))
echo "$inside of $KILLS kills fell inside a save"

# ---- SIGTERM

run=$scratch/stopped
on 2
slow="--train.batch=40 --model.heads=4 --model.head_dim=32 --model.layers=4 --model.ffn_dim=512"  # tens of milliseconds a step
steps_done() {
    grep -c '"grad_norm"' "$run/metrics.jsonl" 2>/dev/null
}
"${TRAIN[@]}" --out="$run" $endless $slow >"$scratch/stopped.log" 2>&1 &
pid=$!
check 'the run starts' wait_for 60 has_lines "$run" 'step' $((RANDOM % 9 + 3))
kill -TERM $(pgrep -P "$pid" | tail -1)  # one rank: the others learn of it
seen=$(steps_done)
wait "$pid"
check 'a stopped run exits with 75' test "$?" = 75
stopped=$(last_step "$run" 'checkpoint after step')
check "it stops within a step: at ${stopped:-none}, $seen were seen" test "${stopped:-0}" -ge 1 -a "${stopped:-0}" -le $((seen + 2))
check 'the log says so' grep -q "^stopped by a signal after step $stopped, checkpoint written" "$run/log-0.txt"
end=$((stopped + 4))
check 'it goes on' "${TRAIN[@]}" --out="$run" --train.schedule=constant --train.steps=$end $slow
check 'an undisturbed run' "${TRAIN[@]}" --out="$scratch/calm" --train.schedule=constant --train.steps=$end $slow --checkpoint.every=0
check "a stop at step $stopped changes no bit of step $end" same_state "$run" "$scratch/calm" "$end"
end
