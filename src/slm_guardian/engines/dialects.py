"""How vLLM and llama-server are asked for log-probabilities of tokens of one's own choice.

A list of the likeliest tokens is not enough: a label outside of it would have no number. Each server has its own
way to ask for certain tokens; prompts go as token ids, so that tokenizers cannot differ.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Protocol

from slm_guardian.errors import GuardianError, ModelError
from slm_guardian.layout import Layout

_KEY = "GUARDIAN_API_KEY"
_TOP = 20  # vLLM's own limit of log-probs at a place, unless it is started with another
_MOST = 1024  # vLLM takes no longer list of allowed tokens
_LIFT = 100.0  # lifts the wanted tokens above all others, by the same amount
_LOWEST = -104.0  # log of the smallest float: llama-server leaves out what is below


class Failure(Exception):
    """Why one call gave nothing."""


class Client:
    """JSON over HTTP by the `openai` SDK, which retries 429, 5xx, timeouts and lost connections."""

    def __init__(self, base_url: str, timeout: float, retries: int) -> None:
        try:
            import openai
        except ImportError:
            raise GuardianError(
                "a served model needs the OpenAI SDK: pip install 'slm-guardian[http]'"
            ) from None
        self.root = base_url.rstrip("/").removesuffix("/v1")
        key = os.environ.get(_KEY, "").strip() or "none"
        self._client = openai.OpenAI(api_key=key, base_url=self.root, timeout=timeout, max_retries=retries)

    def get(self, path: str) -> Any:
        """The answer to GET. Raises Failure."""
        return self._call(self._client.get, path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to POST. Raises Failure."""
        return self._call(self._client.post, path, body=body)

    def _call(self, method: Any, path: str, **options: Any) -> Any:
        import httpx2
        import openai

        try:
            return method(path, cast_to=httpx2.Response, **options).json()
        except openai.APITimeoutError:
            raise Failure("the server did not answer in time") from None
        except openai.APIConnectionError:
            raise Failure(f"no connection to {self.root}: check that the server is running") from None
        except openai.APIStatusError as error:
            raise Failure(_reason(error.status_code, str(error))) from None
        except ValueError:
            raise Failure("the server's answer is no JSON: check the address") from None


def _reason(status: int, message: str) -> str:
    if status == 401:
        return f"the server refused the key: set {_KEY}"
    if status == 400 and "context" in message:
        return "longer than the server's context: start it with a longer one"
    if status == 404:
        return "the server does not know the model or the address: check both"
    return f"the server answered with status {status}"


class Dialect(Protocol):
    """One kind of server with one model. `adapter` is a LoRA that it has loaded, None its model as it is."""

    @property
    def adapters(self) -> Sequence[str]:
        """The LoRAs that the server has loaded."""
        ...

    def read(self, text: str) -> list[int] | None:
        """The server's own token ids of a text, None where it does not say."""
        ...

    def scores(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int], adapter: str | None
    ) -> list[list[float]]:
        """Log-probs of `tokens` after each prompt, up to a constant. Raises Failure."""
        ...

    def written(
        self,
        prompt: Sequence[int],
        allowed: Sequence[int],
        refused: Sequence[int],
        limit: int,
        adapter: str | None,
    ) -> list[int]:
        """What the server writes, the likeliest token each time; `<|end|>` comes last where it stopped by itself.

        Tokens come from `allowed`, unless that is empty or more than the server takes, and are not `refused`.
        Raises Failure.
        """
        ...


