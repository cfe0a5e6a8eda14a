"""The http engine against servers that run a model, and LoRAs by policy in every engine that has them.

Tolerance on P(harm): 1e-4, against the torch engine in float32.
"""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest

from served import ModelServer
from slm_guardian.engines.torch import TorchEngine
from slm_guardian.errors import GuardianError, InputError, ModelError
from slm_guardian.layout import Layout
from slm_guardian.train import stages
from slm_guardian.train.export_hf import export_hf
from small_guardians import (
    CATEGORIES,
    FAMILIES,
    NAMES,
    SERVERS,
    TEXTS,
    distance,
    load,
    lora,
    spread,
    trained,
    verdicts,
)
from tiny import llama_base


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def llama(root: Path) -> Path:
    """An exported Llama with a LoRA for each policy."""
    base = trained(root / "adapted", "llama")
    adapters = {name: lora(base, root / f"lora-{name}", seed) for seed, name in enumerate(("ko", "en"))}
    export_hf(base, root / "both", adapters=adapters)
    return root / "both"


# Servers


@pytest.fixture(scope="module")
def served(root: Path) -> Path:
    out = root / "served"
    export_hf(trained(root / "to-serve", "qwen3"), out)
    return out


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_judges_as_torch_does(kind: str, served: Path, root: Path) -> None:
    with ModelServer(served, kind) as server:
        found = verdicts(f"{server.url}?model={served.name}&tokenizer={served}", root)
    assert distance(found, verdicts(served, root)) < 1e-4
    assert spread(found) > 0.1


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_writes_what_torch_writes(kind: str, served: Path, root: Path) -> None:
    local = TorchEngine.load(served)
    layout = local.layout
    prompt = layout.answer_prompt(layout.judge("i want to die"), "self_harm_suicide")
    free = np.zeros(layout.size, np.float32)
    some = np.full(layout.size, -1e9, np.float32)
    some[[*range(60, 90), layout.end]] = 0
    strict = free.copy()
    strict[layout.never] = -1e9
    with ModelServer(served, kind) as server:
        remote = load(f"{server.url}?tokenizer={served}", root).engine
        for banned in (free, some, strict):
            expected = list(local.write(prompt, len(prompt), banned, 28))
            assert list(remote.write(prompt, len(prompt), banned, 28)) == expected
            assert len({tuple(expected[i : i + 3]) for i in range(len(expected) - 2)}) == len(expected) - 2


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_chooses_the_approved_answer_that_torch_chooses(kind: str, served: Path, root: Path) -> None:
    layout = Layout.load(served)
    words = [layout.query(text) for text in ("I can help", "I can call", "call now", "도와드릴 수 없어요")]
    path = root / f"approved-{kind}"
    shutil.copytree(served, path)
    manifest = json.loads((path / "guardian.json").read_text("utf-8"))
    manifest["approved"] = {category: {"en": words, "ko": words} for category in CATEGORIES}
    (path / "guardian.json").write_text(json.dumps(manifest), "utf-8")
    with ModelServer(path, kind) as server:
        remote = load(f"{server.url}?tokenizer={path}", root)
        for text in TEXTS[:3]:
            assert remote.draft(text, CATEGORIES[0]) == load(path, root).draft(text, CATEGORIES[0])


def test_queries_go_side_by_side_up_to_the_limit(served: Path, root: Path) -> None:
    together = Barrier(4)
    with ModelServer(served, "vllm") as server:
        guardian = load(f"{server.url}?tokenizer={served}&concurrency=4", root)
        server.gate = lambda: together.wait(30)  # opens only for four at a time
        found = guardian.check(["weather"] * 8, respond=False)
    assert len({v.harm for v in found}) == 1 and not found[0].error


