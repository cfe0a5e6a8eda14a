"""Judging answers: nothing harmful is shown, whatever the pieces in which an answer comes in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from slm_guardian.serve.app import create_app
from slm_guardian.serve.settings import Settings
from test_dialogue import SAFE
from upstream_server import CUT, DONE, TIMEOUT, Reply, UpstreamServer, example, running, squeezed, sse

WINDOW, HOLD = 60, 30
FORBIDDEN = "딸기 우유 작전"
LINES = ("토마토는 햇빛을 좋아해요. ", "토마토는 물도 좋아해요. ", "토마토는 바람도 좋아해요. ")
TOPIC = {"name": "plan", "category": "crime_advice", "phrases": [FORBIDDEN]}
ASKED = {"model": "any", "messages": [{"role": "user", "content": SAFE["ko"]}]}


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamServer]:
    with UpstreamServer() as server:
        yield server


@pytest.fixture(scope="module")
def url(upstream: UpstreamServer) -> Iterator[str]:
    """A gateway that judges answers and takes one phrase for harmful, whatever the model says."""
    chosen = Settings.load(
        threads=1,
        upstream={"url": upstream.url},
        answers={"judge": True, "window": WINDOW, "hold": HOLD},
        policies={"default": {"forced": [TOPIC]}},
        limits={"deadline_s": TIMEOUT},
    )
    with running(create_app(chosen), lifespan="on") as url:
        yield url


def ask(url: str, **more: Any) -> httpx2.Response:
    return httpx2.post(url + "/v1/chat/completions", json=ASKED | more, timeout=TIMEOUT)


def events(body: bytes) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.decode().splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def shown(body: bytes, of: str = example.MODEL) -> str:
    """The text of the events that one model wrote."""
    chunks = [e for e in events(body) if isinstance(e, dict) and e.get("model") == of]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


@st.composite
def answers(draw: st.DrawFn, *, harmful: bool) -> tuple[str, list[str], list[int]]:
    """A text (with the phrase somewhere in it), the words that it comes in, and where its bytes are cut."""
    lines = draw(st.lists(st.sampled_from(LINES), max_size=10))
    place = draw(st.integers(0, len(lines)))
    text = "".join([*lines[:place], *([FORBIDDEN + " "] if harmful else []), *lines[place:]])
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=20)) | {0, len(text)})
    words = [text[a:b] for a, b in pairwise(cuts)]
    return text, words, draw(st.lists(st.integers(1, 4000), max_size=10))


def pieces(body: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes, cut at these places."""
    places = [0, *sorted(c for c in set(cuts) if c < len(body)), len(body)]
    return [body[a:b] for a, b in pairwise(places)]


_SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_SLOW
@given(answers(harmful=True))
def test_no_part_of_a_harmful_passage_is_shown(
    url: str, upstream: UpstreamServer, answer: tuple[str, list[str], list[int]]
) -> None:
    text, words, cuts = answer
    upstream.script = lambda call: Reply(pieces(sse(*words) + DONE, cuts))
    body = ask(url, stream=True).content
    assert text[: text.index(FORBIDDEN)].startswith(shown(body))
    *_, last, done = events(body)
    assert (last["choices"][0]["finish_reason"], done) == ("content_filter", "[DONE]")
    assert last["guardian"]["target"] == "output" and last["guardian"]["category"] == "crime_advice"
    assert shown(body, of=last["model"]).strip(), "the guardian's own answer"


@_SLOW
@given(answers(harmful=False))
def test_a_safe_answer_is_the_upstream_s_byte_for_byte(
    url: str, upstream: UpstreamServer, answer: tuple[str, list[str], list[int]]
) -> None:
    _, words, cuts = answer
    sent = b": a comment\n\n" + sse(*words).replace(b"\n\n", b"\r\n\r\n") + DONE
    upstream.script = lambda call: Reply(pieces(sent, cuts))
    assert ask(url, stream=True).content == sent


