"""Knights-and-knaves puzzles in natural language, for 3 to 7 people, with step traces (Xie et al., 2024; files of Logic-RL, 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import DataRow, read_rows
from rorqual.tasks.base import Problem, Split, Verdict
from rorqual.tasks.roles import by_pronoun, roles
from rorqual.tasks.rows import SAMPLES, FileTask, carve, held_out


class Knights(FileTask):
    """Problems from rows with `quiz`, `names`, `solution`, `statements` and a trace (`cot_head`, `cot_repeat_steps`, `cot_foot`).

    A reply is right if it gives each person the right role (see `rorqual.tasks.roles`).
    The parser accepts sentences, `Name: role`, tables, JSON and bold text.
    The parser skips questions, suppositions, claims by people in the puzzle, and the cases of a case analysis.
    The last statement about a person counts. The reply is wrong if a person has no role, two roles or an open role ("a knight or a knave").
    Such a reply is ungraded, not wrong, if one of its sentences gives roles to both "he" and "she".

    `data` is one file, or a folder with `*train*` and `*test*` files. If `data` is None, the packaged sample is used.
    `people` selects problems by their number of people. The key of a problem is the structure of the statements, without names.
    """

    name = "knights"
    patterned = True

    def __init__(self, data: Path | None = None, people: int | Sequence[int] = ()) -> None:
        super().__init__(data or SAMPLES / "knights")
        self.people = (people,) if isinstance(people, int) else tuple(people)

    def load(self, split: Split) -> list[Problem]:
        paths = held_out(self.data, split, {"train": "train", "test": "test"})
        problems = [self._problem(row, split) for path in paths for row in read_rows(path)]
        selected = [(p.key, p) for p in problems if not self.people or len(p.meta["names"]) in self.people]
        return carve(selected, split)

    def _problem(self, row: DataRow, split: Split) -> Problem:
        names, solution = row.texts("names"), row.get("solution", list)
        usable = len(names) == len(solution) > 0 and all(isinstance(truth, bool) for truth in solution)
        if not usable and split == "train":
            raise DataError(
                "the solution does not give each name a role", where=row.where, remedy="Fix or remove the row."
            )
        facts = [f"{name} is a {'knight' if truth else 'knave'}" for name, truth in zip(names, solution)]
        trace = [row.get("cot_head"), *row.texts("cot_repeat_steps"), row.get("cot_foot")]
        return Problem(
            key=f"knights {row.get('statements')}",
            prompt=row.get("quiz"),
            answer="\n".join(facts),
            family="knights",
            level=f"{len(names)} people",
            steps="\n".join(line.strip() for line in trace),
            meta={"where": row.where, "names": tuple(names), "solution": tuple(solution) if usable else None},
        )

    def grade(self, problem: Problem, reply: str) -> Verdict:
        """Return RIGHT if the reply gives each person the right role.

        The numbering and the order of the people do not matter.
        """
        solution = problem.meta["solution"]
        if solution is None:
            return Verdict.UNGRADED
        stated = roles(reply, problem.meta["names"])
        if stated is None and by_pronoun(reply, problem.meta["names"]):
            return Verdict.UNGRADED
        return Verdict.RIGHT if stated == tuple(solution) else Verdict.WRONG

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        stated = roles(reply, problem.meta["names"])
        return None if stated is None else str(stated)

    def label(self, problem: Problem) -> str:
        """Return the roles without the names, because the names differ between problems."""
        return str(problem.meta["solution"])
