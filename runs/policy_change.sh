#!/usr/bin/env bash
# A clause changes: which rows that concerns, a short training from the last guardian on, and what it did, by category.
#
#   GUARDIAN=runs/out/id TEACHER=path/to/encoder DATA=path/to/data runs/policy_change.sh
#
# GUARDIAN is what runs/build_id.sh left: final/ (weights) and mini/ (export). The change is docs/school.id.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${GUARDIAN:?set GUARDIAN to the directory that runs/build_id.sh wrote}" "${TEACHER:?set TEACHER to its encoder}"
: "${DATA:?set DATA to the directory that holds seed/}"
OUT=${OUT:-runs/out/school}
STEPS=${STEPS:-100}
school=docs/school.id.yaml
policies=(--policy "$school" --policy en --policy ko)
mkdir -p "$OUT"

# 1. Policy diff, data diff: the rows to read again.
guardian policy diff id "$school" --data data/written.id.jsonl.gz --out "$OUT/concerned.jsonl"

# 2. The rows that were written for the clause, with the old ones beside them, from the last weights on.
guardian train --base "$GUARDIAN/final" "${policies[@]}" --data data/school.id.jsonl --noisy data/written.id.jsonl.gz \
  --noisy "$DATA/seed/train.jsonl" --cap 1500 --parallel corpus/parallel.id.jsonl --teacher "$TEACHER" \
  --answered 0 --average 0.95 --lr 6e-5 --embedding-lr 2e-4 --steps "$STEPS" --out "$OUT/final"
guardian export --model "$OUT/final" --answers "$GUARDIAN/answers.jsonl" --out "$OUT/mini"
guardian calibrate --model "$OUT/mini" "${policies[@]}" --dev "$GUARDIAN/dev.jsonl" --dev-fpr 0.1

# 3. Metric diff: the same policy before and after the training, on rows for the clause and on all others.
for data in data/school.dev.id.jsonl data/dev.id.jsonl.gz "$DATA/seed/dev.jsonl"; do
  old=$school; [[ $data == */seed/* ]] && old=""
  guardian policy effect --before "$GUARDIAN/mini" --after "$OUT/mini" ${old:+--old "$old" --new "$old"} --data "$data"
done
