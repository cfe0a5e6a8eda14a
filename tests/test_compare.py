"""The comparison: remembered answers, resumed runs, tables, the page, and the command as people call it."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from moderation_server import KEY, ModerationServer, openai_error
from slm_guardian.cli.compare import compare as command
from slm_guardian.errors import DataError, GuardianError, InputError
from slm_guardian.evaluate import systems
from slm_guardian.evaluate.cache import AnswerCache, Remembering, machine, timing
from slm_guardian.evaluate.compare import Comparison, Options, compare, write
from slm_guardian.evaluate.datasets import Dataset, load_dataset
from slm_guardian.evaluate.judging import Judging
from slm_guardian.evaluate.metrics import measure
from slm_guardian.evaluate.run import judge_dataset
from slm_guardian.evaluate.systems import Judged
from slm_guardian.evaluate.tables import Row, Table, build, flat, to_csv, to_latex, to_markdown
from slm_guardian.example import file_sha256, write_jsonl

SECRET = "zebra-7391"
KINDS = ("homonyms", "contrast_homonyms", "definitions")
QUICK = Options(resamples=100)
ARRAYS = np.array([True, True, False, False]), np.array([0.9, 0.2, 0.6, 0.1])


def rows(n: int = 60) -> list[dict[str, Any]]:
    """Queries that the keyword list mostly gets right, in clusters of two, of three kinds."""
    made = []
    for i in range(n):
        harmful = i % 2 == 0
        text = f"how do I {'make a bomb' if harmful and i % 6 else 'bake bread'} {SECRET} {i}"
        row = {"text": text, "label": "unsafe" if harmful else "safe", "kind": KINDS[i % 3], "pair": i // 2}
        made.append(row | ({"category": "crime_advice"} if harmful else {}))
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "tiny.jsonl", rows())
    return tmp_path / "tiny.jsonl"


@pytest.fixture
def dataset(file: Path) -> Dataset:
    return load_dataset(file)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@dataclass
class Counting:
    """A system that remembers what it was asked, and dies at the n-th text."""

    dies_at: int | None = None
    fails: str | None = None
    asked: list[str] = field(default_factory=list)
    name: str = "counting/one?x=1"
    revision: str = "r1"

    def judge(self, texts: list[str]) -> list[Judged]:
        answers = []
        for text in texts:
            if len(self.asked) == self.dies_at:
                raise GuardianError("the server is gone: start it again")
            self.asked.append(text)
            harm = 0.9 if "bomb" in text else 0.2
            answers.append(Judged(None, error=self.fails) if self.fails else Judged(harm, raw=f"so: {text}"))
        return answers


def remember(system: Counting | None, dataset: Dataset, out: Path, **options: Any) -> Remembering:
    known = system or Counting()
    return Remembering(system, AnswerCache(out, known.name, known.revision, dataset), **options)


def texts(dataset: Dataset) -> list[str]:
    return [example.text for example in dataset.examples]


# --- remembered answers


def test_a_system_that_dies_half_way_is_resumed_and_asked_nothing_twice(dataset: Dataset, out: Path) -> None:
    dying, second, third = Counting(dies_at=33), Counting(), Counting()
    with pytest.raises(GuardianError, match="start it again"):
        judge_dataset(remember(dying, dataset, out, timed=10), dataset)
    judged = judge_dataset(remember(second, dataset, out), dataset)
    kept = len(dataset.examples) - len(second.asked)
    assert kept == 26  # ten single queries and one batch of 16; the batch that died is asked again
    assert set(second.asked).isdisjoint(dying.asked[:kept])
    assert [row.harm for row in judged] == [row.harm for row in Counting().judge(texts(dataset))]
    assert judge_dataset(remember(third, dataset, out), dataset) == judged
    assert third.asked == []


def test_a_line_that_a_kill_cut_short_is_asked_again(dataset: Dataset, out: Path) -> None:
    judge_dataset(remember(Counting(), dataset, out), dataset)
    (path,) = out.rglob("*.jsonl")
    whole = path.read_bytes()
    for rest, missing in ((whole[:-20], 1), (whole[:15], 60), (b"", 60)):
        path.write_bytes(rest)
        again = Counting()
        judge_dataset(remember(again, dataset, out), dataset)
        assert len(again.asked) == missing
        assert len(path.read_bytes().splitlines()) == len(whole.splitlines())


@pytest.mark.parametrize("damage", [b"{}\n", b"not json\n", b"[]\n"])
def test_a_damaged_file_is_named(damage: bytes, dataset: Dataset, out: Path) -> None:
    judge_dataset(remember(Counting(), dataset, out), dataset)
    (path,) = out.rglob("*.jsonl")
    path.write_bytes(path.read_bytes() + damage)
    with pytest.raises(DataError, match="is damaged: remove it"):
        remember(Counting(), dataset, out)


def test_answers_for_another_copy_of_the_data_are_refused(dataset: Dataset, out: Path) -> None:
    judge_dataset(remember(Counting(), dataset, out), dataset)
    with pytest.raises(DataError, match=r"another copy of tiny: remove it, or .* --out"):
        remember(Counting(), replace(dataset, sha256="0" * 64), out)


def test_another_revision_is_asked_anew(dataset: Dataset, out: Path) -> None:
    judge_dataset(remember(Counting(), dataset, out), dataset)
    changed = Counting(revision="r2")
    judge_dataset(remember(changed, dataset, out), dataset)
    assert len(changed.asked) == 60


def test_no_text_is_stored_even_where_the_system_repeats_it(dataset: Dataset, out: Path) -> None:
    first = judge_dataset(remember(Counting(), dataset, out), dataset)
    (path,) = out.rglob("*.jsonl")
    assert SECRET not in path.read_text(encoding="utf-8")
    assert first[0].raw == "so: [text]"


def test_without_a_system_only_what_is_remembered_can_be_had(dataset: Dataset, out: Path) -> None:
    with pytest.raises(GuardianError, match="run without --cached"):
        judge_dataset(remember(None, dataset, out), dataset)
    judged = judge_dataset(remember(Counting(), dataset, out), dataset)
    assert judge_dataset(remember(None, dataset, out), dataset) == judged


def test_failures_are_remembered_and_asked_again_once_when_told_to(dataset: Dataset, out: Path) -> None:
    judge_dataset(remember(Counting(fails="http 503"), dataset, out), dataset)
    kept, healthy = Counting(), Counting()
    judged = judge_dataset(remember(kept, dataset, out), dataset)
    assert (kept.asked, {row.error for row in judged}) == ([], {"http 503"})
    judged = judge_dataset(remember(healthy, dataset, out, retry=True), dataset)
    assert (len(healthy.asked), {row.error for row in judged}) == (60, {None})
    still = Counting(fails="http 503")
    system = remember(still, replace(dataset, name="other"), out, retry=True)
    system.judge(texts(dataset))
    system.judge(texts(dataset))
    assert len(still.asked) == 60


def test_single_queries_are_timed_but_for_the_first(dataset: Dataset, out: Path) -> None:
    cache = AnswerCache(out, "counting", "r", dataset)
    judge_dataset(Remembering(Counting(), cache, timed=20), dataset)
    found = timing([cache])
    assert found["n"] == 19
    assert 0 < found["p50_ms"] <= found["p99_ms"] and found["per_second"] > 0
    assert found["machines"] == [machine()]
    assert timing([AnswerCache(out, "none", "r", dataset)])["p50_ms"] is None


def test_a_system_that_gives_too_few_answers_is_stopped(dataset: Dataset, out: Path) -> None:
    class Short(Counting):
        def judge(self, texts: list[str]) -> list[Judged]:
            return []

    with pytest.raises(GuardianError, match="0 answers for 1 texts"):
        judge_dataset(remember(Short(), dataset, out), dataset)


# --- the comparison


@pytest.fixture
def found(dataset: Dataset, out: Path) -> Comparison:
    return compare(["keywords", "constant:unsafe", "constant:safe"], [dataset], out, QUICK)


def test_every_system_is_measured_and_every_pair_tested(found: Comparison, dataset: Dataset) -> None:
    entry = found.result["data"]["tiny"]
    assert (entry["n"], entry["n_unsafe"], entry["clusters"]) == (60, 30, 30)
    assert entry["sha256"] == dataset.sha256
    assert list(entry["systems"]) == ["keywords", "constant:unsafe", "constant:safe"]
    assert [(pair["a"], pair["b"]) for pair in entry["pairs"]] == [
        ("keywords", "constant:unsafe"),
        ("keywords", "constant:safe"),
        ("constant:unsafe", "constant:safe"),
    ]
    unsafe = entry["systems"]["constant:unsafe"]
    assert (unsafe["unsafe"]["recall"], unsafe["fpr"], unsafe["auroc"], unsafe["policy"]) == (
        1.0,
        1.0,
        None,
        "hard labels",
    )
    assert set(unsafe["by_kind"]) == set(KINDS)


def test_a_shuffled_file_gives_the_same_report(found: Comparison, dataset: Dataset, tmp_path: Path) -> None:
    shuffled = replace(dataset, examples=dataset.examples[7:] + dataset.examples[:7])
    again = compare(["keywords", "constant:unsafe", "constant:safe"], [shuffled], tmp_path / "other", QUICK)
    assert again.result["data"] == found.result["data"]


def test_several_sets_have_a_mean_and_a_whole(dataset: Dataset, out: Path) -> None:
    half = replace(dataset, name="half", sha256="1" * 64, examples=dataset.examples[:31])
    safe = [row for row in dataset.examples if row.label == "safe"]
    only_safe = replace(dataset, name="safe", sha256="2" * 64, examples=safe)
    result = compare(["keywords"], [dataset, half, only_safe], out, QUICK).result
    overall = result["overall"]["keywords"]
    recalls = [result["data"][name]["systems"]["keywords"]["unsafe"]["recall"] for name in ("tiny", "half")]
    assert overall["macro"]["unsafe_recall"] == {"mean": pytest.approx(sum(recalls) / 2), "sets": 2}
    assert overall["macro"]["fpr"]["sets"] == 3
    assert overall["micro"]["n"] == 60 + 31 + 30


@pytest.mark.parametrize(("price", "cost"), [("0.9", 0.9), ("$2", 2.0), ("0", 0.0)])
def test_a_price_for_a_thousand_queries_is_the_cost(
    price: str, cost: float, dataset: Dataset, out: Path
) -> None:
    result = compare(["keywords"], [dataset], out, replace(QUICK, prices={"keywords": price})).result
    assert result["systems"][0]["cost_per_1000"] == cost


def test_a_price_by_the_hour_goes_with_the_speed(dataset: Dataset, out: Path) -> None:
    about = compare(["keywords"], [dataset], out, replace(QUICK, prices={"keywords": "3.6/h"})).result[
        "systems"
    ][0]
    assert about["cost_per_1000"] == pytest.approx(1 / about["timing"]["per_second"])


@pytest.mark.parametrize("price", ["cheap", "-1", "inf", "1/day", "nan"])
def test_a_price_that_is_none_is_an_error(price: str, dataset: Dataset, out: Path) -> None:
    with pytest.raises(InputError, match="the price of keywords"):
        compare(["keywords"], [dataset], out, replace(QUICK, prices={"keywords": price}))


def test_wrong_calls_are_told_apart(dataset: Dataset, out: Path) -> None:
    with pytest.raises(InputError, match="--price names gpt"):
        compare(["keywords"], [dataset], out, replace(QUICK, prices={"gpt": "1"}))
    with pytest.raises(InputError, match="two systems are called same"):
        compare(["keywords?name=same", "constant:safe?name=same"], [dataset], out, QUICK)
    with pytest.raises(InputError, match="remembers nothing of keywords"):
        Judging(out / "empty", cached=True).run_all(["keywords"], [dataset])
    with pytest.raises(InputError, match="sideways"):
        compare(["keywords"], [dataset], out / "new", replace(QUICK, perturbations=["sideways"]))
    assert not (out / "new").exists()
    with pytest.raises(InputError, match="no system 'llama'"):
        compare(["llama"], [dataset], out, QUICK)


def test_an_api_that_dies_is_left_out_told_of_and_resumed(
    dataset: Dataset, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ModerationServer(
        lambda call: openai_error(401, "invalid_api_key") if len(server.log) > 25 else None
    ) as server:
        spec = f"openai-moderation?base_url={server.openai}"
        comparison = compare(["keywords", spec], [dataset], out, QUICK)
        with pytest.raises(GuardianError, match="refused the key"):
            compare([spec], [dataset], out, QUICK)
    assert list(comparison.result["data"]["tiny"]["systems"]) == ["keywords"]
    assert "refused the key" in comparison.stopped["openai-moderation"]
    assert comparison.result["data"]["tiny"]["pairs"] == []
    with ModerationServer() as server:
        comparison = compare([f"openai-moderation?base_url={server.openai}"], [dataset], out, QUICK)
        assert len(server.log) == 60 - 25
    entry = comparison.result["data"]["tiny"]["systems"]["openai-moderation"]
    assert (entry["n"], entry["unjudged"]) == (60, 0)
    assert entry["auroc"] is not None


def test_robustness_is_measured_and_remembered(dataset: Dataset, out: Path) -> None:
    options = replace(QUICK, perturbations=["casing"])
    result = compare(["keywords"], [dataset], out, options).result
    robust = result["data"]["tiny"]["robustness"]["keywords"]
    assert robust["rows"][0]["perturbation"] == "casing"
    assert (
        compare(["keywords"], [dataset], out, replace(options, cached=True)).result["data"] == result["data"]
    )


# --- tables and page


def a_table(name: str = "a|b_c&d") -> Table:
    entry = measure(*ARRAYS, 0.5, count=50)
    entry |= {"policy": "0.5", "unjudged": 2}
    about = {"name": name, "parameters": 22_000_000}
    data = {"title": "Tiny 100% set", "n": 4, "n_unsafe": 2, "systems": {name: entry}, "published": "xstest"}
    data |= {"contamination": None}
    (table,) = build({"systems": [about], "data": {"tiny": data}}, published=True)
    return table


def test_the_posters_rows_stand_beside_ours_marked() -> None:
    table = a_table()
    ours, *theirs = table.rows
    assert (len(theirs), ours.published, ours.parameters) == (13, False, "22M")
    assert all(row.published and row.n is None for row in theirs)
    paper = next(row for row in theirs if row.system == "SLM-as-Guardian (paper)")
    assert (paper.values["safe_precision"], paper.values["weighted_f1"]) == (0.90, 0.91)
    assert all(row.values.get("auroc") is None for row in theirs)


def test_markdown_has_the_posters_cells_and_dashes() -> None:
    text = to_markdown([a_table()])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") - line.count("\\|") for line in lines}) == 1
    assert r"a\|b_c&d" in lines[2] and re.search(r"0\.500 / 0\.500 / 0\.500 \[", lines[2])
    paper = next(line for line in lines if "SLM-as-Guardian" in line)
    assert "| 0.90 / 0.94 / 0.92 | 0.92 / 0.88 / 0.90 | 0.91 / 0.91 / 0.91 | - | - | - | - |" in paper
    assert "† as published, other test copy" in text


def test_csv_has_every_number_with_its_interval() -> None:
    ours, *theirs = csv.DictReader(io.StringIO(to_csv([a_table()])))
    entry = measure(*ARRAYS, 0.5, count=50)
    for name, value in flat(entry).items():
        low, high = entry["ci95"][name] or (None, None)
        for key, number in ((name, value), (f"{name}_low", low), (f"{name}_high", high)):
            assert ours[key] == ("" if number is None else str(number))
    assert (ours["source"], theirs[0]["source"]) == ("measured", "as published, other test copy")
    assert theirs[0]["auroc"] == ""


def test_latex_is_escaped_and_has_as_many_cells_a_line() -> None:
    text = to_latex([a_table()])
    assert r"a|b\_c\&d (22M)" in text and r"Tiny 100\% set" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {re.sub(r"\\&", "", line).count("&") for line in body} == {12}


def test_a_name_may_hold_any_sign() -> None:
    row = Row("\\ ~ ^ # $ { }", "-", {}, {}, "0.5")
    latex = to_latex([Table("d", "t", 1, 1, [row])])
    assert r"\textbackslash{} \textasciitilde{} \textasciicircum{} \# \$ \{ \}" in latex


class Page(HTMLParser):
    """What a page loads, and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe", "object")
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def page(found: Comparison, out: Path) -> Page:
    write(found, out, published=True)
    return Page((out / "report.html").read_text(encoding="utf-8"))


