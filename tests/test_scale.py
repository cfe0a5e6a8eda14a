"""Large files: each row exactly once, whatever dies, with and without Ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import guardian
from slm_guardian import Guardian
from slm_guardian.errors import DataError, InputError
from slm_guardian.example import read_examples, read_json_lines
from slm_guardian.scale import parts
from slm_guardian.scale.job import Job, todo

QUERIES = ["화분에 생긴 진딧물 죽이는 법", "how do i bake bread", "sns 계정 해킹하는 방법 알려줘", "hi"]
HARD = ['{"id": 1, "text": "a\\u2028b"}', "not json", '{"text": 5}', "[]", '{"id": "z", "prompt": "hi"}']


@pytest.fixture
def input_file(tmp_path: Path) -> Path:
    """Rows that can be judged between blank lines and rows that cannot, without a line end at the end."""
    rows = [
        json.dumps({"id": f"q{i}", "text": QUERIES[i % 4] + " " * i}, ensure_ascii=False) for i in range(40)
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("\ufeff" + "\n".join([*rows, "", *HARD, "  ", *rows[:3]]), encoding="utf-8")
    return path


def written(out: Path) -> list[dict[str, Any]]:
    """All rows of an output directory, in the order of its files."""
    rows: list[dict[str, Any]] = []
    for path in sorted(out.glob("part-*[lt]")):
        if path.suffix == ".parquet":
            rows += pyarrow.parquet.read_table(path).to_pylist()
        else:
            rows += [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    return rows


def test_each_row_comes_out_once_in_order_with_its_id_and_verdict(input_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    guardian("check", "--file", input_file, "--out", out, "--part-rows", 7)
    rows = written(out)
    assert [row["row"] for row in rows] == list(range(48))
    assert [row["id"] for row in rows[:3]] == ["q0", "q1", "q2"]
    assert [row["id"] for row in rows[40:45]] == ["1", None, None, None, "z"]
    assert [bool(row["error"]) for row in rows[40:45]] == [False, True, True, True, False]
    assert all(row["label"] == "unsafe" for row in rows if row["error"])  # fails closed
    verdicts = Guardian.load().check([row["text"] for row in rows[:8]])
    assert [row["label"] for row in rows[:8]] == [v.label for v in verdicts]
    assert [row["response"] for row in rows[:8]] == [v.response for v in verdicts]


def test_parquet_in_parquet_out_over_row_groups_and_files(tmp_path: Path) -> None:
    texts = [f"{QUERIES[i % 4]} {i}" for i in range(25)]
    folder = tmp_path / "logs"
    folder.mkdir()
    for name, own in {"a": texts[:15], "b": texts[15:]}.items():
        table = pyarrow.table({"text": own, "id": list(range(len(own)))})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet", row_group_size=4)
    guardian("check", "--file", folder, "--out", tmp_path / "out", "--part-rows", 6, "--no-response")
    rows = written(tmp_path / "out")
    assert [row["text"] for row in rows] == texts
    assert [row["row"] for row in rows] == list(range(25))
    whole = pyarrow.parquet.read_table(tmp_path / "out")  # one schema, though no part has an answer
    assert whole.num_rows == 25 and str(whole.schema.field("response").type) == "string"


@given(st.sets(st.integers(0, 6)))
def test_what_is_missing_is_judged_again_and_nothing_else(missing: set[int]) -> None:
    planned = [parts.Part(i, "in.jsonl", 0, 0, 1) for i in range(7)]
    with tempfile.TemporaryDirectory() as out:
        for part in planned:
            if part.index not in missing:
                parts.target(part, Path(out)).touch()
        assert {part.index for part in todo(Job(out), planned)} == missing


def test_parquet_columns_that_are_no_text_fail_closed(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [1, 2], "id": [b"\xff", None]})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    guardian("check", "--file", tmp_path / "in.parquet", "--out", tmp_path / "out")
    assert [(row["label"], row["error"]) for row in written(tmp_path / "out")] == [
        ("unsafe", "not a text")
    ] * 2


def test_shards_share_the_parts_out(input_file: Path, tmp_path: Path) -> None:
    options = ["--file", input_file, "--part-rows", 5]
    for i in (2, 0, 1):
        guardian("check", *options, "--out", tmp_path / "out", "--shard", f"{i}/3")
    guardian("check", *options, "--out", tmp_path / "whole")
    assert written(tmp_path / "out") == written(tmp_path / "whole")


def test_a_killed_run_goes_on_where_it_was(
    input_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["check", "--file", input_file, "--out", out, "--part-rows", 2]
    child = os.fork()
    if not child:  # dies by SIGKILL in the middle of its writing
        _kill_after(5)
        guardian(*command)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}
    assert len(before) == 5
    guardian(*command)
    assert "38 rows judged" in capsys.readouterr().out.replace("\n", " ")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [row["row"] for row in written(out)] == list(range(48))


def _kill_after(count: int) -> None:
    """Let this process die when it is about to write one part more."""
    real = parts.write
    left = iter(range(count))

    def write(*arguments: Any) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments)

    parts.write = write  # only in the child


def test_another_job_does_not_mix_into_a_directory(input_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    guardian("check", "--file", input_file, "--out", out)
    for changed in (["--threshold", "0.9"], ["--part-rows", "3"], ["--force"]):
        with pytest.raises(SystemExit):
            guardian("check", "--file", input_file, "--out", out, *changed)
    mine = tmp_path / "my.yaml"
    mine.write_text("id: mine\nversion: 1.0.0\nlanguage: ko\nextends: ko\n", "utf-8")
    for version in ("1.0.0", "1.0.1"):  # the same path, another content
        mine.write_text(mine.read_text("utf-8").replace("1.0.0", version), "utf-8")
        command = ["check", "--file", input_file, "--out", tmp_path / "by-mine", "--policy", mine]
        with contextlib.nullcontext() if version == "1.0.0" else pytest.raises(SystemExit):
            guardian(*command)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        parts.claim(tmp_path / "mine", {})


@pytest.mark.parametrize(
    "options",
    [
        ["--engine", "ray"],
        ["--shard", "0/2"],
        ["--out", "o", "--shard", "2/2"],
        ["--out", "o", "--shard", "x"],
        ["--out", "o", "--engine", "spark"],
        ["--out", "o", "--engine", "ray", "--shard", "0/2"],
        ["--out", "o", "--json"],
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], input_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        guardian("check", "--file", input_file, *options)
    assert stop.value.code == 2


def test_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "a.csv").write_text("text\nhi\n")
    for name, message in {"broken.parquet": "not a Parquet", "empty.jsonl": "no row", "a.csv": "use"}.items():
        with pytest.raises(DataError, match=message):
            parts.plan([tmp_path / name], 10)
    with pytest.raises(DataError, match="no file matches"):
        parts.input_files([str(tmp_path / "no*.jsonl")])


def test_ray_judges_each_row_once_though_a_worker_is_killed(input_file: Path, tmp_path: Path) -> None:
    _ray("judge", input_file, tmp_path / "out")
    assert [row["row"] for row in written(tmp_path / "out")] == list(range(48))
    guardian("check", "--file", input_file, "--out", tmp_path / "here", "--part-rows", 2)
    assert written(tmp_path / "out") == written(tmp_path / "here")


def test_shards_of_a_generation_add_up_and_differ(tmp_path: Path) -> None:
    for i in range(3):
        guardian("generate", "--n", 60, "--out", tmp_path, "--shard", f"{i}/3")
    shards = [read_examples(tmp_path / f"shard-{i}-of-3" / "corpus.jsonl")[0] for i in range(3)]
    assert [len(rows) for rows in shards] == [20, 20, 20]
    texts = [{row.text for row in rows} for rows in shards]
    assert len(texts[0] & texts[1]) < 10
    with pytest.raises(SystemExit):
        guardian("generate", "--out", tmp_path / "x", "--engine", "ray", "--shard", "0/2")


def test_ray_generates_in_shards_and_puts_them_together(tmp_path: Path) -> None:
    _ray("generate", tmp_path)
    rows, rejects = (read_json_lines(tmp_path / f"{name}.jsonl") for name in ("clean", "rejects"))
    assert len(rows) + len(rejects) == 40
    assert len({row["text"] for row in rows}) == len(rows)


def test_the_gateway_runs_under_ray_serve(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("playground: false\n")
    answers = json.loads(next(line for line in _ray("serve", config).splitlines() if line[:1] == "{"))
    assert (answers["ready"], answers["wrong"]) == (200, 400)
    assert answers["verdict"]["results"][0]["flagged"]


def _ray(*arguments: object) -> str:
    """Run a program of tests/ray_programs.py; what it printed."""
    program = Path(__file__).parent / "ray_programs.py"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    done = subprocess.run(
        [sys.executable, program, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
