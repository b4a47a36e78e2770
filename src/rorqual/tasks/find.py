"""Load a task by name or from a user's file, and call the task's methods so that errors name the task."""

from __future__ import annotations

import inspect
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from rorqual.core.errors import ConfigError, DataError, RorqualError, TaskError, suggest_name
from rorqual.core.registry import find_kinds
from rorqual.core.user_code import import_file
from rorqual.tasks.everyday import EverydayMixture
from rorqual.tasks.examples import ExamplesTask
from rorqual.tasks.families import Families
from rorqual.tasks.folio import Folio
from rorqual.tasks.gsm8k import Gsm8k
from rorqual.tasks.gym import GymTask
from rorqual.tasks.knights import Knights
from rorqual.tasks.long_text import LongTextTask
from rorqual.tasks.math500 import Math500
from rorqual.tasks.messages import Messages
from rorqual.tasks.openai_graders import OpenAITask
from rorqual.tasks.task import Problem, Split, Task, Verdict

TASKS_BY_NAME: Mapping[str, Callable[..., Task]] = {
    "families": Families, "long": LongTextTask, "gsm8k": Gsm8k, "math500": Math500, "folio": Folio, "knights": Knights,
    "messages": Messages, "everyday": EverydayMixture, "examples": ExamplesTask,
    "openai": OpenAITask,
}  # fmt: skip
SPLITS: tuple[Split, Split] = ("train", "test")


def load_task(spec: str, *, data: Path | None = None, options: Mapping[str, Any] | None = None) -> Task:
    """Return the task that `spec` names: `families`, `families:add,sub`, `gsm8k`, `messages`, `gym:NAME`, the `name` of a task of
    a plug-in, or `./mine.py:Class`.

    If the task reads files, `data` is the file or folder that it reads. `options` are the arguments of the task's constructor
    except `data`.

    Raises ConfigError for an unknown name or option, and DataError for bad files.
    Raises TaskError, with file and line, if a user's file cannot be loaded.
    """
    given: dict[str, Any] = dict(options or {})
    path, _, name = spec.rpartition(":") if ".py:" in spec else (spec, "", "")
    if path.endswith(".py"):
        return _build(_load_class(Path(path), name), spec, given, data)
    kind, _, argument = spec.partition(":")
    known = {} if kind in (*TASKS_BY_NAME, "gym") else find_kinds(Task, kind)  # type: ignore[type-abstract]
    plugins = {name: cls for name, cls in known.items() if not cls.__module__.startswith("rorqual.")}
    if spec in plugins:
        return _build(plugins[spec], spec, given, data)
    if kind == "gym" and argument:
        return _build(GymTask, spec, {"dataset": argument, **given}, data)
    if kind not in TASKS_BY_NAME or (argument and kind not in ("families", "long")):
        raise ConfigError(
            f"unknown task '{spec}'",
            where="task",
            remedy=suggest_name(kind, [*TASKS_BY_NAME, *plugins, "gym:NAME"]) + " Or give ./mine.py:Class.",
        )
    if argument:
        given["names"] = tuple(name.strip() for name in argument.split(","))
    return _build(TASKS_BY_NAME[kind], spec, given, data)


def _build(make: Callable[..., Task], spec: str, options: dict[str, Any], data: Path | None) -> Task:
    parameters = inspect.signature(make).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if data is not None:
        if "data" not in parameters:
            raise ConfigError(f"task '{spec}' reads no files", where="data", remedy="Remove data=.")
        options["data"] = Path(data)
    elif "data" in parameters and parameters["data"].default is inspect.Parameter.empty and "data" not in options:
        raise ConfigError(f"task '{spec}' needs a file", where="data", remedy="Give data=FILE.")
    for name in options:
        if name not in parameters and not takes_any:
            raise ConfigError(
                f"task '{spec}' has no option '{name}'", where="task", remedy=suggest_name(name, parameters)
            )
    try:
        task = make(**options)
    except RorqualError:
        raise
    except Exception as error:  # a user's constructor may raise any exception; the error names the task
        raise wrap_user_error(error, f"task {spec}", "the constructor") from error
    return task


def _load_class(path: Path, name: str) -> Callable[..., Task]:
    module = import_file(path, TaskError)
    tasks = {
        key: value for key, value in vars(module).items() if _is_task(value) and value.__module__ == module.__name__
    }
    if not name:
        if len(tasks) != 1:
            raise TaskError(
                "the file does not define exactly one task",
                where=str(path),
                remedy=f"Name the class: {path}:Class. {suggest_name('', tasks)}".strip(),
            )
        name = next(iter(tasks))
    cls = getattr(module, name, None)
    if cls is None:
        raise TaskError(
            f"the file has no class '{name}'",
            where=str(path),
            remedy=suggest_name(name, tasks) or "Define the class in this file.",
        )
    where = f"{path}:{_source_line(cls)}"
    if not _is_task(cls):
        raise TaskError(f"'{name}' is not a Task", where=where, remedy="Write `class Mine(rorqual.tasks.task.Task)`.")
    if missing := sorted(cls.__abstractmethods__):
        raise TaskError(
            f"'{name}' does not define {', '.join(missing)}", where=where, remedy="Define the missing methods."
        )
    constructor: Callable[..., Task] = cls
    return constructor


def _is_task(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Task) and value is not Task


def _source_line(value: Any) -> int:
    try:
        return inspect.getsourcelines(value)[1]
    except (OSError, TypeError):
        return 1