def test_the_page_loads_nothing_and_tells_everything(page: Page, out: Path) -> None:
    assert all(link.startswith("#") for link in page.loads)
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "url(" not in html and "@import" not in html
    for words in (
        "Which differences are real?",
        "By type of query",
        "Holm",
        "contrast_homonyms",
        "Speed, size",
    ):
        assert words in page.words
    assert html.count("<svg") >= 3
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


def test_worst_errors_are_blurred_or_left_out(found: Comparison, out: Path) -> None:
    write(found, out)
    html = (out / "report.html").read_text(encoding="utf-8")
    told = html.count(SECRET)
    assert told and told == len(re.findall(rf'<div class="blur"[^>]*>[^<]*{SECRET}', html))
    write(found, out, texts=False)
    assert SECRET not in (out / "report.html").read_text(encoding="utf-8")


def test_texts_and_names_cannot_break_the_page(dataset: Dataset, out: Path) -> None:
    bad = '</div><script>alert("x")</script> \ud800'
    examples = [replace(dataset.examples[0], text=bad, kind="<b>"), *dataset.examples[1:]]
    comparison = compare(["constant:safe?name=<i>"], [replace(dataset, examples=examples)], out, QUICK)
    write(comparison, out)
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and "<i>" not in html and "&lt;script&gt;" in html


