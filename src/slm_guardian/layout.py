"""The sequence that every model reads and writes: five special tokens, and the way back from it.

    query <|pred|> <|safe|> <|end|>
    query <|pred|> <|harm|> category <|expl|> response <|end|>

P(harm) is read at `<|pred|>`, the category at `<|harm|>`: both come out of one forward pass over
`query <|pred|> <|harm|>`, because nothing before a token depends on what follows it. A category and a
policy fact are one ordinary vocabulary piece each (`§crime_advice`, `§helpline.suicide`) that no user
text can produce. A base may want something around the query (its chat template's user turn): see `Frame`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slm_guardian.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PRED, EXPL, SAFE, HARM, END = SPECIAL_TOKENS = ("<|pred|>", "<|expl|>", "<|safe|>", "<|harm|>", "<|end|>")
_SURROGATE = re.compile("[\ud800-\udfff]")  # the tokenizer takes none
MARK = "§"  # opens the piece of a category or fact
SLOT = re.compile(r"\{([a-z0-9_.]+)\}")
_NO_SPACE_BEFORE = re.compile(r"\s+([.,!?;:%)\]}…~])")
_NO_SPACE_AFTER = re.compile(r"([(\[{])\s+")
_APOSTROPHE = re.compile(r"(\w) ?['’] ?(s|t|re|ve|ll|d|m)\b", re.IGNORECASE)
_INSIDE_NUMBER = re.compile(r"(?<=\d) ?([:/.]) ?(?=\d)")
_HYPHEN = re.compile(r"(?<=\w) - (?=\w)")
_QUOTED = re.compile(r"(['\"]) ([^'\"]*?) \1(?: (?=[가-힣]))?")
_POSSESSIVE = re.compile(r"(?<=s) ' (?=[a-z])")
_MIDDLE_DOT = re.compile(r" ?· ?")
_BEFORE_BRACKET = re.compile(r"(?<=[가-힣]) (?=\()|(?<=\)) (?=[가-힣])")


def piece(name: str) -> str:
    """The vocabulary piece of a category id or fact key."""
    return MARK + name


@dataclass(frozen=True)
class Frame:
    """What stands before and after every query: the user turn of a chat base, as text with its special tokens.

    `guardian.json` keeps it, so that judging reads what training wrote, even where a template holds the date.
    """

    before: str = ""
    after: str = ""

    @classmethod
    def load(cls, directory: str | Path) -> Frame:
        """The frame of a model directory; an empty one for a bare base."""
        path = Path(directory) / "guardian.json"
        try:
            return cls(**json.loads(path.read_text("utf-8")).get("frame", {}))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} is broken: export or train the model again") from error


class Layout:
    """Token ids of a model's sequences. Built from the model's own `tokenizer.json`."""

    def __init__(self, tokenizer: Tokenizer, frame: Frame | None = None) -> None:
        self.tokenizer, self.frame = tokenizer, frame or Frame()
        self._before, self._after = (
            tokenizer.encode(text, add_special_tokens=False).ids
            for text in (self.frame.before, self.frame.after)
        )
        self._reserved = _reserved(tokenizer)
        ids = [i for token in SPECIAL_TOKENS if (i := tokenizer.token_to_id(token)) is not None]
        if len(ids) < len(SPECIAL_TOKENS):
            raise ModelError("the tokenizer lacks the five special tokens: train the model with this version")
        self.pred, self.expl, self.safe, self.harm, self.end = ids
        marked = {t[1:]: i for t, i in tokenizer.get_vocab().items() if t.startswith(MARK) and len(t) > 1}
        self._pieces: dict[str, int] = marked
        self._names = {i: name for name, i in marked.items()}
        self.size = max(tokenizer.get_vocab().values()) + 1  # a base may leave gaps
        # What an answer never holds: marks (its own category's facts are allowed one by one) and unknowns.
        self.unknown = tokenizer.token_to_id("[UNK]")  # None for a byte-level tokenizer, which knows all
        specials = [self.pred, self.expl, self.safe, self.harm]
        self.never: list[int] = sorted(
            {*marked.values(), *specials, *([] if self.unknown is None else [self.unknown])}
        )

    @classmethod
    def load(cls, directory: str | Path) -> Layout:
        """Read `tokenizer.json`. Raises ModelError when it is missing or broken."""
        from tokenizers import Tokenizer

        path = Path(directory) / "tokenizer.json"
        try:
            return cls(Tokenizer.from_file(str(path)), Frame.load(directory))
        except ModelError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"{path} cannot be read: export the model again") from error

    def piece_id(self, name: str) -> int | None:
        """Token id of a category or fact, or None when the model does not know it."""
        return self._pieces.get(name)

    @property
    def around(self) -> int:
        """How many tokens the frame adds to a query."""
        return len(self._before) + len(self._after)

    def plain(self, text: str) -> str:
        """A text in which nothing is a special token or a mark any more."""
        text = _SURROGATE.sub("\ufffd", text).replace("<|", "< |").replace(MARK, " ")
        while self._reserved.search(text):  # taking one apart can lay bare another
            text = self._reserved.sub(lambda m: m[0][0] + " " + m[0][1:], text)
        return text

    def query(self, text: str) -> list[int]:
        """Ids of a text; special tokens and marks typed by a user become plain text."""
        return self.tokenizer.encode(self.plain(text), add_special_tokens=False).ids

    def framed(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of a query, at most `limit` of them, within the frame."""
        return [*self._before, *self.query(text)[:limit], *self._after]

    def judge(self, text: str) -> list[int]:
        """`query <|pred|> <|harm|>`: label logits at [-2], category logits at [-1]."""
        return [*self.framed(text), self.pred, self.harm]

    def answer_prompt(self, judged: Sequence[int], category: str) -> list[int]:
        """`query <|pred|> <|harm|> category <|expl|>` from what `judge` gave: the answer is decoded after it."""
        return [*judged, self._pieces[category], self.expl]

    def response(self, text: str) -> list[int]:
        """Ids of a response whose facts are `{slots}`. Raises KeyError for a slot the model lacks."""
        ids: list[int] = []
        for i, part in enumerate(SLOT.split(text)):
            if i % 2:
                ids.append(self._pieces[part])
            elif part.strip():
                tokens = self.query(part)
                ids += self._glued(tokens) if i and not part[0].isspace() else tokens
        return ids

    def response_text(self, ids: Sequence[int]) -> str:
        """Text of generated ids, with facts as `{slots}`; other special tokens are left out."""
        parts: list[str] = []
        run: list[int] = []
        for token in ids:
            if token in self._names:
                between = self._decode(run, bool(parts)) or " " * bool(parts)  # two facts side by side
                parts += [between, "{" + self._names[token] + "}"]
                run = []
            else:
                run.append(token)
        parts.append(self._decode(run, bool(parts)))
        return tidy("".join(parts))

    def _glued(self, tokens: list[int]) -> list[int]:
        """Tie a Korean particle to the slot before it: `{slot}에` keeps no space."""
        first = self.tokenizer.id_to_token(tokens[0]) or ""
        tied = self.tokenizer.token_to_id("##" + first) if "가" <= first[:1] <= "힣" else None
        return tokens if tied is None else [tied, *tokens[1:]]

    def _decode(self, ids: list[int], after_slot: bool) -> str:
        if not ids:
            return ""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        tied = after_slot and text.startswith("##")
        return f"{'' if tied or not after_slot else ' '}{text.removeprefix('##')} "