def wrap_user_error(error: Exception, where: str, doing: str) -> TaskError:
    """Wrap an exception from a user's code in a TaskError that names the innermost file and line outside Python and its packages."""
    frames = traceback.extract_tb(error.__traceback__)
    installed = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    own = [frame for frame in frames if not frame.filename.startswith(installed)]
    place = "".join(f" at {frame.filename}:{frame.lineno}" for frame in (own or frames)[-1:])
    return TaskError(
        f"{doing} raised {type(error).__name__}: {error}{place}",
        where=where,
        remedy="Fix this line. A failure cannot count as an answer or as a score.",
    )


def safe_grade(task: Task, problem: Problem, reply: str, *, read: Literal["marked", "last"] = "marked") -> Verdict:
    """Call `task.grade`, or `task.grade_last` with `read="last"`.

    Raises TaskError with the task's name if the grader raises an exception or does not return a `Verdict`.
    """
    try:
        verdict = task.grade(problem, reply) if read == "marked" else task.grade_last(problem, reply)
    except RorqualError:
        raise
    except Exception as error:  # a failing grader must stop the run, never score 0
        where = problem.meta.get("where") or f"problem {shorten(problem.key, 80, placeholder='...')!r}"
        raise wrap_user_error(error, f"task {task.name}", f"the grader, on {where},") from error
    if not isinstance(verdict, Verdict):
        raise TaskError(
            f"the grader returned {verdict!r:.40}, not a Verdict",
            where=f"task {task.name}",
            remedy="Return Verdict.RIGHT or .WRONG.",
        )
    return verdict


def safe_problems(task: Task, split: Split, seed: int) -> Iterator[Problem]:
    """Yield from `task.problems`. Raises TaskError with the task's name if `task.problems` raises an exception that is not a
    RorqualError.

    Raises TaskError for a problem with a field of the wrong type or an empty prompt.
    """
    try:
        for problem in task.problems(split, seed):
            _check_problem(task, problem)
            yield problem
    except RorqualError:
        raise
    except Exception as error:  # a user's generator may raise any exception
        raise wrap_user_error(error, f"task {task.name}", f"problems({split!r}, {seed})") from error


KEYS, KEY_SECONDS = 1_000, 10.0
"""`check_splits` compares the keys of `KEYS` problems of each split. After `KEY_SECONDS` seconds of processor time,
`check_splits` draws no more problems."""


def check_splits(task: Task, seed: int) -> None:
    """Raise TaskError if a user's task yields a problem in both the train and the
    test split. A task that yields a problem in both splits probably ignores the argument `split`.

    Tasks of files, notebooks and other packages are checked, not Rorqual's own tasks. A task that lacks a train or a test split
    passes the check.
    """
    if type(task).__module__.startswith("rorqual."):
        return
    train, test = (_first_problem_keys(task, split, seed) for split in SPLITS)
    if both := sorted(train & test):
        raise TaskError(
            f"{len(both):,} of the first {len(test):,} test problems are also in the train split, such as {both[0]!r:.60}",
            where=f"task {task.name}",
            remedy="Let problems(split, seed) yield only the problems of its split: if split_of(key) == split. "
            "Otherwise the accuracy does not show what the model does with new problems.",
        )


def _first_problem_keys(task: Task, split: Split, seed: int) -> set[str]:
    began, keys = time.process_time(), set[str]()
    try:
        for problem in islice(safe_problems(task, split, seed), KEYS):
            keys.add(problem.key)
            if time.process_time() - began > KEY_SECONDS / 2:
                break
    except RorqualError:  # a task for evaluation only may lack a train split
        return set()
    return keys


TEXTS = ("key", "prompt", "answer", "family", "level")


def _check_problem(task: Task, problem: Problem) -> None:
    where, remedy = f"task {task.name}", "Yield Problem(...)."
    if not isinstance(problem, Problem):
        raise TaskError(f"the generator yielded {problem!r:.40}, not a Problem", where=where, remedy=remedy)
    wrong = [name for name in TEXTS if not isinstance(getattr(problem, name), str)]
    wrong += ["steps"] if not isinstance(problem.steps, str | None) else []
    if wrong:
        value = getattr(problem, wrong[0])
        raise TaskError(
            f"`{wrong[0]}` of the problem {problem.key!r:.60} is {value!r:.40}, not a string",
            where=problem_location(task, problem),
            remedy=remedy,
        )
    if not problem.prompt.strip():
        raise TaskError(
            f"the problem {problem.key!r:.60} has an empty prompt",
            where=problem_location(task, problem),
            remedy="Give the problem a prompt.",
        )


def problem_location(task: Task, problem: Problem) -> str:
    """Return where a problem comes from: the file and line of the problem, or the task's name."""
    return str(problem.meta.get("where", f"task {task.name}"))


def refuse_empty_answer(task: Task, problem: Problem) -> None:
    """Raise DataError for a gold answer of only white space. An empty gold answer would train the model to give empty
    replies."""
    if not problem.answer.strip():
        raise DataError(
            f"the problem {problem.key!r:.60} has an empty answer",
            where=problem_location(task, problem),
            remedy="Give the problem an answer.",
        )


def check_gold(task: Task, problems: Iterable[Problem]) -> None:
    """Raise DataError if the grader does not accept the gold answer of a problem. No model could learn to solve this
    problem."""
    for problem in problems:
        refuse_empty_answer(task, problem)
        verdict = safe_grade(task, problem, problem.answer)
        if verdict is not Verdict.RIGHT:
            raise DataError(
                f"the gold answer {problem.answer!r:.60} is graded {verdict.value} (problem {problem.key!r:.60})",
                where=problem_location(task, problem),
                remedy="Fix or remove the problem, or fix the grader.",
            )
