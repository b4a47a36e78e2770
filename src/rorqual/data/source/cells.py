"""Read the cells of a table as text, and find the columns that a user names. `rorqual teach` and `rorqual generate` share this
module, so both commands read prompts in the same way."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rorqual.core.errors import ConfigError, DataError, suggest_name


def cell_text(values: Mapping[str, Any], name: str, *, optional: bool = False, strip: bool = True) -> str:
    """Return a table cell as text. Numbers and JSON values are written as text. Raises DataError if the cell is missing or has
    no text."""
    value = values.get(name)
    if value is None:
        if optional:
            return ""
        raise DataError(f"column '{name}' is {'null' if name in values else 'missing'}")
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    if isinstance(value, float) and (not math.isfinite(value) or value == int(value)):
        if not math.isfinite(value):
            raise DataError(f"column '{name}' is {value}, not a number")
        value = int(value)
    if not isinstance(value, str | int | float):
        raise DataError(f"column '{name}' is a {type(value).__name__}, not text")
    return str(value).strip() if strip else str(value)


def joined_prompt(values: Mapping[str, Any], names: Sequence[str], *, strip: bool = True) -> str:
    """Return the prompt of a row: the texts of the columns `names`, joined by blank lines. Raises DataError if the prompt is
    empty.

    If `names` has several columns, some cells may be missing or empty. `strip` removes the white space around each text.
    """
    texts = [cell_text(values, name, optional=len(names) > 1, strip=strip) for name in names]
    prompt = "\n\n".join(filter(None, texts))
    if not prompt:
        raise DataError("the prompt is empty")
    return prompt


def named_columns(names: str, columns: Iterable[str], key: str) -> tuple[str, ...]:
    """Return the columns that `names` lists, separated by commas. Case and white space around names are ignored. `key` is the
    setting that contains `names`. Raises ConfigError if a named column does not exist.
    """
    by_name = {name.strip().lower(): name for name in reversed(list(columns))}
    found = []
    for name in (part.strip() for part in names.split(",")):
        if name.lower() not in by_name:
            raise ConfigError(
                f"the file has no column '{name}'", where=f"key '{key}'", remedy=suggest_name(name, by_name.values())
            )
        found.append(by_name[name.lower()])
    return tuple(found)
