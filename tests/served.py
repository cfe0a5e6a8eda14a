"""A real HTTP server on loopback that runs a model through transformers and speaks as vLLM or llama-server does.

Field names, statuses and limits were read in the sources of 2026: vLLM's vllm/entrypoints/openai/completion and
llama.cpp's tools/server, as llama-cpp-python 0.3.36 holds it.

with ModelServer(directory, "vllm") as server:
    Guardian.load(f"{server.url}?tokenizer={directory}")
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_LOGPROBS = 20
COMPLETIONS = ("/v1/completions", "/completion")


class Refused(Exception):
    """A status and a body that the server answers with instead."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class ModelServer:
    """`kind` is vllm, old-vllm (which ignores logprob_token_ids), llamacpp or mute (no log-probs).

    `adapters` are LoRA directories by name. `script` gives the status of the n-th completion call: another than 200
    is sent instead of an answer. `gate` is called before a completion, and may wait.
    """

    def __init__(self, directory: Path, kind: str, adapters: dict[str, Path] | None = None) -> None:
        self.kind, self.name = kind, directory.name
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.adapters = list(adapters or {})
        for name, path in (adapters or {}).items():
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                self.model.load_adapter(str(path), adapter_name=name)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.script: Callable[[int], int] = lambda _: 200
        self.gate: Callable[[], object] = lambda: None
        self.closed = False
        self._lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.root = f"http://127.0.0.1:{self._server.server_port}"
        self.url = self.root + "/v1"

    def __enter__(self) -> ModelServer:
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving, as a server that crashed: open connections get no answer, either."""
        self.closed = True
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        """What is sent for a call; Refused for an error."""
        with self._lock:
            self.calls.append((path, body))
            number = sum(p in COMPLETIONS for p, _ in self.calls)
        if path in COMPLETIONS:
            self.gate()
            if (status := self.script(number)) != 200:
                raise Refused(status, {"error": {"message": "no", "code": status}})
        with self._lock, torch.no_grad():
            return self._route(path, body)

    def _route(self, path: str, body: dict[str, Any]) -> Any:
        routes: dict[str, Any] = {"/v1/models": self._models}
        if self.kind == "llamacpp":
            routes |= {
                "/completion": self._llama,
                "/tokenize": self._llama_tokens,
                "/lora-adapters": self._loras,
            }
        else:
            routes |= {"/v1/completions": self._vllm, "/tokenize": self._vllm_tokens}
        if path not in routes:
            raise Refused(404, {"detail": "Not Found"})
        return routes[path](body)

    def _models(self, _: dict[str, Any]) -> dict[str, Any]:
        if self.kind == "llamacpp":
            meta = {"n_vocab": self.model.config.vocab_size, "n_ctx": 512}
            models = [{"id": self.name, "object": "model", "owned_by": "llamacpp", "meta": meta}]
        else:
            models = [{"id": self.name, "object": "model", "owned_by": "vllm", "parent": None}]
            models += [
                {"id": name, "object": "model", "owned_by": "vllm", "parent": self.name}
                for name in self.adapters
            ]
        return {"object": "list", "data": models}

    # vLLM

    def _vllm_tokens(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"]).input_ids
        return {"count": len(ids), "max_model_len": 512, "tokens": ids}

    def _vllm(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["model"] not in (self.name, *self.adapters):
            message = f"The model `{body['model']}` does not exist."
            raise Refused(404, {"error": {"message": message, "type": "NotFoundError", "code": 404}})
        if (body.get("logprobs") or 0) > MAX_LOGPROBS or len(body.get("allowed_token_ids") or []) > 1024:
            raise Refused(400, {"error": {"message": "too many", "type": "BadRequestError", "code": 400}})
        self._adapt(body["model"] if body["model"] in self.adapters else None)
        choices = [self._choice(i, prompt, body) for i, prompt in enumerate(body["prompt"])]
        return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": choices[::-1]}

    def _choice(self, index: int, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        if len(prompt) + body["max_tokens"] > 512:
            message = "This model's maximum context length is 512 tokens."
            raise Refused(400, {"error": {"message": message, "type": "BadRequestError", "code": 400}})
        stops, greedy = body.get("stop_token_ids") or [], body.get("temperature") == 0
        bias = {int(token): value for token, value in (body.get("logit_bias") or {}).items()}
        bias |= dict.fromkeys(body.get("allowed_token_ids") or [], 1e4)
        written, logprobs = self._generate(prompt, body["max_tokens"], greedy, bias, stops)
        choice: dict[str, Any] = {"index": index, "text": "", "logprobs": None}
        choice["finish_reason"] = "stop" if written[-1] in stops else "length"
        if body.get("logprobs") is not None and self.kind != "mute":
            wanted = body.get("logprob_token_ids") if self.kind == "vllm" else None
            tops = [
                _chosen(row, token, wanted, body["logprobs"])
                for row, token in zip(logprobs, written, strict=True)
            ]
            choice["logprobs"] = {
                "tokens": [f"token_id:{token}" for token in written],
                "top_logprobs": [{f"token_id:{i}": v for i, v in top.items()} for top in tops],
            }
        if body.get("prompt_logprobs") is not None:
            rows = self._logits(prompt).log_softmax(-1)
            choice["prompt_logprobs"] = [None] + [
                {str(token): {"logprob": rows[i, token].item(), "rank": 1, "decoded_token": ""}}
                for i, token in enumerate(prompt[1:])
            ]
        return choice

    # llama-server

    def _llama_tokens(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": self.tokenizer(body["content"], add_special_tokens=body["add_special"]).input_ids}

    def _loras(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"id": i, "path": f"loras/{name}.gguf", "scale": 0.0} for i, name in enumerate(self.adapters)]

    def _llama(self, body: dict[str, Any]) -> Any:
        self._adapt(self.adapters[body["lora"][0]["id"]] if body["lora"] else None)
        found = [self._completion(i, prompt, body) for i, prompt in enumerate(body["prompt"])]
        return found[0] if len(found) == 1 else found[::-1]

    def _completion(self, index: int, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        if len(prompt) > 512:
            error = {"code": 400, "message": "the request exceeds the available context size", "n_ctx": 512}
            raise Refused(400, {"error": error | {"type": "exceed_context_size_error"}})
        bias, end = dict(body["logit_bias"]), self.tokenizer.eos_token_id
        written, rows = self._generate(prompt, body["n_predict"], body["temperature"] == 0, bias, [end])
        answer: dict[str, Any] = {
            "index": index,
            "content": "",
            "tokens": written if body.get("return_tokens") else [],
            "stop": True,
            "stop_type": "eos" if written[-1] == end else "limit",
        }
        places = [
            self._place(row, token, bias, body)
            for n, (token, row) in enumerate(zip(written, rows, strict=True))
            # A token that ends within a character is left out.
            if body.get("n_probs") and not self.tokenizer.decode(written[: n + 1]).endswith("\ufffd")
        ]
        return answer | ({"completion_probabilities": places} if places else {})

    def _place(
        self, row: torch.Tensor, token: int, bias: dict[int, float], body: dict[str, Any]
    ) -> dict[str, Any]:
        """Log-probs of the model, or probabilities after the sampling chain, whose zeros are left out."""
        sampled = body.get("post_sampling_probs", False)
        values = _biased(row, bias).softmax(-1) if sampled else row
        key = "prob" if sampled else "logprob"
        best = values.topk(body["n_probs"])
        top = [
            {"id": i, "token": "", "bytes": [], key: value}
            for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            if value or not sampled
        ]
        return {"id": token, "token": "", "bytes": [], key: values[token].item(), f"top_{key}s": top}

    # The model

    def _adapt(self, name: str | None) -> None:
        if name:
            self.model.enable_adapters()
            self.model.set_adapter(name)
        elif self.adapters:
            self.model.disable_adapters()

    def _logits(self, ids: Sequence[int]) -> torch.Tensor:
        return self.model(torch.tensor([list(ids)])).logits[0].float()

    def _generate(
        self,
        prompt: Sequence[int],
        limit: int,
        greedy: bool,
        bias: dict[int, float],
        stops: Sequence[int],
    ) -> tuple[list[int], list[torch.Tensor]]:
        """Tokens that the model writes under a bias, and its raw log-probs at their places."""
        written: list[int] = []
        rows: list[torch.Tensor] = []
        for _ in range(limit):
            row = self._logits([*prompt, *written])[-1].log_softmax(-1)
            shifted = _biased(row, bias)
            token = int(shifted.argmax() if greedy else shifted.softmax(-1).multinomial(1))
            written.append(token)
            rows.append(row)
            if token in stops:
                break
        return written, rows


def _biased(row: torch.Tensor, bias: dict[int, float]) -> torch.Tensor:
    shifted = row.clone()
    shifted[list(bias)] += torch.tensor(list(bias.values()))
    return shifted


def _chosen(row: torch.Tensor, token: int, wanted: list[int] | None, top: int) -> dict[int, float]:
    """The sampled token and the wanted or likeliest ones, as vLLM lists them."""
    others = wanted if wanted is not None else row.topk(min(top, len(row))).indices.tolist()
    return {i: max(row[i].item(), -9999.0) for i in [token, *others]}


def _handler(server: ModelServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send({})

        def do_POST(self) -> None:
            self._send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _send(self, body: dict[str, Any]) -> None:
            if server.closed:
                self.close_connection = True
                return
            try:
                status, answer = 200, server.answer(self.path, body)
            except Refused as refused:
                status, answer = refused.status, refused.body
            content = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
            }.items():
                self.send_header(name, value)
            if status != 200:
                self.send_header("x-should-retry", "false")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    return Handler
