"""What of a dialogue is judged: its last user turn, alone and together with the user turns before it.

The rule, measured in bench/dialogue.py (docs/GATEWAY.md has the numbers):

1. The last turn is judged by itself.
2. A follow-up that names no topic of its own ("tell me more", "그럼 어떻게 하면 돼?") counts as the turn that it
   follows.
3. The last turn is also judged joined to the turns before it. The join counts only from P(harm) 0.9 on,
   and only where those turns alone are safe: it is there for a query split over turns, not to hold an
   earlier turn against a new topic.

Everything else (system, assistant and tool messages) is not judged.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from slm_guardian.guardian import Verdict
from slm_guardian.serve.faults import BadRequest

Check = Callable[[Sequence[str]], Awaitable[list[Verdict]]]

JOIN_HARM = 0.9
_HALF = 160  # characters of each side: together one window of the model
_FOLLOW_UP_WORDS = 7
_WORD = re.compile(r"[^\W_][\w']*")
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_ENGLISH = frozenset(
    """
    a about actually after again all alright also an and another answer any anyway are as ask at be because
    before better bit but by can can't code come comes complete continue cost could deeper describe detail
    detailed details did different do does doing don't done each easier easy elaborate else even every
    everything exact exactly example examples expand explain fiction fictional finish first for from full
    further get getting give go going good got had happens have help here how hypothetically i i'd i'll i'm
    i've if ignore in instead into is it it's its itself just keep know last later least let let's like line
    list little long longer look made make many maybe me mean more most much must my need needed needs next
    no not nothing now of off ok okay on once one ones only or other others our out over own part parts
    please point points possible practical precise pretend properly question quick quickly really reason
    refuse repeat reply research respond rest rewrite right said same say second see seriously shorter
    should show simple simpler simply since so some something specific specifically start step steps still
    stop story such sum summarise summarize summary sure table take tell than thank thanks that that's the
    their them then there these they thing things think third this those though thought time to too tools
    try understand until up us use used very wait want was way ways we well were what what's when where
    which while who why will with without won't word words would write yeah yes yet you you're your
    """.split()  # noqa: SIM905 - a list of 250 strings is no list to read
)
_KOREAN = re.compile(
    # whole words
    r"그|이|저|그럼|그러면|그렇다면|그래서|그래도|그래|그리고|그런데|근데|그러니까|그러지|그냥|그런|이런|저런|그렇게|이렇게"
    r"|더|더욱|좀|조금|다시|또|또는|왜|왜요|안|못|어떻게|어떡해|어떤|무슨|어디서|언제|얼마나|누가|한|두|세|첫|몇|번|번째|한번"
    r"|다른|대신|제발|빨리|어서|얼른|응|네|넵|예|아니|아니요|아니야|수|게|말고|만|진짜|정말|일단|우선|혹시|그러지말고|아무|모두|전부|다|\d+\w{0,3}"
    # nouns that point back, with a particle
    r"|(?:그거|그것|그걸|그건|그게|이거|이것|저거|거|것|걸|건|뭐|뭔|뭘|무엇|하나|다음|그다음|방법|단계|순서|과정|부분|내용|예|예시|사례"
    r"|준비물|재료|도구|비용|시간|코드|표|목록|리스트|글|소설|연구용|가정|답|대답|질문|이유|결과|처음|마지막|나머지|말|한국어|영어)"
    r"(?:이|가|은|는|을|를|도|로|으로|만|만이라도|에|에서|야|이야|예요|이에요|인데|인데요|데|지|라도|부터|까지|요|면|대로|처럼)?"
    # verbs of asking, telling and doing, with any ending
    r"|(?:알려|말해|말하|말씀|설명|대답|답변|답해|얘기|이야기|보여|써|적어|정리|요약|계속|이어|시작|진행|가르쳐|추천|자세|구체|상세|정확"
    r"|제대로|간단|짧게|길게|쉽게|쉬운|괜찮|부탁|궁금|필요|가능|도와|부연|덧붙|들키|걸리|안전하)\w{0,5}"
    r"|(?:해|하|할|했|되|돼|될|된|있|없|싶|봐|볼|줘|줄|주|들어|모르|알고|알아)(?:줘|줘요|주세요|줄래|봐|봐요|보자|요|야|면|려면|는|는지|는데|는데요|나|나요"
    r"|까|까요|지|지요|죠|고|게|어|어요|을까|을까요|니|냐|래|래요|세요|시면|달라고)?"
)


@dataclass(frozen=True)
class Dialogue:
    """The user turns that are looked at, the last one last, and paths of what in it is no text."""

    turns: list[str]
    unjudged: list[str]


def read_dialogue(messages: Any, context_turns: int) -> Dialogue:
    """The last user turn of a chat request and `context_turns` before it.

    User messages without an assistant's between them are one turn. Raises BadRequest where a message could
    be read differently by the upstream than here.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list of at least one message", param="messages")
    said = [(_role(message, i), i) for i, message in enumerate(messages)]
    said = [(role, i) for role, i in said if role in ("user", "assistant")]
    turns = [[i for _, i in group] for role, group in groupby(said, lambda s: s[0]) if role == "user"]
    if not turns:
        raise BadRequest("messages holds no user message: there is nothing to judge", param="messages")
    read = [_turn(messages, turn) for turn in turns[-1 - context_turns :]]
    return Dialogue([text for text, _ in read], read[-1][1])


