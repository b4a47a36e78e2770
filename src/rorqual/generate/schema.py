"""The request schema of prompt files. Each row of a prompt file becomes a request with its own sampling parameters and
seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, ValidationError

from rorqual.core.config import Config, parse_scalar, with_fields
from rorqual.core.conversations import read_messages
from rorqual.core.errors import DataError, RorqualError, suggest_name
from rorqual.core.records import NO_DEFAULTS, Message, TaskDefaults, Thinking
from rorqual.core.sampling import PARAMS, SAFE, TextList
from rorqual.data.source.cells import joined_prompt
from rorqual.engine.request import Request, SamplingParams
from rorqual.generate.prompts import RefusedRow

PROMPTS = ("prompt", "messages", "prompt_ids")
TURN = frozenset({"role", "content", "reasoning", "reasoning_content", "name"})
"""The allowed keys of a message in `messages`."""
TEXTS = frozenset({"prompt", *(name for name, param in PARAMS.items() if isinstance(param.type, TextList))})
"""Columns of a CSV prompt file whose values stay text even if the values look like numbers."""
RESERVED = frozenset({"line", "choices", "usage", "error"})
"""Keys of the output lines. A row of a prompt file must not contain keys in `RESERVED`."""
ELSEWHERE: Mapping[str, str] = {
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "num_return_sequences": "n",
    "response_format": "grammar",
    "best_of": "n",
}
"""Sampling keys of other programs, mapped to the Rorqual keys that error messages suggest."""
ALIKE = 0.9
"""If the similarity of an extra field to a known key is at least `ALIKE`, the field is reported as misspelt: `temprature` is
reported, `speed` is not."""


@with_fields({name: param.file_field_definition for name, param in PARAMS.items()})
class RowSampling(Config):
    """The sampling keys of a row or of the command line: `thinking` and all fields of `SamplingParams`."""

    thinking: Annotated[Thinking, Field(description="auto, on or off")] = "auto"

    def params(self) -> SamplingParams:
        """Return the engine's sampling parameters."""
        return SamplingParams(**{name: getattr(self, name) for name in PARAMS})


KEYS = frozenset(RowSampling.model_fields)


def line_seed(seed: int, line: int, name: str | int | None) -> int:
    """Derive the seed of a row from the command's `seed` and the row's id `name`. For a row without an id, use the line number instead.

    Therefore a row with an id gets the same answer after rows are reordered or removed.
    """
    key = json.dumps([seed, "line", line] if name is None else [seed, "id", name])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") & SAFE


@dataclass(frozen=True)
class RowRequest:
    """A valid row of a prompt file, and the request that the row became.

    `key` is the key of the prompt, such as `messages`. `carried` holds the extra fields of the row, which the output repeats.
    """

    line: int
    key: str
    request: Request
    carried: dict[str, Any]


def _row_error(key: str, what: str, remedy: str) -> DataError:
    """Return the error for an invalid row. The field `where` of the error names the row's invalid key."""
    return DataError(what, where=key, remedy=remedy)


