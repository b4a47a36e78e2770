r"""Decide which words of a reply are its answer.

The rules, in order:

1. Text up to `</think>` is not the answer, and neither is what follows a `<think>` that never ends.
2. The last mark counts: `\boxed{...}`, `<answer>...</answer>`, `#### ...`, or `answer is ...`, `Answer: ...`, `... is the answer`.
   Words that only speak of an answer ("if the answer is", "you might think that the answer is", a question) are no mark.
3. A correction after the mark ("Wait, ...", "Correction: ...", "That is wrong.") replaces it by what it says; one that says nothing
   else leaves no answer. Other text after the mark ("That took 2 steps.") changes nothing.
4. Without a mark the last sentence that says an answer counts. Questions, closing phrases ("I hope it is correct."), checks ("Check: ...")
   and suppositions are passed over. A reply that breaks off in the middle of a sentence says nothing.
5. What a sentence denies ("not 18") is not its answer, and what it leaves open ("18 or 19") leaves the reply without one.

A reader (of numbers, labels, mathematics) says what one segment of text asserts, as a `Reading`; `settle` applies the rules above.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SENTENCE = 4000
"""Characters of one sentence that are read: its end. It bounds the work on a text without sentences."""
SENTENCES = 400
"""Sentences that are read, from the last one."""
MARKS = 24
"""Marks of a kind that are read, from the last one."""
BOXED = "\\boxed"
_BRACE = re.compile(r"\\boxed\s?\{|\\.|[{}]", re.DOTALL)
_AND = re.compile(r"[\s$,.]*(?:(?:\\text\s?\{)?\s*(?:and|or)\s*\}?|,)[\s$]*(?:[a-z]\s?=\s?)?[\s$]*", re.IGNORECASE)
_PHRASE = re.compile(
    r"(?<!\bto )(?<!\bno )(?<!\bin )\banswers?\b(?! (?:key|sheet|choice))"
    r"(?:[^.\n:=?!;]{0,60}?(?:\b(?:is|are|was|becomes|equals|would be|should be|must be|has to be|comes to"
    r"|comes out (?:to|as)|therefore)\b|[:=]"
    r"|\b(?<=answer )to (?=[A-Z0-9$\\*]))|[*_# ]{0,6}(?:->|→|\n))[\s*_:\"#=>]*",
    re.IGNORECASE,
)
_HASHES = re.compile(
    r"####[ \t]*(?!#|\s|(?:step|part|case|solution|check|verif|explan|note|calcul|conclu|final|answer|the)\w*\b|\d+[.)]\s)",
    re.I,
)
_AFTER = re.compile(
    r"(?:[^.,;:\n]|[.,:](?=[0-9])){1,80}? is (?:therefore |thus |then )?(?:the|my|our) (?:\w+ )?answer\b(?! to\b)",
    re.IGNORECASE,
)
_SPOKEN_OF = re.compile(
    r"\b(?:(?:check|verify|confirm|simplify|round)(?:ing)?|if|whether|what|suppose|assume|assuming|unless|(?:might"
    r"|may|could|would|can) (?:\w+ )?(?:think|say"
    r"|believe|guess|expect|seem|conclude"
    r"|answer)|tempt\w+|at first|initially|first (?:thought|guess)|thought|seems?|looks? like|(?:people|students?"
    r"|some|others?|someone) \w+)\b"
    r"[^.;:!?\n]*$",
    re.IGNORECASE,
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:i\.e|e\.g|a\.m|p\.m|[ap]\.|rs|no|nr|vs|approx|mr|mrs|ms|dr|st|cf|resp|ca|fig|eq|ft|in|lb|oz|hr|min"
    r"|sec|\d)|^\W*\(?\w{1,2})\.$",
    re.IGNORECASE,
)
_BREAK = re.compile(r"(?:(?<=[.!?])|(?<=[.!?]['\")*\]$_])|(?<=[.!?]\*\*)|(?<=[.!?]\\[)\]]))\s+|\n+")
_OPENING = r"^[\s*_#>\"'(\[-]*(?:(?:so|but|and|oh|okay|ok|yes|well|now|then|finally|also)\b[, ]*)*"
_CORRECTION = re.compile(
    rf"{_OPENING}(?:wait|actually|correction|oops|h+m+|no[,.:;!]|sorry|hold on|on second thoughts?|scratch that"
    rf"|my mistake|i (?:apologi[sz]e|was wrong|mis\w+)"
    r"|let me (?:correct|rectify|revise|fix)|i (?:made|see) an? (?:\w+ )?(?:mistake|error)|i (?:must|need to"
    r"|have to|should) (?:correct|revise)"
    r"|rather\b,)"
    r"|\b(?:(?:that|this|it|which|answer|result)(?:'s| is| was| can(?:no|')t be)(?: not|n't)? (?:wrong|right"
    r"|incorrect|correct"
    r"|mistaken)"
    r"|(?:that|this|it) (?:isn't|wasn't) (?:right|correct)|correct(?:ing)? myself|take that back|(?:change|revise"
    r"|correct) (?:my|the) answer"
    r"|i (?:made|see) an? (?:\w+ )?(?:mistake|error)|i (?:misread|miscounted|miscalculated|forgot|overlooked))\b",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    r"(?:not |in)?(?:correct|right|wrong|verified|confirmed|valid|unique|reasonable|plausible|clear|obvious|as follows|the same)\b",
    re.I,
)
_RETRACTED = re.compile(
    r"\b(?:wrong|incorrect|mistake\w*|mistaken|error|oops|sorry|correction|scratch that|take that back|mis\w+ed|not right|not correct"
    r"|isn't right|isn't correct|forgot|overlooked)\b",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"\b(?:that|this|it|which|answer|result)(?:'s| is| was) (?:right|correct)|\bno (?:mistakes?|errors?)\b|\bhope\b",
    re.IGNORECASE,
)
_META = re.compile(
    rf"{_OPENING}(?:(?:i |we )?hope|let (?:me|us) (?:know|explain|verify|check|double|re-?check|think|make sure"
    rf"|see)|let's (?:verify|check|double)|feel free|if you|please|thank|you can (?:check|verify|see|confirm)"
    rf"|check\b"
    r"|verif|to (?:check|verify|confirm)|double[- ]check|sanity|(?:please )?note|remark|explanation|reasoning"
    r"|steps?\b(?! \d+[.:])|do you|would you"
    r"|is there|i (?:used|checked|verified|rounded|assumed|took|needed|am (?:confident|happy|glad|sure))|we (?:used"
    r"|checked|verified)|here (?:we|i) used"
    r"|(?:that|this|it|the \w+) (?:took|takes|used|uses|required|requires|needed|needs) (?:\S+ ){0,3}(?:steps?"
    r"|facts?|lines?"
    r"|calculations?|computations?|operations?|premises?)|(?:in|after) (?:\w+ ){1,2}steps?\b|confidence|difficulty"
    r"|(?:good|best) (?:luck|wishes)"
    r"|(?:with|had|for) (?:\w+ ){0,4}(?:would|it would)|source|hint|for (?:comparison|reference|example|instance)"
    r"|in comparison|by the way|ps\b)",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    rf"{_OPENING}(?:(?:suppose|assume|imagine|say that|let's say|what if)\b|(?:if|with|had)\b.*\bwould\b)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:not enough|insufficient|too little) (?:information|data)\b[^.]{0,80}\b(?:answer|solve|compute|calculate|say how)"
    r"|\b(?:cannot|can't) be (?:answered|solved|computed|calculated)\b|\bI (?:cannot|can't|am unable to"
    r"|am not able to) (?:answer|solve|help|assist|provide)\b",
    re.I,
)
_CONCLUDES = re.compile(r"\b(?:so|thus|hence|therefore)\b|=", re.IGNORECASE)
_ENDS = re.compile(r"(?:\\[)\]]|[*_`\"')$\s]){1,20}$")
_UNFINISHED = re.compile(
    r"(?:\b(?:is|are|was|were|be|the|of|by|a|an|and|or|to|that|which|equals|then|for|with|in|on|we|he|she|they|it"
    r"|there|has|have|from|so|get|gives"
    r"|where|if|as|at|this|these|his|her|their|its)|[=+*/,&(\[{\\]|\\(?:cdot|times|frac|boxed|text)\{?|-)\s*$",
)


@dataclass(frozen=True)
class Reading:
    """What a segment of text says. `value` is None where it asserts nothing; `denied` are values that it says are not the answer.

    `refused` is True where the segment leaves the answer open (a hedge, a range) or says that there is none. A `weak` value counts only
    where the sentence before says none ("... = 8. So that is the total for the 3 days.").
    """

    value: Any = None
    denied: frozenset[Any] = frozenset()
    refused: bool = False
    weak: bool = False


NOTHING = Reading()
Reader = Callable[[str, bool], Reading]
"""(segment, whether it was marked as the answer) -> what it says."""


@dataclass(frozen=True)
class Mark:
    """`text` is what a reply marks as its answer; the reply goes on at `end`. A phrase is prose, anything else is the answer alone."""

    start: int
    end: int
    text: str
    phrase: bool = False


def spans(text: str, opening: str, closing: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each `opening ... closing` with what is between, without overlap, in linear time."""
    at = 0
    while (start := text.find(opening, at)) >= 0 and (end := text.find(closing, start + len(opening))) >= 0:
        at = end + len(closing)
        yield start, at


