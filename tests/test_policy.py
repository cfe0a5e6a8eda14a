"""Policies: the shipped packs hold together, `extends` merges, every fault names file, line and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slm_guardian.errors import PolicyError
from slm_guardian.policy import Policy, find, shipped

PACKS = {name: Policy.load(name) for name in ("ko", "en", "id")}
SLOT = re.compile(r"\{[a-z0-9_.]+\}")

BASE = """\
id: base
version: "1"
language: en
facts:
  line.help: the help line 123-4567
groups:
  - {id: legal, name: Legal}
categories:
  - id: theft
    group: legal
    name: Theft
    covers: [stealing]
    threshold: 0.5
    fallback: ["Please call {line.help}."]
  - id: fraud
    group: legal
    name: Fraud
    covers: [cheating]
    fallback: ["I cannot help with that."]
"""


def write(directory: Path, content: str, name: str = "mine.yaml") -> Path:
    path = directory / name
    path.write_text(content, encoding="utf-8")
    return path


def fault(path: Path) -> str:
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)
    return str(caught.value)


def test_three_packs_are_shipped() -> None:
    assert shipped() == ["en", "id", "ko"]


@pytest.mark.parametrize("name", PACKS)
def test_packs_have_ten_categories_in_three_groups(name: str) -> None:
    policy = PACKS[name]
    assert policy.language == name
    assert len(policy.categories) == 10
    assert len(policy.groups) == 3
    assert policy.by_id.keys() == PACKS["ko"].by_id.keys()


@pytest.mark.parametrize("name", PACKS)
def test_pack_categories_are_complete(name: str) -> None:
    for category in PACKS[name].categories:
        assert category.covers and category.excludes, category.id
        assert category.harmful and category.safe, category.id
        assert not set(category.harmful) & set(category.safe), category.id


def test_packs_share_their_fact_keys() -> None:
    assert PACKS["ko"].facts.keys() == PACKS["en"].facts.keys()


@pytest.mark.parametrize("name", PACKS)
def test_fallbacks_hold_digits_only_in_slots(name: str) -> None:
    policy = PACKS[name]
    for category in policy.categories:
        for text in category.fallback:
            assert not re.search(r"\d", SLOT.sub("", text)), (category.id, text)
            assert not SLOT.search(policy.fill(text)), (category.id, text)
            assert not policy.foreign_numbers(policy.fill(text)), (category.id, text)


@pytest.mark.parametrize(("name", "key"), [(n, key) for n, policy in PACKS.items() for key in policy.facts])
def test_facts_survive_the_way_to_slots_and_back(name: str, key: str) -> None:
    policy = PACKS[name]
    text = f"({policy.facts[key]})" if "(" not in policy.facts[key] else policy.facts[key]
    digits = re.findall(r"\d+", text)
    back = policy.fill(policy.to_slots(text))
    assert re.findall(r"\d+", back) == digits
    assert back.count("(") == back.count(")")


@given(
    st.text("가a1 0-().:", max_size=12),
    st.sampled_from(sorted(PACKS["ko"].facts)),
    st.text("에로 .,!?", max_size=5),
)
def test_filling_slots_restores_every_digit(before: str, key: str, after: str) -> None:
    policy = PACKS["ko"]
    text = f"{before} {policy.facts[key]} {after}"
    assert re.findall(r"\d", policy.fill(policy.to_slots(text))) == re.findall(r"\d", text)


def test_known_lines_become_slots() -> None:
    text = "힘드시면 자살예방상담전화 109에 전화하세요. 경찰(112)도 돕습니다."
    slots = PACKS["ko"].to_slots(text)
    assert slots == "힘드시면 {helpline.suicide}에 전화하세요. {helpline.police}도 돕습니다."
    assert PACKS["ko"].to_slots(slots) == slots


def test_digits_inside_a_longer_number_stay() -> None:
    for text in ("11092개", "010-109-1122", "02-112-3456", "1.109"):
        assert PACKS["ko"].to_slots(text) == text


def test_a_number_with_a_space_is_one_slot() -> None:
    assert PACKS["en"].to_slots("Call Samaritans on 116 123 now.") == "Call {helpline.suicide_uk} now."


@pytest.mark.parametrize("text", ["call 555-0199-22", "see evil.com", "010-1234-5678"])
def test_foreign_numbers_are_found(text: str) -> None:
    assert PACKS["en"].foreign_numbers(text)


def test_own_facts_are_not_foreign() -> None:
    for policy in PACKS.values():
        assert not policy.foreign_numbers(" / ".join(policy.facts.values()))
        assert not policy.foreign_numbers("{helpline.police}, then {helpline.suicide}.")


def test_fill_refuses_an_unknown_slot() -> None:
    with pytest.raises(KeyError):
        PACKS["ko"].fill("{helpline.nowhere}")


def test_extends_overrides_by_id(tmp_path: Path) -> None:
    write(tmp_path, BASE, "base.yaml")
    own = "id: mine\nextends: base.yaml\nfacts: {line.help: 999-9999}\n"
    own += "categories:\n  - {id: fraud, threshold: 0.9}\n"
    policy = Policy.load(write(tmp_path, own))
    assert (policy.id, policy.version, policy.facts["line.help"]) == ("mine", "1", "999-9999")
    assert [c.id for c in policy.categories] == ["theft", "fraud"]
    assert policy.by_id["fraud"].threshold == 0.9
    assert policy.by_id["fraud"].name == "Fraud"


def test_extends_a_pack_and_adds_a_category(tmp_path: Path) -> None:
    extra = yaml.safe_load(BASE)["categories"][1] | {"id": "spam"}
    own = yaml.safe_dump({"id": "mine", "extends": "en", "categories": [extra]})
    policy = Policy.load(write(tmp_path, own))
    assert [c.id for c in policy.categories] == [*PACKS["en"].by_id, "spam"]


FAULTS = {
    "unknown key": (BASE + "colour: red\n", 20, "colour"),
    "unknown category key": (BASE + "    colour: red\n", 20, "categories.fraud.colour"),
    "threshold too high": (BASE.replace("0.5", "1.5"), 13, "categories.theft.threshold"),
    "threshold negative": (BASE.replace("0.5", "-0.1"), 13, "categories.theft.threshold"),
    "threshold a word": (BASE.replace("0.5", "high"), 13, "categories.theft.threshold"),
    "category id twice": (BASE.replace("id: fraud", "id: theft"), 15, "categories.theft.id"),
    "group id twice": (
        BASE.replace("categories:", "  - {id: legal, name: Again}\ncategories:"),
        8,
        "groups.legal.id",
    ),
    "unknown group": (
        BASE.replace("group: legal\n    name: Fraud", "group: x\n    name: Fraud"),
        16,
        "categories.fraud.group",
    ),
    "unknown fact in a fallback": (BASE.replace("{line.help}", "{line.no}"), 14, "categories.theft.fallback"),
    "unknown fact in facts": (BASE + "    facts: [line.no]\n", 20, "categories.fraud.facts"),
    "unknown action": (BASE + "    action: explode\n", 20, "categories.fraud.action"),
    "no fallback": (BASE.replace('["I cannot help with that."]', "[]"), 19, "categories.fraud.fallback"),
    "category without name": (BASE.replace("    name: Fraud\n", ""), 15, "categories.fraud.name"),
    "id with capitals": (BASE.replace("id: fraud", "id: Fraud"), 15, "categories.Fraud.id"),
    "entry without id": (BASE.replace("id: fraud", "ident: fraud"), 8, "categories"),
    "categories a word": (BASE.split("categories:")[0] + "categories: many\n", 8, "categories"),
    "facts a list": (BASE.replace("  line.help: the", "  - the"), 4, "facts"),
    "no categories": (BASE.split("categories:")[0], 1, "categories"),
    "a number as key": (BASE + "5: red\n", 20, "5"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_file_line_and_key(tmp_path: Path, name: str) -> None:
    content, line, key = FAULTS[name]
    path = write(tmp_path, content)
    assert fault(path).startswith(f"{path}:{line}: {key}: ")


def test_fault_in_an_override_names_its_own_line(tmp_path: Path) -> None:
    write(tmp_path, BASE, "base.yaml")
    path = write(tmp_path, "id: mine\nextends: base.yaml\ncategories:\n  - id: fraud\n    threshold: 7\n")
    assert fault(path).startswith(f"{path}:5: categories.fraud.threshold: ")


@pytest.mark.parametrize(
    "name", ["unknown category key", "categories a word", "facts a list", "unknown fact in facts"]
)
def test_fault_in_the_base_names_the_base(tmp_path: Path, name: str) -> None:
    content, line, key = FAULTS[name]
    base = write(tmp_path, content, "base.yaml")
    assert fault(write(tmp_path, "id: mine\nextends: base.yaml\n")).startswith(f"{base}:{line}: {key}: ")


@pytest.mark.parametrize("other", ["mine.yaml", "./mine.yaml", "../{}/mine.yaml"])
def test_cycle_in_extends(tmp_path: Path, other: str) -> None:
    write(tmp_path, f"id: base\nextends: {other.format(tmp_path.name)}\n", "base.yaml")
    path = write(tmp_path, f"id: mine\nextends: ../{tmp_path.name}/base.yaml\n")
    assert re.search(r"mine\.yaml:2: extends: .*circle", fault(path))


NOT_YAML = {
    "open bracket": b"id: x\nname: [\n",
    "tab": b"id: x\n\t- y\n",
    "impossible date": b"id: 2020-13-45\n",
    "control character": b"id: \x01\n",
    "not UTF-8": b"id: \xff\n",
    "python object": b"id: !!python/object/apply:os.getcwd []\n",
    "too deep": b"[" * 3000,
    "empty": b"",
    "a list": b"- id\n",
    "a word": b"hello\n",
}


@pytest.mark.parametrize("name", NOT_YAML)
def test_what_is_no_policy_at_all(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(NOT_YAML[name])
    assert re.match(rf"{re.escape(str(path))}:\d+: ", fault(path))


@pytest.mark.parametrize("name", ["nope", "", "nope.yaml", "x" * 5000, "x\x00y"])
def test_missing_policy_names_the_packs(name: str) -> None:
    with pytest.raises(PolicyError, match="en, id, ko"):
        find(name)


def test_missing_base_is_an_error(tmp_path: Path) -> None:
    assert "nowhere.yaml" in fault(write(tmp_path, "id: mine\nextends: nowhere.yaml\n"))
