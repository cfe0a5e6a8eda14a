"""Teachers and doubts: soft labels from any system's scores, and labels that models of other folds doubt."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from commands import guardian, policies
from slm_guardian.errors import DataError
from slm_guardian.evaluate.cache import text_key
from slm_guardian.example import Example, read_examples
from slm_guardian.train.data import SOFT, WEIGHT, Corpus, load_corpus
from slm_guardian.train.label_check import WEIGHTS, check_labels, report, weighted
from slm_guardian.train.loss import distilled
from slm_guardian.train.teachers import give_soft_labels, read_scores
from test_bases import QUICK, curve
from tiny import llama_base, rows, write_corpus


def write(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_scores_of_caches_predictions_and_texts_are_averaged(tmp_path: Path) -> None:
    one, two = Example("a", "safe"), Example("b", "unsafe")
    cache = [
        {"format": "x", "system": "s"},
        {"key": text_key("a"), "harm": 0.2},
        {"key": "k", "label": "unsafe"},
    ]
    files = [
        write(tmp_path / "cache.jsonl", [*cache, {"key": text_key("b"), "error": "refused"}]),
        write(tmp_path / "predictions.jsonl", [{"id": two.id, "harm": 0.9, "label": "unsafe"}]),
        write(tmp_path / "texts.jsonl", [{"text": "a", "harm": 0.4}]),
    ]
    scores = read_scores(files)
    assert scores[text_key("a")] == pytest.approx(0.3) and scores["k"] == 1.0
    corpus = Corpus(tmp_path, [one, two, Example("c", "safe")], [])
    assert give_soft_labels([corpus], scores) == 2
    assert [example.extra.get(SOFT) for example in corpus.examples] == [pytest.approx(0.3), 0.9, None]
    with pytest.raises(DataError, match="no scores"):
        read_scores([write(tmp_path / "none.jsonl", [{"text": "a", "harm": None}])])


def test_a_teacher_does_not_overrule_a_trusted_label(tmp_path: Path) -> None:
    examples = [Example("a", "safe"), Example("b", "unsafe")]
    trusted, noisy = Corpus(tmp_path, examples, []), Corpus(tmp_path, examples, [], weight=0.5)
    give_soft_labels([trusted, noisy], {text_key("a"): 0.8, text_key("b"): 0.1})
    assert [example.extra[SOFT] for example in noisy.examples] == [0.8, 0.1]
    assert [example.extra[SOFT] for example in trusted.examples] == [0.5, 0.5]


def test_the_loss_mixes_the_label_with_the_divergence_from_the_teacher() -> None:
    scores = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    mixed = distilled(torch.tensor([1.0, 3.0]), scores, [0.9, None], 0.25)
    divergence = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert mixed.tolist() == pytest.approx([0.75 + 0.25 * divergence, 3.0])
    agreed = distilled(torch.tensor([1.0]), scores[:1], [0.5], 1.0)
    assert agreed.item() == pytest.approx(0, abs=1e-6)


def test_training_follows_its_teachers(tmp_path: Path) -> None:
    base, (data, _) = llama_base(tmp_path / "base"), write_corpus(tmp_path)
    turned = [{"text": r["text"], "harm": 0.9 if r["label"] == "safe" else 0.1} for r in rows()]
    soft = write(tmp_path / "soft.jsonl", turned)
    own = (
        "train",
        *policies(tmp_path),
        "--base",
        base,
        "--noisy",
        data,
        "--dev",
        data,
        "--steps",
        30,
        *QUICK,
    )
    guardian(*own, "--soft-labels", soft, "--soft-weight", 1, "-o", tmp_path / "taught")
    guardian(*own, "-o", tmp_path / "alone")
    taught, alone = (curve(tmp_path / name)[-1]["auroc_en"] for name in ("taught", "alone"))
    assert taught < 0.4 < 0.6 < alone  # a teacher that is always wrong teaches just that
    guardian("card", "--model", tmp_path / "taught", "-o", tmp_path / "card.md")
    assert f"safety {len(rows()):,} rows" in (tmp_path / "card.md").read_text("utf-8")


def test_a_guard_is_asked_about_every_row_once(tmp_path: Path) -> None:
    base, (data, _) = llama_base(tmp_path / "base"), write_corpus(tmp_path)
    own = ("train", *policies(tmp_path), "--base", base, "--data", data, "--steps", 1, *QUICK)
    own = (*own, "--soft-from", "constant:unsafe", "--soft-from", "keywords")
    guardian(*own, "-o", tmp_path / "one")
    files = sorted((tmp_path / "teachers").rglob("*.jsonl"))
    before = [file.read_text() for file in files]
    assert len(files) == 2
    assert {text_key(row["text"]) for row in rows()} <= read_scores(files).keys()
    guardian(*own, "-o", tmp_path / "two")
    assert [file.read_text() for file in files] == before


def corpus_with_wrong_labels() -> tuple[list[Example], set[int]]:
    made = [Example(r["text"], r["label"], r.get("category"), source=r["source"]) for r in rows()]
    wrong = {3, 20, 41, 60}
    turned = {"safe": "unsafe", "unsafe": "safe"}
    return [Example(e.text, turned[str(e.label)]) if i in wrong else e for i, e in enumerate(made)], wrong


def test_wrong_labels_are_doubted_and_weigh_less() -> None:
    examples, wrong = corpus_with_wrong_labels()
    doubts = check_labels(examples, folds=4)
    found = {i for i, doubt in enumerate(doubts) if doubt.tier == "wrong"}
    assert found and found <= wrong  # no row is doubted for nothing
    made = weighted(examples, doubts)
    assert {e.extra[WEIGHT] for i, e in enumerate(made) if i in found} == {WEIGHTS["wrong"]}
    assert all(doubt.strict >= doubt.loose for doubt in doubts)
    text = report(examples, doubts)
    assert examples[3].id in text and examples[3].text not in text


def test_the_command_writes_rows_that_training_reads(tmp_path: Path) -> None:
    examples, _ = corpus_with_wrong_labels()
    data = write(tmp_path / "data.jsonl", [e.to_dict() for e in examples])
    guardian("labels", "--data", data, "--folds", 4, "-o", tmp_path / "out")
    kept = load_corpus(tmp_path / "out" / "rows.jsonl").examples
    assert [e.text for e in kept] == [e.text for e in read_examples(data)[0]]
    assert any(e.extra[WEIGHT] < 1 for e in kept) and any(e.extra[WEIGHT] == 1 for e in kept)
    with pytest.raises(DataError):
        check_labels([e for e in examples if e.label == "safe"])
