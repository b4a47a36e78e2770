"""MATH-500: competition mathematics (Hendrycks et al., 2021; the 500 problems of Lightman et al., 2023)."""

from __future__ import annotations

import re
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import DataRow, read_rows
from rorqual.tasks.answer_marks import BOXED, last_line, unwrap_answer
from rorqual.tasks.expressions import import_math_verify, verify_latex
from rorqual.tasks.file_task import SAMPLES, FileTask, files_whose_name_contains, normalize_text
from rorqual.tasks.marked_task import VERSION, MarkedTask
from rorqual.tasks.task import Problem, Split, Verdict

FORMULA = re.compile(
    r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]|(?<![\w.,/])(-?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?)(?!\w)",
    re.DOTALL,
)
"""A pattern for a formula, or for a number outside formulas."""


class Math500(FileTask, MarkedTask):
    """MATH-500 problems for evaluation, from rows with `problem`, `answer` (LaTeX), `solution`, `subject` and `level`.

    The prompt asks for the mark `\\boxed{EXPRESSION}`. A reply is right if its last box equals the gold answer (see
    `rorqual.tasks.expressions`). Several boxes that are joined by "and" or a comma count as one list. Decimals are compared
    exactly:
    0.333333 is not 1/3. Units are compared only if the gold answer and the reply both have a unit. With `read=last`, the last
    box, formula or number of the reply is graded.

    `data` is one file, or a folder with a file `*test*.jsonl`. If `data` is None, the packaged sample is used.
    If the gold answer does not parse, every reply is ungraded.
    Raises DataError for any split but test, because the MATH-500 problems are for evaluation.
    """

    name = "math500"
    mark = BOXED

    def __init__(self, data: Path | None = None, timeout: int = 5) -> None:
        super().__init__(data or SAMPLES / "math500")
        import_math_verify()  # if math-verify is missing, raise before anything is generated
        self.timeout = timeout

    def load(self, split: Split) -> list[Problem]:
        if split != "test":
            raise DataError(
                f"MATH-500 has no split '{split}': it is for evaluation only",
                where=str(self.data),
                remedy="Use split=test, or train on another task.",
            )
        return [self._problem(row) for path in files_whose_name_contains(self.data, "test") for row in read_rows(path)]

    def _problem(self, row: DataRow) -> Problem:
        return Problem(
            key=f"math500 {normalize_text(row.get('problem'))}",
            prompt=self.mark.prompt_for_mark(row.get("problem"), "EXPRESSION"),
            answer=self.mark.mark_answer(row.get("answer")),
            family=row.get("subject") if "subject" in row.values else "math500",
            level=str(row.values.get("level", "")),
            steps=row.values.get("solution"),
            meta={"where": row.where},
            version=VERSION,
        )

    def parse_answer(self, problem: Problem, text: str) -> str | None:
        """Return the marked LaTeX text with single spaces. Majority votes compare these LaTeX texts, so 1/2 and 0.5 are
        different votes."""
        return " ".join(text.split()) or None

    def parse_last_answer(self, problem: Problem, reply: str) -> str | None:
        found = [(match.end(), match[match.lastindex or 0]) for match in FORMULA.finditer(reply)]
        found += [(box.end, box.text) for box in self.mark.find_all(reply)]
        return self.parse_answer(problem, unwrap_answer(max(found)[1] if found else last_line(reply)))

    def compare_with_gold(self, problem: Problem, gold: str, value: str) -> Verdict:
        return verify_latex(gold, value, timeout=self.timeout)
