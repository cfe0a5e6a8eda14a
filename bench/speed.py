"""Speed of the shipped guardian beside the torch engine and the TF-IDF floor, in one run on this machine.

    python bench/speed.py [--torch-model DIR] [--tfidf FILE] [--out bench/speed.json]

Detection is timed with one thread on a query of 24 tokens, batches with two; cold start and import in fresh
processes; memory is the peak of a process that loads, judges and answers. A comparator that is not given is "-".
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

QUERY = "요즘 집에서 키우는 화분에 벌레가 자꾸 생기는데 사람한테 해롭지 않은 방법으로 없애려면 어떻게 해야 하나요?"
_COLD = """
import time; start = time.perf_counter()
from slm_guardian import Guardian
verdict = Guardian.load().check({query!r}, respond=False)
print(time.perf_counter() - start)
"""
_IMPORT = "import time; s = time.perf_counter(); import slm_guardian; print(time.perf_counter() - s)"
_MEMORY = """
from slm_guardian import Guardian
guardian = Guardian.load()
guardian.check({query!r}); guardian.respond({query!r})
# Not getrusage: its peak includes that of the process that forked this one.
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024)
"""


def milliseconds(call: Callable[[], object], runs: int = 200) -> dict[str, float]:
    """p50 and p99 of a call, after a warm-up."""
    for _ in range(10):
        call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}


def fresh(code: str, runs: int = 5) -> float:
    """Median of what `code` prints in fresh processes."""
    command = [sys.executable, "-c", code.format(query=QUERY)]
    return float(np.median([float(subprocess.check_output(command)) for _ in range(runs)]))


def query_of(layout, tokens: int) -> str:
    """The longest beginning of QUERY that has at most `tokens` tokens."""
    words = QUERY.split()
    return max(
        (" ".join(words[:i]) for i in range(1, len(words) + 1)), key=lambda t: _fits(layout, t, tokens)
    )


def _fits(layout, text: str, tokens: int) -> int:
    n = len(layout.query(text))
    return n if n <= tokens else -1


def guardian_rows(torch_model: Path | None) -> dict[str, object]:
    """Detection, batches and decoding of the shipped guardian, and of the torch engine if given."""
    from slm_guardian import Guardian

    one, two = Guardian.load(threads=1), Guardian.load(threads=2)
    text = query_of(one.engine.layout, 24)
    rows: dict[str, object] = {"tokens": len(one.engine.layout.query(text))}
    rows["onnx_ms"] = milliseconds(lambda: one.check(text, respond=False))
    batch = [f"{text} {i}" for i in range(512)]
    two.check(batch[:64], respond=False)
    start = time.perf_counter()
    two.check(batch, respond=False)
    rows["onnx_batch_per_second"] = len(batch) / (time.perf_counter() - start)
    start = time.perf_counter()
    rows["answer_ms"] = milliseconds(lambda: one.respond(text, "crime_advice"), runs=10)["p50"]
    if torch_model:
        import torch

        torch.set_num_threads(1)
        slow = Guardian.load(torch_model)
        rows["torch_ms"] = milliseconds(lambda: slow.check(text, respond=False), runs=50)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-model", type=Path, help="trained model directory before export")
    parser.add_argument("--tfidf", type=Path, help="baseline of `guardian baseline`")
    parser.add_argument("--out", type=Path, default=Path("bench/speed.json"))
    arguments = parser.parse_args()
    rows = guardian_rows(arguments.torch_model)
    if arguments.tfidf:
        from slm_guardian.evaluate.baseline import TfidfBaseline

        floor = TfidfBaseline.load(arguments.tfidf)
        rows["tfidf_ms"] = milliseconds(lambda: floor.judge([QUERY]), runs=100)
    rows |= {"import_s": fresh(_IMPORT), "cold_s": fresh(_COLD), "peak_mb": fresh(_MEMORY, runs=3)}
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
