"""Knights tell the truth and knaves lie: puzzles with three people, solved by trying the eight cases in order."""

from __future__ import annotations

import random
from itertools import combinations, permutations, product
from typing import ClassVar, NamedTuple

from rorqual.tasks.families.family import Family
from rorqual.tasks.task import Problem

PEOPLE = "ABC"
MIXED = tuple(case for case in product((1, 0), repeat=3) if 0 < sum(case) < 3)
"""The cases (1 knight, 0 knave) with both knights and knaves. Only a case with both can be a solution about three people."""


class RoleLiteral(NamedTuple):
    """An atomic statement: `A` states that A is a knight, and `-A` states that A is a knave."""

    person: int
    knight: bool

    def is_true_in(self, case: tuple[int, ...]) -> bool:
        """Return whether the literal is true in `case`."""
        return bool(case[self.person]) == self.knight


class SpeakerStatement(NamedTuple):
    """A statement of `speaker`: one literal (`op` empty), or two joined by `&` (and), `|` (or), `=` (both or neither)."""

    speaker: int
    op: str
    parts: tuple[RoleLiteral, ...]

    def is_true_in(self, case: tuple[int, ...]) -> bool:
        """Return whether the statement is true in `case`."""
        truth = [part.is_true_in(case) for part in self.parts]
        return any(truth) if self.op == "|" else truth[0] == truth[-1] if self.op == "=" else all(truth)

    def can_be_made_in(self, case: tuple[int, ...]) -> bool:
        """Return whether the speaker can make the statement in `case`. Knights make true statements, and knaves make
        false statements."""
        return self.is_true_in(case) == bool(case[self.speaker])

    def text(self, names: str = PEOPLE) -> str:
        """Return the statement in the notation of the prompt, such as `A:B&-C`."""
        return f"{names[self.speaker]}:" + self.op.join(("" if p.knight else "-") + names[p.person] for p in self.parts)

    def rename_people(self, order: tuple[int, ...]) -> SpeakerStatement:
        """Rename each person p to `order[p]`, and sort the parts of the statement, because A&B equals B&A."""
        parts = sorted(RoleLiteral(order[part.person], part.knight) for part in self.parts)
        return SpeakerStatement(order[self.speaker], self.op, tuple(parts))


SIMPLE = tuple(("", (RoleLiteral(p, k),)) for p in range(3) for k in (True, False))
PAIRED = tuple(
    (op, (RoleLiteral(p, j), RoleLiteral(q, k)))
    for op in "&|="
    for p, q in combinations(range(3), 2)
    for j in (True, False)
    for k in (True, False)
)


SHORT = tuple(
    SpeakerStatement(speaker, op, parts[::way])
    for speaker in range(2)
    for op, parts in (*SIMPLE, *PAIRED)
    for way in ((1, -1) if op else (1,))
    if all(part.person < 2 for part in parts) and (op or parts[0].person != speaker)
)
"""All statements of A and B about A and B. A plain problem has one or two of them."""

STATEMENTS = {1: (3, 2), 2: (4, 2), 3: (4, 4), 4: (5, 5)}
"""For each difficulty: the number of statements, and the number of statements that have two parts.

If all statements have one part, no solution is unique, because flipping every role gives another solution.
"""


SIZES = {1: 912, 2: 8_457, 3: 96_015, 4: 1_680_498}
"""For each difficulty, a lower bound of the number of keys: the number of sets of statements with one solution, divided by the
six ways to name the people. The sets with one solution were counted by trying all sets of statements."""


