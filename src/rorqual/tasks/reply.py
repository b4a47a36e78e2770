r"""Decide which words of a reply are its answer.

The rules, in order:

1. Text up to `</think>` is not the answer. Text after an unclosed `<think>` is not the answer.
   A further "Question: ... Answer: ..." that the model makes up does not count.
2. The last answer marker counts (see `rorqual.tasks.answer_marks`): `\boxed{...}`, `<answer>...</answer>`, `#### ...`,
   `answer is ...`, `Answer: ...`, `... is the answer`, `I'll go with ...`.
   A question or a mere mention ("if the answer is") is not an answer marker.
3. Struck-out text (`~~18~~`) and values corrected in the same sentence ("18, no wait, 16") are ignored.
   A correction after the marked answer ("Wait, ...", "Correction: ...", "That is wrong.") replaces the answer.
   A correction without a new value removes the answer.
   A conclusion after the marked answer ("So it is 8.") is as final as the marked answer.
   Other text after the marked answer ("That took 2 steps.") is ignored.
4. Without an answer marker, the last sentence that states an answer counts.
   Questions, closing phrases ("I hope it is correct."), checks ("Check: ...") and suppositions are skipped.
   A line that only introduces the next line ("The total is:") is skipped.
   A reply has no answer if it stops in the middle of a sentence or ends with work left to do ("Next, we have to add the tip.").
5. A conclusion ("So ...", "... in total", bold, `Total: ...`) counts instead of the last sentence if only remarks
   ("That is $4 a day.") follow the conclusion. An answer at the start ("**27**", "7 pencils.", "7 are left.") counts if
   reasons, explanations or given facts follow it.
6. A denied value ("not 18") is not the answer. Open alternatives ("18 or 19") leave the reply without an answer.
7. If a right and a wrong value both look final by these rules, the reply is ungraded.
8. An otherwise wrong reply without an answer marker is ungraded if its last sentence also states the right value
   ("13 were eaten, leaving 2").
   The reply is wrong, not ungraded, if its last sentence denies the right value, computes with it or continues from it
   ("18, so she has 16").

A `Reader` parses one segment of a reply as numbers, labels or mathematics, and returns a `Reading`. `resolve_answer` applies the rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from rorqual.tasks.answer_marks import marks
from rorqual.tasks.base import Verdict
from rorqual.tasks.remarks import adds, answers, bare_answer, closes, concludes, contrasts, heading, led, shown
from rorqual.tasks.sentences import (
    corrected_midway,
    correction,
    corrects,
    leaves_work,
    passed_over,
    retracts,
    sentences,
    spoken,
    unfinished,
)

BESIDE = 4
"""Maximum number of values in a sentence, apart from its answer, that are compared with the gold answer. Each comparison
of formulas may take seconds."""
SENTENCES = 400
"""Only this many sentences at the end of a reply are read."""
_REFUSAL = re.compile(
    r"\b(?:not enough|insufficient|too little) (?:information|data)\b[^.]{0,80}\b(?:answer|solve|compute|calculate|say how)"
    r"|\b(?:cannot|can't) be (?:answered|solved|computed|calculated)\b|\bI (?:cannot|can't|am unable to"
    r"|am not able to) (?:answer|solve|help|assist|provide)\b",
    re.I,
)
_GIVEN = re.compile(r"\W*(?:if|suppose|given|let|we (?:know|are (?:told|given)))\b", re.IGNORECASE)
"""Matches the start of a reply that repeats facts from the question."""
_CONCLUDES = re.compile(r"\b(?:so|thus|hence|therefore)\b|=", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """The answer that a `Reader` finds in one segment of a reply.

    `value` is the answer, or None. `denied` holds values that the segment rejects.
    `rival` is another value that looks equally final. `beside` holds the other values that the segment states (rule 8).
    `refused` is True if the segment leaves the answer open (a hedge, a range) or says that no answer exists.
    A `weak` value counts only if the previous sentence has no value ("... = 8. So that is the total for the 3 days.").
    """

    value: Any = None
    denied: frozenset[Any] = frozenset()
    refused: bool = False
    weak: bool = False
    rival: Any = None
    beside: frozenset[Any] = frozenset()


@dataclass(frozen=True)
class FinalAnswer:
    """The answer of a reply. `final` holds no value, one value, or two values that look equally final.

    `beside` holds the other values in the last sentence of a reply without an answer marker (rule 8).
    """

    final: tuple[Any, ...] = ()
    beside: tuple[Any, ...] = ()


NOTHING = Reading()
Reader = Callable[[str, bool], Reading]
"""Maps (segment, marked) to a `Reading`. `marked` is True if the segment is a marked answer."""


def resolve_answer(reply: str, reader: Reader, *, strict: bool = False) -> FinalAnswer:
    """Return the final values of `reply`. With `strict`, only marked answers count."""

    def read(segment: str, marked: bool) -> Reading:
        later = corrected_midway(segment)
        reading = NOTHING if later is None else reader(later, True)
        return reader(segment, marked) if reading.value is None else reading

    text = spoken(reply)
    denied: set[Any] = set()
    found_marks = marks(text)
    for place in range(len(found_marks) - 1, -1, -1):
        mark = found_marks[place]
        tail = text[mark.end : found_marks[place + 1].start] if place + 1 < len(found_marks) else text[mark.end :]
        corrected = correction(tail)
        if corrected is not None:
            _, reading = _last_said(sentences(corrected[0]), read, denied)
            if reading.value is not None or reading.refused or corrected[1]:
                return FinalAnswer(_values(reading))
        reading = read(mark.text, True)
        denied |= reading.denied
        if reading.refused:
            return FinalAnswer()
        if reading.value is not None:
            return FinalAnswer(() if reading.value in denied else _values(reading, _concluded_after(tail, read)))
        if not strict and (reading := _last_said(sentences(tail), read, denied)[1]).value is not None:
            return FinalAnswer(_values(reading))
    if strict or ((refusal := _REFUSAL.search(text)) and not _CONCLUDES.search(text, refusal.end())):
        return FinalAnswer()
    final = _unmarked(text, read, denied)
    beside = {value for last in final for value in last.beside}
    return FinalAnswer(_values(*final), tuple(beside - denied))


def verdict(final: Iterable[bool], beside: Iterable[bool] = ()) -> Verdict:
    """Return the verdict by rules 7 and 8 of the module docstring. In `final` and `beside`, True stands for a right
    value of the `FinalAnswer`, and False for a wrong one."""
    grades = set(final)
    if grades == {False} and any(beside):
        return Verdict.UNGRADED
    return Verdict.UNGRADED if len(grades) > 1 else Verdict.RIGHT if True in grades else Verdict.WRONG


def _values(*readings: Reading) -> tuple[Any, ...]:
    return tuple(
        dict.fromkeys(value for reading in readings for value in (reading.value, reading.rival) if value is not None)
    )


def _concluded_after(tail: str, read: Reader) -> Reading:
    """Return the conclusion after a marked answer ("So it is 8."). If the conclusion's value differs from the marked
    value, both values count as final."""
    for sentence in reversed(sentences(tail)[-SENTENCES:]):
        if led(sentence) and not passed_over(sentence) and not adds(sentence):
            return read(sentence, False)
    return NOTHING


def _unmarked(text: str, read: Reader, denied: set[Any]) -> tuple[Reading, ...]:
    """Return the final readings of a reply without an answer marker, by rules 4, 5 and 7 of the module docstring."""
    parts = sentences(text)[-SENTENCES:]
    place, last = _last_said(parts, read, denied)
    if place is None or any(map(corrects, parts[1 : place + 1])):
        return (last,)
    final = _conclusion(parts, place, last, read)
    opening, sure = _opening(parts, read)
    if opening.value is None or opening.value in _values(*final):
        return final if opening.value is None else (Reading(opening.value),)
    if sure:
        return (opening, *final) if led(parts[place]) else (opening,)
    if closes(parts[place]) or any(map(concludes, parts[1 : place + 1])):
        return final
    return (opening,) if adds(parts[place]) else (opening, *final)


def _conclusion(parts: list[str], place: int, last: Reading, read: Reader) -> tuple[Reading, ...]:
    """Return the final readings. They come from the last sentence with an answer (index `place`), an earlier
    conclusion, or both."""
    if concludes(parts[place]) and not adds(parts[place]):
        return (last,)
    for earlier in range(place - 1, -1, -1):
        if concludes(parts[earlier]) and not passed_over(parts[earlier]):
            reading = read(parts[earlier], False)
            if reading.value is not None:
                break
    else:
        before = read(parts[place - 1], False) if place and contrasts(parts[place]) else NOTHING
        return (before, last)
    if all(adds(part) or passed_over(part) for part in parts[earlier + 1 : place + 1]):
        return (reading,)
    if last.refused or "=" in parts[place]:
        return (last,)
    if shown(parts[earlier]):
        beside = reading.beside | last.beside | set(_values(last))
        return (reading, last) if closes(parts[place]) else (replace(reading, beside=beside),)
    return (last,) if closes(parts[place]) else (reading, last)


def _opening(parts: list[str], read: Reader) -> tuple[Reading, bool]:
    """Return the answer at the start of the reply, if any, and whether its form is unambiguous."""
    if (end := heading(parts)) and (concludes(parts[end - 1]) or end == 1):
        return read(parts[end - 1], end == 1), True
    if bare_answer(parts):
        return read(parts[0].strip("*_ .!"), True), True
    return (
        (read(parts[0], False), False)
        if len(parts) > 1 and answers(parts[0]) and not passed_over(parts[0]) and not _GIVEN.match(parts[0])
        else (NOTHING, False)
    )


def _last_said(parts: list[str], read: Reader, denied: set[Any]) -> tuple[int | None, Reading]:
    """Return the index and the reading of the last sentence with an answer. Values that later sentences deny are added to `denied`."""
    if parts and unfinished(parts[-1]):
        return None, Reading(refused=True)
    weak, at = NOTHING, None
    for place in range(len(parts) - 1, max(-1, len(parts) - SENTENCES - 1), -1):
        if passed_over(parts[place]):
            continue
        if leaves_work(parts[place]):
            return place, Reading(refused=True)
        reading = read(parts[place], False)
        denied |= reading.denied
        if reading.refused or (reading.value is None and retracts(parts[place])):
            return place, Reading(refused=True)
        if reading.value is None or reading.value in denied:
            if weak is not NOTHING:
                break
        elif reading.weak and weak is NOTHING:
            weak, at = reading, place
        else:
            return (at, weak) if reading.weak and at is not None else (place, reading)
    return at, weak
