#!/usr/bin/env bash
# TEST: timeout=300
# SPDX-License-Identifier: Apache-2.0
# Steering a job that runs, from outside: receipts name the step, what was before it keeps its bits, and whichever way
# it ends, no process, socket or file stays.
. tests/lib.sh

red='a red circle moves left on a black background' blue='a blue circle moves left on a black background'
socket=$scratch/socket store=$scratch/store
job=(generate --model configs/shapes-model --prompt "$red" --steps 1000 --threads 1 --watch 2)

# start RANKS MESH options...: a job in the background, $pid
start() {
    local count=$1 mesh=$2
    shift 2
    rm -rf "$scratch/made"
    mkdir "$scratch/made"
    if [ "$count" = 1 ]; then
        "$TESSERA" "${job[@]}" --out "$scratch/made/a.mp4" "$@" >"$scratch/job.log" 2>&1 &
    else
        "${MPIRUN[@]}" -n "$count" "$TESSERA" "${job[@]}" --mesh "$mesh" --out "$scratch/made/a.mp4" "$@" \
            >"$scratch/job.log" 2>&1 &
    fi
    pid=$!
}

# steer options...: the receipt into $receipt; false when there is none
steer() {
    receipt=$("$TESSERA" steer "$socket" "$@" 2>"$scratch/check.log")
}

# The first message of all: tried until the socket is there.
steer_first() {
    for ((i = 0; i < 3000; i++)); do
        steer "$@" && return 0
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.01
    done
    fail "no receipt of $*"
    cat "$scratch/job.log" >&2
    return 1
}

step_of() { sed -n 's/.*"step": \([0-9]*\).*/\1/p' <<<"$1"; }

# check_receipt EVENT FRAMES
check_receipt() {
    check "the receipt of $1" grep -q "^{\"event\": \"$1\", \"step\": [0-9]*, \"frames\": $2}\$" <<<"$receipt"
}

# ended CODE..: the job ends with one of these codes and leaves nothing
ended() {
    local code
    wait "$pid"
    code=$?
    checks=$((checks + 1))
    case " $* " in *" $code "*) ;; *)
        fail "the job ended with $code, wanted $*"
        cat "$scratch/job.log" >&2
        ;;
    esac
    check 'no socket is left' test ! -e "$socket"
    check 'no file is left' test -z "$(ls "$scratch/made")"
}

# gone_within SECONDS
gone_within() {
    for ((i = 0; i < 20 * $1; i++)); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.05
    done
    return 1
}

objects() { sed -n '/"objects"/,/^  }/p' "$store/states/$1.json"; }

# ---- a whole conversation, on RANKS with MESH

converse() {
    local count=$1 mesh=$2 paused
    start "$count" "$mesh" --control "$socket" --preview-every 100 --store "$store"
    steer_first --pause || return
    check_receipt pause '\[\]'
    paused=$(step_of "$receipt")
    steer --seed-branch "before-$count"
    check_receipt seed-branch '\[\]'
    steer --prompt "$blue" --from-frame 9
    check_receipt prompt '\[9, 17\]'
    check 'nothing is computed in a pause' test "$(step_of "$receipt")" = "$paused"
    [ "$count" != 2 ] || sleep 2.5 # longer than the watch waits
    steer --seed-branch "after-$count"
    check_receipt seed-branch '\[\]'
    steer --preview sheet.png
    check_receipt preview '\[\]'
    check 'the preview is beside the video' test -s "$scratch/made/sheet.png"
    rm -f "$scratch/made/sheet.png"
    expect_fail 3 'must be 0 to 16' "$TESSERA" steer "$socket" --prompt "$blue" --from-frame 17
    expect_fail 3 'without a folder' "$TESSERA" steer "$socket" --preview "$scratch/preview.png"
    expect_fail 3 'without a folder' "$TESSERA" steer "$socket" --seed-branch "$scratch/other/state"
    expect_fail 3 'without a folder' "$TESSERA" steer "$socket" --seed-branch ..
    expect_fail 3 'asks for 0 things' "$TESSERA" steer "$socket" '{"id": 1}'
    steer --resume
    check_receipt resume '\[\]'
    steer '{"prompt": "a green square moves up on a black background", "id": "x"}'
    check 'the id is given back' grep -q '"id": "x"' <<<"$receipt"
    check 'it went on' test "$(step_of "$receipt")" -ge "$paused"
    steer --seed-branch "later-$count"
    steer --cancel
    check_receipt cancel '\[0, 17\]'
    check 'the cancelled job is gone' gone_within 10
    check 'it took no step after that' grep -q "cancelled before step $(step_of "$receipt");" "$scratch/job.log"
    if [ "$count" = 1 ]; then ended 75; else ended 75 1 205; fi

    # The unsteered run, up to the same step.
    start "$count" "$mesh" --save-state "$store/plain-$count" --save-at "$paused"
    for ((i = 0; i < 3000; i++)); do
        [ -e "$store/states/plain-$count.json" ] && break
        sleep 0.01
    done
    kill -TERM "$pid"
    wait "$pid"
    check 'before the step: the bits of the unsteered run' cmp "$store/states/before-$count.json" \
        "$store/states/plain-$count.json"
    objects "before-$count" >"$scratch/before"
    objects "after-$count" >"$scratch/after"
    objects "later-$count" >"$scratch/later"
    check 'a prompt alone changes no latents' cmp "$scratch/before" "$scratch/after"
    check 'the steps after it do' test "$(cmp "$scratch/after" "$scratch/later" | wc -l)" = 1
}
converse 1 ''
converse 2 cfg=2
converse 4 cfg=2,ulysses=2
check 'the tree' "$TESSERA" tree "$store"
said 'the states of one run are one branch' '└─ after-1 .*a blue circle'
said 'with what was said between' '└─ later-1 .*a green square'

