"""FOLIO: decide whether a conclusion follows from premises in natural language (Han et al., 2022)."""

from __future__ import annotations

from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import DataRow, read_rows
from rorqual.tasks.base import Problem, Split, Verdict
from rorqual.tasks.labels import final_labels
from rorqual.tasks.reply import verdict
from rorqual.tasks.rows import SAMPLES, FileTask, carve, held_out, normal

LABELS = ("True", "False", "Uncertain")
SAME = {"Unknown": "Uncertain"}
"""The training file uses Unknown for the label that the validation file calls Uncertain."""


class Folio(FileTask):
    """FOLIO problems from rows with `premises` (a list), `conclusion` and `label`. The validation file is the held-out split.

    The test labels are not public. A reply is right if its final label is the gold label (see `rorqual.tasks.labels`):

    - If the reply has answer markers (`Answer: True`), the last one counts. Otherwise the last sentence about the
      conclusion counts.
    - A label does not count if it is denied ("not false"), open ("true or false") or hypothetical ("would be true").
      The label of a premise does not count either.
      Sentences that only state conditions for labels ("If ..., it is true; otherwise false") are skipped.
    - A guess ("I lean towards false", "probably true, though it might be uncertain") is not an answer.
    - "Cannot be determined" and "neither true nor false" mean Uncertain. "The negation of the conclusion is true" means False.
      "It cannot be shown that it is true" denies True.
    - A reply that only denies a label ("The conclusion is not true") is wrong if that label is the gold label, and ungraded
      otherwise.
    - If the reply lists options, "option B" means the text of option B.
      If two labels look equally final and one is right, the reply is ungraded.

    The `dev` split is cut from the training file by story, because several conclusions share one story.
    `data` is one file, or a folder with `train.jsonl` and `validation.jsonl`. If `data` is None, the packaged sample is used.
    """

    name = "folio"

    def __init__(self, data: Path | None = None) -> None:
        super().__init__(data or SAMPLES / "folio")

    def load(self, split: Split) -> list[Problem]:
        paths = held_out(self.data, split, {"train": "train", "test": "validation"})
        problems = [self._problem(row, split) for path in paths for row in read_rows(path)]
        return carve([(str(p.meta["story"]), p) for p in problems], split)

    def _problem(self, row: DataRow, split: Split) -> Problem:
        premises, conclusion, gold = row.texts("premises"), row.get("conclusion"), row.get("label")
        gold = SAME.get(gold, gold)
        if gold not in LABELS and split == "train":
            raise DataError(f"unknown label {gold!r}", where=row.where, remedy=f"Use one of: {', '.join(LABELS)}.")
        listed = "\n".join(f"- {premise.strip()}" for premise in premises)
        return Problem(
            key=f"folio {' '.join(sorted(map(normal, premises)))} | {normal(conclusion)}",
            prompt=f"Premises:\n{listed}\nConclusion: {conclusion.strip()}\nTrue, False or Uncertain?",
            answer=gold,
            family="folio",
            meta={"where": row.where, "story": " ".join(sorted(map(normal, premises)))},
        )

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        names = {SAME.get(name, name) for name in final_labels(reply, [*LABELS, *SAME])}
        return names.pop() if len(names) == 1 else None

    def grade(self, problem: Problem, reply: str) -> Verdict:
        if problem.answer not in LABELS:
            return Verdict.UNGRADED
        labels = final_labels(reply, [*LABELS, *SAME])
        return verdict(SAME.get(name, name) == problem.answer for name in labels)