class KnightsKnaves(Family):
    """Knights and knaves: find the role of A, B and C, for example `100`. 1 is a knight, and 0 is a knave.

    In `kk A:B|-C B:-A C:A=B`, A says "B is a knight or C is a knave", B says "A is a knave", and C says "A and B have
    the same role". The steps are `111:10x110:10x101:0x100:100 =100`. In this example, the steps try the cases `111`,
    `110`, `101` and `100`. The truth values of the statements follow each case. `x` ends a case in which the truth
    value of a statement does not fit the role of the speaker. `STATEMENTS` holds the number of statements for each difficulty.
    Each person makes at least one statement. Exactly one case fits all statements, and this case has both knights and knaves.
    Plain problems are about A and B alone, and 11 and 00 may be their solution.
    Problems that differ only in the names of people or the order of statements share one key.

    Version 1 also had the solutions 111 and 000. A low number of minus signs revealed these solutions. In version 1,
    knights made fewer statements with `&`, and A always spoke first.
    """

    name: ClassVar[str] = "kk"
    easy: ClassVar[range] = range(1, 3)
    hard: ClassVar[range] = range(3, 5)
    numeric: ClassVar[bool] = False

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        if not difficulty:
            return self._puzzle(0, _plain_statements(rng), people=2)
        solution = rng.choice(MIXED)
        statements = _random_statements(rng, difficulty, solution)
        while len(statements) != len(set(map(_sort_statement_parts, statements))) or _solutions(statements) != [
            solution
        ]:
            statements = _random_statements(rng, difficulty, solution)
        rng.shuffle(statements)
        return self._puzzle(difficulty, statements, people=3)

    def _puzzle(self, difficulty: int, statements: list[SpeakerStatement], people: int) -> Problem:
        prompt, steps = " ".join(s.text() for s in statements), _steps(statements, people)
        return self.problem(
            difficulty,
            key=_canonical_key(statements),
            prompt=prompt,
            steps=steps,
            answer=steps.rpartition("=")[2],
        )

    def count_keys(self, difficulty: int) -> int:
        return SIZES[difficulty]


def _plain_statements(rng: random.Random) -> list[SpeakerStatement]:
    """Return one or two statements of `SHORT` that have one solution."""
    statements: list[SpeakerStatement] = []
    while len(_solutions(statements, people=2)) != 1:
        statements = rng.sample(SHORT, rng.randint(1, 2))
    return statements


def _random_statements(rng: random.Random, difficulty: int, solution: tuple[int, ...]) -> list[SpeakerStatement]:
    total, paired = STATEMENTS[difficulty]
    speakers = [0, 1, 2] + [rng.randrange(3) for _ in range(total - 3)]
    chosen = set(rng.sample(range(total), paired))
    return [_statement(rng, speaker, i in chosen, solution) for i, speaker in enumerate(speakers)]


def _statement(rng: random.Random, speaker: int, paired: bool, solution: tuple[int, ...]) -> SpeakerStatement:
    """Return a random statement that `speaker` can make in the case `solution`. The statement's `op` is chosen
    independently of the case."""
    op = rng.choice("&|=") if paired else ""
    forms = [parts for operator, parts in (PAIRED if paired else SIMPLE) if operator == op]
    while True:
        parts = rng.choice(forms)
        statement = SpeakerStatement(speaker, op, parts[::-1] if rng.random() < 0.5 else parts)
        if statement.can_be_made_in(solution) and (paired or parts[0].person != speaker):
            return statement


def _solutions(statements: list[SpeakerStatement], people: int = 3) -> list[tuple[int, ...]]:
    return [case for case in product((1, 0), repeat=people) if all(s.can_be_made_in(case) for s in statements)]


def _sort_statement_parts(statement: SpeakerStatement) -> SpeakerStatement:
    return statement.rename_people((0, 1, 2))


def _canonical_key(statements: list[SpeakerStatement]) -> str:
    """Return the key: the smallest of six texts, one for each way to name the people, with sorted statements."""
    least = min(sorted(s.rename_people(order) for s in statements) for order in permutations(range(3)))
    return " ".join(s.text() for s in least)


def _steps(statements: list[SpeakerStatement], people: int) -> str:
    out = ""
    for case in product((1, 0), repeat=people):
        out += "".join(map(str, case)) + ":"
        for s in statements:
            out += str(int(s.is_true_in(case)))
            if not s.can_be_made_in(case):
                out += "x"
                break
        else:
            return f"{out} ={''.join(map(str, case))}"
    raise AssertionError("no case fits the statements of a sampled problem")
