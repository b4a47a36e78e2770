"""The training loop. Pretraining, fine-tuning and reinforcement learning share the loop and differ only in source and objective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rorqual.core.errors import ConfigError, NumericsError
from rorqual.core.journal import append_line, truncate_json_lines
from rorqual.core.lock import RUN_LOCK, acquire_run_lock
from rorqual.core.progress import Progress
from rorqual.core.records import RunDir
from rorqual.data.chat import ChatFormat, chat_format
from rorqual.dist.digests import code_digest, tensors_digest
from rorqual.dist.ranks import Ranks, current_ranks
from rorqual.engine.rollout_engine import RolloutEngine
from rorqual.model.account import account
from rorqual.model.adapter import trained_parameters
from rorqual.ops.devices import check_device
from rorqual.train.balance import load_ratio, update_router_biases
from rorqual.train.checkpoint import save_checkpoint
from rorqual.train.gradient import UpdateResult, compare_with_sampler, gradient, open_workers
from rorqual.train.run import Run
from rorqual.train.sources import Source, SourceInputs, StepBatches
from rorqual.train.state import (
    State,
    check_row_fits_context,
    check_same_run,
    check_vocabulary,
    make_tokenizer,
    restore,
    with_extensions,
    with_frozen_models,
    with_problem_versions,
    write_run_files,
)
from rorqual.train.tune import tuning_cost, tuning_end_message, tuning_start_message

Record = dict[str, Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class StepTotals(UpdateResult):
    """The totals of a step's optimizer updates: losses, metrics and expert loads are added up. `grad_norm` and `zeros` are the
    largest `grad_norm` and `zeros` of all updates. `targets` holds the `target_load` of each router."""

    grad_norm: float = 0.0
    updates: int = 0
    tokens: int = 0
    checked: int = 0
    targets: list[Tensor | None] = field(default_factory=list)

    def add_update(self, update: UpdateResult, norm: float, tokens: int) -> None:
        """Add the metrics of one optimizer update to the totals."""
        self.add(update)
        self.grad_norm = max(self.grad_norm, norm)
        self.updates, self.tokens = self.updates + 1, self.tokens + tokens

    def metrics_record(self) -> dict[str, Any]:
        """Return the step's fields of `metrics.jsonl`."""
        out: dict[str, Any] = {"loss": self.loss / max(self.updates, 1), "grad_norm": self.grad_norm}
        out |= {name: total / weight for name, (total, weight) in self.means.items() if weight}
        if (
            "routing_flips" in out
        ):  # report the number and the share of tokens whose replayed experts differ from the router's own choice
            out["routing_flips"], out["routing_flip_share"] = self.means["routing_flips"][0], out["routing_flips"]
        out |= {f"{name}_max": value for name, value in self.maxima.items()}
        if self.counts:
            out["load_max_over_mean"] = load_ratio(self.counts, self.targets)
        if self.zeros:  # the number of all-zero gradients, in the update with the most of them
            out["zero_gradients"] = self.zeros
        if self.checked:
            out["checked_tokens"] = self.checked
        return out | {"updates": self.updates, "tokens": self.tokens}


