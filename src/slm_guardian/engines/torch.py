"""The torch engine: any Hugging Face causal LM, or a prefix LM before export. Needs the `train` extra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slm_guardian.engines import State
from slm_guardian.layout import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TorchState:
    """Logits of the token after `ids`, whose first `prefix` see each other."""

    logits: np.ndarray
    ids: list[int]
    prefix: int


class TorchEngine:
    """Runs a model directory as the training stages write it, on the accelerator if there is one."""

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        self.model, self.layout = model.eval(), layout

    @classmethod
    def load(cls, directory: Path) -> TorchEngine:
        """Load a Hugging Face directory with its tokenizer.json. Raises ModelError."""
        from slm_guardian.train.stages import load_model

        return cls(load_model(directory), Layout.load(directory))

    def scores(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> np.ndarray:
        """Logits of `tokens` at the last two places of each sequence: (sequences, 2, tokens)."""
        result = np.zeros((len(sequences), 2, len(tokens)), np.float32)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            result[part] = self._scores([sequences[i] for i in part], tokens)
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
        return TorchState(self._next(prompt, prefix), list(prompt), prefix)

    def extend(self, state: State, token: int) -> TorchState:
        """Read one token more, after a state of this engine. Recomputes: simple, not fast."""
        assert isinstance(state, TorchState)
        return self.begin([*state.ids, token], state.prefix)

    def _scores(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> np.ndarray:
        import torch

        from slm_guardian.train.data import Row
        from slm_guardian.train.loss import hidden_states, logits

        rows = [Row(list(s), len(s) - 2) for s in sequences]
        with torch.no_grad():
            hidden = hidden_states(self.model, rows, self.layout.end)
            index = torch.arange(len(rows))[:, None]
            places = torch.tensor([[len(s) - 2, len(s) - 1] for s in sequences])
            return logits(self.model, hidden[index, places], tokens).float().cpu().numpy()

    def _next(self, ids: Sequence[int], prefix: int) -> np.ndarray:
        import torch

        from slm_guardian.train.data import Row
        from slm_guardian.train.loss import hidden_states, logits

        with torch.no_grad():
            hidden = hidden_states(self.model, [Row(list(ids), prefix)], self.layout.end)
            return logits(self.model, hidden[0, -1:]).float().cpu().numpy()[0]
