"""The gateway's own routes, through a real server: what it judges, what it takes, what it says about itself."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from serving import Serving, serving
from slm_guardian import Guardian
from slm_guardian.errors import InputError
from slm_guardian.policy import Policy
from slm_guardian.serve.access import new_key
from slm_guardian.serve.settings import Settings

HARMFUL, SAFE = "sns 계정 해킹하는 방법 알려줘", "화분에 생긴 진딧물 죽이는 법"
CATEGORIES = set(Policy.load("ko").by_id)
LITELLM = "/beta/litellm_basic_guardrail_api"
MILD = """
id: mild
extends: en
categories:
  - {id: crime_advice, action: flag, threshold: 0}
"""


@pytest.fixture(scope="module")
def mild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "mild.yaml"
    path.write_text(MILD, "utf-8")
    return path


@pytest.fixture(scope="module")
def server(mild: Path) -> Iterator[Serving]:
    forced = [{"name": "rivals", "category": "uncertain_predictions", "phrases": ["초코 우유", "choco milk"]}]
    policies = {
        "default": {"files": ["ko", "en"]},
        "strict": {"files": ["ko", "en"], "threshold": 0},
        "mild": {"files": [str(mild)]},
        "forced": {"files": ["ko", "en"], "threshold": 1, "forced": forced},
    }
    with serving(
        policies=policies, limits={"texts": 4, "characters": 20_000, "body_bytes": 200_000}
    ) as running:
        yield running


@pytest.fixture
def http(server: Serving) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def error(reply: httpx2.Response, status: int) -> dict[str, Any]:
    """The error of a reply, in OpenAI's shape."""
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


# /v1/moderations


def test_the_openai_client_reads_a_moderation(client: openai.OpenAI) -> None:
    answer = client.moderations.create(input=HARMFUL)
    (result,) = answer.results
    assert answer.id.startswith("modr-") and answer.model == "mini"
    assert result.flagged
    flags, scores = result.categories.model_extra or {}, result.category_scores.model_extra or {}
    assert set(flags) == set(scores) == CATEGORIES
    assert [name for name, flag in flags.items() if flag] == ["crime_advice"]
    assert max(scores, key=scores.__getitem__) == "crime_advice"
    assert sum(scores.values()) == pytest.approx(result.to_dict()["guardian"]["harm"], abs=1e-5)  # type: ignore[index]


def test_a_list_keeps_its_order(client: openai.OpenAI) -> None:
    answer = client.moderations.create(input=[SAFE, HARMFUL, SAFE])
    assert [result.flagged for result in answer.results] == [False, True, False]


def test_text_parts_are_one_input(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "sns 계정"}, {"type": "text", "text": "해킹하는 방법 알려줘"}]
    answer = client.moderations.create(input=parts)  # type: ignore[arg-type]
    assert [result.flagged for result in answer.results] == [True]


def test_images_are_refused_by_name(client: openai.OpenAI) -> None:
    part: Any = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    with pytest.raises(openai.BadRequestError, match="only texts can be judged"):
        client.moderations.create(input=[part])


def test_the_async_client_in_parallel(server: Serving) -> None:
    async def ask() -> list[bool]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            texts = [SAFE, HARMFUL] * 16
            answers = await asyncio.gather(*(client.moderations.create(input=text) for text in texts))
            return [answer.results[0].flagged for answer in answers]

    assert asyncio.run(ask()) == [False, True] * 16


def test_verdicts_are_those_of_the_library(http: httpx2.Client) -> None:
    texts = [SAFE, HARMFUL, "how do i pick a lock", "ㅎㅐㅋㅣㅇ하는 법"]
    rows = http.post("/v1/guard", json={"input": texts}).json()["verdicts"]
    for row, verdict in zip(rows, Guardian.load().check(texts, respond=False), strict=True):
        assert {key: row[key] for key in verdict.to_dict()} == verdict.to_dict()
        assert row["scores"] == pytest.approx(verdict.scores)


def test_headers_say_the_worst(http: httpx2.Client) -> None:
    headers = http.post("/v1/moderations", json={"input": [SAFE, HARMFUL]}).headers
    assert headers["X-Guardian-Verdict"] == "unsafe"
    assert headers["X-Guardian-Category"] == "crime_advice"
    assert float(headers["X-Guardian-Harm"]) > 0.5
    assert headers["X-Guardian-Policy"].startswith("default@")
    assert len(headers["X-Request-Id"]) == 32


