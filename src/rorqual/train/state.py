"""Create or restore the state of a training run: model, tokenizer, optimizer and progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rorqual.core.config import read_yaml, to_yaml
from rorqual.core.errors import ConfigError
from rorqual.core.example_prompts import choose_prompts
from rorqual.core.records import RunDir, write_atomic
from rorqual.core.registry import loaded_plugins
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.adapter import Adapter, read_adapter_info, trained_parameters
from rorqual.model.adapter.files import find_base
from rorqual.model.decoder import Decoder
from rorqual.model.init import build
from rorqual.model.load.run_directory import load_weights
from rorqual.ops.backends import backend
from rorqual.train.checkpoint import load_checkpoint
from rorqual.train.optim import Optimizer
from rorqual.train.run import Run, RunExtension
from rorqual.train.tune import begin_tuning

CLOCK_FIELDS = ("seconds", "core_seconds", "tokens_per_second")
"""Fields of a metrics record that depend on time. All fields that do not depend on time are bit-identical in a resumed run."""
LIVE_KEYS = {"device", "save_seconds", "extensions", "versions", "frozen_models", "plugins"}


@dataclass
class State:
    """The state of a training run after `step` steps.

    `metrics_bytes` and `rollouts_bytes` are the sizes of `metrics.jsonl` and `rollouts.jsonl` after `step` steps. `notes` are
    messages about skipped checkpoints. `adapter` describes the trained part of the model, or is None if all weights are
    trained.
    """

    model: Decoder
    tokenizer: Tokenizer
    optimizer: Optimizer
    step: int
    metrics_bytes: int
    rollouts_bytes: int
    notes: list[str]
    adapter: Adapter | None = None


def make_tokenizer(run: Run, out: RunDir | None = None) -> Tokenizer:
    """Return the tokenizer of `run`, without writing it to disk.

    If the folder `out` has a `tokenizer.json`, this file is loaded: the run's text may have changed since. Otherwise the
    tokenizer is loaded from the run's settings, or trained.
    """
    if out is not None and out.tokenizer_file.is_file():
        return Tokenizer.load(out.tokenizer_file)
    if run.start.run:
        return Tokenizer.load(RunDir(Path(run.start.run)).tokenizer_file)
    spec = run.start.tokenizer
    if spec == "bytes":
        return Tokenizer.byte_level()
    if spec.startswith("bpe:") and spec[4:].isdigit():
        return Tokenizer.byte_level(run.source.texts(), vocab_size=int(spec[4:]))
    return Tokenizer.load(Path(spec))


def check_vocabulary(run: Run, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if the model's vocabulary is smaller than the tokenizer's."""
    if tokenizer.vocab_size > run.model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary has {run.model.vocab_size}",
            where="model.vocab_size",
            remedy=f"Set model.vocab_size={tokenizer.vocab_size}, or use the tokenizer that the weights were trained with.",
        )


def check_row_fits_context(run: Run) -> None:
    """Raise ConfigError if rows are longer than the model's context, because the model cannot use later positions."""
    context = run.model.max_position_embeddings
    if run.source.row > context:
        raise ConfigError(
            f"rows have {run.source.row} tokens, but the model's context is {context}",
            where="source.row",
            remedy=f"Set row={context} or less, or train a new model with a longer context (set row=, and leave out from=).",
        )


def restore(run: Run, out: RunDir, tokenizer: Tokenizer, threads: int = 1) -> State:
    """Return the initial state: new weights, the weights of another run, or the newest complete checkpoint of this run."""
    step, notes = out.newest_complete_step()
    ops = backend(run.backend)
    model = build(run.model, seed=run.seed, ops=ops)
    if (reason := ops.supports(torch.device(run.device), getattr(torch, run.dtype), model, training=True)) is not None:
        raise ConfigError(
            f"{ops.name} cannot train this model: {reason}", where="backend", remedy="Use another backend."
        )
    adapter = None if step is None or run.tune.trains_all else read_adapter_info(out.step_dir(step))
    if run.start.run:
        base = RunDir(Path(run.start.run)).checkpoint()
        if step is not None and adapter is not None:
            base = find_base(out.step_dir(step), adapter.base)
        load_weights(model, base)
    model = model.to(run.device)
    if not run.tune.trains_all:
        adapter = adapter or begin_tuning(run, out, base, model, tokenizer, threads)
        run.tune.attach(model, seed=run.seed, experts=adapter.experts)
    optimizer = run.optim.build(trained_parameters(model))
    metrics, rollouts = (0, 0) if step is None else load_checkpoint(out, step, model, optimizer, adapter)
    return State(model, tokenizer, optimizer, step or 0, metrics, rollouts, notes, adapter)


