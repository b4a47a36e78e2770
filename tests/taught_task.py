"""A folder as `rorqual teach` leaves it: fitted rungs, the order in which they answer, and a promise."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rorqual.core.records import RunDir
from rorqual.teach.answerer import AnswererConfig, Step, save_answerer
from rorqual.teach.examples import AnswerKind, Example
from rorqual.teach.paths import TeachPaths
from rorqual.teach.promise import PlattCalibration, Promise
from rorqual.teach.rungs.ladder import rungs_of
from rorqual.teach.rungs.rung import Rung, TrainingRows
from rorqual.teach.rungs.storage import save_rung

WORDS = {"card": ("card", "chip", "plastic"), "pin": ("pin", "code", "digits"), "fee": ("fee", "charge", "cost")}
PROMISE = Promise(accuracy=0.95, threshold=0.7, answered=30, right=30, of=60, bound=0.951)
CALIBRATION = PlattCalibration(slope=1.5, intercept=-0.5)
STEPS = (
    Step(rung="nearest neighbour", calibration=PlattCalibration(slope=0.5, intercept=0.25), above=0.75),
    Step(rung="logistic regression", calibration=CALIBRATION),
)
COLUMNS = ("subject", "body")


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return different pairs of a short text and its label. Some texts have words of two labels."""
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        label, other = draw.sample(sorted(WORDS), 2)
        words = [draw.choice(WORDS[label]), *([draw.choice(WORDS[other])] if draw.random() < 0.4 else [])]
        rows[f"{draw.choice(['my', 'the', 'a'])} {' '.join(words)}\n\nnumber {draw.randrange(10_000)}"] = label
    return list(rows.items())


def sums(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return different problems, and their answers."""
    draw = random.Random(seed)
    pairs = {(draw.randint(20, 999), draw.randint(3, 19)) for _ in range(2 * count)}
    return [(f"{a} and {b} more?", str(a + b)) for a, b in sorted(pairs)[:count]]


def orders(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return different sentences, and the fields in them as JSON."""
    draw = random.Random(seed)
    pairs = [(draw.choice(["tea", "rice", "salt"]), number) for number in range(count)]
    return [(f"send {n} bags of {what}", json.dumps({"what": what, "count": str(n)})) for what, n in pairs]


def write_task(
    out: Path,
    pairs: Sequence[tuple[str, str]],
    kind: AnswerKind = "label",
    *,
    steps: Sequence[Step] = STEPS,
    promise: Promise | None = PROMISE,
    columns: Sequence[str] = COLUMNS,
    rungs: Sequence[Rung] = (),
    **more: Any,
) -> Path:
    """Fit the rungs of `steps`, and write them with an answerer, which has also the fields `more`. A rung that the kind has not is looked
    for in `rungs`."""
    paths = TeachPaths(out)
    (out / "rungs").mkdir(parents=True)
    rows = TrainingRows([Example(line, *pair) for line, pair in enumerate(pairs, start=1)], kind)
    for rung in (*rungs_of(kind), *rungs):
        if rung.name in {step.rung for step in steps}:
            rung.fit(rows)
            save_rung(rung, paths.rung_file(rung.name))
    save_answerer(paths, AnswererConfig(steps=tuple(steps), promise=promise, columns=tuple(columns), **more))
    return out


def write_grammar(run: Path, choices: Sequence[str], **more: Any) -> None:
    """Write the defaults of a run whose replies are one of `choices`."""
    grammar = {"kind": "choice", "source": json.dumps(list(choices))}
    RunDir(run).task_defaults_file.write_text(json.dumps({"grammar": grammar, **more}), encoding="utf-8")
