"""What a task is told arrives: its options, its files and its split; and what makes two of a user's problems one."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.errors import ConfigError
from rorqual.core.records import Message
from rorqual.tasks.everyday import EVERYDAY_TASKS, EverydayMixture
from rorqual.tasks.file_task import carve_dev_split
from rorqual.tasks.find import load_task, safe_problems
from rorqual.tasks.task import Problem, Split, Task, Verdict, split_of

# ---- options


class Noted(Task):
    """It notes how it is made and asked."""

    name = "noted"

    def __init__(self, data: Path | None = None, names: tuple[str, ...] = (), **more: Any) -> None:
        self.data, self.names, self.more = data, names, more

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        yield Problem(f"{split} {seed}", "?", "!", "noted")

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT


NOTED = f"{Path(__file__)}:Noted"


def test_the_options_that_are_given_are_copied(tmp_path: Path) -> None:
    """A second task made of the same options is not told what the first was told beside them."""
    options: dict[str, Any] = {"hard": 0.5}
    load_task("families:add, sub", options=options)
    load_task(NOTED, options=options, data=tmp_path)
    assert options == {"hard": 0.5}
    assert load_task(NOTED, options=options).data is None  # type: ignore[attr-defined]


def test_a_file_that_a_task_needs_may_be_an_option(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.jsonl", [{"prompt": "a", "completion": "b"}])
    one, other = (
        load_task("messages", data=file),
        load_task("messages", options={"data": file}),
    )
    assert list(one.problems("test", 0)) == list(other.problems("test", 0))
    with pytest.raises(ConfigError, match="task 'messages' has no option 'dat'"):
        load_task("messages", data=file, options={"dat": file})


def test_split_and_seed_reach_the_task() -> None:
    task = load_task(NOTED)
    assert [p.key for split in ("train", "dev", "test") for p in safe_problems(task, split, 7)] == [
        "train 7", "dev 7", "test 7",
    ]  # fmt: skip


# ---- the user's conversations


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def turns(*texts: str, roles: tuple[str, ...] = ("user", "assistant")) -> dict[str, Any]:
    """A conversation of these texts, the roles in turn."""
    return {"messages": [{"role": roles[place % len(roles)], "content": text} for place, text in enumerate(texts)]}


def problems_of(folder: Path, *rows: dict[str, Any]) -> list[Problem]:
    """In the order of the rows."""
    task = load_task("messages", data=written(folder / "mine.jsonl", list(rows)))
    return sorted(task.problems("test", 0), key=lambda problem: int(problem.meta["where"].rpartition(":")[2]))


def test_all_turns_before_the_answer_make_a_conversation_another(tmp_path: Path) -> None:
    rows = [
        turns("Hello", "Hi", "And now?", "4"),
        turns("Good day", "Hi", "And now?", "4"),
        turns("Hello", "Hello", "And now?", "4"),
        turns("And now?", "4"),
        {"messages": [{"role": "system", "content": "Be brief."}, *turns("And now?", "4")["messages"]]},
        {"messages": [{"role": "user", "content": "Be brief."}, *turns("And now?", "4")["messages"]]},
    ]
    found = problems_of(tmp_path, *rows)
    assert len({p.key for p in found}) == 6 and {p.prompt for p in found} == {"And now?"}
    for row, problem in zip(rows, found, strict=True):
        said = tuple(Message(m["role"], m["content"]) for m in row["messages"][:-1])
        assert problem.messages == said and problem.answer == "4"


def test_case_white_space_and_the_answer_make_no_other_problem(tmp_path: Path) -> None:
    rows = [
        {"prompt": "What is  Two?", "completion": "2"},
        {"question": "what is two?\n", "answer": "two"},
        turns("WHAT IS TWO?", "<think>well</think> 2"),
    ]
    found = problems_of(tmp_path, *rows)
    assert len({p.key for p in found}) == 1
    assert [p.answer for p in found] == ["2", "two", "2"] and found[0].prompt == "What is  Two?"


def test_the_reasoning_that_stands_in_a_row_is_the_worked_solution(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        {"prompt": "a", "completion": "1", "reasoning": "of a pair"},
        {
            "messages": [
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": "2", "reasoning": "of a turn"},
            ]
        },
        turns("c", "3"),
    )
    assert [(p.prompt, p.answer, p.steps, p.family) for p in found] == [
        ("a", "1", "of a pair", "messages"), ("b", "2", "of a turn", "messages"), ("c", "3", None, "messages"),
    ]  # fmt: skip


def test_every_file_of_a_folder_is_read_for_its_own_split(tmp_path: Path) -> None:
    for name in ("a-train", "b-train", "a-test", "b-test"):
        written(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {n}", "completion": "x"} for n in range(200)])
    task = load_task("messages", data=tmp_path)
    found = {split: {p.prompt for p in task.problems(split, 0)} for split in ("train", "dev", "test")}
    every = {name: {f"{name} {n}" for n in range(200)} for name in ("a-train", "b-train", "a-test", "b-test")}
    assert found["test"] == every["a-test"] | every["b-test"]
    assert found["train"] | found["dev"] == every["a-train"] | every["b-train"]
    assert not found["train"] & found["dev"] and 5 <= len(found["dev"]) <= 40
    one, same, other = ([p.prompt for p in task.problems("test", seed)] for seed in (0, 0, 1))
    assert one == same != other and sorted(one) == sorted(other)


# ---- shares


def test_a_twentieth_of_training_rows_is_dev_and_rows_of_one_group_stay_together() -> None:
    rows = [(f"group {n // 2}", Problem(str(n), "?", "!", "x")) for n in range(8000)]
    train, dev, test = ([p.key for p in carve_dev_split(rows, split)] for split in ("train", "dev", "test"))
    assert len(dev) / len(rows) == pytest.approx(0.05, abs=0.012)
    assert sorted(train + dev, key=int) == test == [p.key for _, p in rows]
    assert set(Counter(int(key) // 2 for key in dev).values()) == {2}


@pytest.mark.parametrize(("shares", "dev", "test"), [({}, 0.02, 0.04), ({"dev": 0.3, "test": 0.1}, 0.3, 0.1)])
def test_each_split_has_its_share_of_keys(shares: dict[str, float], dev: float, test: float) -> None:
    found = Counter(split_of(f"key {n}", **shares) for n in range(20_000))
    for split, share in (("dev", dev), ("test", test), ("train", 1 - dev - test)):
        assert found[split] / 20_000 == pytest.approx(share, abs=0.01), split


@pytest.mark.parametrize("name", ["reviews", "sentences"])
def test_an_everyday_chore_holds_out_a_twentieth_and_a_tenth_and_halves_the_rest(name: str) -> None:
    """Each split is told apart by the keys that it alone gives, as shares of all that the chore draws."""
    rng = random.Random(5)
    drawn = {EVERYDAY_TASKS[name].sample(rng).key for _ in range(6000)}
    places = {
        place: EverydayMixture([name], pool)._key_is_in_split
        for place, pool in (("dev", "any"), ("test", "any"), ("train", "any"), ("train teacher", "teacher"), ("train original", "original"))
    }  # fmt: skip
    held = {place: {key for key in drawn if belongs(key, place.split()[0])} for place, belongs in places.items()}  # type: ignore[arg-type]
    shares = {place: len(keys) / len(drawn) for place, keys in held.items()}
    assert shares == pytest.approx(
        {"dev": 0.05, "test": 0.1, "train": 0.85, "train teacher": 0.425, "train original": 0.425}, abs=0.025
    )
    assert held["dev"] | held["test"] | held["train"] == drawn
    assert held["train teacher"] | held["train original"] == held["train"]
