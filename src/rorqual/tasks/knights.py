"""Knights-and-knaves puzzles in natural language, for 3 to 7 people, with step traces (Xie et al., 2024; files of Logic-RL, 2025)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import DataRow
from rorqual.tasks.answer_marks import TAG
from rorqual.tasks.file_task import SAMPLES, FileTask, carve_dev_split, rows_of_split
from rorqual.tasks.marked_task import VERSION, MarkedTask
from rorqual.tasks.task import Problem, Split

REST = re.compile(r"\band\b|\([0-9]\)|\b[0-9][.)]|[\s.,;:*|_-]")
"""A pattern for the text that is allowed between statements of roles: punctuation, list numbers, and the word `and`."""


class Knights(FileTask, MarkedTask):
    """Problems from rows with `quiz`, `names`, `solution`, `statements` and a trace (`cot_head`, `cot_repeat_steps`,
    `cot_foot`).

    The prompt asks for the mark `<answer>NAME is a knight. NAME is a knave.</answer>`. A reply is right if its last marked
    answer states the right role of each person exactly once, in the form of this mark. The order of the persons does not
    matter. With `read=last`, the last stated role of each person in the reply is graded.

    `data` is one file, or a folder with `*train*` and `*test*` files. If `data` is None, the packaged sample is used.
    `people` selects problems by their number of people. The key of a problem is the structure of the statements, without names.
    """

    name = "knights"
    mark = TAG
    patterned = True

    def __init__(self, data: Path | None = None, people: int | Sequence[int] = ()) -> None:
        super().__init__(data or SAMPLES / "knights")
        self.people = (people,) if isinstance(people, int) else tuple(people)

    def load(self, split: Split) -> list[Problem]:
        problems = [self._problem(row, split) for row in rows_of_split(self.data, split)]
        selected = [(p.key, p) for p in problems if not self.people or len(p.meta["names"]) in self.people]
        return carve_dev_split(selected, split)

    def _problem(self, row: DataRow, split: Split) -> Problem:
        names, solution = row.text_values("names"), row.get("solution", list)
        usable = len(names) == len(solution) > 0 and all(isinstance(truth, bool) for truth in solution)
        if not usable and split == "train":
            raise DataError(
                "the solution does not give each name a role", where=row.where, remedy="Fix or remove the row."
            )
        facts = [f"{name} is a {'knight' if truth else 'knave'}." for name, truth in zip(names, solution)]
        trace = [row.get("cot_head"), *row.text_values("cot_repeat_steps"), row.get("cot_foot")]
        return Problem(
            key=f"knights {row.get('statements')}",
            prompt=self.mark.prompt_for_mark(row.get("quiz"), "NAME is a knight. NAME is a knave."),
            answer=self.mark.mark_answer(" ".join(facts) if usable else ""),
            family="knights",
            level=f"{len(names)} people",
            steps="\n".join(line.strip() for line in trace),
            meta={"where": row.where, "names": tuple(names), "solution": tuple(solution) if usable else None},
            version=VERSION,
        )

    def parse_answer(self, problem: Problem, text: str) -> tuple[bool, ...] | None:
        """Return, for each person of the problem, whether the person is a knight. Return None if `text` does not state one role
        per person, or contains other words."""
        stated = stated_roles(problem, text)
        rest = _statement_pattern(problem).sub("", text)
        once = len(stated) == len(set(stated)) == len(problem.meta["names"])
        return _last_role_per_person(problem, stated) if once and not REST.sub("", rest) else None

    def parse_last_answer(self, problem: Problem, reply: str) -> tuple[bool, ...] | None:
        return _last_role_per_person(problem, stated_roles(problem, reply))

    def label(self, problem: Problem) -> str:
        """Return the roles of the gold answer without the people's names, because the names differ between problems."""
        return str(problem.meta["solution"])


def _statement_pattern(problem: Problem) -> re.Pattern[str]:
    names = "|".join(map(re.escape, sorted(problem.meta["names"], key=len, reverse=True)))
    return re.compile(rf"(?<!\w)({names})[\s:=*|-]{{1,6}}(?:is )?(?:an? )?\*{{0,2}}(knight|knave)(?!\w)", re.IGNORECASE)


def stated_roles(problem: Problem, text: str) -> list[tuple[str, bool]]:
    """Return each statement of a role in `text` as (name, whether a knight), such as ("zoey", True) for `Zoey is a knight` or `Zoey: knight`."""
    return [(match[1].lower(), match[2].lower() == "knight") for match in _statement_pattern(problem).finditer(text)]


def _last_role_per_person(problem: Problem, stated: Sequence[tuple[str, bool]]) -> tuple[bool, ...] | None:
    """Return the last stated role of each person, in the order of the problem's names, or None if no role is stated for a
    person."""
    last = dict(stated)
    names = [name.lower() for name in problem.meta["names"]]
    return tuple(last[name] for name in names) if all(name in last for name in names) else None