@dataclass(frozen=True)
class RowParser:
    """A converter from the rows of a prompt file to requests.

    If `encode` is given, `prompt` is a text that the model continues; otherwise `prompt` is a user message. `cells` is true
    if the rows are from a CSV file, in which all values are text.

    If `columns` are given, the texts of these columns form the prompt, as in `rorqual teach`, and `prompt`, `messages`
    and `prompt_ids` are extra fields. White space around the texts of the columns is removed, unless the model
    continues the prompt.

    `task` has the defaults of chat requests. A default in `task` applies if neither `defaults` nor the row sets the default's
    key. The defaults in `task` do not apply to `prompt_ids` or to texts that the model continues.
    """

    defaults: RowSampling
    encode: Callable[[str], Sequence[int]] | None = None
    cells: bool = False
    columns: tuple[str, ...] = ()
    task: TaskDefaults = NO_DEFAULTS

    @cached_property
    def _chat_sampling_defaults(self) -> RowSampling:
        task = {name: value for name, value in self.task if value is not None}
        return RowSampling.model_validate(
            task | {name: getattr(self.defaults, name) for name in self.defaults.model_fields_set}
        )

    def parse_row(self, line: int, row: dict[str, Any] | RefusedRow) -> RowRequest | RefusedRow:
        """Convert a row to a request, or to `RefusedRow` if the row is invalid."""
        if isinstance(row, RefusedRow):
            return row
        prompts = () if self.columns else PROMPTS
        keys = KEYS - {*self.columns}
        if self.cells:
            typed = keys.union(prompts) - TEXTS
            row = {name: parse_scalar(text) if name in typed else text for name, text in row.items() if text}
        carried = {key: value for key, value in row.items() if key not in keys and key not in prompts}
        try:
            _check_extra_fields(carried, self.columns)
            given = {key: row[key] for key in keys & row.keys() if row[key] is not None}
            is_chat = self.encode is None and ("prompt_ids" not in prompts or row.get("prompt_ids") is None)
            sampling = _read_row_sampling(given, self._chat_sampling_defaults if is_chat else self.defaults)
            key, messages, ids = self._columns_prompt(row) if self.columns else self._read_prompt(row)
        except DataError as fault:
            writable = {k: v for k, v in carried.items() if k not in RESERVED and is_json_writable(v)}
            return RefusedRow(line, fault.where, fault.what, fault.remedy, writable)
        params = sampling.params()
        if "seed" not in given:
            params = replace(params, seed=line_seed(params.seed, line, carried.get("id")))
        return RowRequest(line, key, Request(messages, params, sampling.thinking, ids), carried)

    def _read_prompt(self, row: dict[str, Any]) -> tuple[str, tuple[Message, ...], tuple[int, ...] | None]:
        given = [key for key in PROMPTS if row.get(key) is not None]
        if len(given) != 1:
            what = f"the row has both {' and '.join(given)}" if given else "the row has no prompt"
            hint = next((hint for key in row if (hint := suggest_name(key, PROMPTS)).startswith("Did")), "")
            remedy = f"{hint} Give exactly one of {', '.join(PROMPTS)}.".strip()
            raise _row_error(given[1] if given else "prompt", what, remedy)
        key, value = given[0], row[given[0]]
        if key == "prompt_ids":
            return key, (), _check_token_ids(value)
        if key == "messages":
            return key, _messages(value), None
        text = _check_text(value, key)
        if not text:
            raise _row_error(key, "the prompt is empty", "Write a prompt, or delete the row.")
        return self._text_prompt(key, text)

    def _columns_prompt(self, row: dict[str, Any]) -> tuple[str, tuple[Message, ...], tuple[int, ...] | None]:
        key = self.columns[0]
        try:
            text = joined_prompt(row, self.columns, strip=self.encode is None)
        except DataError as error:
            raise _row_error(key, error.what, "Fill the columns of prompt=, or delete the row.") from None
        return self._text_prompt(key, _check_text(text, key))

    def _text_prompt(self, key: str, text: str) -> tuple[str, tuple[Message, ...], tuple[int, ...] | None]:
        if self.encode is None:
            return key, (Message("user", text),), None
        try:
            return key, (), tuple(self.encode(text))
        except RorqualError as error:
            raise _row_error(key, error.what, error.remedy) from None


def _read_row_sampling(given: Mapping[str, Any], defaults: RowSampling) -> RowSampling:
    """Return the sampling parameters of a row: the `given` values, and the defaults for all other keys."""
    try:
        return RowSampling.model_validate({**dict(defaults), **given}) if given else defaults
    except ValidationError as error:
        item = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
        key = str(item["loc"][0])
        what = item["msg"].removeprefix("Value error, ")
        valid = RowSampling.model_fields[key].description
        raise _row_error(key, f"{what} (got {repr(given.get(key))[:80]})", f"Valid values: {valid}.") from None


def _check_extra_fields(carried: dict[str, Any], columns: Sequence[str]) -> None:
    """Raise DataError for an extra field that cannot be written as JSON, or whose name looks like a mistyped key and is not in `columns`."""
    name = carried.get("id")
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        what = f"the id must be a string or a whole number, but has the type {type(name).__name__}"
        raise _row_error("id", what, "Change the type, or remove the id.")
    for key, value in carried.items():
        if key in RESERVED:
            raise _row_error(key, f"'{key}' is reserved for the output", "Rename the field.")
        if key in ELSEWHERE and key not in columns:
            raise _row_error(key, f"unknown key '{key}'", f"Use '{ELSEWHERE[key]}'.")
        if key not in columns and (known := get_close_matches(key, KEYS, n=1, cutoff=ALIKE)):
            raise _row_error(key, f"unknown key '{key}'", f"Did you mean '{known[0]}'? If not, rename the field.")
        if not is_json_writable(value):
            raise _row_error(
                key, "the value cannot be written as JSON", "Remove this field, or write its value as a string."
            )


def is_json_writable(value: Any) -> bool:
    """Return whether a value can be written as JSON."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def _check_text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _row_error(key, f"the value must be a string, but has the type {type(value).__name__}", "Give a string.")
    if "\0" in value:
        raise _row_error(key, "the string contains a NUL character", "Remove the NUL character.")
    return value


def _check_token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise _row_error("prompt_ids", "prompt_ids must be a list of whole numbers", "Give a list of token ids.")
    if not value:
        raise _row_error("prompt_ids", "the prompt is empty", "Give at least one id, or delete the row.")
    return tuple(value)


def _messages(value: Any) -> tuple[Message, ...]:
    try:
        messages = read_messages(value)
    except DataError as error:
        raise _row_error("messages", f"{error.where}: {error.what}".removeprefix(": "), error.remedy) from None
    extra = sorted({key for turn in value for key in turn} - TURN)
    if extra:
        raise _row_error("messages", f"unknown key '{extra[0]}'", "Use only the keys role, content and reasoning.")
    if not any(_check_text(message.label, "messages") for message in messages):
        raise _row_error(
            "messages", "the prompt is empty: all messages are empty", "Write a prompt, or delete the row."
        )
    return messages
