"""Guardians on their way out: each format and each engine gives the verdicts of the trained model.

Tolerances on P(harm): 1e-6 in the same library and type, 1e-4 through a server (float32 in JSON), 0.02 for int8.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from served import ModelServer
from slm_guardian import Guardian, Policy, Verdict
from slm_guardian.engines import Engine
from slm_guardian.engines.torch import TorchEngine
from slm_guardian.errors import GuardianError, InputError, ModelError
from slm_guardian.layout import Layout
from slm_guardian.train import stages
from slm_guardian.train.export import export_onnx
from slm_guardian.train.export_gguf import export_gguf, split_name
from slm_guardian.train.export_hf import export_hf
from tiny import llama_base, write_policies

CATEGORIES = ["crime_advice", "self_harm_suicide"]
NAMES = [*CATEGORIES, "helpline.suicide"]
CALIBRATION = {"temperature": 2.0, "thresholds": {"en": 0.5, "ko": 0.5}, "dev_fpr": 0.1, "pool_fpr": 0.1}
CALIBRATION |= {"n_dev": 10, "n_pool": 10, "ece": 0.1}
TEXTS = ["how do i steal a car", "죽고 싶어", "날씨 알려줘 3", "x", "i want to die " * 20, "👍 ok"]
SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # verdicts far apart
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA: dict[str, Any] = SHAPE | {"sliding_window": 64}
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)),
}
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # of the tokenizer.json of Qwen and Llama 3
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SERVERS = ["vllm", "old-vllm", "llamacpp"]


def trained(directory: Path, family: str, seed: int = 1) -> Path:
    """A guardian as training writes it: random weights, the special tokens and policy pieces added."""
    base = llama_base(directory / "base")
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    layout = stages.prepare(model, base, NAMES)
    manifest = {"family": "causal", "categories": CATEGORIES, "calibration": CALIBRATION}
    stages.save(model, layout, directory / family, manifest)
    return directory / family


def lora(model: Path, out: Path, seed: int, **more: Any) -> Path:
    """A LoRA that changes much, as training writes it."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **more
    )
    adapted: Any = AutoModelForCausalLM.from_pretrained(model)
    adapted.add_adapter(config)
    adapted.save_pretrained(out)
    for name in ("tokenizer.json", "guardian.json"):
        shutil.copyfile(model / name, out / name)
    return out


def load(model: Path | str, policies: Path) -> Guardian:
    return Guardian.load(model, [Policy.load(path) for path in write_policies(policies)], threshold=0.5)


def verdicts(model: Path | str, policies: Path) -> list[Verdict]:
    return load(model, policies).check(TEXTS, respond=False)


def distance(found: list[Verdict], expected: list[Verdict]) -> float:
    """The largest difference of P(harm); all else must be equal."""
    assert [(v.label, v.category, v.error) for v in found] == [
        (v.label, v.category, v.error) for v in expected
    ]
    return max(abs((a.harm or 0) - (b.harm or 0)) for a, b in zip(found, expected, strict=True))


def spread(found: list[Verdict]) -> float:
    return max(v.harm or 0 for v in found) - min(v.harm or 0 for v in found)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest, root: Path) -> Path:
    return trained(root, request.param)


@pytest.fixture(scope="module")
def llama(root: Path) -> Path:
    """An exported Llama with a LoRA for each policy."""
    base = trained(root / "adapted", "llama")
    adapters = {name: lora(base, root / f"lora-{name}", seed) for seed, name in enumerate(("ko", "en"))}
    export_hf(base, root / "both", adapters=adapters)
    return root / "both"


# Hugging Face


def test_an_exported_directory_judges_as_the_trained_model(model: Path, root: Path) -> None:
    expected = verdicts(model, root)
    assert spread(expected) > 0.1
    export_hf(model, root / f"{model.name}-hf")
    assert distance(verdicts(root / f"{model.name}-hf", root), expected) < 1e-6


