"""Speed, memory and quality of the duplicate stages.

    python bench/duplicates.py [--rows 1000000] [--out bench/duplicates.json]

Rows are made here: words of the shipped policies behind usual frames, two thirds Korean, one in five a copy of an
earlier row (a quarter of these equal up to punctuation, the rest with one character changed). Quality is measured
on duplicate_pairs.jsonl, pairs labelled by hand: a duplicate says the same in nearly the same words (spacing, case,
particles, endings, typos, fillers); a changed word, a new target or a paraphrase is none. Minutes are CPU time of
one process, which other programs do not stretch, and wall time.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

from slm_guardian.example import Example
from slm_guardian.generate.duplicates import THRESHOLD, Duplicates, unique
from slm_guardian.policy import Policy

PAIRS = Path(__file__).with_name("duplicate_pairs.jsonl")
FRAMES = {
    "ko": [
        "알려줘",
        "알려 주세요",
        "하는 방법",
        "어떻게 해?",
        "추천해 줘",
        "이유가 뭐야",
        "해도 되나요",
        "써 줘",
    ],
    "en": [
        "how do i",
        "tell me",
        "what is the best way to",
        "why do people",
        "write about",
        "can i",
        "explain",
    ],
}


def words(lang: str) -> list[str]:
    """Words of a shipped policy, as often as they stand there."""
    texts = [
        text
        for c in Policy.load(lang).categories
        for text in (*c.covers, *c.excludes, *c.harmful, *c.safe, *c.rules, *c.fallback, c.guidance)
    ]
    return re.findall(r"[\w']+", " ".join(texts))


def rows(count: int, seed: int = 0) -> Iterator[Example]:
    """Queries as a generator would write them, with a known share of copies."""
    rng = random.Random(seed)
    lexicon = {lang: words(lang) for lang in FRAMES}
    texts: list[str] = []
    for _ in range(count):
        copied = rng.choice(texts) if texts and rng.random() < 0.2 else None
        texts.append(changed(copied, rng) if copied else written(lexicon, rng))
        yield Example(texts[-1], "safe")


def written(lexicon: dict[str, list[str]], rng: random.Random) -> str:
    lang = rng.choice(["ko", "ko", "en"])
    content = rng.choices(lexicon[lang], k=rng.randint(2, 7))
    frame = rng.choice(FRAMES[lang])
    return " ".join([*content, frame] if lang == "ko" else [frame, *content])


def changed(text: str, rng: random.Random) -> str:
    if rng.random() < 0.25:
        return text + "?"
    place = rng.randrange(len(text))
    return text[:place] + rng.choice("아이the ") + text[place + 1 :]


def speed(count: int) -> dict[str, float]:
    made = list(rows(count))
    cpu, wall = time.process_time(), time.perf_counter()
    kept, _ = unique(made)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    status = Path("/proc/self/status").read_text("ascii")  # not getrusage, which counts the parent's peak too
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    minutes = {"cpu_minutes": round(cpu / 60, 2), "wall_minutes": round(wall / 60, 2)}
    return {"rows": count, "kept": len(kept), **minutes, "peak_mb": peak // 1024}


def quality(threshold: float) -> dict[str, dict[str, float]]:
    """Recall and precision by language of both stages together."""
    pairs = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()]
    found = {
        lang: [(p["duplicate"], is_found(p, threshold)) for p in pairs if p["lang"] == lang]
        for lang in FRAMES
    }
    return {lang: scores(outcomes) for lang, outcomes in found.items()}


def is_found(pair: dict[str, str], threshold: float) -> bool:
    index = Duplicates(threshold)
    index.add(pair["a"])
    return index.find(pair["b"]) is not None


def scores(outcomes: list[tuple[bool, bool]]) -> dict[str, float]:
    hits = outcomes.count((True, True))
    return {
        "pairs": len(outcomes),
        "recall": round(hits / sum(truth for truth, _ in outcomes), 3),
        "precision": round(hits / max(1, sum(found for _, found in outcomes)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("bench/duplicates.json"))
    arguments = parser.parse_args()
    thresholds = sorted({0.6, 0.65, THRESHOLD, 0.75, 0.8})
    result = {"quality": {str(t): quality(t) for t in thresholds}, "speed": speed(arguments.rows)}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
