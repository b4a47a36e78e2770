"""Parse regular expressions of JSON schemas (ECMA-262) into trees, which `grammar.automaton` translates for llguidance.

The semantics are those of ECMA-262 without the flags `i` and `s`. `\\d` and `\\w` match ASCII characters, and `\\s`
matches Unicode white space. `.` matches any character except a line terminator. `^` and `$` match the start and the end
of the string. Some syntax of Python and Rust is accepted too: `(?P<name>...)`, `\\A`, `\\Z`, and `(?i)` and `(?s)` at
the start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Ranges = tuple[tuple[int, int], ...]
"""A set of characters: sorted, disjoint ranges of code points without surrogates."""
Node = tuple[Any, ...]
"""A node of the tree of a regular expression.

The kinds of nodes are `("set", Ranges)`, `("cat", nodes)`, `("alt", nodes)`, `("rep", node, least, most)`,
`("begin",)`, `("end",)`, `("look", negative, node)`, `("raw", text)` and `("drop",)`. `("raw", text)` is a Unicode
class in Rust syntax. `("drop",)` replaces a dropped construct. The tree then matches more strings than the pattern.
"""

TOP, SURROGATES = 0x10FFFF, (0xD800, 0xDFFF)
MAX_REPEAT, MAX_DEPTH = 100_000, 60
EMPTY: Node = ("cat", ())


class Unreadable(ValueError):
    """Raised if a pattern is invalid or uses unsupported syntax."""


def ranges(*parts: tuple[int, int]) -> Ranges:
    """Return a character set from ranges: sorted, merged, and without surrogates."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(parts):
        for lower, upper in ((low, min(high, SURROGATES[0] - 1)), (max(low, SURROGATES[1] + 1), high)):
            if lower > upper:
                continue
            if merged and lower <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], upper))
            else:
                merged.append((lower, upper))
    return tuple(merged)


def inverted(characters: Ranges) -> Ranges:
    """Return the set of all characters that are not in the given set."""
    gaps, after = list[tuple[int, int]](), 0
    for low, high in characters:
        if after < low:
            gaps.append((after, low - 1))
        after = high + 1
    return ranges(*gaps, *([(after, TOP)] if after <= TOP else []))


def _of(text: str) -> Ranges:
    return ranges(*((ord(char), ord(char)) for char in text))


DIGIT = ranges((48, 57))
WORD = ranges((48, 57), (65, 90), (95, 95), (97, 122))
SPACE = ranges(*_of(" \t\n\r\f\v\xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"), (0x2000, 0x200A))
ANY = ranges((0, TOP))
DOT = inverted(_of("\n\r\u2028\u2029"))
CLASSES = {"d": DIGIT, "w": WORD, "s": SPACE, "D": inverted(DIGIT), "W": inverted(WORD), "S": inverted(SPACE)}
CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7, "e": 27}


