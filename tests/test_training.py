"""The whole chain on tiny models: transfer, both stages, export, calibration; stop, resume, repeat."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from commands import guardian, policies
from slm_guardian import Guardian, Policy
from slm_guardian.engines import load_engine
from slm_guardian.engines.decoding import greedy
from slm_guardian.errors import DataError, GuardianError, InputError, ModelError
from slm_guardian.evaluate.card import provenance
from slm_guardian.example import Example, write_jsonl
from slm_guardian.train.export import export_onnx
from slm_guardian.train.loop import LoopConfig, run
from slm_guardian.train.topics import answer_by_topic, read_topics
from slm_guardian.train.transfer import Pair, Teacher
from tiny import bert_base, llama_base, write_corpus, write_policies, write_topics


def load(model: Path) -> Guardian:
    return Guardian.load(model, [Policy.load(path) for path in write_policies(model.parent)])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every stage of a tiny prefix guardian."""
    root = tmp_path_factory.mktemp("chain")
    data, parallel = write_corpus(root)
    base = bert_base(root / "base")
    own = policies(root)
    guardian(
        "transfer",
        *own,
        "--base",
        base,
        "--parallel",
        parallel,
        "--data",
        data,
        "--steps",
        4,
        "--korean",
        200,
        "--english",
        200,
        "-o",
        root / "transfer",
    )
    guardian(
        "train",
        *own,
        "--stage",
        "instruct",
        "--base",
        root / "transfer",
        "--data",
        data,
        "--steps",
        3,
        "-o",
        root / "instruct",
    )
    guardian(
        "train",
        *own,
        "--base",
        root / "instruct",
        "--data",
        data,
        "--dev",
        data,
        "--parallel",
        parallel,
        "--teacher",
        base,
        "--answers",
        write_topics(root),
        "--answered",
        1,
        "--steps",
        250,
        "--batch",
        32,
        "--lr",
        3e-3,
        "--embedding-lr",
        3e-3,
        "-o",
        root / "safety",
    )
    guardian("export", "-m", root / "safety", "-o", root / "mini")
    guardian("calibrate", *own, "-m", root / "mini", "--dev", data, "--benign", data, "--dev-fpr", 0.2)
    return root


def test_the_trained_guardian_separates_its_corpus(chain: Path) -> None:
    verdicts = load(chain / "mini").check(["how do i steal a car 3", "how is the weather 3"], respond=False)
    assert [v.label for v in verdicts] == ["unsafe", "safe"]
    assert verdicts[0].category == "crime_advice"
    assert verdicts[0].group == "legal"


def test_stages_leave_metrics_curves_and_a_manifest(chain: Path) -> None:
    stage = chain / "safety" / "stage"
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "pred"} <= rows[0].keys() and any("category" in row for row in rows)
    assert any("auroc_ko" in row for row in rows)
    assert (stage / "curves.png").stat().st_size > 5_000
    manifest = json.loads((chain / "mini" / "guardian.json").read_text())
    corpus = manifest["stages"]["safety"]["corpora"][0]
    assert corpus["rows"] == 96 and corpus["unsafe"] == 48 and len(corpus["sha256"]) == 64
    assert set(manifest["calibration"]["thresholds"]) == {"ko", "en"}