def test_the_beginning_is_shown_before_the_end_is_there(url: str, upstream: UpstreamServer) -> None:
    gate, begun = upstream.gate(), LINES * 2
    upstream.script = lambda call: Reply([sse(*begun), gate, sse("끝."), DONE])
    with httpx2.stream("POST", url + "/v1/chat/completions", json=ASKED | {"stream": True}) as response:
        body = b""
        for chunk in response.iter_raw():
            body += chunk
            if shown(body) and not gate.opened:
                assert len(shown(body)) <= len("".join(begun)) - HOLD
                gate.open()
    assert gate.opened and shown(body) == "".join(begun) + "끝."


def test_a_harmful_answer_hangs_up_the_upstream(url: str, upstream: UpstreamServer) -> None:
    upstream.calls.clear()
    upstream.script = lambda call: Reply([sse(*LINES * 2, FORBIDDEN, *LINES * 2), upstream.gate(), DONE])
    with OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as openai:
        chunks = list(openai.chat.completions.create(**ASKED, stream=True))
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert len({chunk.id for chunk in chunks}) == 1
    assert upstream.calls[0].gone.wait(TIMEOUT)


def test_an_answer_that_is_not_streamed(url: str, upstream: UpstreamServer) -> None:
    def answered(text: str | None, **message: Any) -> httpx2.Response:
        body = json.dumps(example.completion(text, **message)).encode()  # type: ignore[arg-type]
        headers = {"Content-Encoding": "gzip"}
        upstream.script = lambda call: Reply([squeezed(body)], type="application/json", headers=headers)
        return ask(url)

    safe = answered(LINES[0])
    assert safe.json() == example.completion(LINES[0])
    assert "content-encoding" not in safe.headers
    assert dict(upstream.calls[-1].headers)["accept-encoding"] == "identity"
    harmful = answered(f"{LINES[0]} {FORBIDDEN}").json()
    assert harmful["choices"][0]["finish_reason"] == "content_filter"
    assert harmful["guardian"]["target"] == "output" and FORBIDDEN not in json.dumps(
        harmful, ensure_ascii=False
    )
    tools = answered(None, tool_calls=[{"id": "1", "type": "function", "function": {"name": "f"}}])
    assert tools.headers["x-guardian-unjudged"] == "choices[0].message.tool_calls"


def test_what_a_stream_holds_besides_text_is_passed_on_and_listed(url: str, upstream: UpstreamServer) -> None:
    call = example.event({"tool_calls": [{"index": 0, "id": "1"}]})
    other = example.event({"content": "another"}, index=1)
    upstream.script = lambda _: Reply([sse(LINES[0]), call, other, DONE])
    body = ask(url, stream=True).content
    assert body.startswith(sse(LINES[0]) + call + other) and body.endswith(DONE)
    assert events(body)[-2]["guardian"] == {"unjudged": ["choices[0].delta.tool_calls", "choices[1]"]}


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_an_answer_that_cannot_be_read_is_not_shown(url: str, upstream: UpstreamServer, kind: str) -> None:
    upstream.script = lambda call: Reply([b"data: {not json}\n\n", DONE], type=kind)
    response = ask(url, stream=True)
    assert "not json" not in response.text and "[DONE]" not in response.text
    assert '"code": "upstream_down"' in response.text or response.status_code == 502


def test_what_was_held_when_the_upstream_broke_off_is_not_shown(url: str, upstream: UpstreamServer) -> None:
    upstream.script = lambda call: Reply([sse(LINES[0]), CUT])
    body = ask(url, stream=True).content
    assert shown(body) == "" and events(body)[-1]["error"]["code"] == "upstream_down"


def test_an_error_of_the_upstream_is_passed_on(url: str, upstream: UpstreamServer) -> None:
    upstream.script = lambda call: Reply([b'{"error": {}}'], 500, "application/json")
    response = ask(url)
    assert (response.status_code, response.content) == (500, b'{"error": {}}')
