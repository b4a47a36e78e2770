"""Records that packages exchange: messages, tools, and the run directory."""

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
"""Whether the model thinks: it decides (`auto`), it must (`on`), or it must answer at once (`off`)."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call. `parameters` is the JSON schema of its arguments, which form an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCall:
    """A tool call that a model wrote. `arguments` is the text of a JSON object, exactly as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `reasoning` is the text between `<think>` and `</think>`, or None if the turn has none.

    `content` is text, or parts in the order in which the model reads them. `tool_calls` belong to an assistant turn.
    `tool_call_id` names the call that a tool turn answers.
    """

    role: Role
    content: Content
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.content, list):  # a tuple makes equal messages equal, and hashable
            object.__setattr__(self, "content", tuple(self.content))

    @property
    def text(self) -> str:
        """The content as one text; text parts are joined without separators. Raises DataError if it holds another part."""
        if isinstance(self.content, str):
            return self.content
        number = foreign_part(self.content, (TextPart,))
        if number is not None:
            raise DataError(
                f"a part of type '{self.content[number].type}' where only text is accepted",
                where=f"content[{number}]",
                remedy="Send text parts only.",
            )
        return self.label

    @property
    def label(self) -> str:
        """The content as text for display, keys and word counts. Parts other than text appear in brackets."""
        return content_label(self.content)


def says_nothing(message: Message) -> bool:
    """Return whether the content of `message` is empty or white space."""
    return not message.label.strip()


STEP = re.compile(r"step-(\d{6,})$")
CONFIG_FILE, METRICS_FILE, TOKENIZER_FILE = "run.yaml", "metrics.jsonl", "tokenizer.json"
ROLLOUTS_FILE = "rollouts.jsonl"
WHOLE_FILE = "whole.json"
"""Lists the size of each file of a checkpoint, and is written last. Without it, or with another size, a checkpoint is incomplete."""


@dataclass(frozen=True)
class RunDir:
    """A run directory, which one command passes to the next: `run.yaml`, `metrics.jsonl`, `tokenizer.json`, `step-000200/`."""

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
        """Return all steps with a checkpoint, complete or not, in ascending order."""
        if not self.path.is_dir():
            return []
        matches = (STEP.match(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return sorted(int(match.group(1)) for match in matches if match)

    def why_torn(self, step: int) -> str | None:
        """Return what is wrong with a checkpoint, or None if it is complete."""
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
        """Return the newest complete checkpoint's step (None without one), and a message for each incomplete one skipped."""
        skipped: list[str] = []
        for step in reversed(self.steps()):
            reason = self.why_torn(step)
            if reason is None:
                return step, skipped
            skipped.append(f"{self.step_dir(step)}: incomplete checkpoint skipped: {reason}")
        return None, skipped

    def checkpoint(self) -> Path:
        """Return the folder of the newest complete checkpoint.

        Raises CheckpointError if the run has none.
        """
        if not self.config_file.is_file():
            raise CheckpointError(
                f"not a run directory: it has no {CONFIG_FILE}",
                where=str(self.path),
                remedy="Name a folder that `rorqual train` wrote.",
            )
        step, skipped = self.newest_whole()
        if step is None:
            raise CheckpointError(
                "no complete checkpoint" + ("; " + "; ".join(skipped) if skipped else ""),
                where=str(self.path),
                remedy="Repeat the command that made this run: it resumes where it stopped.",
            )
        return self.step_dir(step)

    def config(self) -> dict[str, Any]:
        """Return the content of `run.yaml`.

        Raises CheckpointError that names the file if it is missing or is not a YAML mapping.
        """
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
        """Yield the records of `metrics.jsonl`. An incomplete last line, left by a kill, is skipped."""
        return read_lines(self.metrics_file)

    def rollouts(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of `rollouts.jsonl`, one per group of samples in a step. A run that saved no rollouts yields none."""
        return read_lines(self.rollouts_file)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines of a file that may still grow. Incomplete lines are skipped; a missing file yields none."""
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically: a reader or a kill sees the old file or the new one, never a part.

    A device or a pipe, such as /dev/null, is written directly and not replaced. Raises RorqualError if the write fails.
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
        with suppress(OSError):  # such as a parent path that is a file
            temporary.unlink(missing_ok=True)
        raise RorqualError(
            f"cannot write: {error.strerror}",
            where=str(path),
            remedy="Free disk space or choose another folder; nothing was lost.",
        ) from error


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Write JSON with sorted keys, atomically."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
