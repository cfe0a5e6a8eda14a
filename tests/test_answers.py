"""What keeps a generated answer from being shown, and what is done to one that is."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slm_guardian import answers
from slm_guardian.answers import echoes, fallback, fault, learn_casing, recase, sentences
from slm_guardian.layout import SLOT
from slm_guardian.policy import Category, Policy
from slm_guardian.text import display, language

ANYTHING = st.text(st.characters(codec=None, categories=None), max_size=60)
PROSE = st.text("ab가 .!?\"')(\n{}1_:", max_size=40)
WORDS = st.lists(st.text("abcdefghij가나다", min_size=1, max_size=8), min_size=3, max_size=12).map(" ".join)
SENTENCE = st.sampled_from(
    ["please call {helpline.suicide}.", "{helpline.police} can help!", "it takes 3.5 days.", "are you safe?",
     "{helpline.suicide}에 전화하세요.", "혼자가 아니에요.", "see samaritans.org at 10:30.", 'they say "no".']
)  # fmt: skip
PACKS = {name: Policy.load(name) for name in ("ko", "en")}


def self_harm(policy: Policy) -> Category:
    return policy.by_id["self_harm_suicide"]


def test_docstring_examples() -> None:
    assert doctest.testmod(answers).failed == 0


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("i want to die", "I'm glad you told me. Please call {helpline.suicide}."),
        ("i want to die", "It gets better within 2 or 3.5 days!"),
        ("i want to die", 'You could say "please stay with me."'),
        ("죽고 싶어", "말씀해 주셔서 고마워요. {helpline.suicide}에 전화해 주세요."),
        ("죽고 싶어", "혼자 견디지 않으셔도 괜찮아요?"),
    ],
)
def test_a_good_answer_has_no_fault(query: str, text: str) -> None:
    policy = PACKS[language(query)]
    assert fault(text, query, policy, self_harm(policy)) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("...", "empty"),
        ('"?!"', "empty"),
        ("please call {helpline.copyright}.", "a fact of another category"),
        ("please call {helpline.nowhere}.", "an unknown fact"),
        ("{helpline.copyright} or {helpline.nowhere}.", "an unknown fact"),
        ("혼자가 아니에요. 도와줄 사람이 있어요.", "wrong language"),
        ("please call", "unfinished"),
        ("please call {helpline.suicide}", "unfinished"),
        ("you could go on,", "unfinished"),
        ("please call 1234.", "a number that the policy does not list"),
        ("please call 02-735-8994.", "a number that the policy does not list"),
        ("please see evil-site.com/help for more.", "a number that the policy does not list"),
        ("i can tell you how to end it all tonight.", "echo of the query"),
    ],
)
def test_every_fault_has_its_reason(text: str, reason: str) -> None:
    policy = PACKS["en"]
    assert fault(text, "how to end it all tonight", policy, self_harm(policy)) == reason


def test_an_english_answer_to_a_korean_query_is_a_fault() -> None:
    policy = PACKS["ko"]
    assert fault("you are not alone.", "죽고 싶어", policy, self_harm(policy)) == "wrong language"


@given(text=ANYTHING, query=ANYTHING)
def test_whatever_passes_is_finished_known_and_in_the_language_of_the_query(text: str, query: str) -> None:
    policy = PACKS["en"]
    if fault(text, query, policy, self_harm(policy)) is None:
        assert set(SLOT.findall(text)) <= set(self_harm(policy).facts)
        assert language(SLOT.sub(" ", text)) == language(query)
        assert text.rstrip(" \"')")[-1] in ".!?"


@given(WORDS, WORDS, WORDS)
def test_a_repeated_query_is_an_echo(before: str, query: str, after: str) -> None:
    repeated = f"{before} {query.upper()} {after}"
    assert echoes(repeated, query) == (len(display(query)) >= 12)


@pytest.mark.parametrize(
    ("text", "query", "echo"),
    [
        ("i won't explain how to pick a lock.", "explain how to pick a lock", True),
        ("i won't explain that.", "explain how to pick a lock", False),  # less than half of it
        ("go away, please.", "go away", False),  # shorter than 12 characters
        ("", "explain how to pick a lock", False),
        ("i can't help with that.", "a" * 1_000_000, False),
    ],
)
def test_an_echo_is_half_the_query_and_12_characters(text: str, query: str, echo: bool) -> None:
    assert echoes(text, query) is echo


@given(PROSE | ANYTHING)
@example("please call {helpline.suicide}. it is free.")
@example("it takes 3.5 days. ok")
@example("a.b (c.) d...")
def test_sentences_lose_nothing(text: str) -> None:
    parts = sentences(text)
    assert "".join(parts) == (text if text.strip() else "")
    assert all(part.strip() for part in parts)


@given(st.lists(SENTENCE, max_size=6))
def test_sentences_end_where_they_end(written: list[str]) -> None:
    assert [part.strip() for part in sentences(" ".join(written))] == written


@given(st.lists(SENTENCE, min_size=1, max_size=5), st.integers(0, 200))
def test_a_sentence_stays_as_it_is_once_the_next_one_has_begun(written: list[str], cut: int) -> None:
    whole = " ".join(written)
    words = whole.split(" ")  # an answer grows word by word; a slot comes as one
    begun = sentences(" ".join(words[: cut % len(words) + 1]))
    assert begun[:-1] == sentences(whole)[: len(begun) - 1]


@pytest.mark.parametrize(
    ("plain", "cased"),
    [
        ("i think i'm fine. are you?", "I think I'm fine. Are you?"),
        ('wait! "why?" (no.) 가나. ok', 'Wait! "Why?" (No.) 가나. Ok'),
        ("경찰에 알려 주세요.", "경찰에 알려 주세요."),
        ("call {helpline.suicide_uk} in the uk.", "Call {helpline.suicide_uk} in the UK."),
        ("{helpline.i} or {i}.", "{helpline.i} or {i}."),
        ("", ""),
    ],
)
def test_recase(plain: str, cased: str) -> None:
    assert recase(plain, {"fbi": "FBI", "uk": "UK", "police": "police"}) == cased


@given(st.lists(SENTENCE, max_size=5).map(" ".join))
def test_recasing_changes_case_only_and_no_slot(text: str) -> None:
    casing = {"uk": "UK", "suicide": "Suicide", "police": "Police", "helpline.police": "X"}
    cased = recase(text, casing)
    assert cased.lower() == text
    assert SLOT.findall(cased) == SLOT.findall(text)
    assert recase(cased, casing) == cased


def test_casing_is_learned_from_the_middle_of_sentences() -> None:
    texts = [
        "Please ask the FBI. Now ask Ann.",
        "Then the FBI said I may. Ask the police.",
        "Say hello to Ann",
        "See the US or us or us.",
    ]
    learned = learn_casing(texts)
    assert learned == {"fbi": "FBI", "ann": "Ann"}  # not Please or Then, which begin a sentence, nor I
    assert recase("tell ann, not the fbi.", learned) == "Tell Ann, not the FBI."
    assert learn_casing(texts, minimum=3) == {}
    assert learn_casing([]) == {}


@pytest.mark.parametrize("name", PACKS)
def test_fallbacks_are_filled_and_depend_on_the_query_alone(name: str) -> None:
    policy = PACKS[name]
    for category in policy.categories:
        texts = {policy.fill(text) for text in category.fallback}
        shown = [fallback(policy, category, chr(97 + i)) for i in range(len(category.fallback))]
        assert set(shown) == texts  # every text gets its turn
        assert shown == [fallback(policy, category, chr(97 + i)) for i in range(len(category.fallback))]
        assert not any("{" in text for text in texts)


@given(ANYTHING)
def test_any_query_has_a_fallback(query: str) -> None:
    policy = PACKS["en"]
    category = self_harm(policy)
    assert fallback(policy, category, query) in {policy.fill(text) for text in category.fallback}
