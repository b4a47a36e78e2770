"""Find the columns of a table that hold the prompt, the answer and the reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rorqual.core.errors import ConfigError
from rorqual.data.source.cells import named_columns

MESSAGES = "messages"
REASONING = ("reasoning", "reasoning_content", "thinking", "rationale", "solution", "explanation", "steps")
SHAPES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("prompt",), ("completion", "response", "answer", "output")),
    (("instruction", "input"), ("output", "response", "answer", "target", "label", "completion")),
    (("instruction",), ("output", "response", "answer")),
    (("question",), ("answer", "response", "label")),
    (("problem",), ("answer", "solution")),
    (("query",), ("answer", "response")),
    (("input",), ("output", "target", "label")),
    (("text",), ("label", "category", "intent", "class", "target", "completion", "slots")),
    (("sentence",), ("label", "category")),
)
"""Pairs of known column names: prompt columns, and answer columns in order of preference. Combinations of a prompt column and
an answer column from different pairs are tried last."""
ANSWERS = tuple(dict.fromkeys(name for _, replies in SHAPES for name in replies))


@dataclass(frozen=True)
class Columns:
    """The columns of a table. `messages` is the column of conversations, or "". Several prompt columns are joined by blank
    lines, and several answer columns become a JSON object. `system` is the system message with which all conversations begin.
    The system message is left out of the prompts."""

    prompt: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    reasoning: str = ""
    messages: str = ""
    system: str = ""

    def describe(self) -> str:
        """Return a text that names the columns, for messages to the user."""
        if self.messages:
            return f"conversations in column '{self.messages}'" + ", without the system turn that all have" * bool(
                self.system
            )
        reasoning = f", reasoning: '{self.reasoning}'" if self.reasoning else ""
        names = (" + ".join(map(repr, columns)) for columns in (self.prompt, self.answer))
        return "prompt: {}, answer: {}".format(*names) + reasoning


def find_columns(names: Sequence[str], *, prompt: str = "", answer: str = "", reasoning: str = "") -> Columns:
    """Return the columns to use: the columns that the user names, and the first known column names where the user names none.

    `prompt` and `answer` may name several columns, separated by commas. Names are compared without regard to case. Raises
    ConfigError if a named column does not exist, or if no known names are found.
    """
    by_name = {name.lower(): name for name in reversed(list(names))}
    keys = (("prompt", prompt), ("answer", answer), ("reasoning", reasoning))
    given, chosen, thoughts = (named_columns(value, names, key) if value else () for key, value in keys)
    if len(thoughts) > 1:
        raise ConfigError("reasoning= names several columns", where="key 'reasoning'", remedy="Name one column.")
    if not given and not chosen and MESSAGES in by_name:
        return Columns(messages=by_name[MESSAGES])
    for asks, replies in (*SHAPES, *((asks, ANSWERS) for asks, _ in SHAPES)):
        found = given or tuple(by_name[name] for name in asks if name in by_name and by_name[name] not in chosen)
        reply = chosen or tuple(by_name[name] for name in replies if name in by_name and by_name[name] not in found)[:1]
        if found and reply and (given or len(found) == len(asks)):
            taken = {*found, *reply}
            known = (by_name[name] for name in REASONING if name in by_name and by_name[name] not in taken)
            return Columns(found, reply, next(iter(thoughts), "") or next(known, ""))
    raise ConfigError(
        f"no columns of prompt and answer are known among {', '.join(map(repr, names)) or 'none'}",
        where="columns",
        remedy="Name them: prompt=COLUMN[,COLUMN] answer=COLUMN[,COLUMN]. Known without naming: messages, or "
        + f"{', '.join('+'.join(asks) for asks, _ in SHAPES)} with {', '.join(ANSWERS)}.",
    )
