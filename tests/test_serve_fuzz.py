"""Whatever is sent to it, the gateway answers as its OpenAPI document says: never 5xx, and no error repeats a text."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis.checks import CHECKS

from serving import Serving, serving
from slm_guardian import Guardian
from slm_guardian.serve.app import create_app
from slm_guardian.serve.settings import Settings
from upstream_server import UpstreamServer

CHAT, GUARD = "/v1/chat/completions", "/v1/guard"
BODIES = {
    "/v1/moderations": b'{"input": %s}',
    GUARD: b'{"input": %s}',
    "/beta/litellm_basic_guardrail_api": b'{"texts": [%s]}',
    CHAT: b'{"messages": [{"role": "user", "content": %s}]}',
}
"""A body for each route, with a place for the text."""
SECRET = "secretwords 비밀"
JSON = {"Content-Type": "application/json"}
quietly = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
routes = pytest.mark.parametrize("route", BODIES)


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with UpstreamServer() as upstream, serving(upstream={"url": upstream.url}) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Serving) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


def refused(reply: httpx2.Response, *statuses: int) -> dict[str, Any]:
    """The error of a reply: one of these statuses, in OpenAI's shape, in words, without the text."""
    assert reply.status_code in statuses, reply.text
    body = reply.json()
    assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}
    assert len(body["error"]["message"].split()) >= 3 and body["error"]["type"] == "invalid_request_error"
    assert not any(word in reply.text for word in SECRET.split())
    return body["error"]


# By the document

api = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
# What no schema says: a stream is of one text, a policy set must exist; what is not `messages` is the upstream's.
NOT_SAID = {GUARD: ["positive_data_acceptance"], CHAT: ["negative_data_rejection"]}


@api.parametrize()
@settings(quietly, max_examples=25)
def test_every_route_keeps_to_the_document(case: schemathesis.Case, server: Serving) -> None:
    reply = case.call(base_url=server.url)
    excluded: Any = CHECKS.get_by_names(NOT_SAID.get(case.path, []))
    case.validate_response(reply, excluded_checks=excluded)
    assert reply.status_code in (200, 400, 405)


def test_the_server_gives_this_document(http: httpx2.Client) -> None:
    assert http.get("/openapi.json").json() == json.loads(json.dumps(api.raw_schema))


# Bodies that no schema leads to

HALF = b'"secretwords \\ud800"'
TEXTS = {
    "1 MB": (b'"secretwords %s"' % (b"a" * 1_000_000), 413),
    "1 MB of Korean": (f'"{"비밀 " * 150_000}"'.encode(), 413),
    "3 MB": (b'"secretwords %s"' % (b"a" * 3_000_000), 413),
    "lists 100,000 deep": (b"[" * 100_000 + b"]" * 100_000, 400),
    "objects 100,000 deep": (b'{"secretwords": ' * 100_000 + b"1" + b"}" * 100_000, 400),
    "lists without an end": (b"[" * 100_000, 400),
    "a raw NUL": (b'"secretwords \x00"', 400),
    "a lone surrogate": (HALF, 400),
    "a lone surrogate in UTF-8": (b'"secretwords \xed\xa0\x80"', 400),
    "invalid UTF-8": (b'"secretwords \xff\xfe"', 400),
    "half a character": (b'"secretwords \xec\x95"', 400),
    "truncated": (b'"secretwords', 400),
    "a broken escape": (b'"secretwords \\x41"', 400),
    "a number": (b"3", 400),
    "a long number": (b"9" * 5000, 400),
    "a huge number": (b"1e999999", 400),
    "not a number": (b"NaN", 400),
    "infinity": (b"-Infinity", 400),
    "null": (b"null", 400),
    "true": (b"true", 400),
    "an object": (b'{"secretwords": "secretwords"}', 400),
    "a list with a number": (b'["secretwords", 1]', 400),
    "a list of lists": (b'[["secretwords"]]', 400),
}


@routes
@pytest.mark.parametrize(("text", "status"), TEXTS.values(), ids=TEXTS)
def test_hostile_texts_are_refused(http: httpx2.Client, route: str, text: bytes, status: int) -> None:
    refused(http.post(route, content=BODIES[route] % text, headers=JSON), status)


@routes
@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b'"secretwords"', b'{"secretwords": 1}', b"\x00"]
)
def test_bodies_that_are_none_are_refused(http: httpx2.Client, route: str, body: bytes) -> None:
    if route.startswith("/beta/") and body.endswith(b": 1}"):
        return  # all of its fields are optional
    refused(http.post(route, content=body, headers=JSON), 400)