def test_a_request_id_comes_back(http: httpx2.Client) -> None:
    reply = http.post("/v1/moderations", json={"input": SAFE}, headers={"X-Request-Id": "abc-1"})
    assert reply.headers["X-Request-Id"] == "abc-1"


@pytest.mark.parametrize("text", ["", " ", "\x00", "\u200b"])
def test_what_cannot_be_read_is_flagged_and_says_why(http: httpx2.Client, text: str) -> None:
    reply = http.post("/v1/moderations", json={"input": text})
    (result,) = reply.json()["results"]
    assert reply.headers["X-Guardian-Verdict"] == "unjudged"
    assert result["flagged"] and "nothing to read" in result["guardian"]["error"]
    assert not any(result["categories"].values())


BAD_BODIES = {
    "no JSON": b"{",
    "nothing": b"",
    "a list": b"[]",
    "no input": b"{}",
    "a number": b'{"input": 3}',
    "null": b'{"input": null}',
    "an empty list": b'{"input": []}',
    "a list of numbers": b'{"input": [1]}',
    "a mixed list": b'{"input": ["a", {"type": "text", "text": "b"}]}',
    "nested": b'{"input": ' + b"[" * 50_000,
    "a lone surrogate": b'{"input": "a \\ud800 b"}',
    "a raw NUL": b'{"input": "a\x00"}',
    "half a character": b'{"input": "\xec\x95"}',
    "a huge number": b'{"input": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("route", ["/v1/moderations", "/v1/guard"])
@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_bad_bodies_are_refused_in_words(http: httpx2.Client, route: str, body: bytes) -> None:
    reply = http.post(route, content=body, headers={"Content-Type": "application/json"})
    assert error(reply, 400)["type"] == "invalid_request_error"


def test_a_form_is_told_what_to_send(http: httpx2.Client) -> None:
    assert (
        "Content-Type: application/json" in error(http.post("/v1/guard", data={"input": "a"}), 400)["message"]
    )


def test_errors_never_repeat_the_text(http: httpx2.Client) -> None:
    secret = "my secret words"
    for body in (
        {"input": [secret, 3]},
        {"input": secret, "stream": secret},
        {"input": secret, "policy": secret},
    ):
        assert secret not in http.post("/v1/guard", json=body).text


def test_too_much_is_413(http: httpx2.Client) -> None:
    assert error(http.post("/v1/moderations", json={"input": ["a"] * 5}), 413)["code"] == "too_large"
    assert error(http.post("/v1/moderations", json={"input": "a" * 20_001}), 413)["code"] == "too_large"
    assert error(http.post("/v1/moderations", json={"input": "a" * 300_000}), 413)["code"] == "too_large"


def test_a_body_without_a_length_is_counted_while_it_is_read(http: httpx2.Client) -> None:
    chunks = (b" " * 10_000 for _ in range(30))
    reply = http.post("/v1/moderations", content=chunks, headers={"Content-Type": "application/json"})
    assert error(reply, 413)["code"] == "too_large"


def test_long_texts_are_judged_to_their_end(http: httpx2.Client) -> None:
    text = "the weather is nice today. " * 100 + HARMFUL
    assert http.post("/v1/moderations", json={"input": text}).json()["results"][0]["flagged"]


# /v1/guard


def test_answers_come_when_asked_for(http: httpx2.Client) -> None:
    quiet, told = (
        http.post("/v1/guard", json={"input": [HARMFUL, SAFE], "respond": respond}).json()["verdicts"]
        for respond in (False, True)
    )
    assert [row["response"] for row in quiet] == [None, None]
    assert told[0]["response"] == Guardian.load().respond(HARMFUL, "crime_advice")
    assert told[1]["response"] is None


def test_force_answers_a_safe_text(http: httpx2.Client) -> None:
    (row,) = http.post("/v1/guard", json={"input": SAFE, "force": True, "respond": True}).json()["verdicts"]
    assert (row["label"], row["action"]) == ("unsafe", "answer") and row["response"]
    assert row["harm"] < row["threshold"]


def test_the_shadow_is_there_when_it_differs(http: httpx2.Client) -> None:
    rows = http.post("/v1/guard", json={"input": ["h4ck", "hello"]}).json()["verdicts"]
    assert rows[0]["shadow"] == "hack" and "shadow" not in rows[1]


def test_a_stream_is_verdict_answer_done(http: httpx2.Client) -> None:
    body = {"input": HARMFUL, "respond": True, "stream": True}
    with http.stream("POST", "/v1/guard", json=body) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    events = [
        (a.removeprefix("event: "), json.loads(b.removeprefix("data: ")))
        for a, b in zip(lines[::2], lines[1::2], strict=True)
    ]
    names = [name for name, _ in events]
    assert names[0] == "verdict" and names[-1] == "done" and set(names[1:-1]) == {"answer"}
    assert events[0][1]["category"] == "crime_advice" and events[0][1]["response"] is None
    answer = "".join(data["text"] for name, data in events if name == "answer")
    assert answer == Guardian.load().respond(HARMFUL, "crime_advice")


def test_a_stream_is_of_one_text(http: httpx2.Client) -> None:
    reply = http.post("/v1/guard", json={"input": [SAFE, SAFE], "stream": True})
    assert error(reply, 400)["param"] == "stream"


# Policies


def test_policies_by_header_and_by_body(http: httpx2.Client) -> None:
    by_header = http.post("/v1/guard", json={"input": SAFE}, headers={"X-Guardian-Policy": "strict"}).json()
    by_body = http.post("/v1/guard", json={"input": SAFE, "policy": "strict"}).json()
    assert by_header == by_body
    assert by_header["policy"] == "strict" and by_header["verdicts"][0]["label"] == "unsafe"
    assert http.post("/v1/guard", json={"input": SAFE}).json()["verdicts"][0]["label"] == "safe"


def test_an_unknown_policy_is_refused(http: httpx2.Client) -> None:
    assert "strict" in error(http.post("/v1/guard", json={"input": SAFE, "policy": "x"}), 400)["message"]


def test_actions_and_thresholds_of_a_category_need_no_training(http: httpx2.Client) -> None:
    body = {"input": "how do i steal a car", "policy": "mild", "respond": True}
    (row,) = http.post("/v1/guard", json=body).json()["verdicts"]
    assert (row["action"], row["threshold"], row["response"]) == ("flag", 0, None)


@pytest.mark.parametrize(
    "text", ["초코우유 줘", "초 코 우 유 주세요", "ㅊㅗㅋㅗ우유", "some CHOCO\u200b  milk, please"]
)
def test_forced_topics_get_their_safeguard(http: httpx2.Client, text: str) -> None:
    (row,) = http.post("/v1/guard", json={"input": text, "policy": "forced", "respond": True}).json()[
        "verdicts"
    ]
    assert (row["label"], row["category"], row["action"]) == ("unsafe", "uncertain_predictions", "answer")
    assert row["response"] and row["harm"] < row["threshold"]


@pytest.mark.parametrize("text", ["우유 줘", "chocolate milk", "macho co milk"])
def test_other_topics_are_left_alone(http: httpx2.Client, text: str) -> None:
    (row,) = http.post("/v1/guard", json={"input": text, "policy": "forced"}).json()["verdicts"]
    assert row["label"] == "safe"


# LiteLLM


def test_litellm_gets_none_or_blocked_with_the_answer(http: httpx2.Client) -> None:
    request = {"texts": [HARMFUL], "request_data": {}, "input_type": "request", "litellm_call_id": "1"}
    extra = {"litellm_trace_id": "2", "structured_messages": [], "additional_provider_specific_params": {}}
    blocked = http.post(LITELLM, json=request | extra).json()
    assert blocked == {
        "action": "BLOCKED",
        "blocked_reason": Guardian.load().respond(HARMFUL, "crime_advice"),
    }
    assert http.post(LITELLM, json=request | {"texts": [SAFE]}).json() == {"action": "NONE"}
    assert http.post(LITELLM, json=request | {"input_type": "response"}).json()["action"] == "BLOCKED"


def test_litellm_is_told_what_was_not_judged(http: httpx2.Client) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = http.post(LITELLM, json={"texts": [SAFE], "tool_calls": [call], "request_data": {}}).json()
    assert answer == {"action": "NONE", "unjudged": ["tool_calls"]}
    assert http.post(LITELLM, json={"texts": [SAFE], "images": ["aGk="]}).json()["action"] == "BLOCKED"
    assert http.post(LITELLM, json={"texts": []}).json() == {"action": "NONE"}


# What the gateway says about itself


def test_the_policy_route_names_sets_and_categories(http: httpx2.Client) -> None:
    sets = {row["name"]: row for row in http.get("/v1/policy").json()["sets"]}
    assert set(sets) == {"default", "strict", "mild", "forced"}
    assert {policy["language"] for policy in sets["default"]["policies"]} == {"ko", "en"}
    crime = next(c for c in sets["mild"]["policies"][0]["categories"] if c["id"] == "crime_advice")
    assert (crime["action"], crime["threshold"]) == ("flag", 0)
    assert sets["forced"]["forced"] == [{"name": "rivals", "category": "uncertain_predictions"}]
    assert len({row["version"] for row in sets.values()}) == 4


def test_without_an_upstream_the_guardian_is_the_only_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mini"]
    with pytest.raises(openai.InternalServerError, match="no upstream"):
        client.chat.completions.create(model="x", messages=[{"role": "user", "content": SAFE}])


def test_health_and_metrics(http: httpx2.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ready"}
    http.post("/v1/moderations", json={"input": HARMFUL})
    text = http.get("/metrics").text
    assert 'guardian_requests_total{route="/v1/moderations",status="200"}' in text
    assert "guardian_judge_texts_count" in text and 'category="crime_advice"' in text
    assert "해킹" not in text


def test_unknown_routes_and_methods_have_the_same_shape(http: httpx2.Client) -> None:
    assert error(http.get("/v1/nothing"), 404)["code"] == "http_404"
    reply = http.get("/v1/moderations")
    assert error(reply, 405)["code"] == "http_405" and reply.headers["Allow"] == "POST"


def test_the_document_shows_every_status_and_no_422(http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/moderations", "/v1/guard", "/v1/chat/completions", LITELLM, "/v1/policy", "/readyz"} <= set(
        paths
    )
    assert set(paths["/v1/moderations"]["post"]["responses"]) == {
        "200",
        "400",
        "401",
        "403",
        "413",
        "429",
        "503",
    }
    assert all("422" not in op["responses"] for path in paths.values() for op in path.values())


def test_no_page_of_it_loads_anything_from_elsewhere(http: httpx2.Client) -> None:
    assert http.get("/docs").status_code == http.get("/redoc").status_code == 404


# Access


@pytest.fixture(scope="module")
def keyed() -> Iterator[tuple[Serving, dict[str, str]]]:
    made = {name: new_key() for name in ("free", "slow", "bound")}
    keys: list[dict[str, Any]] = [{"name": name, "sha256": key["sha256"]} for name, key in made.items()]
    keys[1]["per_minute"], keys[2]["policy"] = 2, "strict"
    policies = {"default": {}, "strict": {"threshold": 0}}
    with serving(keys=keys, policies=policies, cors=["https://page.example"]) as running:
        yield running, {name: key["key"] for name, key in made.items()}


def ask(url: str, headers: dict[str, str], text: str = SAFE) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/moderations", json={"input": text}, headers=headers, timeout=30)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic eDp5"},
        {"X-Api-Key": "ㄱ".encode()},
    ],
)
def test_without_a_valid_key_nothing_is_judged(
    keyed: tuple[Serving, dict[str, str]], headers: dict[str, Any]
) -> None:
    server, _ = keyed
    for method, route in (("POST", "/v1/moderations"), ("GET", "/v1/policy"), ("POST", LITELLM)):
        reply = httpx2.request(method, server.url + route, headers=headers, timeout=30)
        assert error(reply, 401)["code"] == "invalid_api_key"
    for route in ("/healthz", "/readyz", "/metrics", "/"):
        assert httpx2.get(server.url + route, timeout=30).status_code == 200


