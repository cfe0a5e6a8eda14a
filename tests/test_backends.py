"""Backends and the runner, against a real server on loopback that misbehaves and a real tiny LM."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_server import Call, LLMServer, Reply, answer, cut_off, hold, refused, status, truncated
from slm_guardian.errors import DataError, GuardianError, InputError, ModelError
from slm_guardian.generate.backends import Completion, Request, request
from slm_guardian.generate.backends.anthropic import AnthropicBackend
from slm_guardian.generate.backends.batch import BatchBackend
from slm_guardian.generate.backends.local import LocalBackend
from slm_guardian.generate.backends.openai import Chat, OpenAIBackend
from slm_guardian.generate.runner import Budget, Prices, estimate, run, unpaid

ITEMS = "1. 화분에 물 주는 법\n2. 강아지 산책 시간"
REPEATED = "1. 같은 질문\n2. 같은 질문\n3. 같은 질문"
WRONG_LANGUAGE = "1. how are you?\n2. what time is it?"


def asked(*users: str, **limits: int) -> list[Request]:
    return [request("test", "be kind", user, **limits) for user in users]


def outcome(found: list[Completion], requests: list[Request]) -> dict[str, tuple[str | None, str | None]]:
    """Text and error by user text; each request must have exactly one completion."""
    users = {r.custom_id: r.user for r in requests}
    assert sorted(c.custom_id for c in found) == sorted(users)
    return {users[c.custom_id]: (c.text, c.error) for c in found}


def misbehave(call: Call) -> Reply:
    """What the user text names; the first try only where it ends in `once`."""
    kind, _, once = call.user.partition(" ")
    replies = {
        "limit": status(429),
        "broken": status(500),
        "bad": status(400),
        "held": hold(),
        "half": truncated(),
        "lost": Reply(ITEMS, missing=10),
        "refused": refused(),
        "filtered": Reply(ITEMS, finish="content_filter"),
        "repeated": answer(REPEATED),
        "english": answer(WRONG_LANGUAGE),
        "empty": Reply(raw=b'{"choices": []}'),
        "blank": answer(" \n"),
        "null": Reply(raw=b"null"),
        "page": Reply(raw="<html>점검 중</html>".encode()),
        "cut": cut_off("1. 화분에 물"),
        "unmetered": Reply(ITEMS, usage=False),
    }
    return answer(ITEMS) if once and call.attempt else replies.get(kind, answer(ITEMS))


EXPECTED = {
    "good": (ITEMS, None),
    "limit once": (ITEMS, None),
    "broken once": (ITEMS, None),
    "held once": (ITEMS, None),
    "lost once": (ITEMS, None),
    "limit": (None, "http 429"),
    "broken": (None, "http 500"),
    "bad": (None, "http 400"),
    "held": (None, "timeout"),
    "lost": (None, "no connection"),
    "half": (None, "not a completion"),
    "null": (None, "not a completion"),
    "page": (None, "not a completion"),
    "refused": (None, "refused"),
    "filtered": (None, "refused"),
    "empty": (None, "empty"),
    "blank": (None, "empty"),
    "repeated": (REPEATED, None),
    "english": (WRONG_LANGUAGE, None),
    "cut": ("1. 화분에 물", "cut off"),
    "unmetered": (ITEMS, None),
}


def test_every_misbehaviour_is_one_completion() -> None:
    requests = asked(*EXPECTED)
    with LLMServer(misbehave) as server:
        backend = OpenAIBackend("any", server.url, timeout=3, retries=1)
        assert outcome(list(backend.complete(requests)), requests) == EXPECTED
    tries = Counter(call.user for call in server.log)
    assert tries == {
        user: 2 if user.split()[0] in ("limit", "broken", "held", "lost") else 1 for user in EXPECTED
    }


def test_what_is_sent() -> None:
    with LLMServer(misbehave) as server:
        backend = OpenAIBackend("some-model", server.url, api_key="secret")
        found = list(backend.complete([Request("a", "친절하게", "안녕 \ud800", 77, 0.5, {"row": 1})]))
    (call,) = server.log
    messages = [{"role": "system", "content": "친절하게"}, {"role": "user", "content": "안녕 \ufffd"}]
    assert call.body == {"model": "some-model", "messages": messages, "max_tokens": 77, "temperature": 0.5}
    assert call.headers["authorization"] == "Bearer secret"
    assert found == [Completion("a", ITEMS, None, 10, 5)]
    assert "secret" not in repr(backend)


def test_no_more_calls_at_a_time_than_allowed() -> None:
    with LLMServer(lambda call: hold()) as server:
        backend = OpenAIBackend("any", server.url, concurrency=3, timeout=2, retries=0)
        completions = backend.complete(asked(*map(str, range(5))))
        assert next(completions).error == "timeout"
        assert len(server.log) == 3
        del completions


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (status(401), "refused the key: check OPENAI_API_KEY"),
        (status(404), "has no model 'any'"),
        (status(402), "no credit left"),
        (replace(status(429), raw=b'{"error": {"code": "insufficient_quota"}}'), "no credit left"),
    ],
)
def test_what_can_never_work_ends_the_run(reply: Reply, says: str) -> None:
    with LLMServer(lambda call: reply) as server, pytest.raises(GuardianError, match=says) as error:
        list(OpenAIBackend("any", server.url, retries=1).complete(asked("비밀 질문")))
    assert "비밀" not in str(error.value)


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as taken:  # bound and not listening: refuses every connection
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        backend = OpenAIBackend("any", f"{address.replace('//', '//me:password@')}/v1", retries=0)
        with pytest.raises(GuardianError, match=f"no connection to {address}:"):
            list(backend.complete(asked("a", "b")))


def test_an_address_that_is_none() -> None:
    with pytest.raises(InputError, match="must start with http"):
        list(OpenAIBackend("any", "localhost:8000").complete(asked("a")))


def test_a_server_that_goes_away_ends_the_run_and_keeps_what_came(tmp_path: Path) -> None:
    script = {0: answer(ITEMS)}
    with LLMServer(lambda call: script.get(call.index, Reply(ITEMS, missing=9))) as server:
        backend = OpenAIBackend("any", server.url, concurrency=1, retries=0)
        found = []
        with pytest.raises(GuardianError, match="no connection"):
            for _, completion in run(backend, asked(*"abcdef"), tmp_path):
                found.append(completion.error)
    assert found == [None, "no connection"]
    assert len(unpaid("any", asked(*"abcdef"), tmp_path)) == 5


@pytest.mark.parametrize("backend", [OpenAIBackend("any"), AnthropicBackend("any")])
def test_no_key(backend: OpenAIBackend | AnthropicBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.key_variable, raising=False)
    with pytest.raises(InputError, match=f"set {backend.key_variable}"):
        list(backend.complete(asked("a")))


@pytest.mark.parametrize(
    ("backend", "extra"), [(OpenAIBackend("any"), "generate"), (AnthropicBackend("any"), "anthropic")]
)
def test_no_sdk(
    backend: OpenAIBackend | AnthropicBackend, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, backend.name, None)
    with pytest.raises(GuardianError, match=rf"slm-guardian\[{extra}\]"):
        list(backend.complete(asked("a")))


def test_anthropic() -> None:
    kinds = ["good", "limit once", "broken", "half", "refused", "cut", "blank"]
    requests = asked(*kinds, max_tokens=9)
    with LLMServer(misbehave) as server:
        backend = AnthropicBackend("some-model", server.root, retries=1)
        found = list(backend.complete(requests))
    assert outcome(found, requests) == {kind: EXPECTED[kind] for kind in kinds}
    sent = {"model": "some-model", "system": "be kind", "max_tokens": 9}
    assert server.log[0].body == sent | {"messages": [{"role": "user", "content": server.log[0].user}]}
    assert {(c.prompt_tokens, c.completion_tokens) for c in found if c.text} == {(10, 5)}


def test_a_tiny_model_on_this_machine(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from tiny import llama_base

    directory = str(llama_base(tmp_path / "llama"))
    requests = [*asked(*"abc", max_tokens=5), *asked("d", max_tokens=3), *asked("길다 " * 600)]
    found = {c.custom_id: c for c in LocalBackend(directory, batch_size=2).complete(requests)}
    assert len(found) == 5
    assert found[requests[-1].custom_id].error == "too long"
    assert all(found[r.custom_id].completion_tokens <= r.max_tokens for r in requests)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(directory)
    greedy = [replace(requests[0], temperature=0)]
    with_template = LocalBackend(directory)
    (first,), (again,) = with_template.complete(greedy), with_template.complete(greedy)
    assert first == again
    assert first.prompt_tokens == len(tokenizer("<system>be kind<user>a")["input_ids"])


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no causal LM"):
        LocalBackend(str(tmp_path))


def response_line(custom_id: str, **message: str | None) -> str:
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    return json.dumps({"custom_id": custom_id, "response": {"status_code": 200, "body": body}}) + "\n"


def pending(file: Path) -> set[str]:
    return {json.loads(line)["custom_id"] for line in file.read_text("utf-8").splitlines()}


def test_batch_asks_only_for_what_has_no_answer(tmp_path: Path) -> None:
    a, b, c, d = (r.custom_id for r in asked(*"abcd"))
    backend = BatchBackend(tmp_path / "req.jsonl", [str(tmp_path / "in" / "**" / "*.jsonl")], "any")
    assert {x.error for x in backend.complete(asked(*"ab"))} == {"pending"}
    assert {x.error for x in backend.complete(asked(*"cd"))} == {"pending"}
    assert pending(tmp_path / "req.jsonl") == {a, b, c, d}
    (tmp_path / "in" / "2").mkdir(parents=True)
    failed = json.dumps({"custom_id": c, "response": {"status_code": 500, "body": {"error": "no"}}}) + "\n"
    lines = response_line(b, content="둘"), failed, response_line("other", content="x"), '{"custom_id": "cu'
    (tmp_path / "in" / "2" / "1.jsonl").write_text("".join(lines), "utf-8")
    (tmp_path / "in" / "2.jsonl").write_text(response_line(a, content=None, refusal="no"), "utf-8")
    found = list(backend.complete(asked(*"abcd")))
    assert outcome(found, asked(*"abcd")) == {
        "a": (None, "refused"),
        "b": ("둘", None),
        "c": (None, "pending"),
        "d": (None, "pending"),
    }
    assert found[1].prompt_tokens == 3
    assert pending(tmp_path / "req.jsonl") == {c, d}


@given(
    st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    try:
        completion = Chat.model_validate_json(body).completion("a")
    except ValueError:
        return
    assert completion.text is None


def test_the_same_request_has_the_same_id() -> None:
    one, same = request("twins", "s", "u", rows=[1]), request("twins", "s", "u", rows=[2])
    assert one == same and one.custom_id.startswith("twins-")
    assert one.meta == {"task": "twins", "rows": [1]}
    assert one.custom_id != request("twins", "s", "v").custom_id


def test_nothing_answered_is_asked_again(tmp_path: Path) -> None:
    requests = asked(*(user for user in EXPECTED if "held" not in user))
    with LLMServer(misbehave) as server:
        backend = OpenAIBackend("any", server.url, retries=0)
        first = {r.user: c for r, c in run(backend, requests, tmp_path)}
        calls = len(server.log)
        second = {r.user: c for r, c in run(backend, requests, tmp_path)}
        other = list(run(replace(backend, model="other"), asked("good"), tmp_path))
    assert calls == len(requests) == len(first) == len(second)
    kept = {user for user, c in first.items() if c.error in (None, "cut off", "refused")}
    assert Counter(call.user for call in server.log[calls:-1]) == Counter(set(first) - kept)
    assert {user: second[user] for user in kept} == {user: first[user] for user in kept}
    assert server.log[-1].body["model"] == "other" and [c.text for _, c in other] == [ITEMS]


def test_the_same_request_twice_is_sent_once(tmp_path: Path) -> None:
    twice = [request("t", "s", "u", rows=[1]), request("t", "s", "u", rows=[2])]
    with LLMServer(misbehave) as server:
        done = list(run(OpenAIBackend("any", server.url), twice, tmp_path))
    assert [r.meta["rows"] for r, _ in done] == [[1], [2]]
    assert len(server.log) == 1


PROGRAM = """
import sys
from pathlib import Path
from slm_guardian.generate.backends import request
from slm_guardian.generate.backends.openai import OpenAIBackend
from slm_guardian.generate.runner import run
backend = OpenAIBackend("any", sys.argv[1], concurrency=4)
for _ in run(backend, [request("test", "be kind", str(n)) for n in range(30)], Path(sys.argv[2])):
    pass
