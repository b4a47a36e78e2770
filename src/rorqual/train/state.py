"""The state of training: model, tokenizer, optimizer and progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rorqual.core.config import read_yaml, to_yaml
from rorqual.core.errors import ConfigError
from rorqual.core.prompts import chosen
from rorqual.core.records import RunDir, write_atomic
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.adapter import Adapter, adapter_of, trained
from rorqual.model.adapter.files import find_base
from rorqual.model.decoder import Decoder
from rorqual.model.init import build
from rorqual.model.load.run import load_weights
from rorqual.ops.backends import Backend, backend
from rorqual.train.checkpoint import load_checkpoint
from rorqual.train.optim import Optimizer
from rorqual.train.run import Extension, Run
from rorqual.train.tune import begin

CLOCK_FIELDS = ("seconds", "core_seconds", "tokens_per_second")
"""Fields of a metrics record that depend on time. All others are identical, bit for bit, in a resumed run."""
LIVE_KEYS = {"device", "save_seconds", "extensions", "versions"}


@dataclass
class State:
    """The state of training after `step` steps.

    `metrics_bytes` and `rollouts_bytes` are the sizes of those files at that step. `notes` names checkpoints that were
    skipped. `adapter` describes the trained part in checkpoints; it is None if all weights are trained.
    """

    model: Decoder
    tokenizer: Tokenizer
    optimizer: Optimizer
    step: int
    metrics_bytes: int
    rollouts_bytes: int
    notes: list[str]
    adapter: Adapter | None = None


def make_tokenizer(run: Run) -> Tokenizer:
    """Load or train the run's tokenizer. Nothing is written."""
    if run.start.run:
        return Tokenizer.load(RunDir(Path(run.start.run)).tokenizer_file)
    spec = run.start.tokenizer
    if spec == "bytes":
        return Tokenizer.byte_level()
    if spec.startswith("bpe:") and spec[4:].isdigit():
        return Tokenizer.byte_level(run.source.texts(), vocab_size=int(spec[4:]))
    return Tokenizer.load(Path(spec))


def check_vocabulary(run: Run, tokenizer: Tokenizer) -> None:
    """Raise a ConfigError if the model's vocabulary is smaller than the tokenizer's."""
    if tokenizer.vocab_size > run.model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary has {run.model.vocab_size}",
            where="model.vocab_size",
            remedy=f"Set model.vocab_size={tokenizer.vocab_size}, or use the tokenizer that the weights were trained with.",
        )


def check_context(run: Run) -> None:
    """Raise a ConfigError for rows longer than the model's context: their last positions could never be used."""
    context = run.model.max_position_embeddings
    if run.source.row > context:
        raise ConfigError(
            f"rows have {run.source.row} tokens, but the model's context is {context}",
            where="source.row",
            remedy=f"Set row={context} or less, or start a model with a longer context (row= without from=).",
        )


def restore(run: Run, out: RunDir, tokenizer: Tokenizer, ops: Backend | None = None, threads: int = 1) -> State:
    """Return the state to start from: new weights, another run's weights, or this run's newest complete checkpoint.

    `ops` replaces the run's backend. Raises ConfigError if the folder holds another run.
    """
    same_run(run, out)
    step, notes = out.newest_whole()
    ops = ops or backend(run.backend)
    model = build(run.model, seed=run.seed, ops=ops)
    if (reason := ops.supports(torch.device(run.device), getattr(torch, run.dtype), model, training=True)) is not None:
        raise ConfigError(
            f"{ops.name} cannot train this model: {reason}", where="backend", remedy="Use another backend."
        )
    adapter = None if step is None or run.tune.whole else adapter_of(out.step_dir(step))
    if run.start.run:
        base = RunDir(Path(run.start.run)).checkpoint()
        if step is not None and adapter is not None:
            base = find_base(out.step_dir(step), adapter.base)
        load_weights(model, base)
    model = model.to(run.device)
    if not run.tune.whole:
        adapter = adapter or begin(run, out, base, model, tokenizer, threads)
        run.tune.attach(model, seed=run.seed, experts=adapter.experts)
    optimizer = run.optim.build(trained(model))
    metrics, rollouts = (0, 0) if step is None else load_checkpoint(out, step, model, optimizer, adapter)
    return State(model, tokenizer, optimizer, step or 0, metrics, rollouts, notes, adapter)