def _reserved(tokenizer: Tokenizer) -> re.Pattern[str]:
    """The special tokens of a base (`</s>`, `[|endofturn|]`): a user who types one must not end the turn."""
    added = tokenizer.get_added_tokens_decoder().values()
    special = sorted((t.content for t in added if t.special and len(t.content) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, special)) or r"(?!)")


def tidy(text: str) -> str:
    """Undo the spaces that a word-piece tokenizer leaves around punctuation.

    >>> tidy("i can ' t , but ( maybe ) you can call 10 : 30 .")
    "i can't, but (maybe) you can call 10:30."
    """
    text = _NO_SPACE_BEFORE.sub(r"\1", text)
    text = _NO_SPACE_AFTER.sub(r"\1", text)
    text = _APOSTROPHE.sub(r"\1'\2", text)
    text = _INSIDE_NUMBER.sub(r"\1", text)
    text = _HYPHEN.sub("-", text)
    text = _QUOTED.sub(r"\1\2\1", text)
    text = _POSSESSIVE.sub("' ", text)
    text = _MIDDLE_DOT.sub("·", text)
    text = _BEFORE_BRACKET.sub("", text)
    # A particle stays tied to the fact before it.
    return re.sub(r"\s+", " ", text.replace("} ##", "}")).strip()
