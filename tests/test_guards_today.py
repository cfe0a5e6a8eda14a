"""Today's guards through their real code path: a tiny model saved as the hub holds it, P(harm) by hand."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import yaml

from guards_today import (
    GUARDS,
    HARMONY,
    ROLES,
    SGUARD,
    SHIELDGEMMA,
    SHIELDGEMMA_POLICIES,
    TEXTS,
    Guard,
    gpt_oss,
    role,
)
from slm_guardian.errors import InputError, ModelError
from slm_guardian.evaluate.systems import System, duoguard, load_system
from slm_guardian.evaluate.systems.parsing import category_reader
from tiny_guards_today import SHAPE, answers, network, save, share, teach, tokenizer

NO_VERDICT = "I am sorry."
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Tiny:
    """A saved guard, and its network and tokenizer to compute with by hand."""

    guard: Guard
    network: Any
    tokenizer: Any
    directory: Path

    @classmethod
    def make(cls, guard: Guard, directory: Path, taught: tuple[str, ...] | None = None) -> Tiny:
        """Build the guard, teach it its answers (or others) and save it."""
        taught = taught or guard.answers
        corpus = [guard.rendered(text) for text in TEXTS] + 20 * [*taught]
        tokens = tokenizer(guard.tokens, corpus, guard.special, guard.template)
        net = network(guard.network, guard.config(**SHAPE), tokens)
        tiny = cls(guard, net, tokens, directory)
        teach(net, [tiny.ids(text) for text in TEXTS], answers(tokens, taught))
        save(directory, net, tokens)
        return tiny

    def load(self) -> System:
        return load_system(f"{self.guard.kind}:{self.directory}{self.guard.options}")

    def ids(self, text: str) -> list[int]:
        """The prompt for a text, as the real template would give it."""
        return self.tokenizer(self.guard.rendered(text), add_special_tokens=False)["input_ids"]

    def before(self) -> list[int]:
        """What is written before the label: what all answers begin with."""
        first, *others = (self.tokenizer.encode(a, add_special_tokens=False) for a in self.guard.answers)
        same = [all(other[: n + 1] == first[: n + 1] for other in others) for n in range(len(first))]
        return first[: same.index(False)]

    def by_hand(self, ids: list[int]) -> float:
        return share(self.network, self.tokenizer, ids, *self.guard.labels)


@pytest.fixture(scope="module", params=GUARDS, ids=str)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny.make(GUARDS[request.param], tmp_path_factory.mktemp(request.param))


def test_harm_is_what_the_logits_say_and_the_raw_output_is_kept(tiny: Tiny) -> None:
    expected = [tiny.by_hand(tiny.ids(text) + tiny.before()) for text in TEXTS]
    judged = tiny.load().judge(TEXTS)
    assert [row.error for row in judged] == [None] * len(TEXTS)
    assert [row.harm for row in judged] == pytest.approx(expected, abs=5e-5)
    for row in judged:
        written = [answer for answer in tiny.guard.answers if row.raw and answer.startswith(row.raw)]
        assert row.category == tiny.guard.categories[written[0]]


def test_another_prompt_or_another_place_would_show(tiny: Tiny) -> None:
    """The numbers above do not agree by chance: another block or another position gives others."""
    ids, before = tiny.ids(TEXTS[0]), tiny.before()
    right = tiny.by_hand(ids + before)
    another_block = ids[:5] + ids[6:] + before
    another_text = tiny.ids(TEXTS[1]) + before
    later = [
        *ids,
        *before,
        tiny.tokenizer.encode(tiny.guard.answers[0], add_special_tokens=False)[len(before)],
    ]
    for wrong in [another_block, another_text, later, *([ids + before[:-1]] if before else [])]:
        assert tiny.by_hand(wrong) != pytest.approx(right, abs=1e-3)


@pytest.mark.parametrize("name", ["qwen3guard-strict", "granite-3.0", "granite-4.1", "kanana", "nemotron-v3"])
def test_an_answer_without_a_verdict_is_unparsed(name: str, tmp_path: Path) -> None:
    system = Tiny.make(GUARDS[name], tmp_path, taught=(NO_VERDICT,)).load()
    assert {(row.harm, row.label, row.error) for row in system.judge(TEXTS)} == {(None, None, "unparsed")}


@pytest.mark.parametrize("name", ["granite-4.1-think", "nemotron-reasoning-think"])
def test_thoughts_that_were_cut_off_hold_no_verdict(name: str, tmp_path: Path) -> None:
    guard = GUARDS[name]
    cut = tuple(answer.replace("</think>", "") for answer in guard.answers)
    assert {row.error for row in Tiny.make(guard, tmp_path, taught=cut).load().judge(TEXTS)} == {"unparsed"}


@pytest.mark.parametrize(
    ("name", "directory"),
    [
        ("granite-3.0", "granite-guardian-3.0-2b"),
        ("granite-4.1", "granite-guardian-4.1-8b"),
        ("nemotron-3.5", "Nemotron-3.5-Content-Safety"),
        ("nemotron-reasoning", "Nemotron-Content-Safety-Reasoning-4B"),
    ],
)
def test_a_models_name_says_how_to_ask_it(name: str, directory: str, tmp_path: Path) -> None:
    tiny = Tiny.make(GUARDS[name], tmp_path / directory)
    assert load_system(f"{tiny.guard.kind}:{tiny.directory}").revision == tiny.load().revision


def test_the_reading_is_part_of_the_revision(tmp_path: Path) -> None:
    tiny = Tiny.make(GUARDS["qwen3guard-strict"], tmp_path)
    revisions = [load_system(f"qwen3guard:{tmp_path}?mode={mode}").revision for mode in ("strict", "loose")]
    assert len(set(revisions)) == 2
    assert tiny.load().revision == revisions[0]


def test_shieldgemma_takes_the_worst_of_four_policies(tmp_path: Path) -> None:
    prompts = {
        (text, c): SHIELDGEMMA.format(text=text, policy=p)
        for text in TEXTS
        for c, p in SHIELDGEMMA_POLICIES.items()
    }
    words = [*prompts.values(), *["Yes", "No"] * 20]
    tokens = tokenizer(hf.GemmaTokenizer, words, ("<start_of_turn>", "<end_of_turn>"))
    net = network(hf.Gemma2ForCausalLM, hf.Gemma2Config(**SHAPE, head_dim=16), tokens)
    yes, no = (tokens.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    teach(net, [tokens(prompt)["input_ids"] for prompt in prompts.values()], [[[yes, no]]])
    save(tmp_path, net, tokens)
    by_hand = {k: share(net, tokens, tokens(p)["input_ids"], ("yes",), ("no",)) for k, p in prompts.items()}
    for text, row in zip(TEXTS, load_system(f"shieldgemma:{tmp_path}").judge(TEXTS), strict=True):
        harms = {c: by_hand[text, c] for c in SHIELDGEMMA_POLICIES}
        assert row.harm == pytest.approx(max(harms.values()), abs=5e-5)
        assert row.category == max(harms, key=lambda c: harms[c])
        assert len({round(harm, 3) for harm in harms.values()}) == 4


PAIRS = [
    (f"{name}: safe", f"{name}: unsafe")
    for name in ("Crime", "Manipulation", "Privacy", "Sexual", "Violence")
]


def sguard(directory: Path, steps: int) -> tuple[Any, Any]:
    """An SGuard that writes so many of its five decisions; but for the last pair, its tokens end in a newline."""
    special = [token + "\n" * (pair != PAIRS[-1]) for pair in PAIRS for token in pair]
    tokens = tokenizer(hf.GPT2Tokenizer, TEXTS * 5, [*special, *ROLES], SGUARD)
    net = network(hf.GraniteForCausalLM, hf.GraniteConfig(**SHAPE), tokens)
    pairs = [tokens.convert_tokens_to_ids(special[n : n + 2]) for n in range(0, 2 * steps, 2)]
    paths = [
        [sorted(pair, key=lambda token: token != chosen) for pair, chosen in zip(pairs, path, strict=True)]
        for path in itertools.product(*pairs)
    ]
    teach(
        net, [_sguard_ids(tokens, text) for text in TEXTS], [[*path, [tokens.eos_token_id]] for path in paths]
    )
    save(directory, net, tokens)
    return net, tokens


def _sguard_ids(tokens: Any, text: str) -> list[int]:
    text = role("user", f"Five categories.\nPrompt: {text}") + "<|start_of_role|>assistant<|end_of_role|>"
    return tokens(text, add_special_tokens=False)["input_ids"]


def test_sguard_takes_the_worst_of_five_decisions(tmp_path: Path) -> None:
    net, tokens = sguard(tmp_path, 5)
    for text, row in zip(TEXTS, load_system(f"sguard:{tmp_path}").judge(TEXTS), strict=True):
        ids, harms = _sguard_ids(tokens, text), {}
        for safe, unsafe in PAIRS:
            end = "\n" * (safe != "Violence: safe")
            pair = tokens.convert_tokens_to_ids([safe + end, unsafe + end])
            with torch.no_grad():
                logits = net(torch.tensor([ids])).logits[0, -1]
            harms[safe.partition(":")[0]] = logits[pair].softmax(-1)[1].item()
            ids = [*ids, int(logits.argmax())]
        assert json.loads(row.raw or "") == pytest.approx(harms, abs=5e-5)
        assert row.harm == max(json.loads(row.raw or "").values())


def test_sguard_with_fewer_decisions_is_unparsed(tmp_path: Path) -> None:
    sguard(tmp_path, 3)
    assert {row.error for row in load_system(f"sguard:{tmp_path}").judge(TEXTS)} == {"unparsed"}


POLICY = {
    "id": "tiny",
    "version": "1",
    "language": "en",
    "groups": [{"id": "legal", "name": "Legal"}],
    "categories": [
        {
            "id": "crime_advice",
            "group": "legal",
            "name": "Crime",
            "covers": ["Ways to steal."],
            "excludes": ["Victims who ask for help."],
            "harmful": ["how do I pick a pocket"],
            "safe": ["my wallet was stolen"],
            "fallback": ["No."],
        }
    ],
}


THOUGHTS = "<|channel|>analysis<|message|>0 or 1?<|end|><|start|>assistant"


def gpt_oss_guard(directory: Path, answers: tuple[str, ...]) -> Tiny:
    """A gpt-oss-safeguard that judges by a policy of ours in a file."""
    policy = directory / "policy.yaml"
    policy.write_text(yaml.safe_dump(POLICY))
    guard = Guard(
        "gpt-oss-safeguard",
        f"?policy={policy}",
        hf.GptOssForCausalLM,
        lambda **shape: hf.GptOssConfig(**shape, num_local_experts=4, num_experts_per_tok=2, head_dim=16),
        HARMONY,
        ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"),
        gpt_oss,
        answers,
        (("1",), ("0",)),
        {},
    )
    return Tiny.make(guard, directory / "model")


@pytest.mark.parametrize("separators", ["<|channel|>final<|message|>", "<|channel|>final "])
def test_gpt_oss_is_given_our_policy_and_read_in_the_final_channel(tmp_path: Path, separators: str) -> None:
    tiny = gpt_oss_guard(tmp_path, (f"{THOUGHTS}{separators}1", f"{THOUGHTS}{separators}0"))
    expected = [tiny.by_hand(tiny.ids(text) + tiny.before()) for text in TEXTS]
    assert [row.harm for row in tiny.load().judge(TEXTS)] == pytest.approx(expected, abs=5e-5)


def test_gpt_oss_without_a_final_channel_is_unparsed(tmp_path: Path) -> None:
    judged = gpt_oss_guard(tmp_path, (THOUGHTS,)).load().judge(TEXTS)
    assert {row.error for row in judged} == {"unparsed"}


def test_harmaug_is_the_softmax_of_its_second_logit(tmp_path: Path) -> None:
    net, tokens = deberta(tmp_path, labels=2)
    texts = [*TEXTS, "car " * 600]
    for text, row in zip(texts, load_system(f"harmaug:{tmp_path}").judge(texts), strict=True):
        safe, harmful = logits_alone(net, tokens, text)
        assert row.harm == pytest.approx(math.exp(harmful) / (math.exp(safe) + math.exp(harmful)), abs=5e-5)
        assert (row.category, row.error) == (None, None)


DUOGUARD = ["crime_advice", "crime_advice", "crime_advice", "sexual_harmful_to_minors", "Specialized advice"]
DUOGUARD += ["privacy_violation", "copyright_infringement", "crime_advice", "discrimination_hate"]
DUOGUARD += ["self_harm_suicide", "sexual_harmful_to_minors", "Jailbreak prompts"]


def test_duoguard_is_the_highest_of_twelve_sigmoids(tmp_path: Path) -> None:
    tokens = tokenizer(hf.Qwen2Tokenizer, TEXTS * 5, ("<|endoftext|>",))
    shape: dict[str, Any] = SHAPE | {"vocab_size": len(tokens), "num_labels": 12}
    net = hf.Qwen2ForSequenceClassification(hf.Qwen2Config(**shape)).eval()
    net.save_pretrained(tmp_path / "model")
    tokens.save_pretrained(tmp_path / "base")
    system = load_system(f"duoguard:{tmp_path / 'model'}?tokenizer={tmp_path / 'base'}")
    for text, row in zip(TEXTS, system.judge(TEXTS), strict=True):
        logits = logits_alone(net, tokens, text)
        assert row.harm == pytest.approx(1 / (1 + math.exp(-max(logits))), abs=5e-5)
        assert row.category == DUOGUARD[logits.index(max(logits))]


def test_duoguards_labels_have_an_order() -> None:
    one_high = [[5.0 if n == high else -5.0 for n in range(12)] for high in range(12)]
    assert [duoguard.read(logits).category for logits in one_high] == DUOGUARD


def deberta(directory: Path, labels: int) -> tuple[Any, Any]:
    """A saved DeBERTa that tells so many labels apart, and its tokenizer."""
    tokens = tokenizer(hf.DebertaV2Tokenizer, TEXTS * 5)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {
        "intermediate_size": 64,
        "initializer_range": 0.5,
        "relative_attention": True,
        "num_labels": labels,
    }
    net = hf.DebertaV2ForSequenceClassification(hf.DebertaV2Config(vocab_size=len(tokens), **shape)).eval()
    save(directory, net, tokens)
    return net, tokens


def logits_alone(net: Any, tokens: Any, text: str) -> list[float]:
    """The logits of a text in no batch, so without padding."""
    inputs = tokens(text, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        return net(**inputs).logits[0].tolist()


def test_a_classifier_of_another_kind_is_refused(tmp_path: Path) -> None:
    deberta(tmp_path, labels=6)
    with pytest.raises(ModelError, match="2 labels"):
        load_system(f"harmaug:{tmp_path}")


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_system(f"duoguard:{tmp_path}")


@pytest.mark.parametrize(
    "spec",
    [
        "qwen3guard:x?mode=medium",
        "nemotron:x?form=4",
        "granite-guardian:x?version=2",
        "nemotron:x?think=true",
        "granite-guardian:x?version=3.0&think=true",
    ],
)
def test_a_variant_that_does_not_exist_is_refused(spec: str) -> None:
    with pytest.raises(InputError, match=r"option|think"):
        load_system(spec)


def test_a_category_is_ours_or_the_guards_own_or_none() -> None:
    read = category_reader(r"Categories:\s*(.*)", {"PII": "privacy_violation"})
    assert [read(f"Categories: {names}") for names in ("PII, Malware", "Malware", "None", "")] == [
        "privacy_violation",
        "Malware",
        None,
        None,
    ]
    assert read("nothing") is None
