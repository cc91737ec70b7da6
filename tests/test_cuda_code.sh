#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# TEST: timeout=300
# The machine code of the attention kernels: the tensor-core and copy instructions that each is written for are there,
# and nothing is spilled. A SKIP without CUDA objects in the build folder, or cuobjdump (of the CUDA toolkit; CUOBJDUMP
# names another).
. tests/lib.sh
cuobjdump=${CUOBJDUMP:-cuobjdump}
folder=$(dirname "$TESSERA")/CMakeFiles
command -v "$cuobjdump" >"$scratch/none" || { echo 'SKIP: no cuobjdump'; exit 77; }
objects=("$folder"/tessera-cuda*.dir/core/kernels/cuda/attention*.cu.o)
[ -f "${objects[0]}" ] || { echo 'SKIP: the build has no CUDA objects'; exit 77; }

# table FILE: a line `kernel architecture registers stack instruction=count ..` for each kernel of an object. Names are
# those of the source, template arguments behind them.
table() {
    { "$cuobjdump" --dump-resource-usage "$1" && "$cuobjdump" --dump-sass "$1"; } 2>/dev/null | awk '
        function plain(name) {
            sub(/.*_cu_[0-9a-f]*[0-9][0-9]attention/, "attention", name)
            return name
        }
        /^arch = /          { arch = $3 }
        /^ Function /       { sub(/:$/, "", $2); kernel = plain($2) " " arch }
        /^ +REG:/           { split($1, reg, ":"); split($2, stack, ":"); use[kernel] = reg[2] " " stack[2] }
        /Function : /       { kernel = plain($3) " " arch }
        match($0, /(HMMA|HGMMA|LDSM|LDGSTS|UTMALDG|SYNCS|STL|LDL)[A-Z0-9.]*/) {
            name = substr($0, RSTART, RLENGTH)
            sub(/\..*/, "", name)
            count[kernel " " name]++
            if ($0 ~ /HMMA\.16816\.F32\.BF16/) count[kernel " HMMA.16816.F32.BF16"]++
        }
        END {
            for (k in use) {
                line = k " " use[k]
                for (c in count) if (index(c, k " ") == 1) line = line " " substr(c, length(k) + 2) "=" count[c]
                print line
            }
        }' | sort
}

for object in "${objects[@]}"; do table "$object"; done >"$scratch/kernels"
cut -d' ' -f1-4 "$scratch/kernels" | column -t -N KERNEL,ARCHITECTURE,REGISTERS,STACK

# needs PATTERN INSTRUCTION..: every kernel whose name matches has them all, and there is one
needs() {
    local pattern=$1 instruction found=0 line
    shift
    while read -r line; do
        found=$((found + 1))
        for instruction in "$@"; do
            check "$pattern has $instruction" grep -q " $instruction=" <<<"$line"
        done
        check "$pattern keeps everything in registers" grep -qvE ' (STL|LDL)=' <<<"$line"
    done < <(grep -E "^$pattern" "$scratch/kernels")
    check "there are kernels $pattern" test "$found" -gt 0
}

needs 'attention_(forward|backward)_mma' HMMA.16816.F32.BF16 LDSM LDGSTS
if ls "$folder"/tessera-cuda-sm90.dir/core/kernels/cuda/attention*.o >"$scratch/none" 2>&1; then
    needs 'attention_(forward|backward)_sm90' HGMMA UTMALDG
fi
check 'the general kernels spill nothing' bash -c "! grep -E '^attention_(forward|backward)_general.* (STL|LDL)=' $scratch/kernels"
end
