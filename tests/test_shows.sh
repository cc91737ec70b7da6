#!/usr/bin/env bash
# TEST: timeout=120
# SPDX-License-Identifier: Apache-2.0
# A few cases of what `cluster/up shows` measures: held bits, masks, strengths, speeds, extensions, ranks.
set -u
CASES=8 bash tests/shows/held.sh || exit 1
CASES=3 bash tests/shows/recut.sh
