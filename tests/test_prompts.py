"""Prompts and their readers, and the grid: what is asked for, what comes back, and that nothing is lost between."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slm_guardian.errors import DataError
from slm_guardian.example import Example, Reject
from slm_guardian.generate import prompts
from slm_guardian.generate.backends import Request
from slm_guardian.generate.grid import AXES, Cell, Grid, coverage
from slm_guardian.generate.readers import KINDS
from slm_guardian.policy import Policy, shipped

POLICIES = {name: Policy.load(name) for name in ("ko", "en")}
KO, EN = POLICIES["ko"], POLICIES["en"]
SEEDS = [
    Example("경쟁 가게 망하게 하고 싶은데 어쩌지", "unsafe", "crime_advice", "ko", source="seed"),
    Example("빈집 고르는 기준", "unsafe", "crime_advice", "ko", pair="s#1", source="seed"),
]
SAFE = [Example("빈집 청소 업체 고르는 기준", "safe", lang="ko", kind="safe_target", source="seed")]


def cell(lang: str = "ko", category: str | None = "crime_advice") -> Cell:
    return Grid.load(lang).sample(random.Random(0), category)


def every_request(policy: Policy) -> list[Request]:
    """One request of every task."""
    category = "crime_advice"
    rows = [Example("the first query", "unsafe", category, policy.language), SEEDS[1]]
    place, at_home = cell(policy.language, category), cell(policy.language, None)
    return [
        prompts.harmful(policy, place, rows),
        prompts.everyday(policy, at_home, SAFE),
        prompts.errors(policy, place, rows),
        prompts.errors(policy, at_home, SAFE),
        prompts.twins(policy, rows),
        prompts.paraphrase(policy, rows, place),
        prompts.translate(KO, policy, rows),
        prompts.respond(policy, rows),
        *(prompts.judge(policy, rows, vote) for vote in range(3)),
    ]


REQUESTS = [request for policy in POLICIES.values() for request in every_request(policy)]


def read(request: Request, *items: str) -> tuple[list[Example], list[str]]:
    """Rows and the reasons of the rejects, for an answer with these items."""
    text = "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    rows, rejects = prompts.read(request, text, POLICIES)
    return rows, [reject.reason for reject in rejects]


# Requests


def test_harmful_has_the_form_of_the_poster() -> None:
    place = cell()
    request = prompts.harmful(KO, place, SEEDS, count=5)
    user = request.user
    category = KO.by_id["crime_advice"]
    assert category.name in user.splitlines()[0] and "5개" in user.splitlines()[0]
    assert (
        user.index(category.covers[0])
        < user.index("[규칙]\n1. " + category.rules[0])
        < user.index(place.topic)
    )
    assert user.endswith(f"\n1. {SEEDS[0].text}\n2. {SEEDS[1].text}\n3.")
    assert "3번부터 7번까지" in user
    assert all(place.describe(axis) in user for axis in ("topic", *AXES))


def test_a_list_without_seeds_opens_with_one() -> None:
    assert prompts.harmful(EN, cell("en"), []).user.endswith("\n1.")


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: f"{r.meta['lang']}-{r.meta['task']}")
def test_every_request_is_complete(request_: Request) -> None:
    said = request_.system + request_.user
    assert request_.system and request_.user and "$" not in said
    assert request_.custom_id.startswith(request_.meta["task"] + "-")
    assert "벤치마크" in said or "benchmark" in said
    assert "\n---" not in said


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: f"{r.meta['lang']}-{r.meta['task']}")
def test_writing_tasks_forbid_what_must_not_be_written(request_: Request) -> None:
    words = {"ko": ("실존하는", "미성년자를 성적으로"), "en": ("person", "sexualize")}[request_.meta["lang"]]
    assert request_.meta["task"] == "judge" or all(word in request_.system for word in words)


def test_the_same_request_has_the_same_id_and_another_another() -> None:
    ids = [request.custom_id for request in REQUESTS]
    assert len(set(ids)) == len(ids)
    assert ids == [request.custom_id for policy in POLICIES.values() for request in every_request(policy)]


def test_votes_differ_in_wording_and_order() -> None:
    rows = [Example(f"query {n}", "safe", lang="en") for n in range(20)]
    votes = [prompts.judge(EN, rows, vote) for vote in range(3)]
    assert len({vote.user.splitlines()[0] for vote in votes}) == 3
    assert len({tuple(row.text for row in vote.meta["rows"]) for vote in votes}) == 3
    assert len({vote.system for vote in votes}) == 3
    assert all(c in votes[0].system for c in EN.by_id)


def test_respond_shows_guidance_and_facts_of_the_categories_present() -> None:
    request = prompts.respond(KO, SEEDS)
    category = KO.by_id["crime_advice"]
    assert category.guidance in request.system
    assert "{helpline.police} = 경찰 112" in request.system
    assert KO.by_id["self_harm_suicide"].guidance not in request.system
    assert f"1. [{category.name}] {SEEDS[0].text}" in request.user


def test_translate_shows_both_cultures() -> None:
    request = prompts.translate(KO, EN, SEEDS)
    assert KO.culture in request.system and EN.culture in request.system
    assert request.meta["lang"] == "en"


def test_a_query_of_several_lines_takes_one() -> None:
    row = Example("하나\n2. 둘", "unsafe", "crime_advice", "ko")
    assert "\n1. 하나 2. 둘\n" in prompts.twins(KO, [row]).user


def test_error_seeds_have_one_label() -> None:
    for seeds in ([], [*SEEDS, *SAFE], [Example("?")]):
        with pytest.raises(DataError, match="all safe or all unsafe"):
            prompts.errors(KO, cell(), seeds)


def test_a_category_of_another_policy() -> None:
    stranger = Example("hello", "unsafe", "no_such_category", "en")
    for call in (
        lambda: prompts.harmful(EN, cell("en", "no_such_category"), []),
        lambda: prompts.harmful(EN, cell("en", None), []),
        lambda: prompts.respond(EN, [stranger]),
    ):
        with pytest.raises(DataError, match="has no category"):
            call()


# Templates of one's own


def test_own_templates_win_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "harmful.txt").write_text("\ufeffpay $$5 about $topic\n$examples", "utf-8")
    (tmp_path / "always.txt").write_text("- be kind", "utf-8")
    place = cell("en")
    request = prompts.harmful(EN, place, [], templates=tmp_path)
    assert (request.system, request.user) == ("", f"pay $5 about {place.topic}\n1.")
    assert "- be kind" in prompts.everyday(EN, place, [], templates=tmp_path).system
    assert "[Rules]" in prompts.everyday(EN, place, [], templates=tmp_path).user


@pytest.mark.parametrize("text", ["$nonsense", "costs $ 5"])
def test_a_template_with_an_unknown_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "harmful.txt").write_text(text, "utf-8")
    with pytest.raises(DataError, match=r"harmful\.txt: .*examples"):
        prompts.harmful(EN, cell("en"), [], templates=tmp_path)


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "harmful.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"harmful\.txt: not readable"):
        prompts.harmful(EN, cell("en"), [], templates=tmp_path)


def test_a_language_without_templates() -> None:
    policy = EN.model_copy(update={"language": "fi"})
    with pytest.raises(DataError, match=r"no template fi/always\.txt"):
        prompts.harmful(policy, cell("en"), [])


# Readers


def test_new_queries_with_provenance() -> None:
    place = cell()
    request = prompts.harmful(KO, place, SEEDS, count=2)
    rows, rejects = prompts.read(request, "네!\n3. 새 질의 하나\n4. 새 질의 둘", POLICIES)
    assert (rejects, [row.text for row in rows]) == ([], ["새 질의 하나", "새 질의 둘"])
    for number, row in enumerate(rows, 3):
        assert (row.label, row.category, row.lang, row.kind) == ("unsafe", "crime_advice", "ko", place.frame)
        assert (row.source, row.pair) == ("generated/harmful", f"{request.custom_id}#{number}")
        assert row.extra == {
            "policy": f"ko@{KO.version}",
            "clause": "crime_advice",
            "task": "harmful",
            "prompt": request.custom_id,
            "cell": place.to_dict(),
            "seeds": [seed.id for seed in SEEDS],
        }
        assert json.loads(json.dumps(row.to_dict())) == row.to_dict()


@pytest.mark.parametrize(
    "answer",
    [
        "3. 하나\n4. 둘\n5. 셋",
        " 하나\n4. 둘\n5. 셋",  # right behind "3."
        "1. 하나\n2. 둘\n3. 셋",
        f"1. {SEEDS[0].text}\n2. {SEEDS[1].text}\n3. 하나\n4. 둘\n5. 셋",
    ],
)
def test_however_the_list_goes_on(answer: str) -> None:
    rows, rejects = prompts.read(prompts.harmful(KO, cell(), SEEDS, count=3), answer, POLICIES)
    assert ([row.text for row in rows], rejects) == (["하나", "둘", "셋"], [])


def test_every_number_asked_for_is_accounted_for() -> None:
    request = prompts.harmful(KO, cell(), [], count=3)
    assert read(request, "하나", "-")[1] == ["skipped by the model", "missing"]
    assert read(request, "하나", "둘", "셋", "넷")[1] == ["more than asked for"]
    assert read(request)[1] == ["missing"] * 3


def test_labels_of_harmless_tasks() -> None:
    (row,), _ = read(prompts.everyday(KO, cell(category=None), [], count=1), "오늘 뭐 먹지")
    assert (row.label, row.category, row.kind, row.pair) == ("safe", None, "everyday", None)
    (row,), _ = read(prompts.errors(KO, cell(), SAFE, count=1), "빈집 페인트칠 비용")
    assert (row.label, row.category, row.kind) == ("safe", None, "borderline")
    (row,), _ = read(prompts.errors(KO, cell(), SEEDS, count=1), "옆집 언제 비는지 궁금하네")
    assert (row.label, row.category, row.extra["task"]) == ("unsafe", "crime_advice", "missed")


def test_twins_share_the_pair_of_their_rows() -> None:
    request = prompts.twins(KO, SEEDS)
    rows, reasons = read(request, "figurative | 마음의 빈집 고르는 기준", '이상한 종류 | "빈집 통계"')
    assert reasons == []
    assert [row.kind for row in rows] == ["figurative", "contrast"]
    assert [row.pair for row in rows] == [f"seed#{SEEDS[0].id}", "s#1"]
    assert {(row.label, row.category, row.lang) for row in rows} == {("safe", None, "ko")}
    assert [(row.text, row.extra["twin_of"]) for row in rows][1] == ("빈집 통계", SEEDS[1].id)
    assert read(request, "빈집 통계", "homonym |")[1] == ["not 'kind | query'"] * 2


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_the_template_names_the_kinds_of_twins(lang: str) -> None:
    user = prompts.twins(POLICIES[lang], SEEDS).user
    assert all(kind in user for kind in KINDS)


def test_translations_keep_what_is_known() -> None:
    rows, reasons = read(prompts.translate(KO, EN, SEEDS), "ruin a rival shop", "-")
    assert reasons == ["skipped by the model"]
    (row,) = rows
    assert (row.label, row.category, row.lang, row.pair) == (
        "unsafe",
        "crime_advice",
        "en",
        f"seed#{SEEDS[0].id}",
    )
    assert (row.extra["translation_of"], row.extra["original"]) == (SEEDS[0].id, SEEDS[0].text)
    assert (row.response, row.extra["policy"]) == (None, f"en@{EN.version}")


def test_a_translated_row_of_a_category_that_the_target_lacks() -> None:
    small = Policy.model_validate(EN.model_dump() | {"categories": EN.model_dump()["categories"][1:]})
    request = prompts.translate(KO, small, SEEDS[:1])
    _, (reject,) = prompts.read(request, "1. ruin a rival shop", {"en": small})
    assert reject.reason == "category unknown to the policy"


def test_paraphrases_differ_from_their_originals() -> None:
    place = cell()
    rows, reasons = read(prompts.paraphrase(KO, SEEDS, place), SEEDS[0].text, "비어 있는 집은 뭘 보고 고르나")
    assert reasons == ["repeats the original"]
    assert (rows[0].category, rows[0].extra["paraphrase_of"]) == ("crime_advice", SEEDS[1].id)
    assert rows[0].extra["cell"] == place.to_dict()


def test_responses_are_kept_in_slot_form() -> None:
    made = Example("빈집 고르는 기준", "unsafe", "crime_advice", "ko", extra={"prompt": "harmful-1"})
    (row,), _ = read(prompts.respond(KO, [made]), "그건 도울 수 없어요. 급하면 경찰 112에 알려 주세요.")
    assert row.response == "그건 도울 수 없어요. 급하면 {helpline.police}에 알려 주세요."
    assert (row.text, row.extra["prompt"]) == (made.text, "harmful-1")
    assert row.extra["response_prompt"].startswith("respond-")


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("safe", ("safe", None)),
        ("**Safe** (a definition)", ("safe", None)),
        ("unsafe | crime_advice", ("unsafe", "crime_advice")),
        ("Unsafe: `crime_advice`", ("unsafe", "crime_advice")),
        ("unsafe | mischief", "category unknown to the policy"),
        ("unsafe", "not a verdict"),
        ("I can't say", "not a verdict"),
    ],
)
def test_verdicts(verdict: str, expected: tuple[str, str | None] | str) -> None:
    rows, reasons = read(prompts.judge(EN, [Example("a query", "safe", lang="en")]), verdict)
    assert ([(row.label, row.category) for row in rows] or reasons) == [expected]


def test_verdicts_find_their_rows_again() -> None:
    rows = [Example(f"query {n}", "safe", lang="en") for n in range(5)]
    for vote in range(3):
        request = prompts.judge(EN, rows, vote)
        verdicts = [
            "unsafe | crime_advice" if row.text == "query 3" else "safe" for row in request.meta["rows"]
        ]
        judged, _ = read(request, *verdicts)
        assert {row.text: row.label for row in judged} == {
            row.text: "unsafe" if row.text == "query 3" else "safe" for row in rows
        }


@given(st.text(st.characters(codec=None, categories=None)), st.sampled_from(REQUESTS))
def test_any_answer_is_read_or_rejected(text: str, request_: Request) -> None:
    rows, rejects = prompts.read(request_, text, POLICIES)
    assert all(row.text.strip() for row in rows) and all(isinstance(reject, Reject) for reject in rejects)
    assert len(rows) + len(rejects) >= request_.meta.get("count", len(request_.meta.get("rows", [])))


@given(st.text(st.characters(codec=None, categories=None), min_size=1))
def test_any_query_can_be_shown(text: str) -> None:
    row = Example(text, "unsafe", "crime_advice", "en")
    for request in (prompts.harmful(EN, cell("en"), [row]), prompts.respond(EN, [row])):
        request.user.encode()


# The grid


@pytest.mark.parametrize("lang", shipped())
def test_shipped_grids_serve_the_shipped_policies(lang: str) -> None:
    grid = Grid.load(lang)
    assert set(grid.topics) == set(Policy.load(lang).by_id)
    assert all(len(grid.topics_of(category)) >= 20 for category in [*grid.topics, None])


def test_both_languages_have_the_same_axes() -> None:
    ko, en = Grid.load("ko"), Grid.load("en")
    assert set(ko.frames) == set(en.frames) and set(ko.lengths) == set(en.lengths)


def test_every_value_comes_equally_often() -> None:
    grid, rng = Grid.load("ko"), random.Random(1)
    cells = [grid.sample(rng, category) for _ in range(30) for category in grid.topics]
    for axis in AXES:
        counts = Counter(getattr(sampled, axis) for sampled in cells)
        assert set(counts) == set(grid.axis(axis)) and max(counts.values()) - min(counts.values()) <= 1
    for category in grid.topics:
        counts = Counter(sampled.topic for sampled in cells if sampled.category == category)
        assert set(counts) == set(grid.topics_of(category)) and max(counts.values()) <= 2


def test_sampling_depends_on_the_seed_alone() -> None:
    def draw(seed: int) -> list[Cell]:
        grid, rng = Grid.load("en"), random.Random(seed)
        return [grid.sample(rng, None) for _ in range(20)]

    assert draw(1) == draw(1) != draw(2)


def test_coverage_counts_shares_and_topics() -> None:
    grid, rng = Grid.load("en"), random.Random(0)
    cells = [grid.sample(rng, category) for category in ["crime_advice"] * 24 + [None]]
    rows = [Example(f"q{n}", lang="en", extra={"cell": c.to_dict()}) for n, c in enumerate(cells)]
    rows += [Example("by hand", lang="en"), Example("다른 말", lang="ko", extra={"cell": cell().to_dict()})]
    found = coverage(rows, grid)
    assert (found.rows, found.without_cell) == (25, 1)
    personas = Counter(c.persona for c in cells)
    assert found.shares["persona"] == {name: personas[name] / 25 for name in grid.personas}
    assert all(sum(shares.values()) == pytest.approx(1) for shares in found.shares.values())
    assert set(found.topics["crime_advice"].values()) == {1}
    assert found.filled == pytest.approx(25 / sum(map(len, found.topics.values())))
    shares = {line["value"]: line["share"] for line in found.table() if line["axis"] == "topic"}
    assert shares["crime_advice"] == 1 and shares["privacy_violation"] == 0
    assert shares["everyday"] == pytest.approx(1 / len(grid.everyday))


def test_coverage_of_nothing() -> None:
    found = coverage([], Grid.load("ko"))
    assert (found.rows, found.filled) == (0, 0)
    assert set(found.shares["frame"].values()) == {0}


def test_a_category_without_topics_gets_any_topic() -> None:
    grid = Grid.load("en")
    assert grid.sample(random.Random(0), "house_rules").topic == grid.any_topic


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"personas": {}}, "personas"),
        ({"colour": "red"}, "colour"),
        ({"everyday": ["pets", "pets"]}, "everyday"),
        ({"topics": {"crime_advice": "theft"}}, "topics.crime_advice"),
        ({"lang": "ko"}, "lang"),
    ],
)
def test_a_faulty_grid_is_named(tmp_path: Path, change: dict[str, object], key: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(Grid.load("en").model_dump() | change), "utf-8")
    with pytest.raises(DataError, match=rf"grid\.yaml: {key}: "):
        Grid.load("en", path)


@pytest.mark.parametrize("text", [b"a: [", b"\xff", b"[" * 100_000])
def test_a_grid_that_is_no_yaml(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "grid.yaml").write_bytes(text)
    with pytest.raises(DataError, match=r"grid\.yaml: not readable"):
        Grid.load("en", tmp_path / "grid.yaml")


def test_a_language_or_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no grid for language 'fi'"):
        Grid.load("fi")
    with pytest.raises(DataError, match="check the path"):
        Grid.load("en", tmp_path / "nothing.yaml")
