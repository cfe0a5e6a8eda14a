"""Guardians on their way out: each file format gives the verdicts of the trained model.

Tolerances on P(harm): 1e-6 in the same library and type, 1e-5 in ONNX and 1e-3 in llama.cpp with float32 weights (0.02
with 8-bit ones), 0.02 for the int8 of the embedded model and 0.05 for that of any causal one.
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
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

from slm_guardian.engines import load_engine
from slm_guardian.engines.torch import TorchEngine
from slm_guardian.errors import ModelError
from slm_guardian.layout import Layout
from slm_guardian.train import onnx_causal, stages
from slm_guardian.train.export import export_onnx
from slm_guardian.train.export_gguf import export_gguf, split_name
from slm_guardian.train.export_hf import export_hf
from small_guardians import CATEGORIES, FAMILIES, TEXTS, distance, load, lora, spread, trained, verdicts

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # of the tokenizer.json of Qwen and Llama 3
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest, root: Path) -> Path:
    return trained(root, request.param)


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


def test_the_readme_needs_nothing_of_ours(root: Path) -> None:
    export_hf(trained(root / "alone", "qwen3"), root / "alone-out")
    program = f"path, text = {str(root / 'alone-out')!r}, {TEXTS[0]!r}\n{snippet(root / 'alone-out')}"
    program += "import sys; assert 'slm_guardian' not in sys.modules"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert abs(float(done.stdout) - (verdicts(root / "alone-out", root)[0].harm or 0)) < 1e-5


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


def test_an_adapter_that_changes_the_embeddings_cannot_be_laid_beside(root: Path) -> None:
    base = trained(root / "beside", "llama")
    adapter = lora(base, root / "tokens-lora", 6, trainable_token_indices=[3, 4])
    with pytest.raises(ModelError, match="no server can switch"):
        export_hf(base, root / "none", adapters={"ko": adapter})
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        export_hf(base, root / "none", adapters={"ko": root})


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
    engines = [load_engine(prefix), load_engine(root / "embedded")]
    layout = engines[0].layout
    sequences = [layout.judge(text) for text in ("hello , please call", "경찰에 전화하세요", "talk")]
    scores = [engine.scores(sequences, [layout.safe, layout.harm]) for engine in engines]
    harms = [1 / (1 + np.exp(s[:, 0, 0] - s[:, 0, 1])) for s in scores]
    assert np.abs(harms[0] - harms[1]).max() < 0.02


def test_a_causal_model_in_onnx_judges_and_writes_as_torch_does(model: Path, root: Path) -> None:
    out = root / f"{model.name}-onnx"
    export_onnx(model, out)
    assert distance(verdicts(out, root), verdicts(model, root)) < 1e-5
    engines = [load_engine(model), load_engine(out)]
    layout = engines[0].layout
    prompt = layout.answer_prompt(layout.judge(TEXTS[4]), CATEGORIES[0])
    free = np.zeros(layout.size, np.float32)
    written = [list(e.write(prompt, len(prompt) - 4, free, 20)) for e in engines]
    assert written[0] == written[1] and len(written[0]) > 3
    assert np.allclose(*(e.meaning(layout.judge(TEXTS[4])) for e in engines), atol=1e-4)


def test_a_causal_model_in_int8_judges_nearly_the_same(root: Path) -> None:
    model = trained(root / "int8", "qwen3")
    sizes = [sum(export_onnx(model, root / kind, kind=kind).values()) for kind in ("f32", "int8")]
    assert sizes[1] < 0.6 * sizes[0]
    found = [v.harm or 0 for v in verdicts(root / "int8", root)]
    assert np.abs(np.array(found) - [v.harm or 0 for v in verdicts(model, root)]).max() < 0.05


def test_layers_that_keep_another_state_have_no_onnx_form(root: Path) -> None:
    model = stages.load_model(trained(root / "linear", "qwen3"))
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelError, match="linear_attention"):
        onnx_causal.write(model, root / "none.onnx")


def test_an_embedded_model_is_int8_only(prefix: Path, root: Path) -> None:
    with pytest.raises(ModelError, match="int8 only"):
        export_onnx(prefix, root / "none", kind="f32")


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
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("f32", 1e-3), ("f16", 1e-3), ("bf16", 5e-3), ("q8_0", 0.02)]
)
def test_llama_cpp_judges_as_torch_does(family: str, kind: str, tolerance: float, root: Path) -> None:
    program = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    if not program:
        pytest.skip("llama-server is not installed: put it on the PATH, or set LLAMA_SERVER")
    model, out = trained(root / "cpp", family), root / f"{family}-cpp-{kind}"
    export_gguf(model, out, kind)
    with llama_server(program, out / f"{out.name}.gguf") as address:
        remote = load(f"{address}?tokenizer={out}", root)
        found = remote.check(TEXTS, respond=False)
        local = TorchEngine.load(model)
        prompt = local.layout.answer_prompt(local.layout.judge(TEXTS[0]), CATEGORIES[0])
        free = np.zeros(local.layout.size, np.float32)
        written = [list(e.write(prompt, len(prompt), free, 30)) for e in (local, remote.engine)]
    assert distance(found, verdicts(model, root)) < tolerance
    assert written[0] == written[1] or kind != "f32"