class Vllm:
    """vLLM: POST /v1/completions. A LoRA is a model of its own name.

    Since the summer of 2026 `logprob_token_ids` chooses the tokens whose log-probs are wanted. An older server ignores
    it and gives the likeliest ones; what is missing is then read off prompts that end with it, whose tokens always
    have their log-prob.
    """

    def __init__(self, client: Client, layout: Layout, model: str, models: Sequence[dict[str, Any]]) -> None:
        self._client, self._layout, self._model = client, layout, model
        self.adapters = [m["id"] for m in models if m.get("parent")]

    def read(self, text: str) -> list[int] | None:
        """The server's own token ids of a text, None where it does not say."""
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        return _tokens(self._client, body)

    def scores(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int], adapter: str | None
    ) -> list[list[float]]:
        """Log-probs of `tokens` after each prompt."""
        options = {"logprob_token_ids": list(tokens), "allowed_token_ids": list(tokens), "temperature": 1.0}
        choices = self._choices(prompts, adapter, max_tokens=1, logprobs=_TOP, **options)
        found = [_top(choice) for choice in choices]
        missing = [(i, t) for i, known in enumerate(found) for t in tokens if t not in known]
        for (i, token), value in zip(missing, self._ends(prompts, missing, adapter), strict=True):
            found[i][token] = value
        return [[known[token] for token in tokens] for known in found]

    def written(
        self,
        prompt: Sequence[int],
        allowed: Sequence[int],
        refused: Sequence[int],
        limit: int,
        adapter: str | None,
    ) -> list[int]:
        """What the server writes."""
        end = self._layout.end
        options: dict[str, Any] = {"stop_token_ids": [end], "temperature": 0, "repetition_penalty": 1.0}
        if 0 < len(allowed) <= _MOST:
            options["allowed_token_ids"] = [token for token in allowed if token not in refused]
        elif refused:
            options["logit_bias"] = {str(token): -100 for token in refused}
        [choice] = self._choices([prompt], adapter, max_tokens=limit, logprobs=0, **options)
        return _ended(_written(choice), choice.get("finish_reason") == "stop", end)

    def _ends(
        self, prompts: Sequence[Sequence[int]], missing: Sequence[tuple[int, int]], adapter: str | None
    ) -> list[float]:
        """Log-probs of single tokens after prompts, as those of the last token of a longer prompt."""
        if not missing:
            return []
        longer = [[*prompts[i], token] for i, token in missing]
        choices = self._choices(longer, adapter, max_tokens=1, prompt_logprobs=0)
        try:
            return [
                choice["prompt_logprobs"][-1][str(token)]["logprob"]
                for choice, (_, token) in zip(choices, missing, strict=True)
            ]
        except (KeyError, TypeError, IndexError):
            raise Failure(_NO_LOGPROBS) from None

    def _choices(self, prompts: Sequence[Sequence[int]], adapter: str | None, **options: Any) -> list[Any]:
        body = {
            "model": adapter or self._model,
            "prompt": [list(p) for p in prompts],
            "top_p": 1.0,
            **options,
        }
        extra = {
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
            "add_special_tokens": False,
        }
        choices = _items(self._client.post("/v1/completions", body | extra), "choices")
        if len(choices) != len(prompts):
            raise Failure(_NO_LOGPROBS)
        return sorted(choices, key=lambda choice: choice["index"])


