"""What a source that samples draws: other problems and other numbers in each step, each problem with its own, and the same again."""

from __future__ import annotations

from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from little import ROW, loud, tiny, tokenizer

from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.model import Decoder
from rorqual.model.load.run_directory import load_run
from rorqual.tasks.find import load_task
from rorqual.train.batch import TrainBatch
from rorqual.train.sources import (
    OnPolicyConfig,
    RolloutConfig,
    Source,
    SourceConfig,
    SourceInputs,
    StepBatches,
    WorkedConfig,
)
from rorqual.train.sources.worked import endless_problems

NUMBERS = f"{Path(__file__).parent / 'numbers_task.py'}:Numbers"
SINGLE = {"single": True}
CUT = 4
"""Tokens at which some answers of the model that has half learned to answer are cut off, and others have ended."""
Document = tuple[int, ...]


def made(config: SourceConfig, *, seed: int = 0, model: Decoder | None = None) -> Source:
    ids = tokenizer()
    return config.build(SourceInputs(model or loud(tiny()), ids, chat_format(ids, "deepseek"), seed, 1))


def rollouts(**settings: Any) -> RolloutConfig:
    given: dict[str, Any] = {"task": NUMBERS, "problems": 4, "samples": 3, "max_tokens": 12, "row": ROW}
    return RolloutConfig(**given | settings)


@pytest.fixture(params=["rollouts", "on_policy"])
def sampling(request: pytest.FixtureRequest, base: Path) -> SourceConfig:
    if request.param == "rollouts":
        return rollouts()
    return OnPolicyConfig(teacher=str(base), task=NUMBERS, problems=4, samples=3, max_tokens=12, row=ROW)


def with_(config: SourceConfig, **settings: Any) -> SourceConfig:
    return config.model_copy(update=settings)


def split(batch: TrainBatch) -> list[tuple[Document, Document]]:
    """Prompt and answer of every document."""
    out = []
    for row, segments, mask in zip(batch.tokens, batch.segments, batch.loss_mask):
        for number in segments[segments >= 0].unique().tolist():
            ids = row[segments == number].tolist()
            first = int((mask[segments == number] > 0).nonzero()[0]) + 1
            out.append((tuple(ids[:first]), tuple(ids[first:])))
    return out


def drawn(step: StepBatches) -> list[tuple[Document, Document]]:
    return [one for batch in (*step.batches, *step.unlearned) for one in split(batch)]


def prompts(step: StepBatches) -> set[Document]:
    return {prompt for prompt, _ in drawn(step)}


def answers(step: StepBatches) -> list[Document]:
    return [answer for _, answer in drawn(step)]


# ---- problems and numbers


def test_each_step_and_each_seed_has_problems_of_its_own(sampling: SourceConfig) -> None:
    source, other = made(sampling), made(sampling, seed=1)
    steps = [source.step(0), source.step(1), source.step(2), other.step(0), other.step(1)]
    for step in steps:
        assert len(prompts(step)) == 4 and len(drawn(step)) == 12
    for one, two in combinations(map(prompts, steps), 2):
        assert not one & two


def test_of_one_problem_every_answer_is_another(sampling: SourceConfig) -> None:
    """In a step each problem and each sample has numbers of its own; so has each step, and each seed of a run."""
    config = with_(sampling, options=SINGLE)
    source, other = made(config), made(config, seed=1)
    steps = [source.step(0), source.step(1), other.step(0)]
    assert all(len(prompts(step)) == 1 for step in steps)
    every = [answer for step in steps for answer in answers(step)]
    assert len(set(every)) == len(every) == 36


def test_the_same_seed_and_step_draw_the_same_whenever_they_are_asked(sampling: SourceConfig) -> None:
    source = made(sampling)
    first, second = source.step(0), source.step(1)
    again = made(sampling)
    for step, one in ((1, second), (0, first)):
        two = again.step(step)
        assert [b.tokens.tolist() for b in one.batches] == [b.tokens.tolist() for b in two.batches]
        assert one.trace == two.trace
        logprobs = [[b.sampled_logprobs for b in found.batches] for found in (one, two)]
        assert all(torch.equal(a, b) for a, b in zip(*logprobs))  # type: ignore[arg-type]


def test_a_step_shares_its_groups_among_its_updates_in_an_order_of_its_own(sampling: SourceConfig, base: Path) -> None:
    """Unshuffled, the first update would see the first half of the problems alone."""
    source = made(with_(sampling, problems=12, samples=6, max_tokens=CUT), model=load_run(RunDir(base)))
    orders = []
    for number in range(2):
        one, two = source.step(number).batches
        first, second = ([prompt for prompt, _ in split(batch)] for batch in (one, two))
        assert len(set(first) & set(second)) > 3 and abs(len(first) - len(second)) <= 1
        names = sorted(set(first) | set(second))
        orders.append([names.index(prompt) for prompt in first])
    assert orders[0] != orders[1]


def test_a_second_draw_of_a_step_has_its_own_problems_and_numbers() -> None:
    """Dynamic sampling: groups of one reward are drawn again."""
    (single, many) = (made(rollouts(max_num_gen_batches=3, options=options)).step(0) for options in (SINGLE, {}))
    assert single.metrics["gen_batches"] == many.metrics["gen_batches"] == 3
    assert len(set(answers(single))) == 36 and len(prompts(many)) == 12


def test_worked_problems_differ_between_steps_and_seeds_and_repeat() -> None:
    config = WorkedConfig(task=NUMBERS, think=0.0, rows=4, row=ROW)
    source, other = made(config), made(config, seed=1)
    found = [source.step(0), source.step(1), other.step(0)]
    for one, two in combinations(map(prompts, found), 2):
        assert len(one) > 3 and not one & two
    assert drawn(made(config).step(1)) == drawn(found[1])


# ---- what an answer was


def test_what_was_cut_off_is_wrong_whatever_the_grader_says(base: Path) -> None:
    """Every reply of this task is right; those that ended at max_tokens are not."""
    step = made(rollouts(problems=12, samples=4, max_tokens=CUT), model=load_run(RunDir(base))).step(0)
    samples = [sample for line in step.trace for sample in line["samples"]]
    assert {sample["finish"] for sample in samples} == {"stop", "length"}
    for sample in samples:
        assert sample["verdict"] == ("right" if sample["finish"] == "stop" else "wrong")
        assert sample["tokens"] <= CUT and (sample["tokens"] == CUT or sample["finish"] == "stop")
    cut = sum(sample["finish"] == "length" for sample in samples)
    assert step.metrics["truncated"] == cut and step.metrics["right"] == 48 - cut
    assert step.metrics["reward"] == pytest.approx(1 - cut / 48)


def test_a_file_begins_again_in_another_order() -> None:
    task = load_task("gsm8k")
    count = len(list(task.problems("train", 0)))
    keys = [problem.key for problem in islice(endless_problems(task, 0), 2 * count)]
    first, second = keys[:count], keys[count:]
    assert sorted(first) == sorted(second) and first != second and len(set(first)) == count > 5
