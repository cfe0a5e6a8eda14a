"""Fetched data sets: the real layouts of their homes on loopback, and one clear line for everything that fails."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from sets_server import COMMIT, TOKEN, Reply, SetsServer
from slm_guardian.cli.main import app
from slm_guardian.errors import DataError, GuardianError
from slm_guardian.evaluate.datasets import load_dataset
from slm_guardian.evaluate.fetch import fetch, read_lock
from slm_guardian.evaluate.registry import DataSource, cache_directory, find_set, known_sets


def parquet(*rows: dict[str, str | None]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def json_rows(*rows: dict[str, object]) -> bytes:
    return json.dumps(list(rows), ensure_ascii=False).encode()


XSTEST = b"id,prompt,type,label,focus,note\n1,one,homonyms,safe,kill,\n2,two,contrast_homonyms,unsafe,kill,\n"
WILDGUARD = parquet(
    {"prompt": "a", "prompt_harm_label": "harmful", "subcategory": "cyberattack"},
    {"prompt": "b", "prompt_harm_label": "unharmful", "subcategory": "benign"},
)
QUESTIONS = json_rows(
    {"question": "가", "question_en": "a", "sensitive?": 1, "category": "predictive"},
    {"question": "나", "question_en": "b", "sensitive?": 0, "category": None},
    {"question": "다", "question_en": "c", "sensitive?": 1, "category": "etc"},
)
# Files at the ends of their real addresses, and what is read from them: (text, label, category).
Rows = list[tuple[str, str, str | None]]
PUBLISHED: dict[str, tuple[dict[str, bytes], Rows]] = {
    "xstest": (
        {"/paul-rottger/xstest/475f10bf0a3d6a9dfb174b6de1a38afbfdff98a5/xstest_prompts.csv": XSTEST},
        [("one", "safe", None), ("two", "unsafe", None)],
    ),
    "3i4k.ko": (
        {"/data/train_val_test/fci_test.txt": '0\t연두색\n2\t몇 시야\n3\t"알려줘\n1\t서술\n'.encode()},
        [("몇 시야", "safe", None), ('"알려줘', "safe", None)],
    ),
    "square.ko": (
        {"/data/SQuARe/question_test.json": QUESTIONS},
        [("가", "unsafe", "uncertain_predictions"), ("나", "safe", None)],
    ),
    "square.en": (
        {"/data/SQuARe/question_test.json": QUESTIONS},
        [("a", "unsafe", "uncertain_predictions"), ("b", "safe", None)],
    ),
    "kosbi.en": (
        {"/kosbi_test.json": json_rows({"sentence": "가", "sentence_en": "a", "sentence_label": "unsafe"})},
        [("a", "unsafe", "discrimination_hate")],
    ),
    "kotox.ko": (
        {"/total/test.csv": "text,label,obfuscated_labels,difficulty\n가,0,[],1\n나,1,[],1\n".encode()},
        [("가", "safe", None), ("나", "unsafe", "insult_offensiveness")],
    ),
    "mitre_frr.en": (
        {"/mitre_frr/frr_multilingual_machine_translated.json": json_rows({"mutated_prompt": "Gere um"})},
        [("Gere um", "safe", None)],
    ),
    "coconot_contrast.en": (
        {"/data/coconot_contrast_eval.jsonl": b'{"prompt": "a", "subcategory": "x"}\n'},
        [("a", "safe", None)],
    ),
    "openai_moderation": (
        {"/data/samples-1680.jsonl.gz": gzip.compress(b'{"prompt": "a", "H": 1}\n')},
        [("a", "unsafe", None)],
    ),
    "wildguardtest": (
        {"/resolve/d29c47f41c8b51348b5c8e8c81c039b3132b66d1/test/wildguard_test.parquet": WILDGUARD},
        [("a", "unsafe", "crime_advice"), ("b", "safe", None)],
    ),
    "aegis": (
        {
            "/Content%20Moderation%20Extracted%20Annotations%2002.08.24_test_release_0418_v1.parquet": parquet(
                {
                    "text": "a",
                    "text_type": "user_message",
                    "labels_0": "Safe",
                    "labels_1": "Safe",
                    "labels_2": None,
                }
            )
        },
        [("a", "safe", None)],
    ),
    "or-bench": (
        {
            "/or-bench-hard-1k.csv": b"prompt,category\na,privacy\n",
            "/or-bench-toxic.csv": b"prompt,category\nb,privacy\n",
        },
        [("a", "safe", "privacy_violation"), ("b", "unsafe", "privacy_violation")],
    ),
    "multijail.ko": (
        {
            "/datasets/DAMO-NLP-SG/MultiJail/resolve/main/MultiJail.csv": "id,source,en,ko\n0,x,a,가\n".encode()
        },
        [("가", "unsafe", None)],
    ),
}
Serve = Callable[..., SetsServer]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no data directory and a token."""
    for name in ("GUARDIAN_DATA", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return tmp_path / "cache/slm-guardian/sets"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Servers that stand in for both homes until the test ends."""
    running: list[SetsServer] = []

    def start(files: dict[str, bytes], gated: tuple[str, ...] = (), reply: Reply | None = None) -> SetsServer:
        server = SetsServer(files, gated, reply)
        running.append(server.__enter__())
        monkeypatch.setenv("GITHUB_RAW", server.github)
        monkeypatch.setenv("HF_ENDPOINT", server.hub + "/")
        return server

    yield start
    for server in running:
        server.__exit__()


def known(name: str) -> DataSource:
    source = find_set(name)
    assert source
    return source


def fails(name: str, match: str) -> str:
    """The one line with which fetching fails; it says how to get the set by hand, and leaves no file."""
    with pytest.raises(GuardianError, match=match) as raised:
        fetch(known(name))
    message = str(raised.value)
    assert "\n" not in message and known(name).home in message and known(name).names[0] in message
    assert not list(cache_directory().glob("*"))
    return message


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_set_is_fetched_from_where_it_is_published(name: str, serve: Serve, here: Path) -> None:
    files, rows = PUBLISHED[name]
    serve(files, gated=("wildguardmix",))
    paths = fetch(known(name))
    assert {path.parent for path in paths} == {here}
    assert [path.read_bytes() for path in paths] == list(files.values())
    assert [(row.text, row.label, row.category) for row in load_dataset(name).examples] == rows


def test_every_set_that_can_be_fetched_is_asked_for_below_its_home(serve: Serve) -> None:
    server = serve({}, reply=Reply(404))
    for source in known_sets().values():
        if source.fetch:
            with pytest.raises(GuardianError, match="not at its known place"):
                fetch(source)
            assert server.log[-1][1].split("/")[-1]
            assert "/".join(source.home.split("/")[3:]) in server.log[-1][1]
        else:
            with pytest.raises(DataError, match="is not here: get "):
                fetch(source)


def test_two_sets_of_one_file_share_it_and_no_others_do() -> None:
    homes: dict[str, set[tuple[str, str]]] = {}
    for source in known_sets().values():
        for name, path in zip(source.names, source.fetch, strict=False):
            homes.setdefault(name, set()).add((source.home, path))
    assert all(len(places) == 1 for places in homes.values())


def test_what_was_fetched_is_read_offline(serve: Serve) -> None:
    server = serve(PUBLISHED["xstest"][0])
    first = fetch(known("xstest"))
    server.files = {}
    assert fetch(known("xstest")) == first
    assert len(server.log) == 1


def test_your_own_file_comes_before_a_fetched_one(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(PUBLISHED["xstest"][0])
    fetch(known("xstest"))
    monkeypatch.setenv("GUARDIAN_DATA", str(tmp_path))
    (tmp_path / "xstest.jsonl").write_text('{"text": "mine", "label": "safe"}\n', encoding="utf-8")
    assert [row.text for row in load_dataset("xstest").examples] == ["mine"]


# --- what was got


def test_the_lock_says_what_was_got(serve: Serve) -> None:
    server = serve({**PUBLISHED["xstest"][0], **PUBLISHED["multijail.ko"][0]})
    (csv,), (jail,) = fetch(known("xstest")), fetch(known("multijail.ko"))
    lock, newest = read_lock(csv), read_lock(jail)
    assert lock and newest
    assert lock.url == f"{server.github}/paul-rottger/xstest/{lock.revision}/xstest_prompts.csv"
    assert (lock.revision, lock.bytes) == (known("xstest").revision, len(XSTEST))
    assert lock.sha256 == hashlib.sha256(XSTEST).hexdigest()
    assert newest.revision == COMMIT  # the hub says which commit the newest one is
    assert read_lock(Path("nowhere.csv")) is None


def test_a_lock_pins_what_was_the_newest(serve: Serve) -> None:
    content = "id,source,en,ko\n0,x,a,가\n".encode()
    server = serve({"MultiJail.csv": content})
    (path,) = fetch(known("multijail.ko"))
    path.unlink()
    assert fetch(known("multijail.ko")) == [path]
    asked = [call[1] for call in server.log if "/resolve/" in call[1] and "/api/" not in call[1]]
    assert [address.split("/resolve/")[1].split("/")[0] for address in asked] == ["main", COMMIT]
    path.unlink()
    server.files = {"MultiJail.csv": content + b"1,x,b,b\n"}
    with pytest.raises(GuardianError, match="another sha256"):
        fetch(known("multijail.ko"))
    assert not path.exists()


def test_a_file_that_is_not_the_known_one_is_refused(serve: Serve) -> None:
    serve(PUBLISHED["xstest"][0])
    source = known("xstest").model_copy(update={"sha256": {"xstest.csv": "0" * 64}})
    with pytest.raises(GuardianError, match=r"another sha256 than 0{16}; or get xstest_prompts\.csv"):
        fetch(source)
    assert not list(cache_directory().iterdir())


def test_a_damaged_lock_is_named(serve: Serve) -> None:
    serve(PUBLISHED["xstest"][0])
    (path,) = fetch(known("xstest"))
    path.with_name("xstest.csv.lock.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"xstest\.csv\.lock\.json is damaged: remove it"):
        read_lock(path)


def test_the_token_goes_to_the_hub_and_nowhere_else(serve: Serve) -> None:
    server = serve({**PUBLISHED["wildguardtest"][0], **PUBLISHED["xstest"][0]}, gated=("wildguardmix",))
    fetch(known("wildguardtest"))
    fetch(known("xstest"))
    assert [(site, token) for site, _, token in server.log] == [
        ("hub", f"Bearer {TOKEN}"),
        ("storage", None),
        ("github", None),
    ]


# --- what can go wrong


def test_a_gated_set_without_a_token_is_one_line_and_no_call(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(PUBLISHED["wildguardtest"][0], gated=("wildguardmix",))
    monkeypatch.delenv("HF_TOKEN")
    message = fails("wildguardtest", "is gated: accept its terms at its home and set HF_TOKEN; or get ")
    assert "ODC-BY" in message and server.log == []


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        (Reply(401), "is gated: accept its terms .* token that is valid"),
        (Reply(403), "is gated: accept its terms .* with the account of HF_TOKEN"),
        (Reply(404), "is not at its known place any more"),
        (Reply(500), "answered 500"),
        (Reply(200, b"x" * 100, cut=50), "no answer from 127"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else "",
)
def test_an_answer_that_is_no_file_is_one_line(reply: Reply, match: str, serve: Serve) -> None:
    serve({}, reply=reply)
    assert TOKEN not in fails("wildguardtest", match)


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # a port on which nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("GITHUB_RAW", f"http://127.0.0.1:{taken.getsockname()[1]}")
        fails("xstest", r"no answer from 127\.0\.0\.1:\d+ \(ConnectError\); or get xstest_prompts\.csv from ")


def test_a_file_that_is_too_large_is_not_kept(serve: Serve) -> None:
    serve(PUBLISHED["xstest"][0])
    with pytest.raises(GuardianError, match="larger than"):
        fetch(known("xstest"), limit=20)
    assert not list(cache_directory().iterdir())


# --- the commands


def test_the_list_says_where_a_set_is_or_how_to_get_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    serve(PUBLISHED["xstest"][0])
    fetch(known("xstest"))
    lines = {line.split()[0]: line for line in CliRunner().invoke(app, ["sets", "list"]).stdout.splitlines()}
    assert set(known_sets()) < set(lines)
    assert lines["xstest"].rstrip().endswith("xstest.csv") and "label: safe | unsafe" in lines["xstest"]
    assert "guardian sets fetch wildguardtest (with HF_TOKEN)" in lines["wildguardtest"]
    assert "get xstest_prompts.csv" in lines["xstest.ko"] and "CC-BY-NC-4.0" in lines["toxicchat"]


def test_one_set_that_fails_stops_no_other(serve: Serve, here: Path) -> None:
    serve(PUBLISHED["xstest"][0])
    result = CliRunner().invoke(app, ["sets", "fetch", "nowhere", "harmbench", "xstest"])
    assert result.exit_code == 1
    assert result.stdout == f"xstest: {here / 'xstest.csv'}\n"
    assert [line.split()[1] for line in result.stderr.splitlines()] == ["no", "harmbench"]


def test_compare_fetches_what_is_missing(serve: Serve, tmp_path: Path) -> None:
    server = serve(PUBLISHED["multijail.ko"][0])
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "a", "label": "safe"}\n', encoding="utf-8")
    out = tmp_path / "out"
    call = ["compare", "constant:unsafe", "-d", "multijail.ko", "-d", str(own), "-o", str(out)]
    result = CliRunner().invoke(app, call)
    assert isinstance(result.exception, DataError) and "guardian sets fetch multijail.ko" in str(
        result.exception
    )
    assert CliRunner().invoke(app, [*call, "--fetch"]).exit_code == 0
    told = json.loads((out / "compare.json").read_text("utf-8"))["data"]["multijail.ko"]
    assert (told["n"], told["revision"]) == (1, COMMIT)
    assert {site for site, _, _ in server.log} == {"hub"}
