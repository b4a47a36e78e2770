"""Example prompts of a run, and what looks like none of them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from rorqual.core.example_prompts import FEW, LONGEST, MOST, choose_prompts, is_unlike_prompts
from rorqual.core.records import RunDir
from rorqual.recipes.sft import sft
from rorqual.tasks.find import load_task
from rorqual.tasks.gsm8k import Gsm8k
from rorqual.train.loop import fit

FAMILIES = "families:add,sub,mod,swap,count,kk"


def problems(spec: str, seed: int, count: int) -> list[str]:
    task = load_task(spec, options={"hard": 0.5})
    return [problem.prompt for problem in islice(task.problems("test", seed), count)]


@pytest.mark.parametrize("seed", range(3))
def test_new_problems_of_the_same_families_look_like_them(seed: int) -> None:
    prompts = choose_prompts(problems(FAMILIES, seed, MOST))
    assert [text for text in problems(FAMILIES, seed + 10, 300) if is_unlike_prompts(text, prompts)] == []


@pytest.mark.parametrize(
    "text", ["add 12 34", "12+34", "What is 12+34?", "multiply 3*4", "hello", "add 12+34?", "sub 5+3", "swap: abc"]
)
def test_another_form_looks_like_none_of_them(text: str) -> None:
    assert is_unlike_prompts(text, choose_prompts(problems(FAMILIES, 0, MOST)))


def test_running_text_is_compared_by_its_words() -> None:
    prompts = [problem.prompt for problem in Gsm8k().problems("test", 0)]
    assert len({prompt.split()[0] for prompt in prompts[:MOST]}) > FEW, "no fixed forms"
    assert not is_unlike_prompts(prompts[-1], prompts[:-1])
    assert not is_unlike_prompts("How many apples does she have if she sells 3 of them every day?", prompts)
    assert is_unlike_prompts("Schreibe ein Gedicht über Wale, bitte!", prompts) and is_unlike_prompts(
        "def f(x): return yield_curve", prompts
    )


def test_without_prompts_or_words_nothing_is_said() -> None:
    assert (
        not is_unlike_prompts("anything", [])
        and not is_unlike_prompts("   ", ["add 1+2"])
        and not is_unlike_prompts("", ["add 1+2"])
    )


def test_the_first_are_of_different_kinds_and_the_long_are_left_out() -> None:
    prompts = ["add 1+2", "add 1+2", "add 3+4", "x" * (LONGEST + 1), "", "sub 9-4", *(f"mod {n}%7" for n in range(100))]
    found = choose_prompts(prompts)
    assert found[:3] == ["add 1+2", "sub 9-4", "mod 0%7"] and "add 3+4" in found
    assert len(found) == len(set(found)) == MOST and all(0 < len(prompt) <= LONGEST for prompt in found)


def test_a_run_keeps_the_problems_of_its_task_and_none_of_a_file(tmp_path: Path) -> None:
    """Prompts of a file may be private, and the page shows examples to every tenant."""
    fit(sft(task="families:add,sub", size="tiny", steps=1, rows=2), tmp_path / "run", quiet=True)
    prompts = RunDir(tmp_path / "run").example_prompts()
    assert len(prompts) == MOST and {prompt.split()[0] for prompt in prompts[:2]} == {"add", "sub"}
    rows = [{"prompt": f"Question {n}?", "completion": "Answer."} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fit(sft(data=str(tmp_path / "rows.jsonl"), size="tiny", steps=1, rows=2, row=64), tmp_path / "own", quiet=True)
    rows = [{"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(80)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sums = sft(task="gsm8k", data=str(tmp_path / "train.jsonl"), size="tiny", steps=1, rows=2)
    fit(sums, tmp_path / "sums", quiet=True)
    for name in ("own", "sums"):
        assert RunDir(tmp_path / name).example_prompts() == [] and not RunDir(tmp_path / name).prompts_file.exists()


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', "[1, null]"])
def test_a_file_that_is_none_gives_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "prompts.json").write_text(text)
    assert RunDir(tmp_path).example_prompts() == [] == RunDir(tmp_path / "nowhere").example_prompts()
