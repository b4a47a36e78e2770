"""GSM8K: grade-school mathematics with worked solutions (Cobbe et al., 2021)."""

from __future__ import annotations

import re
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.tasks.amounts import said_amounts
from rorqual.tasks.base import Problem, Split, Verdict
from rorqual.tasks.numbers import whole_number
from rorqual.tasks.reply import verdict
from rorqual.tasks.rows import SAMPLES, DataRow, FileTask, carve, held_out, normal, read

CALCULATOR = re.compile(r"<<[^>]*>>")


class Gsm8k(FileTask):
    """Rows `question`, `answer`; the answer's last line is `#### NUMBER`, and what stands before it are the steps.

    `data` is a folder with `train.jsonl` and `test.jsonl` or one file; None is the sample of the package. A gold answer that is
    no number is refused in training (`DataError`) and ungraded in evaluation.

    A reply is right where the number that it commits to equals the gold answer exactly. The rules, of which `rorqual.tasks.reply`,
    `amounts` and `numbers` say more:

    - The last mark counts (`#### 7`, `the answer is 7`, `\\boxed{7}`, `<answer>7</answer>`), and of it the first number. A correction
      after it ("Wait, it is 8.") replaces it; other text after it changes nothing.
    - Without a mark the last sentence that states a number counts. Questions, checks, closing phrases, brackets and reasons are passed
      over, and so are numbers that a preposition or an article governs ("12 apples for 3 people"), where another is left. With `strict`
      a reply without a mark is wrong.
    - A conclusion ("So ...", "... in total", bold, `Total: ...`) is not replaced by a remark after it ("That is $4 a day."), nor is an
      answer that opens the reply ("**27**", "7 pencils.") by what explains it. A reply that leaves work to do ("Next, we have to add ...")
      or says that it guesses has no answer. Options ("A) 40", "B) 44") are looked up by the letter that is chosen.
    - Where two numbers look final alike ("9 remain, and 6 are gone", "$40, i.e. $8 a month", "to $48, a saving of $12", "18 eggs for $36")
      and one of them is right, the reply is ungraded: only the question says which is wanted.
    - A reply without a mark that would be wrong is ungraded where its last sentence states the gold number beside the one that is taken
      ("13 were eaten, leaving 2"), and neither denies it, computes with it nor goes on from it ("18, so she has 16").
    - What is denied ("not 18"), left open ("18 or 19", "18 to 20", "more than 18", "over $18") or refused is no answer, and such a reply
      is wrong. What is struck out (`~~18~~`) or taken back midway ("18, no wait, 16") is not read. "Rises from 18 to 20" says 20.
    - Numbers are exact: `1e3`, `1\\,000`, `1 000`, `1.200,00`, `5.`, `70k`, `2.5 million`, `3 1/2`, `\\frac{7}{2}`, `-$5`, `5~\\mathrm{cm}`
      and words are read; `1 hour and 30 minutes` is 90 and 1.5, and "none are left" is 0; 0.333333 is not 1/3. 50% is 1/2, and it is 50. A
      time, and a number in another base, is no number.
    """

    name = "gsm8k"

    def __init__(self, data: Path | None = None, strict: bool = False) -> None:
        super().__init__(data or SAMPLES / "gsm8k")
        self.strict = strict

    def load(self, split: Split) -> list[Problem]:
        paths = held_out(self.data, split, {"train": "train", "test": "test"})
        found = [self._problem(row, split) for path in paths for row in read(path)]
        return carve([(p.key, p) for p in found], split)

    def _problem(self, row: DataRow, split: Split) -> Problem:
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
        said = said_amounts(reply, strict=self.strict)
        return verdict((one.equals(gold) for one in said.final), (one.equals(gold) for one in said.beside))