def check_same_run(run: Run, out: RunDir) -> None:
    """Raise a ConfigError that lists the differing settings if the folder `out` holds another run."""
    if not out.config_file.is_file():
        # A process killed while writing run.yaml leaves a hidden temporary file. A folder with only hidden files counts
        # as empty.
        if out.path.exists() and any(not entry.name.startswith(".") for entry in out.path.iterdir()):
            raise ConfigError(
                "the folder is not empty and holds no run", where=str(out.path), remedy="Give another out=."
            )
        return
    stored = read_yaml(Run, out.config_file)
    stored_values, values = stored.model_dump(mode="json"), run.model_dump(mode="json")
    allowed = {"steps"} if len(run.extensions) and run.extensions != stored.extensions else set()
    keys = differing_keys(stored, run) - allowed
    if keys:
        detail = "; ".join(
            f"{key}: {describe_difference(stored_values[key], values[key])}" for key in values if key in keys
        )
        raise ConfigError(
            f"this folder holds another run: {detail}",
            where=str(out.config_file),
            remedy="Give another out=, or the settings that the run started with.",
        )


def differing_keys(stored: Run, run: Run) -> set[str]:
    """Return the names of the settings that differ between two runs. Leave out settings that do not affect training results."""
    stored_values, values = stored.model_dump(mode="json"), run.model_dump(mode="json")
    return {key for key in values if key not in LIVE_KEYS and stored_values[key] != values[key]}


def with_extensions(run: Run, out: RunDir) -> Run:
    """Return `run` with the extensions stored in its folder.

    If `steps` has increased and no other setting differs, a new extension is added. A new extension starts at the newest
    complete checkpoint. Raises ConfigError if the run's `steps` has decreased.
    """
    stored = read_yaml(Run, out.config_file) if out.config_file.is_file() else run.model_copy(update={"extensions": ()})
    run = run.model_copy(update={"extensions": stored.extensions})
    if differing_keys(stored, run) != {"steps"}:
        return run
    if run.steps < stored.steps:
        raise ConfigError(
            f"steps={run.steps} is smaller than the run's {stored.steps}",
            where=str(out.config_file),
            remedy=f"Set steps={stored.steps} to resume the run, set a larger number to extend it, or give another out=.",
        )
    extension = RunExtension(from_step=out.newest_complete_step()[0] or 0, old_steps=stored.steps, new_steps=run.steps)
    earlier = stored.extensions
    # If no step was trained since the last extension, merge the new extension into the last one.
    if earlier and earlier[-1].from_step == extension.from_step:
        earlier, extension = earlier[:-1], extension.model_copy(update={"old_steps": earlier[-1].old_steps})
    return run.model_copy(update={"extensions": (*earlier, extension)})


def with_problem_versions(run: Run, out: RunDir, versions: dict[str, int]) -> Run:
    """Return `run` with the versions of its problem families. Raises ConfigError if the run in the folder `out` used other
    versions."""
    exists = out.config_file.is_file()
    stored_versions = read_yaml(Run, out.config_file).versions if exists else run.versions or versions
    if stored_versions != versions:
        names = [name for name in stored_versions | versions if stored_versions.get(name, 1) != versions.get(name, 1)]
        detail = ", ".join(
            f"{name} of version {stored_versions.get(name, 1)}, now {versions.get(name, 1)}" for name in names
        )
        raise ConfigError(
            f"the run generates problems that this version of Rorqual no longer generates: {detail}",
            where=str(out.config_file) if exists else "versions",
            remedy="Start a new run with another out=." if exists else "Remove versions to generate the new problems.",
        )
    return run.model_copy(update={"versions": versions})


def with_frozen_models(run: Run, out: RunDir, models: dict[str, str]) -> Run:
    """Return `run` with the SHA-256 of its teacher or reference. Raises ConfigError if the run was trained with another
    checkpoint of this model."""
    recorded = (read_yaml(Run, out.config_file) if out.config_file.is_file() else run).frozen_models
    if changed := [name for name, digest in recorded.items() if models.get(name) != digest]:
        raise ConfigError(
            f"the {changed[0]} of this run has changed: its newest checkpoint has other weights than at the start",
            where=f"source.{changed[0]}",
            remedy=f"Restore the {changed[0]}'s run directory, or start a new run: another out=, and no key frozen_models.",
        )
    return run.model_copy(update={"frozen_models": models})


def describe_difference(stored: object, new: object) -> str:
    """Describe how the stored and the new value of a setting differ, down to the innermost key."""
    if isinstance(stored, dict) and isinstance(new, dict):
        keys = [k for k in {**stored, **new} if stored.get(k) != new.get(k)]
        return ", ".join(f"{k}: {describe_difference(stored.get(k), new.get(k))}" for k in keys)
    if isinstance(stored, list) and isinstance(new, list) and len(stored) == len(new):
        return ", ".join(f"[{i}] {describe_difference(a, b)}" for i, (a, b) in enumerate(zip(stored, new)) if a != b)
    return f"{stored!r} in the folder, {new!r} now"


def write_run_files(run: Run, out: RunDir, tokenizer: Tokenizer, prompts: Sequence[str] = ()) -> None:
    """Write the run's config, tokenizer and example prompts before the first step. After an extension, write the config
    again."""
    if not out.config_file.is_file() or run.extensions != read_yaml(Run, out.config_file).extensions:
        recorded = run.model_copy(update={"plugins": dict(loaded_plugins())})
        write_atomic(out.config_file, to_yaml(recorded).encode())
    if not out.tokenizer_file.is_file():
        tokenizer.save(out.tokenizer_file)
    if prompts and not out.prompts_file.is_file():
        write_atomic(out.prompts_file, json.dumps(choose_prompts(prompts), ensure_ascii=False, indent=1).encode())
