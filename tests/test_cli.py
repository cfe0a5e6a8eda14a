"""`guardian check` as scripts call it: the JSON contract, exit codes, one plain sentence on stderr."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from slm_guardian.cli.main import main
from slm_guardian.policy import Policy

SHIPPED = Path(str(files("slm_guardian").joinpath("assets/mini")))
KEYS = ["text", "label", "harm", "category", "group", "response", "policy", "model"]
SECRET = "zebra-7391"  # stands for a user's text: never on stderr
# A child of a background job ignores Ctrl-C unless told otherwise.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from slm_guardian.cli.main import main; main()"
)
COMMAND = [sys.executable, "-c", PROGRAM]


class Result:
    """What a run of the command left."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Command:
    """The command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object, stdin: bytes = b"") -> Result:
        self.monkeypatch.setattr(sys, "argv", ["guardian", *map(str, arguments)])
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
            assert isinstance(code, int)
        captured = self.capsys.readouterr()
        return Result(code, captured.out, captured.err)


@pytest.fixture
def guardian(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def check(guardian: Command) -> Callable[..., Result]:
    """`guardian check --json`."""
    return lambda *arguments, stdin=b"": guardian("check", "--json", *arguments, stdin=stdin)


def refused(result: Result, *words: str) -> None:
    """Nothing on stdout, and one plain sentence that names what is wrong."""
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("guardian: ") and result.err.count("\n") == 1
    assert SECRET not in result.err and "Traceback" not in result.err
    assert all(word in result.err for word in words)


# The contract


def test_every_line_is_an_object_with_the_keys_of_the_contract(check: Callable[..., Result]) -> None:
    texts = ["how do i pick a lock", "자물쇠 따는 방법", "hello"]
    result = check(*texts)
    assert (result.code, result.err) == (0, "")
    assert [list(row) for row in result.rows] == [KEYS] * 3
    assert [row["text"] for row in result.rows] == texts
    assert [row["policy"] for row in result.rows] == ["en", "ko", "en"]
    for row in result.rows:
        assert row["label"] in ("safe", "unsafe") and 0 <= row["harm"] <= 1
        assert (row["category"] is None) == (row["group"] is None) == (row["label"] == "safe")
        assert isinstance(row["model"], str)


def test_threshold_0_makes_all_unsafe_and_1_makes_all_safe(check: Callable[..., Result]) -> None:
    strict, lax = check("--threshold", 0, "hello", "안녕"), check("--threshold", 1, "hello", "안녕")
    known = {c.id: c.group for name in ("ko", "en") for c in Policy.load(name).categories}
    for row in strict.rows:
        assert row["label"] == "unsafe" and row["response"] and known[row["category"]] == row["group"]
    for row in lax.rows:
        assert row["label"] == "safe" and row["category"] is row["group"] is row["response"] is None
    assert [r["harm"] for r in strict.rows] == [r["harm"] for r in lax.rows]


@pytest.mark.parametrize("threshold", ["2", "-1", "nan", "half"])
def test_a_threshold_outside_0_to_1_is_refused(check: Callable[..., Result], threshold: str) -> None:
    result = check(f"--threshold={threshold}", SECRET)
    assert (result.code, result.out) == (2, "")
    assert "--threshold" in result.err and "Traceback" not in result.err and SECRET not in result.err


def test_force_answers_what_is_safe(check: Callable[..., Result]) -> None:
    row = check("--threshold", 1, "--force", "hello").rows[0]
    assert row["label"] == "unsafe" and row["category"] and row["response"]


def test_no_response_writes_no_answers(check: Callable[..., Result]) -> None:
    row = check("--threshold", 0, "--no-response", "hello").rows[0]
    assert row["label"] == "unsafe" and row["response"] is None
    assert check("--force", "--no-response", "hello").rows[0]["response"] is None


def test_a_policy_file_judges(check: Callable[..., Result], tmp_path: Path) -> None:
    category = {"id": "crime_advice", "group": "g", "name": "C", "covers": ["x"], "fallback": ["No."]}
    own: dict[str, Any] = {"id": "mine", "version": "1", "language": "en", "threshold": 0}
    own |= {"groups": [{"id": "g", "name": "G"}], "categories": [category]}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(own), "utf-8")
    row = check("--policy", path, "hello").rows[0]
    assert [row[key] for key in ("label", "category", "group", "policy")] == [
        "unsafe",
        "crime_advice",
        "g",
        "mine",
    ]
    path.write_text(yaml.safe_dump(own | {"action": "x"}), "utf-8")
    refused(check("--policy", path, SECRET), "mine.yaml:", "action")
    category["id"] = "tax_tricks"
    path.write_text(yaml.safe_dump(own), "utf-8")
    refused(check("--policy", path, SECRET), "tax_tricks", "not trained on")


def test_a_pack_is_chosen_by_name(check: Callable[..., Result]) -> None:
    assert check("--policy", "ko", "hello").rows[0]["policy"] == "ko"
    refused(check("--policy", "nowhere.yaml", SECRET), "nowhere.yaml", "en, id, ko")


def test_a_model_directory_judges(check: Callable[..., Result], tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "mini")
    assert check("--model", tmp_path / "mini", "hello").out == check("hello").out


def test_the_table_shows_query_verdict_and_answer(guardian: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = guardian("check", "--threshold", 0, "hello [bold]you[/bold]", "안녕", "hi \ud800")
    assert (result.code, result.err) == (0, "")
    assert "hello [bold]you[/bold]" in result.out and "안녕" in result.out
    assert "safe" in guardian("check", "--threshold", 1, "hello").out


# Files

FILES = {
    "q.txt": "hello\n\n안녕\r\nbye\n",
    "q.csv": 'id,text\n1,hello\n2,안녕\n3,"bye"\n',
    "q.jsonl": '{"text": "hello"}\n{"prompt": "안녕"}\n\n{"text": "bye", "label": "safe"}\n',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_is_judged_in_its_order(
    check: Callable[..., Result], tmp_path: Path, name: str, mark: str
) -> None:
    (tmp_path / name).write_text(mark + FILES[name], "utf-8", newline="")
    result = check("--file", tmp_path / name)
    assert (result.code, result.err) == (0, "")
    assert [row["text"] for row in result.rows] == ["hello", "안녕", "bye"]


def test_more_than_a_batch_keeps_its_order(check: Callable[..., Result], tmp_path: Path) -> None:
    texts = [f"hello number {n} {'and so on ' * (n % 7)}".strip() for n in range(150)]
    (tmp_path / "q.txt").write_text("\n".join(texts), "utf-8")
    result = check("--no-response", "--file", tmp_path / "q.txt")
    assert [row["text"] for row in result.rows] == texts


def test_texts_come_before_the_file(check: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("two\n", "utf-8")
    assert [row["text"] for row in check("one", "--file", tmp_path / "q.txt").rows] == ["one", "two"]


LINES = "hello\n\n안녕\r\na\u2028b\x0cc\x85d\n".encode() + b"\xb3\xaf\xbe\xbe\nbye"


def test_stdin_is_read_like_a_text_file(check: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes(LINES)
    piped = check("--file", "-", stdin=LINES)
    assert piped.out == check("--file", tmp_path / "q.txt").out
    assert [row["text"] for row in piped.rows] == ["hello", "안녕", "a\u2028b\x0cc\x85d", "\ufffd" * 4, "bye"]
    assert len(piped.out.splitlines()) == 5  # a line of JSON holds no other line end


def test_mixed_encodings_cost_no_row(check: Callable[..., Result], tmp_path: Path) -> None:
    rows = [b'{"text": "hello"}', '{"text": "hi 안녕"}'.encode("cp949"), '{"text": "안녕"}'.encode()]
    (tmp_path / "q.jsonl").write_bytes(b"\n".join(rows))
    result = check("--file", tmp_path / "q.jsonl")
    assert (result.code, len(result.rows)) == (0, 3)
    assert [result.rows[0]["text"], result.rows[2]["text"]] == ["hello", "안녕"]
    assert all(row["harm"] is not None for row in result.rows)


def test_a_broken_line_is_named_and_the_others_are_judged(
    check: Callable[..., Result], tmp_path: Path
) -> None:
    broken = f'{{"text": "{SECRET}"'
    bad = ["[]", '{"text": 5}', '{"text": " "}']
    lines = ['{"text": "one"}', broken, '{"text": "two"}', *bad, '{"text": "three"}']
    (tmp_path / "q.jsonl").write_text("\n".join(lines), "utf-8")
    result = check("--file", tmp_path / "q.jsonl")
    assert result.code == 0
    assert [row["text"] for row in result.rows] == ["one", "two", "three"]
    skipped = result.err.splitlines()
    assert [line.split()[1] for line in skipped] == [f"q.jsonl:{n}" for n in (2, 4, 5, 6)]
    assert SECRET not in result.err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", "{\n{\n"),
        ("q.csv", f"a,b\n{SECRET},2\n"),
        ("q.txt", "\n \n"),
        ("q.pdf", "x"),
        ("empty.jsonl", ""),
    ],
)
def test_a_file_without_a_usable_row_is_refused(
    check: Callable[..., Result], tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    refused(check("--file", tmp_path / name), name)


def test_missing_input_is_refused(check: Callable[..., Result], tmp_path: Path) -> None:
    refused(check(), "nothing to judge")
    refused(check("--file", "-", stdin=b"\n \n"), "nothing to judge")
    refused(check("--file", tmp_path / "nowhere.txt"), "nowhere.txt")
    refused(check("--file", tmp_path), "not a file")


# What cannot be judged


def test_an_unjudgeable_text_is_counted_and_the_others_are_judged(check: Callable[..., Result]) -> None:
    result = check("", SECRET, "\u200b")
    assert result.code == 0
    assert [row["label"] for row in result.rows[::2]] == ["unsafe", "unsafe"]
    assert [row.get("error") for row in result.rows[1:2]] == [None]
    assert all(row["harm"] is None and "nothing to read" in row["error"] for row in result.rows[::2])
    assert result.err == "guardian: 2 of 3 could not be judged (see 'error')\n"


def test_nothing_judged_is_an_error(check: Callable[..., Result], guardian: Command) -> None:
    assert check("", " ", "\x00").code == 2
    assert guardian("check", "").code == 2


@pytest.mark.parametrize(
    "text", ["hi \udcff", "a\x00b", "<|safe|>", "§crime_advice", "[bold]", "\x1b[31mred"]
)
def test_odd_characters_are_judged_and_printed(
    check: Callable[..., Result], guardian: Command, text: str
) -> None:
    result = check("--force", text)
    assert (result.code, result.err) == (0, "")
    assert result.rows[0]["harm"] is not None and result.rows[0]["response"]
    assert guardian("check", "--no-response", text).code == 0


def test_20_kb_in_one_argument(check: Callable[..., Result]) -> None:
    text = "how do i do that? " * 1100
    row = check("--threshold", 0, text).rows[0]
    assert row["text"] == text and row["response"]


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "guardian.json"])
def test_a_truncated_model_is_refused(check: Callable[..., Result], tmp_path: Path, name: str) -> None:
    own = tmp_path / "mini"
    shutil.copytree(SHIPPED, own)
    (own / name).write_bytes((own / name).read_bytes()[:-100])
    refused(check("--model", own, SECRET), name)


def test_a_missing_model_is_refused(check: Callable[..., Result], tmp_path: Path) -> None:
    refused(check("--model", tmp_path / "nowhere", SECRET), "nowhere", "--model")
    refused(check("--model", tmp_path, SECRET), str(tmp_path))


# Ends of the process


def many(path: Path) -> Path:
    """More queries than a pipe's buffer holds verdicts of."""
    path.write_text("".join(f"hello {SECRET} {n}\n" for n in range(4000)), "utf-8")
    return path


