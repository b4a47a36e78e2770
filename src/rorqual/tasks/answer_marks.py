r"""The ways to mark an answer in a reply, such as `\boxed{18}`. Each task tells the model which mark to use, and reads only this mark."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

MARKS = 24
"""Maximum number of marked texts that are read from a reply, counted from its end."""
WRAPPINGS, LONGEST_JOINER = 6, 40
_BOX = re.compile(r"\\boxed\s?\{|\\.|[{}]", re.DOTALL)
_TAG = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"(?<![#\w])####(?!#)[ \t]*")
_ANSWER = re.compile(r"\banswer[*_ \t]*:(?:[*_]{1,2}(?=\s))?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[^\s.])[.!?;][*_\"')\]$]*\s")
_JOINER = re.compile(r"[\s$,.]*(?:(?:\\text\s?\{)?\s*(?:and|or)\s*\}?|,)[\s$]*(?:[a-z]\s?=\s?)?[\s$]*", re.IGNORECASE)
_WRAPPED = (re.compile(r"\*\*(.+)\*\*", re.DOTALL), re.compile(r"[*_`](.+)[*_`]", re.DOTALL), re.compile(r"\$([^$]+)\$"),
            re.compile(r"\\\((.+)\\\)", re.DOTALL), re.compile(r"\\\[(.+)\\\]", re.DOTALL))  # fmt: skip


@dataclass(frozen=True)
class MarkedText:
    """A marked text in a reply. `text` is the text inside the mark, and `reply[start:end]` is the mark with this text."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class AnswerMark:
    """A way to mark an answer. `form` is a template with the placeholder ANSWER. `find_all` returns all marked texts of a reply, in order."""

    form: str
    find_all: Callable[[str], list[MarkedText]]

    def mark_answer(self, answer: str) -> str:
        """Return `answer` with the mark around or before it."""
        return self.form.replace("ANSWER", answer)

    def prompt_for_mark(self, prompt: str, what: str) -> str:
        """Return `prompt` with the instruction to mark the answer. `what` is a placeholder for the answer, such as NUMBER.

        The instruction is short, so that a search for contamination does not match the instruction itself.
        """
        return f"{prompt}\nEnd with: {self.mark_answer(what)}"

    def find(self, reply: str) -> str | None:
        """Return the last marked text of `reply`, or None if the reply is unmarked.

        Marked texts that are joined by `and`, `or` or a comma are returned as one text, separated by commas: `1, 2`. A reply also
        counts as unmarked if its last sentence with marks has different marked texts that are not joined.
        """
        reply = without_thinking(reply)
        marked = self.find_all(reply)[-MARKS:]
        if not marked:
            return None
        text, last = marked[-1].text, marked[-1]
        for before in reversed(marked[:-1]):
            gap = reply[before.end : last.start]
            if "\n" in gap or _SENTENCE_END.search(reply, before.end, last.start):
                break
            if len(gap) <= LONGEST_JOINER and _JOINER.fullmatch(gap):
                text = f"{before.text}, {text}"
            elif before.text != last.text:
                return None
            last = before
        return unwrap_answer(text) or None


def without_thinking(reply: str) -> str:
    """Return the reply without its thinking."""
    return reply.rpartition("</think>")[2].partition("<think>")[0]


def unwrap_answer(text: str) -> str:
    r"""Return `text` without a final full stop, and without emphasis, math delimiters or a box around the whole text."""
    for _ in range(WRAPPINGS):
        text = text.strip()
        text = text if text.endswith("..") else text.removesuffix(".")
        for pattern in _WRAPPED:
            text = match[1] if (match := pattern.fullmatch(text)) else text
        boxes = _boxes(text) if text.startswith("\\boxed") else []
        if len(boxes) == 1 and boxes[0].end == len(text):
            text = boxes[0].text
    return text.strip()


def _boxes(text: str) -> list[MarkedText]:
    """Return the content of each complete `\\boxed{...}` that is not inside another box. Braces inside a box may nest."""
    complete: list[MarkedText] = []
    opened: list[tuple[int, int] | None] = []
    for match in _BOX.finditer(text):
        if match[0] == "}":
            if opened and (begun := opened.pop()) is not None:
                while complete and complete[-1].start > begun[0]:
                    complete.pop()
                complete.append(MarkedText(begun[0], match.end(), text[begun[1] : match.start()].strip()))
        elif match[0][-1] == "{" and match[0] != "\\{":
            opened.append((match.start(), match.end()) if match[0] != "{" else None)
    return complete


def _tags(reply: str) -> list[MarkedText]:
    return [MarkedText(*match.span(), match[1].strip()) for match in deque(_TAG.finditer(reply), maxlen=MARKS)]


def _finder_after_pattern(pattern: re.Pattern[str]) -> Callable[[str], list[MarkedText]]:
    """Return a function that finds the text after each match of `pattern`, up to the end of the line or the next match."""

    def find_all(reply: str) -> list[MarkedText]:
        matches = list(deque(pattern.finditer(reply), maxlen=MARKS))
        ends = [*(match.start() for match in matches[1:]), len(reply)]
        texts = [reply[match.end() : end].partition("\n")[0] for match, end in zip(matches, ends, strict=False)]
        return [MarkedText(*match.span(), text.strip()) for match, text in zip(matches, texts, strict=True)]

    return find_all


def _whole_reply_as_answer(reply: str) -> list[MarkedText]:
    return [MarkedText(0, len(reply), reply.strip())]


BOXED = AnswerMark("\\boxed{ANSWER}", _boxes)
HASHES = AnswerMark("#### ANSWER", _finder_after_pattern(_HASHES))
ANSWER = AnswerMark("Answer: ANSWER", _finder_after_pattern(_ANSWER))
TAG = AnswerMark("<answer>ANSWER</answer>", _tags)
ALONE = AnswerMark("ANSWER", _whole_reply_as_answer)
"""The mark of tasks in which the whole reply is the answer, such as a label, a number or JSON."""


def first_sentence(text: str) -> str:
    """Return the first sentence of `text`."""
    end = _SENTENCE_END.search(text)
    return unwrap_answer(text[: end.start()]) if end else text


def last_line(reply: str) -> str:
    """Return the last line of the reply that is not empty, or ""."""
    lines = [line.strip() for line in without_thinking(reply).split("\n") if line.strip()]
    return lines[-1] if lines else ""


def last_mark(reply: str) -> str | None:
    r"""Return the last marked text of the reply, whatever the mark (`\boxed{}`, `####`, `Answer:`, `<answer>`), or None."""
    text = without_thinking(reply)
    found = [(one.end, mark) for mark in (BOXED, HASHES, ANSWER, TAG) for one in mark.find_all(text)[-1:]]
    return max(found, key=lambda item: item[0])[1].find(text) if found else None
