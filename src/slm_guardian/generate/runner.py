"""Sends requests to a backend: nothing is paid twice, and never more than the budget."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from slm_guardian.errors import DataError, GuardianError, InputError
from slm_guardian.generate.backends import Backend, Completion, Request

OVERHEAD = 64
"""Tokens that a chat template may put around a request."""
_SCHEMA = """CREATE TABLE IF NOT EXISTS completions (key TEXT PRIMARY KEY, model TEXT NOT NULL, text TEXT,
error TEXT, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL) WITHOUT ROWID"""


@dataclass(frozen=True)
class Prices:
    """Price of a million tokens, in any currency."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What these tokens cost."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass(frozen=True)
class Estimate:
    """What a run may take. `cost` is None where no prices are known."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


@dataclass
class Budget:
    """A hard limit and what is spent of it; hand the same object to all calls of `run` that share it.

    What comes out of the cache counts as well: it was paid for this job before. What was sent and reported no
    tokens (a timeout, a server without usage, a request that waits in a batch) counts as the most it can be.
    """

    max_tokens: int | None = None
    max_cost: float | None = None
    prompt_tokens: int = field(default=0, init=False)
    completion_tokens: int = field(default=0, init=False)

    def spend(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens as spent."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def allows(self, prompt_tokens: int, completion_tokens: int, prices: Prices | None) -> bool:
        """Whether these tokens fit on top of what is spent. Raises InputError for max_cost without prices."""
        prompt, completion = self.prompt_tokens + prompt_tokens, self.completion_tokens + completion_tokens
        if self.max_tokens is not None and prompt + completion > self.max_tokens:
            return False
        if self.max_cost is None:
            return True
        if prices is None:
            raise InputError("a budget in money needs prices: give the prices of prompt and answer tokens")
        return prices.cost(prompt, completion) <= self.max_cost


class Cache:
    """Completions on disk (SQLite), each committed as it comes; rows are added and never changed.

    Raises DataError where the directory cannot hold it, or holds a file that is none.
    """

    def __init__(self, directory: Path, model: str) -> None:
        self.model = model
        path = Path(directory) / "completions.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._database.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{path} cannot be used as a cache ({error}): give another directory") from None
        self.path = path

    def get(self, request: Request) -> Completion | None:
        """The completion of the same model for the same words and limits, whatever the request's id."""
        query = "SELECT text, error, prompt_tokens, completion_tokens FROM completions WHERE key = ?"
        row = self._database.execute(query, [self._key(request)]).fetchone()
        return Completion(request.custom_id, *row) if row else None

    def put(self, request: Request, completion: Completion) -> None:
        """Keep what was answered and paid: a text, a refusal, an answer that was cut off.

        Raises GuardianError where it cannot be written, so that a full disk does not go on spending.
        """
        if completion.text is None and completion.error not in ("refused", "cut off"):
            return
        row = [self._key(request), self.model, completion.text, completion.error]
        row += [completion.prompt_tokens, completion.completion_tokens]
        try:
            self._database.execute("INSERT OR IGNORE INTO completions VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise GuardianError(f"{self.path} cannot be written ({error}): make room, then go on") from None

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _key(self, request: Request) -> str:
        said = [self.model, request.system, request.user, request.max_tokens, request.temperature]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def estimate(requests: Iterable[Request], prices: Prices | None = None) -> Estimate:
    """An estimate of what requests take, by rules of thumb and not measured on any tokenizer.

    Prompt tokens: a token for 4 ASCII characters (English), one for each other character (Hangul syllables take
    0.5 to 1.5, by tokenizer). Completion tokens: the most that is allowed; answers mostly take less.
    """
    requests = list(requests)
    prompt = sum(_likely_tokens(r.system) + _likely_tokens(r.user) for r in requests)
    completion = sum(r.max_tokens for r in requests)
    return Estimate(len(requests), prompt, completion, prices.cost(prompt, completion) if prices else None)


def unpaid(model: str, requests: Sequence[Request], cache_dir: Path) -> list[Request]:
    """The requests without an answer in the cache: those that a run would send."""
    with closing(Cache(cache_dir, model)) as cache:
        return [request for request in requests if cache.get(request) is None]


def run(
    backend: Backend,
    requests: Sequence[Request],
    cache_dir: Path,
    budget: Budget | None = None,
    prices: Prices | None = None,
    progress: bool = False,
) -> Iterator[tuple[Request, Completion]]:
    """One completion for each request, from the cache or the backend, as they come.

    Requests with the same id are sent once. A run that was killed goes on where it was: only calls that were under
    way then (at most the backend's concurrency) can be paid again. Requests that could exceed the budget are not
    sent and get the error "budget"; since the true price is known only after the answer, they go out in waves, each
    as large as the worst case of its requests allows (a server that ignores max_tokens breaks this). `progress`
    shows a bar on stderr. Raises what the backend raises; what came until then is in the cache.
    """
    budget = budget or Budget()
    groups: dict[str, list[Request]] = {}
    for request in requests:
        groups.setdefault(request.custom_id, []).append(request)
    with closing(Cache(cache_dir, backend.model)) as cache, _bar(progress) as bar:
        task = bar.add_task(backend.name, total=len(requests), spent="") if bar else None
        for completion in _completions(backend, [g[0] for g in groups.values()], cache, budget, prices):
            group = groups[completion.custom_id]
            if bar and task is not None:
                bar.update(task, advance=len(group), spent=_spent(budget, prices))
            yield from ((request, completion) for request in group)


def _completions(
    backend: Backend, requests: list[Request], cache: Cache, budget: Budget, prices: Prices | None
) -> Iterator[Completion]:
    todo: dict[str, Request] = {}
    for request in requests:
        if known := cache.get(request):
            budget.spend(*_paid(request, known))
            yield known
        else:
            todo[request.custom_id] = request
    while wave := _affordable(todo.values(), budget, prices):
        sent = {request.custom_id: todo.pop(request.custom_id) for request in wave}
        for completion in backend.complete(wave):
            request = sent[completion.custom_id]
            cache.put(request, completion)
            budget.spend(*_paid(request, completion))
            yield completion
    yield from (Completion(custom_id, None, "budget") for custom_id in todo)


def _affordable(requests: Iterable[Request], budget: Budget, prices: Prices | None) -> list[Request]:
    """Requests that together stay within the budget, whatever they are answered."""
    wave, prompt, completion = [], 0, 0
    for request in requests:
        more_prompt, more_completion = _ceiling(request)
        if budget.allows(prompt + more_prompt, completion + more_completion, prices):
            wave.append(request)
            prompt, completion = prompt + more_prompt, completion + more_completion
    return wave


def _ceiling(request: Request) -> tuple[int, int]:
    """The most tokens that a request can take: no tokenizer in use makes more tokens than bytes."""
    size = len((request.system + request.user).encode("utf-8", "surrogatepass"))
    return size + OVERHEAD, request.max_tokens


def _paid(request: Request, completion: Completion) -> tuple[int, int]:
    tokens = completion.prompt_tokens, completion.completion_tokens
    free = (completion.error or "").startswith(("http ", "too long"))  # nobody charges for these
    return tokens if any(tokens) or free else _ceiling(request)


def _likely_tokens(text: str) -> int:
    latin = len(text.encode("ascii", "ignore"))
    return -(-latin // 4) + len(text) - latin


def _bar(show: bool) -> Progress | nullcontext[None]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    columns += (TextColumn("{task.fields[spent]}"), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True)) if show else nullcontext()


def _spent(budget: Budget, prices: Prices | None) -> str:
    tokens = f"{budget.prompt_tokens + budget.completion_tokens:,} tokens"
    return (
        f"{tokens}, {prices.cost(budget.prompt_tokens, budget.completion_tokens):.2f}" if prices else tokens
    )
