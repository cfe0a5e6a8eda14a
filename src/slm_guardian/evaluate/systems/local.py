"""Guards run in this process by `transformers` (extra `train`), on the accelerator if there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slm_guardian.errors import GuardianError, ModelError
from slm_guardian.evaluate.systems import hash_files
from slm_guardian.evaluate.systems.generative import TOO_LONG, Prompt
from slm_guardian.evaluate.systems.reading import Step

# Log-probs kept a step: the labels are among them wherever they could matter. Fewer in long answers, which would not
# fit into memory; never fewer than servers give.
_MOST, _FEWEST, _ALL = 1000, 20, 40_000


class LocalRunner:
    """A causal LM that continues prompts greedily, in batches of alike lengths. A `Runner`."""

    def __init__(self, network: Any, tokenizer: Any, revision: str, batch_size: int = 8) -> None:
        """`network` and `tokenizer` as transformers loads them: use `load`."""
        from transformers import GenerationConfig

        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        self.revision, self.batch_size, self.parameters = revision, batch_size, network.num_parameters()
        self._network, self._tokenizer = network, tokenizer
        ends = network.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        # Greedy, by the logits alone: the model's own defaults may sample or punish repetition.
        network.generation_config = GenerationConfig(eos_token_id=ends)
        self._room = getattr(network.config.get_text_config(), "max_position_embeddings", None) or 10**9
        self._reference = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._texts: dict[int, str] = {}

    @classmethod
    def load(cls, target: str, batch_size: int = 8, adapter: str | None = None) -> LocalRunner:
        """Load a directory or hub id, with a PEFT adapter on top where one is given.

        Raises ModelError where transformers cannot load it.
        """
        network, tokenizer = load_model(target)
        revision = revision_of(target, network)
        if adapter:
            network, applied = _adapted(network, adapter)
            revision += f"+{applied}"
        return cls(on_device(network), tokenizer, revision, batch_size)

    def run(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[Step] | str]:
        """The steps for each prompt, without its end token; "too long" where one leaves no room in the context."""
        ids = [self._ids(prompt) for prompt in prompts]
        found: list[list[Step] | str] = [TOO_LONG] * len(prompts)
        fitting = [i for i in range(len(ids)) if len(ids[i]) + max_new_tokens <= self._room]
        fitting.sort(key=lambda i: len(ids[i]))
        for start in range(0, len(fitting), self.batch_size):
            batch = fitting[start : start + self.batch_size]
            for i, steps in zip(batch, self._generate([ids[i] for i in batch], max_new_tokens), strict=True):
                found[i] = steps
        return found

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt.content, str):
            return self._tokenizer(prompt.content)["input_ids"]
        return self._tokenizer(self._rendered(prompt.content, prompt.template), add_special_tokens=False)[
            "input_ids"
        ]

    def _rendered(self, messages: list[dict[str, Any]], template: dict[str, Any]) -> str:
        """The chat in the model's own template; some templates skip a text that is not a list of parts.

        Raises ModelError where the template refuses the messages or leaves the user's text out.
        """
        from jinja2 import TemplateError

        said = [
            m["content"].strip()
            for m in messages
            if m["role"] == "user" and isinstance(m.get("content"), str)
        ]
        parts = [
            m | {"content": [{"type": "text", "text": m["content"]}]} if "content" in m else m
            for m in messages
        ]
        for form in (messages, parts):
            try:
                text = self._tokenizer.apply_chat_template(
                    form, tokenize=False, add_generation_prompt=True, **template
                )
            except (ValueError, TypeError, TemplateError):
                continue
            if all(part in text for part in said):
                return text
        raise ModelError(
            "the model's chat template does not take these messages: is it the model of this guard?"
        )

    def _generate(self, batch: list[list[int]], max_new_tokens: int) -> Iterator[list[Step]]:
        import torch

        places: list[
            tuple[Any, Any]
        ] = []  # values and ids of the candidates of each step, (batch, candidates)
        count = max(_FEWEST, min(_MOST, _ALL // max_new_tokens))

        def record(_: Any, logits: Any) -> Any:
            top = logits.float().log_softmax(-1).topk(min(count, logits.shape[-1]))
            places.append((top.values.cpu(), top.indices.cpu()))
            return logits

        padded = self._tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt")
        with torch.no_grad():
            output = self._network.generate(
                **padded.to(self._network.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                logits_processor=[record],
            )
        for row, tokens in enumerate(output[:, padded["input_ids"].shape[1] :].tolist()):
            length = next((n for n, token in enumerate(tokens) if token in self._ends), len(tokens))
            yield [
                self._step(token, ids[row].tolist(), values[row].tolist())
                for token, (values, ids) in zip(tokens[:length], places, strict=False)
            ]

    def _step(self, token: int, ids: list[int], logprobs: list[float]) -> Step:
        return Step.of(self._text(token), zip(map(self._text, ids), logprobs, strict=True))

    def _text(self, token: int) -> str:
        """The text of a token inside a sentence: alone it would lose the space before it in some tokenizers."""
        if token not in self._texts:
            before = self._decode(self._reference)
            self._texts[token] = self._decode([*self._reference, token])[len(before) :]
        return self._texts[token]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def load_model(target: str) -> tuple[Any, Any]:
    """Network (of the class that its own config names) and tokenizer of a directory or hub id.

    Raises ModelError where transformers cannot load it.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError:
        raise GuardianError("guards run here by torch: pip install 'slm-guardian[train]'") from None
    hide_loading()
    try:
        config = transformers.AutoConfig.from_pretrained(target)
        network_class = getattr(transformers, (config.architectures or ["AutoModelForCausalLM"])[0])
        network = network_class.from_pretrained(target, dtype="auto")
        tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    except (AttributeError, OSError, ValueError):
        raise ModelError(
            f"{target} cannot be loaded: give a directory or hub id that transformers knows, accept its licence and "
            "log in where it is gated, or add ?base_url= of the server that runs it"
        ) from None
    return network, tokenizer


def hide_loading() -> None:
    """No progress bar of transformers' reading of weights; the hub's downloads, which take long, keep theirs."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    enable_progress_bars()


def on_device(network: Any) -> Any:
    """The network, ready for inference, on the accelerator if there is one."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return network.eval().to(device)


def revision_of(target: str, network: Any) -> str:
    """The hub's commit, or a hash of a directory's files."""
    if Path(target).is_dir():
        return hash_files(target)
    return str(getattr(network.config, "_commit_hash", None) or target)


def _adapted(network: Any, adapter: str) -> tuple[Any, str]:
    """The network with a PEFT adapter merged into it, and the adapter's revision."""
    try:
        from huggingface_hub import snapshot_download
        from peft import PeftModel
    except ImportError:
        raise GuardianError("this guard is a PEFT adapter: pip install 'slm-guardian[train]'") from None
    directory = Path(adapter)
    try:
        directory = directory if directory.is_dir() else Path(snapshot_download(adapter))
        merged: Any = PeftModel.from_pretrained(network, str(directory))
    except (OSError, ValueError):
        raise ModelError(f"{adapter} is no PEFT adapter that fits the model: check its name") from None
    revision = hash_files(directory) if Path(adapter).is_dir() else directory.name
    return merged.merge_and_unload(), revision
