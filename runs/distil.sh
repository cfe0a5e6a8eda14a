#!/usr/bin/env bash
# Do teachers help? The second run of the default guardian once more, now also on what earlier guards say of its rows: same
# rows, steps and seed, averaged with the first run as the default guardian is. Then both side by side. Goes on where it was
# stopped.
#
#   DATA=path/to/data OUT=runs/out/default runs/distil.sh
#
# OUT is what build_default.sh left: its stages, mini/ and evaluation/.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?set DATA to the directory that holds seed/, public/ and parallel/}"
OUT=${OUT:-runs/out/default}
source runs/rows.sh
made=$OUT/distil
guardian train "${second[@]}" --soft-labels corpus/teachers.jsonl.gz --base "$OUT/first" --steps 1400 --out "$made/second"
guardian average "$OUT/first" "$made/second" --out "$made/final"
guardian export --model "$made/final" --out "$made/mini"
calibrated "$made/mini"
sets=()
for name in {seed,generated}_{ko,en}; do sets+=(--data "$OUT/evaluation/$name.jsonl"); done
guardian compare "guardian:$OUT/mini?name=labels" "guardian:$made/mini?name=teachers" "${sets[@]}" --out "$made/compare"
