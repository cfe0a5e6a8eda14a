"""A causal LM on this machine, through `transformers` (extra `train`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from slm_guardian.errors import GuardianError, ModelError
from slm_guardian.generate.backends import Completion, Request


class LocalBackend:
    """Any causal LM of the Hugging Face hub or a directory, in batches, on the accelerator if there is one.

    A chat is put into the model's own template; a model without one gets the plain text. Raises ModelError where
    `model` cannot be loaded.
    """

    name = "transformers"

    def __init__(self, model: str, batch_size: int = 8) -> None:
        self.model, self.batch_size = model, batch_size
        self._tokenizer, self._network = _load(model)

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions batch by batch; the error "too long" for a prompt that leaves no room in the context."""
        prompts = [(request, self._prompt(request)) for request in requests]
        # Alike limits and lengths together: one call of the model has one limit and pads to its longest prompt.
        prompts.sort(key=lambda item: (item[0].max_tokens, item[0].temperature, len(item[1])))
        for _, group in groupby(prompts, key=lambda item: (item[0].max_tokens, item[0].temperature)):
            items = list(group)
            for start in range(0, len(items), self.batch_size):
                yield from self._batch(items[start : start + self.batch_size])

    def _prompt(self, request: Request) -> list[int]:
        if self._tokenizer.chat_template is None:
            text = "\n\n".join(message["content"] for message in request.messages) + "\n"
            return self._tokenizer(text)["input_ids"]
        text = self._tokenizer.apply_chat_template(
            request.messages, tokenize=False, add_generation_prompt=True
        )
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _batch(self, items: Sequence[tuple[Request, list[int]]]) -> Iterator[Completion]:
        context = getattr(self._network.config, "max_position_embeddings", None) or 1 << 20
        fitting = [(request, ids) for request, ids in items if len(ids) < context]
        for request, ids in items:
            if len(ids) >= context:
                yield Completion(request.custom_id, None, "too long")
        if fitting:
            longest = max(len(ids) for _, ids in fitting)
            room = min(fitting[0][0].max_tokens, context - longest)
            answers = self._generate([ids for _, ids in fitting], room, fitting[0][0].temperature)
            for (request, ids), answer in zip(fitting, answers, strict=True):
                yield self._completion(request, len(ids), answer)

    def _generate(self, prompts: list[list[int]], limit: int, temperature: float) -> list[list[int]]:
        import torch

        sampling = (
            {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        )
        batch = self._tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        with torch.no_grad():
            output = self._network.generate(
                **batch.to(self._network.device),
                max_new_tokens=limit,
                pad_token_id=self._tokenizer.pad_token_id,
                **sampling,
            )
        return output[:, batch["input_ids"].shape[1] :].tolist()

    def _completion(self, request: Request, prompt_tokens: int, answer: list[int]) -> Completion:
        """The answer up to the model's end token; without one it was cut off."""
        ends = self._network.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        length = next((i for i, token in enumerate(answer) if token in ends), len(answer))
        text = self._tokenizer.decode(answer[:length], skip_special_tokens=True)
        error = "cut off" if length == len(answer) else None
        if not text.strip():
            return Completion(request.custom_id, None, error or "empty", prompt_tokens, length)
        return Completion(request.custom_id, text, error, prompt_tokens, length)


def _load(model: str) -> tuple[Any, Any]:
    """Tokenizer and network, ready to generate."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise GuardianError(
            "the backend 'transformers' needs torch: pip install 'slm-guardian[train]'"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        network: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    except (OSError, ValueError) as error:
        raise ModelError(f"{model} is no causal LM that transformers can load: {error}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return tokenizer, network.eval().to(device)
