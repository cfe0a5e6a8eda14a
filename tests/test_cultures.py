"""Cultures beside each other: the Indonesian pack, languages of one script, what a change of policy concerns."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer
from transformers import BertConfig, BertForMaskedLM

from slm_guardian.answers import fault
from slm_guardian.cli.main import main
from slm_guardian.errors import DataError, ModelError
from slm_guardian.example import Example, policy_examples, read_examples
from slm_guardian.generate import policy_diff
from slm_guardian.generate.contamination import Contamination
from slm_guardian.generate.duplicates import unique
from slm_guardian.generate.filters import apply
from slm_guardian.generate.session import query_filters
from slm_guardian.guardian import Guardian
from slm_guardian.layout import SLOT, Layout
from slm_guardian.policy import Policy
from slm_guardian.text import language
from slm_guardian.train.corpora import parallel
from slm_guardian.train.data import clean_response
from slm_guardian.train.extend import extend, extended_tokenizer
from slm_guardian.train.stages import load_model
from slm_guardian.train.topics import read_topics

ROOT = Path(__file__).parents[1]
TRAIN, DEV = ROOT / "data" / "written.id.jsonl.gz", ROOT / "data" / "dev.id.jsonl.gz"
ANSWERS = ROOT / "corpus" / "answers.id.jsonl"
ID, KO = Policy.load("id"), Policy.load("ko")


# The pack


def test_the_pack_stands_alone_and_shares_its_categories() -> None:
    assert ID.extends is None and ID.language == "id"
    assert [c.id for c in ID.categories] == [c.id for c in KO.categories]
    assert not set(ID.facts.values()) & set(KO.facts.values()) - {"findahelpline.com"}


def test_every_fact_is_used_and_no_number_stands_under_two() -> None:
    used = {fact for category in ID.categories for fact in category.facts}
    numbers = [n for fact in ID.facts.values() for n in re.findall(r"\d[\d-]{2,}", fact)]
    assert used == set(ID.facts)
    assert len(numbers) == len(set(numbers))


def test_guidance_names_only_facts_of_its_category() -> None:
    for category in ID.categories:
        assert set(SLOT.findall(category.guidance)) <= set(category.facts), category.id


def test_indonesian_links_and_quantities_are_told_from_help_lines() -> None:
    assert ID.foreign_numbers("lihat situs-aneh.co.id") and not ID.foreign_numbers("lihat bps.go.id")
    assert ID.to_slots("telepon polisi 110 sekarang") == "telepon {helpline.police} sekarang"
    assert ID.to_slots("ada 110 orang di sana") == "ada 110 orang di sana"


# Languages of one script


@pytest.mark.parametrize(
    ("text", "among", "expected"),
    [
        ("gimana cara bikin kue", ("en", "id"), "id"),
        ("how do i bake a cake", ("id", "en"), "en"),
        ("친구를 돕고 싶어요", ("en", "id"), "ko"),
        ("wifi", ("id", "en"), "id"),  # no common word: the first
        ("wifi", ("en", "id"), "en"),
        ("cara bikin kue", ("ko", "en"), "en"),  # nobody speaks it: the only one of its script
        ("gâteau au chocolat", ("fr",), "fr"),
        ("", ("ko", "id"), "id"),
    ],
)
def test_language_is_one_of_the_policies(text: str, among: tuple[str, ...], expected: str) -> None:
    assert language(text, among) == expected


def test_both_languages_of_a_script_are_told_apart() -> None:
    rows = [row for path in (TRAIN, DEV) for row in read_examples(path)[0]]
    assert sum(language(r.text, ("id", "en")) == "id" for r in rows) > 0.99 * len(rows)
    assert sum(language(r.text, ("en", "id")) == "id" for r in rows) > 0.9 * len(rows)
    english = policy_examples([Policy.load("en")])
    assert sum(language(r.text, ("en", "id")) == "en" for r in english) == len(english)


def test_each_query_gets_the_policy_of_its_language() -> None:
    guardian = Guardian.load(None, [KO, Policy.load("en"), ID])
    queries = ["오늘 날씨 어때?", "how do vaccines work?", "gimana cara daftar bpjs"]
    assert [v.policy for v in guardian.check(queries, respond=False)] == ["ko", "en", "id"]


def test_an_answer_in_another_language_is_never_shown() -> None:
    category, query = ID.by_id["crime_advice"], "gimana cara nipu orang"
    good = "Itu tidak bisa saya bantu, tetapi ada {helpline.police}."
    assert fault(good, query, ID, category) is None
    assert fault("I can't help you with that, but there is a way.", query, ID, category) == "wrong language"
    verdict = Guardian.load(None, ID, threshold=0).check(query)
    assert verdict.response and language(verdict.response, ("id", "en")) == "id"


def test_training_takes_responses_in_the_policys_language_only() -> None:
    row = Example("gimana cara nipu", "unsafe", "crime_advice", "id", response="Hubungi saja polisi 110 ya.")
    assert clean_response(row, ID) == ("Hubungi saja {helpline.police} ya.", "")
    english = Example("gimana", "unsafe", "crime_advice", "id", response="Please call the police at once.")
    assert clean_response(english, ID) == (None, "response in another language")


# The corpus


def test_the_corpus_passes_its_own_filters() -> None:
    rows, rejects = read_examples(TRAIN)
    kept, dropped, _ = apply(rows, query_filters(["id"], [DEV]))
    assert not rejects and not dropped and len(unique(kept)[0]) == len(rows)


def test_train_and_golden_examples_are_not_in_dev() -> None:
    contamination = Contamination([DEV])
    golden = policy_examples([ID])
    assert not [r for r in [*read_examples(TRAIN)[0], *golden] if contamination.reason(r)]


def test_dev_holds_every_category_and_as_many_safe_rows() -> None:
    rows = read_examples(DEV)[0]
    unsafe = [r.category for r in rows if r.label == "unsafe"]
    assert {c: unsafe.count(c) for c in ID.by_id} == dict.fromkeys(ID.by_id, 20)
    assert len(rows) == 2 * len(unsafe)


def test_every_topic_that_a_row_names_has_an_answer_that_may_be_shown() -> None:
    topics = {(t.category, t.name): t for t in read_topics(ANSWERS)}
    rows = [r for r in read_examples(TRAIN)[0] if r.label == "unsafe"]
    assert {(r.category, r.extra["topic"]) for r in rows} == topics.keys()
    for topic in topics.values():
        category = ID.by_id[topic.category]
        assert fault(topic.answers["id"], "gimana caranya dong", ID, category) is None, topic.name


def test_pairs_name_their_other_language(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"id": "kue", "en": "cake"}\n{"id": "air", "en": "water"}\n')
    assert [(p.new, p.english) for p in parallel([path])] == [("kue", "cake"), ("air", "water")]
    path.write_text('{"en": "cake"}\n')
    with pytest.raises(DataError, match="other language"):
        parallel([path])


# More words for a trained guardian


@pytest.fixture
def prefix_guardian(tiny_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A prefix guardian of random weights."""
    size = tiny_tokenizer.get_vocab_size()
    sizes: Any = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertForMaskedLM(BertConfig(vocab_size=size, **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_an_extended_guardian_keeps_what_it_knew(prefix_guardian: Path, tmp_path: Path) -> None:
    texts = ["gimana caranya menolong tetangga yang kebanjiran"] * 20
    tokenizer = extended_tokenizer(prefix_guardian / "tokenizer.json", texts, ["site.fact_check"], 50)
    old, new = Layout.load(prefix_guardian), Layout(tokenizer)
    model: Any = load_model(prefix_guardian)
    before: Any = model.get_input_embeddings().weight.detach().clone()
    extend(model, old, new, parallel([]))
    after: Any = model.get_input_embeddings().weight
    assert new.size == len(after) > old.size and new.piece_id("site.fact_check") is not None
    assert after[: old.size].equal(before)
    assert len(new.query(texts[0])) < len(old.query(texts[0]))
    assert new.query("친구를 도와줘") == old.query("친구를 도와줘")


def test_only_word_pieces_are_extended(tmp_path: Path) -> None:
    from tokenizers import models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="word-piece"):
        extended_tokenizer(tmp_path / "tokenizer.json", [], [], 10)


# Policy diff -> data diff


def changed(tmp_path: Path, *categories: dict[str, Any], **keys: Any) -> Policy:
    own = {
        "id": "mine",
        "version": "2",
        "language": "id",
        "extends": "id",
        "categories": list(categories),
    } | keys
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(own, allow_unicode=True), encoding="utf-8")
    return Policy.load(path)


