"""Data types that several packages share: messages, tools, and the run directory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import field_validator

from rorqual.core.config import Config, Count, ReplyTemperature, load_yaml, parse_config
from rorqual.core.content_parts import Content, TextPart, content_label, first_unsupported_part
from rorqual.core.errors import CheckpointError, ConfigError, DataError, name_file_in_write_errors
from rorqual.core.journal import read_lines
from rorqual.core.registry import load_recorded_plugins
from rorqual.core.sampling import Grammar

Role = Literal["system", "user", "assistant", "tool"]
Thinking = Literal["auto", "on", "off"]
"""Thinking mode: the model decides (`auto`), must think first (`on`), or must answer without thinking (`off`)."""
StopWhen = Literal["never", "settled", "sure"]
"""When to stop sampling votes early: never (`never`), when further votes cannot change the majority (`settled`), or when
further votes are unlikely to change the majority (`sure`)."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call. `parameters` is the JSON schema of the object that holds the arguments of a call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCall:
    """A tool call in a reply. `arguments` is a JSON object as text, exactly as the model generated it.

    If the model writes the call in DSML, `arguments` is built from the parameters of the call.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `reasoning` is the text between `<think>` and `</think>`, or None if the turn has no reasoning.

    `content` is text, or a sequence of content parts in prompt order. Only assistant turns have `tool_calls`. In a tool turn,
    `tool_call_id` names the tool call whose result the turn contains. An assistant turn with `in_loss=False` is not trained on.
    """

    role: Role
    content: Content
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    in_loss: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.content, list):  # a list is not hashable, and never equals a tuple of the same parts
            object.__setattr__(self, "content", tuple(self.content))

    @property
    def text(self) -> str:
        """The content as one string, with the text parts concatenated. Raises DataError if a content part is not text."""
        if isinstance(self.content, str):
            return self.content
        number = first_unsupported_part(self.content, (TextPart,))
        if number is not None:
            raise DataError(
                f"a part of type '{self.content[number].type}' where only text is accepted",
                where=f"content[{number}]",
                remedy="Send text parts only.",
            )
        return self.label

    @property
    def label(self) -> str:
        """The content as text for display, cache keys and word counts. An image is represented by a label in brackets."""
        return content_label(self.content)


def is_blank_message(message: Message) -> bool:
    """Return whether the content of `message` is empty or only white space."""
    return not message.label.strip()


STEP = re.compile(r"step-(\d{6,})$")
CONFIG_FILE, METRICS_FILE, TOKENIZER_FILE = "run.yaml", "metrics.jsonl", "tokenizer.json"
ROLLOUTS_FILE, PROMPTS_FILE, DEFAULTS_FILE = "rollouts.jsonl", "prompts.json", "defaults.json"
MANIFEST_FILE = "whole.json"
"""Name of the file that lists the size of every file of a checkpoint.

The list of file sizes is written last. A checkpoint is incomplete if the list is missing, or if a file does not have the
listed size.
"""


class TaskDefaults(Config):
    """Defaults of chat requests to a model that was trained for one task. A field that is None sets no default."""

    thinking: Thinking | None = None
    max_tokens: Count | None = None
    temperature: ReplyTemperature | None = None
    grammar: Grammar | None = None
    calculator: bool | None = None

    @field_validator("grammar")
    @classmethod
    def _check_grammar_source(cls, grammar: Grammar | None) -> Grammar | None:
        if grammar is not None and grammar.kind in ("json_schema", "choice", "calls"):
            try:
                json.loads(grammar.source)
            except ValueError as error:
                raise ValueError(f"the source of kind '{grammar.kind}' is not JSON: {error}") from None
        return grammar


NO_DEFAULTS = TaskDefaults()


