"""The proxy, with the official client, a real gateway and a real upstream, all on loopback."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI

from slm_guardian.serve.app import create_app
from slm_guardian.serve.guards import Guards
from slm_guardian.serve.settings import Settings
from test_dialogue import HARMFUL, SAFE, TALK
from upstream_server import CUT, DONE, TIMEOUT, Reply, UpstreamServer, example, running, squeezed, sse

PATH = "/v1/chat/completions"
Gateway = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="module")
def server() -> Iterator[UpstreamServer]:
    with UpstreamServer() as server:
        yield server


@pytest.fixture
def upstream(server: UpstreamServer) -> Iterator[UpstreamServer]:
    server.reset()
    yield server
    server.reset()


@pytest.fixture(scope="module")
def guards() -> Guards:
    return Guards(Settings.load(threads=1))


@pytest.fixture(scope="module")
def gateway(server: UpstreamServer, guards: Guards) -> Gateway:
    """Start a gateway before the upstream, with settings of its own; its policies too if `policies` is one."""

    @contextmanager
    def start(**overrides: Any) -> Iterator[str]:
        overrides["upstream"] = {"url": server.url} | overrides.get("upstream", {})
        overrides.setdefault("limits", {"deadline_s": TIMEOUT})  # this machine may be busy
        settings = Settings.load(threads=1, **overrides)
        app = create_app(settings, Guards(settings) if "policies" in overrides else guards)
        with running(app, lifespan="on") as url:
            yield url

    return start


@pytest.fixture(scope="module")
def url(gateway: Gateway) -> Iterator[str]:
    """A gateway with default settings."""
    with gateway() as url:
        yield url


def asked(text: Any, **more: Any) -> dict[str, Any]:
    return {"model": "any", "messages": [{"role": "user", "content": text}], **more}


def post(url: str, body: bytes | dict[str, Any], **options: Any) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(url + PATH, content=content, timeout=TIMEOUT, **options)


def error(response: httpx2.Response) -> tuple[int, str]:
    """Status and code; the shape is OpenAI's and no text of a query is in it."""
    fault = response.json()["error"]
    assert fault.keys() == {"message", "type", "param", "code"}
    assert not any(text in response.text for text in (*HARMFUL.values(), *SAFE.values()))
    return response.status_code, fault["code"]


