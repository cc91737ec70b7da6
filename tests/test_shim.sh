#!/usr/bin/env bash
# TEST: timeout=120
# SPDX-License-Identifier: Apache-2.0
# The imitated GPU finds mistakes that were planted in kernels and calls (tests/shim/faults.cu), and nothing else.
set -u
faults=$(dirname "$TESSERA_SHIM")/tests/shim/shim-faults
failed=0
count=0

# name, exit code, words of the message
expect() {
    local said code
    said=$(timeout 30 "$faults" "$1" 2>&1)
    code=$?
    count=$((count + 1))
    if [ $code -ne "$2" ] || [[ "$said" != *"$3"* ]]; then
        echo "$1: exit code $code, wanted $2 and \"$3\": $said"
        failed=1
    fi
}

for order in alternate forward reverse warps random; do
    TESSERA_SHIM_ORDER=$order expect none 0 ""
done
TESSERA_SHIM_ORDER=sideways expect missing-barrier 6 "use alternate, forward, reverse, warps or random"
# In a kernel
expect missing-barrier 3 "sums over blocks"
expect early-rewrite 3 "two sums over a block"
TESSERA_SHIM_ORDER=warps expect early-rewrite 3 "two sums over a block"
expect barrier-for-some 6 "kernel part_waits"
expect barriers-diverge 6 "kernel two_barriers"
expect missing-lanes 6 "which takes no part"
expect exchanges-diverge 6 "divergence"
expect write-behind-end 6 "write_at: byte 400 of device memory of 400 bytes"
expect read-far-behind-end 6 "kernel read_at"
expect write-behind-shared 6 "byte 400 of 400 of the launch's shared memory was written"
expect write-far-behind-shared 6 "kernel write_shared"
expect unwritten 3 "memory that nobody wrote"
expect no-wait-for-copy 3 "a product of a warpgroup"
expect no-wait-for-product 3 "a product of a warpgroup"
expect no-wgmma-fence 6 "without a wgmma.fence"
expect early-refill 3 "a product of a warpgroup"
expect too-many-bytes 6 "mbarrier.try_wait"
expect wrong-stride 3 "a product of a warpgroup"
# In calls
expect missing-fork 3 "kernels on two streams"
expect missing-join 3 "kernels on two streams"
expect early-reuse 3 "an upload from page-locked memory"
expect early-read 3 "a download to page-locked memory"
expect host-reads-device 6 "host code: access to address"
expect freed-argument 1 "outside of all memory of the device"
expect copy-of-freed 1 "invalid argument"
expect kernel-gets-host-pointer 1 "is memory of the host"
expect struct-holds-host-pointer 1 "holds a pointer to memory of the host at byte 8"
expect too-many-threads 1 "invalid configuration argument"
expect too-much-shared-memory 1 "invalid argument"
expect wait-in-recording 1 "previous error during capture"
expect recording-not-joined 1 "unjoined work"

echo "$count runs with planted mistakes or none"
exit $failed
