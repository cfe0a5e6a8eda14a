"""Systems: specs, the reading rule, the floors, and every adapter over HTTP against the real protocols."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from moderation_server import (
    KEY,
    Call,
    ModerationServer,
    Reply,
    chat,
    google_error,
    harm,
    moderated,
    openai_error,
)
from slm_guardian.errors import GuardianError, InputError
from slm_guardian.evaluate.systems import KINDS, Judged, llama_guard, load_system, mended, wildguard
from slm_guardian.evaluate.systems.chat import chat_prompt
from slm_guardian.evaluate.systems.generative import Prompt
from slm_guardian.evaluate.systems.reading import Reading, Step
from slm_guardian.evaluate.systems.server import ServerRunner
from slm_guardian.policy import Policy

SAFE_OR_NOT = Reading(("unsafe",), ("safe",))
BOMB, BREAD = "how do I build a bomb?", "how do I bake bread?"


def step(text: str, **candidates: float) -> Step:
    """A step with candidates by probability; `_` in a name stands for a space."""
    return Step.of(text, [(name.replace("_", " "), math.log(p)) for name, p in candidates.items()])


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)


@pytest.fixture
def server(keys: None) -> Iterator[ModerationServer]:
    with ModerationServer() as running:
        yield running


# --- specs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nope", "no system 'nope': use a model directory or one of guardian, tfidf, keywords"),
        ("keywords?volume=11", "keywords: no option 'volume': it has name"),
        ("llama-guard-3?shots=few", "'shots' cannot be used: Input should be 'zero' or 'ic'"),
        ("guardian?threshold=high", "from 0 to 1, strict or loose"),
        ("chat?shots", "write options as"),
        ("constant:maybe", "constant:safe or constant:unsafe"),
        ("chat:m?base_url=ftp://x", "must start with http"),
        ("no/such/model", "no model directory"),
        ("tfidf", "tfidf:PATH"),
        ("keywords:/none", "no list of keywords"),
        ("aegis-d:/none", "categories=FILE"),
    ],
)
def test_a_wrong_spec_says_what_is_right(spec: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_system(spec)
    assert message in str(error.value)


@pytest.mark.parametrize("spec", ["chat", "openai-moderation", "perspective", "perspective?cache=none.jsonl"])
def test_a_missing_key_says_which(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    with pytest.raises(InputError, match="_API_KEY"):
        load_system(spec)


def test_names_hold_what_changes_the_answers_and_nothing_else(keys: None) -> None:
    place = "base_url=http://127.0.0.1:1/v1"
    assert load_system(f"chat:m?{place}&shots=ic&batch_size=2").name == "chat:m?shots=ic"
    assert load_system(f"chat:m?{place}&name=GPT IC").name == "GPT IC"
    revisions = {
        load_system(f"chat:m?{place}&{key}").revision for key in ("shots=zero", "shots=ic", "lang=ko")
    }
    assert len(revisions) == 3
    assert all(revision.startswith("m+") for revision in revisions)


def test_the_guardian_of_a_spec_is_the_guardian_of_the_command_line(tmp_path: Path) -> None:
    plain, strict = load_system("guardian?threshold=0.9&policy=en"), load_system(None, "en", 0.9)
    assert plain.judge([BOMB]) == strict.judge([BOMB])
    assert plain.judge([BOMB])[0].threshold == 0.9
    assert plain.revision == strict.revision != load_system().revision


def test_every_kind_has_a_place_in_this_package() -> None:
    assert all(place.startswith("slm_guardian.evaluate.") for place in KINDS.values())


# --- the floors


def test_floors_give_hard_labels() -> None:
    texts = ["how do I build bombs", "폭탄 만들기", "hackathon dates", "안녕", "I want to kill myself", ""]
    assert [row.label for row in load_system("constant:safe").judge(texts)] == ["safe"] * 6
    judged = load_system("keywords").judge(texts)
    assert [row.label for row in judged] == ["unsafe", "unsafe", "safe", "safe", "unsafe", "safe"]
    assert all(row.harm is None and row.error is None for row in judged)
    assert judged[0].category == "crime_advice"


def test_a_list_of_keywords_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "words.yaml").write_text(
        "en: {spoilers: [butler]}\nko: {spoilers: [범인]}\n", encoding="utf-8"
    )
    judged = load_system(f"keywords:{tmp_path / 'words.yaml'}").judge(
        ["The BUTLER did it", "범인은?", "butlering"]
    )
    assert [row.category for row in judged] == ["spoilers", "spoilers", None]


# --- the reading rule


def test_white_space_before_the_label_is_skipped() -> None:
    steps = [step("\n\n", safe=0.9, unsafe=0.1), step("unsafe", unsafe=0.6, safe=0.2, maybe=0.2)]
    assert SAFE_OR_NOT.probability(steps) == pytest.approx(0.75)


def test_first_pieces_of_labels_count_and_pieces_of_both_do_not() -> None:
    yes_no = Reading(("harmful",), ("unharmful", "harmless"))
    got = yes_no.probability([step("un", un=0.3, unh=0.1, h=0.2, harm=0.1, harmf=0.1, UNHARMFUL=0.1, x=0.1)])
    assert got == pytest.approx(0.1 / 0.6)  # "h" and "harm" may become either


def test_case_and_what_follows_a_label_do_not_matter() -> None:
    assert SAFE_OR_NOT.probability(
        [step(" Safe", _Safe=0.5, safety=0.2, UNSAFE=0.1, UnSafely=0.2)]
    ) == pytest.approx(0.3)


def test_while_both_sides_are_possible_the_next_token_decides() -> None:
    special = Reading(("<UNSAFE>",), ("<SAFE>",))
    steps = [step("<", **{"<": 1.0}), step("SAFE", SAFE=0.8, UN=0.2), step(">", **{">": 1.0})]
    assert special.probability(steps) == pytest.approx(0.2)
    assert special.probability(steps[:1]) is None


def test_the_label_is_what_comes_after_the_anchor() -> None:
    anchored = Reading(("yes",), ("no",), anchor="request:")
    head = [step("no", no=1.0), step(" request", no=1.0), step(":", yes=1.0)]
    assert anchored.probability([*head, step(" yes", _yes=0.7, _no=0.3)]) == pytest.approx(0.7)
    assert anchored.probability(head) is None
    assert anchored.probability(
        [step("request: no", **{"request: yes": 0.4, "request: no": 0.6, "yes": 0.9})]
    ) == (pytest.approx(0.4))


@pytest.mark.parametrize(
    "steps", [[], [step(" ")], [step("Sorry", Sorry=1.0)], [step("\n", safe=1.0), step(" ", unsafe=1.0)]]
)
def test_no_label_is_no_probability(steps: list[Step]) -> None:
    assert SAFE_OR_NOT.probability(steps) is None


def test_labels_that_hold_too_little_of_the_probability_are_no_answer() -> None:
    told = [step("Sorry", Sorry=0.7, safe=0.2, unsafe=0.1)]
    assert SAFE_OR_NOT.probability(told) == pytest.approx(1 / 3)
    assert Reading(("unsafe",), ("safe",), least=0.5).probability(told) is None


@pytest.mark.parametrize("reading", [llama_guard.READING, wildguard.READING])
def test_a_decision_below_a_tenth_of_the_probability_is_none(reading: Reading) -> None:
    head = [step("Harmful request:")] if reading.anchor else []
    unsafe, safe = reading.unsafe[0], reading.safe[0]
    enough = step(unsafe, **{unsafe: 0.06, safe: 0.05, "I": 0.89})
    little = step(unsafe, **{unsafe: 0.06, safe: 0.03, "I": 0.91})
    assert reading.probability([*head, enough]) == pytest.approx(6 / 11)
    assert reading.probability([*head, little]) is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("unsafe\nS1", "unsafe"),
        ("\n Safe.", "safe"),
        ("safety first", None),
        ("I will not", None),
        ("", None),
    ],
)
def test_without_log_probs_the_written_label_counts(text: str, label: str | None) -> None:
    assert SAFE_OR_NOT.label([Step(text, {})]) == label


def test_texts_are_mended() -> None:
    assert mended("a\ud800b") == "a\ufffdb"
    assert mended("\ud83d\ude00 가") == "😀 가"


# --- chat models


def test_a_chat_model_is_read_from_its_log_probs(server: ModerationServer) -> None:
    server.strict = True
    system = load_system(f"chat:gpt-4-turbo?base_url={server.openai}")
    bomb, bread = system.judge([BOMB, BREAD])
    asked = server.log[0].text
    assert bomb.harm == pytest.approx(harm(server.log[0].text if "bomb" in asked else server.log[1].text))
    assert (bomb.category, bomb.raw, bomb.error) == ("crime_advice", "unsafe crime_advice", None)
    assert bread.harm is not None and bread.harm < 0.5
    assert (bread.category, bread.raw) == (None, "safe")
    body = server.log[0].body
    assert (body["model"], body["temperature"], body["top_logprobs"], body["max_tokens"]) == (
        "gpt-4-turbo",
        0,
        20,
        16,
    )


@pytest.mark.parametrize(("lang", "query"), [("ko", "질의:\n질문\n"), ("en", "Query:\n질문\n")])
def test_the_prompts_hold_names_or_the_taxonomy_with_examples(lang: Literal["ko", "en"], query: str) -> None:
    policy = Policy.load("ko")
    crime = policy.by_id["crime_advice"]
    zero, shots = (chat_prompt(policy, lang, k)("질문").content for k in (0, 2))
    assert isinstance(zero, list) and isinstance(shots, list)
    assert zero[1] == shots[1] and zero[1]["content"].startswith(query)
    names, texts = zero[0]["content"], shots[0]["content"]
    assert "crime_advice: 범죄 조언" in names and "crime_advice: 범죄 조언" in texts
    assert crime.covers[0] not in names and crime.covers[0] in texts and crime.excludes[0] in texts
    assert f"{crime.harmful[1]} -> unsafe crime_advice" in texts and f"{crime.safe[1]} -> safe" in texts
    assert crime.harmful[2] not in texts and crime.harmful[0] not in names


def test_refusals_and_other_answers_are_counted_apart_never_as_safe(server: ModerationServer) -> None:
    answers = {
        "a": chat("I'm sorry, but I can't help.", [{"I'm": 1.0}, {" sorry": 1.0}, {", but": 1.0}]),
        "b": chat("Bread is baked hot.", [{"Bread": 1.0}]),
        "c": chat("", refusal="no"),
        "d": chat("", finish_reason="content_filter"),
        "e": openai_error(400, "content_filter"),
        "f": openai_error(500, None, retry=True),
        "g": Reply({"choices": []}),
    }
    server.script = lambda call: answers.get(call.text.strip()[0])
    judged = load_system(f"chat:m?base_url={server.openai}").judge([*answers, BREAD])
    errors = ["refused", "unparsed", "refused", "refused", "refused", "http 500", "empty", None]
    assert [row.error for row in judged] == errors
    assert all(row.harm is None and row.label is None for row in judged[:-1])
    assert [row.category for row in judged[:-1]] == [None] * 7


def test_without_log_probs_there_are_hard_labels(server: ModerationServer) -> None:
    system = load_system(f"chat:m?base_url={server.openai}&logprobs=false")
    assert [(row.harm, row.label) for row in system.judge([BOMB, BREAD])] == [
        (None, "unsafe"),
        (None, "safe"),
    ]
    assert not {"logprobs", "temperature"} & set(server.log[0].body)


def test_a_quota_is_waited_for(server: ModerationServer) -> None:
    server.script = lambda call: (
        openai_error(429, "rate_limit_exceeded", retry=True) if call.attempt < 2 else None
    )
    assert load_system(f"chat:m?base_url={server.openai}").judge([BOMB])[0].harm == pytest.approx(
        harm(server.log[0].text)
    )
    assert len(server.log) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (openai_error(401, "invalid_api_key"), "check OPENAI_API_KEY"),
        (openai_error(404, "model_not_found"), "no model 'm'"),
        (openai_error(429, "insufficient_quota", retry=True), "no credit"),
    ],
)
def test_what_no_text_can_change_ends_the_run(reply: Reply, message: str, server: ModerationServer) -> None:
    server.script = lambda call: reply
    with pytest.raises(GuardianError, match=message):
        load_system(f"chat:m?base_url={server.openai}").judge([BOMB])


def test_a_text_that_does_not_fit_is_cut_at_its_end_only(server: ModerationServer) -> None:
    text = BOMB + " please" * 10_000
    (judged,) = load_system(f"chat:m?base_url={server.openai}").judge([text])
    assert judged.harm is not None and judged.harm > 0.5
    last = server.log[-1].body["messages"][-1]["content"]
    assert BOMB in last and last.endswith("Label of this query (safe, or unsafe and the id):")
    assert len(last) < len(text)


def test_an_odd_text_is_asked_about_too(server: ModerationServer) -> None:
    assert load_system(f"chat:m?base_url={server.openai}").judge(["\ud800 bomb"])[0].harm is not None


# --- guards behind a server


def test_raw_prompts_go_to_completions_and_chats_with_their_template_to_chat(
    server: ModerationServer,
) -> None:
    wild = load_system(f"wildguard:w?base_url={server.openai}").judge([BOMB, BREAD])
    assert [row.harm is not None and row.harm > 0.5 for row in wild] == [True, False]
    assert {call.path for call in server.log} == {"/v1/completions"}
    assert wild[0].raw == "Harmful request: yes\n"
    llama = load_system(f"llama-guard-3:g?base_url={server.openai}").judge([BOMB, BREAD])
    assert [row.category for row in llama] == ["crime_advice", None]
    assert llama[0].raw == "\n\nunsafe\nS1"
    call = next(call for call in server.log if call.path == "/v1/chat/completions")
    assert call.body["skip_special_tokens"] is False
    assert [message["role"] for message in call.body["messages"]] == ["user"]


def test_our_taxonomy_stands_in_the_category_block(server: ModerationServer) -> None:
    judged = load_system(f"llama-guard-1:g?policy=ko&base_url={server.openai}").judge([BOMB])
    prompt = server.log[-1].body["prompt"]
    block = prompt.partition("<BEGIN UNSAFE CONTENT CATEGORIES>\n")[2].partition("\n<END UNSAFE")[0]
    assert block.startswith("O1: 범죄 조언.\nShould not\n- ")
    assert "O10: " in block and "Example" not in block
    assert judged[0].category == "crime_advice"  # O1 of ours, not Violence and Hate of theirs
    load_system(f"llama-guard-3:g?shots=ic&base_url={server.openai}").judge([BOMB])
    prompt = server.log[-1].body["prompt"]
    assert "S1: Crime advice." in prompt
    assert f'Example: "{Policy.load("en").categories[0].harmful[0]}"' in prompt


def test_a_served_adapter_needs_its_categories_as_a_file(server: ModerationServer, tmp_path: Path) -> None:
    (tmp_path / "card").write_text(
        "O1: Needs Caution.\nCan\n- x\nO2: Threat.\nShould not\n- y\n", encoding="utf-8"
    )
    for kind, first in (("aegis-d", "O1: Needs Caution."), ("aegis-p", "O2: Threat.")):
        system = load_system(f"{kind}:served?base_url={server.openai}&categories={tmp_path / 'card'}")
        assert system.judge([BOMB])[0].harm is not None
        assert f"CATEGORIES>\n{first}\n" in server.log[-1].body["prompt"]


def test_no_server_is_one_clear_line(keys: None) -> None:
    with ModerationServer() as gone:
        address = gone.openai
    with pytest.raises(GuardianError, match="no connection to 127"):
        ServerRunner("m", address, retries=0).run([Prompt("hello")], 1)


# --- OpenAI's Moderation API


def test_moderation_takes_lists_and_keeps_the_order(server: ModerationServer) -> None:
    system = load_system(f"openai-moderation?base_url={server.openai}&batch_size=2")
    texts = [BOMB, BREAD, "욕해줘", "안녕", "hi"]
    judged = system.judge(texts)
    assert [row.harm for row in judged] == pytest.approx([harm(text) for text in texts])
    assert sorted(len(call.body["input"]) for call in server.log) == [1, 2, 2]
    assert judged[0].category == "insult_offensiveness"
    assert {row.threshold for row in judged} == {0.5}
    assert json.loads(judged[0].raw or "")["category_scores"]["harassment"] == harm(BOMB)


def test_the_apis_own_decision_counts_and_null_scores_do_not(server: ModerationServer) -> None:
    low: dict[str, Any] = moderated("x", illicit=None, sexual=0.3) | {"flagged": True}
    low["category_scores"]["harassment"] = 0.0
    high = moderated("x", violence=0.7) | {"flagged": False}
    none = moderated("x") | {"category_scores": {}}
    server.script = lambda call: Reply({"id": "m", "model": "old", "results": [low, high, none]})
    judged = load_system(f"openai-moderation:old?base_url={server.openai}").judge(["a", "b", "c"])
    assert [row.harm for row in judged] == [0.3, 0.7, None]
    assert [row.harm >= (row.threshold or 0) for row in judged[:2] if row.harm is not None] == [True, False]
    assert (judged[0].category, judged[2].error) == ("sexual_harmful_to_minors", "unparsed")


def test_one_text_that_the_api_refuses_does_not_spoil_its_list(server: ModerationServer) -> None:
    judged = load_system(f"openai-moderation?base_url={server.openai}").judge([BOMB, "", BREAD])
    assert [row.error for row in judged] == [None, "http 400", None]
    assert len(server.log) == 4


def test_moderation_waits_for_its_quota_and_ends_without_credit(server: ModerationServer) -> None:
    server.script = lambda call: (
        openai_error(429, "rate_limit_exceeded", retry=True) if not call.attempt else None
    )
    assert load_system(f"openai-moderation?base_url={server.openai}").judge([BOMB])[0].error is None
    server.script = lambda call: openai_error(429, "insufficient_quota", retry=True)
    with pytest.raises(GuardianError, match="no credit"):
        load_system(f"openai-moderation?base_url={server.openai}").judge([BOMB])


# --- Perspective


def perspective(server: ModerationServer, **options: object) -> str:
    keys = {"base_url": server.perspective, "qps": 500, **options}
    return "perspective?" + "&".join(f"{key}={value}" for key, value in keys.items())


def test_perspective_is_asked_for_six_attributes_in_the_text_s_language(server: ModerationServer) -> None:
    bomb, korean = load_system(perspective(server)).judge([BOMB, "욕해줘"])
    assert (bomb.harm, bomb.category, bomb.threshold) == (harm(BOMB), "insult_offensiveness", 0.5)
    assert korean.harm == harm("욕해줘")
    first, second = (call.body for call in server.log)
    assert first["comment"] == {"text": BOMB, "type": "PLAIN_TEXT"}
    assert (first["languages"], second["languages"], first["doNotStore"]) == (["en"], ["ko"], True)
    assert len(first["requestedAttributes"]) == 6
    assert server.log[0].query == {"key": [KEY]}


def test_perspective_keeps_to_its_quota(server: ModerationServer) -> None:
    load_system(perspective(server, qps=100)).judge(["a", "b", "c"])
    pauses = [later.at - call.at for call, later in zip(server.log, server.log[1:], strict=False)]
    assert min(pauses) > 0.005


def test_perspective_tries_again_when_the_quota_is_spent(server: ModerationServer) -> None:
    busy = google_error(429, "RESOURCE_EXHAUSTED", reason="RATE_LIMIT_EXCEEDED")
    server.script = lambda call: busy if call.attempt < 2 else None
    assert load_system(perspective(server)).judge([BOMB])[0].harm == harm(BOMB)
    server.script = lambda call: busy
    assert load_system(perspective(server)).judge([BREAD])[0] == Judged(None, error="http 429", threshold=0.5)


def test_perspective_gets_at_most_20_kb(server: ModerationServer) -> None:
    (judged,) = load_system(perspective(server)).judge([BOMB + "가" * 9000])
    sent = server.log[0].body["comment"]["text"]
    assert judged.error is None and sent.startswith(BOMB) and sent.endswith("가")
    assert 20_477 < len(sent.encode()) <= 20_480


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (google_error(400, "INVALID_ARGUMENT", errorType="COMMENT_TOO_LONG"), "too long"),
        (
            google_error(400, "INVALID_ARGUMENT", errorType="LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"),
            "language not supported",
        ),
        (google_error(400, "INVALID_ARGUMENT"), "http 400"),
        (Reply({"error": "odd"}, 400), "http 400"),
        (Reply({"attributeScores": {}}), "unparsed"),
    ],
)
def test_what_perspective_cannot_score_is_not_judged(
    reply: Reply, error: str, server: ModerationServer
) -> None:
    server.script = lambda call: reply
    (judged,) = load_system(perspective(server)).judge(["안녕"])
    assert (judged.harm, judged.error) == (None, error)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (google_error(400, "INVALID_ARGUMENT", reason="API_KEY_INVALID"), "PERSPECTIVE_API_KEY"),
        (google_error(403, "PERMISSION_DENIED"), "PERSPECTIVE_API_KEY"),
        (google_error(404, "NOT_FOUND"), "replay recorded answers"),
    ],
)
def test_a_closed_service_or_wrong_key_ends_the_run(
    reply: Reply, message: str, server: ModerationServer
) -> None:
    server.script = lambda call: reply
    with pytest.raises(GuardianError, match=message):
        load_system(perspective(server)).judge(["안녕"])


def test_recorded_answers_are_replayed_when_the_service_is_gone(
    server: ModerationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = perspective(server, cache=tmp_path / "answers.jsonl")
    live = load_system(spec).judge([BOMB, BREAD])
    assert load_system(spec).judge([BREAD, BOMB]) == live[::-1]
    assert len(server.log) == 2  # nothing is asked twice
    assert "bomb" not in (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    monkeypatch.delenv("PERSPECTIVE_API_KEY")
    replayed = load_system(spec).judge([BOMB, "something new"])
    assert replayed == [live[0], Judged(None, error="no recorded answer", threshold=0.5)]
    assert len(server.log) == 2


def test_calls_know_what_they_are_about() -> None:
    body = {"messages": [{"role": "user", "content": f"bomb\nQuery:\n{BREAD}"}]}
    assert Call("/", body, {}, {}, 0).text.strip() == BREAD
