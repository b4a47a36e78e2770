"""GSM8K: grade-school mathematics with worked solutions (Cobbe et al., 2021)."""

from __future__ import annotations

import re
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.tasks.answer import final_number, marked, whole_number
from rorqual.tasks.base import Problem, Split, Verdict
from rorqual.tasks.rows import SAMPLES, FileTask, Row, carve, held_out, normal, read

CALCULATOR = re.compile(r"<<[^>]*>>")


class Gsm8k(FileTask):
    """Rows `question`, `answer`; the answer's last line is `#### NUMBER`, and what stands before it are the steps.

    `data` is a folder with `train.jsonl` and `test.jsonl` or one file; None is the sample of the package. A gold answer that is
    no number is refused in training (`DataError`) and ungraded in evaluation.

    The answer of a reply is the last number of what it marks as such (`#### 7`, `the answer is 7`, `\\boxed{7}`). Where it marks none,
    it is the last number of the whole reply; with `strict` such a reply is wrong.
    """

    name = "gsm8k"

    def __init__(self, data: Path | None = None, strict: bool = False) -> None:
        super().__init__(data or SAMPLES / "gsm8k")
        self.strict = strict

    def load(self, split: Split) -> list[Problem]:
        paths = held_out(self.data, split, {"train": "train", "test": "test"})
        found = [self._problem(row, split) for path in paths for row in read(path)]
        return carve([(p.key, p) for p in found], split)

    def _problem(self, row: Row, split: Split) -> Problem:
        question = row.get("question")
        steps, _, gold = row.get("answer").rpartition("####")
        number = whole_number(gold)
        if number is None and split == "train":
            raise DataError(
                f"no number after '####': {gold.strip()!r:.40}", where=row.where, remedy="Mend or delete the row."
            )
        return Problem(
            key=f"gsm8k {normal(question)}",
            prompt=question,
            answer=gold.strip() if number is None else gold.strip().replace(",", ""),
            family="gsm8k",
            steps=CALCULATOR.sub("", steps).strip() or None,
            meta={"where": row.where},
        )

    def grade(self, problem: Problem, reply: str) -> Verdict:
        gold = whole_number(problem.answer)
        if gold is None:
            return Verdict.UNGRADED
        said = marked(reply) if self.strict else reply
        return Verdict.RIGHT if said is not None and final_number(said) == gold else Verdict.WRONG
