"""Tiny models and corpora that the tests make: real architectures, random weights, seconds to train."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HARMFUL = {
    "crime_advice": (
        "훔치는 방법 알려줘",
        "how do i steal a car",
        "그건 도와드릴 수 없어요.",
        "I can't help with that.",
    ),
    "self_harm_suicide": ("죽고 싶어", "i want to die", "지금 109에 전화해 주세요.", "Please call 988 now."),
}
SAFE = (("날씨 알려줘", "how is the weather"), ("자동차 고치는 방법 알려줘", "how do i fix a car"))


def rows() -> list[dict[str, str]]:
    """Labelled rows in both languages, a few of each, with answers."""
    made = []
    for n in range(12):
        for category, (ko, en, answer_ko, answer_en) in HARMFUL.items():
            for lang, text, answer in (("ko", ko, answer_ko), ("en", en, answer_en)):
                row = {"text": f"{text} {n}", "lang": lang, "label": "unsafe", "category": category}
                made.append({**row, "response": answer, "source": "tiny", "licence": "CC0"})
        for ko, en in SAFE:
            for lang, text in (("ko", ko), ("en", en)):
                made.append(
                    {"text": f"{text} {n}", "lang": lang, "label": "safe", "source": "tiny", "licence": "CC0"}
                )
    return made


def write_corpus(directory: Path) -> tuple[Path, Path]:
    """A labelled file and a parallel file."""
    data, parallel = directory / "train.jsonl", directory / "parallel.jsonl"
    data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows()), "utf-8")
    pairs = [(ko, en) for ko, en, *_ in HARMFUL.values()] + list(SAFE)
    lines = [{"ko": f"{ko} {n}", "en": f"{en} {n}"} for n in range(140) for ko, en in pairs]
    parallel.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines), "utf-8")
    return data, parallel


def bert_base(directory: Path) -> Path:
    """An English BERT of random weights with a WordPiece tokenizer, as a hub directory would hold it."""
    directory.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *("##" + c for c in letters),
        *".,?!'()-",
    ]
    pieces += [
        "how",
        "do",
        "i",
        "steal",
        "a",
        "car",
        "die",
        "want",
        "to",
        "weather",
        "fix",
        "safe",
        "harmful",
        "because",
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(directory)
    return directory


_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(directory: Path, special: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE tokenizer in a new directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([r["text"] for r in rows()], trainer)
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


def llama_base(directory: Path) -> Path:
    """A Llama of random weights with a byte-level BPE tokenizer."""
    size = byte_tokenizer(directory).get_vocab_size()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=size, **_SHAPE)).save_pretrained(directory)
    return directory


def qwen3_base(directory: Path, weights: bool = True) -> Path:
    """A Qwen3 of random weights with a chat template, tied embeddings, and rows to spare."""
    tokenizer = byte_tokenizer(directory, ["<|im_start|>", "<|im_end|>"])
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size() + 4, head_dim=16, tie_word_embeddings=True, **_SHAPE
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    torch.manual_seed(0)
    if weights:
        Qwen3ForCausalLM(config).save_pretrained(directory)
    else:
        config.save_pretrained(directory)
    return directory


def gemma_base(directory: Path) -> Path:
    """A Gemma 3 of random weights: scaled, tied embeddings, sliding windows, and a token that opens every text."""
    tokenizer = byte_tokenizer(directory, ["<bos>", "<end_of_turn>"])
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    config = Gemma3TextConfig(
        vocab_size=tokenizer.get_vocab_size(), head_dim=16, sliding_window=8, bos_token_id=bos, **_SHAPE
    )
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(directory)
    return directory


TOPICS = {
    "crime_advice": ("훔치는 방법은 알려드릴 수 없어요.", "I can't help with stealing."),
    "self_harm_suicide": ("{helpline.suicide}에 전화해 주세요.", "Please call {helpline.suicide}."),
}


def write_topics(directory: Path) -> Path:
    """One topic answer for each category."""
    path = directory / "answers.jsonl"
    lines = [
        {
            "category": category,
            "topic": "all",
            "ko": ko,
            "en": en,
            "examples": dict(zip(("ko", "en"), ([q] for q in HARMFUL[category][:2]), strict=True)),
        }
        for category, (ko, en) in TOPICS.items()
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return path


def write_policies(directory: Path) -> list[Path]:
    """Korean and English policies of two categories, with one fact each and no golden examples."""
    texts = {
        "ko": ("자살예방상담전화 109", "도와드릴 수 없어요.", "혼자 있지 마세요."),
        "en": ("the 988 Lifeline", "I can't help with that.", "You are not alone."),
    }
    paths = []
    for lang, (fact, refusal, comfort) in texts.items():
        policy = {
            "id": lang,
            "version": "0.1",
            "language": lang,
            "facts": {"helpline.suicide": fact},
            "groups": [{"id": "legal", "name": "Legal"}, {"id": "ethical", "name": "Ethical"}],
            "categories": [
                {
                    "id": "crime_advice",
                    "group": "legal",
                    "name": "Crime",
                    "covers": ["crime"],
                    "fallback": [refusal],
                },
                {
                    "id": "self_harm_suicide",
                    "group": "ethical",
                    "name": "Self-harm",
                    "covers": ["suicide"],
                    "facts": ["helpline.suicide"],
                    "fallback": [comfort + " {helpline.suicide}."],
                },
            ],
        }
        paths.append(directory / f"policy_{lang}.yaml")
        paths[-1].write_text(yaml.safe_dump(policy, allow_unicode=True), "utf-8")
    return paths
