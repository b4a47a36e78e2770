"""No option of a source, an objective, a run or a way to tune is passed over: each changes what it is for."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from little import ROW, TASK, Watched, sft_run, tokenizer
from pydantic import SerializeAsAny

from rorqual.core.errors import DataError
from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.model.load.run_directory import load_run
from rorqual.train.batch import TrainBatch
from rorqual.train.loop import fit
from rorqual.train.run import Run
from rorqual.train.sources import (
    ConversationsConfig,
    OnPolicyConfig,
    RolloutConfig,
    Source,
    SourceConfig,
    SourceInputs,
    StepBatches,
    TextConfig,
    WorkedConfig,
)
from rorqual.train.state import restore
from rorqual.train.tune import find_experts

NUMBERS = f"{Path(__file__).parent / 'numbers_task.py'}:Numbers"


def given(batch: TrainBatch) -> list[Any]:
    return [None if (value := getattr(batch, f.name)) is None else value.tolist() for f in fields(batch)]


def told(step: StepBatches) -> str:
    """All that a step gives, as text."""
    return json.dumps([[given(b) for b in (*step.batches, *step.unlearned)], step.metrics, step.trace], default=str)


def first_step(config: SourceConfig, base: Path, seed: int = 0) -> StepBatches:
    ids = tokenizer()
    model = load_run(RunDir(base))
    return config.build(SourceInputs(model, ids, chat_format(ids, "deepseek"), seed, 1)).step(0)


# ---- sources

ROLLOUTS: dict[str, tuple[dict[str, Any], Any]] = {
    # option: what it needs beside it, and another value
    "task": ({}, NUMBERS),
    "options": ({"task": NUMBERS}, {"single": True}),
    "problems": ({}, 5),
    "samples": ({}, 5),
    "temperature": ({}, 0.5),
    "max_tokens": ({}, 5),
    "thinking": ({}, "off"),
    "std": ({}, False),
    "minibatches": ({}, 3),
    "row": ({}, ROW + 16),
    "trace": ({}, 1),
    "top_p": ({}, 0.7),
    "top_k": ({}, 3),
    "calculator": ({}, True),
    "max_num_gen_batches": ({"problems": 8, "samples": 2}, 3),
    "overlong_buffer": ({}, 10),
    "overlong_penalty": ({"overlong_buffer": 10}, 0.25),
    "length_penalty": ({}, {"efforts": [20, 80], "tokens": 12}),
    "mask_truncated": ({"max_tokens": 4}, True),
    "random_reward": ({}, 1.0),
    "reference": ({}, "BASE"),
}
ON_POLICY: dict[str, tuple[dict[str, Any], Any]] = {
    name: ROLLOUTS[name]
    for name in (
        "task",
        "options",
        "problems",
        "samples",
        "temperature",
        "max_tokens",
        "thinking",
        "minibatches",
        "row",
    )
} | {"top_k": ({}, 5), "teacher": ({}, "OTHER")}


def differs(kind: type[SourceConfig], least: dict[str, Any], option: str, value: Any, base: Path) -> None:
    one, two = (first_step(kind.model_validate(least | more), base) for more in ({}, {option: value}))
    assert told(one) != told(two)
    again = first_step(kind.model_validate(least), base)
    assert told(one) == told(again), "what changes by itself shows nothing"


@pytest.mark.parametrize("option", ROLLOUTS)
def test_rollouts(option: str, base: Path) -> None:
    more, value = ROLLOUTS[option]
    least = {"task": TASK, "problems": 4, "samples": 4, "max_tokens": 12, "row": ROW} | more
    differs(RolloutConfig, least, option, str(base) if value == "BASE" else value, base)


@pytest.mark.parametrize("option", ON_POLICY)
def test_on_policy(option: str, base: Path, other: Path) -> None:
    more, value = ON_POLICY[option]
    value = ROW - 8 if option == "row" else value  # the teacher's context is a row
    least = {"teacher": str(base), "task": TASK, "problems": 4, "samples": 3, "max_tokens": 12, "row": ROW} | more
    differs(OnPolicyConfig, least, option, str(other) if value == "OTHER" else value, base)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run, of other weights."""
    out = tmp_path_factory.mktemp("other") / "run"
    fit(sft_run(2, save_seconds=1e9, seed=9), RunDir(out), quiet=True)
    return out


@pytest.mark.parametrize(
    ("option", "value"), [("task", NUMBERS), ("options", {"single": True}), ("think", 0.0), ("rows", 3), ("row", 64)]
)
def test_worked(option: str, value: Any, base: Path) -> None:
    task = NUMBERS if option == "options" else TASK
    least = {"task": task, "think": 1.0 if option == "think" else 0.0, "rows": 2, "row": ROW}
    differs(WorkedConfig, least, option, value, base)


@pytest.mark.parametrize(("option", "value"), [("rows", 3), ("row", 16), ("data", "OTHER")])
def test_text(option: str, value: Any, base: Path, tmp_path: Path) -> None:
    for name, text in (("one", "abcdefghij klmnop "), ("OTHER", "zyxwvu tsrqpo ")):
        (tmp_path / name).write_text(text * 40, encoding="utf-8")
    value = str(tmp_path / value) if option == "data" else value
    differs(TextConfig, {"data": str(tmp_path / "one"), "rows": 2, "row": 24}, option, value, base)


CONVERSATIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "data": ({}, "OTHER"),
    "rows": ({}, 3),
    "row": ({}, 48),
    "longer": ({"row": 24, "longer": "skip"}, "cut"),
}


@pytest.mark.parametrize("option", CONVERSATIONS)
def test_conversations(option: str, base: Path, tmp_path: Path) -> None:
    for name, word in (("one", "seven"), ("OTHER", "eight")):
        lines = [{"prompt": f"{i} {word}", "completion": f"{word} " * (1 + i % 3)} for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    more, value = CONVERSATIONS[option]
    least = {"data": str(tmp_path / "one.jsonl"), "rows": 2, "row": 64} | more
    differs(ConversationsConfig, least, option, str(tmp_path / f"{value}.jsonl") if option == "data" else value, base)


def test_no_option_of_a_source_is_forgotten_here() -> None:
    """`max_age` is in test_rollout_sources.py: an engine on the trained tensors is never late."""
    assert set(ConversationsConfig.model_fields) == {"kind", *CONVERSATIONS}
    assert set(RolloutConfig.model_fields) == {"kind", "data", "max_age", *ROLLOUTS}
    assert set(OnPolicyConfig.model_fields) == {"kind", "data", "max_age", *ON_POLICY}


# ---- objectives


# ---- runs


def started(run: Run, out: Path) -> dict[str, torch.Tensor]:
    return restore(run, RunDir(out), tokenizer()).model.state_dict()


def test_a_runs_seed_makes_its_weights(tmp_path: Path) -> None:
    one, same, two = (started(sft_run(seed=seed), tmp_path / "run") for seed in (0, 0, 1))
    name = "layers.0.attention.o_proj.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], two[name])


@pytest.mark.parametrize("sample", [1, 3])
def test_esft_reads_the_batches_of_as_many_steps_as_it_is_told(sample: int, base: Path) -> None:
    data = sft_run().model_dump() | {"start": {"run": str(base)}, "tune": {"kind": "esft", "sample": sample}}
    run = Run.model_validate(data)
    watched = Watched(kind="watched", row=run.source.row, inner=run.source)
    find_experts(run.model_copy(update={"source": watched}), load_run(RunDir(base)), tokenizer(), 1)
    assert len(watched._seen) == sample
    keys = [work.batches[0].tokens.flatten().tolist() for _, work in watched._seen]
    assert all(one != two for number, one in enumerate(keys) for two in keys[:number])


class Split(SourceConfig):
    """The steps of another source, of whose batches all but the first teach nothing, or are left out."""

    kind: Literal["split"] = "split"
    inner: SerializeAsAny[SourceConfig]
    left_out: bool = False

    def build(self, materials: SourceInputs) -> Source:
        return Splitting(self, materials)


class Splitting(Source):
    def __init__(self, config: Split, materials: SourceInputs) -> None:
        self.inner, self.left_out = config.inner.build(materials), config.left_out

    def step(self, step: int) -> StepBatches:
        work = self.inner.step(step)
        first, *rest = [part for batch in work.batches for part in batch.split(4)]
        return StepBatches([first], unlearned=[] if self.left_out else rest)


def test_esft_reads_what_was_sampled_and_teaches_nothing_too(base: Path) -> None:
    data = sft_run().model_dump() | {"start": {"run": str(base)}, "tune": {"kind": "esft", "sample": 2, "p": 0.5}}
    run = Run.model_validate(data)
    found = [
        find_experts(run.model_copy(update={"source": source}), load_run(RunDir(base)), tokenizer(), 1)
        for source in (
            run.source,
            Split(row=run.source.row, inner=run.source),
            Split(row=run.source.row, inner=run.source, left_out=True),
        )
    ]
    assert found[0] == found[1] != found[2]


def test_a_runs_chat_format_is_the_one_that_is_used(tmp_path: Path) -> None:
    """Not the default: `none` cannot write a conversation, and says so."""
    fit(sft_run(1, chat="deepseek"), RunDir(tmp_path / "deepseek"), quiet=True)
    with pytest.raises(DataError, match="chat=none"):
        fit(sft_run(1, chat="none"), RunDir(tmp_path / "none"), quiet=True)


@pytest.mark.parametrize("how", ["full", "esft"])
def test_a_runs_seed_is_its_sources(how: str, base: Path, tmp_path: Path) -> None:
    """In training, and where ESFT reads some of the data before."""
    more = {"start": {"run": str(base)}, "tune": {"kind": "esft", "sample": 1}} if how == "esft" else {}
    found = []
    for seed in (0, 3):
        run = Run.model_validate(sft_run(1, seed=seed).model_dump() | more)
        watched = Watched(kind="watched", row=run.source.row, inner=run.source)
        fit(run.model_copy(update={"source": watched}), RunDir(tmp_path / str(seed)), quiet=True)
        every = [told(step) for _, step in watched._seen]
        assert every == [told(first_step(run.source, base, seed))] * (2 if how == "esft" else 1)
        found.append(every[0])
    assert found[0] != found[1]