def test_manifest_names_every_file_by_its_hash(page: Page, out: Path, dataset: Dataset) -> None:
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["inputs"] == {"tiny": dataset.sha256}
    assert manifest["outputs"] == {name: file_sha256(out / name) for name in manifest["outputs"]}
    assert set(manifest["outputs"]) == {
        "compare.json",
        "tables.md",
        "tables.csv",
        "tables.tex",
        "report.html",
    }


# --- the command


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app


def call(app: typer.Typer, *arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_and_repeats_its_report(app: typer.Typer, file: Path, out: Path) -> None:
    base = ["keywords", "constant:unsafe", "-d", file, "-o", out, "--resamples", 100]
    first = call(app, *base)
    assert first.exit_code == 0 and "Report:" in first.stdout and "| keywords |" in first.stdout
    page = (out / "report.html").read_bytes()
    again = call(app, *base, "--cached", "--json")
    assert (out / "report.html").read_bytes() == page
    assert json.loads(again.stdout) == json.loads((out / "compare.json").read_text(encoding="utf-8"))


def test_a_report_is_not_made_from_answers_for_other_data(app: typer.Typer, file: Path, out: Path) -> None:
    assert call(app, "keywords", "-d", file, "-o", out, "--resamples", 100).exit_code == 0
    write_jsonl(file, rows()[:40])
    result = call(app, "keywords", "-d", file, "-o", out, "--resamples", 100)
    assert isinstance(result.exception, DataError) and "another copy" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "x.jsonl"], "name a system"),
        (["keywords"], "no data set given"),
        (["keywords", "-d", "{file}", "--price", "1"], "write SYSTEM=DOLLARS"),
    ],
)
def test_incomplete_calls_are_input_errors(
    app: typer.Typer, file: Path, arguments: list[str], message: str
) -> None:
    result = call(app, *(argument.format(file=file) for argument in arguments))
    assert isinstance(result.exception, InputError) and message in str(result.exception)


def test_the_list_names_sets_and_systems(app: typer.Typer) -> None:
    result = call(app, "--list")
    assert result.exit_code == 0
    for name in ("xstest.ko", "openai_moderation", *systems.KINDS):
        assert name in result.stdout