@dataclass
class PatternReader:
    """Parses one pattern.

    `inexact` is True if a construct was dropped or widened. The tree then matches more strings than the pattern.
    """

    text: str
    at: int = 0
    fold: bool = False
    dot: Ranges = DOT
    inexact: bool = False
    depth: int = 0
    groups: list[Node | None] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)

    def read(self) -> Node:
        """Parse the whole pattern. Raises Unreadable if the pattern is invalid or unsupported."""
        node = self._alternatives()
        if self.at < len(self.text):
            raise Unreadable(f"unmatched {self.text[self.at]!r}")
        return node

    def _next(self, *starts: str) -> bool:
        for start in starts:
            if self.text.startswith(start, self.at):
                self.at += len(start)
                return True
        return False

    def _until(self, end: str) -> str:
        end_at = self.text.find(end, self.at)
        if end_at < 0:
            raise Unreadable(f"no {end!r} after {self.text[: self.at][-10:]!r}")
        text, self.at = self.text[self.at : end_at], end_at + len(end)
        return text

    def _alternatives(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable(f"groups are nested deeper than {MAX_DEPTH} levels")
        branches = [self._sequence()]
        while self._next("|"):
            branches.append(self._sequence())
        self.depth -= 1
        return branches[0] if len(branches) == 1 else ("alt", tuple(branches))

    def _sequence(self) -> Node:
        parts = list[Node]()
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self._repeated(self._atom()))
        return parts[0] if len(parts) == 1 else ("cat", tuple(parts))

    def _repeated(self, node: Node) -> Node:
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in "*+?":
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
                self.at += 1
            elif char == "{" and (counts := self._counts()) is not None:
                least, most = counts
            else:
                return node
            self._next("?")  # a lazy repetition matches the same strings as a greedy repetition
            if self.text[self.at : self.at + 1] == "+":
                raise Unreadable("possessive repetition is not supported")
            node = ("rep", node, least, most)
        return node

    def _counts(self) -> tuple[int, int | None] | None:
        end = self.text.find("}", self.at, self.at + 24)
        low, comma, high = self.text[self.at + 1 : end].partition(",")
        if end < 0 or not (low.isdecimal() and low.isascii()) or (high and not (high.isdecimal() and high.isascii())):
            return None
        self.at = end + 1
        least, most = int(low), (int(low) if not comma else int(high) if high else None)
        if max(least, most or 0) > MAX_REPEAT or (most is not None and most < least):
            raise Unreadable(f"the repetition count {low}{comma}{high} is too large or out of order")
        return least, most

    def _atom(self) -> Node:
        char = self.text[self.at]
        self.at += 1
        match char:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case ".":
                return "set", self.dot
            case "^":
                return ("begin",)
            case "$":
                return ("end",)
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                raise Unreadable(f"nothing to repeat before {char!r}")
            case _:
                return self._one(ord(char))

    def _one(self, code: int) -> Node:
        return "set", self._folded(ranges((code, code)))

    def _folded(self, characters: Ranges) -> Ranges:
        if not self.fold:
            return characters
        folded = list(characters)
        for low, high in characters:
            for first, shift in ((65, 32), (97, -32)):
                if (lower := max(low, first)) <= (upper := min(high, first + 25)):
                    folded.append((lower + shift, upper + shift))
        return ranges(*folded)

    def _group(self) -> Node:
        if self._next("?:"):
            return self._closed()
        for start, negative in (("?=", False), ("?!", True)):
            if self._next(start):
                return "look", negative, self._closed()
        if self._next("?<=", "?<!"):
            self._closed()
            return self._dropped()
        if self._next("?P=", "?>", "?(", "?#"):
            raise Unreadable("this kind of group is not supported")
        if self._next("?P<", "?<"):
            self.names[self._until(">")] = len(self.groups)
        elif self._next("?"):
            return self._flags()
        number = len(self.groups)
        self.groups.append(None)
        self.groups[number] = self._closed()
        return self.groups[number] or EMPTY

    def _flags(self) -> Node:
        flags = self.text[self.at : self.at + 4].split(")")[0]
        if set(flags) - set("is") or self.at != 2 or not self._next(f"{flags})"):
            raise Unreadable("only the flags (?i) and (?s) at the start are supported")
        self.fold, self.dot = "i" in flags, ANY if "s" in flags else DOT
        return EMPTY

    def _closed(self) -> Node:
        node = self._alternatives()
        if not self._next(")"):
            raise Unreadable("an unclosed group")
        return node

    def _dropped(self) -> Node:
        self.inexact = True
        return ("drop",)

    def _escape(self) -> Node:
        if self.at >= len(self.text):
            raise Unreadable("a backslash at the end")
        char = self.text[self.at]
        if char in "bB":
            self.at += 1
            return self._dropped()
        if char in "AzZ":
            self.at += 1
            return ("begin",) if char == "A" else ("end",)
        if char in "123456789":
            digits = self.text[self.at : self.at + 2]
            self.at += len(digits) if digits.isdecimal() and int(digits) <= len(self.groups) else 1
            return self._back_reference(
                int(digits if digits.isdecimal() and int(digits) <= len(self.groups) else char) - 1
            )
        if self._next("k<"):
            name = self._until(">")
            return self._back_reference(self.names.get(name, -1))
        if char in "pP":
            return "raw", self._property()
        characters = self._character()
        return "set", self._folded(characters)

    def _back_reference(self, number: int) -> Node:
        """Return the node of a back-reference.

        The node is inexact: it matches every string that the group can match, instead of only the string that the group
        has matched.
        """
        if not 0 <= number < len(self.groups):
            raise Unreadable("a reference to a group that does not exist")
        self.inexact = True
        return self.groups[number] or ("drop",)

    def _property(self) -> str:
        start = self.at
        self.at += 1
        if not self._next("{"):
            raise Unreadable(r"\p without {...}")
        name = self._until("}")
        if not name or not all(char.isalnum() or char in "_=" for char in name):
            raise Unreadable(rf"\p{{{name}}} is not supported")
        return "\\" + self.text[start : self.at]

    def _character(self) -> Ranges:
        """Parse the part of an escape after the backslash: a character or a class."""
        char = self.text[self.at]
        self.at += 1
        if char in CLASSES:
            return CLASSES[char]
        if char in CONTROLS:
            return ranges((CONTROLS[char], CONTROLS[char]))
        if char == "0":
            return ranges((0, 0))
        if char == "c" and (letter := self.text[self.at : self.at + 1]).isalpha() and letter.isascii():
            self.at += 1
            return ranges((ord(letter) % 32, ord(letter) % 32))
        if char in "xu":
            code = self._code(2 if char == "x" else 4)
            if 0xD800 <= code < 0xDC00 and self._next("\\u"):  # a pair of surrogates
                code = 0x10000 + ((code - 0xD800) << 10) + (self._code(4) - 0xDC00)
            return ranges((code, code))
        if char.isalnum():
            raise Unreadable(f"unknown escape \\{char}")
        return ranges((ord(char), ord(char)))

    def _code(self, digits: int) -> int:
        if self._next("{"):
            digits_text = self._until("}")
        else:
            digits_text = self.text[self.at : self.at + digits]
            self.at += digits
        if (
            not 1 <= len(digits_text) <= 8
            or set(digits_text) - set("0123456789abcdefABCDEF")
            or int(digits_text, 16) > TOP
        ):
            raise Unreadable(f"invalid character code {digits_text!r}")
        return int(digits_text, 16)

    def _class(self) -> Node:
        negated = self._next("^")
        members, raw = list[tuple[int, int]](), list[str]()
        while not self._next("]"):
            if self.at >= len(self.text):
                raise Unreadable("an unclosed class")
            if self.text[self.at : self.at + 2] in ("\\p", "\\P"):
                self.at += 1
                raw.append(self._property())
                continue
            low = self._member()
            if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self._member()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] < low[0][0]:
                    raise Unreadable("an invalid range in a class")
                members.append((low[0][0], high[0][0]))
            else:
                members += low
        characters = self._folded(ranges(*members))
        if raw:
            return "raw", f"[{'^' * negated}{written_set(characters)}{''.join(raw)}]"
        return "set", inverted(characters) if negated else characters

    def _member(self) -> Ranges:
        char = self.text[self.at]
        self.at += 1
        if char != "\\":
            return ranges((ord(char), ord(char)))
        if self.at >= len(self.text):
            raise Unreadable("an unclosed class")
        if self._next("b"):
            return ranges((8, 8))
        return self._character()


def written_set(characters: Ranges) -> str:
    """Return a character set in Rust syntax, without the brackets."""
    return "".join(_char(low) if low == high else f"{_char(low)}-{_char(high)}" for low, high in characters)


def _char(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"
