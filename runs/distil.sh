#!/usr/bin/env bash
# Do teachers help? The second run of the default guardian with and without what earlier guards say of its rows: same rows,
# steps and seed; both averaged with the first run, as shipped. Goes on where it was stopped.
#
#   DATA=path/to/data OUT=runs/out/default runs/distil.sh
#
# OUT is where build_default.sh left its stages.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?set DATA to the directory that holds seed/, public/ and parallel/}"
OUT=${OUT:-runs/out/default}
source runs/rows.sh
made=$OUT/distil
for kind in labels teachers; do
  taught=(); [[ $kind == teachers ]] && taught=(--soft-labels corpus/teachers.jsonl.gz)
  guardian train "${second[@]}" ${taught[@]+"${taught[@]}"} --base "$OUT/first" --steps 1400 --out "$made/$kind/second"
  guardian average "$OUT/first" "$made/$kind/second" --out "$made/$kind/final"
  guardian export --model "$made/$kind/final" --out "$made/$kind/mini"
  calibrated "$made/$kind/mini"
done
for lang in ko en; do
  grep "\"lang\": \"$lang\"" "$DATA/seed/dev.jsonl" > "$made/seed_$lang.jsonl"
  gzip -dc data/dev.jsonl.gz | grep "\"lang\": \"$lang\"" > "$made/generated_$lang.jsonl"
done
sets=()
for name in {seed,generated}_{ko,en}; do sets+=(--data "$made/$name.jsonl"); done
guardian compare "guardian:$made/labels/mini?name=labels" "guardian:$made/teachers/mini?name=teachers" "${sets[@]}" --out "$made/compare"
