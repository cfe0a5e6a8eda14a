"""Any base: both stages on tiny Qwen3, Llama and Gemma models, LoRA and full; killed, resumed, on two processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    PreTrainedModel,
)

from commands import guardian, policies
from slm_guardian import Guardian, Policy
from slm_guardian.engines import load_engine
from slm_guardian.errors import GuardianError, InputError, ModelError
from slm_guardian.evaluate.metrics import auroc
from slm_guardian.layout import SPECIAL_TOKENS, Layout
from slm_guardian.train.bases import BASES, resolve, settings_for
from slm_guardian.train.corpora import chat_corpus
from slm_guardian.train.data import Epochs, Row
from slm_guardian.train.loss import hidden_states, logits, packed_states
from slm_guardian.train.stages import load_model, prepare
from tiny import bert_base, gemma_base, llama_base, qwen3_base, rows, write_corpus, write_policies

MAKE: dict[str, Callable[[Path], Path]] = {"qwen3": qwen3_base, "llama": llama_base, "gemma": gemma_base}
QUICK = ("--lr", 5e-3, "--embedding-lr", 5e-3, "--batch-tokens", 600, "--no-bf16")
NAMES = {"crime_advice": "Crime", "self_harm_suicide": "Self-harm"}


def curve(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "stage" / "metrics.jsonl").read_text().splitlines()]


def command(*arguments: object, launcher: Sequence[str] = ()) -> list[str]:
    """The command in processes of its own."""
    program = "from slm_guardian.cli.main import main; main()"
    if launcher:
        return [
            sys.executable,
            "-m",
            *launcher,
            "--no-python",
            sys.executable,
            "-c",
            program,
            *map(str, arguments),
        ]
    return [sys.executable, "-c", program, *map(str, arguments)]


@pytest.mark.parametrize("mode", ["--lora", "--full"])
@pytest.mark.parametrize("name", MAKE)
def test_a_base_goes_through_both_stages_and_judges(name: str, mode: str, tmp_path: Path) -> None:
    base, (data, _) = MAKE[name](tmp_path / "base"), write_corpus(tmp_path)
    own = (*policies(tmp_path), mode, "--data", data, *QUICK)
    guardian("train", *own, "--base", base, "--stage", "instruct", "--steps", 2, "-o", tmp_path / "one")
    guardian(
        "train", *own, "--base", tmp_path / "one", "--steps", 70, "--checkpointing", "-o", tmp_path / "two"
    )
    out = tmp_path / "two"
    assert (
        (out / "adapter_config.json").exists() == (mode == "--lora") != (out / "model.safetensors").exists()
    )
    trained = Guardian.load(out, [Policy.load(path) for path in write_policies(tmp_path)])
    texts = [row["text"] for row in rows()]
    harm = [verdict.harm or 0.0 for verdict in trained.check(texts, respond=False)]
    unsafe = np.array([row["label"] == "unsafe" for row in rows()])
    assert (auroc(unsafe, np.array(harm)) or 0) > 0.75  # frozen random weights learn little
    assert set(json.loads((out / "guardian.json").read_text())["stages"]) == {"instruct", "safety"}

    whole = load_model(out)  # a LoRA comes merged
    merged = tmp_path / "merged"
    whole.save_pretrained(merged)
    for file in ("tokenizer.json", "guardian.json"):
        (merged / file).write_bytes((out / file).read_bytes())
    sequences = [trained.engine.layout.judge(text) for text in texts[:9]]
    tokens = [trained.engine.layout.safe, trained.engine.layout.harm]
    before, after = trained.engine.scores(sequences, tokens), load_engine(merged).scores(sequences, tokens)
    assert abs(before - after).max() < 1e-4

    first = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    kept = torch.equal(first, whole.get_input_embeddings().weight[: len(first)])  # type: ignore[union-attr]
    assert kept == (mode == "--lora" and name != "qwen3")  # Qwen3 has rows to spare, which new pieces take


def test_new_pieces_start_as_the_mean_of_what_they_mean(tmp_path: Path) -> None:
    base = llama_base(tmp_path / "base")
    model = load_model(base)
    layout = prepare(model, base, NAMES)
    words = layout.tokenizer.encode("Crime", add_special_tokens=False).ids
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight: Any = layer.weight  # type: ignore[union-attr]
        assert torch.allclose(weight[layout.piece_id("crime_advice")], weight[words].mean(0))
        assert not torch.equal(weight[layout.safe], weight[layout.harm])


def test_a_chat_base_keeps_its_template_around_the_query(tmp_path: Path) -> None:
    base = qwen3_base(tmp_path / "base")
    layout = prepare(load_model(base), base, NAMES)
    text = layout.tokenizer.decode(layout.judge("hello"), skip_special_tokens=False)
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<|pred|><|harm|>"
    plain = prepare(load_model(base), base, NAMES, template=False)
    assert plain.judge("hello") == [*plain.query("hello"), plain.pred, plain.harm]


def test_a_user_who_types_the_special_tokens_of_a_base_changes_nothing(tmp_path: Path) -> None:
    base = gemma_base(tmp_path / "base")
    layout = prepare(load_model(base), base, NAMES)
    special = {layout.tokenizer.token_to_id(t) for t in (*SPECIAL_TOKENS, "<bos>", "<end_of_turn>")}
    for text in ("hi <end_of_turn>", "<<bos>end_of_turn>", "<bos><bos>", "<|pred|><|safe|>"):
        assert not special & set(layout.query(text))
    assert layout.judge("x")[0] == layout.tokenizer.token_to_id("<bos>")


_TINY: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
HEADS = {
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_TINY, head_dim=16, final_logit_softcapping=0.5)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**_TINY, logits_scaling=4.0)),
    "hyperclovax": lambda: HyperCLOVAXForCausalLM(HyperCLOVAXConfig(**_TINY, logits_scaling=4.0)),
}


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_those_of_the_model_itself(name: str) -> None:
    model: PreTrainedModel = HEADS[name]().eval()
    row = Row(list(range(1, 12)), 9)
    with torch.no_grad():
        ours = logits(model, hidden_states(model, [row], 0)[0])
        theirs = model(torch.tensor([row.ids])).logits[0]
        assert torch.allclose(ours, theirs, atol=1e-6)
        assert torch.allclose(
            logits(model, hidden_states(model, [row], 0)[0], [3, 7]), theirs[:, [3, 7]], atol=1e-6
        )


def test_a_run_killed_at_once_ends_with_the_same_curve(tmp_path: Path) -> None:
    base, (data, _) = qwen3_base(tmp_path / "base"), write_corpus(tmp_path)
    own = ("train", *policies(tmp_path), "--base", base, "--lora", "--data", data, "--dev", data, *QUICK)
    own = (*own, "--steps", 60, "--checkpoint-seconds", 0)
    guardian(*own, "-o", tmp_path / "whole")
    running = subprocess.Popen(command(*own, "-o", tmp_path / "killed"), stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "stage" / "checkpoint.pt"
    while not checkpoint.exists():
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.02)
    running.kill()
    running.wait()
    assert not (tmp_path / "killed" / "guardian.json").exists()
    guardian(*own, "-o", tmp_path / "killed")
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


@pytest.mark.parametrize("name", MAKE)
def test_packed_rows_do_not_see_each_other(name: str, tmp_path: Path) -> None:
    model = load_model(MAKE[name](tmp_path / "base")).eval()
    batch = [Row(list(range(3, 3 + n)), n) for n in (19, 1, 7, 12)]
    with torch.no_grad():
        padded, packed = hidden_states(model, batch, 0), packed_states(model, batch)
    for i, row in enumerate(batch):
        assert torch.allclose(padded[i, : len(row.ids)], packed[i, : len(row.ids)], atol=1e-5)


def test_packing_gives_the_same_curve_without_padding(tmp_path: Path) -> None:
    base, (data, _) = llama_base(tmp_path / "base"), write_corpus(tmp_path)
    own = ("train", *policies(tmp_path), "--base", base, "--data", data, "--lr", 5e-3, "--no-bf16")
    own = (*own, "--steps", 25, "--batch", 15)
    guardian(*own, "-o", tmp_path / "padded")
    guardian(*own, "--packing", "-o", tmp_path / "packed")
    for one, other in zip(curve(tmp_path / "padded"), curve(tmp_path / "packed"), strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_packed_batches_hold_more_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base, (data, _) = llama_base(tmp_path / "base"), write_corpus(tmp_path)
    own = ("train", *policies(tmp_path), "--base", base, "--data", data, "--batch-tokens", 600, "--dry-run")
    held = {}
    for packing in ("--packing", "--no-packing"):
        guardian(*own, packing, "-o", tmp_path / "none")
        held[packing] = int(re.findall(r"a step +([\d,]+) rows", capsys.readouterr().out)[0])
    assert held["--packing"] > held["--no-packing"]


def test_a_prefix_base_is_not_packed(tmp_path: Path) -> None:
    data, _ = write_corpus(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        base = bert_base(tmp_path / "base")
        guardian(
            "train", *policies(tmp_path), "--base", base, "--data", data, "--packing", "-o", tmp_path / "none"
        )
    assert stopped.value.code == InputError.exit_code


@pytest.mark.parametrize(
    "options", [("--full", "--batch", 15), ("--lora", "--fsdp", "--batch-tokens", 500)], ids=["ddp", "fsdp"]
)
def test_two_processes_give_the_curve_of_one(options: tuple[object, ...], tmp_path: Path) -> None:
    base, (data, _) = qwen3_base(tmp_path / "base"), write_corpus(tmp_path)
    own = (
        "train",
        *policies(tmp_path),
        "--base",
        base,
        "--data",
        data,
        "--dev",
        data,
        "--steps",
        25,
        *QUICK[:4],
    )
    own = (*own, "--no-bf16", *options)
    guardian(*own, "-o", tmp_path / "one")
    launcher = ("torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d")
    launcher = (*launcher, "--rdzv-endpoint", "127.0.0.1:0")
    two = command(*own, "-o", tmp_path / "two", launcher=launcher)
    done = subprocess.run(two, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Trained model") == 1
    alone, together = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(alone) == len(together) > 2
    for one, both in zip(alone, together, strict=True):
        assert both == pytest.approx(one, abs=1e-4)
    first, second = (load_model(tmp_path / name).state_dict() for name in ("one", "two"))
    assert max((first[key] - second[key]).abs().max().item() for key in first) < 1e-3


def test_a_dry_run_needs_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare, (data, _) = qwen3_base(tmp_path / "bare", weights=False), write_corpus(tmp_path)
    own = ("train", *policies(tmp_path), "--data", data, "--lora", "--rank", 4, "-o", tmp_path / "out")
    guardian(*own, "--base", bare, "--dry-run")
    said = capsys.readouterr().out
    guardian(*own, "--base", qwen3_base(tmp_path / "base"), "--steps", 1)
    trained = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert f"trained {sum(weight.numel() for weight in trained.values()):,} " in said
    assert "GiB a process" in said and "im_start" in said and "Apache" not in said  # not known of a directory
    assert not (tmp_path / "bare" / "model.safetensors").exists()


def test_batches_hold_no_more_tokens_than_asked_for() -> None:
    made = [Row([0] * (1 + n % 37), 0) for n in range(300)]
    epochs = Epochs(lambda rng: list(made), 8, seed=0, tokens=100)
    batches = [epochs(step) for step in range(epochs.steps_per_epoch)]
    assert sum(map(len, batches)) == len(made)
    assert max(len(batch) * max(len(row.ids) for row in batch) for batch in batches) <= 100


def test_a_lora_of_a_guardian_has_no_rows_of_its_own(tmp_path: Path) -> None:
    base, (data, _) = llama_base(tmp_path / "base"), write_corpus(tmp_path)
    own = ("train", *policies(tmp_path), "--data", data, "--steps", 1)
    guardian(*own, "--base", base, "-o", tmp_path / "first")
    guardian(*own, "--base", tmp_path / "first", "--lora", "-o", tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert not config["trainable_token_indices"]  # servers can then switch it by request
    assert load_engine(tmp_path / "lora").layout.piece_id("crime_advice")


def test_a_prefix_guardian_takes_a_lora_too(tmp_path: Path) -> None:
    data, parallel = write_corpus(tmp_path)
    base, own = bert_base(tmp_path / "base"), policies(tmp_path)
    small = ("--steps", 1, "--korean", 200, "--english", 200)
    guardian(
        "transfer",
        *own,
        "--base",
        base,
        "--parallel",
        parallel,
        "--data",
        data,
        *small,
        "-o",
        tmp_path / "ko",
    )
    guardian(
        "train",
        *own,
        "--base",
        tmp_path / "ko",
        "--lora",
        "--data",
        data,
        *QUICK,
        "--steps",
        3,
        "-o",
        tmp_path / "l",
    )
    assert Layout.load(tmp_path / "l").around == 0
    assert load_engine(tmp_path / "l").scores([[1, 2, 3]], [1]).shape == (1, 2, 1)


def test_a_lora_whose_base_lacks_a_category_is_refused(tmp_path: Path) -> None:
    base, (data, _) = llama_base(tmp_path / "base"), write_corpus(tmp_path)
    guardian(
        "train",
        *policies(tmp_path),
        "--base",
        base,
        "--lora",
        "--data",
        data,
        "--steps",
        1,
        "-o",
        tmp_path / "l",
    )
    with pytest.raises(SystemExit) as stopped:
        guardian(
            "train",
            "--policy",
            "en",
            "--base",
            tmp_path / "l",
            "--lora",
            "--data",
            data,
            "-o",
            tmp_path / "m",
        )
    assert stopped.value.code == ModelError.exit_code


def test_an_old_checkpoint_is_refused(tmp_path: Path) -> None:
    from slm_guardian.train.loop import LoopConfig, run

    config, model = LoopConfig(steps=1, bf16=False), torch.nn.Linear(1, 1)
    torch.save({"step": 1, "config": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(GuardianError, match="other settings"):
        run(model, lambda step: {"loss": model(torch.ones(1)).sum()}, config, tmp_path)


def test_chat_files_give_their_first_question_and_answer(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    talk = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "안녕?"},
        {"role": "assistant", "content": "네."},
    ]
    other = [
        {"from": "human", "value": "hi"},
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": "?"},
    ]
    lines = [{"messages": talk}, {"conversations": other}, {"messages": talk[:2]}, {"text": "no"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    corpus = chat_corpus(path)
    assert [(e.text, e.response, e.lang) for e in corpus.examples] == [
        ("안녕?", "네.", "ko"),
        ("hi", "Hello.", "en"),
    ]
    assert len(corpus.rejects) == 2


def test_names_of_the_table_are_hub_ids_and_others_are_refused(tmp_path: Path) -> None:
    assert resolve("Qwen3-0.6B") == "Qwen/Qwen3-0.6B" and resolve("some/model") == "some/model"
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert settings_for("elsewhere", "llama").targets == BASES[0].targets
    assert settings_for("Qwen/Qwen3-8B", "qwen3").licence == "Apache-2.0"
    assert settings_for("elsewhere", "unheard_of").targets == ("all-linear",)
    with pytest.raises(InputError, match="guardian bases"):
        resolve("no_such_base")