async def judge(turns: Sequence[str], check: Check) -> Verdict:
    """The verdict on the last turn; it is that of an earlier turn, or of the join, where these decide."""
    *before, last = turns
    if not before:
        return (await check([last]))[0]
    start = " ".join(before)[-_HALF:]
    own, joined, *topic = await check([last, f"{start} {last[:_HALF]}", *_topic(before, last)])
    for verdict in (own, *topic):
        if stops(verdict):
            return verdict
    if not stops(joined) or (joined.harm or 0) < JOIN_HARM:
        return own
    (earlier,) = await check([start])
    return own if stops(earlier) else joined


def stops(verdict: Verdict) -> bool:
    """Whether a text with this verdict goes no further."""
    return verdict.label == "unsafe" and verdict.action != "flag"


def is_follow_up(text: str) -> bool:
    """Whether a turn names no topic of its own: few words, and at most one among three that does not point back.

    >>> is_follow_up("tell me step 2"), is_follow_up("더 자세히 알려줘"), is_follow_up("recommend a good film")
    (True, True, False)
    """
    words = _WORD.findall(text[:_HALF].lower().replace("’", "'"))
    new = sum(not _points_back(word) for word in words)
    return 3 * new <= len(words) <= _FOLLOW_UP_WORDS and new <= 1 and bool(words) and len(text) <= _HALF


def _topic(before: Sequence[str], last: str) -> list[str]:
    """The turn that a follow-up follows."""
    if not is_follow_up(last):
        return []
    return [next((turn for turn in reversed(before) if not is_follow_up(turn)), before[-1])]


def _points_back(word: str) -> bool:
    return word in _ENGLISH or _KOREAN.fullmatch(word) is not None


def _role(message: Any, index: int) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise BadRequest(f"the role of a message must be one of {known}", param=f"messages[{index}].role")
    return role


def _turn(messages: list[dict[str, Any]], indexes: list[int]) -> tuple[str, list[str]]:
    """The text of a turn, and the paths of what in it is no text."""
    texts, unjudged = list[str](), list[str]()
    for i in indexes:
        content = messages[i].get("content")
        for place, part in _parts(content, f"messages[{i}].content"):
            text = _text(part)
            unjudged += [] if isinstance(text, str) else [place]
            texts += [text] if isinstance(text, str) else []
    return "\n".join(texts), unjudged


def _parts(content: Any, place: str) -> list[tuple[str, Any]]:
    if isinstance(content, list):
        return [(f"{place}[{i}]", part) for i, part in enumerate(content)]
    if not isinstance(content, str):
        raise BadRequest("the content of a user message must be a text or a list of parts", param=place)
    return [(place, content)]


def _text(part: Any) -> Any:
    """The text of a part; anything else for a part that has none."""
    if not isinstance(part, dict):
        return part
    return part.get("text") if part.get("type") in ("text", "input_text") else None