class LlamaServer:
    """llama-server: POST /completion, its own form. LoRAs are numbered; their files are named by the policy.

    The wanted tokens are lifted above all others by one bias, and their probabilities read after it: that of the
    sampling chain is the only list that a request can choose. `<|pred|>` is lifted higher, to be what is sampled: the
    server lists no probabilities at a token that ends within a character, as most of Korean's do.
    """

    def __init__(self, client: Client, layout: Layout) -> None:
        self._client, self._layout = client, layout
        loaded = client.get("/lora-adapters")
        self._numbers = {_stem(item["path"]): item["id"] for item in loaded if isinstance(item, dict)}
        self.adapters = list(self._numbers)

    def read(self, text: str) -> list[int] | None:
        """The server's own token ids of a text, None where it does not say."""
        return _tokens(self._client, {"content": text, "add_special": False, "parse_special": True})

    def scores(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int], adapter: str | None
    ) -> list[list[float]]:
        """Log-probs of `tokens` after each prompt, up to a constant."""
        bias = dict.fromkeys(tokens, _LIFT) | {self._layout.pred: 1.5 * _LIFT}
        options = {"temperature": 1.0, "n_predict": 1, "n_probs": len(bias), "post_sampling_probs": True}
        answers = self._complete(prompts, bias, adapter, **options)
        places = [_items(answer, "completion_probabilities")[0] for answer in answers]
        shares = [{entry["id"]: entry["prob"] for entry in _items(place, "top_probs")} for place in places]
        return [[_log(known.get(token, 0.0)) for token in tokens] for known in shares]

    def written(
        self,
        prompt: Sequence[int],
        allowed: Sequence[int],
        refused: Sequence[int],
        limit: int,
        adapter: str | None,
    ) -> list[int]:
        """What the server writes."""
        bias = dict.fromkeys(allowed if len(allowed) <= _MOST else (), _LIFT) | dict.fromkeys(refused, -_LIFT)
        options = {"temperature": 0.0, "n_predict": limit, "return_tokens": True, "repeat_penalty": 1.0}
        [answer] = self._complete([prompt], bias, adapter, **options)
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(tokens, list):
            raise Failure(_NO_LOGPROBS)
        return _ended(tokens, answer.get("stop_type") == "eos", self._layout.end)

    def _complete(
        self, prompts: Sequence[Sequence[int]], bias: dict[int, float], adapter: str | None, **options: Any
    ) -> list[Any]:
        lora = [{"id": self._numbers[adapter], "scale": 1.0}] if adapter else []
        body = {
            "prompt": [list(prompt) for prompt in prompts],
            "samplers": ["temperature"],
            "logit_bias": [[token, value] for token, value in bias.items()],
            "cache_prompt": False,  # with it a verdict would depend, a little, on the queries before
            "lora": lora,
        }
        answer = self._client.post("/completion", body | options)
        found = answer if isinstance(answer, list) else [answer]
        if len(found) != len(prompts) or not all(isinstance(one, dict) for one in found):
            raise Failure(_NO_LOGPROBS)
        return sorted(found, key=lambda one: one.get("index", 0))


_NO_LOGPROBS = "the server gives no log-probs of tokens: serve the model with vLLM or llama-server"


def connect(client: Client, layout: Layout, model: str | None) -> Dialect:
    """The dialect of a server that runs `model`, by default the only one. Raises GuardianError or ModelError."""
    try:
        models = _items(client.get("/v1/models"), "data")
        names = [m["id"] for m in models]
        if model is not None and model not in names:
            raise ModelError(f"the server has no model '{model}': it has {', '.join(names)}")
        if models[0].get("owned_by") == "llamacpp":
            return LlamaServer(client, layout)
        return Vllm(client, layout, model or names[0], models)
    except Failure as failure:
        raise GuardianError(str(failure)) from None


def _items(answer: Any, key: str) -> list[Any]:
    """The list under a key of an answer. Raises Failure where there is none or nothing in it."""
    items = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(items, list) or not items:
        raise Failure(_NO_LOGPROBS)
    return items


def _top(choice: Any) -> dict[int, float]:
    """Log-probs at the first place of an OpenAI completion whose tokens are written `token_id:17`."""
    try:
        top = choice["logprobs"]["top_logprobs"][0]
        return {_id(name): float(value) for name, value in top.items()}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise Failure(_NO_LOGPROBS) from None


def _written(choice: Any) -> list[int]:
    try:
        return [_id(token) for token in choice["logprobs"]["tokens"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Failure(_NO_LOGPROBS) from None


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def _ended(tokens: list[int], stopped: bool, end: int) -> list[int]:
    """Tokens with `end` last where the server stopped, whether it shows that token or not."""
    return [*tokens, end] if stopped and tokens[-1:] != [end] else tokens


def _tokens(client: Client, body: dict[str, Any]) -> list[int] | None:
    try:
        return list(_items(client.post("/tokenize", body), "tokens"))
    except Failure:
        return None


def _stem(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2].removesuffix(".gguf")


def _log(share: float) -> float:
    return math.log(share) if share > 0 else _LOWEST
