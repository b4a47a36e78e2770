"""Small sets from a teacher: what is in each set, what is measured, the rule, and the whole experiment in small."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from rorqual.core.records import Message
from rorqual.data.distilled import DistilledFile, TeacherSample, read_distilled
from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.lab.data_distil import ARMS, DataDistil, scores_by_problem
from rorqual.lab.data_distil_sets import held_out_problems, original_set, write_original_sets, write_teacher_sets
from rorqual.lab.job import load_value
from rorqual.lab.page import page_text
from rorqual.tasks.everyday import EVERYDAY_TASKS, EverydayMixture
from rorqual.tasks.task import Problem, Verdict

CHORE = pytest.mark.parametrize("chore", EVERYDAY_TASKS)


def asked(chore: str, seed: int, count: int) -> list[Problem]:
    return list(islice(EverydayMixture([chore], "original").problems("train", seed), count))


def said(problem: Problem, reply: str, dropped: str = "") -> TeacherSample:
    return TeacherSample(
        key=problem.key,
        family=problem.family,
        level="",
        prompt=problem.prompt,
        messages=(Message("user", problem.prompt), Message("assistant", reply)),
        verdict="right" if reply == problem.answer else "wrong",
        teacher="t",
        params="{}",
        seed=0,
        number=0,
        dropped=dropped,
        core_seconds=0.5,
    )


def pairs(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    return [(row["prompt"], row["completion"]) for row in rows]


@CHORE
def test_sets_hold_the_same_questions_and_only_their_answers_differ(chore: str, tmp_path: Path) -> None:
    problems = asked(chore, 7, 120)
    write_original_sets(tmp_path, problems, 30)
    full, small, true = (
        pairs(tmp_path / f"{name}.jsonl") for name in ("full-original", "small-original", "small-true")
    )
    assert [ask for ask, _ in full] == [p.prompt for p in problems]
    assert small == full[:30]
    assert true == [(p.prompt, p.answer) for p in problems[:30]]
    faulty = sum(
        EVERYDAY_TASKS[chore].grade(p, answer) is Verdict.WRONG for p, (_, answer) in zip(problems, full, strict=True)
    )
    expected = {"reviews": 0.3, "prices": 1 - math.erf(3.5 / 12 / 2**0.5), "sentences": 0.3}[chore]
    assert faulty / 120 == pytest.approx(expected, abs=0.17)


@CHORE
def test_nothing_that_is_asked_in_the_end_was_read_by_a_student_or_the_teacher(chore: str) -> None:
    tested = {p.key for p in held_out_problems(chore, 7, 60, "test")}
    learned = {p.key for p in asked(chore, 7, 300)}
    taught = {p.key for p in islice(EverydayMixture(pool="teacher").problems("train", 7), 900)}
    assert len(tested) == 60
    assert not tested & learned and not tested & taught and not learned & taught


def test_the_original_set_is_found_again_from_what_the_teacher_was_asked() -> None:
    left = [p for i, p in enumerate(asked("sentences", 3, 40)) if i % 3]  # decontamination may leave some out
    found = original_set("sentences", 3, [said(p, p.answer) for p in reversed(left)])
    assert found == left
    assert [p.meta for p in found] == [p.meta for p in left]


def test_the_teachers_small_set_is_its_part_of_the_full_one(tmp_path: Path) -> None:
    problems = asked("sentences", 3, 20)
    rows = [said(p, p.answer if i % 2 else "an owl", "" if i % 2 else "wrong") for i, p in enumerate(problems)]
    write_teacher_sets(tmp_path, DistilledFile(rows), {p.key for p in problems[:6]})
    full, small = (read_distilled(tmp_path / f"{name}-teacher.parquet") for name in ("full", "small"))
    assert [r.key for r in full.kept_samples] == [p.key for p in problems[1::2]]
    assert [r.key for r in small.kept_samples] == [p.key for p in problems[1:6:2]]
    write_teacher_sets(tmp_path, DistilledFile([replace(r, dropped="wrong") for r in rows]), {problems[0].key})
    assert len(read_distilled(tmp_path / "full-teacher.parquet").kept_samples) == 20, "nothing passed: all is taken"


def evaluation(chore: str, answers: list[tuple[Problem, str]]) -> Evaluation:
    samples = [
        GradedSample(
            key=p.key, family=chore, prompt=p.prompt, answer=p.answer, reply=reply, reasoning=None,
            verdict=EVERYDAY_TASKS[chore].grade(p, reply), tokens=3, thinking_tokens=0, thought=False, truncated=False,
        )
        for p, reply in answers
    ]  # fmt: skip
    return Evaluation(
        task="everyday", split="test", seed=0, count=len(samples), per_family=True, thinking="off",
        params=SamplingParams(), samples=tuple(samples),
    )  # fmt: skip


def test_the_mean_of_what_prices_add_is_r_squared_and_no_price_is_the_worst_one() -> None:
    problems = asked("prices", 1, 50)
    replies = [str(int(p.answer) + i % 7 - 3) for i, p in enumerate(problems)]
    found = evaluation("prices", list(zip(problems, replies, strict=True)))
    truth, said_ = np.array([int(p.answer) for p in problems]), np.array([int(r) for r in replies])
    assert np.mean(scores_by_problem(found)) == pytest.approx(
        1 - ((said_ - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
    )
    worse = evaluation("prices", [(problems[0], "about forty"), *zip(problems[1:], replies[1:], strict=True)])
    assert (
        scores_by_problem(worse)[0] == 1 - max(int(problems[0].answer), 99 - int(problems[0].answer)) ** 2 / truth.var()
    )
    assert np.mean(scores_by_problem(evaluation("prices", [(p, p.answer) for p in problems]))) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The experiment of one seed, at a share that trains two steps."""
    place = tmp_path_factory.mktemp("lab") / "seed-1"
    for job in DataDistil().jobs(1, place, 0.001):
        job.finish(place)
    yield place


def test_in_small_it_runs_and_says_everything(whole: Path) -> None:
    found = DataDistil().conclude({1: whole})
    assert {one.of for one in found.contrasts} == {"reviews", "prices, R²", "sentences"}
    tables = {table.title: table.rows for table in found.tables}
    for title in ("reviews", "prices, R²", "sentences"):
        assert len(tables[title]) == len(ARMS) + 1
    rows = load_value(whole, "data-prices-sets")["small-teacher"]
    [shown] = [row for row in tables["rows of the training set"] if row[0] == "a tenth, teacher"]
    assert shown[1:4][[*EVERYDAY_TASKS].index("prices")] == f"{rows:,}"
    assert "a tenth, teacher" in page_text(found)
    assert DataDistil().conclude({1: whole}) == found, "the same files give the same finding"