def fit(
    run: Run,
    out: RunDir | Path | str,
    *,
    threads: int = 1,
    quiet: bool = False,
    observe: Callable[[Record], None] | None = None,
    extend: bool = True,
    rollout_engine: Callable[[ChatFormat], RolloutEngine] | None = None,
    stop: Callable[[int], bool] | None = None,
) -> State:
    """Train `run` in the folder `out`, resuming from the newest checkpoint in the folder, if any. Return the final state of the
    run.

    Only one process may train in a folder. If the data, a setting or the folder is invalid, an error is raised before
    anything is written. The trained weights are bit-identical for any number of `threads`. If the folder holds the same run
    with fewer `steps`, `extend=True` extends that run, and `extend=False` raises an error. `observe` receives the metrics
    record of each finished step. If the process is killed, steps after the last checkpoint are repeated and reported again.

    `stop` receives the number of finished steps after each step. If `stop` returns True, `fit` writes a checkpoint and returns.
    Calling `fit` again with the same arguments resumes at this checkpoint. Stopping does not change the learning-rate schedule,
    which spans `run.steps`.

    `rollout_engine` receives the run's chat format and builds the engine that samples. The default engine uses the trained
    tensors directly. The engine is not a setting of the run, because every engine gives the same samples for equal weights and
    seeds.

    In a process group of torch.distributed, all processes call `fit` with the same arguments. They share the work of each step, and
    the trained weights have the bits of one process. Only the process of rank 0 writes files and calls `observe` and `stop`.
    """
    ranks = current_ranks()
    if rollout_engine is not None and not run.source.uses_rollout_engine:
        raise ConfigError(
            f"source {run.source.kind} does not use a rollout engine",
            where="rollout",
            remedy="Remove rollout_engine. Only the recipes grpo and on_policy use a rollout engine.",
        )
    if threads < 1:
        raise ConfigError(f"threads={threads} is below 1", where="fit", remedy="Set threads=1 or more.")
    check_device(run.device)
    if ranks.count > 1:
        check_ranks(run, ranks)
    if not isinstance(out, RunDir):
        out = RunDir(Path(out))
    with acquire_run_lock(out.path) if ranks.first else nullcontext():
        ranks.gather([None])  # the others read the folder when rank 0 has locked it
        run = with_extensions(run, out) if extend else run
        check_same_run(run, out)
        tokenizer = make_tokenizer(run, out)
        check_vocabulary(run, tokenizer)
        check_row_fits_context(run)
        state = restore(run, out, tokenizer, threads=threads)
        chat = chat_format(tokenizer, run.chat)
        sampler = None if rollout_engine is None else rollout_engine(chat)
        source = run.source.build(SourceInputs(state.model, tokenizer, chat, run.seed, threads, sampler))
        run = with_frozen_models(with_problem_versions(run, out, source.versions), out, source.frozen_models)
        if ranks.count > 1:
            agree(ranks, run, out, state)
        quiet = quiet or not ranks.first
        if ranks.first:
            write_run_files(run, out, tokenizer, source.prompts)
        messages = [*state.notes, *extension_messages(run, state.step)] + (
            [tuning_start_message(state.model, state.adapter)] if state.adapter is not None else []
        )
        for message in [] if quiet else messages:
            print(message)
        if state.step < run.steps:
            _train(run, out, state, source, threads, quiet, observe, stop)
            if ranks.count > 1:
                agree(ranks, run, out, state)
        return state


def check_ranks(run: Run, ranks: Ranks) -> None:
    """Raise ConfigError if the run cannot be divided among the processes."""
    if run.micro_batches < ranks.count:
        raise ConfigError(
            f"{ranks.count} processes share {run.micro_batches} micro-batches",
            where="micro_batches",
            remedy=f"Set micro_batches={ranks.count} in a new run, or use at most {run.micro_batches} processes.",
        )
    if run.device != "cpu":
        raise ConfigError(
            f"{ranks.count} processes train on device={run.device}",
            where="device",
            remedy="Use device=cpu, or one process.",
        )


def agree(ranks: Ranks, run: Run, out: RunDir, state: State) -> None:
    """Raise ConfigError in all processes if they differ in code, settings, weights or the run folder, which has the lock file of
    rank 0."""
    lock = out.path / RUN_LOCK
    weights = state.model.state_dict() | state.optimizer.state()
    ranks.agree(
        {
            "code": code_digest(),
            "settings": run.model_dump_json(),
            "run folder": lock.read_text(encoding="utf-8") if lock.is_file() else "",
            "step": str(state.step),
            "weights": tensors_digest(weights[name] for name in sorted(weights)),
        }
    )