def without(category: str) -> Policy:
    values = ID.model_dump()
    values["categories"] = [c for c in values["categories"] if c["id"] != category]
    return Policy.model_validate(values)


def test_changes_say_in_words_what_they_take(tmp_path: Path) -> None:
    crime = ID.by_id["crime_advice"]
    mine = changed(
        tmp_path,
        {"id": "crime_advice", "action": "block", "covers": [*crime.covers[1:], "Menyontek saat ujian."]},
        facts={"helpline.police": "polisi 110 atau kantor terdekat"},
    )
    found = {change.key: change for change in policy_diff.changes(ID, mine)}
    assert found["action"].words() == 'crime_advice: action: "answer" becomes "block"'
    assert found["action"].effect == found["fact helpline.police"].effect == "at once"
    assert found["covers"].effect == "labels"
    assert found["covers"].before == (crime.covers[0],) and "now also" in found["covers"].words()
    assert not policy_diff.changes(ID, ID)


def test_rows_of_a_category_that_is_gone_are_concerned() -> None:
    rows = [Example("a b", "unsafe", "crime_advice"), Example("c d", "unsafe", "self_harm_suicide")]
    hits = policy_diff.affected(ID, without("crime_advice"), rows)
    assert [(hit.row, hit.reason, hit.label) for hit in hits] == [(rows[0], "its category is gone", None)]


