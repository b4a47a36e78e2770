"""Finding tasks: by name, in a file of one's own, and that what their code raises is named."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from rorqual.core.errors import ConfigError, DataError, RorqualError, TaskError
from rorqual.tasks.file_task import SAMPLES
from rorqual.tasks.find import check_gold, load_task, safe_grade, safe_problems
from rorqual.tasks.gym import GymTask
from rorqual.tasks.task import Problem, Split, Task, Verdict

needs_gym = pytest.mark.skipif(
    find_spec("reasoning_gym") is None,
    reason="reasoning-gym is not installed: one of its dependencies needs a C compiler",
)

MINE = """
from rorqual.tasks.task import Problem, Task, Verdict

class Mine(Task):
    name = "mine"

    def __init__(self, top: int = 9) -> None:
        self.top = top

    def problems(self, split, seed):
        for n in range(self.top):
            yield Problem(key=str(n), prompt=f"{n}?", answer=str(n), family="mine")

    def grade(self, problem, reply):
        return Verdict.RIGHT if reply.strip() == problem.answer else Verdict.WRONG
"""


def mine(tmp_path: Path, text: str = MINE) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "spec",
    [
        "families",
        "families:add,kk",
        "gsm8k",
        "math500",
        "folio",
        "knights",
        pytest.param("gym:leg_counting", marks=needs_gym),
    ],
)
def test_each_name_gives_problems_whose_gold_is_right(spec: str) -> None:
    task = load_task(spec)
    problems = list(itertools.islice(safe_problems(task, "test", 0), 10))
    assert problems
    check_gold(task, problems)


def test_options_and_data_reach_the_task(tmp_path: Path) -> None:
    families = load_task("families:add", options={"hard": 1.0})
    assert {(p.family, p.level) for p in itertools.islice(families.problems("train", 0), 9)} == {("add", "hard")}
    assert len(list(load_task("knights", data=SAMPLES / "knights", options={"people": 3}).problems("test", 0))) == 4
    assert len(list(load_task(f"{mine(tmp_path)}:Mine", options={"top": 3}).problems("train", 0))) == 3
    assert len(list(load_task(str(mine(tmp_path))).problems("train", 0))) == 9  # the only class there


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gsm8", "Did you mean 'gsm8k'"),
        ("familes", "Did you mean 'families'"),
        ("gsm8k:add", "unknown task"),
        ("families:ad", "Did you mean 'add'"),
        pytest.param("gym:leg_countin", "Did you mean 'leg_counting'", marks=needs_gym),
        ("nowhere.py:Mine", "no such file"),
    ],
)
def test_an_unknown_name_names_the_nearest(spec: str, said: str) -> None:
    with pytest.raises(RorqualError, match=re.escape(said)):
        load_task(spec)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'hard'"):
        load_task("families", options={"hart": 0.5})
    with pytest.raises(ConfigError, match="reads no files"):
        load_task("families", data=Path("x"))


@pytest.mark.parametrize(
    ("text", "spec", "said"),
    [
        ("import math\n\nx = 1 / 0\n", "Mine", "mine.py:3: importing it raised ZeroDivisionError"),
        ("x = 1\nclass Mine(\n", "Mine", "mine.py:2: importing it raised SyntaxError"),
        ("import sys\nsys.exit(0)\n", "Mine", "mine.py:2: importing it raised SystemExit"),
        (MINE, "Min", "Did you mean 'Mine'"),
        ("class Mine:\n    pass\n", "Mine", "mine.py:1: 'Mine' is not a Task"),
        (MINE.replace("def grade", "def mark"), "Mine", "mine.py:4: 'Mine' does not define grade"),
        (MINE.replace("self.top = top", "raise OSError('disk')"), "Mine", "the constructor raised OSError: disk"),
        (MINE + MINE.replace("Mine", "Other"), "", "does not define exactly one task"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_its_line(text: str, spec: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=re.escape(said)):
        load_task(f"{mine(tmp_path, text)}:{spec}" if spec else str(mine(tmp_path, text)))
    load_task(f"{mine(tmp_path)}:Mine")  # the nearest valid twin


class Odd(Task):
    name = "odd"

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        yield Problem(key="1", prompt="1?", answer="1", family="odd")
        raise KeyError("gone")

    def grade(self, problem: Problem, reply: str) -> Verdict:
        if reply == "number":
            return 1.0  # type: ignore[return-value]
        return Verdict(reply) if reply != "raise" else Verdict.WRONG if problem.meta["none"] else Verdict.RIGHT


def test_a_grader_that_raises_stops_the_run_by_name() -> None:
    problem = next(Odd().problems("train", 0))
    assert safe_grade(Odd(), problem, "wrong") is Verdict.WRONG
    with pytest.raises(TaskError, match=r"task odd: the grader.* raised KeyError: 'none' at .*test_find\.py:\d+"):
        safe_grade(Odd(), problem, "raise")
    with pytest.raises(TaskError, match=r"returned 1\.0, not a Verdict"):
        safe_grade(Odd(), problem, "number")


def test_an_error_below_a_library_call_names_the_users_line(tmp_path: Path) -> None:
    lines = [
        "from pathlib import Path", "from rorqual.tasks.task import Task",
        "class Mine(Task):", "    name = 'mine'", "    def problems(self, split, seed):", "        yield Path('no.txt').read_text()",
        "    def grade(self, problem, reply): ...",
    ]  # fmt: skip
    (tmp_path / "mine.py").write_text("\n".join(lines))
    with pytest.raises(TaskError, match=r"FileNotFoundError.* at .*mine\.py:6\n"):
        next(safe_problems(load_task(f"{tmp_path}/mine.py:Mine"), "train", 0))


def test_a_generator_that_raises_is_named_after_what_it_gave() -> None:
    stream = safe_problems(Odd(), "train", 0)
    assert next(stream).key == "1"
    with pytest.raises(TaskError, match=r"odd.*KeyError"):
        next(stream)


def test_check_gold_refuses_what_its_grader_does_not_accept() -> None:
    task = load_task("families:add")
    good = next(task.problems("train", 0))
    check_gold(task, [good])
    with pytest.raises(DataError, match="graded wrong"):
        check_gold(task, [Problem(key="k", prompt="add 1+1", answer="two", family="add")])


# reasoning-gym


@needs_gym
def test_gym_is_split_by_question_and_deterministic() -> None:
    task = load_task("gym:leg_counting")
    train, test = (list(itertools.islice(task.problems(split, 0), 40)) for split in ("train", "test"))
    assert not {p.key for p in train} & {p.key for p in test}
    assert train == list(itertools.islice(load_task("gym:leg_counting").problems("train", 0), 40))
    assert train != list(itertools.islice(task.problems("train", 1), 40))
    assert [task.grade(p, "no") for p in train] == [Verdict.WRONG] * 40


@needs_gym
def test_gym_scores_the_marked_answer_and_by_the_other_reading_the_last_line() -> None:
    task = load_task("gym:leg_counting")
    problem = next(task.problems("test", 0))
    right, wrong = re.findall("[0-9]+", problem.answer)[0], "1"
    assert problem.prompt.endswith(task.mark.mark_answer("ANSWER")) and task.versions == {task.name: 2}
    for text, verdict in ((right, Verdict.RIGHT), (wrong, Verdict.WRONG)):
        assert task.grade(problem, f"Let me see.\n<answer> {text} </answer>") is verdict
        assert task.grade_last(problem, f"<answer>2</answer>\n{text}") is verdict
        assert task.grade(problem, text) is Verdict.WRONG and not task.is_marked(problem, text)


@needs_gym
def test_gym_refuses_a_dataset_whose_own_gold_does_not_score(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasoning_gym.arithmetic.leg_counting import LegCountingDataset

    monkeypatch.setattr(LegCountingDataset, "score_answer", lambda self, answer, entry: 0.5)
    with pytest.raises(TaskError, match=r"scores 0\.5"):
        GymTask("leg_counting")
    monkeypatch.undo()
    GymTask("leg_counting")


@needs_gym
def test_gym_options_are_checked_by_reasoning_gym() -> None:
    assert GymTask("leg_counting", min_animals=2, max_animals=3)
    with pytest.raises(TaskError, match="gym:leg_counting"):
        GymTask("leg_counting", nonsense=1)


def test_without_reasoning_gym_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(RorqualError, match=re.escape('pip install "rorqual[gym]"')):
        GymTask("leg_counting")
