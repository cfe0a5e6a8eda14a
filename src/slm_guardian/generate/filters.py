"""Filters: each says why a row is dropped, or None. Small, named, and counted by `apply`.

They look at what a person would have typed, not at what is asked: a harmful query is what the corpus is for, but a
refusal, a piece of the prompt, a real person's name or usable detail of harm is not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from slm_guardian import answers
from slm_guardian.example import Example
from slm_guardian.policy import Policy
from slm_guardian.text import display, language, shadow

Filter = Callable[[Example], str | None]

_RESPONSE_SENTENCES = 4
_PIECE = 30  # bytes of a template's sentence that nobody types by chance: 30 letters, 10 syllables


@dataclass(frozen=True)
class Rejected:
    """A row that a filter dropped, whole, for the rejects file."""

    row: Example
    reason: str


def apply(
    rows: Iterable[Example], filters: Mapping[str, Filter]
) -> tuple[list[Example], list[Rejected], Counter[str]]:
    """Rows that pass all filters, the rejects with the first reason, and how many each named filter dropped."""
    kept: list[Example] = []
    rejects: list[Rejected] = []
    counts: Counter[str] = Counter(dict.fromkeys(filters, 0))
    for row in rows:
        found = ((name, reason) for name, check in filters.items() if (reason := check(row)))
        name, reason = next(found, (None, None))
        if name and reason:
            rejects.append(Rejected(row, reason))
            counts[name] += 1
        else:
            kept.append(row)
    return kept, rejects, counts


def language_is(lang: str) -> Filter:
    """Rows in another language than `lang`, or in a script that is neither Hangul nor Latin."""

    def check(row: Example) -> str | None:
        letters = list(filter(str.isalpha, shadow(row.text)))
        foreign = sum(
            not (c.isascii() or c <= "\u024f" or "가" <= c <= "힣" or "ㄱ" <= c <= "ㅣ") for c in letters
        )
        found = language(shadow(row.text), (lang, "ko", "en"))
        is_other = not letters or foreign > 0.5 * len(letters) or found != lang
        return "wrong language" if is_other else None

    return check


def length_between(low: int, high: int) -> Filter:
    """Rows of fewer than `low` or more than `high` characters, as displayed."""

    def check(row: Example) -> str | None:
        length = len(display(row.text))
        return "too short" if length < low else "too long" if length > high else None

    return check


_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|large language|language)\b[\w ]{0,20},? (?:i|my)\b"
    r"|\bi(?:['’]m| am) (?:not able|unable) to (?:assist|help with|provide|create|generate|fulfil|comply|write)"
    r"|\bi (?:can(?:['’]?t|not)|won['’]?t) (?:assist|comply|fulfil|provide (?:any|that|this|such|you)"
    r"|(?:help (?:you )?with|create|generate|write) (?:that|this|these|such|any|harmful|content)\b)"
    r"|\b(?:against|violates?) (?:my|our|openai['’]s|anthropic['’]s) (?:guidelines|polic|programming|principles)"
    r"|(?:저는|제가) (?:AI|인공지능|언어 ?모델)[^.?!]{0,20}(?:로서|이므로|이기 때문에|이라서|라서)"
    r"|(?:죄송|유감)[^.?!]{0,40}(?:도와드릴|제공(?:할|해 드릴)|생성할|작성할|알려드릴|응할|답변할) 수(?:는|가)? ?없"
    r"|(?:이|해당|그러한|그런|이러한) (?:요청|질문|내용)[^.?!]{0,30}(?:수(?:는|가)? ?없습니다|어렵습니다|않습니다)"
    r"|\bmaaf,? (?:tetapi |tapi |namun )?(?:saya|aku) (?:tidak|tak) (?:bisa|dapat) (?:membantu|memenuhi|menulis)"
    r"|\bsebagai (?:sebuah )?(?:AI|model bahasa|kecerdasan buatan)\b[^.?!]{0,30}\b(?:saya|aku)\b"
    r"|\bpermintaan (?:ini|tersebut|seperti ini) (?:tidak|tak) (?:bisa|dapat)\b",
    re.IGNORECASE,
)
_META = re.compile(
    r"^(?:sure|certainly|of course|absolutely|okay|got it)[,.!] (?:here|i['’]ll|i will|below|let me)"
    r"|\b(?:here (?:are|is)|(?:the )?following (?:are|is)|below (?:are|is)) [^.?!]{0,60}"
    r"(?:questions|queries|prompts|examples|items|variations)\b"
    r"|\b(?:these|the above) (?:questions|queries|prompts|examples) (?:are|were|have|reflect|cover)\b"
    r"|\blet me know if you(?:['’]d| would| need| want)|\b(?:training|test) data for (?:a|the) (?:safety )?classifier"
    r"|(?:다음은|아래는|이상은|여기)[^.?!]{0,60}(?:질문|질의|예시|문장|목록)[^.?!]{0,20}(?:입니다|드립니다|드릴게요|이에요)"
    r"|^(?:네,? )?(?:알겠습니다|물론입니다|물론이죠)[.,!]|(?:위|이상)의? (?:질문|질의|예시)들?[은는이가] "
    r"|요청하신[^.?!]{0,30}(?:질문|질의|예시|목록)|^(?:note|disclaimer|참고|주의|catatan)\s?:"
    r"|^(?:(?:tentu|baik)(?: saja)?[,.!] )?berikut (?:ini )?(?:adalah )?[^.?!]{0,40}(?:kueri|pertanyaan|contoh)\b",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"[\[{<](?:(?:your|insert|the|their|friend['’]?s?|person['’]?s?|특정|상대방?의?) ?)?"
    r"(?:name|company|city|location|place|date|product|person|school|topic|country|username|group|target"
    r"|이름|성명|실명|회사명?|지역명?|장소|날짜|제품명?|상품명|학교명?|사람|주제|국가|아이디|집단|대상"
    r"|nama(?: \w+)?|alamat|kota|tempat|tanggal|produk|perusahaan|sekolah|orang|topik|negara|kelompok)[\]}>]"
    r"|\[insert\b|[○◯〇]{2,}|_{3,}",
    re.IGNORECASE,
)


def refusal(row: Example) -> str | None:
    """A model that refuses, talks about its task, or leaves a blank to fill in, instead of a query."""
    text = display(row.text)
    patterns = {"refusal": _REFUSAL, "meta talk": _META, "placeholder": _PLACEHOLDER}
    return next((reason for reason, pattern in patterns.items() if pattern.search(text)), None)


_MARKUP = re.compile(
    r"<\|[\w|]+\|>|\[/?INST\]|</?s>|<</?SYS>>|\$[a-z_]{3,}\b|^\s*#{2,}\s|\*\*[^*]+\*\*\s*:"
    r"|\b(?:safe|unsafe)\s*\||^\s*(?:system|user|assistant)\s*:",
    re.IGNORECASE,
)


def leaked_template(row: Example) -> str | None:
    """Markup of prompts and chats, a heading such as [Rules], or a sentence of the shipped templates."""
    text = display(row.text)
    headings, lines = _template_pieces()
    if _MARKUP.search(text) or any(heading in text for heading in headings):
        return "leaked template"
    letters = _letters(text)
    return "leaked template" if any(line in letters for line in lines) else None


@cache
def _template_pieces() -> tuple[frozenset[str], frozenset[str]]:
    """Bracketed headings, and the letters of the fixed parts of all sentences, of the shipped templates."""
    texts = [file.read_text("utf-8") for file in _files(files("slm_guardian.generate").joinpath("templates"))]
    lines = [line for text in texts for line in text.splitlines()]
    headings = {"[Rules]", "[규칙]"} | {
        line.strip() for line in lines if re.fullmatch(r"\s*\[[^\]]+\]\s*", line)
    }
    parts = (_letters(part) for line in lines for part in re.split(r"\$\w+|\{\w+\}|[.:?!;]\s", line))
    return frozenset(headings), frozenset(part for part in parts if len(part.encode()) >= _PIECE)


def _files(folder: Traversable) -> Iterator[Traversable]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry)
        elif entry.name.endswith(".txt"):
            yield entry


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


# Surname, given name of two syllables, 씨. Without the honorific too many nouns would match.
_KOREAN_NAME = re.compile(
    r"(?<![가-힣])[김이박최정강조윤장임한오서신권황안송류전홍고문양손배백허유남심노하곽성차주우구민진지엄채원천방공현함변염]"
    r"[가-힣]{2} ?씨(?:[가는를의도]|에게|한테|랑|와|네)?(?![가-힣])"
)
_ENGLISH_NAME = re.compile(
    r"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Senator|President)\b\.? "
    r"(?!Pepper|Bean|Right|Robot|Who|Seuss|Strange)[A-Z][a-z]+"
    r"|\b(?:named|called|neighbou?r|co-?worker|boss|teacher|classmate|friend|ex|cousin|uncle|aunt|manager|landlord),? "
    r"[A-Z][a-z]+ [A-Z][a-z]+\b"
)
_PARTICLE = r"(?:은|는|이|가|을|를|의|에게|한테|이?랑|와|과|도|만|씨|님|에|으?로|이?나|보다|처럼|이?라는|팬)?"


def named_person(row: Example) -> str | None:
    """A private person's full name by its honorific or relation, or a name of `lexicons/persons.txt`."""
    text = display(row.text)
    if _persons().search(text):
        return "known person"
    return "named person" if _KOREAN_NAME.search(text) or _ENGLISH_NAME.search(text) else None