def spoken(reply: str) -> str:
    """The reply without its thinking."""
    after = reply.rpartition("</think>")[2]
    return after.partition("<think>")[0]


def boxes(text: str) -> list[Mark]:
    r"""The contents of every whole `\boxed{...}` (braces may nest), by where they start."""
    found: list[Mark] = []
    opened: list[tuple[int, int] | None] = []
    for match in _BRACE.finditer(text):
        token = match[0]
        if token == "}":
            begun = opened.pop() if opened else None
            if begun is not None:
                found.append(Mark(begun[0], match.end(), text[begun[1] : match.start()].strip()))
        elif token[-1] == "{" and token != "\\{":
            opened.append((match.start(), match.end()) if token.startswith(BOXED) else None)
    return sorted(found, key=lambda mark: mark.start)


def boxed(text: str) -> str | None:
    r"""The content of the last whole `\boxed{...}`, None where there is none."""
    found = boxes(text)
    return found[-1].text if found else None


def marks(text: str) -> list[Mark]:
    """The last marks of an answer, in the order in which they stand."""
    found = [*_joined(text, boxes(text)), *_tags(text)][-MARKS:]
    inside = found[:]
    for match in _lasts(_HASHES, text):
        found.append(_line(text, match))
    for match in _lasts(_PHRASE, text):
        within = any(mark.start < match.start() and match.end() < mark.end for mark in inside)
        if not within and not _only_spoken_of(text, match):
            found.append(_line(text, match))
    for match in _lasts(_AFTER, text):
        if not _SPOKEN_OF.search(match[0]) and not text[match.end() : match.end() + 2].startswith("?"):
            found.append(Mark(match.start(), match.end(), match[0].rpartition(" is ")[0], phrase=True))
    return sorted(found, key=lambda mark: mark.start)


