#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# TEST: timeout=60
# tessera doctor: alone, over ranks, as JSON, and what it says of GPUs with and without one.
. tests/lib.sh

check 'it runs alone' "$TESSERA" doctor
said 'the instruction set' 'instruction set'
said 'the memory' 'GiB to be had'
said 'GPUs, or why there are none' '^GPUs'
check 'help' "$TESSERA" doctor --help
said 'the device' '--device'
check 'it runs over ranks' mpirun --allow-run-as-root --oversubscribe --bind-to none -n 2 "$TESSERA" doctor
said 'how many there are' '2, of which 2 on this host'

"$TESSERA" doctor --json >"$scratch/doctor.json"
check 'JSON' python3 - "$scratch/doctor.json" <<'END'
import json, sys
report = json.load(open(sys.argv[1]))
facts = report["facts"]
assert {f["group"] for f in facts} == {"program", "host", "ranks", "GPUs"}, facts
assert all(f["verdict"] in ("ok", "note", "problem") for f in facts)
assert all(("remedy" in f) == (f["verdict"] != "ok") for f in facts)
assert report["problems"] == sum(f["verdict"] == "problem" for f in facts)
assert report["notes"] == sum(f["verdict"] == "note" for f in facts)
END
check 'a name that is none is refused' bash -c "'$TESSERA' doctor --device tpu; test \$? = 2"

# Without a GPU the program starts, says so, and refuses only who asks for one.
if "$TESSERA" doctor | grep -q 'backends.*cuda'; then
    if ! "$TESSERA" doctor | grep -q 'GPU 0'; then
        check 'no GPU is a note' "$TESSERA" doctor
        said 'why' 'none: no '
        check 'it is refused when asked for' bash -c "'$TESSERA' doctor --device cuda; test \$? = 5"
    fi
else
    check 'a build without CUDA says so' "$TESSERA" doctor
    said 'and how to get it' 'TS_CUDA=ON'
    check 'cuda is wrong use of it' bash -c "'$TESSERA' doctor --device cuda; test \$? = 2"
fi

check 'an imitated GPU' "$TESSERA_SHIM" doctor --device cuda
said 'it is told of' 'GPU 0.*compute capability'
end
