"""Special tokens of chat formats, each as one character while text is written or read.

In a *marked text* a special token (`<think>`, `<tool_call>`, ...) is a lone surrogate character. Decoded text and encodable
text cannot contain one. So a special token is never confused with text that a user typed, and ordinary string functions work.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import REPLACEMENT, Tokenizer

NAMES = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<|python_tag|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
)
"""Each name begins with `<` and contains no other `<`: a text has at most one incomplete name, at its last `<`."""
CHARS: Mapping[str, str] = {name: chr(0xD800 + place) for place, name in enumerate(NAMES)}
NAME_OF: Mapping[str, str] = {char: name for name, char in CHARS.items()}
THINK, END_THINK = CHARS["<think>"], CHARS["</think>"]
_MARK = re.compile(f"[{CHARS[NAMES[0]]}-{CHARS[NAMES[-1]]}]")


def raw(text: str) -> str:
    """Return a marked text with its special tokens spelled out, as the model wrote it."""
    return _MARK.sub(lambda found: NAME_OF[found.group()], text)


class SpecialTokenText:
    """How one tokenizer writes special tokens: as a token if it has one, else as text.

    `spoken` lists names that count in a reply both as tokens and as text. All other `names` count only as tokens, unless the
    tokenizer has no token for them.
    """

    def __init__(self, tokenizer: Tokenizer, names: Iterable[str], *, spoken: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        known, told = tokenizer.special_names, frozenset(spoken)
        names = [*dict.fromkeys([*names, *told])]
        self.by_id: Mapping[int, str] = {
            tokenizer.special(name): CHARS[name] for name in names if name in known and name not in told
        }
        self.by_text: Sequence[str] = [name for name in names if name not in known or name in told]
        self._texts = re.compile("|".join(map(re.escape, self.by_text))) if self.by_text else None

    def ids(self, text: str) -> list[int]:
        """Encode a marked text. Text between special tokens is plain text, even if it spells one."""
        ids: list[int] = []
        plain = ""
        for part in re.split(f"({_MARK.pattern})", text):
            name = NAME_OF.get(part)
            if name is not None and name in self.tokenizer.special_names:
                ids += [*(self.tokenizer.encode(plain) if plain else ()), self.tokenizer.special(name)]
                plain = ""
            else:
                plain += part if name is None else name
        return [*ids, *(self.tokenizer.encode(plain) if plain else ())]

    def found(self, text: str) -> str:
        """Replace the special tokens that are spelled out in `text` by their characters."""
        return self._texts.sub(lambda found: CHARS[found.group()], text) if self._texts else text

    def unfinished(self, text: str) -> int:
        """Return the length of the end of `text` that may be an incomplete special token spelled as text."""
        at = text.rfind("<")
        tail = text[at:] if at >= 0 else ""
        return len(tail) if tail and any(name.startswith(tail) for name in self.by_text) else 0


class IncrementalDecoder:
    """Converts a reply's ids to marked text, one by one. Incomplete characters and special tokens wait."""

    def __init__(self, marks: SpecialTokenText) -> None:
        self._marks = marks
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, id_: int) -> str:
        """Return the text that one more id makes certain."""
        marks, tokenizer = self._marks, self._marks.tokenizer
        if id_ in marks.by_id:
            return self.finish() + marks.by_id[id_]
        if tokenizer.is_special(id_):
            return self._more(self._half() + tokenizer.token(id_))
        written = tokenizer.token_bytes(id_)
        return self._more(self._bytes.decode(written) if written else self._half() + REPLACEMENT)

    def finish(self) -> str:
        """Return the remaining text."""
        text = self._more(self._half()) + self._held
        self._held = ""
        return text

    def _half(self) -> str:
        text = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return text

    def _more(self, text: str) -> str:
        if not text:
            return ""
        text = self._marks.found(self._held + text)
        waits = self._marks.unfinished(text)
        self._held = text[len(text) - waits :]
        return text[: len(text) - waits]


def check_text(texts: Iterable[str], where: str = "messages") -> None:
    """Raise a DataError for a lone surrogate, which would be read as a special token."""
    for text in texts:
        for at, char in _surrogates(text):
            raise DataError(
                f"half of a surrogate pair ({char!a}) at character {at} cannot be encoded as UTF-8",
                where=where,
                remedy="Remove it. It often comes from an emoji cut in JSON.",
            )


def _surrogates(text: str) -> Iterator[tuple[int, str]]:
    return ((found.start(), found.group()) for found in re.finditer("[\ud800-\udfff]", text))