def same_run(run: Run, out: RunDir) -> None:
    """Raise a ConfigError that names the differences if the folder holds another run."""
    if out.path.exists() and not out.path.is_dir():
        raise ConfigError("not a folder", where=str(out.path), remedy="Give another out=.")
    if not out.config_file.is_file():
        # A kill while run.yaml is written leaves a hidden temporary file; the folder is still this run's.
        if out.path.exists() and any(not entry.name.startswith(".") for entry in out.path.iterdir()):
            raise ConfigError(
                "the folder is not empty and holds no run", where=str(out.path), remedy="Give another out=."
            )
        return
    was = read_yaml(Run, out.config_file)
    had, now = was.model_dump(mode="json"), run.model_dump(mode="json")
    grown = {"steps"} if len(run.extensions) and run.extensions != was.extensions else set()
    keys = differing(was, run) - grown
    if keys:
        detail = "; ".join(f"{key}: {difference(had[key], now[key])}" for key in now if key in keys)
        raise ConfigError(
            f"this folder holds another run: {detail}",
            where=str(out.config_file),
            remedy="Give another out=, or the settings that the run started with.",
        )


def differing(was: Run, run: Run) -> set[str]:
    """Return the settings in which two runs differ, except those that do not change results."""
    had, now = was.model_dump(mode="json"), run.model_dump(mode="json")
    return {key for key in now if key not in LIVE_KEYS and had[key] != now[key]}


def extended(run: Run, out: RunDir) -> Run:
    """Return the run with its folder's extensions, plus a new one if only `steps` grew.

    The new one starts at the newest complete checkpoint. Raises ConfigError if `steps` is smaller than the folder's.
    """
    was = read_yaml(Run, out.config_file) if out.config_file.is_file() else run.model_copy(update={"extensions": ()})
    run = run.model_copy(update={"extensions": was.extensions})
    if differing(was, run) != {"steps"}:
        return run
    if run.steps < was.steps:
        raise ConfigError(
            f"steps={run.steps} is smaller than the run's {was.steps}",
            where=str(out.config_file),
            remedy=f"Set steps={was.steps} to resume, more to extend the run, or give another out=.",
        )
    more = Extension(from_step=out.newest_whole()[0] or 0, old_steps=was.steps, new_steps=run.steps)
    before = was.extensions
    if (
        before and before[-1].from_step == more.from_step
    ):  # the last extension trained nothing: merge it with the new one
        before, more = before[:-1], more.model_copy(update={"old_steps": before[-1].old_steps})
    return run.model_copy(update={"extensions": (*before, more)})


def versioned(run: Run, out: RunDir, versions: dict[str, int]) -> Run:
    """Return the run with the versions of its problem families. Raises ConfigError if the folder's run has others."""
    began = out.config_file.is_file()
    had = read_yaml(Run, out.config_file).versions if began else run.versions or versions
    if had != versions:
        names = [name for name in had | versions if had.get(name, 1) != versions.get(name, 1)]
        detail = ", ".join(f"{name} of version {had.get(name, 1)}, now {versions.get(name, 1)}" for name in names)
        raise ConfigError(
            f"the run generates problems that this version of Rorqual no longer generates: {detail}",
            where=str(out.config_file) if began else "versions",
            remedy="Start a new run with another out=." if began else "Remove versions to generate the new problems.",
        )
    return run.model_copy(update={"versions": versions})


def difference(had: object, now: object) -> str:
    """Describe the innermost values that differ."""
    if isinstance(had, dict) and isinstance(now, dict):
        keys = [k for k in {**had, **now} if had.get(k) != now.get(k)]
        return ", ".join(f"{k}: {difference(had.get(k), now.get(k))}" for k in keys)
    if isinstance(had, list) and isinstance(now, list) and len(had) == len(now):
        return ", ".join(f"[{i}] {difference(a, b)}" for i, (a, b) in enumerate(zip(had, now)) if a != b)
    return f"{had!r} there, {now!r} now"


def write_start(run: Run, out: RunDir, tokenizer: Tokenizer, prompts: Sequence[str] = ()) -> None:
    """Write the run's config, tokenizer and example prompts before the first step; write the config again after an extension."""
    if not out.config_file.is_file() or run.extensions != read_yaml(Run, out.config_file).extensions:
        write_atomic(out.config_file, to_yaml(run).encode())
    if not out.tokenizer_file.is_file():
        tokenizer.save(out.tokenizer_file)
    if prompts and not out.prompts_file.is_file():
        write_atomic(out.prompts_file, json.dumps(chosen(prompts), ensure_ascii=False, indent=1).encode())
