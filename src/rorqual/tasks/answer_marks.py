"""Find answer markers in a reply, such as a box, a tag, `#### ...`, `answer is ...` or `I'll go with ...`."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from rorqual.tasks.sentences import SENTENCE, sentences, spans

MARKS = 24
"""For each kind of answer marker, only the last `MARKS` markers of a reply are read."""
BOXED = "\\boxed"
_BRACE = re.compile(r"\\boxed\s?\{|\\.|[{}]", re.DOTALL)
_AND = re.compile(r"[\s$,.]*(?:(?:\\text\s?\{)?\s*(?:and|or)\s*\}?|,)[\s$]*(?:[a-z]\s?=\s?)?[\s$]*", re.IGNORECASE)
_PHRASE = re.compile(
    r"(?<!\bto )(?<!\bno )(?<!\bin )\bans(?:wers?)?\b(?! (?:key|sheet|choice))"
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
_VERDICT = re.compile(
    r"(?:not |in)?(?:correct|right|wrong|verified|confirmed|valid|unique|reasonable|plausible|clear|obvious|as follows|the same)\b",
    re.I,
)
_CHOICE = re.compile(
    r"\b(?:(?:i'll|i will|let's|let me|i'm going to|i) go with|i(?:'m| am) going with|i(?:'d| would)? (?:choose|pick|select)"
    r"|my (?:verdict|choice|pick|label)(?: is|:)|i conclude that it(?: is|'s)|i(?:'ll)? settle on)[\s*_:\"]*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class AnswerMark:
    """A marked answer, such as the content of a box. `text` is the answer, and the rest of the reply starts at `end`.

    `phrase` is True for a marker in prose ("the answer is ..."). If `phrase` is True, `text` may contain more than the
    answer.
    """

    start: int
    end: int
    text: str
    phrase: bool = False


def boxes(text: str) -> list[AnswerMark]:
    r"""Return the contents of every complete `\boxed{...}`, ordered by start. Braces may nest."""
    complete: list[AnswerMark] = []
    opened: list[tuple[int, int] | None] = []
    for match in _BRACE.finditer(text):
        token = match[0]
        if token == "}":
            begun = opened.pop() if opened else None
            if begun is not None:
                complete.append(AnswerMark(begun[0], match.end(), text[begun[1] : match.start()].strip()))
        elif token[-1] == "{" and token != "\\{":
            opened.append((match.start(), match.end()) if token.startswith(BOXED) else None)
    return sorted(complete, key=lambda mark: mark.start)


def boxed(text: str) -> str | None:
    r"""Return the content of the last complete `\boxed{...}`, or None."""
    contents = boxes(text)
    return contents[-1].text if contents else None


def marks(text: str) -> list[AnswerMark]:
    """Return the last marked answers of `text`, at most `MARKS` of each kind, ordered by start."""
    result = [*_joined(text, boxes(text)), *_tags(text)][-MARKS:]
    explicit = result[:]
    for match in _lasts(_HASHES, text):
        result.append(_line(text, match))
    for match in _lasts(_PHRASE, text):
        within = any(mark.start < match.start() and match.end() < mark.end for mark in explicit)
        if not within and not _only_spoken_of(text, match):
            result.append(_line(text, match))
    for match in _lasts(_CHOICE, text):
        if not _only_spoken_of(text, match):
            result.append(_line(text, match))
    for match in _lasts(_AFTER, text):
        if not _SPOKEN_OF.search(match[0]) and not text[match.end() : match.end() + 2].startswith("?"):
            result.append(AnswerMark(match.start(), match.end(), match[0].rpartition(" is ")[0], phrase=True))
    return sorted(result, key=lambda mark: mark.start)


def _lasts(pattern: re.Pattern[str], text: str) -> deque[re.Match[str]]:
    return deque(pattern.finditer(text), maxlen=MARKS)


def marked(text: str) -> str | None:
    r"""Return the text of the last marked answer, or None if the reply has no answer marker."""
    result = marks(text)
    return result[-1].text.rstrip(".").strip() if result else None


def _joined(text: str, boxes_found: list[AnswerMark]) -> list[AnswerMark]:
    """Join boxes that are separated by `and`, `or` or a comma into one answer."""
    joined: list[AnswerMark] = []
    for box in boxes_found:
        gap = text[joined[-1].end : box.start] if joined else ""
        if joined and 0 < len(gap) < 40 and _AND.fullmatch(gap):
            first = joined.pop()
            box = AnswerMark(first.start, box.end, f"{first.text}, {box.text}"[-SENTENCE:])
        joined.append(box)
    return joined


def _tags(text: str) -> list[AnswerMark]:
    lower = text.lower()
    if len(lower) != len(text):  # lower() changed the length, which would shift the positions
        lower = text
    return [AnswerMark(a, b, text[a + 8 : b - 9].strip()) for a, b in spans(lower, "<answer>", "</answer>")]


def _line(text: str, match: re.Match[str]) -> AnswerMark:
    """Return the first sentence after `match` as a marked answer."""
    following = text[match.end() : match.end() + SENTENCE]
    sentence = next(iter(sentences(following)), "")
    end = match.end() + max(following.find(sentence), 0) + len(sentence)
    return AnswerMark(match.end(), end, sentence.strip(), phrase=not match[0].startswith("#"))


def _only_spoken_of(text: str, match: re.Match[str]) -> bool:
    """Return whether the sentence supposes, asks for or reports an answer instead of stating one."""
    before = re.split(r"[.;:!?\n]\s|,\s(?!(?:so|and) that\b)", text[max(0, match.start() - 120) : match.start()])[-1]
    sentence = re.split(r"[.;:!?\n]\s", text[max(0, match.start() - 300) : match.start()])[-1]
    if (
        _SPOKEN_OF.search(before)
        or re.match(
            r"\W*if (?:(?:you|we|one) (?:change|drop|remove|add|replace|omit)|i (?:had|have) to\b|forced\b)",
            sentence,
            re.I,
        )
        or re.search(r"\b(?:is|was|were|be|could|can|not sure)\W+(?:the|my)? ?$", before, re.I)
    ):
        return True
    line = next(iter(sentences(text[match.end() : match.end() + 300])), "")
    if "would be" in match[0].lower() and re.search(r"\bif\b|\bbut\b", line, re.IGNORECASE):
        return True
    if _VERDICT.match(line):
        return True
    return line.rstrip("*_ \"')").endswith("?")