@dataclass(frozen=True)
class RunDir:
    """A run directory with `run.yaml`, `metrics.jsonl`, `tokenizer.json` and checkpoints such as `step-000200/`.

    The run directory that one command writes is the input of later commands.
    """

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

    @property
    def prompts_file(self) -> Path:
        return self.path / PROMPTS_FILE

    def example_prompts(self) -> list[str]:
        """Return example prompts from the problems that the run was trained on.

        Runs trained on files, and imported runs, have no example prompts.
        """
        try:
            found = json.loads(self.prompts_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [prompt for prompt in found if isinstance(prompt, str)] if isinstance(found, list) else []

    @property
    def task_defaults_file(self) -> Path:
        return self.path / DEFAULTS_FILE

    def task_defaults(self) -> TaskDefaults:
        """Return the content of the run's `defaults.json`, or `TaskDefaults` without values if the file is missing.

        Raises a ConfigError that names the file and the invalid key.
        """
        where = str(self.task_defaults_file)
        try:
            return parse_config(
                TaskDefaults, json.loads(self.task_defaults_file.read_text(encoding="utf-8")), where=where
            )
        except (FileNotFoundError, NotADirectoryError):
            return TaskDefaults()
        except (OSError, ValueError) as error:
            raise ConfigError(f"not JSON: {error}", where=where, remedy="Restore or delete the file.") from None
        except ConfigError as error:
            remedy = "Correct or remove the key, or delete the file."
            raise ConfigError(error.what, where=where, remedy=remedy) from None

    def step_dir(self, step: int) -> Path:
        """Return the folder of the checkpoint of `step`."""
        return self.path / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, complete or incomplete, in ascending order."""
        if not self.path.is_dir():
            return []
        matches = (STEP.match(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return sorted(int(match.group(1)) for match in matches if match)

    def incomplete_reason(self, step: int) -> str | None:
        """Return the reason why the checkpoint of `step` is incomplete, or None if the checkpoint is complete."""
        folder = self.step_dir(step)
        try:
            sizes = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return f"{MANIFEST_FILE} is missing or unreadable"
        for name, size in sizes.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size:
                return f"{name} is not {size} bytes long"
        return None

    def newest_complete_step(self) -> tuple[int | None, list[str]]:
        """Return (step, messages). `step` is the step of the newest complete checkpoint, or None if no checkpoint is complete.

        `messages` has one message for each incomplete checkpoint after `step`.
        """
        skipped: list[str] = []
        for step in reversed(self.steps()):
            reason = self.incomplete_reason(step)
            if reason is None:
                return step, skipped
            skipped.append(f"{self.step_dir(step)}: incomplete checkpoint skipped: {reason}")
        return None, skipped

    def _not_a_run_error(self) -> CheckpointError:
        missing = f"it has no {CONFIG_FILE}" if self.path.is_dir() else "it does not exist"
        inner = RunDir(self.path / "model")
        hint = f" Did you mean {inner.path}?" if inner.config_file.is_file() else ""
        return CheckpointError(
            f"not a run directory: {missing}",
            where=str(self.path),
            remedy=f"Name a folder that `rorqual train` or `rorqual import` wrote.{hint}",
        )

    def checkpoint(self) -> Path:
        """Return the folder of the newest complete checkpoint.

        Raises CheckpointError if the run has no complete checkpoint.
        """
        if not self.config_file.is_file():
            raise self._not_a_run_error()
        step, skipped = self.newest_complete_step()
        if step is None:
            raise CheckpointError(
                "no complete checkpoint" + ("; " + "; ".join(skipped) if skipped else ""),
                where=str(self.path),
                remedy="Repeat the command that made this run: it resumes where it stopped.",
            )
        return self.step_dir(step)

    def config(self) -> dict[str, Any]:
        """Return the content of the run's `run.yaml`, after loading the plug-in files that `run.yaml` records.

        Raises a CheckpointError that names the file if the file is missing or is not a YAML mapping, and a ConfigError if a
        plug-in file is missing or has changed.
        """
        where = str(self.config_file)
        try:
            data = load_yaml(self.config_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise self._not_a_run_error() from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CheckpointError(f"not YAML: {error}", where=where, remedy="Restore the file.") from None
        if not isinstance(data, dict):
            raise CheckpointError("not a mapping of keys", where=where, remedy="Restore the file.")
        load_recorded_plugins(data.get("plugins"), where)
        return data

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the records of `metrics.jsonl`. An incomplete line, which a killed process leaves behind, is skipped."""
        return read_lines(self.metrics_file)

    def rollouts(self) -> Iterator[dict[str, Any]]:
        """Yield the records of `rollouts.jsonl`. Each training step has one record per group of samples. If the file is
        missing, nothing is yielded."""
        return read_lines(self.rollouts_file)


def write_atomic(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write the file `path` atomically. Readers see either the old or the new file, even if the process is killed during the
    write.

    A device or a pipe, such as /dev/null, is written directly instead of being replaced. Raises RorqualError if the write
    fails.
    """
    chunks = [data] if isinstance(data, bytes) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with name_file_in_write_errors(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(b"".join(chunks))
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):  # unlink also fails if, for example, a parent of the path is a file
                temporary.unlink(missing_ok=True)
            raise


def read_json(path: Path, what: str, remedy: str) -> Any:
    """Return the content of a JSON file. Raises DataError with `path` and `remedy` if the file does not exist or is not valid
    JSON. The error message calls the file `what`."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{what} does not exist", where=str(path), remedy=remedy) from None
    except ValueError as error:
        raise DataError(f"the file is not valid JSON: {error}", where=str(path), remedy=remedy) from None


def stored_json(path: Path, make: Callable[[], Mapping[str, Any] | list[Any]]) -> Any:
    """Return the content of a JSON file. If the file does not exist, it is written first, with the value that `make` returns."""
    if not path.is_file():
        write_json(path, make())
    return json.loads(path.read_bytes())


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Write `value` atomically as JSON with sorted keys."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
