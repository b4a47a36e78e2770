"""Examples: a prompt, its answer and optional reasoning, read from the rows of a table."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rorqual.core.conversations import Conversation, read_conversation, text_to_turns, turns_to_text
from rorqual.core.errors import DataError
from rorqual.core.rows import DataRow
from rorqual.data.source.cells import cell_text, joined_prompt
from rorqual.tasks.answer import final_answer
from rorqual.tasks.examples import LEADING_ZERO, AnswerKind, canonical_form
from rorqual.tasks.file_task import normalize_text
from rorqual.teach.columns import MESSAGES, Columns

LABELS_AT_MOST, UNIQUE_AT_MOST = 0.4, 0.1
"""Limits for answers to be labels: the number of different answers, and the number of answers that occur once, each divided by the number
of rows. The second quotient estimates the share of new rows that have a new answer (Good 1953)."""
NUMBERS_AT_MOST = 10
"""Answers that are numbers count as labels only if there are at most `NUMBERS_AT_MOST` different answers."""
FEWEST_EXAMPLES = 50
GIVE_MORE = f"Give at least {FEWEST_EXAMPLES} different examples; some hundred are better."
LABEL_LENGTH = 80
"""Maximum length of a label in characters."""


@dataclass(frozen=True)
class Example:
    """One example. `prompt` holds all turns before the answer, as one text, and `turns` has them as messages. `told` is true if a
    teacher that had been told the answer wrote `reasoning`. If a teacher wrote the whole example, `shown` has the lines of the examples that
    it was shown, and `line` is 0."""

    line: int
    prompt: str
    answer: str
    reasoning: str = ""
    told: bool = False
    shown: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """The canonical form of the prompt. Examples with equal keys are the same problem."""
        return normalize_text(self.prompt)

    @property
    def turns(self) -> Conversation:
        """The turns before the answer. A language model is trained on them, and asked with them."""
        return text_to_turns(self.prompt)


def common_system_message(rows: Sequence[DataRow], column: str) -> str:
    """Return the system message with which all conversations begin, or "". A common system message is left out of the prompts,
    because all examples share this message."""
    turns = (row.values.get(column) for row in rows)
    first = [one[0] for one in turns if isinstance(one, list) and one and isinstance(one[0], dict)]
    contents = [one.get("content") if one.get("role") == "system" else None for one in first]
    texts = {text if isinstance(text, str) else "" for text in contents}
    return texts.pop() if len(texts) == 1 else ""


def example_of_row(row: DataRow, columns: Columns) -> Example:
    """Return the example of a row. Raises DataError if the prompt or the answer of the row has no text."""
    if columns.messages:
        return _from_conversation(row, columns)
    prompt = joined_prompt(row.values, columns.prompt)
    answer = _answer_of_row(row.values, columns.answer)
    if not answer:
        raise DataError("the answer is empty")
    return Example(
        row.line, prompt, answer, cell_text(row.values, columns.reasoning, optional=True) if columns.reasoning else ""
    )


def _answer_of_row(values: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the answer of a row. Several answer columns become one JSON object. In the JSON object, empty cells are left out,
    and a cell with a JSON object or list keeps its structure."""
    if len(names) == 1:
        return cell_text(values, names[0])
    cells = {name: values.get(name) for name in names}
    found = {
        name: json.loads(value) if isinstance(value, str) and is_json(value) else value
        for name, value in cells.items()
        if value is not None and value != ""
    }
    return json.dumps(found, ensure_ascii=False) if found else ""


def _from_conversation(row: DataRow, columns: Columns) -> Example:
    system = columns.system
    *before, reply = read_conversation(dict(row.values) | {MESSAGES: row.values.get(columns.messages)}, "")
    if system and before and before[0].role == "system" and before[0].label == system:
        before = before[1:]
    if reply.role != "assistant" or not before:
        raise DataError("the conversation does not end with an assistant turn after a user turn")
    if not reply.label.strip():
        raise DataError("the answer is empty")
    if not (prompt := turns_to_text(before).strip()):
        raise DataError("the prompt is empty")
    return Example(row.line, prompt, reply.label.strip(), reply.reasoning or "")


def parse_json(text: str) -> Any:
    """Return the JSON object or list of a text, or None if the text is none."""
    with suppress(ValueError, RecursionError):
        return json.loads(text) if text[:1] in ("{", "[") else None
    return None


def is_json(text: str) -> bool:
    """Return whether the text is a JSON object or list."""
    return parse_json(text) is not None


NUMBER = re.compile(r"[-+$€£]?\s?\d[\d,]*(\.\d+)?\s?%?")


def answer_kind(examples: Sequence[Example]) -> AnswerKind:
    """Return the kind of answers that at least 95 % of the examples have: JSON, number, label (few different answers), or text.
    Digits with a leading zero are no number."""
    texts = Counter(one.answer for one in examples)
    enough = 0.95 * len(examples)
    if sum(count for text, count in texts.items() if is_json(text)) >= enough:
        return "JSON"
    is_number = sum(count for text, count in texts.items() if _is_number(final_answer(text).strip())) >= enough
    labels = Counter(normalize_text(one.answer) for one in examples)
    unique = sum(count == 1 for count in labels.values())
    repeat = unique <= UNIQUE_AT_MOST * len(examples) and len(labels) <= LABELS_AT_MOST * len(examples)
    is_short = sum(count for text, count in texts.items() if len(text) <= LABEL_LENGTH) >= enough
    is_label = is_short and (repeat or len(labels) <= 2)
    if is_label and not (is_number and len(labels) > NUMBERS_AT_MOST):
        return "label"
    return "number" if is_number else "text"


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None and LEADING_ZERO.fullmatch(text) is None


def canonical_answer(example: Example, kind: AnswerKind) -> str:
    """Return the answer of an example in a canonical form. Answers of the kind `kind` that count as equal have the same
    canonical form."""
    return canonical_form(example.answer, kind, gold=example.answer) or normalize_text(example.answer)


def truncate(text: str, most: int) -> str:
    """Return the text, cut to `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."
