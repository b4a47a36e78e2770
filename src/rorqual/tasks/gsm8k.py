"""GSM8K: grade-school mathematics with worked solutions (Cobbe et al., 2021)."""

from __future__ import annotations

import re
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import DataRow
from rorqual.tasks.answer_marks import HASHES, first_sentence
from rorqual.tasks.file_task import SAMPLES, FileTask, carve_dev_split, normalize_text, rows_of_split
from rorqual.tasks.marked_task import VERSION, MarkedTask
from rorqual.tasks.numbers import Number, last_number, read_number, read_unitless_number
from rorqual.tasks.task import Problem, Split, Verdict

CALCULATOR = re.compile(r"<<[^>]*>>")


class Gsm8k(FileTask, MarkedTask):
    """GSM8K problems from rows with `question` and `answer`. `answer` holds the solution steps and then the line `#### NUMBER`.

    `data` is one file, or a folder with `train.jsonl` and `test.jsonl`. If `data` is None, the packaged sample is used.
    A gold answer that is not a number raises DataError in training. In evaluation, replies to its problem are ungraded.

    The prompt asks for the mark `#### NUMBER`. A reply is right if its last marked answer is exactly the gold number
    (see `rorqual.tasks.numbers`). A unit may follow the number. With `read=last`, the last number in the reply is graded.
    """

    name = "gsm8k"
    mark = HASHES

    def __init__(self, data: Path | None = None) -> None:
        super().__init__(data or SAMPLES / "gsm8k")

    def load(self, split: Split) -> list[Problem]:
        problems = [self._problem(row, split) for row in rows_of_split(self.data, split)]
        return carve_dev_split([(p.key, p) for p in problems], split)

    def _problem(self, row: DataRow, split: Split) -> Problem:
        question = row.get("question")
        steps, _, gold = row.get("answer").rpartition("####")
        number = read_unitless_number(gold)
        if number is None and split == "train":
            raise DataError(
                f"no number after '####': {gold.strip()!r:.40}", where=row.where, remedy="Fix or remove the row."
            )
        return Problem(
            key=f"gsm8k {normalize_text(question)}",
            prompt=self.mark.prompt_for_mark(question, "NUMBER"),
            answer=self.mark.mark_answer(gold.strip() if number is None else gold.strip().replace(",", "")),
            family="gsm8k",
            steps=CALCULATOR.sub("", steps).strip() or None,
            meta={"where": row.where},
            version=VERSION,
        )

    def parse_answer(self, problem: Problem, text: str) -> Number | None:
        return read_number(first_sentence(text))

    def parse_last_answer(self, problem: Problem, reply: str) -> Number | None:
        return last_number(reply)

    def compare_with_gold(self, problem: Problem, gold: Number, value: Number) -> Verdict:
        return Verdict.RIGHT if value.equals(gold) else Verdict.WRONG
