"""The prompt as a contract: a prompt that is asked later has the form of the prompts in the training examples."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rorqual.core.errors import ConfigError, DataError, suggest_name
from rorqual.data.source.cells import joined_prompt
from rorqual.teach.paths import TeachPaths
from rorqual.teach.promise import Promise


def has_answerer(folder: Path) -> bool:
    """Return whether `rorqual teach` wrote `folder` and chose what answers. Raises ConfigError if it has not chosen yet."""
    paths = TeachPaths(folder)
    found = os.path.isfile(paths.answerer)  # also False for a text that is too long for a path
    if not found and os.path.isfile(paths.settings):
        raise ConfigError(
            "`rorqual teach` has not chosen what answers here",
            where=str(paths.answerer),
            remedy=f"Repeat the command that writes {folder}, or give {paths.model.path}, the language model alone.",
        )
    return found


def prompt_of_text(text: str, columns: Sequence[str]) -> str:
    """Return the prompt of a text. If a prompt has several columns, the text may be a JSON object with the text of each.

    Raises DataError if the text is empty, or if the object lacks one of `columns` or has another key.
    """
    if len(columns) > 1 and text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict):
            return prompt_of_columns(values, columns)
    return joined_prompt({"": text}, [""])


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


def abstention(probability: float, promise: Promise) -> str:
    """Return why an answer is withheld whose probability is below the threshold of the promise."""
    needed = f"the promise of {promise.accuracy:g} needs {promise.threshold:.3g}"
    return f"not sure enough: probability {probability:.3g}, {needed}"