def events(body: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


# The official client, which differs from one that talks to the upstream in its base URL alone.


def client(url: str) -> OpenAI:
    return OpenAI(base_url=url + "/v1", api_key="anything", max_retries=0)


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_a_safe_query_is_answered_by_the_upstream(url: str, upstream: UpstreamServer, lang: str) -> None:
    with client(url) as openai:
        raw = openai.chat.completions.with_raw_response.create(**asked(SAFE[lang]))
    assert raw.parse().choices[0].message.content == example.ANSWER
    assert raw.headers["x-guardian-verdict"] == "safe"
    assert 0 <= float(raw.headers["x-guardian-harm"]) < 0.6
    assert raw.headers["x-guardian-policy"].startswith("default@")


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_a_harmful_query_is_answered_here(url: str, upstream: UpstreamServer, lang: str) -> None:
    with client(url) as openai:
        raw = openai.chat.completions.with_raw_response.create(**asked(HARMFUL[lang]))
    completion = raw.parse()
    choice = completion.choices[0]
    assert (choice.finish_reason, choice.message.role) == ("content_filter", "assistant")
    assert choice.message.content and completion.usage and completion.usage.total_tokens == 0
    said = (completion.model_extra or {})["guardian"]
    assert (said["label"], said["category"], said["action"]) == ("unsafe", "crime_advice", "answer")
    assert said["harm"] >= said["threshold"] and said["policy"] == lang
    assert raw.headers["x-guardian-verdict"] == "unsafe"
    assert raw.headers["x-guardian-category"] == "crime_advice"
    assert upstream.calls == []


def test_streams_of_the_client(url: str, upstream: UpstreamServer) -> None:
    with client(url) as openai:
        safe = list(openai.chat.completions.create(**asked(SAFE["ko"], stream=True)))
        upstream.calls.clear()
        usage = {"stream_options": {"include_usage": True}}
        harmful = list(openai.chat.completions.create(**asked(HARMFUL["ko"], stream=True, **usage)))
        whole = openai.chat.completions.create(**asked(HARMFUL["ko"])).choices[0].message.content
    assert "".join(c.choices[0].delta.content or "" for c in safe) == example.ANSWER
    *parts, last, used = harmful
    assert "".join(c.choices[0].delta.content or "" for c in parts) == whole
    assert parts[0].choices[0].delta.role == "assistant"
    assert last.choices[0].finish_reason == "content_filter"
    assert (last.model_extra or {})["guardian"]["category"] == "crime_advice"
    assert used.choices == [] and used.usage and used.usage.total_tokens == 0
    assert upstream.calls == []


def test_the_asynchronous_client(url: str, upstream: UpstreamServer) -> None:
    async def talk() -> list[str]:
        async with AsyncOpenAI(base_url=url + "/v1", api_key="anything", max_retries=0) as openai:
            create = openai.chat.completions.create
            whole = [await create(**asked(text)) for text in (SAFE["en"], HARMFUL["en"])]
            stream = await create(**asked(SAFE["en"], stream=True))
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return [*(w.choices[0].finish_reason for w in whole), "".join(parts)]

    assert asyncio.run(talk()) == ["stop", "content_filter", example.ANSWER]


def test_a_harmful_stream_ends_as_openai_ends_it(url: str) -> None:
    response = post(url, asked(HARMFUL["en"], stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + [
        "content_filter"
    ]


# What is passed on.

ODD = (
    '{ "vendor": {"x":1.0e+2, "y": 12345678901234567890},\n\t"messages" : [{"role":"user","content":'
    '"\\ud654\\ubd84\\uc5d0 생긴 \\u0020진딧물 죽이는 법", "name": "caf\\u00e9"}],'
    '"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"n":2,  "temperature":0.10 }\r\n'
).encode()


def test_the_body_goes_on_byte_for_byte(url: str, upstream: UpstreamServer) -> None:
    headers = {"Authorization": "Bearer mine", "X-Vendor": "1", "Connection": "X-Hop", "X-Hop": "1"}
    response = post(url, ODD, params={"api-version": "2"}, headers=headers | {"X-Guardian-Policy": "default"})
    assert response.status_code == 200
    (call,) = upstream.calls
    assert call.body == ODD
    assert (call.path, call.query) == (PATH, b"api-version=2")
    assert call.header("authorization") == "Bearer mine" and call.header("x-vendor") == "1"
    assert call.header("host") == upstream.url.removeprefix("http://").removesuffix("/v1")
    assert call.header("x-hop") is None and call.header("x-guardian-policy") is None


@pytest.mark.parametrize("status", [200, 201, 400, 429, 500])
def test_the_answer_comes_back_byte_for_byte(url: str, upstream: UpstreamServer, status: int) -> None:
    body = b'{"odd" :\n "\\u00e9", "error": {}}'
    theirs = {
        "X-Vendor": "2",
        "Retry-After": "7",
        "Access-Control-Allow-Origin": "*",
        "X-Guardian-Verdict": "x",
    }
    upstream.script = lambda call: Reply([body[:9], body[9:]], status, "application/json", theirs)
    response = post(url, asked(SAFE["ko"]))
    assert (response.status_code, response.content) == (status, body)
    assert (response.headers["x-vendor"], response.headers["retry-after"]) == ("2", "7")
    assert response.headers["x-guardian-verdict"] == "safe"
    assert "access-control-allow-origin" not in response.headers
    assert len(response.headers.get_list("date")) == len(response.headers.get_list("server")) == 1


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_a_compressed_answer_stays_compressed(url: str, upstream: UpstreamServer, kind: str) -> None:
    body = squeezed(sse("hello"), DONE)
    upstream.script = lambda call: Reply(
        [body[:20], body[20:]], type=kind, headers={"Content-Encoding": "gzip"}
    )
    with httpx2.stream("POST", url + PATH, json=asked(SAFE["ko"])) as response:
        assert b"".join(response.iter_raw()) == body
        assert response.headers["content-encoding"] == "gzip"


def test_cookies_of_one_client_are_not_sent_for_another(url: str, upstream: UpstreamServer) -> None:
    upstream.script = lambda call: Reply(
        [b"{}"], type="application/json", headers={"Set-Cookie": "session=a"}
    )
    for _ in range(2):
        assert post(url, asked(SAFE["ko"])).headers["set-cookie"] == "session=a"
    assert [call.header("cookie") for call in upstream.calls] == [None, None]


def test_a_stream_is_passed_on_as_it_comes_in(url: str, upstream: UpstreamServer) -> None:
    gate = upstream.gate()
    upstream.script = lambda call: Reply([sse("first"), gate, sse("second"), DONE])
    with httpx2.stream("POST", url + PATH, json=asked(SAFE["ko"], stream=True), timeout=TIMEOUT) as response:
        chunks = response.iter_raw()
        assert next(chunks) == sse("first")  # the upstream still waits at the gate
        gate.open()
        assert b"".join(chunks) == sse("second") + DONE


@pytest.mark.parametrize("steps", [[], [sse("first")]], ids=["before the first byte", "in the stream"])
def test_when_the_client_hangs_up_so_does_the_gateway(
    url: str, upstream: UpstreamServer, steps: list[bytes]
) -> None:
    upstream.script = lambda call: Reply([*steps, upstream.gate(), DONE])
    body = json.dumps(asked(SAFE["ko"], stream=True)).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), TIMEOUT) as connection:
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (PATH.encode(), len(body))
        )
        connection.sendall(body)
        upstream.wait_for(calls=1)
        if steps:
            assert connection.recv(1)
    assert upstream.calls[0].gone.wait(TIMEOUT)
    upstream.script = lambda call: None
    assert post(url, asked(SAFE["ko"])).status_code == 200


