r"""Classify sentences by their form: conclusions, additions to an answer, and answers at the start of a reply.

- A conclusion is marked by layout (bold text with a number, `Total: ...`, a displayed formula) or by words
  ("So ...", "Therefore ...", "... in total").
- An addition to an answer is a restatement, average, extrapolation, comparison, reason or known fact. Examples of
  additions: "That works out to ...", "Over 5 years ...", "Her goal was ...", "Because ...", "She started with ...",
  "The other 6 ...".
- An answer at the start is a sentence with only the answer ("**27**", "7 pencils.") or with a remainder, a total or an
  amount per day.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_OPENING = r"^[\s*_#>\"'(\[|✅🎉-]*"
_SHOWN = re.compile(
    rf"{_OPENING}(?:(?:grand |final |sub)?(?:total|sum)\b(?! so far)|(?:final |the )?(?:result|solution|conclusion|verdict|final)\b\W*[:=])"
    r"|^\s*(?:\\\[|\$\$)|(?:\\\]|\$\$)\W{0,10}$|\*\*[^*\n]{0,60}[0-9][^*\n]{0,60}\*\*",
    re.IGNORECASE,
)
_LED = re.compile(
    rf"{_OPENING}(?:on average, (?:then|therefore)|so|thus|hence|therefore|consequently|altogether|in (?:total|all|conclusion|summary)|finally"
    rf"|overall|the question (?:asks|wants)|the (?:final )?(?:result|total|sum) (?:is|was|comes)|∴|\$?\\therefore)(?!\w)",
    re.IGNORECASE,
)
_TOTAL = re.compile(r"\b(?:in total|altogether|in all)\b", re.IGNORECASE)
_STEP = re.compile(r"^\W*(?:step|part|case|question|problem|day|week|month|year|figure|given)\b", re.IGNORECASE)
_ADDS = re.compile(
    rf"{_OPENING}(?:(?:that|this|it)(?:'s| is| was| works out| corresponds| amounts| equates| translates| averages| works| represents"
    r"| leaves (?:enough|room))\b"
    r"|over (?:an?|the|one|two|three|four|five|ten|[0-9]+) |because\b|since\b|at (?:this|that) (?:rate|pace)|on average|in other words"
    r"|intuitively|indeed\b|enough\b|to put|tips?\b|reminder|interesting|notice|remember|observe|fun fact|compared"
    r"|by comparison|as a\b)(?!, (?:then|therefore),)"
    r"|\b(?:on average(?!, (?:then|therefore),)|originally)\b"
    r"|\b(?:goal|budget|target|limit|record) (?:was|is|of)\b|\b(?:started|began) (?:out )?with\b"
    r"|\b(?:initially|at first),? (?:had|has)\b|\balready (?:had|has|have|\w+ed)\b|\b(?:i|we) (?:add|subtract|multipli|divid|count|round)\w*ed\b"
    rf"|{_OPENING}(?:over|in|after|for) (?:an?|the|one|two|three|four|five|ten|[0-9]+)\b[^,]{{0,40}},? \w+ would\b"
    rf"|{_OPENING}(?:s?he|they|it|we|[a-z]+) would still have\b"
    r"|\b(?:could|would) (?:still |even )?(?:be|have been|cost|take|make|last|go|buy|fill) ",
    re.IGNORECASE,
)
_CONTRASTS = re.compile(
    rf"{_OPENING}(?:all )?(?:her|his|their|the) (?:previous|budget|goal|target|other|remaining|rest|complementary|opposite)\b"
    rf"|{_OPENING}(?:at|with|for) [^.]{{1,60}}, (?:that|this|it) would\b",
    re.IGNORECASE,
)
_ANSWERS = re.compile(
    r"\b(?:left|leaves|remain\w*|total (?:\w+ ){0,3}(?:is|was|of|comes?)|altogether|in all|now|currently|needs?"
    r"|needed|required|number of [^.]{0,80} is"
    r"|(?:per|an?|each|every|this) (?:hour|day|week|month|year)\b(?=[^0-9]*$))\b",
    re.IGNORECASE,
)
_SO = re.compile(
    r"^\W*(?:plus|minus|add|adding|subtract|subtracting|then|next|after that)\b|\b(?:so|thus|hence|therefore)\b[^.]{0,200}[0-9]",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"^[^\w\n]{0,12}(?:(?:key |main |final )?(?:take-?aways?|notes?|remarks?|tips?|steps|points|insights?|facts)(?: used)?"
    r"|(?:quick |a )?(?:summary|recap)"
    r"|(?:brief |short )?(?:explanation|reasoning|justification|details|breakdown)|why(?: (?:this|it) works)?|(?:sanity |quick )?check(?:ing)?"
    r"|verification|proof|here(?:'s| is) (?:why|how|the (?:breakdown|reasoning|explanation|logic|calculation)|how \w+ \w+ \w+)"
    r"|how (?:i|we) (?:got|get) (?:this|there|it))[^\w\n]{0,12}$",
    re.IGNORECASE,
)
_BARE = re.compile(
    r"^(?:\*\*[^*\n]{1,40}\*\*[.!]?|[*_]*[-$€£]?[\w.,/%$√]+[*_]*(?: (?!squared|cubed|times|plus|minus)[a-z]+){0,2}[*_]*[.!]?)$"
)


def led(sentence: str) -> bool:
    """Return whether the sentence begins like a conclusion: "So ...", "In total ..."."""
    return _LED.match(sentence) is not None


def concludes(sentence: str) -> bool:
    """Return whether layout or words mark the sentence as a conclusion."""
    return led(sentence) or shown(sentence) or _TOTAL.search(sentence) is not None


def shown(sentence: str) -> bool:
    """Return whether layout marks the sentence as a result: bold, `Total:`, a displayed formula."""
    return not _STEP.match(sentence) and _SHOWN.search(sentence) is not None


def adds(sentence: str) -> bool:
    """Return whether the sentence only adds to an answer: a restatement, average, extrapolation, comparison, reason or given fact."""
    return "=" not in sentence and (_ADDS.search(sentence) is not None or contrasts(sentence))


def contrasts(sentence: str) -> bool:
    """Return whether the sentence states a remainder or an earlier value: "The other 6 ...", "Her previous best ..."."""
    return _CONTRASTS.match(sentence) is not None


def answers(sentence: str) -> bool:
    """Return whether the sentence states a remainder, a total, a need, a current amount or an amount per day."""
    return _ANSWERS.search(sentence) is not None


def closes(sentence: str) -> bool:
    """Return whether the sentence answers, computes or infers something, and is therefore more than a remark."""
    return answers(sentence) or "=" in sentence or _SO.search(sentence) is not None


def bare_answer(sentences: Sequence[str]) -> bool:
    """Return whether the first sentence consists of only an answer (`**27**`, `7 pencils.`) and others follow it."""
    return len(sentences) > 1 and not _STEP.match(sentences[0]) and _BARE.match(sentences[0].strip()) is not None


def heading(sentences: Sequence[str]) -> int:
    """Return the index of the first heading that introduces reasons, checks or takeaways ("Explanation:"), or 0 without
    one."""
    return next((place for place, sentence in enumerate(sentences) if place and _HEADING.match(sentence)), 0)
