"""A generator that does not yield, or yields what is no problem, ends in an error by the task's name, and never in silence."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rorqual.core.errors import DataError, RorqualError, TaskError
from rorqual.tasks.find import safe_problems
from rorqual.tasks.task import Problem, Split, Task, Verdict
from rorqual.tasks.watch import watched
from rorqual.train.sources.worked import opening, repeat


class Made(Task):
    """A task whose generator is given."""

    name, patience = "made", 0.3

    def __init__(self, how: str) -> None:
        self.how = how

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        numbers = itertools.count(seed * 100)
        match self.how:
            case "loops":
                while True:
                    pass
            case "stops yielding":
                yield from (problem(n) for n in range(3))
                while any(True for _ in range(9)):
                    pass
            case "swallows":
                while True:
                    try:
                        time.sleep(0)
                    except Exception:
                        continue
            case "none":
                return
            case "none after the first pass" if seed:
                return
            case "one again and again":
                yield from itertools.repeat(problem(seed))
            case _:
                yield from (problem(n) for n in itertools.islice(numbers, 3))

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT


def problem(n: int, **changes: object) -> Problem:
    return Problem(**({"key": str(n), "prompt": f"{n}?", "answer": str(n), "family": "f"} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("loops", r"task made: the generator used over 0.3 CPU seconds .*\(0 problems so far\)(?s:.)*patience"),
        ("stops yielding", r"task made: .*\(3 problems so far\)"),
        ("swallows", r"task made: .*\(0 problems so far\)"),
        ("none", "task made: the train split is empty"),
        ("one again and again", "task made: the first 64 problems of the train split are all the same: '0'"),
    ],
)
def test_a_generator_that_gives_too_little_is_named(how: str, said: str) -> None:
    with pytest.raises(RorqualError, match=said):
        opening(Made(how), 0, 64)


def test_few_problems_begin_again_and_none_end() -> None:
    assert [p.key for p in itertools.islice(repeat(Made("few"), 0), 5)][:3] == ["0", "1", "2"]
    with pytest.raises(DataError, match="task made: the train split is empty for seed 7919"):
        list(itertools.islice(repeat(Made("none after the first pass"), 0), 5))


def test_a_wait_is_said_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """What waits, for a network or a slow disk, takes no processor: it is told of, and never stopped."""
    told = threading.Event()

    def waits() -> Iterator[int]:
        yield 1
        for _ in range(100_000):
            if "no problem for" in "".join(said):
                break
            told.wait(0.005)
            said.append(capsys.readouterr().err)
        yield 2

    said: list[str] = []
    assert list(watched("slow", waits(), 1e9, say=0.05)) == [1, 2]
    assert "task slow: no problem for" in "".join(said) and "(1 so far); press Ctrl-C to stop" in "".join(said)


def test_a_kept_generator_takes_no_one_elses_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Between two problems the time is the trainer's."""
    given = watched("kept", iter(range(3)), 0.05, say=0.05)
    assert next(given) == 0
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass
    assert list(given) == [1, 2] and not capsys.readouterr().err


LOOPS = """
import signal
from rorqual.tasks.watch import watched

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it

def loops():
    print("begun", flush=True)
    while True:
        pass
    yield 0

try:
    next(watched("loops", loops(), 1e9))
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_ctrl_c_is_ctrl_c() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOOPS], stdout=subprocess.PIPE, text=True, restore_signals=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "stopped\n"


class Wrong(Made):
    """Its second problem has a fault."""

    def __init__(self, **changes: object) -> None:
        self.changes = changes

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        yield problem(1)
        yield problem(2, **self.changes)


@pytest.mark.parametrize("key", ["key", "prompt", "answer", "family", "level", "steps"])
@pytest.mark.parametrize("value", [3, ["a"], {"a": 1}, b"a"])
def test_a_field_of_another_type_is_named(key: str, value: object) -> None:
    with pytest.raises(TaskError, match=f"task made: `{key}` of the problem .* not a string"):
        list(safe_problems(Wrong(**{key: value}), "train", 0))


def test_an_empty_prompt_and_to_learn_from_an_empty_answer_are_named() -> None:
    for text in ("", " \n", "\u3000"):
        with pytest.raises(TaskError, match="file:3: the problem '2' has an empty prompt"):
            list(safe_problems(Wrong(prompt=text, meta={"where": "file:3"}), "train", 0))
        wrong = Wrong(answer=text)
        assert len(list(safe_problems(wrong, "test", 0))) == 2, "an evaluation counts it as ungraded"
        for learn in (
            lambda wrong=wrong: opening(wrong, 0, 9),
            lambda wrong=wrong: list(itertools.islice(repeat(wrong, 0), 4)),
        ):
            with pytest.raises(DataError, match="task made: the problem '2' has an empty answer"):
                learn()
