"""The registry: every entry holds together, published files are read as their authors meant, bad ones are named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm_guardian.errors import DataError
from slm_guardian.evaluate.datasets import load_dataset, load_datasets
from slm_guardian.evaluate.registry import find_set, known_sets
from slm_guardian.example import Example, write_jsonl
from slm_guardian.policy import Policy

CATEGORIES = set(Policy.load("ko").by_id)
PLANNED = {
    *("inhouse.ko", "inhouse.en", "xstest", "xstest.ko", "simplesafetytests", "harmbench", "strongreject"),
    *("jailbreakbench", "multijail.ko", "openai_moderation", "toxicchat", "wildguardtest", "aegis", "aegis2"),
    *("or-bench", "kosbi.ko", "square.ko", "kmhas.ko", "apeach.ko", "beep.ko", "3i4k.ko", "chatbot.ko"),
    *("kotox.ko", "coconot_contrast.en", "mitre_frr.en", "polyguardprompts.ko"),
}
Rows = list[tuple[str, str | None, str | None, str | None]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUARDIAN_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def seen(name: str) -> Rows:
    return [(row.text, row.label, row.category, row.kind) for row in load_dataset(name).examples]


def write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")


# --- the entries


def test_every_set_of_the_plan_is_there() -> None:
    assert set(known_sets()) >= PLANNED


@pytest.mark.parametrize("name", sorted(known_sets()))
def test_an_entry_says_where_it_comes_from_and_maps_to_our_policy(name: str) -> None:
    source = known_sets()[name]
    assert source.licence and source.title and source.languages and source.mapping
    assert bool(source.fetch) != bool(source.otherwise)
    assert len(source.fetch) in (0, len(source.names))
    assert source.home.startswith("https://") or name.startswith("inhouse")
    assert set(source.category.map.values() if source.category else []) <= CATEGORIES


@pytest.mark.parametrize("name", sorted(known_sets()))
def test_a_set_that_is_not_there_is_one_line_that_says_how_to_get_it(name: str, home: Path) -> None:
    source = known_sets()[name]
    with pytest.raises(DataError) as raised:
        load_dataset(name)
    message = str(raised.value)
    assert "\n" not in message and source.home in message and source.licence in message
    assert any(file in message for file in (*source.parts, *source.files, f"{name}.jsonl"))


def test_without_a_data_directory_the_line_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GUARDIAN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match="GUARDIAN_DATA"):
        load_dataset("xstest")


def test_a_name_without_its_language_names_those_that_are_known() -> None:
    with pytest.raises(DataError, match=r"kosbi\.en, kosbi\.ko"):
        find_set("kosbi")
    assert find_set("nowhere") is None and find_set("../sets/xstest") is None


# --- published files


def test_xstest_has_types_and_clusters_of_its_focus(home: Path) -> None:
    write(
        home / "xstest_prompts.csv",
        "id,prompt,type,label,focus,note\n"
        "1,one,homonyms,safe,kill,\n2,two,contrast_homonyms,unsafe,kill,\n3,three,definitions,safe,,\n",
    )
    assert seen("xstest") == [
        ("one", "safe", None, "homonyms"),
        ("two", "unsafe", None, "contrast_homonyms"),
        ("three", "safe", None, "definitions"),
    ]
    pairs = [row.pair for row in load_dataset("xstest").examples]
    assert pairs[0] == pairs[1] and pairs[2] is None


def test_openai_samples_are_unsafe_where_a_flag_is_set(home: Path) -> None:
    lines = [{"prompt": "a", "S": 0, "H": 1}, {"prompt": "b", "S": 0, "V": 0}, {"prompt": "c", "SH": 1}]
    with gzip.open(home / "samples-1680.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert [row[1] for row in seen("openai_moderation")] == ["unsafe", "safe", "unsafe"]


def test_aegis_takes_the_vote_of_its_labellers_on_user_messages(home: Path) -> None:
    votes = [("Safe", "Safe", "Violence"), ("Safe", "Needs Caution", "Hate"), ("Threat", None, None)]
    rows: list[dict[str, Any]] = [
        {"text": f"t{i}", "text_type": "user_message", **{f"labels_{k}": v for k, v in enumerate(vote)}}
        for i, vote in enumerate(votes)
    ]
    rows.append({**rows[0], "text": "reply", "text_type": "llm_response"})
    write_jsonl(home / "aegis.jsonl", rows)
    assert [row[:2] for row in seen("aegis")] == [("t0", "safe"), ("t1", "unsafe"), ("t2", "unsafe")]


def test_toxicchat_keeps_the_rows_that_people_labelled(home: Path) -> None:
    write(
        home / "toxicchat.csv",
        "conv_id,user_input,human_annotation,toxicity\nx,a,True,1\ny,b,False,1\nz,c,True,0\n",
    )
    assert [row[:2] for row in seen("toxicchat")] == [("a", "unsafe"), ("c", "safe")]


def test_a_set_in_two_files_takes_the_label_of_each(home: Path) -> None:
    write(home / "harmful-behaviors.csv", "Index,Goal,Category\n0,a,Privacy\n")
    with pytest.raises(DataError, match=r"benign-behaviors\.csv"):
        load_dataset("jailbreakbench")
    write(home / "benign-behaviors.csv", "Index,Goal,Category\n0,b,Privacy\n")
    assert seen("jailbreakbench") == [
        ("a", "unsafe", "privacy_violation", "Privacy"),
        ("b", "safe", "privacy_violation", "Privacy"),
    ]
    dataset = load_dataset("jailbreakbench")
    assert len({row.pair for row in dataset.examples}) == 1
    write(home / "benign-behaviors.csv", "Index,Goal,Category\n0,c,Privacy\n")
    assert load_dataset("jailbreakbench").sha256 != dataset.sha256


def test_parquet_and_rows_of_one_language(home: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"prompt": "가", "language": "Korean", "prompt_harm_label": "harmful", "subcategory": "others"},
        {"prompt": "b", "language": "English", "prompt_harm_label": "harmful", "subcategory": "others"},
        {"prompt": "다", "language": "Korean", "prompt_harm_label": None, "subcategory": "others"},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), home / "polyguardprompts.parquet")
    dataset = load_dataset("polyguardprompts.ko")
    assert [(row.text, row.label, row.lang) for row in dataset.examples] == [("가", "unsafe", "ko")]
    assert dataset.reject_reasons == {"no label": 1}


def test_tab_separated_comments_and_a_label_that_stands_for_all_others(home: Path) -> None:
    write(home / "kmhas.ko.tsv", 'document\tlabel\n"인용\t8\n둘\t0,2\n')
    assert [row[:2] for row in seen("kmhas.ko")] == [('"인용', "safe"), ("둘", "unsafe")]
    write(home / "beep.ko.tsv", "comments\tbias\thate\n하나\tnone\toffensive\n둘\tnone\tnone\n")
    assert seen("beep.ko")[0] == ("하나", "unsafe", "insult_offensiveness", "none")


def test_harmbench_maps_categories_where_the_policy_has_them(home: Path) -> None:
    write(
        home / "harmbench.csv",
        "Behavior,FunctionalCategory,SemanticCategory\na,standard,cybercrime_intrusion\nb,contextual,illegal\n"
        "c,copyright,copyright\nd,standard,misinformation_disinformation\n",
    )
    assert [row[:3] for row in seen("harmbench")] == [
        ("a", "unsafe", "crime_advice"),
        ("c", "unsafe", "copyright_infringement"),
        ("d", "unsafe", None),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_our_own_columns_do_for_every_set(suffix: str, home: Path) -> None:
    rows = [
        Example("a", "unsafe", category="insult_offensiveness", kind="k").to_dict(),
        {"text": "b", "label": "safe"},
    ]
    if suffix == ".jsonl":
        write_jsonl(home / "wildguardtest.jsonl", rows)
    else:
        write(
            home / "wildguardtest.csv",
            "text,label,category,kind\na,unsafe,insult_offensiveness,k\nb,safe,,\n",
        )
    assert seen("wildguardtest") == [("a", "unsafe", "insult_offensiveness", "k"), ("b", "safe", None, None)]


def test_two_languages_of_one_file_are_two_sets(home: Path) -> None:
    (home / "seed").mkdir()
    write_jsonl(
        home / "seed/dev.jsonl",
        [{"text": "가", "label": "safe", "lang": "ko"}, {"text": "a", "label": "safe", "lang": "en"}],
    )
    sets = load_datasets(["inhouse.ko", "inhouse.en", "inhouse.ko"])
    assert [(s.name, [row.text for row in s.examples]) for s in sets] == [
        ("inhouse.ko", ["가"]),
        ("inhouse.en", ["a"]),
    ]


# --- bad input


BAD: dict[str, tuple[str, str]] = {
    "missing text column": ("question,label\na,safe\n", "lacks the column 'prompt'"),
    "missing label column": ("prompt,type\na,homonyms\n", "lacks the column 'label' of xstest"),
    "unknown label": ("prompt,label\na,harmless\n", "1 x unknown label"),
    "empty file": ("", "it is empty"),
    "no row": ("prompt,label,type\n", "it is empty"),
    "no label": ("prompt,label,type\na,,\n", "no labelled row"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_published_file_that_cannot_be_read_is_named(case: str, home: Path) -> None:
    content, message = BAD[case]
    write(home / "xstest.csv", content)
    with pytest.raises(DataError, match=message) as raised:
        load_dataset("xstest")
    assert "xstest.csv" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("aegis2", "aegis2.json", "{}"),
        ("aegis2", "aegis2.json", "[{"),
        ("wildguardtest", "wildguardtest.parquet", "x"),
    ],
)
def test_a_broken_file_is_to_be_got_again(name: str, file: str, content: str, home: Path) -> None:
    write(home / file, content)
    with pytest.raises(DataError, match="get it again"):
        load_dataset(name)


def test_unknown_labels_among_good_ones_are_counted(home: Path) -> None:
    write(home / "xstest.csv", "prompt,label,type\na,safe,x\nb,dangerous,x\nc,,x\n")
    assert load_dataset("xstest").reject_reasons == {"unknown label": 1, "no label": 1}


def test_rows_that_stand_twice_are_left_out_and_counted(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "a.jsonl", [{"text": "a", "label": "safe"}] * 3 + [{"text": "a", "label": "unsafe"}]
    )
    dataset = load_dataset(tmp_path / "a.jsonl")
    assert len(dataset.examples) == 2
    assert dataset.reject_reasons == {"stands twice": 2}
    assert len(load_dataset(tmp_path / "a.jsonl", repeats=True).examples) == 4


IDS: list[Callable[[int], Any]] = [lambda i: 7, lambda i: "x", lambda i: [1, 2, 1][i]]


@pytest.mark.parametrize("number", IDS)
def test_two_rows_with_the_same_id_are_an_error(number: Callable[[int], Any], tmp_path: Path) -> None:
    rows = [{"id": number(i), "text": f"secret {i}", "label": "safe"} for i in range(3)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="have the same id") as raised:
        load_dataset(tmp_path / "a.jsonl")
    assert "secret" not in str(raised.value)
    assert len(load_dataset(tmp_path / "a.jsonl", repeats=True).examples) == 3
