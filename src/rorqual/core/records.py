"""Records that rooms exchange: messages, and the run directory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from rorqual.core.config import load_yaml
from rorqual.core.errors import CheckpointError, DataError, RorqualError
from rorqual.core.parts import Content, TextPart, content_label, foreign_part

Role = Literal["system", "user", "assistant", "tool"]
Thinking = Literal["auto", "on", "off"]
"""Who decides whether the model thinks: the model (`auto`), made to (`on`), made to answer at once (`off`)."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call: `parameters` is the JSON schema of its arguments, an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCall:
    """A call that a model wrote. `arguments` is a JSON object, as the model spelt it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `reasoning` is what stood between `<think>` and `</think>`; None: it did not think.

    `content` is a text, or parts in the order in which the model reads them. `tool_calls` are an assistant's; `tool_call_id` says which of
    them a tool's turn answers.
    """

    role: Role
    content: Content
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.content, list):  # so that equal messages are equal, and can be keys
            object.__setattr__(self, "content", tuple(self.content))

    @property
    def text(self) -> str:
        """The content as one text: text parts are joined as they are. A part of another kind is a `DataError`."""
        if isinstance(self.content, str):
            return self.content
        number = foreign_part(self.content, (TextPart,))
        if number is not None:
            raise DataError(
                f"a part of type '{self.content[number].type}' where only text can be read",
                where=f"content[{number}]",
                remedy="Send text parts alone.",
            )
        return self.label

    @property
    def label(self) -> str:
        """The content as text for people, keys and word counts: what is no text stands in brackets."""
        return content_label(self.content)


def says_nothing(message: Message) -> bool:
    """Whether its content is white space alone."""
    return not message.label.strip()


STEP = re.compile(r"step-(\d{6,})$")
CONFIG_FILE, METRICS_FILE, TOKENIZER_FILE = "run.yaml", "metrics.jsonl", "tokenizer.json"
ROLLOUTS_FILE = "rollouts.jsonl"
WHOLE_FILE = "whole.json"
"""Written last into a checkpoint, with the size of each of its files: without it, or with another size, it is torn."""


@dataclass(frozen=True)
class RunDir:
    """The only handle that verbs exchange: `run.yaml`, `metrics.jsonl`, `tokenizer.json`, `step-000200/`."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / CONFIG_FILE

    @property
    def metrics_file(self) -> Path:
        return self.path / METRICS_FILE

    @property
    def rollouts_file(self) -> Path:
        return self.path / ROLLOUTS_FILE

    @property
    def tokenizer_file(self) -> Path:
        return self.path / TOKENIZER_FILE

    def step_dir(self, step: int) -> Path:
        return self.path / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, whole or torn, ascending."""
        if not self.path.is_dir():
            return []
        matches = (STEP.match(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return sorted(int(match.group(1)) for match in matches if match)

    def why_torn(self, step: int) -> str | None:
        """None where the checkpoint is whole, else what is wrong with it."""
        folder = self.step_dir(step)
        try:
            sizes = json.loads((folder / WHOLE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return f"{WHOLE_FILE} is missing or unreadable"
        for name, size in sizes.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size:
                return f"{name} is not {size} bytes long"
        return None

    def newest_whole(self) -> tuple[int | None, list[str]]:
        """The newest whole checkpoint's step (None if there is none), and a line for each torn one skipped."""
        skipped: list[str] = []
        for step in reversed(self.steps()):
            reason = self.why_torn(step)
            if reason is None:
                return step, skipped
            skipped.append(f"{self.step_dir(step)}: torn checkpoint skipped: {reason}")
        return None, skipped

    def checkpoint(self) -> Path:
        """The newest whole checkpoint's folder; an error names the remedy where there is none."""
        if not self.config_file.is_file():
            raise CheckpointError(
                f"not a run directory: it has no {CONFIG_FILE}",
                where=str(self.path),
                remedy="Name a folder that `rorqual train` wrote.",
            )
        step, skipped = self.newest_whole()
        if step is None:
            raise CheckpointError(
                "no whole checkpoint here" + ("; " + "; ".join(skipped) if skipped else ""),
                where=str(self.path),
                remedy="Repeat the command that made this run: it goes on where it was.",
            )
        return self.step_dir(step)

    def config(self) -> dict[str, Any]:
        """What `run.yaml` holds; a file that is missing or no YAML is an error that names it."""
        where = str(self.config_file)
        try:
            data = load_yaml(self.config_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"not a run directory: it has no {CONFIG_FILE}",
                where=str(self.path),
                remedy="Name a folder that `rorqual train` or `rorqual import` wrote.",
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CheckpointError(f"not YAML: {error}", where=where, remedy="Restore the file.") from None
        if not isinstance(data, dict):
            raise CheckpointError("not a mapping of keys", where=where, remedy="Restore the file.")
        return data

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The records of `metrics.jsonl`; a torn last line (a kill while writing) is left out."""
        return read_lines(self.metrics_file)

    def rollouts(self) -> Iterator[dict[str, Any]]:
        """The lines of `rollouts.jsonl`, one for each group of samples of a step; none where the run kept none."""
        return read_lines(self.rollouts_file)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file that is still being written: a torn one is left out, no file has none."""
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader or a kill sees the old one or the new one, never half; a full disk is a clear error.

    A device or a pipe, such as /dev/null, is written to and stays what it is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # such as a folder that is a file
            temporary.unlink(missing_ok=True)
        raise RorqualError(
            f"cannot write: {error.strerror}",
            where=str(path),
            remedy="Free disk space or choose another folder; nothing was lost.",
        ) from error


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Write JSON with sorted keys, atomically."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