def snippet(out: Path) -> str:
    """The Python in a README."""
    code = (out / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    assert "slm_guardian" not in code and len(code.strip().splitlines()) <= 12
    return code


def read_by_readme(out: Path, text: str, capsys: pytest.CaptureFixture[str]) -> float:
    capsys.readouterr()
    exec(snippet(out), {"path": str(out), "text": text})
    return float(capsys.readouterr().out)


def test_the_readme_reads_harm(model: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = root / f"{model.name}-readme"
    export_hf(model, out)
    for text, verdict in list(zip(TEXTS, verdicts(out, root), strict=True))[:4]:
        assert abs(read_by_readme(out, text, capsys) - (verdict.harm or 0)) < 1e-5


def test_the_readme_needs_nothing_of_ours(served: Path, root: Path) -> None:
    program = f"path, text = {str(served)!r}, {TEXTS[0]!r}\n{snippet(served)}"
    program += "import sys; assert 'slm_guardian' not in sys.modules"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert abs(float(done.stdout) - (verdicts(served, root)[0].harm or 0)) < 1e-5


def test_a_chat_bases_turn_is_in_the_readme(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = trained(root / "framed", "llama"), root / "framed-out"
    manifest = json.loads((model / "guardian.json").read_text("utf-8"))
    manifest["frame"] = {"before": "user: ", "after": "\nassistant: "}
    (model / "guardian.json").write_text(json.dumps(manifest), "utf-8")
    export_hf(model, out)
    harm = verdicts(model, root)[1].harm
    assert harm is not None and abs(read_by_readme(out, TEXTS[1], capsys) - harm) < 1e-5


def test_the_tokenizer_holds_the_special_tokens_and_the_policys_pieces(model: Path, root: Path) -> None:
    out = root / f"{model.name}-tokens"
    export_hf(model, out)
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    layout = Layout.load(out)
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False).input_ids == layout.query(text)
    tokens = ["<|pred|>", "<|safe|>", "<|harm|>", "<|expl|>", "§crime_advice", "§helpline.suicide"]
    expected = [layout.pred, layout.safe, layout.harm, layout.expl]
    expected += [layout.piece_id("crime_advice"), layout.piece_id("helpline.suicide")]
    assert tokenizer.convert_tokens_to_ids(tokens) == expected
    assert tokenizer("".join(tokens), add_special_tokens=False).input_ids == expected
    assert tokenizer.eos_token_id == layout.end
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == layout.end


def test_a_type_can_be_chosen(model: Path, root: Path) -> None:
    out = root / f"{model.name}-bf16"
    export_hf(model, out, "bf16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    found = [v.harm or 0 for v in verdicts(out, root)]
    assert np.abs(np.array(found) - [v.harm or 0 for v in verdicts(model, root)]).max() < 0.05


def test_a_lora_is_merged(root: Path) -> None:
    base = trained(root / "merge", "qwen3")
    adapter = lora(base, root / "merge" / "lora", 5)
    beside = root / "merge" / "beside"
    shutil.copytree(base, beside)
    shutil.copytree(adapter, beside / "adapters" / "ko")
    shutil.copytree(adapter, beside / "adapters" / "en")
    export_hf(adapter, root / "merge" / "whole")
    assert not list((root / "merge" / "whole").glob("adapter*"))
    expected = verdicts(beside, root)
    assert distance(verdicts(root / "merge" / "whole", root), expected) < 1e-5
    assert (
        max(abs((a.harm or 0) - (b.harm or 0)) for a, b in zip(expected, verdicts(base, root), strict=True))
        > 0.05
    )


def test_an_adapter_that_changes_the_embeddings_cannot_be_laid_beside(llama: Path, root: Path) -> None:
    adapter = lora(llama, root / "tokens-lora", 6, trainable_token_indices=[3, 4])
    with pytest.raises(ModelError, match="no server can switch"):
        export_hf(llama, root / "none", adapters={"ko": adapter})
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        export_hf(llama, root / "none", adapters={"ko": root / "base"})


def test_a_prefix_model_is_for_onnx(prefix: Path, root: Path) -> None:
    for export in (export_hf, export_gguf):
        with pytest.raises(ModelError, match="--to onnx"):
            export(prefix, root / "none")


# GGUF


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_a_gguf_file_holds_every_weight(family: str, kind: str, root: Path) -> None:
    model, out = trained(root / "gguf", family), root / f"{family}-{kind}"
    export_gguf(model, out, kind)
    reader = gguf.GGUFReader(out / f"{out.name}.gguf")
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    state: dict[str, Any] = AutoModelForCausalLM.from_pretrained(model).state_dict()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], 2)
    heads = {"q_proj": 4, "k_proj": 2}
    for name, weight in state.items():
        if name == "lm_head.weight" and family == "qwen3":
            assert "output.weight" not in tensors  # tied: llama.cpp takes the embeddings
            continue
        found = tensors.pop(str(names.get_name(name, (".weight", ".bias")))).reshape(weight.shape)
        if family == "llama" and (part := name.split(".")[-2]) in heads:  # back from llama.cpp's order
            found = found.reshape(heads[part], -1, 2, found.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        expected = weight.numpy()
        if kind == "f16" and weight.ndim > 1:
            expected = expected.astype(np.float16).astype(np.float32)
        if kind == "q8_0" and weight.ndim > 1:
            assert np.abs(found - expected).max() <= np.abs(expected).max() / 127
        else:
            assert np.array_equal(found, expected), name  # bit by bit
    assert set(tensors) == ({"rope_freqs.weight"} if family == "llama" else set())


def test_a_gguf_file_holds_the_tokenizer(root: Path) -> None:
    model = trained(root / "gguf-tokens", "qwen3")
    export_gguf(model, root / "gguf-tokens" / "out", "f32")
    fields = gguf.GGUFReader(root / "gguf-tokens" / "out" / "out.gguf").fields
    layout = Layout.load(model)
    tokens, kinds = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()
    for i in (layout.pred, layout.end, layout.piece_id("crime_advice") or 0, 97):
        assert tokens[i] == layout.tokenizer.id_to_token(i)
    assert kinds[layout.pred] == gguf.TokenType.CONTROL and kinds[97] == gguf.TokenType.NORMAL
    assert fields["tokenizer.ggml.eos_token_id"].contents() == layout.end
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"


def test_what_only_llama_cpps_converter_knows_is_refused(root: Path) -> None:
    with pytest.raises(ModelError, match="convert_hf_to_gguf"):
        export_gguf(trained(root / "gguf-gemma", "gemma3"), root / "none")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (f"{_ENDINGS}|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|\\p{{N}}|{_REST}", "qwen2"),
        (f"{_ENDINGS}|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|\\p{{N}}{{1,3}}|{_REST}", "llama-bpe"),
        (r"\s+", None),
    ],
)
def test_how_text_is_split_is_named_as_llama_cpp_names_it(pattern: str, name: str | None) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    assert split_name(tokenizer) == name


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


