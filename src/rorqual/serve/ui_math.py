r"""Formula delimiters on the chat page. Gradio would render any text between two `$` as a formula, even in "$5 and $6".

Therefore Gradio is configured with `\( \)` and `\[ \]` only. This module replaces the dollar signs around formulas
by `\( \)` or `\[ \]`, and keeps all other dollar signs. Only the displayed text changes. The stored
conversation keeps its dollar signs.
"""

from __future__ import annotations

import re

INSIDE = r"(?:[^$\\\n]|\\.|\n(?![ \t]*\n))"
r"""Matches one character of a formula. A formula contains neither empty lines nor dollar signs other than `\$`."""
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
"""Matches code, escaped characters and formulas. Only formulas are converted.

As in pandoc, an inline formula has no space after the opening dollar sign or before the closing dollar sign, and no
digit follows the closing dollar sign."""
COMMANDS = re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})?")
AMOUNT = re.compile(r"\s*\d")
WORDS = re.compile(r"(?<=\s)[^\W\d_]{2,}(?=\s)|(?<!\w)[^\W\d_]{3,}(?!\w)|[^\W\d_A-Za-z\u0370-\u03ff]")
"""Matches text that occurs in sentences but not in formulas: a word, or a letter that is neither Latin nor Greek."""


def shown(text: str) -> str:
    r"""Convert formulas for display: `$x^2$` to `\(x^2\)` and `$$x^2$$` to `\[x^2\]`. Prices stay unchanged."""
    return PARTS.sub(_shown, text) if "$" in text else text


def typed(text: str, before: str) -> str:
    """Convert an edited display text back to its source. `before` is the source before the edit. A formula that
    has dollar delimiters in `before` gets them again."""
    for match in PARTS.finditer(before):
        if (rendered := _shown(match)) != match.group():
            text = text.replace(rendered, match.group(), 1)
    return text


def _shown(match: re.Match[str]) -> str:
    display, inline = match["display"], match["inline"]
    if display is not None and _is_formula(display, match):
        return rf"\[{display}\]"
    if inline is not None and _is_formula(inline, match):
        return rf"\({inline}\)"
    return match.group()


def _is_formula(inside: str, match: re.Match[str]) -> bool:
    """Return whether text between dollar signs is a formula. Text between the dollar signs of two prices or two shell
    variables is not a formula."""
    if inside.lstrip()[:1] in (*")],.;:!?",):
        return False
    if AMOUNT.match(inside) and WORDS.search(COMMANDS.sub("", inside)):
        return False
    after = match.string[match.end() : match.end() + 1]
    return not (after.isalpha() and inside[-1:] in "/-:,;.(=")
