r"""Take LaTeX apart: the sides of equations, lists, sets, tuples, intervals and unions."""

from __future__ import annotations

import re
from dataclasses import dataclass

OPENINGS, CLOSINGS = "([{", ")]}"


@dataclass(frozen=True)
class Parts:
    """A list of parts. `kind` is its brackets: "()" a tuple or open interval, "{}" a set, "," a list without brackets, "u" a union."""

    kind: str
    items: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        return self.kind not in ("{}", ",", "u")


def side(text: str, equation: bool) -> list[str]:
    """The sides of a chain of equations, of which the last counts. With `equation` the equation itself is wanted, and left whole."""
    text = split(text, "\\implies")[-1]
    about = split(text, "\\approx")
    text = about[1 if len(about) > 1 and len(about[0]) == 1 else 0]
    if equation or len(_commas(text)) > 1:
        return [text]
    text = split(text, "\\in")[-1]
    return [piece.strip().lstrip("&").strip() for piece in split(text, "=")]


def split(text: str, separator: str) -> list[str]:
    """`text` at each `separator` outside brackets and braces; a word of LaTeX is not found within a longer one."""
    pieces, depth, begin, i = [], 0, 0, 0
    width = len(separator)
    while i < len(text):
        if depth <= 0 and text.startswith(separator, i) and _parts_here(text, separator, i):
            pieces.append(text[begin:i])
            begin = i = i + width
            continue
        if text[i] == "\\" and text[i + 1 : i + 2] in ("{", "}"):
            depth += 1 if text[i + 1] == "{" else -1
            i += 2
            continue
        depth += (text[i] in OPENINGS) - (text[i] in CLOSINGS)
        i += 1
    return [piece.strip() for piece in [*pieces, text[begin:]]]


def _parts_here(text: str, separator: str, at: int) -> bool:
    r"""Whether the separator at `at` is whole: no part of `\infty`, `<=` or `\=`."""
    if separator[0] == "\\":
        return not text[at + len(separator) : at + len(separator) + 1].isalpha()
    return separator != "=" or text[at - 1 : at] not in ("<", ">", "!", "\\")


def parts(text: str) -> Parts | None:
    """`text` as a union, a set, a tuple, an interval or a list; None where it is one expression."""
    text = text.strip()
    if "\\begin" in text:
        return None
    pieces = split(text, "\\cup")
    if len(pieces) > 1:
        return Parts("u", tuple(pieces))
    commas = _commas(text)
    if len(commas) > 1:
        return Parts(",", commas)
    if (plus := text.replace("\\mp", "\\pm").count("\\pm")) == 1 and "=" not in text:
        return Parts(
            ",", (text.replace("\\pm", "+").replace("\\mp", "-"), text.replace("\\pm", "-").replace("\\mp", "+"))
        )
    brace = text.startswith("\\{") and text.endswith("\\}")
    inner = text[2:-2] if brace else text[1:-1]
    opening, closing = ("{", "}") if brace else (text[:1], text[-1:])
    if plus or opening not in OPENINGS or closing not in CLOSINGS or not _one_bracket(text):
        return None
    items = tuple(piece for piece in split(inner, ",") if piece)  # in brackets `12,102` is a pair
    if brace or len(items) > 1:
        return Parts(opening + closing, items)
    return None


def _commas(text: str) -> tuple[str, ...]:
    """Pieces between commas; a comma of a thousand (`22,200`) parts nothing, unless a space follows it."""
    text = (
        re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)
        if re.fullmatch(r"-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", text)
        else text
    )
    return tuple(piece for piece in split(text, ",") if piece)


def _one_bracket(text: str) -> bool:
    """Whether the bracket that opens `text` is closed by its end."""
    depth = 0
    bare = text.replace("\\{", "{").replace("\\}", "}")
    for i, letter in enumerate(bare):
        depth += (letter in OPENINGS) - (letter in CLOSINGS)
        if depth == 0:
            return i == len(bare) - 1
    return False
