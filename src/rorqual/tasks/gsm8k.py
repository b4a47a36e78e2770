"""GSM8K: grade-school mathematics with worked solutions (Cobbe et al., 2021)."""

from __future__ import annotations

import re
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import DataRow, read_rows
from rorqual.tasks.amounts import final_amount, read_final_amounts
from rorqual.tasks.base import Problem, Split, Verdict
from rorqual.tasks.numbers import whole_number
from rorqual.tasks.reply import verdict
from rorqual.tasks.rows import SAMPLES, FileTask, carve, held_out, normal

CALCULATOR = re.compile(r"<<[^>]*>>")


class Gsm8k(FileTask):
    """GSM8K problems from rows with `question` and `answer`. `answer` holds the solution steps and then the line `#### NUMBER`.

    `data` is one file, or a folder with `train.jsonl` and `test.jsonl`. If `data` is None, the packaged sample is used.
    A gold answer that is not a number raises DataError in training and is ungraded in evaluation.

    A reply is right if its final number equals the gold answer exactly. The rules (see `rorqual.tasks.reply`, `amounts` and `numbers`):

    - The last answer marker counts: `#### 7`, `the answer is 7`, `\\boxed{7}`, `<answer>7</answer>`.
      The first number in the marked text is the answer.
      A later correction ("Wait, it is 8.") replaces the marked answer. Other text after the
      marked answer is ignored, unless it states a conclusion.
    - Without an answer marker, the last sentence that states a number counts.
      With `strict`, a reply without an answer marker is wrong.
      Numbers do not count in questions, in checks ("Check: ..."), in closing phrases, in brackets and in reasons.
      A number after a preposition or article ("12 apples for 3 people") counts only if no other number remains.
    - A conclusion ("So ...", "... in total", bold, `Total: ...`) outranks a later remark ("That is $4 a day.").
      An answer at the start of the reply ("**27**", "7 pencils.") outranks the explanation that follows.
    - A reply has no answer if it leaves work to do ("Next, we have to add ...") or calls its answer a guess.
      If the reply lists options ("A) 40", "B) 44"), "option B" means 44.
    - If two numbers look equally final and one is right, the reply is ungraded, because only the question can decide
      which of the two is meant.
      Examples of two final numbers: "9 remain, and 6 are gone", "$40, i.e. $8 a month", "to $48, a saving of $12", "18
      eggs for $36".
    - An otherwise wrong reply without an answer marker is ungraded if its last sentence also states the gold number
      ("13 were eaten, leaving 2").
      The reply is wrong, not ungraded, if its last sentence denies the gold number, computes with it or continues from
      it ("18, so she has 16").
    - A reply is wrong if it declines to answer, denies its final number ("not 18") or leaves this number open
      ("18 or 19", "18 to 20", "more than 18", "over $18"). "Rises from 18 to 20" states 20. Struck-out numbers
      (`~~18~~`) and numbers corrected midway ("18, no wait, 16") are ignored.
    - Numbers are exact: 0.333333 is not 1/3. 50% equals both 1/2 and 50. "None are left" is 0.
      Numbers in words are supported, and so are `1e3`, `1\\,000`, `1 000`, `1.200,00`, `5.`, `70k`, `2.5 million`,
      `3 1/2`, `\\frac{7}{2}`, `-$5`, `5~\\mathrm{cm}`.
      `1 hour and 30 minutes` equals both 90 (minutes) and 1.5 (hours). A clock time, or a number in a
      base other than 10, is not read as a number.
    """

    name = "gsm8k"

    def __init__(self, data: Path | None = None, strict: bool = False) -> None:
        super().__init__(data or SAMPLES / "gsm8k")
        self.strict = strict

    def load(self, split: Split) -> list[Problem]:
        paths = held_out(self.data, split, {"train": "train", "test": "test"})
        problems = [self._problem(row, split) for path in paths for row in read_rows(path)]
        return carve([(p.key, p) for p in problems], split)

    def _problem(self, row: DataRow, split: Split) -> Problem:
        question = row.get("question")
        steps, _, gold = row.get("answer").rpartition("####")
        number = whole_number(gold)
        if number is None and split == "train":
            raise DataError(
                f"no number after '####': {gold.strip()!r:.40}", where=row.where, remedy="Fix or remove the row."
            )
        return Problem(
            key=f"gsm8k {normal(question)}",
            prompt=question,
            answer=gold.strip() if number is None else gold.strip().replace(",", ""),
            family="gsm8k",
            steps=CALCULATOR.sub("", steps).strip() or None,
            meta={"where": row.where},
        )

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        amount = final_amount(reply, strict=self.strict)
        return None if amount is None else f"{amount.value}{'%' if amount.percent else ''}"

    def grade(self, problem: Problem, reply: str) -> Verdict:
        gold = whole_number(problem.answer)
        if gold is None:
            return Verdict.UNGRADED
        stated = read_final_amounts(reply, strict=self.strict)
        return verdict(
            (amount.equals(gold) for amount in stated.final), (amount.equals(gold) for amount in stated.beside)
        )
