#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# TEST: timeout=120
# The test of attention on an imitated GPU of sm_90, which has kernels of its own, in every order of threads.
set -eu
program=$(dirname "$TESSERA_SHIM")/test_cuda_attention-shim
kernels=$(mktemp)
trap 'rm -f "$kernels"' EXIT
export TESSERA_BACKEND=shim TESSERA_SHIM_CAPABILITY=90 TESSERA_SHIM_KERNELS=$kernels
for order in alternate random; do
    TESSERA_SHIM_ORDER=$order "$program"
done
for kernel in attention_forward_sm90 attention_backward_sm90; do
    grep -q "^$kernel" "$kernels" || { echo "$kernel never ran"; exit 1; }
done