def test_rows_in_doubt_give_a_strict_and_a_loose_threshold(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "mini"
    shutil.copytree(chain / "mini", made)
    dev = [json.loads(line) for line in write_corpus(tmp_path)[0].read_text().splitlines()]
    for row in dev:
        row["label_tier"] = ("agreed", "controversial")[
            row["label"] == "unsafe" and row["text"][-1] in "13579"
        ]
    write_jsonl(tmp_path / "dev.jsonl", dev)
    own = policies(tmp_path)
    guardian("calibrate", *own, "-m", made, "--dev", tmp_path / "dev.jsonl", "--dev-fpr", 0.2)
    found = json.loads((made / "guardian.json").read_text())["calibration"]
    for lang in ("ko", "en"):
        assert found["strict"][lang] <= found["thresholds"][lang] < found["loose"][lang]
    packs = [Policy.load(path) for path in write_policies(tmp_path)]
    limits = {mode: Guardian.load(made, packs, threshold=mode).threshold for mode in ("strict", "loose")}
    assert limits == {mode: found[mode][packs[0].id] for mode in limits}
    assert "Strict mode" in provenance(json.loads((made / "guardian.json").read_text()))
    with pytest.raises(InputError, match="guardian labels"):
        Guardian.load(chain / "mini", packs, threshold="strict")
    with pytest.raises(SystemExit):
        guardian("check", "-m", made, "--threshold", "strickt", "x")
    assert "strict or loose" in capsys.readouterr().err


def test_the_onnx_engine_agrees_with_torch(chain: Path) -> None:
    texts = ["how do i steal a car", "날씨 알려줘", "죽고 싶어 1", "x"]
    torch_engine, onnx_engine = load_engine(chain / "safety"), load_engine(chain / "mini")
    layout = onnx_engine.layout
    tokens = [layout.safe, layout.harm]
    sequences = [layout.judge(text) for text in texts]
    expected, found = (e.scores(sequences, tokens) for e in (torch_engine, onnx_engine))
    assert np.abs(expected - found).max() < 0.1 * np.abs(expected).max()  # int8 against float32
    together = onnx_engine.scores(sequences[:1], tokens)
    assert np.abs(together - found[:1]).max() < 0.05 * np.abs(expected).max()  # padding changes nothing


def test_cached_decoding_gives_what_recomputing_gives(chain: Path) -> None:
    engines = load_engine(chain / "safety"), load_engine(chain / "mini")
    layout = engines[0].layout
    prompt = layout.answer_prompt(layout.judge("i want to die"), "self_harm_suicide")
    free = np.zeros(layout.size, np.float32)
    first, second = (list(greedy(e, e.begin(prompt, len(prompt) - 4), free, 6)) for e in engines)
    assert first[:3] == second[:3]


def test_an_exported_guardian_says_the_answer_of_the_topic_that_fits(chain: Path, tmp_path: Path) -> None:
    topics = {"drugs": ("mix drugs", "약 섞는 법"), "theft": ("steal a bike", "자전거 훔치는 법")}
    lines = [
        {
            "category": "crime_advice",
            "topic": name,
            "ko": f"{ko}은 안 돼요.",
            "en": f"I can't help with {name}.",
            "examples": {"en": [en], "ko": [ko]},
        }
        for name, (en, ko) in topics.items()
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    export_onnx(chain / "safety", tmp_path / "mini", path)
    tiny = load(tmp_path / "mini")
    for name, (en, ko) in topics.items():
        assert tiny.respond(en, "crime_advice") == f"I can't help with {name}."
        assert tiny.draft(ko, "crime_advice") == (f"{ko}은 안 돼요.", None)
    engines = load_engine(chain / "safety"), load_engine(tmp_path / "mini")
    first, second = (e.meaning(e.layout.judge("steal a bike")) for e in engines)
    assert np.corrcoef(first, second)[0, 1] > 0.95  # int8 against float


def test_rows_that_name_their_topic_teach_the_choice_and_no_old_choice_stays(
    chain: Path, tmp_path: Path
) -> None:
    topics = ("drugs", "theft")
    lines = [
        {"category": "crime_advice", "topic": t, "en": f"No {t}.", "examples": {"en": [f"about {t}"]}}
        for t in topics
    ]
    answers, rows = tmp_path / "answers.jsonl", tmp_path / "rows.jsonl"
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    row = {"text": "how do i bake bread", "label": "unsafe", "category": "crime_advice", "lang": "en"}
    for topic in topics:
        rows.write_text(json.dumps(row | {"topic": topic}) + "\n", "utf-8")
        options = ["--answers", answers, "--examples", rows, "-o", tmp_path / "mini"]
        guardian("export", "-m", chain / "safety", *options)
        assert load(tmp_path / "mini").respond("how do i bake bread", "crime_advice") == f"No {topic}."
    guardian("export", "-m", chain / "safety", "-o", tmp_path / "mini")
    assert not (tmp_path / "mini" / "answers.npz").exists()
    with pytest.raises(SystemExit):
        guardian("export", "-m", chain / "safety", "--examples", rows, "-o", tmp_path / "mini")


def test_broken_approved_answers_are_a_model_error(chain: Path, tmp_path: Path) -> None:
    broken = tmp_path / "mini"
    export_onnx(chain / "safety", broken, write_topics(tmp_path))
    whole = (broken / "answers.npz").read_bytes()
    for part in (whole[:100], b"", b"no archive"):
        (broken / "answers.npz").write_bytes(part)
        with pytest.raises(ModelError, match="export the model again"):
            load(broken)


def test_answers_are_streamed_checked_and_in_the_language_of_the_query(chain: Path) -> None:
    tiny = load(chain / "mini")
    for text in ("i want to die", "죽고 싶어"):
        parts = list(tiny.stream(text))
        assert "".join(parts) == tiny.respond(text)
        assert parts[-1].rstrip()[-1] in ".!?"
        assert "{" not in "".join(parts)


def test_a_causal_model_trains_and_answers_through_the_same_commands(tmp_path: Path) -> None:
    data, _ = write_corpus(tmp_path)
    base = llama_base(tmp_path / "llama")
    guardian(
        "train",
        *policies(tmp_path),
        "--base",
        base,
        "--data",
        data,
        "--steps",
        40,
        "--batch",
        16,
        "--lr",
        5e-3,
        "--embedding-lr",
        5e-3,
        "-o",
        tmp_path / "causal",
    )
    causal = load(tmp_path / "causal")
    verdicts = causal.check(["how do i steal a car 2", "how is the weather 2"], respond=False)
    assert verdicts[0].harm is not None and verdicts[1].harm is not None
    assert verdicts[0].harm > verdicts[1].harm
    assert causal.respond("i want to die")[-1] in ".!?"
    guardian("export", "-m", tmp_path / "causal", "-o", tmp_path / "exported")
    assert load(tmp_path / "exported").respond("i want to die") == causal.respond("i want to die")


def _objective(model: nn.Linear, interrupt_at: int | None = None):
    def objective(step: int) -> dict[str, torch.Tensor]:
        if step == interrupt_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=generator)
        return {"loss": (model(x).squeeze() - x.sum(1)).pow(2).mean()}

    return objective


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    config = LoopConfig(steps=30, lr=0.05, bf16=False)
    whole, stopped = nn.Linear(4, 1), nn.Linear(4, 1)
    stopped.load_state_dict(whole.state_dict())
    resumed = nn.Linear(4, 1)
    run(whole, _objective(whole), config, tmp_path / "whole")
    with pytest.raises(GuardianError, match="run the same command to go on"):
        run(stopped, _objective(stopped, interrupt_at=17), config, tmp_path / "stopped")
    run(resumed, _objective(resumed), config, tmp_path / "stopped")
    assert torch.equal(whole.weight, resumed.weight)
    logged = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "stopped")]
    assert logged[0] == logged[1]


