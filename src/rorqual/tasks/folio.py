"""FOLIO: decide whether a conclusion follows from premises in natural language (Han et al., 2022)."""

from __future__ import annotations

from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import DataRow
from rorqual.tasks.answer_marks import ANSWER, first_sentence
from rorqual.tasks.file_task import SAMPLES, FileTask, carve_dev_split, normalize_text, rows_of_split
from rorqual.tasks.labels import last_label, matching_label
from rorqual.tasks.marked_task import VERSION, MarkedTask
from rorqual.tasks.task import Problem, Split

LABELS = ("True", "False", "Uncertain")
SAME = {"Unknown": "Uncertain"}
"""The training file uses Unknown for the label that the validation file calls Uncertain."""


class Folio(FileTask, MarkedTask):
    """FOLIO problems from rows with `premises` (a list), `conclusion` and `label`. The validation file is the held-out split.

    The labels of FOLIO's test split are not public. The prompt asks for the mark `Answer: True, False or Uncertain`. A reply is
    right if its last marked answer is the gold label, without regard to case and punctuation. With `read=last`, the last label
    in the reply is graded.

    The `dev` split is cut from the training file by story, because several conclusions share one story.
    `data` is one file, or a folder with `train.jsonl` and `validation.jsonl`. If `data` is None, the packaged sample is used.
    """

    name = "folio"
    mark = ANSWER

    def __init__(self, data: Path | None = None) -> None:
        super().__init__(data or SAMPLES / "folio")

    def load(self, split: Split) -> list[Problem]:
        problems = [self._problem(row, split) for row in rows_of_split(self.data, split, "validation")]
        return carve_dev_split([(str(p.meta["story"]), p) for p in problems], split)

    def _problem(self, row: DataRow, split: Split) -> Problem:
        premises, conclusion, gold = row.text_values("premises"), row.get("conclusion"), row.get("label")
        gold = SAME.get(gold, gold)
        if gold not in LABELS and split == "train":
            raise DataError(f"unknown label {gold!r}", where=row.where, remedy=f"Use one of: {', '.join(LABELS)}.")
        listed = "\n".join(f"- {premise.strip()}" for premise in premises)
        return Problem(
            key=f"folio {' '.join(sorted(map(normalize_text, premises)))} | {normalize_text(conclusion)}",
            prompt=self.mark.prompt_for_mark(
                f"Premises:\n{listed}\nConclusion: {conclusion.strip()}", "True, False or Uncertain"
            ),
            answer=self.mark.mark_answer(gold),
            family="folio",
            meta={"where": row.where, "story": " ".join(sorted(map(normalize_text, premises)))},
            version=VERSION,
        )

    def parse_answer(self, problem: Problem, text: str) -> str | None:
        label = matching_label(first_sentence(text), (*LABELS, *SAME))
        return SAME.get(label or "", label)

    def parse_last_answer(self, problem: Problem, reply: str) -> str | None:
        label = last_label(reply, (*LABELS, *SAME))
        return SAME.get(label or "", label)
