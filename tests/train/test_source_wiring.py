"""What each source reads, teaches and says, at its limits: files named by data, rows that are just full, and notes said once."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from little import ROW, TASK, loud, packed, padded, same_gradient, sft_run, tiny, tokenizer, update_of
from little import documents as random_documents
from pydantic import ValidationError

from rorqual.core.errors import ConfigError, DataError, TaskError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import chat_format
from rorqual.data.distilled import TeacherSample, write_distilled
from rorqual.model import Decoder
from rorqual.model.account import account
from rorqual.model.load.run_directory import load_run
from rorqual.tasks.task import Problem, Split, Task, Verdict
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import GRPO, AuxBalance, Distil
from rorqual.train.run import Run
from rorqual.train.sources import (
    ConversationsConfig,
    DistilledConfig,
    OnPolicyConfig,
    RolloutConfig,
    Source,
    SourceConfig,
    SourceInputs,
    TextConfig,
    WorkedConfig,
)
from rorqual.train.sources.on_policy import OnPolicyTeacher
from rorqual.train.sources.worked import first_problems, worked_sample

CHAT = chat_format(tokenizer())


def materials(model: Decoder | None = None) -> SourceInputs:
    return SourceInputs(model or Decoder(tiny()), tokenizer(), CHAT, 0, 1)


def made(config: SourceConfig, model: Decoder | None = None) -> Source:
    return config.build(materials(model))


def texts(batch: TrainBatch) -> list[str]:
    """The text of each document."""
    return [
        tokenizer().decode(row[segments == number].tolist())
        for row, segments in zip(batch.tokens, batch.segments)
        for number in segments[segments >= 0].unique().tolist()
    ]


# ---- conversations


def chats(folder: Path, *rows: dict[str, Any], name: str = "chat.jsonl") -> str:
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(folder / name)


def asks(question: str, answer: str, **more: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}


def test_a_conversation_may_fill_its_row_and_what_does_not_fit_is_counted_once(tmp_path: Path) -> None:
    size = len(CHAT.training_renderings((Message("user", "q"), Message("assistant", "a" * 20)))[0].ids)
    data = chats(
        tmp_path,
        asks("q", "a" * 20),
        asks("q" * 60, "b"),
        asks("s", "c"),
        {"messages": [{"role": "user", "content": "d"}]},
    )
    with pytest.raises(
        DataError, match=rf"1 of 3 conversations are longer than a row of {size} tokens \(the longest: 66\)"
    ):
        made(ConversationsConfig(data=data, rows=2, row=size))
    made(ConversationsConfig(data=data, rows=2, row=66))
    for longer, said in (("skip", "skipped 1 with nothing to train on, 1 longer than a row"),
                         ("cut", "skipped 2 with nothing to train on, 0 longer than a row")):  # fmt: skip
        source = made(ConversationsConfig(data=data, rows=2, row=size, longer=longer))  # type: ignore[arg-type]
        first, second = source.step(0), source.step(1)
        assert first.notes == [f"{data}: {said}"] and second.notes == []
        assert set(texts(first.batches[0])) == {"q" + "a" * 20, "sc"}, (
            "a full row is kept; a question alone is not trained"
        )
    whole = made(ConversationsConfig(data=chats(tmp_path, asks("q", "a" * 20), name="b.jsonl"), rows=1, row=size))
    assert whole.step(0).notes == []
    tail = chats(tmp_path, asks("q", "a" * 30), name="c.jsonl")
    cut = made(ConversationsConfig(data=tail, rows=1, row=size - 5, longer="cut"))
    assert int((cut.step(0).batches[0].segments >= 0).sum()) == size - 5, "a cut row is full"


# ---- what a tokenizer is learned from


def test_a_tokenizer_learns_from_all_that_is_trained_and_from_nothing_held_out(tmp_path: Path) -> None:
    data = chats(tmp_path, asks("one", "two", reasoning="three"), asks("four", "five"))
    assert list(ConversationsConfig(data=data).texts()) == [" one", "three two", " four", " five"]
    (tmp_path / "text").write_text("abcdefghi" * 10 + "X" * 10, encoding="utf-8")
    assert list(TextConfig(data=str(tmp_path / "text")).texts()) == ["abcdefghi" * 10]
    rows = [sampled("six", "seven", thought="eight"), sampled("no", "no", dropped="wrong"), sampled("nine", "ten")]
    write_distilled(tmp_path / "d.parquet", rows)
    said = list(DistilledConfig(data=str(tmp_path / "d.parquet")).texts())
    assert said == [" six", "eight seven", " nine", " ten"]
    worked = list(WorkedConfig(task=TASK).texts())
    assert len(worked) == 2000 and set(worked) == {f"after {a} {a}{b} {b}" for a, b in zip("abcdefghi", "bcdefghij")}
    assert list(OnPolicyConfig(teacher="", task=TASK).texts()) == worked


# ---- epochs


@pytest.mark.parametrize("kind", ["text", "conversations", "distilled"])
def test_a_source_of_a_file_gives_all_of_it_in_an_epoch_and_the_same_again_after_a_restart(
    kind: str, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("".join(f"{n:03d}." for n in range(100)), encoding="utf-8")
    data = chats(tmp_path, *(asks(f"{n:03d}", ".") for n in range(90)))
    write_distilled(tmp_path / "d.parquet", [sampled(f"{n:03d}", ".") for n in range(90)])
    config: SourceConfig = TextConfig(data=str(tmp_path / "text"), rows=3, row=20)
    if kind == "conversations":
        config = ConversationsConfig(data=data, rows=3, row=20)
    elif kind == "distilled":
        config = DistilledConfig(data=str(tmp_path / "d.parquet"), rows=3, row=20)
    source = made(config)
    steps = [source.step(step).batches[0] for step in range(20)]
    numbers = [set(re.findall(r"\d\d\d", " ".join(texts(batch)))) for batch in steps]
    assert len(set.union(*numbers)) >= 88, "windows of a text may cut a number"
    assert not any(one & two for one, two in pairwise(numbers[:10])) or kind == "text"
    assert not torch.equal(steps[0].tokens, steps[1].tokens)
    again = made(config)
    for step in (7, 2, 19):
        assert torch.equal(again.step(step).batches[0].tokens, steps[step].tokens)
    other = config.build(replace(materials(), seed=1)).step(0).batches[0]
    assert not torch.equal(other.tokens, steps[0].tokens)


# ---- a task's files


@pytest.mark.parametrize("kind", ["rollouts", "on_policy"])
def test_the_problems_are_those_of_the_file_that_data_names(kind: str, base: Path, tmp_path: Path) -> None:
    rows = [{"question": f"How many are {n}?", "answer": f"So many.\n#### {n}"} for n in range(54)]
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given: dict[str, Any] = {
        "task": "gsm8k",
        "data": str(tmp_path),
        "problems": 4,
        "samples": 2,
        "max_tokens": 4,
        "row": ROW,
    }
    more, cls = ({}, RolloutConfig) if kind == "rollouts" else ({"teacher": str(base)}, OnPolicyConfig)
    step = made(cls(**given | more), load_run(RunDir(base))).step(0)  # type: ignore[operator]
    every = [text for batch in (*step.batches, *step.unlearned) for text in texts(batch)]
    assert len(every) == 8 and all(text.startswith("How many are ") for text in every)


# ---- worked solutions


class Rows(Task):
    """`total` problems, shuffled by the seed or not; raises at the end if asked to."""

    name = "rows"

    def __init__(self, total: int, *, shuffled: bool, raises: bool = False) -> None:
        self.total, self.shuffled, self.raises = total, shuffled, raises

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        numbers = list(range(self.total if split == "train" else 0))
        if self.shuffled:
            random.Random(seed).shuffle(numbers)
        yield from (Problem(str(n), str(n), str(n), "rows") for n in numbers)
        if self.raises:
            raise KeyError("row")

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT if reply == problem.answer else Verdict.WRONG


def test_a_task_that_every_step_would_read_from_its_same_beginning_is_refused() -> None:
    for task in (Rows(100, shuffled=True), Rows(10, shuffled=False)):
        assert len(first_problems(task, 0, 64)) == min(64, task.total)
    with pytest.raises(DataError, match="same for every seed"):
        first_problems(Rows(100, shuffled=False), 0, 64)
    with pytest.raises(TaskError, match=r"rows.*KeyError"):
        first_problems(Rows(10, shuffled=True, raises=True), 0, 64)


def test_thinking_needs_worked_steps_and_a_solution_may_fill_its_row() -> None:
    numbers = f"{Path(__file__).parent / 'numbers_task.py'}:Numbers"
    with pytest.raises(DataError, match="none of the task's problems has worked steps"):
        made(WorkedConfig(task=numbers, think=0.1, row=ROW))
    made(WorkedConfig(task=numbers, think=0.0, row=ROW))
    longest = max(
        len(worked_sample(p, CHAT, think=True)) for p in first_problems(WorkedConfig(task=TASK).load(), 0, 64)
    )
    (batch,) = made(WorkedConfig(task=TASK, rows=2, row=longest)).step(0).batches
    assert bool((batch.segments >= 0).all()), "each row is full"
    with pytest.raises(DataError, match=f"a worked problem of {longest} tokens does not fit a row of {longest - 1}"):
        made(WorkedConfig(task=TASK, rows=2, row=longest - 1))


# ---- rollouts


@pytest.mark.parametrize("masked", [False, True])
def test_with_a_reference_all_that_was_graded_trains_and_nothing_else(masked: bool, base: Path) -> None:
    """An answer without a verdict never does, nor one that was cut off where those are masked; both are still checked."""
    config = RolloutConfig(task=TASK, options={"unsure": True}, problems=8, samples=4, max_tokens=4, row=ROW,
                           reference=str(base), mask_truncated=masked)  # fmt: skip
    step = made(config, load_run(RunDir(base))).step(0)
    samples = [sample for line in step.trace for sample in line["samples"]]
    wanted = [s for s in samples if s["verdict"] != "ungraded" and not (masked and s["finish"] == "length")]
    assert any(s["verdict"] == "ungraded" for s in samples) and any(s["advantage"] == 0 for s in wanted)
    assert sum(len(texts(batch)) for batch in step.batches) == len(wanted) < len(samples)
    assert sum(len(texts(batch)) for batch in step.unlearned) == len(samples) - len(wanted)
    assert all(batch.reference_logprobs is not None for batch in step.batches)
    assert step.metrics["reference_tokens"] == sum(batch.n_tokens for batch in step.batches)


# ---- a teacher's samples


def sampled(question: str, answer: str, *, thought: str | None = None, dropped: str = "") -> TeacherSample:
    """Of a teacher whose ids we do not hold."""
    messages = (Message("user", question), Message("assistant", answer, thought))
    return TeacherSample("k", "f", "", question, messages, "right", "t", "{}", 0, 0, dropped=dropped)


# ---- on-policy distillation


def test_a_teacher_reads_rows_of_its_context_and_no_longer(base: Path) -> None:
    given = materials(load_run(RunDir(base)))
    context, vocab = given.model.config.max_position_embeddings, given.model.config.vocab_size
    teacher = OnPolicyTeacher(str(base), given, context, vocab)
    assert teacher.flops == account(teacher.model.config, context=context).flops
    assert not any(p.requires_grad for p in teacher.model.parameters())
    with pytest.raises(ConfigError, match=f"rows have {context + 1} tokens, but the teacher's context is {context}"):
        OnPolicyTeacher(str(base), given, context + 1, 0)
    with pytest.raises(ConfigError, match=f"top_k={vocab + 1} is more than the vocabulary's {vocab} tokens"):
        OnPolicyTeacher(str(base), given, context, vocab + 1)


@pytest.mark.parametrize("top_k", [0, 5])
def test_a_teacher_reads_each_row_of_a_large_batch(top_k: int, base: Path) -> None:
    """More rows than one forward takes: each has the distributions that it has alone."""
    teacher = OnPolicyTeacher(str(base), replace(materials(load_run(RunDir(base))), threads=2), ROW, top_k)
    batch = packed(random_documents(6, count=110))
    assert len(batch.tokens) > 17
    whole = teacher.add_distributions(batch)
    alone = [teacher.add_distributions(row) for row in batch.split(len(batch.tokens))]
    assert whole.teacher_logprobs is not None and (whole.teacher_ids is not None) is (top_k > 0)
    assert torch.allclose(whole.teacher_logprobs, torch.cat([one.teacher_logprobs for one in alone]), atol=1e-4)  # type: ignore[misc]
    assert not whole.teacher_logprobs[batch.loss_mask == 0].any(), "zeros where nothing is trained"


def test_a_step_counts_what_the_teacher_read_and_shares_few_answers_among_many_updates(base: Path) -> None:
    config = OnPolicyConfig(teacher=str(base), task=TASK, problems=1, samples=3, max_tokens=8, row=ROW, minibatches=5)
    model = load_run(RunDir(base))
    step = made(config, model).step(0)
    assert len(step.batches) == 3 and step.fresh and not step.unlearned
    read = sum(batch.n_tokens for batch in step.batches)
    assert step.metrics["teacher_tokens"] == read
    assert step.metrics["teacher_flops"] == read * account(model.config, context=ROW).flops
    assert "reward" in step.metrics and "right" in step.metrics and "ungraded" in step.metrics
    assert not any(name.startswith("groups_") for name in step.metrics)


# ---- settings that do not fit each other


def test_settings_that_do_not_fit_are_refused_and_their_nearest_twins_are_not(base: Path) -> None:
    GRPO(per="constant", max_tokens=1)
    with pytest.raises(ValidationError, match="per=constant divides by max_tokens"):
        GRPO(per="constant")
    RolloutConfig(task=TASK, max_tokens=12, overlong_buffer=12)
    with pytest.raises(ValidationError, match="overlong_buffer=13 exceeds max_tokens=12"):
        RolloutConfig(task=TASK, max_tokens=12, overlong_buffer=13)
    data = sft_run().model_dump()
    balanced = [{"kind": "next_token"}, {"kind": "aux_balance"}]
    Run.model_validate(data | {"objectives": balanced, "micro_batches": 1})
    with pytest.raises(ValidationError, match="micro_batches=1, not 2"):
        Run.model_validate(data | {"objectives": balanced, "micro_batches": 2})
    for objective in (GRPO(), Distil()):
        with pytest.raises(
            ValidationError, match=f"objective {objective.kind} needs .* which source worked does not provide"
        ):
            Run.model_validate(data | {"objectives": [{"kind": "next_token"}, objective.model_dump()]})


def test_the_balance_of_a_batch_counts_no_padding() -> None:
    """Documents alone, or with rows of padding beside them: the same loss and the same gradients."""
    model, samples = loud(tiny()), random_documents(3)
    one, other = (
        update_of(model, (AuxBalance(coefficient=1.0),), batch) for batch in (packed(samples), padded(samples))
    )
    assert one.loss == pytest.approx(other.loss, rel=1e-5) and one.loss > 1
    same_gradient(model, one, other, 1e-4)