def _lasts(pattern: re.Pattern[str], text: str) -> deque[re.Match[str]]:
    return deque(pattern.finditer(text), maxlen=MARKS)


def marked(text: str) -> str | None:
    r"""What the reply itself calls its answer, None where it marks none."""
    found = marks(text)
    return found[-1].text.rstrip(".").strip() if found else None


def _joined(text: str, found: list[Mark]) -> list[Mark]:
    """Boxes with `and`, `or` or a comma between them are one answer."""
    joined: list[Mark] = []
    for box in found:
        gap = text[joined[-1].end : box.start] if joined else ""
        if joined and 0 < len(gap) < 40 and _AND.fullmatch(gap):
            first = joined.pop()
            box = Mark(first.start, box.end, f"{first.text}, {box.text}"[-SENTENCE:])
        joined.append(box)
    return joined


def _tags(text: str) -> list[Mark]:
    lower = text.lower()
    if len(lower) != len(text):  # a letter whose lower case is longer
        lower = text
    return [Mark(a, b, text[a + 8 : b - 9].strip()) for a, b in spans(lower, "<answer>", "</answer>")]


def _line(text: str, match: re.Match[str]) -> Mark:
    """From the end of `match` to the end of the sentence that begins there."""
    rest = text[match.end() : match.end() + SENTENCE]
    sentence = next(iter(sentences(rest)), "")
    end = match.end() + max(rest.find(sentence), 0) + len(sentence)
    return Mark(match.end(), end, sentence.strip(), phrase=not match[0].startswith("#"))


def _only_spoken_of(text: str, match: re.Match[str]) -> bool:
    """Whether the sentence supposes, asks or reports the answer rather than states it."""
    before = re.split(r"[.;:!?\n,]\s", text[max(0, match.start() - 120) : match.start()])[-1]
    if _SPOKEN_OF.search(before) or re.search(
        r"\b(?:is|was|were|be|could|can|not sure)\W+(?:the|my)? ?$", before, re.I
    ):
        return True
    line = next(iter(sentences(text[match.end() : match.end() + 300])), "")
    if _VERDICT.match(line):
        return True
    return line.rstrip("*_ \"')").endswith("?")


