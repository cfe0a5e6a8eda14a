"""A job: all rows of large files judged, part by part, in this process or by Ray Data on a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm_guardian.guardian import Guardian, Verdict
from slm_guardian.scale import cluster, parts
from slm_guardian.scale.parts import Part

_BATCH = 256


@dataclass(frozen=True)
class Job:
    """How to judge, and the directory of the verdicts. Workers get it whole: plain values only."""

    out: str
    model: str | None = None
    policy: str | None = None
    threshold: float | str | None = None
    respond: bool = True
    force: bool = False


class Judge:
    """Judges parts with a guardian of its own. Each Ray worker holds one."""

    def __init__(self, job: Job, threads: int | None = None) -> None:
        self.job = job
        self.guardian = Guardian.load(job.model, job.policy, job.threshold, threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, int]:
        """Judge the part that a row of Ray's data set describes; how many rows got which label."""
        part = Part(**row)
        verdicts = list(self._verdicts(parts.read(part)))
        parts.write(
            part, [_out(part.first + i, *pair) for i, pair in enumerate(verdicts)], Path(self.job.out)
        )
        found = Counter("error" if verdict.error else verdict.label for _, verdict in verdicts)
        return {"rows": len(verdicts)} | {key: found[key] for key in ("safe", "unsafe", "error")}

    def _verdicts(self, rows: Sequence[Any]) -> Iterator[tuple[Any, Verdict]]:
        """Rows with their verdicts; a row without a text fails closed like any text that cannot be judged."""
        texts = [row.get("text", row.get("prompt")) if isinstance(row, dict) else None for row in rows]
        for start in range(0, len(rows), _BATCH):
            batch = texts[start : start + _BATCH]
            judged = self.guardian.check(batch, self.job.respond, self.job.force)  # type: ignore[arg-type]
            yield from zip(rows[start : start + _BATCH], judged, strict=True)


def _out(number: int, row: Any, verdict: Verdict) -> dict[str, Any]:
    """What is written for a row: its number over all input files, its id if it has one, the verdict."""
    known = row.get("id") if isinstance(row, dict) else None
    text = verdict.text if isinstance(verdict.text, str) else None
    identity = {"row": number, "id": None if known is None else str(known)}
    return identity | verdict.to_dict() | {"text": text, "error": verdict.error}


def todo(job: Job, all_parts: Sequence[Part]) -> list[Part]:
    """The parts that are not judged yet."""
    return [part for part in all_parts if not parts.target(part, Path(job.out)).exists()]


def settings(job: Job, files: Sequence[Path], part_rows: int) -> dict[str, Any]:
    """What makes an output directory this job's: the input, and all that changes a verdict.

    Raises PolicyError and ModelError, before anything is written.
    """
    guardian = Judge(job, 1).guardian
    inputs = [[str(path), path.stat().st_size] for path in files]
    chosen = {key: value for key, value in asdict(job).items() if key != "out"}
    return chosen | {
        "revision": guardian.revision,
        "part_rows": part_rows,
        "inputs": inputs,
    }


def run(
    job: Job,
    todo: Sequence[Part],
    done: Callable[[dict[str, int]], None],
    engine: str = "local",
    workers: int | None = None,
) -> None:
    """Judge parts, in this process with all its cores or by `ray`; `done` gets the counts of each.

    Raises GuardianError where Ray is missing or fails.
    """
    if engine == "ray":
        return _run_ray(job, todo, done, workers)
    judge = Judge(job)
    for part in todo:
        done(judge(asdict(part)))


def _run_ray(
    job: Job, todo: Sequence[Part], done: Callable[[dict[str, int]], None], workers: int | None
) -> None:
    """Judge parts by Ray Data, on the cluster of RAY_ADDRESS or on this machine's cores.

    Inputs and `job.out` must be seen by all workers under the same paths. A worker that dies is started anew, and its
    part judged again.
    """
    ray = cluster.connect()
    workers = workers or cluster.cores(ray)
    rows = ray.data.from_items([asdict(part) for part in todo], override_num_blocks=len(todo))
    # One core a worker: it runs the model in one thread, and so scales with the cores without a lock between them.
    pool = ray.data.ActorPoolStrategy(size=min(workers, len(todo)))
    judged = rows.map(Judge, fn_constructor_args=(job, 1), compute=pool, num_cpus=1)
    try:
        for counts in judged.iter_rows():
            done(counts)
    except ray.exceptions.RayError as error:
        raise cluster.failure(error) from error
