"""Check the promise of `rorqual teach` on random divisions of four data sets, beside a plain threshold on the rung's own probability.

    python benchmarks/promise.py DATA PACKAGES [--divisions 200] [--cases banking77,teams,sentiment,intents]

DATA and PACKAGES are those of `benchmarks/ten_sets.py`. Each division draws 500 rows, cross-validates logistic regression on embeddings,
promises 95 %, fits the rung on all 500 rows, and asks it all other rows of the set, at most 2,000. A promise is broken if the answers that
are given are less often right than promised. The penalty is chosen once for each set, on the first division. The result is
docs/results/promise.json. The command resumes: finished divisions are not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import ROOT, made_by
from ten_sets import data_sets

from rorqual.core.records import write_json
from rorqual.evals.stats import wilson
from rorqual.tasks.examples import canonical_form
from rorqual.teach.encoder import load_encoder
from rorqual.teach.examples import Example
from rorqual.teach.folds import DEV, folds
from rorqual.teach.held_out import cross_validate, training_rows
from rorqual.teach.promise import PlattCalibration, calibrate, promise
from rorqual.teach.rungs.classifiers import LogisticRegression
from rorqual.teach.rungs.features import Embeddings
from rorqual.teach.rungs.rung import TrainingRows
from teach import banking, snips

ROWS, HELD_OUT, PROMISED = 500, 2_000, 0.95
PLAIN = "probability >= 0.95"


def cases(data: Path, packages: Path) -> dict[str, Callable[[], list[tuple[str, str]]]]:
    """Return the functions that load all rows of each set, as prompts and labels."""

    def both(name: str) -> list[tuple[str, str]]:
        train, test = data_sets(packages)[name].load(data)
        return [(row["text"], row["answer"]) for row in (*train, *test)]

    return {
        "banking77": lambda: [(row["text"], row["category"]) for part in banking(data) for row in part],
        "teams": lambda: both("teams"),
        "sentiment": lambda: both("sentiment"),
        "intents": lambda: [(row["text"], row["intent"]) for part in snips(data) for row in part],
    }


def grade(example: Example, reply: str) -> bool:
    return canonical_form(reply, "label") == canonical_form(example.answer, "label")


def divide(rows: list[Example], rung: LogisticRegression, seed: int) -> dict[str, Any]:
    """Return what one division promises, and what the given answers are worth on the other rows."""
    drawn = random.Random(seed).sample(rows, len(rows))
    pool, held = drawn[:ROWS], drawn[ROWS : ROWS + HELD_OUT]
    fold = folds(pool, "label", [one.key for one in pool])
    if seed == 0:
        rung.settle(training_rows(pool, fold, "label", DEV))
    settled = rung.settle
    rung.settle = lambda _: None  # type: ignore[method-assign]
    found = cross_validate(rung, pool, fold, "label", grade, seconds=1e9)
    rung.settle = settled  # type: ignore[method-assign]
    sure, right = [*found.probability.values()], [*found.right.values()]
    calibration = calibrate(sure, right)
    made = promise(PROMISED, [calibration.probability(one) for one in sure], right)
    rung.fit(TrainingRows(pool, "label"))
    guesses = rung.predict([one.prompt for one in held])
    grades = [grade(one, guess.answer) for one, guess in zip(held, guesses, strict=True)]
    thresholds = {"promise": (calibration, made and made.threshold), PLAIN: (PlattCalibration(), PROMISED)}
    result: dict[str, Any] = {"seed": seed, "accuracy": sum(grades) / len(grades), "held_out": len(held)}
    for name, (calibrated, threshold) in thresholds.items():
        given = [
            one
            for one, guess in zip(grades, guesses, strict=True)
            if threshold is not None and calibrated.probability(guess.probability) >= threshold
        ]
        result[name] = {"answered": len(given), "right": sum(given)}
    return result


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for each set and rule how often it gave answers, how often they were less often right than promised, and their coverage."""
    found: dict[str, Any] = {}
    for case in dict.fromkeys(one["case"] for one in runs):
        own = [one for one in runs if one["case"] == case]
        rows: dict[str, Any] = {"accuracy": sum(one["accuracy"] for one in own) / len(own), "divisions": len(own)}
        for name in ("promise", PLAIN):
            given = [one[name] for one in own if one[name]["answered"]]
            broken = sum(one["right"] < PROMISED * one["answered"] for one in given)
            interval = wilson(broken, len(own))
            rows[name] = {
                "gave answers": len(given),
                "broken": broken,
                "broken share": broken / len(own),
                "interval": [interval.low, interval.high],
                "coverage": sum(one[name]["answered"] / one["held_out"] for one in own) / len(own),
                "accuracy of answers": sum(one["right"] for one in given)
                / max(1, sum(one["answered"] for one in given)),
            }
        found[case] = rows
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("packages", type=Path)
    parser.add_argument("--divisions", type=int, default=200)
    parser.add_argument("--cases", default="banking77,teams,sentiment,intents")
    parser.add_argument("--result", type=Path, default=ROOT / "docs" / "results" / "promise.json")
    given = parser.parse_args()
    runs: list[dict[str, Any]] = json.loads(given.result.read_bytes())["runs"] if given.result.exists() else []
    made = made_by({given.data: "DATA", given.packages: "PACKAGES"})
    for case in given.cases.split(","):
        rows = [Example(line, *row) for line, row in enumerate(cases(given.data, given.packages)[case]())]
        rows = list({one.key: one for one in rows}.values())
        rung = LogisticRegression("logistic regression, embeddings", {"embeddings": Embeddings(load_encoder())})
        known = {one["seed"] for one in runs if one["case"] == case}
        if known and len(known) < given.divisions:
            divide(rows, rung, 0)  # the penalty of the first division
        for seed in range(given.divisions):
            if seed not in known:
                runs.append({"case": case} | divide(rows, rung, seed))
                if seed % 10 == 9:
                    write_json(given.result, {"made by": made, "summary": summary(runs), "runs": runs})
                    print(case, seed + 1, summary(runs)[case]["promise"], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