# What goes wrong.


def test_an_upstream_that_is_down_is_a_502(gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with gateway(upstream={"url": f"http://127.0.0.1:{port}/v1"}) as url:
        assert error(post(url, asked(SAFE["ko"]))) == (502, "upstream_down")
        assert post(url, asked(HARMFUL["ko"])).status_code == 200  # answered all the same


@pytest.mark.parametrize("steps", [[CUT], [b'{"half', CUT]])
def test_a_connection_that_breaks_before_the_answer_is_complete_is_a_502(
    url: str, upstream: UpstreamServer, steps: list[Any]
) -> None:
    upstream.script = lambda call: Reply(steps, type="application/json")
    assert error(post(url, asked(SAFE["ko"]))) == (502, "upstream_down")


@pytest.mark.parametrize("early", [False, True])
def test_a_late_first_byte_is_a_504(gateway: Gateway, upstream: UpstreamServer, early: bool) -> None:
    upstream.script = lambda call: Reply([upstream.gate(), sse("late")], early=early)
    with gateway(upstream={"first_byte_s": 0.2}) as url:
        assert error(post(url, asked(SAFE["ko"], stream=True))) == (504, "upstream_timeout")
    assert upstream.calls[0].gone.wait(TIMEOUT)


@pytest.mark.parametrize(("cut", "code"), [(True, "upstream_down"), (False, "upstream_timeout")])
def test_a_stream_that_breaks_off_ends_with_an_error(
    gateway: Gateway, upstream: UpstreamServer, cut: bool, code: str
) -> None:
    upstream.script = lambda call: Reply(
        [sse("half an"), CUT if cut else upstream.gate(), sse("answer"), DONE]
    )
    with gateway(upstream={"idle_s": 0.2}) as url:
        body = post(url, asked(SAFE["ko"], stream=True)).text
        *chunks, last = events(body)
        assert [c["choices"][0]["delta"]["content"] for c in chunks] == ["half an"]
        assert last["error"]["code"] == code
        assert f'guardian_upstream_errors_total{{kind="{"cut" if cut else "timeout"}"}} 1' in _metrics(url)


def test_a_compressed_stream_that_breaks_off_has_no_end(url: str, upstream: UpstreamServer) -> None:
    body = squeezed(sse("half an answer"))
    upstream.script = lambda call: Reply([body[:20], CUT], headers={"Content-Encoding": "gzip"})
    with (
        pytest.raises(httpx2.RemoteProtocolError),
        httpx2.stream("POST", url + PATH, json=asked(SAFE["ko"])) as response,
    ):
        assert b"".join(response.iter_raw()) == body[:20]


def test_more_requests_than_connections_are_turned_away(gateway: Gateway, upstream: UpstreamServer) -> None:
    gate = upstream.gate()
    upstream.script = lambda call: Reply([sse("first"), gate, DONE])
    limits = {"max_connections": 1, "connect_s": 0.1}
    with (
        gateway(upstream=limits) as url,
        httpx2.stream("POST", url + PATH, json=asked(SAFE["ko"], stream=True), timeout=TIMEOUT) as first,
    ):
        chunks = first.iter_raw()
        next(chunks)
        second = post(url, asked(SAFE["ko"]))
        assert error(second) == (429, "overloaded") and second.headers["retry-after"] == "1"
        gate.open()
        assert b"".join(chunks) == DONE


def test_without_an_upstream_there_is_no_chat(guards: Guards) -> None:
    with running(create_app(Settings.load(), guards), lifespan="on") as url:
        assert error(post(url, asked(SAFE["ko"]))) == (503, "not_configured")


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_what_is_not_judged_in_time_follows_the_fail_mode(
    gateway: Gateway, upstream: UpstreamServer, fail: str
) -> None:
    with gateway(limits={"deadline_s": 1e-6}, fail={"timeout": fail}) as url:
        response = post(url, asked(HARMFUL["ko"]))
    if fail == "closed":
        assert error(response) == (503, "judge_timeout") and upstream.calls == []
    else:
        assert (response.status_code, len(upstream.calls)) == (200, 1)
        assert response.headers["x-guardian-verdict"] == "unjudged"


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_what_cannot_be_read_follows_the_fail_mode(
    gateway: Gateway, upstream: UpstreamServer, fail: str
) -> None:
    with gateway(fail={"unreadable": fail}) as url:
        response = post(url, asked("\u200b\u200b"))
    assert response.headers["x-guardian-verdict"] == "unjudged"
    assert (response.json()["choices"][0]["finish_reason"], len(upstream.calls)) == (
        ("content_filter", 0) if fail == "closed" else ("stop", 1)
    )


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize("text", [SAFE["ko"], ""])
def test_parts_that_are_no_text_follow_the_fail_mode(
    gateway: Gateway, upstream: UpstreamServer, text: str
) -> None:
    body = asked([*([{"type": "text", "text": text}] if text else []), IMAGE])
    place = f"messages[0].content[{int(bool(text))}]"
    with gateway() as url:
        closed = post(url, body)
        assert error(closed) == (400, "bad_request") and closed.json()["error"]["param"] == place
    with gateway(fail={"unjudged": "open"}) as url:
        passed = post(url, body)
        stopped = post(url, asked([{"type": "text", "text": HARMFUL["ko"]}, IMAGE]))
    assert passed.headers["x-guardian-unjudged"] == place
    assert passed.headers["x-guardian-verdict"] == ("safe" if text else "unjudged")
    assert json.loads(upstream.calls[0].body) == body and len(upstream.calls) == 1
    assert stopped.json()["guardian"]["unjudged"] == ["messages[0].content[1]"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"not json",
        b"\xff\xfe{\x00}\x00",
        json.dumps(asked("hello")).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(asked("hello")).encode(),
        b'{"messages": [{"role": "user", "content": "hello"}], "messages": []}',
        b'{"messages": [{"role": "user", "content": "hello", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "hello"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "hello"}], "n": ' + b"1" * 5000 + b"}",
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": [{"role": "USER", "content": "hello"}]}',
        b'{"model": "any"}',
    ],
)
def test_a_body_with_more_than_one_reading_is_refused(
    url: str, upstream: UpstreamServer, body: bytes
) -> None:
    assert error(post(url, body)) == (400, "bad_request")
    assert upstream.calls == []