"""


def test_kill_and_resume_pay_nothing_twice(tmp_path: Path) -> None:
    def script(call: Call) -> Reply:
        if call.attempt == 0 and int(call.user) % 5 == 1:
            return status(429 if int(call.user) % 2 else 500)
        return hold() if call.index >= stop else answer(f"1. {call.user}")

    stop = 15
    with LLMServer(script) as server:
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, server.url, str(tmp_path)])
        server.wait_for(lambda: len([c for c in server.log[stop:] if c.status is None]) == 4)
        child.kill()
        assert child.wait() == -9
        paid = server.answered()
        stop = 1000
        requests = asked(*map(str, range(30)))
        assert {r.user for r in unpaid("any", requests, tmp_path)} == {r.user for r in requests} - set(paid)
        done = list(run(OpenAIBackend("any", server.url), requests, tmp_path))
    assert len(paid) >= 10
    assert Counter(server.answered()) == Counter(r.user for r in requests)
    assert {r.user: c.text for r, c in done} == {str(n): f"1. {n}" for n in range(30)}


def test_a_consumer_that_leaves_early_does_not_hang(tmp_path: Path) -> None:
    program = PROGRAM.replace("for _ in", "rows =").replace(":\n    pass", "\nnext(rows)")
    with LLMServer(lambda call: hold() if call.index else answer(ITEMS)) as server:
        arguments = [sys.executable, "-c", program, server.url, str(tmp_path)]
        done = subprocess.run(arguments, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_budget_is_hard(tmp_path: Path) -> None:
    requests = asked(*(f"{n:02}" for n in range(20)), max_tokens=100)
    worst = len(b"be kind00") + 64 + 100
    with LLMServer(misbehave) as server:
        backend = OpenAIBackend("any", server.url)
        budget = Budget(max_tokens=worst + 4 * 15)
        first = Counter(c.error for _, c in run(backend, requests, tmp_path, budget))
        assert first == {None: 5, "budget": 15}  # the 5th may cost the worst case, and the 6th too
        assert budget.prompt_tokens + budget.completion_tokens == 5 * 15
        again = Counter(c.error for _, c in run(backend, requests, tmp_path, Budget(max_tokens=worst + 60)))
    assert again == first and len(server.log) == 5  # what the first run paid counts


def test_a_budget_of_nothing_sends_nothing(tmp_path: Path) -> None:
    with LLMServer(misbehave) as server:
        done = list(run(OpenAIBackend("any", server.url), asked("a"), tmp_path, Budget(max_tokens=0)))
    assert [c.error for _, c in done] == ["budget"] and server.log == []


@pytest.mark.parametrize(
    ("user", "spent"),
    [("good", 15), ("refused", 15), ("bad", 0), ("held", 7 + 4 + 64 + 9), ("unmetered", 7 + 9 + 64 + 9)],
)
def test_what_counts_as_spent(tmp_path: Path, user: str, spent: int) -> None:
    budget = Budget()
    with LLMServer(misbehave) as server:
        backend = OpenAIBackend("any", server.url, timeout=1 if user == "held" else 60, retries=0)
        list(run(backend, asked(user, max_tokens=9), tmp_path, budget))
    assert budget.prompt_tokens + budget.completion_tokens == spent


def test_a_batch_file_holds_no_more_than_the_budget_allows(tmp_path: Path) -> None:
    backend = BatchBackend(tmp_path / "req.jsonl", [], "any")
    requests = asked(*"abc", max_tokens=100)
    done = list(run(backend, requests, tmp_path, Budget(max_tokens=2 * (8 + 64 + 100))))
    assert Counter(c.error for _, c in done) == {"pending": 2, "budget": 1}
    assert pending(tmp_path / "req.jsonl") == {r.custom_id for r in requests[:2]}


def test_a_budget_in_money(tmp_path: Path) -> None:
    requests = asked(*"abc", max_tokens=100)
    with LLMServer(misbehave) as server:
        backend = OpenAIBackend("any", server.url)
        with pytest.raises(InputError, match="needs prices"):
            list(run(backend, requests, tmp_path, Budget(max_cost=1)))
        prices = Prices(prompt=1e6, completion=2e6)  # 1 and 2 a token: at worst 272 a request, in truth 20
        done = list(run(backend, requests, tmp_path, Budget(max_cost=300), prices))
    assert Counter(c.error for _, c in done) == {None: 2, "budget": 1}


def test_estimate() -> None:
    requests = [Request("a", "", "x" * 400, 50), Request("b", "", "가" * 100, 50)]
    assert estimate(requests).cost is None
    found = estimate(requests, Prices(prompt=1, completion=10))
    assert (found.requests, found.prompt_tokens, found.completion_tokens) == (2, 200, 100)
    assert found.cost == pytest.approx(0.0012)


def test_progress_is_shown_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LLMServer(misbehave) as server:
        backend = OpenAIBackend("any", server.url)
        list(run(backend, asked("a", "b"), tmp_path, prices=Prices(1e6, 1e6), progress=True))
    shown = capsys.readouterr()
    assert "2/2" in shown.err and "30 tokens, 30.00" in shown.err and not shown.out


def test_a_cache_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "completions.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="cannot be used as a cache"):
        unpaid("any", asked("a"), tmp_path)
    with pytest.raises(DataError, match="cannot be used as a cache"):
        unpaid("any", asked("a"), tmp_path / "completions.sqlite")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    unpaid("any", [], tmp_path)
    with sqlite3.connect(tmp_path / "completions.sqlite") as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON completions BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    database.close()
    with LLMServer(misbehave) as server, pytest.raises(GuardianError, match="make room"):
        list(run(OpenAIBackend("any", server.url), asked("a"), tmp_path))
