"""`rorqual distil TEACHER task=NAME`"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from rorqual.cli.machine import cores
from rorqual.cli.settings import WHERE, Settings, check_device, pairs
from rorqual.core.config import Config, Natural, parse, scalar
from rorqual.core.errors import ConfigError, nearest

ROW, TURN_BYTES = 128, 32
"""Tokens of a row by default, and no fewer than a turn's marks take."""


class DistilCommand(Config):
    """What belongs to this command and not to the samples: it changes none."""

    out: str = "runs/distilled"
    threads: Natural = 0
    quiet: bool = False
    api_key: str = ""


def distil(
    teacher: Annotated[str, typer.Argument(metavar="RUN|ADDRESS", help="A run's folder, or http://... of a server.")],
    settings: Settings = None,
) -> None:
    """Sample a teacher on a task, keep what its grader and the filters let through, and write it as Parquet, with a card.

    Every sample is kept the moment it is there: the same command goes on where it was, and asks for nothing twice that is there.
    Keys: task=NAME, data=FILE, options={...}, out=FOLDER, problems=100, per_family=false, samples=1, temperature=1, top_p=1, max_tokens=512,
    thinking=auto|on|off, keep=right|graded|all, seed=0, top_k=0 (likeliest tokens to store, to distil logits from), decontaminate=FILE,TASK,
    filters.names=[...], filters.repeated=0.6 and the like, batch=, threads=, quiet=, device=, dtype=. For a server also model=NAME, api_key=
    (or RORQUAL_API_KEY), concurrency=8, seed_bits=64|31, retries=5, timeout=300, and budget=MONEY with price_in= and
    price_out= per million tokens.
    """
    values = pairs(settings)
    mode = parse(
        DistilCommand, {key: values.pop(key) for key in DistilCommand.model_fields if key in values}, where=WHERE
    )

    from rorqual.factory import FactoryConfig, sample_teacher

    config = parse(FactoryConfig, _nested({"teacher": teacher, **values}), where=WHERE)
    check_device(config.device)
    key = mode.api_key or os.environ.get("RORQUAL_API_KEY", "")
    made = sample_teacher(config, Path(mode.out), threads=mode.threads or cores(), quiet=mode.quiet, api_key=key)
    if not mode.quiet:
        print(f"{made}\n  Look: {made.parent / 'card.html'}\n  Next: {_next(made)}")


def _next(made: Path) -> str:
    """A command that trains a student on what was kept, in a folder of its own, with a row that holds the longest sample."""
    from rorqual.core.records import says_nothing
    from rorqual.data.distilled import read_kept_messages

    kept = [messages for messages in read_kept_messages(made)[0].values() if not says_nothing(messages[-1])]
    if not kept:
        return "no sample is kept: the card says why. keep=all and filters.names=[] keep more, in another folder (out=)"
    longest = max(sum(TURN_BYTES + len(f"{m.reasoning or ''}{m.text}".encode()) for m in messages) for messages in kept)
    words = ["rorqual", "train", "sft", f"data={made}", f"out={made.parent}-student"]
    return shlex.join(words + [f"row={longest}"] * (longest > ROW))


def _nested(values: dict[str, str]) -> dict[str, Any]:
    """Dotted keys as a tree, the keys of `access` also by their bare names; texts stay texts, a comma makes a list."""
    from rorqual.factory import Access, FactoryConfig, FilterConfig

    parts: dict[str, type[Config]] = {"": FactoryConfig, "access": Access, "filters": FilterConfig}
    if missing := [key for key in ("task",) if key not in values]:
        raise ConfigError(
            f"no {missing[0]}=", where=WHERE, remedy="Say which problems: task=NAME, such as task=families."
        )
    tree: dict[str, Any] = {}
    for key, raw in values.items():
        part, _, name = key.rpartition(".")
        part = "access" if not part and key in Access.model_fields else part
        if part not in parts or name not in parts[part].model_fields or name in parts:
            known = [*FactoryConfig.model_fields, *Access.model_fields, *DistilCommand.model_fields]
            known += [f"filters.{name}" for name in FilterConfig.model_fields]
            remedy = nearest(key, sorted({*known} - {"teacher", "access", "filters"}))
            raise ConfigError(f"unknown key '{key}'", where=WHERE, remedy=remedy)
        kind = parts[part].model_fields[name].annotation
        value = raw if kind is str else scalar(raw)
        if str(kind).startswith("tuple") and not isinstance(value, list):
            value = [piece.strip() for piece in raw.split(",") if piece.strip()]
        (tree.setdefault(part, {}) if part else tree)[name] = value
    return tree