def test_half_a_character_is_refused(url: str, upstream: UpstreamServer) -> None:
    body = b'{"messages": [{"role": "user", "content": "how do I grow tomatoes \\ud800"}]}'
    assert error(post(url, body)) == (400, "bad_request")
    assert upstream.calls == []


# Dialogues, policies and keys.


def test_a_follow_up_of_a_harmful_turn_is_stopped_and_a_new_topic_is_not(
    url: str, upstream: UpstreamServer
) -> None:
    def said(last: str) -> httpx2.Response:
        turns = [("user", HARMFUL["ko"]), ("assistant", "안 돼요."), ("user", last)]
        return post(url, {"messages": [{"role": role, "content": text} for role, text in turns]})

    assert said("더 자세히 알려줘").headers["x-guardian-verdict"] == "unsafe"
    assert upstream.calls == []
    assert said(TALK["ko"]).headers["x-guardian-verdict"] == "safe"
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("action", ["flag", "block", "allow"])
def test_actions_of_a_policy(gateway: Gateway, upstream: UpstreamServer, tmp_path: Path, action: str) -> None:
    fallback = "이건 답하지 않아요."
    category = {"id": "crime_advice", "action": action, "fallback": [fallback]}
    policy = {"id": "mine", "version": "1", "language": "ko", "extends": "ko", "categories": [category]}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(policy, allow_unicode=True), "utf-8")
    with gateway(policies={"default": {"files": [str(file)]}}) as url:
        response = post(url, asked(HARMFUL["ko"]))
    content = response.json()["choices"][0]["message"]["content"]
    verdict = response.headers["x-guardian-verdict"]
    expected = {"flag": (example.ANSWER, "unsafe", 1), "allow": (example.ANSWER, "safe", 1)}
    assert (content, verdict, len(upstream.calls)) == expected.get(action, (fallback, "unsafe", 0))


def test_the_upstream_gets_its_own_key_and_never_the_gateway_s(
    gateway: Gateway, upstream: UpstreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slm_guardian.serve.access import new_key

    made = new_key()
    keys = [{"name": "app", "sha256": made["sha256"]}]
    sent = {"Authorization": f"Bearer {made['key']}"}
    monkeypatch.setenv("UPSTREAM_KEY", "theirs")
    for own in ({}, {"key_env": "UPSTREAM_KEY"}):
        with gateway(keys=keys, upstream=own) as url:
            assert post(url, asked(SAFE["ko"])).status_code == 401
            assert post(url, asked(SAFE["ko"]), headers=sent).status_code == 200
    assert [call.header("authorization") for call in upstream.calls] == [None, "Bearer theirs"]
    assert made["key"].encode() not in b"".join(call.body for call in upstream.calls)


def test_the_models_of_the_upstream_are_listed(url: str) -> None:
    with client(url) as openai:
        assert example.MODEL in [model.id for model in openai.models.list()]


def _metrics(url: str) -> str:
    return httpx2.get(url + "/metrics").text
