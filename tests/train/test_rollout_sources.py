"""A run samples by any rollout engine: what is drawn by its own weights is compared with the trainer, and what older ones drew is weighed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from little import engine_of, grpo_run, loud, on_policy_run, records, rollouts, sampled, sft_run, stored_weights, tiny

from rorqual.core.errors import ConfigError, NumericsError
from rorqual.core.records import RunDir
from rorqual.data.tokenizer import BASE_VOCAB
from rorqual.engine import Completion, Request
from rorqual.engine.rollout_engine import InlineRolloutEngine
from rorqual.model import Decoder
from rorqual.model.load.run_directory import load_run
from rorqual.train.batch import TrainBatch
from rorqual.train.gradient import compare_with_sampler, open_workers
from rorqual.train.loop import fit
from rorqual.train.objectives import GRPO, Distil, Objective
from rorqual.train.run import Run

Change = Callable[[Completion], Completion]


class Apart:
    """A rollout engine with a copy of the weights, which it takes `late` updates late. `change` is what it does to each sample; it loses the
    first of each call."""

    def __init__(self, model: Decoder, late: int = 0, change: Change = lambda one: one, **settings: Any) -> None:
        self.inline = InlineRolloutEngine(engine_of(model, **settings))
        self.late, self.change = late, change
        self.coming: list[tuple[dict[str, torch.Tensor], int]] = []
        self.lost = 0

    @property
    def version(self) -> int:
        return self.inline.version

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        first, *rest = self.inline.generate(requests)
        self.lost += 1
        if len(requests) == 1:
            yield self.change(first)
        yield from map(self.change, reversed(rest))

    def update(self, weights: Decoder, version: int) -> None:
        self.coming.append(({name: tensor.clone() for name, tensor in weights.state_dict().items()}, version))
        if len(self.coming) > self.late:
            state, self.inline.version = self.coming.pop(0)
            self.inline.engine.load_weights(state)


def another(run: Run, out: Path, base: Path, **how: Any) -> Apart:
    """Train with such an engine, which begins with weights of its own."""
    made: list[Apart] = []

    def engine(_: object) -> Apart:
        made.append(Apart(load_run(RunDir(base)), **how))
        return made[0]

    fit(run, RunDir(out), quiet=True, rollout_engine=engine)
    return made[0]


def with_source(run: Run, **fields: Any) -> Run:
    return run.model_copy(update={"source": run.source.model_copy(update=fields)})


@pytest.mark.parametrize("kind", ["grpo", "dynamic", "kept", "on_policy"])
def test_an_engine_apart_that_loses_samples_trains_the_same_bits(base: Path, tmp_path: Path, kind: str) -> None:
    runs = {
        "grpo": grpo_run(base, 2),
        "dynamic": with_source(grpo_run(base, 2), max_num_gen_batches=3),
        "kept": with_source(grpo_run(base, 2), top_p=0.9, top_k=30),
        "on_policy": on_policy_run(base),
    }
    run = runs[kind]
    fit(run, RunDir(tmp_path / "inline"), quiet=True)
    engine = another(run, tmp_path / "apart", base, record_kept=kind == "kept")
    assert engine.lost > 2 and engine.version == 2, "one update a step, however often it draws"
    assert stored_weights(tmp_path / "inline") == stored_weights(tmp_path / "apart")
    assert records(tmp_path / "inline") == records(tmp_path / "apart")
    assert list(RunDir(tmp_path / "inline").rollouts()) == list(RunDir(tmp_path / "apart").rollouts())


def test_older_weights_are_refused_unless_they_are_allowed_and_then_weighed(base: Path, tmp_path: Path) -> None:
    run = grpo_run(base, 3)
    with pytest.raises(NumericsError, match="version 0; the trainer is at 1, and max_age=0"):
        another(run, tmp_path / "refused", base, late=1)
    run = with_source(run, max_age=1)
    with pytest.raises(NumericsError, match="version 0; the trainer is at 2, and max_age=1"):
        another(run, tmp_path / "too late", base, late=2)
    another(run, tmp_path / "late", base, late=1)
    for record in records(tmp_path / "late"):
        assert record["policy_age"] == 1 and record["updates"] > 0
        assert not record.keys() & {
            "logprob_diff",
            "logprob_diff_max",
            "routing_flips",
            "routing_flip_share",
            "routing_gap_max",
        }
    assert records(tmp_path / "late")[0]["stale_logprob_diff"] <= 1e-6, "the first weights were the base's as well"
    for record in records(tmp_path / "late")[1:]:
        assert record["stale_logprob_diff"] > 1e-4, "far more than may lie between a trainer and its sampler"
    fit(grpo_run(base, 1), RunDir(tmp_path / "inline"), quiet=True)
    assert not records(tmp_path / "inline")[0].keys() & {"policy_age", "stale_logprob_diff"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda one: replace(one, experts=None), "the samples have no experts"),
        (lambda one: replace(one, experts=one.experts.flip(0)), "trainer and sampler disagree"),
        (lambda one: replace(one, logprobs=one.logprobs[::-1]), "trainer and sampler disagree"),
        (lambda one: replace(one, token_ids=one.token_ids[::-1]), "trainer and sampler disagree"),
        (
            lambda one: replace(one, policy_version=one.policy_version + 1),
            "weights of version 2, newer than the trainer's version 1",
        ),
        (lambda one: replace(one, policy_version=0), "weights of version 0; the trainer is at 1"),
    ],
)
def test_what_an_engine_gets_wrong_stops_the_run(base: Path, tmp_path: Path, change: Change, error: str) -> None:
    with pytest.raises((ConfigError, NumericsError), match=error):
        another(grpo_run(base, 2), tmp_path / "run", base, change=change)
    out = RunDir(tmp_path / "run")
    assert not out.metrics_file.is_file() or not records(out.path)
    assert out.newest_complete_step()[0] is None


def test_kept_sets_that_are_missing_stop_the_run(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"have no record of allowed tokens.*\n.*record_kept=true"):
        another(with_source(grpo_run(base, 1), top_p=0.9), tmp_path / "run", base)
    with pytest.raises(ConfigError, match=r"have no record of allowed tokens.*\n.*record_kept=true"):
        another(with_source(grpo_run(base, 1), calculator=True), tmp_path / "other", base)


def test_a_run_that_samples_nothing_takes_no_engine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source worked does not use a rollout engine"):
        fit(sft_run(1), RunDir(tmp_path / "run"), quiet=True, rollout_engine=lambda _: Apart(loud(tiny())))
    assert not (tmp_path / "run").exists()


# ---- ages within a batch


def seen(model: Decoder, objective: Objective, batch: TrainBatch) -> Any:
    with open_workers(1) as pool:
        return compare_with_sampler(model, [objective], [batch], parts=1, pool=pool, dtype=torch.float32)[0]


def aged(ages: Sequence[int], off: Sequence[float]) -> tuple[Decoder, TrainBatch]:
    """Six samples in one batch, of these ages, whose log-probabilities are off by so much."""
    model = loud(tiny())
    scored = [
        replace(one, age=age, completion=replace(one.completion, logprobs=[p + by for p in one.completion.logprobs]))
        for one, age, by in zip(sampled(model), ages, off, strict=True)
    ]
    return model, rollouts(scored)


@pytest.mark.parametrize("objective", [GRPO(), Distil()], ids=lambda one: one.kind)
def test_only_what_these_weights_drew_is_compared(objective: Objective) -> None:
    model, batch = aged([0, 2, 0, 1, 0, 0], [0, 0.5, 0, -0.25, 0, 0])
    if isinstance(objective, Distil):
        batch = replace(batch, teacher_logprobs=torch.full((*batch.tokens.shape, BASE_VOCAB), -math.log(BASE_VOCAB)))
    update = seen(model, objective, batch)
    total, n = update.means["logprob_diff"]
    stale, n_stale = update.means["stale_logprob_diff"]
    lengths = [len(one.completion.token_ids) for one in sampled(model)]
    assert n == sum(lengths) - lengths[1] - lengths[3] and n_stale == lengths[1] + lengths[3]
    assert total / n <= 1e-6 and update.maxima["logprob_diff"] <= 1e-4
    assert stale == pytest.approx(0.5 * lengths[1] + 0.25 * lengths[3], rel=1e-4)
    assert update.means["policy_age"] == (2 * lengths[1] + lengths[3], sum(lengths))