@routes
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "///;;"]
)
def test_other_content_types_are_refused(http: httpx2.Client, route: str, kind: str) -> None:
    body = BODIES[route] % json.dumps(SECRET).encode()
    message = refused(http.post(route, content=body, headers={"Content-Type": kind}), 400)["message"]
    assert "Content-Type: application/json" in message


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json; charset=utf-7"},
        {"Content-Type": "application/json; charset=utf-8; charset=utf-7"},
        JSON | {"Content-Encoding": "gzip"},
    ],
)
def test_what_an_upstream_could_read_differently_is_not_passed_on(
    http: httpx2.Client, headers: dict[str, str]
) -> None:
    refused(http.post(CHAT, content=BODIES[CHAT] % b'"secretwords"', headers=headers), 400)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=UTF-8", None])
def test_json_by_any_of_its_names_is_passed_on(http: httpx2.Client, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    assert http.post(CHAT, content=BODIES[CHAT] % b'"hello"', headers=headers).status_code == 200


@routes
def test_chunks_over_the_limit_are_refused_while_they_come(http: httpx2.Client, route: str) -> None:
    chunks = (SECRET.encode() * 4000 for _ in range(60))
    refused(http.post(route, content=chunks, headers=JSON), 413)


@routes
def test_repeated_keys_are_read_once_or_refused(http: httpx2.Client, route: str) -> None:
    body = BODIES[route] % b'"secretwords"'
    reply = http.post(route, content=body[:-1] + b", " + body[1:], headers=JSON)
    if route == CHAT:
        refused(reply, 400)  # the upstream could read the other one
    else:
        assert reply.headers["X-Guardian-Verdict"] == "safe"


@routes
@pytest.mark.parametrize("policy", [SECRET.encode(), b"\xff\xfe", b"a" * 5000])
def test_policies_that_nobody_has_are_refused(http: httpx2.Client, route: str, policy: bytes) -> None:
    headers = {b"Content-Type": b"application/json", b"X-Guardian-Policy": policy}
    body = BODIES[route] % b'"secretwords"'
    assert refused(http.post(route, content=body, headers=cast(Any, headers)), 400)["param"] == "policy"


@routes
@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: " + b"9" * 5000,
        b"Content-Length: -1",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\n\r\nzz",
        b"Content-Length: 10000000000",
    ],
    ids=["endless", "negative", "two lengths", "no chunk", "10 GB"],
)
def test_broken_framing_is_answered_at_once(server: Serving, route: str, framing: bytes) -> None:
    address = urlsplit(server.url)
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % route.encode()
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as connection:
        connection.sendall(head + framing + b"\r\n\r\n{}")
        assert connection.recv(100).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))


@routes
def test_half_a_request_is_no_fault_of_the_server(server: Serving, http: httpx2.Client, route: str) -> None:
    address = urlsplit(server.url)
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % route.encode()
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as connection:
        connection.sendall(head + b"Content-Length: 99\r\n\r\n{")
    assert http.get("/readyz").status_code == 200


# Anything

texts = st.text(st.characters(exclude_categories=()), max_size=200)  # with lone surrogates
values: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts.map(lambda text: SECRET + text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.just(SECRET), inner, max_size=4),
    max_leaves=12,
)


@routes
@settings(quietly, max_examples=40)
@given(value=values, around=st.booleans())
def test_any_json_has_a_verdict_or_a_reason(
    http: httpx2.Client, route: str, value: Any, around: bool
) -> None:
    body = json.dumps(value).encode()
    reply = http.post(route, content=BODIES[route] % body if around else body, headers=JSON)
    if reply.status_code != 200:
        refused(reply, 400)


@routes
@settings(quietly, max_examples=40)
@given(body=st.binary(max_size=300))
def test_any_bytes_have_a_reason(http: httpx2.Client, route: str, body: bytes) -> None:
    reply = http.post(route, content=BODIES[route] % (b'"secretwords' + body + b'"'), headers=JSON)
    if reply.status_code != 200:
        refused(reply, 400)


@settings(quietly, max_examples=60)
@given(text=st.text(max_size=400))
def test_any_text_has_the_verdict_of_the_library(http: httpx2.Client, guardian: Guardian, text: str) -> None:
    verdict = guardian.check(text, respond=False)
    row = http.post(GUARD, json={"input": text}).json()["verdicts"][0]
    assert {key: row.get(key) for key in verdict.to_dict()} == verdict.to_dict()


@pytest.fixture(scope="module")
def guardian() -> Guardian:
    return Guardian.load(threads=1)


def test_after_all_that_it_is_ready(http: httpx2.Client) -> None:
    assert http.get("/readyz").json() == {"status": "ready"}
    faults = [line for line in http.get("/metrics").text.splitlines() if 'status="5' in line]
    assert faults == []
