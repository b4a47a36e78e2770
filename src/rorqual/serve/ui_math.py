r"""Formulas on the chat page. Gradio takes any text between two `$` as a formula, even "5 and " in "$5 and $6".

Therefore Gradio is configured with `\( \)` and `\[ \]` only. This module converts formulas between dollars to these
delimiters and leaves other dollars alone. Only the displayed text changes, not the conversation.
"""

from __future__ import annotations

import re

INSIDE = r"(?:[^$\\\n]|\\.|\n(?![ \t]*\n))"
r"""A character of a formula. A formula contains no dollar except `\$`, and no empty line."""
PARTS = re.compile(
    rf"""
      (?P<fence>^[ \t>]*(?P<mark>`{{3,}}|~{{3,}})[^\n]*$ .*? (?:^[ \t>]*(?P=mark)[`~]*[ \t]*$ | \Z))
    | (?<!`)(?P<ticks>`{{1,8}})(?!`) .+? (?<!`)(?P=ticks)(?!`)
    | (?<!\$)\$\$(?!\$) (?P<display>{INSIDE}+) (?<!\$)\$\$(?!\$)
    | (?<![A-Za-z0-9_$])\$(?![\s$]) (?P<inline>{INSIDE}*[^\s$\\]) \$(?![\d$])
    | \\.
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
"""Matches code and escapes, which are left alone, and formulas.

As in pandoc, an inline formula has no space after its first dollar or before its last, and no digit after its last."""
COMMANDS = re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})?")
AMOUNT = re.compile(r"\s*\d")
WORDS = re.compile(r"(?<=\s)[^\W\d_]{2,}(?=\s)|(?<!\w)[^\W\d_]{3,}(?!\w)|[^\W\d_A-Za-z\u0370-\u03ff]")
"""Matches text that occurs in sentences and not in formulas: words, and letters that are neither Latin nor Greek."""


def shown(text: str) -> str:
    r"""Return text as Markdown for the page: `$x^2$` as `\(x^2\)`, `$$x^2$$` as `\[x^2\]`, prices unchanged."""
    return PARTS.sub(_shown, text) if "$" in text else text


def typed(text: str, before: str) -> str:
    """Convert an edited display text back: formulas that had dollar delimiters in `before` get them again."""
    for found in PARTS.finditer(before):
        if (picture := _shown(found)) != found.group():
            text = text.replace(picture, found.group(), 1)
    return text


def _shown(found: re.Match[str]) -> str:
    display, inline = found["display"], found["inline"]
    if display is not None and _is_formula(display, found):
        return rf"\[{display}\]"
    if inline is not None and _is_formula(inline, found):
        return rf"\({inline}\)"
    return found.group()


def _is_formula(inside: str, found: re.Match[str]) -> bool:
    """Return False for text between two prices, or between two shell variables."""
    if inside.lstrip()[:1] in (*")],.;:!?",):
        return False
    if AMOUNT.match(inside) and WORDS.search(COMMANDS.sub("", inside)):
        return False
    after = found.string[found.end() : found.end() + 1]
    return not (after.isalpha() and inside[-1:] in "/-:,;.(=")
