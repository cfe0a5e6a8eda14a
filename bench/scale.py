"""Large files by Ray against the same engine without it, with a worker killed half-way.

    python bench/scale.py [MODEL] [--rows 1000000] [--baseline 100000] [--workers 2] [--respond]

The queries are those of --data over and over, each with its number as id. First --baseline rows are judged in this
process with all cores, then all rows by Ray Data; when half of them are done, one worker gets SIGKILL. Printed: rows a
second of both, their ratio, and whether each row came out exactly once with the same verdict as without Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rich.progress import Progress

from slm_guardian.example import expand, read_examples, write_jsonl
from slm_guardian.scale import cluster, parts
from slm_guardian.scale.job import Job, run

PART_ROWS = 5000


def main() -> None:
    """Print the two rates and the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--data", nargs="+", default=["data/dev.jsonl.gz", "corpus/topics.dev.jsonl"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--baseline", type=int, default=100_000)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--respond", action="store_true", help="write answers, too")
    args = parser.parse_args()
    texts = [row.text for path in expand(args.data) for row in read_examples(path)[0]]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = root / "queries.jsonl"
        numbered = enumerate(islice(cycle(texts), args.rows))
        write_jsonl(source, ({"id": str(i), "text": text} for i, text in numbered))
        planned = parts.plan([source], PART_ROWS)
        first = planned[: max(1, args.baseline // PART_ROWS)]
        alone = judged(Job(str(root / "alone"), args.model, respond=args.respond), first, None)
        cluster.connect()
        ray = judged(Job(str(root / "ray"), args.model, respond=args.respond), planned, args.workers)
        print(f"{len(planned):,} parts of {args.rows:,} rows; a worker was killed half-way")
        print(f"without Ray: {alone:,.0f} rows/s   with Ray: {ray:,.0f} rows/s   ratio {ray / alone:.2f}")
        check(root, args.rows)


def judged(job: Job, todo: list[parts.Part], workers: int | None) -> float:
    """Rows a second, start of the workers and of a killed one's successor included."""
    engine = "ray" if job.out.endswith("ray") else "local"
    Path(job.out).mkdir()
    total = sum(part.count for part in todo)
    killed = engine == "local"
    with Progress(transient=True) as progress:
        bar = progress.add_task(engine, total=total)

        def done(counts: dict[str, int]) -> None:
            nonlocal killed
            progress.advance(bar, counts["rows"])
            if not killed and progress.tasks[0].completed >= total / 2:
                killed = True
                os.kill(worker(), signal.SIGKILL)

        start = time.perf_counter()
        run(job, todo, done, engine, workers)
        return total / (time.perf_counter() - start)


def worker() -> int:
    """The process of one of Ray's workers that judge."""
    names = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return int(next(pid for pid, name in names.items() if name.startswith(b"ray::MapWorker")))


def check(root: Path, rows: int) -> None:
    """Say whether each id came out once, and whether the verdicts are those of the run without Ray."""
    seen = bytearray(rows)
    labels: dict[int, Any] = {}
    for row in written(root / "ray"):
        seen[int(row["id"])] += 1
        labels[int(row["id"])] = (row["label"], row["harm"])
    once = sum(count == 1 for count in seen)
    same = [labels[int(row["id"])] == (row["label"], row["harm"]) for row in written(root / "alone")]
    print(f"{once:,} of {rows:,} rows exactly once; {sum(same):,} of {len(same):,} verdicts equal")


def written(out: Path) -> Iterator[dict[str, Any]]:
    """The rows of an output directory."""
    for path in sorted(out.glob("part-*.jsonl")):
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


if __name__ == "__main__":
    main()