def sentences(text: str) -> list[str]:
    """Sentences and lines, in order. A full stop of an abbreviation or a number ends none, and a displayed formula is one line."""
    text = _formulas_on_a_line(text)
    found: list[str] = []
    begin = 0
    for match in _BREAK.finditer(text):
        piece = text[begin : match.start()]
        if "\n" not in match[0] and _ABBREVIATION.search(piece[-8:] if len(piece) > 8 else piece):
            following = text[match.end() : match.end() + 1]
            if not (following.isupper() and re.search(r"(?:[ap]\.m|\d)\.$", piece)):
                continue
        if piece.strip():
            found.append(piece.strip()[-SENTENCE:])
        begin = match.end()
    if text[begin:].strip():
        found.append(text[begin:].strip()[-SENTENCE:])
    return found


def _formulas_on_a_line(text: str) -> str:
    for opening, closing in (("\\[", "\\]"), ("$$", "$$"), ("\\begin{", "\\end{")):
        pieces, at = [], 0
        for start, end in spans(text, opening, closing):
            if "\n\n" not in text[start:end]:
                glue = " " if text[max(0, start - 1) : start] == "\n" and opening != "\\begin{" else ""
                pieces += [text[at:start].rstrip("\n") + glue, text[start:end].replace("\n", " ")]
                at = end
        text = "".join(pieces) + text[at:]
    return text


def correction(tail: str) -> tuple[str, bool] | None:
    """The text from the last correction in `tail` on, and whether it takes back what was said; None where there is none."""
    if not tail.strip():
        return None
    parts = sentences(tail)
    for place in range(len(parts) - 1, -1, -1):
        if _CORRECTION.search(parts[place]) and not _CONFIRMED.search(parts[place]):
            while place and _CORRECTION.search(parts[place - 1]) and not _CONFIRMED.search(parts[place - 1]):
                place -= 1
            said = "\n".join(parts[place:])
            return said, _RETRACTED.search(said) is not None
    return None


def settle(reply: str, read: Reader, *, strict: bool = False) -> Any:
    """The value that `reply` commits to, None where it commits to none. With `strict` only marks count."""
    text = spoken(reply)
    denied: set[Any] = set()
    found = marks(text)
    for place in range(len(found) - 1, -1, -1):
        mark = found[place]
        tail = text[mark.end : found[place + 1].start] if place + 1 < len(found) else text[mark.end :]
        corrected = correction(tail)
        if corrected is not None:
            reading = _last_said(corrected[0], read, denied)
            if reading.value is not None or reading.refused or corrected[1]:
                return reading.value
        reading = read(mark.text, True)
        denied |= reading.denied
        if reading.refused:
            return None
        if reading.value is not None:
            return None if reading.value in denied else reading.value
        if not strict and (reading := _last_said(tail, read, denied)).value is not None:
            return reading.value
    if strict or ((found_no := _REFUSAL.search(text)) and not _CONCLUDES.search(text, found_no.end())):
        return None
    return _last_said(text, read, denied).value


def _last_said(text: str, read: Reader, denied: set[Any]) -> Reading:
    """What the last sentence says that says anything. `denied` grows by what is denied on the way."""
    parts = sentences(text)
    if parts and not _META.search(parts[-1]) and _UNFINISHED.search(_ENDS.sub("", parts[-1])):
        return Reading(refused=True)
    weak = NOTHING
    for part in parts[: -SENTENCES - 1 : -1]:
        if passed_over(part):
            continue
        reading = read(part, False)
        denied |= reading.denied
        if reading.refused or (reading.value is None and _CORRECTION.search(part) and _RETRACTED.search(part)):
            return Reading(refused=True)
        if reading.value is None or reading.value in denied:
            if weak is not NOTHING:
                break
        elif reading.weak and weak is NOTHING:
            weak = reading
        else:
            return weak if reading.weak else reading
    return weak


def passed_over(sentence: str) -> bool:
    """Whether a sentence asks, checks, supposes or takes leave, and so says no answer."""
    asks = sentence.rstrip("*_ \"')").endswith("?")
    aside = sentence.startswith("(") and sentence.rstrip(".").endswith(")") and len(sentence.split()) > 3
    return asks or aside or bool(_META.search(sentence) or _SUPPOSED.search(sentence))