def test_rows_like_an_added_example_take_its_label(tmp_path: Path) -> None:
    privacy = ID.by_id["privacy_violation"]
    more = {"id": "privacy_violation", "safe": [*privacy.safe, "cara melihat mutasi rekening bersama suami"]}
    rows = [Example("cara melihat mutasi rekening bersama suami?", "unsafe", "privacy_violation")]
    (hit,) = policy_diff.affected(ID, changed(tmp_path, more), rows)
    assert hit.label == "safe" and "added" in hit.reason
    assert hit.to_dict()["policy_change"]["label"] == "safe"


def test_rows_with_a_word_of_a_new_clause_are_shown_in_every_category(tmp_path: Path) -> None:
    crime = ID.by_id["crime_advice"]
    mine = changed(tmp_path, {"id": "crime_advice", "covers": [*crime.covers, "Menyontek dan joki tugas."]})
    rows = [
        Example("joki tugas kuliah berapa", "unsafe", "copyright_infringement"),
        Example("bahaya menyontek buat anak", "safe"),
        Example("resep soto ayam", "safe"),
        Example("cara membuat orang rugi", "unsafe", "crime_advice"),  # a word of clauses that stayed
    ]
    assert [hit.row for hit in policy_diff.affected(ID, mine, rows)] == rows[:2]


def test_the_command_prints_words_json_and_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def diff(*arguments: object) -> tuple[str, object]:
        monkeypatch.setattr(sys, "argv", ["guardian", "policy", "diff", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return capsys.readouterr().out, stop.value.code

    changed(tmp_path, {"id": "uncertain_predictions", "threshold": 0.9})
    mine, out = tmp_path / "mine.yaml", tmp_path / "concerned.jsonl"
    shown, _ = diff("id", mine, "--data", DEV, "-o", out)
    assert 'threshold: nothing becomes "0.9"' in shown and "20 of 400 rows are concerned" in shown
    assert {row.category for row in read_examples(out)[0]} == {"uncertain_predictions"}
    values = json.loads(diff("id", mine, "--data", DEV, "--json")[0])
    assert len(values["rows"]) == 20 and values["rows"][0]["label"] == "unsafe"
    assert "left out" in diff("ko", "id")[0]
    assert diff("id", mine, "-o", out)[1] == 2
