r"""Split LaTeX into parts: sides of equations, lists, sets, tuples, intervals and unions."""

from __future__ import annotations

import re
from dataclasses import dataclass

OPENINGS, CLOSINGS = "([{", ")]}"


@dataclass(frozen=True)
class Parts:
    """The parts of a LaTeX list, set, tuple or union. `kind` states the brackets around the parts.

    "()" is a tuple or open interval, "{}" a set, "," a list without brackets, "u" a union.
    """

    kind: str
    items: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        """Whether the order of the parts matters, as in tuples and intervals."""
        return self.kind not in ("{}", ",", "u")


def side(text: str, equation: bool) -> list[str]:
    """Return the sides of the equation in `text` (`a = b = c`). The last side is the answer.

    If `equation` is True, do not split at `=`.
    """
    text = split(text, "\\implies")[-1]
    about = split(text, "\\approx")
    text = about[1 if len(about) > 1 and len(about[0]) == 1 else 0]
    if equation or len(_commas(text)) > 1:
        return [text]
    text = split(text, "\\in")[-1]
    return [piece.strip().lstrip("&").strip() for piece in split(text, "=")]


def split(text: str, separator: str) -> list[str]:
    """Split `text` at each `separator` outside brackets and braces.

    If `separator` is a LaTeX command, it does not match the start of a longer command.
    """
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
    r"""Return False if the separator at index `at` is only part of a longer symbol (`\infty`, `<=`, `\=`)."""
    if separator[0] == "\\":
        return not text[at + len(separator) : at + len(separator) + 1].isalpha()
    return separator != "=" or text[at - 1 : at] not in ("<", ">", "!", "\\")


def parts(text: str) -> Parts | None:
    """Return `text` as a union, set, tuple, interval or list, or None if it is a single expression."""
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
    items = tuple(piece for piece in split(inner, ",") if piece)  # inside brackets, `12,102` is a pair
    if brace or len(items) > 1:
        return Parts(opening + closing, items)
    return None


def _commas(text: str) -> tuple[str, ...]:
    """Split `text` at commas, but not at a thousands separator (`22,200`)."""
    text = (
        re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)
        if re.fullmatch(r"-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", text)
        else text
    )
    return tuple(piece for piece in split(text, ",") if piece)


def _one_bracket(text: str) -> bool:
    """Return whether the bracket that opens `text` closes at the end of `text`."""
    depth = 0
    bare = text.replace("\\{", "{").replace("\\}", "}")
    for i, letter in enumerate(bare):
        depth += (letter in OPENINGS) - (letter in CLOSINGS)
        if depth == 0:
            return i == len(bare) - 1
    return False