def _train(
    run: Run,
    out: RunDir,
    state: State,
    source: Source,
    threads: int,
    quiet: bool,
    observe: Callable[[Record], None] | None = None,
    stop: Callable[[int], bool] | None = None,
) -> None:
    progress = None if quiet else Progress(f"{run.recipe}", run.steps, start=state.step)
    ranks = current_ranks()
    first, start, costs = time.monotonic(), state.step, tuning_cost(state.model, state.optimizer)
    saved = time.monotonic()
    if ranks.first:
        # A resumed run repeats the steps that wrote later lines.
        truncate_json_lines(out.metrics_file, state.metrics_bytes)
        truncate_json_lines(out.rollouts_file, state.rollouts_bytes)
    with open_workers(threads) as pool:
        while state.step < run.steps:
            began, cpu = time.monotonic(), time.process_time()
            work = source.step(state.step)
            totals = _run_step(run, state, work, pool, f"{out.path}, step {state.step + 1}")
            state.step += 1
            core_seconds = sum(ranks.gather([time.process_time() - cpu]))
            spent, stopped = time.monotonic() - began, False
            if ranks.first:
                record = {"step": state.step, "recipe": run.recipe} | totals.metrics_record() | work.metrics
                costs = tuning_cost(state.model, state.optimizer)
                record |= {"flops": step_flops(run, record)} | costs | extension_metrics(run, state.step - 1)
                record["seconds"], record["core_seconds"] = spent, core_seconds
                record["tokens_per_second"] = totals.tokens / spent
                for line in work.trace:
                    append_line(out.rollouts_file, {"step": state.step} | line)
                append_line(out.metrics_file, record)
                if observe is not None:
                    observe(record)
                stopped = stop is not None and stop(state.step)
                if stopped or state.step == run.steps or time.monotonic() - saved >= run.save_seconds:
                    save_checkpoint(out, state.step, state.model, state.optimizer, state.adapter)
                    saved = time.monotonic()
                if progress is not None:
                    progress.update(state.step, _progress_text(record))
                    for note in work.notes:
                        progress.say(note)
            if stop is not None and ranks.gather([stopped])[0]:
                break
    if state.adapter is not None and not quiet:
        print(tuning_end_message(costs, time.monotonic() - first, state.step - start))


def extension_metrics(run: Run, done: int) -> dict[str, int]:
    """Return the metrics fields that mark the first step after an extension of the run, or {} at other steps. `done` is the
    number of finished steps."""
    return next((e.model_dump() for e in run.extensions if e.from_step == done), {})


def extension_messages(run: Run, done: int) -> list[str]:
    """Return one message for each extension of the run that begins right after step `done`."""
    return [
        f"extended after step {e.from_step}: {e.new_steps} steps instead of {e.old_steps}; the schedule now spans {e.new_steps}"
        for e in run.extensions
        if e.from_step == done
    ]


def step_flops(run: Run, record: dict[str, Any]) -> int:
    """Return the FLOPs of a step, computed from its token counts and the model's FLOPs per token.

    A trained token counts as three forward passes. If an objective trains the MTP modules, their FLOPs are included. A
    sampled token counts as one forward pass. Checking a sampled token against the trainer adds one forward pass.
    Scoring a sampled token with a reference model also adds one forward pass. The source adds the FLOPs of a teacher.
    If only part of the model is trained, the number of FLOPs is an upper bound, because gradients of frozen weights are not
    computed.
    """
    predicts = any(objective.kind == "mtp" for objective in run.objectives)
    model = run.model if predicts else run.model.model_copy(update={"num_nextn_predict_layers": 0})
    cost = account(model, context=run.source.row)
    forward_tokens = sum(int(record.get(f"{name}_tokens", 0)) for name in ("sampled", "checked", "reference"))
    return (
        int(record["tokens"]) * cost.training_flops + forward_tokens * cost.flops + int(record.get("teacher_flops", 0))
    )


CHECKED = ("logprob_diff", "routing_flips", "routing_gap", "stale_logprob_diff", "policy_age")


