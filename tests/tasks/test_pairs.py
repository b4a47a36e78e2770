"""Pairs of a gold answer and a reply that were labelled before the graders were written: each is judged as it is labelled."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from rorqual.tasks.base import Problem, Task
from rorqual.tasks.find import load_task

Pair = dict[str, Any]
KNOWN = [json.loads(line) for line in (Path(__file__).parent / "pairs" / "known.jsonl").open(encoding="utf-8")]
KINDS: dict[tuple[str, str], list[Pair]] = defaultdict(list)
for _pair in KNOWN:
    KINDS[_pair["task"], _pair["kind"]].append(_pair)


def row(pair: Pair) -> dict[str, Any]:
    """A row of the task's own file, with a question that says nothing."""
    if pair["task"] == "gsm8k":
        return {"question": "?", "answer": f"#### {pair['gold']}"}
    if pair["task"] == "math500":
        return {"problem": "?", "answer": pair["gold"]}
    if pair["task"] == "folio":
        return {"premises": ["?"], "conclusion": "?", "label": pair["gold"]}
    people = {"names": pair["names"], "solution": pair["solution"]}
    return {"quiz": "?", "statements": "?", "cot_head": "", "cot_repeat_steps": [], "cot_foot": ""} | people


def built(pairs: list[Pair], folder: Path) -> tuple[Task, list[Problem]]:
    """The task and its problems, one for each pair, as the task reads them from a file."""
    file = folder / ("validation.jsonl" if pairs[0]["task"] == "folio" else "test.jsonl")
    file.write_text("".join(json.dumps(row(pair)) + "\n" for pair in pairs), encoding="utf-8")
    task: Any = load_task(pairs[0]["task"], data=file, options={"timeout": 60} if pairs[0]["task"] == "math500" else {})
    return task, task.load("test")


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_every_pair_is_judged_as_it_is_labelled(task: str, kind: str, tmp_path: Path) -> None:
    pairs = KINDS[task, kind]
    grader, problems = built(pairs, tmp_path)
    judged = [(pair, grader.grade(problem, pair["reply"]).value) for pair, problem in zip(pairs, problems)]
    assert not [
        f"{verdict}, but labelled {pair['label']}: {problem.answer!r} <- {pair['reply']!r}"
        for (pair, verdict), problem in zip(judged, problems)
        if verdict != pair["label"]
    ]


def test_no_pair_is_labelled_twice() -> None:
    assert len({json.dumps({**pair, "label": "", "kind": ""}) for pair in KNOWN}) == len(KNOWN) == 665
