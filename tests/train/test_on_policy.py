"""On-policy distillation: the student's own samples, the teacher's distributions, and no reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from little import ROW, TASK, records, tokenizer

from rorqual.core.errors import DataError
from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.load.run_directory import load_run
from rorqual.recipes.distil import on_policy
from rorqual.recipes.sft import sft
from rorqual.train.loop import fit
from rorqual.train.run import Run
from rorqual.train.sources import SourceInputs, StepBatches


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense student that has begun to answer."""
    out = tmp_path_factory.mktemp("student") / "run"
    run = sft(task=TASK, size="tiny-student", steps=40, rows=4, row=ROW, think=0.5)
    fit(run.model_copy(update={"save_seconds": 1e9}), RunDir(out), quiet=True)
    return out


def own_run(teacher: Path, start: Path, steps: int = 2, **settings: Any) -> Run:
    given: dict[str, Any] = {"problems": 4, "samples": 3, "max_tokens": 12, "row": ROW} | settings
    run = on_policy(teacher=str(teacher), start=str(start), task=TASK, steps=steps, **given)
    return run.model_copy(update={"save_seconds": 1e-9})


def first_step(run: Run) -> StepBatches:
    model = load_run(RunDir(Path(run.start.run)))
    ids = tokenizer()
    return run.source.build(SourceInputs(model, ids, chat_format(ids), run.seed, 1)).step(0)


@pytest.mark.parametrize("top_k", [0, 7])
def test_the_teachers_distributions_are_those_of_each_answer_alone(base: Path, student: Path, top_k: int) -> None:
    """Of the whole vocabulary or of its likeliest tokens, at the place before each sampled token, and nowhere else."""
    teacher = load_run(RunDir(base))
    work = first_step(own_run(base, student, top_k=top_k))
    assert work.fresh and len(work.batches) == 2
    assert sum(int((b.loss_mask > 0).sum()) for b in work.batches) == work.metrics["sampled_tokens"]
    for batch in work.batches:
        assert batch.teacher_logprobs is not None and batch.advantages is None
        at = batch.loss_mask > 0
        with torch.no_grad():
            hidden = teacher(batch.tokens, batch.positions, segments=batch.segments).hidden[at]
        logprobs = teacher.logits(hidden).log_softmax(-1).detach()
        wanted = logprobs.topk(top_k).values if top_k else logprobs
        assert torch.allclose(batch.teacher_logprobs[at], wanted, atol=1e-4)
        if batch.teacher_ids is not None:
            assert torch.allclose(logprobs.gather(1, batch.teacher_ids[at]), wanted)


def test_a_teacher_of_another_vocabulary_is_refused_with_what_to_do(base: Path, student: Path, tmp_path: Path) -> None:
    Tokenizer.byte_level(["after a after b"] * 9, vocab_size=266).save(tmp_path / "tokenizer.json")
    run = sft(task=TASK, size="tiny", steps=1, rows=1, row=ROW, tokenizer=str(tmp_path / "tokenizer.json"))
    fit(run, RunDir(tmp_path / "teacher"), quiet=True)
    with pytest.raises(
        DataError, match=r"tokenizer=TEACHER/tokenizer.json, or train .* rorqual train sft data=FILE.parquet"
    ):
        fit(own_run(tmp_path / "teacher", student), RunDir(tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


def test_it_is_one_run_at_any_number_of_threads(base: Path, student: Path, tmp_path: Path) -> None:
    run = own_run(base, student)
    one, other = (fit(run, RunDir(tmp_path / str(n)), quiet=True, threads=n).model.state_dict() for n in (1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert records(tmp_path / "1") == records(tmp_path / "2")
