"""Everything that training holds: model, tokenizer, optimizer, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rorqual.core.config import read_yaml, to_yaml
from rorqual.core.errors import ConfigError
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
"""Fields of a metrics record that a clock wrote: all others are the same in a resumed run, to the bit."""
LIVE_KEYS = {"device", "save_seconds", "extensions", "versions"}


@dataclass
class State:
    """`step`: how many steps are done; `metrics_bytes`, `rollouts_bytes`: how much of those files tells of them. `notes`: what
    was skipped while looking for a checkpoint. `adapter`: what its checkpoints say of the trained part; None where all is trained."""

    model: Decoder
    tokenizer: Tokenizer
    optimizer: Optimizer
    step: int
    metrics_bytes: int
    rollouts_bytes: int
    notes: list[str]
    adapter: Adapter | None = None


def make_tokenizer(run: Run) -> Tokenizer:
    """The run's tokenizer, before anything is written."""
    if run.start.run:
        return Tokenizer.load(RunDir(Path(run.start.run)).tokenizer_file)
    spec = run.start.tokenizer
    if spec == "bytes":
        return Tokenizer.byte_level()
    if spec.startswith("bpe:") and spec[4:].isdigit():
        return Tokenizer.byte_level(run.source.texts(), vocab_size=int(spec[4:]))
    return Tokenizer.load(Path(spec))


def check_vocabulary(run: Run, tokenizer: Tokenizer) -> None:
    """Refuse a model whose vocabulary cannot hold the tokenizer's ids."""
    if tokenizer.vocab_size > run.model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary {run.model.vocab_size}",
            where="model.vocab_size",
            remedy=f"Set model.vocab_size={tokenizer.vocab_size} or take the tokenizer that the weights were trained with.",
        )


def check_context(run: Run) -> None:
    """Refuse rows longer than the model's context: it would learn positions that it can never be asked at."""
    context = run.model.max_position_embeddings
    if run.source.row > context:
        raise ConfigError(
            f"rows of {run.source.row} tokens, and the model's context is {context}",
            where="source.row",
            remedy=f"Set row={context} or less, or begin a model with a longer context (row= without from=).",
        )


def restore(run: Run, out: RunDir, tokenizer: Tokenizer, ops: Backend | None = None, threads: int = 1) -> State:
    """Fresh weights, another run's, or this run's newest whole checkpoint; another run in the folder is refused.

    `ops`: another backend than the run's.
    """
    same_run(run, out)
    step, notes = out.newest_whole()
    ops = ops or backend(run.backend)
    model = build(run.model, seed=run.seed, ops=ops)
    if (reason := ops.supports(torch.device(run.device), getattr(torch, run.dtype), model, training=True)) is not None:
        raise ConfigError(f"{ops.name} cannot train this model: {reason}", where="backend", remedy="Use another.")
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
    """Refuse to go on in a folder that holds another run; the error names what differs."""
    if out.path.exists() and not out.path.is_dir():
        raise ConfigError("not a folder", where=str(out.path), remedy="Give another out=.")
    if not out.config_file.is_file():
        # A kill while run.yaml was being written leaves its hidden temporary file: that is not another's folder.
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
            remedy="Give another out=, or the settings that the run began with.",
        )


def differing(was: Run, run: Run) -> set[str]:
    """Names of the settings in which two runs differ, but for those that change no figure."""
    had, now = was.model_dump(mode="json"), run.model_dump(mode="json")
    return {key for key in now if key not in LIVE_KEYS and had[key] != now[key]}


def extended(run: Run, out: RunDir) -> Run:
    """The run with its folder's extensions; where `steps` is larger than there and nothing else differs, with one more.

    It begins at the newest whole checkpoint. Errors: `ConfigError` where `steps` is smaller than the folder's.
    """
    was = read_yaml(Run, out.config_file) if out.config_file.is_file() else run.model_copy(update={"extensions": ()})
    run = run.model_copy(update={"extensions": was.extensions})
    if differing(was, run) != {"steps"}:
        return run
    if run.steps < was.steps:
        raise ConfigError(
            f"steps={run.steps} is smaller than the run's {was.steps}",
            where=str(out.config_file),
            remedy=f"Set steps={was.steps} to go on, more to extend the run, or give another out=.",
        )
    more = Extension(from_step=out.newest_whole()[0] or 0, old_steps=was.steps, new_steps=run.steps)
    before = was.extensions
    if (
        before and before[-1].from_step == more.from_step
    ):  # nothing of it is kept: the same as to extend at once to the new total
        before, more = before[:-1], more.model_copy(update={"old_steps": before[-1].old_steps})
    return run.model_copy(update={"extensions": (*before, more)})


def versioned(run: Run, out: RunDir, versions: dict[str, int]) -> Run:
    """The run with the versions of the families that it draws from. One that began with others is not gone on with, nor repeated."""
    began = out.config_file.is_file()
    had = read_yaml(Run, out.config_file).versions if began else run.versions or versions
    if had != versions:
        names = [name for name in had | versions if had.get(name, 1) != versions.get(name, 1)]
        detail = ", ".join(f"{name} of version {had.get(name, 1)}, now {versions.get(name, 1)}" for name in names)
        raise ConfigError(
            f"the run draws problems that this Rorqual draws no more: {detail}",
            where=str(out.config_file) if began else "versions",
            remedy="Begin a new run with another out=." if began else "Leave versions out to draw the new ones.",
        )
    return run.model_copy(update={"versions": versions})


def difference(had: object, now: object) -> str:
    """The innermost values that differ, for a person."""
    if isinstance(had, dict) and isinstance(now, dict):
        keys = [k for k in {**had, **now} if had.get(k) != now.get(k)]
        return ", ".join(f"{k}: {difference(had.get(k), now.get(k))}" for k in keys)
    if isinstance(had, list) and isinstance(now, list) and len(had) == len(now):
        return ", ".join(f"[{i}] {difference(a, b)}" for i, (a, b) in enumerate(zip(had, now)) if a != b)
    return f"{had!r} there, {now!r} now"


def write_start(run: Run, out: RunDir, tokenizer: Tokenizer) -> None:
    """The run's config and tokenizer, before the first step; the config again where the run is extended."""
    if not out.config_file.is_file() or run.extensions != read_yaml(Run, out.config_file).extensions:
        write_atomic(out.config_file, to_yaml(run).encode())
    if not out.tokenizer_file.is_file():
        tokenizer.save(out.tokenizer_file)
