#!/usr/bin/env bash
# A culture of one's own, from a trained guardian to a served one: Indonesian. Two cores suffice.
# Stop it at any time; the same command goes on where it was.
#
#   MODEL=path/to/guardian DATA=path/to/data runs/build_id.sh
#
# MODEL is a trained prefix guardian (runs/build_default.sh writes one: OUT/final), TEACHER the English encoder that it
# was made from (OUT/base/...). DATA holds seed/: a part of it is trained on again, so that Korean and English stay.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${MODEL:?set MODEL to a trained guardian}" "${TEACHER:?set TEACHER to the English encoder it was made from}"
: "${DATA:?set DATA to the directory that holds seed/}"
OUT=${OUT:-runs/out/id}
STEPS=${STEPS:-800}
pairs=(--parallel corpus/parallel.id.jsonl --parallel corpus/glossary.id.jsonl)
policies=(--policy id --policy en --policy ko)
mkdir -p "$OUT"

# 1. The policy holds together, and the corpus neither repeats itself nor the dev set.
guardian policy check id
guardian data clean data/written.id.jsonl.gz --benchmarks data/dev.id.jsonl.gz --out "$OUT/clean"

# 2. Words: pieces for the new language and its policy's facts, starting from their English neighbours.
if [[ ! -f $OUT/extended/guardian.json ]]; then
  guardian extend --base "$MODEL" --policy id --data "$OUT/clean/clean.jsonl" "${pairs[@]}" --out "$OUT/extended"
fi

cat corpus/answers.jsonl corpus/answers.id.jsonl > "$OUT/answers.jsonl"

# 3. Safety: the new rows with their topics' answers, the old languages beside them, aligned on the sentence pairs.
guardian train --stage safety --base "$OUT/extended" "${policies[@]}" --data "$OUT/clean/clean.jsonl" \
  --noisy "$DATA/seed/train.jsonl" --cap 6000 "${pairs[@]}" --teacher "$TEACHER" \
  --answers "$OUT/answers.jsonl" --answered 0.3 --dev data/dev.id.jsonl.gz --average 0.99 \
  --steps "$STEPS" ${STOP:+--stop "$STOP"} --out "$OUT/final"

# 4. Export (int8 ONNX), thresholds for each culture, and the numbers: the new guardian, the old one, the floor.
guardian export --model "$OUT/final" --answers "$OUT/answers.jsonl" --out "$OUT/mini"
zcat data/dev.id.jsonl.gz | cat - "$DATA/seed/dev.jsonl" > "$OUT/dev.jsonl"
guardian calibrate --model "$OUT/mini" "${policies[@]}" --dev "$OUT/dev.jsonl" --dev-fpr 0.1
guardian evaluate --model "$OUT/mini" --policy id --data data/dev.id.jsonl.gz --out "$OUT/evaluation"
guardian evaluate --policy id --data data/dev.id.jsonl.gz --out "$OUT/evaluation-before"
guardian evaluate --model "$OUT/mini" --data "$DATA/seed/dev.jsonl" --out "$OUT/evaluation-ko-en"  # what they lost
guardian baseline --data "$OUT/clean/clean.jsonl" --out "$OUT/floor.joblib"
guardian evaluate --model "tfidf:$OUT/floor.joblib" --data data/dev.id.jsonl.gz --out "$OUT/evaluation-floor"
