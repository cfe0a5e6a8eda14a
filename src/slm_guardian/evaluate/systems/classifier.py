"""Guards that are sequence classifiers: one forward pass, no prompt, run here by `transformers` (extra `train`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slm_guardian.errors import GuardianError, ModelError
from slm_guardian.evaluate.systems import Judged, digest
from slm_guardian.evaluate.systems.local import hide_loading, on_device, revision_of


class ClassifierGuard:
    """A network that gives logits for a text, and a function that reads a verdict in them; a System.

    A text longer than `max_length` tokens is cut at its end, as these guards were trained.
    """

    def __init__(
        self,
        name: str,
        network: Any,
        tokenizer: Any,
        read: Callable[[list[float]], Judged],
        revision: str,
        *,
        batch_size: int = 16,
        max_length: int = 512,
    ) -> None:
        """`network` and `tokenizer` as transformers loads them: use `load`. `read` is given a row of logits."""
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        network.config.pad_token_id = (
            tokenizer.pad_token_id
        )  # a causal network's label stands before the padding
        self.name, self.revision = name, f"{revision}+{digest(max_length)}"
        self._network, self._tokenizer, self._read = network, tokenizer, read
        self._batch_size, self._max_length = batch_size, max_length

    @classmethod
    def load(
        cls,
        name: str,
        target: str,
        labels: int,
        read: Callable[[list[float]], Judged],
        tokenizer: str | None = None,
        batch_size: int = 16,
    ) -> ClassifierGuard:
        """Load a directory or hub id with its own tokenizer or that of another.

        Raises ModelError where transformers cannot load it, or where it has not the number of `labels`.
        """
        network, loaded = _load(target, tokenizer or target)
        if network.config.num_labels != labels:
            raise ModelError(f"{target} is another classifier: this guard has {labels} labels")
        return cls(
            name, on_device(network), loaded, read, revision_of(target, network), batch_size=batch_size
        )

    def judge(self, texts: list[str]) -> list[Judged]:
        """Judge a batch, in order."""
        batches = [
            texts[start : start + self._batch_size] for start in range(0, len(texts), self._batch_size)
        ]
        return [self._read(row) for batch in batches for row in self._logits(batch)]

    def _logits(self, texts: list[str]) -> list[list[float]]:
        """One row of logits a text."""
        import torch

        inputs = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        )
        with torch.no_grad():
            return self._network(**inputs.to(self._network.device)).logits.float().tolist()


def _load(target: str, tokenizer: str) -> tuple[Any, Any]:
    try:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError:
        raise GuardianError("guards run here by torch: pip install 'slm-guardian[train]'") from None
    hide_loading()
    try:
        network = AutoModelForSequenceClassification.from_pretrained(target, dtype=torch.float32)
        return network, AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError):
        raise ModelError(
            f"{target} cannot be loaded: give a directory or hub id of a sequence classifier, and accept its licence "
            "and log in where it is gated"
        ) from None
