"""The prompt as a contract: a prompt that is asked later has the form of the prompts in the training examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rorqual.core.conversations import turns_to_text
from rorqual.core.errors import DataError, suggest_name
from rorqual.core.records import Message
from rorqual.data.source.cells import joined_prompt
from rorqual.teach.answerer import Answer, AnswererConfig
from rorqual.teach.examples import parse_json


def prompt_of_text(text: str, columns: Sequence[str]) -> str:
    """Return the prompt of a text. If a prompt has several columns, the text may be a JSON object with the text of each.

    Raises DataError if the text is empty, or if the object lacks one of `columns` or has another key.
    """
    values = parse_json(text.strip())
    if len(columns) > 1 and isinstance(values, dict) and values.keys() & {*columns}:
        return prompt_of_columns(values, columns)
    return joined_prompt({"": text}, [""])


def prompt_of_turns(turns: Sequence[Message], config: AnswererConfig) -> str:
    """Return the prompt of a conversation up to its last user turn. System messages are left out, unless prompts have their own.

    Raises DataError if there is no user turn, or if the prompt is empty.
    """
    talk = [one for one in turns if one.role != "system" or (config.has_system_turns and one.label != config.system)]
    while talk and talk[-1].role != "user":
        talk.pop()
    if not talk:
        raise DataError("there is no user message", remedy="Give one.")
    return joined_prompt({"": turns_to_text(talk)}, [""])


def prompt_of_conversation(turns: Sequence[Message], config: AnswererConfig) -> str:
    """Return the prompt of a conversation. If a prompt has several columns, it is the text of the last user turn (`prompt_of_text`).

    Raises DataError if there is no user turn, or if the prompt is empty or too long.
    """
    last = [one for one in turns if one.role == "user"][-1:] if config.columns else turns
    prompt = prompt_of_turns(last, config)
    return check_length(prompt_of_text(prompt, config.columns) if config.columns else prompt, config)


def prompt_of_columns(values: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Return the prompt of a row, joined as in the training examples. The text of a column may be empty.

    Raises DataError if one of `columns` is missing, if there is another column, or if all texts are empty.
    """
    if not columns:
        raise DataError("this task has no columns: its examples are conversations", remedy="Send messages.")
    if unknown := [name for name in values if name not in columns]:
        raise DataError(f"unknown column '{unknown[0]}'", remedy=suggest_name(unknown[0], columns))
    if missing := [name for name in columns if name not in values]:
        raise DataError(f"column '{missing[0]}' is missing", remedy=f"Give {', '.join(columns)}; a text may be empty.")
    return joined_prompt(values, columns)


def check_length(prompt: str, config: AnswererConfig) -> str:
    """Return the prompt. Raises DataError if it is much longer than the training prompts."""
    if len(prompt) > config.most_characters:
        raise DataError(
            f"the prompt has {len(prompt):,} characters, and at most {config.most_characters:,} are answered",
            remedy=f"Shorten it: the longest training prompt has {config.longest:,}.",
        )
    return prompt


def abstention(answer: Answer, config: AnswererConfig) -> str:
    """Return why an answer is withheld, or "" if it is sure enough for the promise or if no promise was asked for."""
    if answer.sure:
        return ""
    if (promise := config.promise) is None:
        return f"no prompt is answered: an accuracy of {config.asked:g} could not be promised for this task"
    if not answer.probability:
        return "unlike all examples: no accuracy was measured for such prompts"
    needed = f"the promise of {promise.accuracy:g} needs {promise.threshold:.3g}"
    return f"not sure enough: probability {answer.probability:.3g}, {needed}"


def warning(config: AnswererConfig) -> str:
    """Return a warning if every prompt is refused, or ""."""
    if not config.asked or config.promise is not None:
        return ""
    return (
        f"Warning: every prompt is refused, because an accuracy of {config.asked:g} could not be promised. Repeat the command "
        "`rorqual teach` with a promise= that its report names, or without promise=; nothing is trained again."
    )