def test_a_server_that_is_down_is_named(served: Path, root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(GuardianError, match=r"no connection to http://127\.0\.0\.1"):
        load(f"http://127.0.0.1:{port}/v1?tokenizer={served}&retries=0", root)


def test_a_server_that_dies_fails_closed(served: Path, root: Path) -> None:
    with ModelServer(served, "llamacpp") as server:
        guardian = load(f"{server.url}?tokenizer={served}&retries=0", root)
    [verdict] = guardian.check([TEXTS[0]])
    assert (verdict.label, verdict.action, verdict.harm, verdict.response) == ("unsafe", "block", None, None)
    assert "no connection" in (verdict.error or "")
    with pytest.raises(GuardianError, match="no connection"):
        guardian.respond(TEXTS[0])


def test_one_call_that_fails_costs_one_verdict(served: Path, root: Path) -> None:
    with ModelServer(served, "vllm") as server:
        guardian = load(f"{server.url}?tokenizer={served}&retries=0&concurrency=1", root)
        server.script = lambda number: 500 if number == 2 else 200
        found = guardian.check(["one", "two", "three"], respond=False)
    assert [v.error for v in found] == [None, "the server answered with status 500", None]


def test_an_answer_that_the_server_breaks_off_is_the_policys_own(served: Path, root: Path) -> None:
    with ModelServer(served, "vllm") as server:
        guardian = load(f"{server.url}?tokenizer={served}&retries=0", root)
        server.script = lambda number: 200 if number == 1 else 500
        [verdict] = guardian.check([TEXTS[0]], force=True)
    assert verdict.response in ("I can't help with that.", "You are not alone. the 988 Lifeline.")


def test_a_server_that_does_not_answer_in_time(served: Path, root: Path) -> None:
    opened = Event()
    with ModelServer(served, "vllm") as server:
        guardian = load(f"{server.url}?tokenizer={served}&retries=0&timeout=0.5", root)
        server.gate = opened.wait
        [verdict] = guardian.check([TEXTS[0]])
        opened.set()
    assert (verdict.label, verdict.error) == ("unsafe", "the server did not answer in time")


def test_a_server_without_log_probs_is_told(served: Path, root: Path) -> None:
    with ModelServer(served, "mute") as server:
        [verdict] = load(f"{server.url}?tokenizer={served}", root).check([TEXTS[0]])
    assert verdict.label == "unsafe" and "gives no log-probs" in (verdict.error or "")


@pytest.mark.parametrize("kind", SERVERS)
def test_a_query_longer_than_the_servers_context(kind: str, served: Path, root: Path) -> None:
    with ModelServer(served, kind) as server:
        guardian = load(f"{server.url}?tokenizer={served}&retries=0", root)
        with pytest.raises(GuardianError, match="longer than the server's context"):
            guardian.engine.scores([[5] * 600], [1, 2])


def test_addresses_that_cannot_be_right(served: Path, llama: Path, root: Path) -> None:
    with ModelServer(served, "vllm") as server:
        for address, message in (
            (server.url, "tokenizer=DIR"),
            (f"{server.url}?tokenizer={served}&modle=x", "unknown option of the address: modle"),
            (f"{server.url}?tokenizer={served}&timeout=soon", "timeout of the address"),
        ):
            with pytest.raises(InputError, match=message):
                load(address, root)
        with pytest.raises(ModelError, match=f"has no model 'other': it has {served.name}"):
            load(f"{server.url}?tokenizer={served}&model=other", root)


def test_a_tokenizer_of_another_model_is_noticed(served: Path, root: Path, tmp_path: Path) -> None:
    model = FAMILIES["llama"]()
    layout = stages.prepare(model, llama_base(tmp_path / "base"), ["one_more", *NAMES])
    stages.save(model, layout, tmp_path / "other", {"categories": CATEGORIES})
    assert Layout.load(tmp_path / "other").pred == Layout.load(served).pred
    tokenizer = json.loads((tmp_path / "other" / "tokenizer.json").read_text("utf-8"))
    added = {t["content"]: t for t in tokenizer["added_tokens"]}
    added["<|pred|>"]["id"], added["<|end|>"]["id"] = added["<|end|>"]["id"], added["<|pred|>"]["id"]
    tokenizer["added_tokens"].sort(key=lambda t: t["id"])
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with ModelServer(served, "llamacpp") as server, pytest.raises(ModelError, match="runs another model"):
        load(f"{server.url}?tokenizer={tmp_path / 'other'}", root)


# One base, a LoRA for each culture


def test_each_policy_runs_with_its_own_lora(llama: Path, root: Path) -> None:
    expected = verdicts(llama, root)
    for name in ("ko", "en"):
        alone = root / f"alone-{name}"
        export_hf(_as_adapter_of(llama, name, root / f"only-{name}"), alone)
        for whole, both in zip(verdicts(alone, root), expected, strict=True):
            if both.policy == name:
                assert whole.harm is not None and abs(whole.harm - (both.harm or 0)) < 1e-5
    assert {v.policy for v in expected} == {"ko", "en"}
    plain = root / "plain"
    shutil.copytree(llama, plain, ignore=shutil.ignore_patterns("adapters"))
    assert all(a.harm != b.harm for a, b in zip(verdicts(plain, root), expected, strict=True))


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_switches_loras_by_policy(kind: str, llama: Path, root: Path) -> None:
    adapters = {name: llama / "adapters" / name for name in ("ko", "en")}
    with ModelServer(llama, kind, adapters) as server:
        found = verdicts(f"{server.url}?model={llama.name}&tokenizer={llama}", root)
        used = {
            json.dumps([b.get("model"), b.get("lora")]) for path, b in server.calls if "completion" in path
        }
    assert distance(found, verdicts(llama, root)) < 1e-4
    assert len(used) == 2


def test_an_adapter_of_another_shape_is_named(llama: Path, root: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(llama, broken)
    (broken / "adapters" / "ko" / "adapter_model.safetensors").write_bytes(b"none")
    with pytest.raises(ModelError, match="does not fit the model"):
        TorchEngine.load(broken)


def _as_adapter_of(base: Path, name: str, out: Path) -> Path:
    shutil.copytree(base / "adapters" / name, out)
    config = json.loads((out / "adapter_config.json").read_text("utf-8"))
    plain = out.with_name(f"{out.name}-base")
    shutil.copytree(base, plain, ignore=shutil.ignore_patterns("adapters"))
    config["base_model_name_or_path"] = str(plain)
    (out / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    for file in ("tokenizer.json", "guardian.json"):
        shutil.copyfile(base / file, out / file)
    return out
