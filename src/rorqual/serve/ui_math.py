r"""Formulas in what the page shows. Gradio takes everything between two `$` for one, "$5 and $" of "$5 and $6" too.

So it is told of `\( \)` and `\[ \]` alone, and what is a formula between dollars gets those; any other dollar stays text. What was said is
not touched: only the picture of it.
"""

from __future__ import annotations

import re

INSIDE = r"(?:[^$\\\n]|\\.|\n(?![ \t]*\n))"
r"""A character of a formula: no dollar but `\$`, and no empty line."""
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
"""Code and escapes, which are left alone, and formulas. As in pandoc, no space follows a formula's first dollar or precedes its last, and
no digit follows the last."""
COMMANDS = re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})?")
AMOUNT = re.compile(r"\s*\d")
WORDS = re.compile(r"(?<=\s)[^\W\d_]{2,}(?=\s)|(?<!\w)[^\W\d_]{3,}(?!\w)|[^\W\d_A-Za-z\u0370-\u03ff]")
"""What stands in a sentence and in no formula: words, and letters that are neither Latin nor Greek."""


def shown(text: str) -> str:
    r"""What was said as the page's Markdown: `$x^2$` as `\(x^2\)`, `$$x^2$$` as `\[x^2\]`, prices as they are."""
    return PARTS.sub(_shown, text) if "$" in text else text


def typed(text: str, before: str) -> str:
    """What somebody means who changed the picture of `before` into `text`: formulas that stood between dollars do so again."""
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
    """Not so what only stands between two prices, or between two names of a shell."""
    if inside.lstrip()[:1] in (*")],.;:!?",):
        return False
    if AMOUNT.match(inside) and WORDS.search(COMMANDS.sub("", inside)):
        return False
    after = found.string[found.end() : found.end() + 1]
    return not (after.isalpha() and inside[-1:] in "/-:,;.(=")