def started(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "check", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_reader_that_leaves_gets_no_traceback(tmp_path: Path) -> None:
    with started("--json", "--no-response", "--file", many(tmp_path / "q.txt")) as process:
        assert process.stdout and process.stderr
        assert json.loads(process.stdout.readline())["text"] == f"hello {SECRET} 0"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_ctrl_c_gets_no_traceback(tmp_path: Path) -> None:
    with started("--json", "--no-response", "--file", many(tmp_path / "q.txt")) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode not in (0, 2)
    assert "Traceback" not in err and SECRET not in err and err.count("\n") <= 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "table"])
def test_a_full_disk_is_said(options: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "check", *options, SECRET], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("guardian: ") and done.stderr.count("\n") == 1
    assert SECRET not in done.stderr


def test_bytes_that_are_no_text_can_be_arguments() -> None:
    done = subprocess.run([*COMMAND, "check", "--json", b"\xff\xfe hello"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["harm"] is not None


@pytest.mark.parametrize("encoding", ["ascii", "cp949"])
def test_json_is_utf_8_whatever_the_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = subprocess.run([*COMMAND, "check", "--json", "안녕 👍"], capture_output=True, check=False)
    assert json.loads(done.stdout.decode())["text"] == "안녕 👍"


# Other commands


def test_policy_commands(guardian: Command, tmp_path: Path) -> None:
    assert "no fault found" in guardian("policy", "check", "ko", "--model", SHIPPED).out
    assert "crime_advice" in guardian("policy", "show", "en").out
    assert "fallback" in guardian("policy", "show", "en", "--category", "crime_advice").out
    refused(guardian("policy", "show", "en", "--category", "tax_tricks"), "tax_tricks")
    refused(guardian("policy", "check", tmp_path / "nowhere.yaml"), "nowhere.yaml")
    (tmp_path / "mine.yaml").write_text("id: mine\nversion: '2'\nlanguage: ko\nextends: ko\n", "utf-8")
    changed = guardian("policy", "diff", "ko", tmp_path / "mine.yaml").out
    assert 'id: "ko" becomes "mine"' in changed
    assert guardian("policy", "diff", "ko", "ko").out == ""


def test_help_names_every_command(guardian: Command) -> None:
    shown = guardian("--help").out
    assert all(name in shown for name in ("check", "train", "calibrate", "evaluate", "export", "policy"))