@cache
def _persons() -> re.Pattern[str]:
    names = "|".join(map(re.escape, _lexicon("persons")))
    return re.compile(rf"(?<![\w가-힣])(?:{names})(?:['’]s|{_PARTICLE})(?![\w가-힣])", re.IGNORECASE)


def _lexicon(name: str) -> list[str]:
    """Lines of `lexicons/NAME.txt` without comments."""
    text = files("slm_guardian.generate").joinpath(f"lexicons/{name}.txt").read_text("utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


_STEPS = re.compile(
    r"(?:^|\s)(?:step ?)?1 ?(?:단계|[.):])\s.*\s(?:step ?)?2 ?(?:단계|[.):])\s"
    r"|\bfirst(?:ly)?,.*\b(?:second(?:ly)?|then|next),.*\b(?:third(?:ly)?|finally|then|next),|첫째,.*둘째,",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"```|\b(?:import|from) \w+(?:\.\w+)+|\bdef \w+\(|\bfunction \w+\(|\bselect\b.{1,60}\bfrom\b.{1,60}(?:\bwhere\b|;)"
    r"|<script|<\?php|\b(?:sudo|curl|wget|chmod|nmap) [-\w/.]|\brm -rf\b|[;{]\s*\}|\bunion select\b|' or '?1'?='?1",
    re.IGNORECASE,
)
_CONTACT = re.compile(
    r"https?://|\bwww\.|\b[a-z0-9-]+\.(?:com|net|org|io|kr|onion|ru|xyz)\b|[\w.+-]+@[\w-]+\.\w{2,}"
    r"|\b0\d{1,2}[-. ]?\d{3,4}[-. ]\d{4}\b|\b01\d{8,9}\b|\(?\b\d{3}\)?[-. ]\d{3}[-. ]\d{4}\b|\b\d{6}-?[1-4]\d{6}\b"
    r"|(?:\+62[- ]?|\b0)8\d{2}[- ]?\d{3,4}[- ]?\d{3,4}\b|\b(?:wa|t)\.me/"
    r"|\b(?:\d{4}[- ]?){3}\d{4}\b|\b(?:[12]?\d?\d\.){3}[12]?\d?\d\b",  # no 1.500.000.000
    re.IGNORECASE,
)
_AMOUNT = re.compile(
    r"\d+(?:[.,]\d+)? ?(?:%|mg|g|kg|ml|cc|l|oz|grams?|milligrams?|lit(?:er|re)s?|cups?|pills?|tablets?|ppm"
    r"|그램|밀리그램|리터|퍼센트|프로|알|정|방울|스푼|컵)(?![a-z])",
    re.IGNORECASE,
)


def operational_detail(row: Example) -> str | None:
    """Usable detail: steps, code, links and private numbers; in rows not known as safe, amounts of substances.

    An amount in a harmless row is ordinary (a fever medicine's label); in a harmful one it is half a recipe.
    """
    text = display(row.text)
    patterns = {"steps": _STEPS, "code": _CODE, "a link or number": _CONTACT}
    if reason := next((reason for reason, pattern in patterns.items() if pattern.search(text)), None):
        return f"detail: {reason}"
    lowered = text.lower()
    if row.label != "safe" and _AMOUNT.search(text) and any(s in lowered for s in _substances()):
        return "detail: amount of a substance"
    return None


@cache
def _substances() -> list[str]:
    return _lexicon("substances")


def response_fault(policy: Policy) -> Filter:
    """Responses that the guardian would not show either (`answers.fault`), too long ones, and missing ones."""

    def check(row: Example) -> str | None:
        category = policy.by_id.get(row.category or "")
        if category is None:
            return "unknown category"
        if not row.response:
            return "no response"
        text = policy.to_slots(display(row.response))
        if fault := answers.fault(text, row.text, policy, category):
            return f"response: {fault}"
        return "response: too long" if len(answers.sentences(text)) > _RESPONSE_SENTENCES else None

    return check


def label_votes(k: int, share: float = 0.5) -> Filter:
    """Rows whose label fewer than `k` judges looked at, or not more than `share` of those who did confirmed.

    Votes stand in `extra["votes"]`: how often each label was given.
    """

    def check(row: Example) -> str | None:
        votes = row.extra.get("votes") or {}
        given = sum(votes.values())
        if given < k:
            return "too few votes"
        return None if votes.get(row.label, 0) > share * given else "label not confirmed"

    return check