# ---- signals, also in a pause

stopped() {
    local signal=$1 count=$2 mesh=$3 pause=$4
    start "$count" "$mesh" --control "$socket" --preview-every 1
    steer_first --pause || return
    [ "$pause" = yes ] || steer --resume
    kill "-$signal" "$pid"
    check "$signal ends it" gone_within 10
    if [ "$count" = 1 ]; then ended 75; else ended 75 1 130 143 205; fi
}
stopped INT 1 '' yes
stopped TERM 1 '' no
stopped TERM 2 cfg=2 yes
stopped INT 4 cfg=2,ulysses=2 yes
stopped USR1 2 cfg=2 yes

# ---- a process that is killed leaves its socket to the next one

start 1 '' --control "$socket"
steer_first --pause
kill -KILL "$pid"
wait "$pid" 2>/dev/null
check 'the socket of a killed job' test -S "$socket"
expect_fail 3 'no job listens there' "$TESSERA" steer "$socket" --pause
start 1 '' --control "$socket"
steer_first --pause
expect_fail 3 'another job listens' "$TESSERA" "${job[@]}" --out "$scratch/b.mp4" --control "$socket"
expect_fail 3 'the job knows no folder for states' "$TESSERA" steer "$socket" --seed-branch name
steer --cancel
ended 75

# ---- what the client refuses by itself

expect_fail 2 'give one message, not 0' "$TESSERA" steer "$socket"
expect_fail 2 'give one message, not 2' "$TESSERA" steer "$socket" '{"pause": true}' --pause
expect_fail 2 'give one message, not 2' "$TESSERA" steer "$socket" --prompt "$blue" --cancel
expect_fail 2 'give one message, not 0' "$TESSERA" steer "$socket" --wait 3
expect_fail 2 '--from-frame 3 says from where on, and nothing what' "$TESSERA" steer "$socket" --from-frame 3
expect_fail 2 '--from-frame 0 says from where on' "$TESSERA" steer "$socket" --from-frame 0
expect_fail 2 '--from-frame 3 says from where on' "$TESSERA" steer "$socket" --from-frame 3 --pause
expect_fail 2 'or "from_frame" inside the JSON' "$TESSERA" steer "$socket" '{"prompt": "x"}' --from-frame 3
expect_fail 2 'the message is empty' "$TESSERA" steer "$socket" ''
expect_fail 2 'the message is empty' "$TESSERA" steer "$socket" $' \n'
expect_fail 2 'at most 65536 are read' "$TESSERA" steer "$socket" "$(printf '%070000d' 0)"
expect_fail 3 'the prompt is empty' "$TESSERA" steer "$socket" --prompt ''
expect_fail 3 'is not UTF-8' "$TESSERA" steer "$socket" --prompt $'\xff'
expect_fail 3 'is not UTF-8' "$TESSERA" steer "$socket" --seed-branch $'\xff'
expect_fail 3 'has 1 to 107 bytes' "$TESSERA" steer "/$(printf '%0200d' 0)" --pause
expect_fail 3 'no job listens there' "$TESSERA" steer "$scratch/none" --pause
end
