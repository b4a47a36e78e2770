"""The command `rorqual distil TEACHER task=NAME`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field

from rorqual.cli.machine import available_cores
from rorqual.cli.settings import WHERE, Settings, check_device, pop_settings, split_pairs
from rorqual.core.config import Config, Natural, parse_config, parse_scalar
from rorqual.core.errors import ConfigError, suggest_name

ROW, TURN_BYTES = 128, 32
"""Default row length in tokens, and an upper bound on the number of special tokens per turn."""


class DistilCommand(Config):
    """Settings of `rorqual distil` that do not change the samples."""

    out: str = Field("runs/distilled", description="output folder")
    threads: Natural = Field(0, description="threads; 0: all cores")
    quiet: bool = Field(False, description="print no progress")
    api_key: str = Field("", description="key of the server; default: RORQUAL_API_KEY")


def distil(
    teacher: Annotated[
        str, typer.Argument(metavar="RUN|ADDRESS", help="Run folder, or a server's http://... address.")
    ],
    settings: Settings = None,
) -> None:
    """Sample a teacher model's answers to a task, and keep the good samples.

    Samples are graded and filtered. The kept samples are written as Parquet with a dataset card. Every sample is stored as
    soon as the sample is complete. After an interruption, the same command resumes and requests only the missing samples.
    """
    values = split_pairs(settings)
    command = pop_settings(DistilCommand, values)

    from rorqual.factory import FactoryConfig, sample_teacher

    config = parse_config(FactoryConfig, _nest_dotted_keys({"teacher": teacher, **values}), where=WHERE)
    check_device(config.device)
    key = command.api_key or os.environ.get("RORQUAL_API_KEY", "")
    dataset = sample_teacher(
        config, Path(command.out), threads=command.threads or available_cores(), quiet=command.quiet, api_key=key
    )
    if not command.quiet:
        print(f"{dataset}\n  Card: {dataset.parent / 'card.html'}\n  Next: {_student_training_command(dataset)}")


def _student_training_command(dataset: Path) -> str:
    """Return a command that trains a student on the kept samples, with a row length that fits the longest sample."""
    from rorqual.core.records import is_blank_message
    from rorqual.data.distilled import read_kept_messages

    kept = [messages for messages in read_kept_messages(dataset)[0].values() if not is_blank_message(messages[-1])]
    if not kept:
        return "no sample passed; the card says why. To keep more, use keep=all, filters.names=[] and another out="
    longest = max(
        sum(TURN_BYTES + len(f"{m.reasoning or ''}{m.label}".encode()) for m in messages) for messages in kept
    )
    words = ["rorqual", "train", "sft", f"data={dataset}", f"out={dataset.parent}-student"]
    return shlex.join(words + [f"row={longest}"] * (longest > ROW))


def _nest_dotted_keys(values: dict[str, str]) -> dict[str, Any]:
    """Convert dotted keys to nested dictionaries.

    The keys of `access` fields may lack the prefix `access.`. Comma-separated values of tuple fields become lists.
    """
    from rorqual.factory import FactoryConfig, FilterConfig, RemoteAccess

    parts: dict[str, type[Config]] = {"": FactoryConfig, "access": RemoteAccess, "filters": FilterConfig}
    tree: dict[str, Any] = {}
    for key, raw in values.items():
        part, _, name = key.rpartition(".")
        part = "access" if not part and key in RemoteAccess.model_fields else part
        if part not in parts or name not in parts[part].model_fields or name in parts:
            known = [*FactoryConfig.model_fields, *RemoteAccess.model_fields, *DistilCommand.model_fields]
            known += [f"filters.{name}" for name in FilterConfig.model_fields]
            remedy = suggest_name(key, sorted({*known} - {"teacher", "access", "filters"}))
            raise ConfigError(f"unknown key '{key}'", where=WHERE, remedy=remedy)
        kind = parts[part].model_fields[name].annotation
        value = raw if kind is str else parse_scalar(raw)
        if str(kind).startswith("tuple") and not isinstance(value, list):
            value = [piece.strip() for piece in raw.split(",") if piece.strip()]
        (tree.setdefault(part, {}) if part else tree)[name] = value
    return tree
