#!/usr/bin/env bash
# TEST: timeout=180
# SPDX-License-Identifier: Apache-2.0
# Two hosts, made of network namespaces joined by a cable: training over TCP has the losses of one host; a cut cable
# ends the job in time, on both sides; when it is mended, cluster/supervise goes on from the checkpoint to the bits of an
# undisturbed run.
. tests/lib.sh

TIMEOUT=4  # of the watch, in seconds
space=tessera-$$

# Ends what still runs on the two hosts, and takes them down.
clean() {
    local host pids
    for host in a b; do
        pids=$(ip netns pids $space-$host 2>/dev/null) && [ -n "$pids" ] && kill -9 $pids
        ip netns del $space-$host 2>/dev/null
    done
    rm -rf "$scratch"
}

skip() {
    echo "SKIP: $*" >&2
    exit 77
}

command -v ip >/dev/null || skip 'needs the ip command (package iproute2)'
trap clean EXIT
for host in a b; do
    ip netns add $space-$host 2>/dev/null && ip -n $space-$host link set lo up || skip 'network namespaces are not allowed here'
done
ip -n $space-a link add cable type veth peer name cable netns $space-b 2>/dev/null || skip 'no veth interfaces here'
ip -n $space-a addr add 10.77.0.1/24 dev cable && ip -n $space-b addr add 10.77.0.2/24 dev cable || exit 1
ip -n $space-a link set cable up && ip -n $space-b link set cable up || exit 1
ip netns exec $space-a unshare --uts true 2>/dev/null || skip 'host names cannot be changed here'

# The remote shell of mpirun: on ADDRESS COMMAND...
cat >"$scratch/on" <<EOF2
#!/bin/sh
case \$1 in 10.77.0.1) host=a ;; *) host=b ;; esac
shift
exec ip netns exec $space-\$host unshare --uts sh -c "hostname host-\$host; \$*"
EOF2
chmod +x "$scratch/on"

# Four ranks, two on each host.
HOSTS=("${MPIRUN[@]}" --mca plm_rsh_agent "$scratch/on" --host 10.77.0.1:2,10.77.0.2:2 --mca oob_tcp_if_include cable
    --mca btl tcp,vader,self --mca btl_tcp_if_include cable -n 4)

losses() {
    sed -n 's/.*"step":\([0-9]*\),"loss":\([^,]*\),.*/\1 \2/p' "$1/metrics.jsonl"
}

# until_true SECONDS command...
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.05
    done
}

# has FILE PATTERN COUNT
has() {
    [ "$(cat "$1" 2>/dev/null | grep -c -e "$2")" -ge "$3" ]
}

nothing_runs() {
    [ -z "$(ip netns pids $space-b)" ] && ! pgrep -f "^$TESSERA train $scratch" >/dev/null
}

mkdir "$scratch/corpus"
tiny_data "$scratch/corpus" 48
tiny_train_config "$scratch/corpus/data" "$scratch/unused" >"$scratch/train.yaml"
train=("$TESSERA" train "$scratch/train.yaml" --watch.timeout=$TIMEOUT)

# ---- the losses of one host

for mesh in '' '--mesh.tensor=2' '--mesh.sequence=4'; do
    name=${mesh#--mesh.}
    check "on two hosts $mesh" "$scratch/on" 10.77.0.1 "${HOSTS[*]} ${train[*]} --out=$scratch/two$name $mesh"
    check "on one host $mesh" ranks 4 "${train[@]}" --out="$scratch/one$name" $mesh
    check "fifty losses $mesh" test "$(losses "$scratch/two$name" | wc -l)" = 50
    check "the losses on two hosts are those of one $mesh" diff <(losses "$scratch/two$name") <(losses "$scratch/one$name")
done

# ---- a cable cut in mid-step, and mended

run=$scratch/cut
steps=2000
long=("${train[@]}" --train.schedule=constant --train.steps=$steps --checkpoint.every=50 --checkpoint.keep=0)
"$scratch/on" 10.77.0.1 "exec cluster/supervise --delay 8 -- ${HOSTS[*]} ${long[*]} --out=$run" >"$scratch/said" 2>&1 &
supervisor=$!
check 'the run has checkpoints' until_true 60 has "$run/log-0.txt" '^checkpoint after' 2
sleep "0.$((RANDOM % 10))"
ip -n $space-a link set cable down
cut=${EPOCHREALTIME/./}
check "the job has ended" until_true $((TIMEOUT + 10)) nothing_runs
took=$(((${EPOCHREALTIME/./} - cut) / 1000))
echo "$took ms after the cut no rank was left: $(grep '^\[rank ' "$scratch/said")"
check "in time: $took ms" test $took -lt $(((TIMEOUT + 5) * 1000))
check 'one line says why' test "$(grep -c '^\[rank ' "$scratch/said")" = 1
check 'and names rank, host, step and operation' grep -q \
    "^\[rank 2/4 host-b\] step [0-9]*: silent for $TIMEOUT s; last seen .* axis.*; 1 other rank is silent too$" "$scratch/said"
check 'the supervisor notices' until_true 10 has "$scratch/said" 'supervise: exit code .*; restart 1 in 8 s, from step-' 1
ip -n $space-a link set cable up
wait $supervisor
check 'the mended run ends well' test $? = 0
check 'it went on from a checkpoint' has "$run/log-0.txt" '^resumed after step' 1
check 'an undisturbed run on one host' ranks 4 "${long[@]}" --out="$scratch/calm" --checkpoint.every=0

same_state() {
    local file
    for file in "$1"/*.safetensors; do
        cmp "$file" "$2/${file##*/}" || return 1
    done
}
last=checkpoints/$(printf 'step-%08d' $steps)
check 'ends in the same bits' same_state "$run/$last" "$scratch/calm/$last"
check 'no process is left' nothing_runs
end
