# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the scripts of this folder share. Each measures one promise about editing on the shipped model and prints what was
# measured beside what is wanted; it ends with 1 when something was missed. `cluster/up shows` runs them all.
#
#   MODEL    the model folder (configs/shapes-model)      JOBS   videos made at a time (the cores)
#   CASES    cases of each kind; absent: as many as the promise names
. tests/lib.sh
MODEL=${MODEL:-configs/shapes-model} JOBS=${JOBS:-$(nproc)} TOOLS=${TOOLS:-$(dirname "$TESSERA")/shows-tools}
export TESSERA_LOG=${TESSERA_LOG:-warn}

title() { printf '\n%s\n' "$*"; }

# wanted 'what' VALUE OPERATOR LIMIT [UNIT]: a row of the table
wanted() {
    local verdict=yes
    awk -v a="$2" -v b="$4" -v o="$3" 'BEGIN {
        if (a == "-" || a == "") exit 1
        exit !(o == ">=" ? a >= b : o == "<=" ? a <= b : o == "<" ? a < b : a == b)
    }' || verdict=NO
    checks=$((checks + 1))
    [ $verdict = yes ] || failures=$((failures + 1))
    printf '  %-66s %10s %-2s %-8s %s\n' "$1" "$2${5-}" "$3" "$4${5-}" "$verdict"
}

# measured 'what' VALUE: a row without a limit
measured() { printf '  %-66s %10s\n' "$1" "$2"; }

# each COUNT FUNCTION argument..: FUNCTION argument.. I for I from 0, JOBS at a time; what they print, in order. One that
# prints nothing was not measured, which is a failure: shares are then of the others.
each() {
    local count=$1 i
    shift
    for ((i = 0; i < count; i++)); do
        [ "$(jobs -rp | wc -l)" -lt "$JOBS" ] || wait -n
        "$@" "$i" >"$scratch/each.$i" &
    done
    wait
    for ((i = 0; i < count; i++)); do
        [ -s "$scratch/each.$i" ] || fail "$* $i: nothing was measured"
        cat "$scratch/each.$i"
    done
}

# tessera VERB argument..: with the model, quietly; what goes wrong is printed
tessera() {
    local log=$scratch/log.$BASHPID
    "$TESSERA" "$1" --model "$MODEL" "${@:2}" >"$log" 2>&1 ||
        { printf 'failed: tessera %s\n' "$*" >&2; tail -3 "$log" >&2; return 1; }
}
score() { "$TESSERA" score "$@"; }

# clips COUNT SEED option..: a folder of clips of the shapes world that go on for ever, and its captions
clips() {
    "$TESSERA" world --clips "$1" --seed "$2" --motion wrap --out "$scratch/world$2" "${@:3}" >"$scratch/world.log" 2>&1 ||
        { cat "$scratch/world.log" >&2; exit 1; }
    mapfile -t caption < <(sed 's/.*"text": *"\([^"]*\)".*/\1/' "$scratch/world$2/metadata.jsonl")
}
clip() { printf '%s/world%d/%07d.mp4' "$scratch" "$1" $(($2 + 1)); }  # SEED INDEX

# Words of a caption: a COLOUR SHAPE moves DIRECTION on a BACKGROUND background
colour_of() { awk '{ print $2 }' <<<"$1"; }
shape_of() { awk '{ print $3 }' <<<"$1"; }
direction_of() { awk '{ print $5 }' <<<"$1"; }
colours=(red green blue yellow magenta cyan orange white)
# other_colour CAPTION I: another colour, the same for the same I
other_colour() {
    local own k
    own=$(colour_of "$1")
    for ((k = 0; k < 8; k++)); do
        [ "${colours[k]}" = "$own" ] && break
    done
    printf '%s' "${colours[(k + 1 + $2 % 7) % 8]}"
}

# compare A FRAME B FRAME COUNT [BOX]: largest difference, RMS difference, numbers of other bits
compare() { "$TOOLS" compare "$@"; }

# share EXPRESSION: per cent of the lines on standard input for which the awk expression holds; it does not where a field
# that it names is missing or no number ("-", nan, inf)
share() {
    awk -v named="$(grep -o '\$[0-9]*' <<<"$1" | tr -d '$' | tr '\n' ' ')" "{
        known = 1
        fields = split(named, field, \" \")
        for (i = 1; i <= fields; i++) if (\$(field[i]) ~ /^-?(nan|inf)?\$/) known = 0
        n++
        k += known && ($1) ? 1 : 0
    } END { if (n) printf \"%.1f\", 100 * k / n; else print \"-\" }"
}
mean() { awk "{ s += $1 } END { if (NR) printf \"%.4g\", s / NR; else print \"-\" }"; }
median() { awk "{ print $1 }" | sort -g | awk '{ x[NR] = $1 } END { if (NR) printf "%.4g", x[int((NR + 1) / 2)]; else print "-" }'; }
largest() { awk "{ print $1 }" | sort -g | tail -1; }

# same_on_ranks 'what' VERB argument..: its latents on 2 and 4 ranks are within 1e-3 of those on 1
same_on_ranks() {
    local what=$1 n
    shift
    rm -f "$scratch"/rank?.safetensors
    tessera "$@" --out "$scratch/rank1.mp4" --save-latents "$scratch/rank1.safetensors" || { fail "$what: not made"; return; }
    for n in 2 4; do
        ranks $n "$TESSERA" "$1" --model "$MODEL" "${@:2}" --out "$scratch/rank$n.mp4" \
            --save-latents "$scratch/rank$n.safetensors" >"$scratch/rank.log" 2>&1 || cat "$scratch/rank.log" >&2
        wanted "$what: largest difference of latents, $n ranks against 1" \
            "$(compare "$scratch/rank1.safetensors" 0 "$scratch/rank$n.safetensors" 0 0 | cut -d' ' -f1)" '<=' 1e-3
    done
}
