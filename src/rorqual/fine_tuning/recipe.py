"""From the settings of a fine-tuning job to a training run: what `auto` means, and how OpenAI's hyperparameters map to Rorqual's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from pydantic import Field

from rorqual.core.config import Config, Count
from rorqual.data.chat import ChatFormat, load_chat
from rorqual.data.stream import ConversationStream
from rorqual.data.tokenizer import Tokenizer
from rorqual.fine_tuning.examples import example_lengths
from rorqual.fine_tuning.schemas import Auto, DPOHyperparameters, Hyperparameters, ReinforcementHyperparameters
from rorqual.fine_tuning.store import Job, JobFolder
from rorqual.model.adapter import LoRA
from rorqual.model.adapter.bank import reasons_to_merge
from rorqual.model.adapter.lora import ALL_LINEAR, named_linear_maps
from rorqual.model.config import ModelConfig
from rorqual.model.load.run_directory import read_model_config
from rorqual.model.meta_device import build_on_meta_device
from rorqual.ops.backends import TORCH_INVARIANT
from rorqual.recipes.dpo import dpo
from rorqual.recipes.grpo import grpo
from rorqual.recipes.sft import sft
from rorqual.train.run import Run
from rorqual.train.sources import ConversationsConfig, SourceInputs
from rorqual.train.sources.source import StreamSource

R, ALPHA, LR = 16, 32.0, 1e-3
"""Rank, scale and learning rate of LoRA with the learning rate multiplier 1."""
STEP_TOKENS = 768
"""With `batch_size` auto, an update has about `STEP_TOKENS` tokens."""
PAIRS, PROMPTS, SAMPLES = 8, 8, 8
"""With `auto`: pairs of an update with DPO; in reinforcement, prompts of an update, and samples of a prompt."""
BETA, PREFERENCE_LR, REINFORCEMENT_LR = 0.1, 5e-5, 3e-4
LONGEST_REPLY = 256
"""In reinforcement, a reply has at most `LONGEST_REPLY` tokens."""
SHORTEST_ROW = 192
"""Several short examples share a row of at least `SHORTEST_ROW` tokens, unless an update has fewer."""
EXAMPLES_SEEN, FEWEST_EPOCHS, MOST_EPOCHS = 1500, 3, 10
"""With `n_epochs` auto, a job sees about `EXAMPLES_SEEN` examples, in 3 to 10 epochs."""


class JobPlan(Config):
    """A job's training run, the steps at which its epochs end, and the hyperparameters with values instead of `auto`."""

    run: Run
    epoch_ends: tuple[Count, ...]
    hyperparameters: Mapping[str, Any] = Field(default_factory=dict)


def value_or(given: Auto | float, auto: float) -> float:
    """Return a hyperparameter, or the value `auto` if the server is to choose."""
    return auto if given == "auto" else given


def plan_job(job: Job, folder: JobFolder) -> JobPlan:
    """Return the plan of a job. Raises DataError, which names file and line, if the training file is invalid."""
    base = folder.start(job)
    context = read_model_config(base).max_position_embeddings
    chat = load_chat(base, Tokenizer.load(base.tokenizer_file))
    plan = {"supervised": _supervised_plan, "dpo": _preference_plan, "reinforcement": _reinforcement_plan}
    return plan[job.method.type](job, folder, chat, context)


def _supervised_plan(job: Job, folder: JobFolder, chat: ChatFormat, context: int) -> JobPlan:
    data = folder.training_data.absolute()
    chosen = job.method.hyperparameters
    lengths = [*example_lengths(job.method, data, chat, context)]
    update_tokens = value_or(chosen.batch_size, 0) * fmean(lengths) or STEP_TOKENS
    row = min(8 * math.ceil(max(*lengths, min(SHORTEST_ROW, update_tokens)) / 8), context)
    source = ConversationsConfig(data=str(data), rows=1, row=row)
    rows = max(1, min(round(update_tokens / row), _stream(source, chat, job.seed).steps_for_epochs(1)))
    stream = _stream(source.model_copy(update={"rows": rows}), chat, job.seed)
    epochs = int(value_or(chosen.n_epochs, auto_epochs(len(lengths))))
    # Two epochs may end in one step, because the rows of an epoch vary with its order.
    ends = tuple(dict.fromkeys(stream.steps_for_epochs(epoch) for epoch in range(1, epochs + 1)))
    run = sft(
        data=source.data,
        start=str(folder.start(job).path),
        steps=ends[-1],
        rows=rows,
        row=row,
        lr=LR * value_or(chosen.learning_rate_multiplier, 1.0),
        seed=job.seed,
    )
    used = {"n_epochs": epochs, "batch_size": max(1, round(epochs * len(lengths) / ends[-1]))}
    return JobPlan(run=_adapted(run, rows), epoch_ends=ends, hyperparameters=_shown_values(chosen, used))


