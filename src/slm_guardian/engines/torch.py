"""The torch engine: any Hugging Face causal LM, or a prefix LM before export. Needs the `train` extra."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from slm_guardian.engines import ADAPTERS, Engine, State, Tokens
from slm_guardian.engines.decoding import Stepwise
from slm_guardian.errors import ModelError
from slm_guardian.layout import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TorchState:
    """Logits of the token after `ids`, whose first `prefix` see each other."""

    logits: np.ndarray
    ids: list[int]
    prefix: int

    def scores(self, tokens: Tokens) -> np.ndarray:
        """Logits of `tokens` as the next one: (tokens,)."""
        return self.logits[tokens]


class TorchEngine(Stepwise):
    """Runs a model directory as the training stages write it, on the accelerator if there is one.

    `adapters/ID` beside the model is a LoRA for the policy ID: all of them lie side by side in memory, and
    each batch runs with its own. Without an adapter the model runs as it is.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, adapters: Sequence[str] = ()) -> None:
        self.model, self.layout, self.adapters = model.eval(), layout, tuple(adapters)
        self._adapter: str | None = None
        self._lock = Lock() if adapters else nullcontext()  # which adapter is on is a state of the model

    @classmethod
    def load(cls, directory: Path) -> TorchEngine:
        """Load a Hugging Face directory with its tokenizer.json and adapters. Raises ModelError."""
        from slm_guardian.train.stages import load_model

        model, adapters = load_model(directory), sorted(directory.glob(f"{ADAPTERS}/*/adapter_config.json"))
        for config in adapters:
            try:
                with warnings.catch_warnings(action="ignore", category=UserWarning):  # that there are several
                    model.load_adapter(str(config.parent), adapter_name=config.parent.name)
            except Exception as error:  # of transformers, PEFT, torch and safetensors: many types
                raise ModelError(
                    f"the adapter {config.parent} does not fit the model: train it on this base"
                ) from error
        return cls(model, Layout.load(directory), [config.parent.name for config in adapters])

    def adapted(self, policy: str) -> Engine:
        """This engine with the adapter of a policy, where it has one; the weights are shared."""
        if not self.adapters:
            return self
        other = copy.copy(self)
        other._adapter = policy if policy in self.adapters else None
        return other

    def scores(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> np.ndarray:
        """Logits of `tokens` at the last two places of each sequence: (sequences, 2, tokens)."""
        result = np.zeros((len(sequences), 2, len(tokens)), np.float32)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            result[part] = self._logits([sequences[i] for i in part], tokens)
        return result

    def meaning(self, sequence: Sequence[int]) -> np.ndarray:
        """Mean of the last hidden states over the query of a sequence from `Layout.judge`: (hidden,)."""
        import torch

        from slm_guardian.train.data import Row
        from slm_guardian.train.loss import hidden_states

        prefix = max(1, len(sequence) - 2)
        with torch.no_grad():
            hidden = hidden_states(self.model, [Row(list(sequence), prefix)], self.layout.end)
            return hidden[0, :prefix].mean(0).float().cpu().numpy()

    def begin(self, prompt: Sequence[int], prefix: int) -> TorchState:
        """Read a prompt whose first `prefix` tokens see each other."""
        return TorchState(self._logits([prompt], None, prefix)[0, -1], list(prompt), prefix)

    def extend(self, state: State, token: int) -> TorchState:
        """Read one token more, after a state of this engine. Recomputes: simple, not fast."""
        assert isinstance(state, TorchState)
        return self.begin([*state.ids, token], state.prefix)

    def _logits(
        self, sequences: Sequence[Sequence[int]], tokens: Sequence[int] | None, prefix: int | None = None
    ) -> np.ndarray:
        """Logits at the last two places of each sequence."""
        import torch

        from slm_guardian.train.data import Row
        from slm_guardian.train.loss import hidden_states, logits

        rows = [Row(list(s), len(s) - 2 if prefix is None else prefix) for s in sequences]
        with torch.no_grad(), self._lock:
            self._switch()
            hidden = hidden_states(self.model, rows, self.layout.end)
            index = torch.arange(len(rows))[:, None]
            places = torch.tensor([[len(s) - 2, len(s) - 1] for s in sequences])
            return logits(self.model, hidden[index, places], tokens).float().cpu().numpy()

    def _switch(self) -> None:
        model: Any = self.model
        if self._adapter:
            model.enable_adapters()
            model.set_adapter(self._adapter)
        elif self.adapters:
            model.disable_adapters()