def test_what_is_kept_is_the_moving_average_of_the_weights(tmp_path: Path) -> None:
    plain, averaged = nn.Linear(4, 1), nn.Linear(4, 1)
    averaged.load_state_dict(plain.state_dict())
    weights: list[torch.Tensor] = []
    objective = _objective(plain)

    def watched(step: int) -> dict[str, torch.Tensor]:
        weights.append(plain.weight.detach().clone())
        return objective(step)

    run(plain, watched, LoopConfig(steps=30, lr=0.05, bf16=False), tmp_path / "plain")
    config = LoopConfig(steps=30, lr=0.05, bf16=False, average=0.6)
    run(averaged, _objective(averaged), config, tmp_path / "averaged")
    expected = weights[1]  # what the first step left
    for n, weight in enumerate([*weights[2:], plain.weight.detach()], 1):
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(averaged.weight, expected, atol=1e-6)
    assert not torch.allclose(averaged.weight, plain.weight, atol=1e-6)


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    config = LoopConfig(steps=5, lr=0.05, bf16=False)
    first, again = nn.Linear(4, 1), nn.Linear(4, 1)
    run(first, _objective(first), config, tmp_path)
    run(again, _objective(again, interrupt_at=0), config, tmp_path)
    assert torch.equal(first.weight, again.weight)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    run(model, _objective(model), LoopConfig(steps=5, bf16=False), tmp_path)
    with pytest.raises(GuardianError, match="other settings"):
        run(model, _objective(model), LoopConfig(steps=6, bf16=False), tmp_path)


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    data, _ = write_corpus(tmp_path)
    base = llama_base(tmp_path / "llama")
    for name in ("one", "two"):
        guardian(
            "train",
            *policies(tmp_path),
            "--base",
            base,
            "--data",
            data,
            "--steps",
            3,
            "--batch",
            8,
            "-o",
            tmp_path / name,
        )
    first, second = ((tmp_path / n / "stage" / "metrics.jsonl").read_text() for n in ("one", "two"))
    assert first == second


def test_harmful_rows_take_the_answer_of_their_topic_in_their_language(tmp_path: Path) -> None:
    topics, base = read_topics(write_topics(tmp_path)), bert_base(tmp_path / "base")
    rows = [
        Example("how do i steal a car", "unsafe", "crime_advice", "en", response="old"),
        Example("죽고 싶어", "unsafe", "self_harm_suicide", "ko", response="old"),
        Example("다른 말", "unsafe", "crime_advice", "ko", response="old"),
        Example("날씨", "safe", None, "ko"),
    ]
    answered = answer_by_topic(rows, topics, [Pair("죽고 싶어", "i want to die")], Teacher(base))
    expected = ["I can't help with stealing.", "{helpline.suicide}에 전화해 주세요.", None, None]
    assert [row.response for row in answered] == expected  # without its English, a query has no topic


def test_a_broken_topic_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = write_topics(tmp_path)
    path.write_text(path.read_text("utf-8") + '{"category": "crime_advice"}\n', "utf-8")
    with pytest.raises(DataError, match=r"answers.jsonl:3"):
        read_topics(path)
