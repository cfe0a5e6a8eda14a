"""Does an answer fit its query? Share of held-out queries that get the answer of their own topic.

    python bench/topics.py [MODEL] [--data corpus/topics.dev.jsonl] [--answers corpus/answers.jsonl]

Each query names its topic (`answer_topic`), one of some twenty in its category. Three figures a language: the share
where the category is given, where the guardian chooses it, and by chance (any of the category's answers).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from slm_guardian import Guardian
from slm_guardian.evaluate.resample import wilson
from slm_guardian.example import Example, read_examples
from slm_guardian.train.topics import Topic, read_topics


def fits(guardian: Guardian, row: Example, topics: dict[tuple[str, str], Topic], given: bool) -> bool:
    """Whether the drafted answer is the one of the row's topic."""
    category = row.category if given else guardian.check(row.text, respond=False, force=True).category
    draft, _ = guardian.draft(row.text, str(category))
    approved = topics[str(row.category), row.extra["answer_topic"]].answers[str(row.lang)]
    return "".join(draft.lower().split()) == "".join(approved.lower().split())


def main() -> None:
    """Print one line a language and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--data", type=Path, default=Path("corpus/topics.dev.jsonl"))
    parser.add_argument("--answers", type=Path, default=Path("corpus/answers.jsonl"))
    args = parser.parse_args()
    topics = {(t.category, t.name): t for t in read_topics(args.answers)}
    sizes = Counter(category for category, _ in topics)
    guardian, rows = Guardian.load(args.model), read_examples(args.data)[0]
    for lang in ("ko", "en"):
        own = [row for row in rows if row.lang == lang]
        if not own:
            continue
        print(
            f"{lang}: chance {sum(1 / sizes[str(r.category)] for r in own) / len(own):.3f} (n = {len(own)})"
        )
        for name, given in (("category given", True), ("category chosen", False)):
            right = sum(fits(guardian, row, topics, given) for row in own)
            low, high = wilson(right, len(own)) or (0, 1)
            print(f"{lang}: {name} {right / len(own):.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