# Embedded


@pytest.fixture(scope="module")
def prefix(root: Path, layout: Layout) -> Path:
    """A prefix guardian of random weights."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=layout.size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
    )
    manifest = {"family": "prefix", "categories": ["crime_advice", "self_harm"]}
    stages.save(BertForMaskedLM(config), layout, root / "prefix", manifest)
    return root / "prefix"


def test_the_embedded_engine_judges_as_torch_does(prefix: Path, root: Path) -> None:
    export_onnx(prefix, root / "embedded")
    engines: list[Engine] = [load_plain(prefix), load_plain(root / "embedded")]
    layout = engines[0].layout
    sequences = [layout.judge(text) for text in ("hello , please call", "경찰에 전화하세요", "talk")]
    scores = [engine.scores(sequences, [layout.safe, layout.harm]) for engine in engines]
    harms = [1 / (1 + np.exp(s[:, 0, 0] - s[:, 0, 1])) for s in scores]
    assert np.abs(harms[0] - harms[1]).max() < 0.02


def load_plain(directory: Path) -> Engine:
    from slm_guardian.engines import load_engine

    return load_engine(directory)


# llama.cpp itself, where it is installed


@contextmanager
def llama_server(program: str, file: Path) -> Iterator[str]:
    """The address of a llama-server of its own."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    command = [
        program,
        "-m",
        str(file),
        "--port",
        port,
        "--host",
        "127.0.0.1",
        "-c",
        "2048",
        "-np",
        "2",
        "-t",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        for line in process.stdout:
            if "listening" in line:
                break
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_llama_cpp_judges_as_torch_does(family: str, root: Path) -> None:
    program = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    if not program:
        pytest.skip("llama-server is not installed: put it on the PATH, or set LLAMA_SERVER")
    model, out = trained(root / "cpp", family), root / f"{family}-cpp"
    export_gguf(model, out, "f32")
    with llama_server(program, out / f"{out.name}.gguf") as address:
        remote = load(f"{address}?tokenizer={out}", root)
        found = remote.check(TEXTS, respond=False)
        local = TorchEngine.load(model)
        prompt = local.layout.answer_prompt(local.layout.judge(TEXTS[0]), CATEGORIES[0])
        free = np.zeros(local.layout.size, np.float32)
        written = [list(e.write(prompt, len(prompt), free, 30)) for e in (local, remote.engine)]
    assert distance(found, verdicts(model, root)) < 1e-3
    assert written[0] == written[1]