def _shown_values(chosen: Hyperparameters, used: Mapping[str, int]) -> dict[str, Any]:
    """Return the hyperparameters with the value that was used for each `auto`."""
    auto = {"learning_rate_multiplier": 1.0, "beta": BETA, "compute_multiplier": 1.0, **used}
    return {name: auto.get(name, value) if value == "auto" else value for name, value in chosen.model_dump().items()}


def _stream(source: ConversationsConfig, chat: ChatFormat, seed: int) -> ConversationStream:
    built = source.build(SourceInputs(None, chat.tokenizer, chat, seed, 1))  # type: ignore[arg-type]
    assert isinstance(built, StreamSource) and isinstance(built.stream, ConversationStream)
    return built.stream


def _preference_plan(job: Job, folder: JobFolder, chat: ChatFormat, context: int) -> JobPlan:
    data = folder.training_data.absolute()
    chosen = job.method.hyperparameters
    assert isinstance(chosen, DPOHyperparameters)
    pairs = len([*example_lengths(job.method, data, chat, context)]) // 2
    batch = int(min(pairs, value_or(chosen.batch_size, PAIRS)))
    ends = _epoch_ends(pairs, batch, epochs := int(value_or(chosen.n_epochs, FEWEST_EPOCHS)))
    run = dpo(
        data=str(data),
        start=str(folder.start(job).path),
        beta=value_or(chosen.beta, BETA),
        steps=ends[-1],
        pairs=batch,
        row=context,
        lr=PREFERENCE_LR * value_or(chosen.learning_rate_multiplier, 1.0),
        seed=job.seed,
    )
    shown = _shown_values(chosen, {"n_epochs": epochs, "batch_size": batch})
    return JobPlan(run=_adapted(run, batch), epoch_ends=ends, hyperparameters=shown)


def _reinforcement_plan(job: Job, folder: JobFolder, chat: ChatFormat, context: int) -> JobPlan:
    data = folder.training_data.absolute()
    settings, chosen = job.method.reinforcement, job.method.hyperparameters
    assert settings is not None and isinstance(chosen, ReinforcementHyperparameters)
    lengths = [*example_lengths(job.method, data, chat, context)]
    batch = int(min(len(lengths), value_or(chosen.batch_size, PROMPTS)))
    ends = _epoch_ends(len(lengths), batch, epochs := int(value_or(chosen.n_epochs, FEWEST_EPOCHS)))
    max_tokens = min(LONGEST_REPLY, context - max(lengths))
    run = grpo(
        task="openai",
        data=str(data),
        options={"grader": settings.grader},
        start=str(folder.start(job).path),
        steps=ends[-1],
        problems=batch,
        samples=max(2, round(SAMPLES * value_or(chosen.compute_multiplier, 1.0))),
        max_tokens=max_tokens,
        row=max(lengths) + max_tokens,
        lr=REINFORCEMENT_LR * value_or(chosen.learning_rate_multiplier, 1.0),
        seed=job.seed,
    )
    shown = _shown_values(chosen, {"n_epochs": epochs, "batch_size": batch})
    run = _adapted(run, batch, batch)  # a micro-batch for each prompt saves memory
    # The trainer computes the sampler's bits, so rounding cannot exceed `run.agreement`.
    run = run.model_copy(update={"backend": TORCH_INVARIANT.name})
    return JobPlan(run=run, epoch_ends=ends, hyperparameters=shown)


def _epoch_ends(examples: int, batch: int, epochs: int) -> tuple[int, ...]:
    """Return the steps at which epochs end, for updates of `batch` examples."""
    return tuple(-(-epoch * examples // batch) for epoch in range(1, epochs + 1))


def _adapted(run: Run, rows: int, most: int = 2) -> Run:
    """Return a run that trains a LoRA adapter, with at most `most` micro-batches of its `rows` rows."""
    update = {
        "tune": LoRA(r=R, alpha=ALPHA, targets=shared_targets(run.model)),
        "micro_batches": min(most, rows),
        "save_seconds": 30.0,
    }
    return run.model_copy(update=update)


def shared_targets(config: ModelConfig) -> tuple[str, ...]:
    """Return the targets of an adapter that shares its base with others: all linear maps, unless some must be merged."""
    model = build_on_meta_device(config)
    if not (merged := {name.rpartition(".")[2] for name in reasons_to_merge(model)}):
        return (ALL_LINEAR,)
    return tuple(sorted({name.rpartition(".")[2] for name, _ in named_linear_maps(model)} - merged))


def auto_epochs(examples: int) -> int:
    """Return the number of epochs for `n_epochs` auto."""
    return max(FEWEST_EPOCHS, min(MOST_EPOCHS, round(EXAMPLES_SEEN / examples)))
