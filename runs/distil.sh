#!/usr/bin/env bash
# Do teachers help? The default guardian's first and second run averaged, and the same with a second run on labels alone,
# without what earlier guards say of its rows: same rows, steps and seed. Then both side by side. Goes on where it was
# stopped.
#
#   DATA=path/to/data OUT=runs/out/default runs/distil.sh
#
# OUT is what build_default.sh left: its stages and evaluation/.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?set DATA to the directory that holds seed/, public/ and parallel/}"
OUT=${OUT:-runs/out/default}
source runs/rows.sh
made=$OUT/distil
guardian train "${second[@]}" --base "$OUT/first" --steps 2600 --out "$made/alone"
guardian average "$OUT/first" "$made/alone" --out "$made/labels-final"
guardian average "$OUT/first" "$OUT/second" --out "$made/teachers-final"
for name in labels teachers; do
  guardian export --model "$made/$name-final" --out "$made/$name"
  calibrated "$made/$name"
done
sets=()
for name in {seed,generated}_{ko,en}; do sets+=(--data "$OUT/evaluation/$name.jsonl"); done
guardian compare "guardian:$made/labels?name=labels" "guardian:$made/teachers?name=teachers" "${sets[@]}" --out "$made/compare"
