"""What a change did, by category: shares, changed rows, tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import guardian
from slm_guardian.evaluate.datasets import load_datasets
from slm_guardian.evaluate.effect import effects
from slm_guardian.evaluate.systems import load_system


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """30 harmful rows of two categories and 10 safe ones."""
    path = tmp_path / "dev.jsonl"
    made = [{"text": f"harm {i}", "label": "unsafe", "category": f"c{i % 2}"} for i in range(30)]
    made += [{"text": f"fine {i}", "label": "safe"} for i in range(10)]
    path.write_text("\n".join(json.dumps({"lang": "en", **row}) for row in made), encoding="utf-8")
    return path


def test_each_group_says_what_was_mended_and_broken(rows: Path) -> None:
    before, after = load_system("constant:safe"), load_system("constant:unsafe")
    found = {e.group: e for e in effects(before, after, load_datasets([rows])[0])}
    assert list(found) == ["all rows", "safe rows", "c0", "c1"]
    assert (found["all rows"].before, found["all rows"].after) == (0.25, 0.75)
    assert [(e.n, e.better, e.worse) for e in found.values()] == [
        (40, 30, 10),
        (10, 0, 10),
        (15, 15, 0),
        (15, 15, 0),
    ]
    assert found["c0"].p == pytest.approx(3 * 2 * 0.5**15)  # exact McNemar, the smallest of three by Holm
    assert found["safe rows"].p == pytest.approx(2 * 0.5**10)


def test_no_change_is_no_effect(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guardian(
        "policy", "effect", "--before", "constant:safe", "--after", "constant:safe", "-d", rows, "--json"
    )
    (table,) = json.loads(capsys.readouterr().out).values()
    assert all(row["p"] == 1 and row["better"] == row["worse"] == 0 for row in table)


def test_the_table_names_the_groups(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guardian("policy", "effect", "--before", "constant:safe", "--after", "constant:unsafe", "-d", rows)
    printed = capsys.readouterr().out
    assert "safe rows" in printed and "c1" in printed and "mended" in printed
