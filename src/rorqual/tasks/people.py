"""Normalize a reply about people: names become `⟦number⟧`, roles become `knight` or `knave`, and quotations and asides are removed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rorqual.tasks.clauses import plain_text

_QUOTED = re.compile(r'"([^"\n]{0,400})"')
_ASIDE = re.compile(
    r"(?<!= )\((?=[^()\s]+\s+[^()\s]+\s+[^()\s])(?!(?:s?he|so|thus)\b[^()]{0,20}kn(?:ight|ave)\))[^()]{0,300}\)(?!\s*=)"
    r"|, (?:who|whose|which)\b(?! makes)[^,.;\n]{0,200},(?! (?:so|hence|thus|therefore)\b)"
)
_INSERTED = re.compile(
    r", (?:on the (?:contrary|other hand)|however|(?:in|by) contrast|in turn|of course|too|then),", re.IGNORECASE
)
_ROW = re.compile(
    r"^[ \t]*\|[ \t]*(⟦[0-9]+⟧)[ \t]*\|(?:[^|\n]*\|)*?[ \t]*(knight|knave)[ \t]*\|[^|\n]*\|?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
"""Matches a table row with a person's name in the first cell and the role in another cell."""
_PLAIN = tuple(
    (re.compile(pattern, re.IGNORECASE), new)
    for pattern, new in (
        (r"\b(knight|knave)\(s\)", r"\1s"),
        (r"[\U0001f300-\U0001faff]", " "),
        (r"\b(?:impossible|not possible) for (\w+) to be\b", r"\1 is not"),
        (r"\btruth-?teller", "knight"),
        (r"\bliar", "knave"),
        (r"\bof (?:the |an? )?(knight|knave)(?:'s)? type\b", r"a \1"),
        (r"(?<=\w)'re (?=not\b|an? |the |both |all |kn)", " are "),
        (r"(?<=\w)'s (?=not\b|an? |the )", " is "),
        (r"\\begin\s?\{\w{1,20}\*?\}|\\end\s?\{\w{1,20}\*?\}|&(?=\s?[:=])|\\\\(?=\s)", " "),
        (r"\bnot (?:an? |the )?(?:knight|knave) but (?:rather )?((?:an? |the )?(?:knight|knave))\b", r"\1"),
    )
)


def named_text(text: str, names: Sequence[str]) -> str:
    """Return `text` with each name replaced by `⟦number⟧`, or by `⟨number⟩` for a possessive."""
    text = _QUOTED.sub(lambda match: '""' if " " in match[1].strip() else match[0], plain_text(text))
    text = _INSERTED.sub("", _ASIDE.sub(" ", re.sub(r"[*_`]", "", text)))
    for pattern, new in _PLAIN:
        text = pattern.sub(new, text)
    order = sorted(range(len(names)), key=lambda who: -len(names[who]))
    named = re.compile(
        rf"\b(?:{'|'.join(re.escape(names[who]) for who in order)})\b(?:'s? (?=(?:role|type|identity|status"
        rf"|label|is (?:an? )?kn(?:ight|ave))\b)|(?P<possessive>'s?(?= )))?",
        re.IGNORECASE,
    )
    numbered = {names[who].lower(): who for who in order}

    def token(match: re.Match[str]) -> str:
        who = numbered[
            match[0].lower().removesuffix(" ").removesuffix("s").removesuffix("'")
            if "'" in match[0][-3:]
            else match[0].lower()
        ]
        return f"⟨{who}⟩" if match["possessive"] else f"⟦{who}⟧"

    return _ROW.sub(r"| \1 | \2 |", re.sub(r"[\"'](⟦[0-9]+⟧)[\"']", r"\1", named.sub(token, text)))
