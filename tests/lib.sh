# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the test scripts share. Sourced from the source root, where ctest runs them:
#
#   TESSERA, TESSERA_SHIM   the executable, and the one on an imitated GPU (build/tessera.. when unset)
#   scratch   a folder of this script's own, removed at the end
#
# Checks print and count; the script ends with `end`, which fails when one of them did.
set -u
export LC_ALL=C OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
export CUDA_VISIBLE_DEVICES=  # what is expected of $TESSERA is the CPU's, also where there is a GPU
TESSERA=${TESSERA:-$PWD/build/tessera} TESSERA_SHIM=${TESSERA_SHIM:-$PWD/build/tessera-shim}
[ -x "$TESSERA" ] || { echo "$TESSERA: no such executable; build first, or set TESSERA" >&2; exit 1; }
scratch=$(mktemp -d "${TMPDIR:-/tmp}/tessera-test.XXXXXX") || exit 1
trap 'rm -rf "$scratch"' EXIT
failures=0 checks=0
out=$scratch/out
# Address space for what is expected to fail, in kB. A sanitizer maps more than any limit allows.
memory=$( (ulimit -v 4000000 && "$TESSERA" --help) >"$scratch/check.log" 2>&1 && echo 4000000 || echo unlimited)

fail() {
    printf '%s:%s: %s\n' "${BASH_SOURCE[-1]##*/}" "${BASH_LINENO[-2]}" "$*" >&2
    failures=$((failures + 1))
}

# check 'what must hold' command...
check() {
    local what=$1
    shift
    checks=$((checks + 1))
    "$@" >"$scratch/check.log" 2>&1 || { fail "$what: $*"; head -c 2000 "$scratch/check.log" >&2; }
}

# said 'what must hold' PATTERN: in the output of the last command that was checked
said() {
    checks=$((checks + 1))
    grep -q -e "$2" "$scratch/check.log" || { fail "$1: no line with \"$2\""; head -c 2000 "$scratch/check.log" >&2; }
}

# expect_fail CODE 'text' command...: within 20 seconds and 4 GB it ends with this code and one line of ours, which
# holds the text; what it was told to write, $out, is not there.
expect_fail() {
    local code=$1 text=$2 got
    shift 2
    checks=$((checks + 1))
    (ulimit -v "$memory"; exec timeout -k 1 20 "$@") >"$scratch/check.log" 2>&1
    got=$?
    [ "$got" = "$code" ] || complain "exit code $got, wanted $code" "$@"
    [ "$(grep -c -e '^error: ' -e '^\[rank ' "$scratch/check.log")" = 1 ] || complain 'not one error line' "$@"
    grep -F -e 'error: ' "$scratch/check.log" | grep -qF -e "$text" || complain "no error line with \"$text\"" "$@"
    [ ! -e "$out" ] || complain "left $(find "$out" | head -5 | tr '\n' ' ')" "$@"
    rm -rf "$out"
}

complain() {
    local what=$1
    shift
    printf '%s:%s: %s: %.300s\n' "${BASH_SOURCE[-1]##*/}" "${BASH_LINENO[-2]}" "$what" "$*" >&2
    head -c 1500 "$scratch/check.log" >&2
    failures=$((failures + 1))
}

end() {
    printf '%d checks, %d failed\n' "$checks" "$failures"
    [ "$failures" = 0 ]
    exit
}

# As root too, with more ranks than cores too, and idle ranks give way.
MPIRUN=(mpirun --allow-run-as-root --oversubscribe --bind-to none --mca mpi_yield_when_idle 1)

# ranks N command...
ranks() {
    local count=$1
    shift
    "${MPIRUN[@]}" -n "$count" "$@"
}

# A data set that trains in a moment: tiny_data FOLDER CLIPS
tiny_data() {
    "$TESSERA" world --clips "$2" --size 32x32 --frames 9 --out "$1/clips" >"$1.log" 2>&1 &&
        tiny_ingest_config "$1/clips" "$1/data" >"$1/ingest.yaml" &&
        "$TESSERA" ingest "$1/ingest.yaml" >>"$1.log" 2>&1 || { cat "$1.log" >&2; exit 1; }
}

# tiny_ingest_config SOURCE OUT
tiny_ingest_config() {
    printf 'source: %s\nout: %s\nbuckets: [32x32x9]\nchannels: 8\ncodec_sample: 16\nfiles_per_group: 8\n' "$1" "$2"
}

# A model that trains in a moment: tiny_train_config DATA OUT
tiny_train_config() {
    cat <<EOF
data: $1
out: $2
precision: f32
model: {heads: 1, head_dim: 16, layers: 1, ffn_dim: 32, freq_dim: 32, text_rows: 12}
text: {width: 16, heads: 1, head_dim: 16, ffn_dim: 32, layers: 1}
train: {steps: 50, batch: 8, warmup: 5}
validate: {every: 0, clips: 8, levels: 2}
sample: {steps: 4}
log: {every: 1}
EOF
}
