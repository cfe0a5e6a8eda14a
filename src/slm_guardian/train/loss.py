"""The joint loss of the paper over one sequence: L = L_pred + λ·L_expl.

L_pred  cross-entropy of the two label tokens at `<|pred|>`.
L_expl  cross-entropy of the category at `<|harm|>` plus that of the response tokens after `<|expl|>`.

Source: Kwon et al. 2024, "SLM as Guardian" (EMNLP industry track). The paper leaves open how the terms are
weighted and whether they share a sequence; here they do, and λ is a setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from slm_guardian.layout import Layout
from slm_guardian.train import parallel
from slm_guardian.train.data import Row, padded, prefix_mask


def is_prefix(model: PreTrainedModel) -> bool:
    """Whether the model is a BERT-type encoder used as a prefix LM (else it is a causal LM)."""
    return model.config.model_type in {"bert", "roberta"}


def hidden_states(model: PreTrainedModel, rows: Sequence[Row], fill: int) -> Tensor:
    """Last hidden states, shape (batch, length, hidden), under the mask of the model's family."""
    ids = padded(rows, fill).to(model.device)
    if is_prefix(model):
        allowed = prefix_mask(rows, ids.shape[1])[:, None].to(model.device)
        mask = torch.zeros(allowed.shape, device=model.device).masked_fill_(~allowed, -1e4)
    else:
        mask = torch.tensor([[1] * len(r.ids) + [0] * (ids.shape[1] - len(r.ids)) for r in rows]).to(
            model.device
        )
    return model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state


