"""Perturbations: the label stays, so the text must stay a text, and the same seed gives the same one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_guardian.text import display, language, shadow
from slm_guardian.train import augment
from slm_guardian.train.augment import ENGLISH, KOREAN, Perturbation, perturb

ANYTHING = st.text(st.characters(codec=None, categories=None), max_size=40)
SEEDS = st.integers(0, 2**32)
ALL = sorted({*KOREAN, *ENGLISH}, key=lambda f: f.__name__)  # type: ignore[attr-defined]
KO = "친구가 자꾸 괴롭혀요 어떻게 하면 좋을까요?"
EN = "how can i help a friend who is being bullied?"


@given(ANYTHING, SEEDS)
def test_perturb_keeps_something_to_judge(text: str, seed: int) -> None:
    changed = perturb(text, random.Random(seed))
    assert changed.strip() or not text.strip()
    assert len(changed) <= 3 * len(text) + 4


@given(ANYTHING, SEEDS)
def test_perturb_is_deterministic(text: str, seed: int) -> None:
    assert perturb(text, random.Random(seed)) == perturb(text, random.Random(seed))


@given(SEEDS)
def test_language_stays(seed: int) -> None:
    assert language(perturb(KO, random.Random(seed))) == "ko"
    assert language(perturb(EN, random.Random(seed))) == "en"


@pytest.mark.parametrize("perturbation", ALL, ids=lambda f: f.__name__)
@given(text=ANYTHING, seed=SEEDS)
def test_no_perturbation_crashes(perturbation: Perturbation, text: str, seed: int) -> None:
    assert isinstance(perturbation(text, random.Random(seed)), str)


@pytest.mark.parametrize("perturbation", ALL, ids=lambda f: f.__name__)
def test_every_perturbation_changes_some_text(perturbation: Perturbation) -> None:
    assert any(perturbation(text, random.Random(seed)) != text for text in (KO, EN) for seed in range(20))


def test_perturb_does_not_change_the_global_generator() -> None:
    state = random.getstate()
    perturb(KO, random.Random(1))
    assert random.getstate() == state


@given(SEEDS)
def test_spaces_are_all_that_no_spaces_takes(seed: int) -> None:
    assert augment.no_spaces(KO, random.Random(seed)) == KO.replace(" ", "")
    assert augment.random_spaces(EN, random.Random(seed)).replace(" ", "") == EN.replace(" ", "")


@given(SEEDS)
def test_shadow_undoes_split_syllables(seed: int) -> None:
    assert shadow(augment.jamo("바보 나무", random.Random(seed))) == "바보 나무"


@given(SEEDS)
def test_shadow_undoes_look_alikes(seed: int) -> None:
    text = "how to escape"
    assert shadow(augment.homoglyphs(text, random.Random(seed))) == text


@given(SEEDS)
def test_casing_changes_case_only(seed: int) -> None:
    assert augment.casing(EN, random.Random(seed)).lower() == EN


@given(SEEDS)
def test_leet_changes_letters_only(seed: int) -> None:
    changed = augment.leet(EN, random.Random(seed))
    assert len(changed) == len(EN)
    assert all(a == b or b.isdigit() for a, b in zip(EN, changed, strict=True))


@given(SEEDS)
def test_sounds_keeps_the_number_of_syllables(seed: int) -> None:
    changed = augment.sounds(KO, random.Random(seed))
    assert len(display(changed)) == len(KO)


def test_neighbours_are_beside_each_other() -> None:
    near = augment.neighbours(("qwe", "as"))
    assert near == {"q": "w", "w": "qe", "e": "w", "a": "s", "s": "a"}
