#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# TEST: timeout=120
# cluster/gpu: its logic, on the imitated GPU, where nvidia-smi is a script of ours.
. tests/lib.sh

programs=$(dirname "$TESSERA_SHIM")
mkdir -p "$scratch"/{bin,build}
printf '#!/bin/sh\necho "imitated GPU, 0, 16384 MiB"\n' >"$scratch/bin/nvidia-smi"
printf '#!/bin/sh\necho "wrong by intent" >&2\nexit 3\n' >"$scratch/build/fails"
printf '#!/bin/sh\necho "SKIP: by intent" >&2\nexit 77\n' >"$scratch/build/skips"
printf '#!/bin/sh\nsleep 30\n' >"$scratch/build/hangs"
chmod +x "$scratch"/bin/* "$scratch"/build/*
ln -s "$TESSERA_SHIM" "$scratch/build/tessera"
gpu() { PATH=$scratch/bin:$PATH cluster/gpu --build "$scratch/build" --out "$scratch/results.md" "$@"; }
says() { check "$1" grep -qE "$2" "$scratch/results.md"; }

echo "kernels_norm 1 60 $programs/test_kernels_norm-shim" >"$scratch/build/cuda-cases.txt"
echo "comm_device 2 60 $programs/test_comm_device-shim" >>"$scratch/build/cuda-cases.txt"
echo "skips 1 60 $scratch/build/skips" >>"$scratch/build/cuda-cases.txt"
check 'all cases pass or are skipped' gpu cases
says 'the GPU and the commit' '^# Tessera on imitated GPU'
says 'what doctor says' 'ok +GPU 0'
says 'a case that passed' '^. kernels_norm.cuda.1 . passed'
says 'a case of two ranks' '^. comm_device.cuda.2 . passed'
says 'a case that was skipped, with its reason' 'skipped: SKIP: by intent'

check 'golden files that are absent are no failure' gpu --shared "$scratch/nothing" parity
says 'but are named' 'parity_f32_wan_t2v_tiny . skipped: SKIP: no golden files'

echo "fails 1 60 $scratch/build/fails" >"$scratch/build/cuda-cases.txt"
echo "hangs 1 1 $scratch/build/hangs" >>"$scratch/build/cuda-cases.txt"
check 'a failure is the exit code' bash -c "$(declare -f gpu); scratch=$scratch; gpu cases; test \$? = 1"
says 'and is told' 'fails.cuda.1 . ..failed.. .3.: wrong by intent'
says 'a case that hangs is ended' 'hangs.cuda.1 . ..failed.. .124.'

check 'a stage that is none' bash -c "cluster/gpu dance; test \$? = 2"
check 'no GPU' bash -c "PATH=/usr/bin:/bin; command -v nvidia-smi && exit; cluster/gpu --build $scratch/build --out $scratch/none.md cases; test \$? = 5"
check 'help' cluster/gpu --help
said 'it names the stages' '^  sanitize'
end