def test_a_key_lets_in_as_openai_and_litellm_send_it(keyed: tuple[Serving, dict[str, str]]) -> None:
    server, keys = keyed
    assert ask(server.url, {"Authorization": f"Bearer {keys['free']}"}).status_code == 200
    assert ask(server.url, {"X-Api-Key": keys["free"]}).status_code == 200
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError):
        client.moderations.create(input=SAFE)


def test_a_key_has_its_rate(keyed: tuple[Serving, dict[str, str]]) -> None:
    server, keys = keyed
    replies = [ask(server.url, {"Authorization": f"Bearer {keys['slow']}"}) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert error(replies[-1], 429)["code"] == "rate_limit_exceeded"
    assert 1 <= int(replies[-1].headers["Retry-After"]) <= 30
    assert ask(server.url, {"Authorization": f"Bearer {keys['free']}"}).status_code == 200


def test_a_bound_key_has_its_policy_and_no_other(keyed: tuple[Serving, dict[str, str]]) -> None:
    server, keys = keyed
    headers = {"Authorization": f"Bearer {keys['bound']}"}
    assert ask(server.url, headers).headers["X-Guardian-Policy"].startswith("strict@")
    assert error(ask(server.url, headers | {"X-Guardian-Policy": "default"}), 403)["code"] == "forbidden"


def test_other_pages_may_ask_only_where_they_are_listed(
    keyed: tuple[Serving, dict[str, str]], server: Serving
) -> None:
    preflight = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    preflight["Access-Control-Request-Headers"] = "authorization"
    listed = httpx2.options(f"{keyed[0].url}/v1/guard", headers=preflight)
    assert listed.headers["Access-Control-Allow-Origin"] == "https://page.example"
    unlisted = httpx2.options(f"{keyed[0].url}/v1/guard", headers=preflight | {"Origin": "https://x.example"})
    off = httpx2.options(f"{server.url}/v1/guard", headers=preflight)
    assert all("Access-Control-Allow-Origin" not in reply.headers for reply in (unlisted, off))


def test_a_client_that_hangs_up_while_sending_harms_nobody(server: Serving, http: httpx2.Client) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        head = b"POST /v1/guard HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        connection.sendall(head)
    assert http.get("/readyz").status_code == 200


# Settings


def settings_file(path: Path, text: str) -> Path:
    file = path / "gateway.yaml"
    file.write_text(text, "utf-8")
    return file


def test_variables_are_filled_in_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM", "http://llm:8000")
    file = settings_file(tmp_path, "upstream: {url: '${LLM}/v1', key_env: '${KEY_NAME:OPENAI_API_KEY}'}")
    upstream = Settings.load(file).upstream
    assert upstream and (upstream.url, upstream.key_env) == ("http://llm:8000/v1", "OPENAI_API_KEY")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("upstream: {url: '${NOT_SET_ANYWHERE}'}", r"upstream.url: the environment has no NOT_SET_ANYWHERE"),
        ("limits: {text: 3}", r"limits.text: "),
        ("upstream: {url: ftp://x}", r"upstream.url: "),
        ("keys: [{name: a, sha256: abc}]", r"keys.0.sha256: "),
        (f"keys: [{{name: a, sha256: '{'0' * 64}', policy: x}}]", r"no policy set is called x"),
        ("policies: {other: {}}", r"must be called default"),
        ("policies: {default: {}, 'a b': {}}", r"a name is of letters"),
        ("fail: {timeout: maybe}", r"fail.timeout: "),
        ("a: [", r":1: not readable as YAML"),
        ("- a", r"are a mapping"),
    ],
)
def test_settings_that_are_wrong_say_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Settings.load(settings_file(tmp_path, text))
    assert "gateway.yaml" in str(caught.value)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = settings_file(tmp_path, "upstream: {url: 'http://a/v1', idle_s: 3}\nmodel: x")
    settings = Settings.load(file, upstream={"url": "http://b/v1"}, model=None)
    assert settings.upstream and (settings.upstream.url, settings.upstream.idle_s) == ("http://b/v1", 3)
    assert settings.model == "x"


def test_the_example_settings_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    settings = Settings.load(Path(__file__).parents[1] / "examples" / "gateway.yaml")
    assert settings.upstream and settings.keys and settings.audit


def test_scores_share_out_the_harm_and_stay_out_of_the_printed_verdict() -> None:
    verdict = Guardian.load().check(HARMFUL, respond=False)
    assert verdict.scores and sum(verdict.scores.values()) == pytest.approx(verdict.harm, abs=1e-6)
    assert "scores" not in verdict.to_dict()
    assert Guardian.load().check("", respond=False).scores is None


def test_a_guardian_by_other_policies_shares_the_model(mild: Path) -> None:
    guardian = Guardian.load()
    other = guardian.with_policies([Policy.load(mild)])
    assert other.engine is guardian.engine
    assert other.check("how do i steal a car").action == "flag"