def _run_step(run: Run, state: State, work: StepBatches, pool: ThreadPoolExecutor, where: str) -> StepTotals:
    """Run one step: compare trainer and sampler on all new samples, then make one optimizer update per batch."""
    totals = StepTotals([], 0.0)
    parameters = trained_parameters(state.model)
    factor = run.optim.schedule.factor_at(state.step, run.steps)
    options: Any = {"parts": run.micro_batches, "pool": pool, "dtype": DTYPES[run.dtype]}
    batches = [batch.to(run.device) for batch in work.batches]
    if work.fresh:
        all_batches = [*batches, *(batch.to(run.device) for batch in work.unlearned)]
        compared, old = compare_with_sampler(state.model, run.objectives, all_batches, **options)
        check_sampler_agreement(run, compared, where)
        totals.means = {name: value for name, value in compared.means.items() if name in CHECKED}
        totals.maxima = {name: value for name, value in compared.maxima.items() if name in CHECKED}
        totals.checked = sum(batch.n_tokens for batch in all_batches)
        batches = [replace(batch, old_logprobs=logprobs) for batch, logprobs in zip(batches, old)]
    for batch in batches:
        update = gradient(state.model, run.objectives, batch, where=where, **options)
        norm = clip(update.grads, run.optim.clip, where)
        state.optimizer.step(dict(zip(parameters, update.grads)), factor, pool)
        update.grads = []
        for parameter in parameters.values():  # free the memory before the next batch is sampled
            parameter.grad = None
        routers = state.model.routing_ffns()[: len(update.counts)]
        totals.targets = [router.target_load() for router in routers]
        if update.counts and run.tune.trains_all:
            update_router_biases(routers, update.counts, run.balance.gamma)
        if work.fresh:  # drop the sampler comparisons: after an update the trainer's weights differ from the sampler's
            update.means = {name: value for name, value in update.means.items() if name not in CHECKED}
            update.maxima = {name: value for name, value in update.maxima.items() if name not in CHECKED}
        totals.add_update(update, norm, batch.n_tokens)
    return totals


def clip(grads: Sequence[Tensor], limit: float, where: str = "") -> float:
    """Clip gradients in place to a global norm of at most `limit` (0 disables clipping). Return the global norm before
    clipping."""
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])))
    if not math.isfinite(norm):
        raise NumericsError(
            f"the gradient norm is {norm}",
            where=where,
            remedy="Lower optim.lr. The newest checkpoint, if there is one, has finite weights.",
        )
    if limit and norm > limit:
        torch._foreach_mul_(list(grads), limit / (norm + 1e-6))
    return norm


def check_sampler_agreement(run: Run, update: UpdateResult, where: str) -> None:
    """Raise NumericsError if trainer and sampler differ by more than `run.agreement` on samples from the trainer's current
    weights.

    Trainer and sampler are compared by the log-probabilities of the samples and the scores of the replayed experts.
    """
    total, weight = update.means.get("logprob_diff", (0.0, 0.0))
    mean, largest = total / weight if weight else 0.0, update.maxima.get("logprob_diff", 0.0)
    gap = update.maxima.get("routing_gap", 0.0)
    limit = run.agreement
    if not (mean <= limit.mean and largest <= limit.most and gap <= limit.gap):
        raise NumericsError(
            f"trainer and sampler disagree: log-probabilities by {mean:.2e} on average (limit "
            f"{limit.mean:.0e}) and by up to {largest:.2e} (limit {limit.most:.0e}), expert scores by {gap:.2e} (limit "
            f"{limit.gap:.0e})",
            where=where,
            remedy="Look for a bug in the model's cache, replay or temperature, or for weights of another dtype.",
        )


def _progress_text(record: dict[str, Any]) -> str:
    shown = {
        "loss": "loss",
        "reward": "reward",
        "rewards/accuracies": "accuracy",
        "think_share": "thinks",
        "reply_length": "length",
    }
    text = "  ".join(f"{label} {record[key]:.3g}" for key, label in shown.items() if key in record)
    if record.get("groups_equal"):
        text += f"  equal rewards in {record['groups_equal']} of {record['groups_total']} groups"
    return f"{text}  {record['tokens_per_second']:,.0f} tokens/s"