def packed_states(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    """The same for a causal model, whose rows lie end to end in one sequence: no padding is computed.

    Positions start anew with each row, by which transformers keeps them from seeing each other.
    """
    lengths = [len(row.ids) for row in rows]
    ids = torch.tensor([[token for row in rows for token in row.ids]], device=model.device)
    positions = torch.cat([torch.arange(n) for n in lengths])[None].to(model.device)
    hidden = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state[0]
    return pad_sequence(hidden.split(lengths), batch_first=True)


def logits(model: PreTrainedModel, hidden: Tensor, tokens: Sequence[int] | Tensor | None = None) -> Tensor:
    """Logits of hidden states (n, hidden): of the whole vocabulary, or of `tokens` only."""
    whole: Any = model
    head = whole.cls.predictions if is_prefix(model) else whole.get_output_embeddings()
    if is_prefix(model):
        hidden, weight, bias = head.transform(hidden), head.decoder.weight, head.bias
    else:
        weight, bias = head.weight, getattr(head, "bias", None)  # PEFT's wrapper has only the weight
    if tokens is not None:
        chosen = torch.as_tensor(tokens, device=weight.device)
        weight, bias = weight[chosen], None if bias is None else bias[chosen]
    return _as_the_model_does(model.config, F.linear(hidden, weight, bias))


def _as_the_model_does(config: Any, scores: Tensor) -> Tensor:
    """What some causal models do after their head: Gemma 2 bounds the logits, HyperCLOVA X and Granite scale them."""
    config = config.get_text_config()
    if cap := getattr(config, "final_logit_softcapping", None):
        return cap * torch.tanh(scores / cap)
    if scale := getattr(config, "logits_scaling", None):
        return scores * scale if config.model_type == "hyperclovax" else scores / scale
    return scores


class JointLoss:
    """Callable loss of a batch of rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        layout: Layout,
        categories: Sequence[str],
        lam: float,
        smoothing: float,
        answer_tokens: Sequence[int] | None = None,
        soft_weight: float = 0.5,
        packed: bool = False,
    ) -> None:
        """`soft_weight` is that of the teachers, see `distilled`; `packed` rows of a causal model have no padding.

        `answer_tokens` limits the softmax of answers: a third of the vocabulary is three times as fast.
        """
        self.model, self.layout, self.lam, self.smoothing = model, layout, lam, smoothing
        self.soft_weight, self.packed = soft_weight, packed
        self.labels = [layout.safe, layout.harm]
        self.categories = [layout.piece_id(c) or 0 for c in categories]
        self.answer_tokens = answer_tokens
        self._place = {token: i for i, token in enumerate(answer_tokens or [])}

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`loss` and its parts (`pred`, `category`, `answer`), means over the rows that have them.

        With several processes each one sees its share of the rows, and the mean over them is the value of all rows.
        """
        mine = parallel.share(rows) or [Row(rows[0].ids, 0)]  # a process without rows takes part all the same
        hidden = self._hidden(mine)
        parts = {
            "pred": self._pred(hidden, mine, rows),
            "category": self._category(hidden, mine, rows),
            "answer": self._answer(hidden, mine, rows),
        }
        parts = {k: v * parallel.size() for k, v in parts.items() if v is not None}
        zero = hidden.new_zeros(())
        explained = parts.get("category", zero) + parts.get("answer", zero)
        loss = parts.get("pred", zero) + self.lam * explained
        return {"loss": loss, **{k: v.detach() for k, v in parts.items()}}

    def _hidden(self, rows: Sequence[Row]) -> Tensor:
        if self.packed:
            return packed_states(self.model, rows)
        return hidden_states(self.model, rows, self.layout.end)

    def _pred(self, hidden: Tensor, rows: Sequence[Row], everyone: Sequence[Row]) -> Tensor | None:
        total = self._weights(r for r in everyone if r.label is not None)
        chosen = [(i, r) for i, r in enumerate(rows) if r.label is not None]
        if not chosen:
            return self._nothing(hidden, total)
        states = hidden[[i for i, _ in chosen], [r.prefix for _, r in chosen]]
        targets = torch.tensor([r.label for _, r in chosen], device=hidden.device)
        scores = logits(self.model, states, self.labels).float()
        losses = F.cross_entropy(scores, targets, reduction="none", label_smoothing=self.smoothing)
        if any(r.soft is not None for _, r in chosen):
            losses = distilled(losses, scores, [r.soft for _, r in chosen], self.soft_weight)
        return (losses * self._weights(r for _, r in chosen)).sum() / total.sum()

    def _category(self, hidden: Tensor, rows: Sequence[Row], everyone: Sequence[Row]) -> Tensor | None:
        total = self._weights(r for r in everyone if r.category is not None)
        chosen = [(i, r) for i, r in enumerate(rows) if r.category is not None]
        if not chosen:
            return self._nothing(hidden, total)
        states = hidden[[i for i, _ in chosen], [r.prefix + 1 for _, r in chosen]]
        targets = torch.tensor([r.category for _, r in chosen], device=hidden.device)
        scores = logits(self.model, states, self.categories).float()
        losses = F.cross_entropy(scores, targets, reduction="none")
        return (losses * self._weights(r for _, r in chosen)).sum() / total.sum()

    def _answer(self, hidden: Tensor, rows: Sequence[Row], everyone: Sequence[Row]) -> Tensor | None:
        total = sum(len(r.ids) - 1 - r.answer for r in everyone if r.answer is not None)
        places = [
            (i, p)
            for i, r in enumerate(rows)
            if r.answer is not None
            for p in range(r.answer, len(r.ids) - 1)
        ]
        if not places:
            return self._nothing(hidden, range(total))
        states = hidden[[i for i, _ in places], [p for _, p in places]]
        tokens = [rows[i].ids[p + 1] for i, p in places]
        targets = torch.tensor([self._place.get(t, t) for t in tokens], device=hidden.device)
        scores = logits(self.model, states, self.answer_tokens).float()
        return F.cross_entropy(scores, targets) * (len(places) / total)

    def _weights(self, rows: Iterable[Row]) -> Tensor:
        return torch.tensor([row.weight for row in rows], device=self.model.device)

    def _nothing(self, hidden: Tensor, everyone: Sized) -> Tensor | None:
        """No term where no process has it; else a zero that depends on every weight: DDP waits for their gradients."""
        return logits(self.model, hidden[:1, 0], self.labels).sum() * 0 if len(everyone) else None


def distilled(losses: Tensor, scores: Tensor, soft: Sequence[float | None], weight: float) -> Tensor:
    """Mix hard losses (n,) with KL(teacher || student) of the label logits (n, 2) where a teacher gave P(harm).

    Source: HarmAug (Lee et al. 2024, 2410.01524), whose code takes the mean of both: weight 0.5.
    """
    known = torch.tensor([p is not None for p in soft], device=losses.device)
    harm = torch.tensor([0.5 if p is None else p for p in soft], device=losses.device)
    teacher = torch.stack([1 - harm, harm], -1)
    kl = F.kl_div(F.log_softmax(scores, -1), teacher, reduction="none").sum(-1)
    return torch.where(known, (1 - weight) * losses + weight * kl, losses)


@torch.no_grad()
def judge(
    model: PreTrainedModel,
    layout: Layout,
    categories: Sequence[str],
    texts: Sequence[str],
    batch_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """Label logits (n, 2) and category logits (n, categories) of texts, in order."""
    loss = JointLoss(model, layout, categories, 0.0, 0.0)
    labels, kinds = torch.zeros(len(texts), 2), torch.zeros(len(texts), len(categories))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        ids = [layout.judge(texts[i]) for i in part]
        rows = [Row(row, len(row) - 2) for row in ids]
        hidden = hidden_states(model, rows, layout.end)
        index = torch.arange(len(rows))
        prefix = torch.tensor([row.prefix for row in rows])
        labels[part] = logits(model, hidden[index, prefix], loss.labels).float().cpu()
        kinds[part] = logits(model, hidden[index, prefix + 1], loss.categories).float().cpu()
    return labels, kinds
