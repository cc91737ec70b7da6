#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# TEST: timeout=300
# What the compiler made of the CUDA kernels: no spilled registers, the tensor-core instructions that are meant, and
# none of the things that make wgmma slow without being wrong. Prints a table of all kernels that it saw.
#
# Needs nvcc, and no GPU. Machine code is read with cuobjdump (on the PATH, or named by CUOBJDUMP); where there is none,
# PTX is looked at instead. Attention is compiled here; other kernels are read from the build's objects, if it has some.
. tests/lib.sh

nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
[ -x "$nvcc" ] || { echo "SKIP: no nvcc"; exit 77; }
cuobjdump=${CUOBJDUMP:-$(command -v cuobjdump || command -v "$(dirname "$nvcc")/cuobjdump")}
cuda=core/kernels/cuda

# ---- compile attention

# compile FILE ARCHITECTURE: $scratch/FILE.o (or .ptx) and what the assembler says of it, .log
compile() {
    local name
    name=$(basename "$1" .cu)
    "$nvcc" -c -std=c++17 -O3 -DNDEBUG -D_GNU_SOURCE -I. --extra-device-vectorization "-gencode=arch=compute_$2,code=sm_$2" \
        -Xptxas=-v "$1" -o "$scratch/$name.o" >"$scratch/$name.log" 2>&1 || { fail "$1 does not compile"; cat "$scratch/$name.log"; }
    if [ -z "$cuobjdump" ]; then
        "$nvcc" -ptx -std=c++17 -O3 -DNDEBUG -D_GNU_SOURCE -I. "-gencode=arch=compute_$2,code=compute_$2" "$1" \
            -o "$scratch/$name.code"
    else
        "$cuobjdump" --dump-sass "$scratch/$name.o" >"$scratch/$name.code"
    fi
}

# Lines "file:architecture kernel registers stack spilled shared" from the assembler's words.
usage_of_log() {
    awk -v file="$1" '
        /Compiling entry function/ { split($0, part, "\047"); kernel = part[2] }
        /bytes stack frame/ { stack = $1; spilled = $5 + $9 }
        /: Used [0-9]+ registers/ {
            shared = 0
            for (i = 1; i < NF; i++) if ($(i + 1) == "bytes" && $(i + 2) ~ /smem/) shared = $i
            match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
            print file, kernel, registers, stack, spilled, shared
        }' "$2"
}

# The same of an object: spilled registers are part of the stack.
usage_of_object() {
    "$cuobjdump" -res-usage "$2" 2>&1 | awk -v file="$1" '
        /^arch = / { architecture = substr($3, 4) }
        /^ Function / { kernel = $2; sub(/:$/, "", kernel) }
        /REG:/ && kernel != "" {
            split($0, word, /[ :]+/)
            for (i in word) at[word[i]] = i
            print file ":" architecture, kernel, word[at["REG"] + 1], word[at["STACK"] + 1], "-", word[at["SHARED"] + 1]
            kernel = ""
        }'
}

sources=("$cuda"/attention_*_sm90.cu "$cuda"/attention_mma*.cu)
for source in "${sources[@]}"; do
    architecture=$([[ $source = *_sm90.cu ]] && echo 90a || echo 80)
    compile "$source" "$architecture"
    usage_of_log "$(basename "$source"):$architecture" "$scratch/$(basename "$source" .cu).log"
done >"$scratch/usage"
while [ -n "$cuobjdump" ] && read -r object; do
    file=$(basename "$object" .o)
    grep -q "^$file:" "$scratch/usage" || usage_of_object "$file" "$object" >>"$scratch/usage"
done < <(find "$(dirname "$TESSERA")"/CMakeFiles/tessera-cuda*.dir -name '*.cu.o' 2>"$scratch/nothing" | sort)

# ---- registers

# Kernels with an array on the stack that is no spill: the reduction of large arguments of sin and cos.
arrays=' sinusoid '

# `name<..>` of a mangled kernel, without its namespace and arguments.
plain() {
    c++filt | sed 's/(anonymous namespace):://g; s/_GLOBAL__N__[0-9a-z_]*:://g; s/^void //; s/(.*//'
}

printf '%-30s %-48s %9s %6s %7s %7s\n' file kernel registers stack spilled shared
while read -r file kernel registers stack spilled shared; do
    kernel=$(plain <<<"$kernel")
    printf '%-30s %-48s %9s %6s %7s %7s\n' "$file" "$kernel" "$registers" "$stack" "$spilled" "$shared"
    checks=$((checks + 1))
    [[ "$spilled" = - && $arrays = *" $kernel "* ]] && continue
    [ "$stack" = 0 ] && [ "${spilled/-/0}" = 0 ] || fail "$file, $kernel: $stack bytes of stack, $spilled spilled"
done <"$scratch/usage"
[ "$(wc -l <"$scratch/usage")" -ge 10 ] || fail "fewer than 10 kernels seen"

# ---- instructions

# count FILE PATTERN
count() {
    grep -cE "$2" "$scratch/$1.code" || true
}

# has FILE WORDS PATTERN LEAST MOST
has() {
    local n
    n=$(count "$1" "$3")
    checks=$((checks + 1))
    [ "$n" -ge "$4" ] && [ "$n" -le "$5" ] || fail "$1: $n times $2, wanted $4 to $5"
}

if [ -n "$cuobjdump" ]; then
    hgmma='HGMMA\.' hmma=' HMMA\.' copies='UTMALDG\.5D' exchange='LDSM\.'
else
    hgmma='wgmma.mma_async' hmma='[^g]mma\.sync' copies='cp.async.bulk.tensor' exchange='ldmatrix'
fi
many=1000000
for name in attention_forward_sm90 attention_backward_sm90; do
    has $name "a product of a warpgroup" "$hgmma" 60 $many
    has $name "a copy by the copy engine" "$copies" 6 $many
    has $name "a product of a warp" "$hmma" 0 0
    checks=$((checks + 1))
    # C7508: setmaxnreg is ignored; C7510 and on: wgmma is serialised, or waits were put in.
    grep -E '\(C75[0-9]+\)' "$scratch/$name.log" && fail "$name: the compiler changed how wgmma or registers are used"
done
for source in "$cuda"/attention_mma*.cu; do
    name=$(basename "$source" .cu)
    has "$name" "a product of a warp" "$hmma" 60 $many
    has "$name" "a load of matrices" "$exchange" 20 $many
done

# overlaps FILE LEAST: kernels that take at least so many exponentials between the wait for the scores and the wait for
# a product begun before: there they run beside the tensor cores.
overlaps() {
    awk -v least="$2" '
        /WARPGROUP.DEPBAR.LE gsb0, 0x1/ { inside = 1; n = 0 }
        inside && /MUFU.EX2/ { n++ }
        inside && /WARPGROUP.DEPBAR.LE gsb0, 0x0/ { inside = 0; if (n >= least) loops++ }
        END { print loops + 0 }' "$scratch/$1.code"
}

# Forward has 88 scores a thread; of the two passes backward, the one by queries, which has 48, can have such a loop.
if [ -n "$cuobjdump" ]; then
    forward=$(overlaps attention_forward_sm90 88) backward=$(overlaps attention_backward_sm90 48)
    checks=$((checks + 1))
    [ "$forward $backward" = "2 2" ] ||
        fail "of 2 + 2 kernels, $forward + $backward take exponentials beside the tensor cores"
else
    echo "no cuobjdump: PTX was looked at, not machine code"
fi
end
