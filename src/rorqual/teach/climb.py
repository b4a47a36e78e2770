"""Measure rungs on held-out examples, from the cheapest to the costliest, and choose one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from rorqual.core.records import stored_json
from rorqual.evals.table import percent, percent_interval
from rorqual.tasks.examples import AnswerKind
from rorqual.teach.answerer import AnswererConfig, Step
from rorqual.teach.cascade import combined, first_step
from rorqual.teach.columns import Columns
from rorqual.teach.examples import Example
from rorqual.teach.folds import DEV
from rorqual.teach.held_out import (
    WITH_WRITTEN,
    Grade,
    HeldOut,
    choose,
    cross_validate,
    record_answers,
    seconds_of_answer,
    training_rows,
)
from rorqual.teach.paths import TeachPaths
from rorqual.teach.promise import calibrate, promise
from rorqual.teach.results import milliseconds
from rorqual.teach.rungs.classifiers import NEAREST
from rorqual.teach.rungs.language_model import ALONE, TAUGHT
from rorqual.teach.rungs.rung import Integers, Predictor, Rung, TrainingRows
from rorqual.teach.rungs.storage import save_rung

ASKED = 8
"""Number of prompts that a language model answers at once, between two looks at the clock."""


@dataclass
class Climb:
    """The results of all rungs so far. `results` has the cheapest rung first, and `skipped` the reason for each rung that was left out.

    `pool` are all examples but the test split, and `fold` is the number of the fold of each of them; the first fold is the dev split.
    `forced` says whether the user named the rung. `written` are the rows that a teacher wrote. Only the rungs whose names end with
    `WITH_WRITTEN` are fitted on them.
    """

    paths: TeachPaths
    pool: Sequence[Example]
    fold: Integers
    kind: AnswerKind
    grade: Grade
    say: Callable[[str], None]
    forced: bool = False
    results: list[HeldOut] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    written: Sequence[Example] = ()

    @property
    def dev(self) -> list[Example]:
        """The examples of the dev split."""
        return [one for one, at in zip(self.pool, self.fold, strict=True) if at == DEV]

    @property
    def best(self) -> HeldOut:
        """The rung to use by the results so far. The base model with examples in its prompt is measured for comparison only."""
        return choose([one for one in self.results if one.offered])

    def result(self, name: str) -> HeldOut:
        """Return the result of a rung by its name."""
        return next(one for one in self.results if one.name == name)

    def cross_validate(self, rung: Rung, seconds: float) -> None:
        """Measure a rung by cross-validation, in about `seconds` at most."""
        extra = self._extra(rung)
        if rung.slow:
            self.say(f"  {rung.name} ... (about {max(1, math.ceil(seconds / 60))} minutes at most)")
        self._add(
            rung.name,
            lambda: cross_validate(rung, self.pool, self.fold, self.kind, self.grade, seconds=seconds, extra=extra),
        )

    def _extra(self, rung: Rung) -> Sequence[Example]:
        return self.written if rung.name.endswith(WITH_WRITTEN) else ()

    def measure_on_dev(
        self, name: str, load: Callable[[], Predictor], *, fit_seconds: float, seconds: float, offered: bool = True
    ) -> None:
        """Measure a predictor on the dev split, or on as much of it as it answers in about `seconds`. `load` returns the predictor, and
        `offered` says whether it may be chosen."""

        def measure() -> HeldOut:
            began, predictor = time.monotonic(), load()
            right: dict[str, bool] = {}
            probability: dict[str, float] = {}
            asked = sorted(self.dev, key=lambda one: one.key)
            for start in range(0, len(asked), ASKED):
                record_answers(predictor, asked[start : start + ASKED], self.grade, right, probability)
                if time.monotonic() - began > seconds:
                    break
            return HeldOut(name, right, probability, seconds_of_answer(predictor, asked), fit_seconds, offered)

        self._add(name, measure)

    def _add(self, name: str, measure: Callable[[], HeldOut]) -> None:
        one = HeldOut(**stored_json(self.paths.held_out_file(name), lambda: asdict(measure())))
        names = [other.name + WITH_WRITTEN for other in self.results]  # such a rung has its place after the one without
        self.results.insert(names.index(name) + 1 if name in names else len(names), one)
        self.say(
            f"  {name}: {percent(one.accuracy)} % of {len(one.right):,} right {percent_interval(one.interval)}, "
            f"{milliseconds(one.answer_seconds)} ms an answer"
        )

    def skip(self, name: str, reason: str) -> None:
        """Record why a rung is left out."""
        self.skipped[name] = reason
        self.say(f"  {name} is skipped: {reason}")

    def fit_and_save(self, rung: Rung) -> None:
        """Fit a rung on the whole pool and save it, unless it is saved already."""
        if not self.paths.rung_file(rung.name).is_file():
            self.say(f"  fit {rung.name} on all {len(self.pool):,} examples")
            rung.settle(training_rows(self.pool, self.fold, self.kind, DEV))
            rung.fit(TrainingRows([*self.pool, *self._extra(rung)], self.kind))
            save_rung(rung, self.paths.rung_file(rung.name))

    def answerer(self, chosen: HeldOut, accuracy: float, columns: Columns) -> tuple[AnswererConfig, HeldOut]:
        """Return the answerer that uses the rung `chosen`, and its held-out answers, with calibrated probabilities.

        A faster rung answers first where that costs no accuracy, unless the rung was forced. The answerer promises `accuracy` if that is
        above 0 and can be kept. A language model promises nothing, because its checkpoint was chosen on the same examples.
        """
        calibration = calibrate([*chosen.probability.values()], [*chosen.right.values()])
        steps, results = [Step(rung=chosen.name, calibration=calibration)], [chosen]
        if (first := first_step([one for one in self.results if one.offered], chosen)) and not self.forced:
            steps, results = [first, *steps], [self.result(first.rung), chosen]
        found = combined(steps, results)
        made = None
        if accuracy and not {TAUGHT, ALONE} & {step.rung for step in steps}:  # chosen on the same dev rows
            made = promise(accuracy, [*found.probability.values()], [*found.right.values()])
        similar = [most for one in self.results if one.name == NEAREST for most in one.probability.values()]
        system = any(one.turns[0].role == "system" for one in self.pool)
        config = AnswererConfig(
            steps=tuple(steps),
            promise=made,
            asked=accuracy,
            longest=max(len(one.prompt) for one in self.pool),
            least_similar=min(similar, default=0.0),
            columns=tuple(columns.prompt),
            system=columns.system,
            has_system_turns=system and not columns.prompt,
        )
        return config, found
