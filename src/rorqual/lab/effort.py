"""The experiment `effort`: does a length penalty per reasoning effort give one model whose reasoning length follows the effort?

The base thinks on 35, 50 and 65 % of its problems at the three efforts, so it hardly knows what an effort means. Two arms reinforce
it at three efforts: with the length penalty of DeepSeek-V4.1-Flash, and without. All else is equal.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean

from rorqual.core.config import override
from rorqual.core.records import write_atomic
from rorqual.engine.request import SamplingParams
from rorqual.evals.compare import is_right
from rorqual.evals.evaluation import Evaluation, per_problem
from rorqual.evals.table import percent
from rorqual.evals.verdict import together
from rorqual.lab.experiment import Experiment, amount
from rorqual.lab.finding import Chart, Contrast, Finding, Series, Table, contrast_of_values, ends_text
from rorqual.lab.job import Compute, ExperimentJob, Measure, Train, evaluation
from rorqual.recipes.grpo import grpo
from rorqual.recipes.sft import sft
from rorqual.tasks.find import load_task, safe_problems
from rorqual.train.run import Run
from rorqual.train.sources.rollouts import LengthPenaltyConfig, effort_message

TASK, OPTIONS = "families:add,sub", {"hard": 0.5}
EFFORTS = (25, 50, 100)
THINK = {25: 0.35, 50: 0.5, 100: 0.65}
"""Share of the base's training problems with thinking, by effort. With equal shares, reinforcement of 50 steps did not learn that the
effort matters (docs/log/experiments.md)."""
STRENGTHS: Mapping[str, float] = {"effort-plain": 0.0, "effort-penalty": 2.5}
"""The penalty's strength in each arm. At 2.5, thinking costs more than a right answer is worth at effort 25, and little at 100."""
BASE, ROWS, PLAIN, PENALTY = "effort-base", "effort-rows.jsonl", *STRENGTHS
LABELS = {BASE: "before", PLAIN: "reinforced without penalty", PENALTY: "reinforced with penalty"}
MAX_TOKENS, ROW = 80, 160
HALF, POINTS = 0.5, 0.02
"""The goals: the largest share of tokens at the lowest effort, and the largest loss of accuracy at the highest."""


class EffortExperiment(Experiment):
    """The experiment on sums and differences, with three reasoning efforts."""

    name = "effort"
    title = "Length control by reasoning effort"
    claim = (
        "trained with a length penalty per reasoning effort, one model uses at most half as many tokens at the lowest effort as at the "
        "highest, where it is at most 2 points less accurate than without the penalty"
    )
    source = "DeepSeek-V4.1-Flash, technical report, effort control"
    first_seed = 200

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        def base() -> Run:
            return sft(data=str(place / ROWS), size="student", steps=amount(600, share), rows=26, row=ROW, seed=seed)

        def reinforced(strength: float) -> Run:
            run = grpo(task=TASK, options=dict(OPTIONS), start=str(place / BASE), steps=amount(50, share), problems=10, samples=12,
                       max_tokens=MAX_TOKENS, row=ROW, lr=4e-4, seed=seed)  # fmt: skip
            penalty = LengthPenaltyConfig(efforts=EFFORTS, strength=strength, decay=30.0, limit=1.5, tokens=MAX_TOKENS)
            source = run.source.model_copy(update={"length_penalty": penalty})
            return override(run.model_copy(update={"source": source}), ["agreement.most=1e-3"])

        jobs: list[ExperimentJob] = [
            Compute(
                name=ROWS, estimate=0.5 * share, function=partial(write_rows, seed=seed, count=amount(20_000, share))
            ),
            Train(name=BASE, estimate=65 * share, needs=(ROWS,), make=base),
        ]
        for name, strength in STRENGTHS.items():
            jobs.append(Train(name=name, estimate=85 * share, needs=(BASE,), make=partial(reinforced, strength)))
        return [*jobs, *(self._measured(name, effort, seed, share) for name in LABELS for effort in EFFORTS)]

    def _measured(self, name: str, effort: int, seed: int, share: float) -> Measure:
        return Measure(
            name=evaluated(name, effort),
            estimate=3 * share,
            needs=(name,),
            model=name,
            seed=seed,
            task=TASK,
            options=dict(OPTIONS),
            count=amount(60, share, 1),
            params=SamplingParams(max_tokens=MAX_TOKENS, temperature=0.6, seed=seed),
            more={"system": effort_message(effort).text},
        )

    def conclude(self, places: Mapping[int, Path]) -> Finding:
        where = list(places.values())
        tokens, right = shorter(where), accurate(where)
        judged = tokens.judge(HALF - 1, "below"), right.judge(-POINTS)
        texts = (
            f"With the penalty, effort {EFFORTS[0]} uses {1 + tokens.difference:.0%} of the tokens of effort {EFFORTS[-1]} "
            f"({ends_text(tokens)} as a difference in shares): {judged[0]}.",
            f"At effort {EFFORTS[-1]}, the penalty changes accuracy by {100 * right.difference:+.1f} points ({ends_text(right)}): {judged[1]}.",
        )
        return self.found(
            places,
            verdict=together(judged),
            words=texts,
            contrasts=(tokens, right),
            tables=(table(where),),
            charts=(chart(where),),
        )


def evaluated(name: str, effort: int) -> str:
    """Return the name of the evaluation of a run at an effort."""
    return f"{name}-{effort}"


def write_rows(place: Path, *, seed: int, count: int) -> int:
    """Write worked solutions as conversations, and return their number. The effort decides how likely the solution has thinking."""
    rng = random.Random(seed)
    lines = []
    for problem in islice(safe_problems(load_task(TASK, options=dict(OPTIONS)), "train", seed), count):
        effort = rng.choice(EFFORTS)
        think = rng.random() < THINK[effort]
        reply = {"role": "assistant", "content": problem.answer} | ({"reasoning": problem.steps} if think else {})
        asked = [
            {"role": "system", "content": effort_message(effort).text},
            {"role": "user", "content": problem.prompt},
        ]
        lines.append(json.dumps({"messages": [*asked, reply]}) + "\n")
    write_atomic(place / ROWS, "".join(lines).encode())
    return len(lines)


def shorter(places: Sequence[Path]) -> Contrast:
    """Return the contrast of tokens: the highest effort, then the lowest, as shares of the mean at the highest."""
    sides: list[list[list[float]]] = [[], []]
    for place in places:
        low, high = (_tokens(evaluation(place, evaluated(PENALTY, effort))) for effort in (EFFORTS[0], EFFORTS[-1]))
        for side, one in zip(sides, (high, low), strict=True):
            side.append([tokens / fmean(high) for tokens in one])
    question = f"tokens with penalty: effort {EFFORTS[-1]}, then {EFFORTS[0]}"
    return contrast_of_values(question, *sides, unit="ratio")


def accurate(places: Sequence[Path]) -> Contrast:
    """Return the contrast of accuracy at the highest effort: without, then with penalty."""
    sides = [[_right(evaluation(place, evaluated(name, EFFORTS[-1]))) for place in places] for name in (PLAIN, PENALTY)]
    return contrast_of_values(f"right at effort {EFFORTS[-1]}: without, then with penalty", *sides, unit="points")


def table(places: Sequence[Path]) -> Table:
    """Return accuracy and tokens of each run at each effort, as means over seeds."""
    rows = []
    for name, label in LABELS.items():
        for effort in EFFORTS:
            found = [evaluation(place, evaluated(name, effort)) for place in places]
            thought = fmean(fmean(sample.thought for sample in one.samples) for one in found)
            right = fmean(fmean(_right(one)) for one in found)
            tokens = fmean(fmean(_tokens(one)) for one in found)
            rows.append((label, str(effort), percent(right), f"{tokens:.1f}", percent(thought)))
    heads = ("model", "effort", "accuracy, %", "tokens per problem", "thought, %")
    return Table(title="Accuracy and tokens", heads=heads, rows=tuple(rows), note="Means over seeds.")


def chart(places: Sequence[Path]) -> Chart:
    """Return the chart of accuracy over tokens."""

    def points(name: str, some: Sequence[Path]) -> tuple[tuple[float, float], ...]:
        found = [[evaluation(place, evaluated(name, effort)) for place in some] for effort in EFFORTS]
        return tuple((fmean(fmean(_tokens(e)) for e in one), fmean(fmean(_right(e)) for e in one)) for one in found)

    series = tuple(
        Series(label=label, points=points(name, places), by_seed=tuple(points(name, [place]) for place in places))
        for name, label in LABELS.items()
    )
    efforts = ", ".join(map(str, EFFORTS))
    return Chart(
        name="efforts",
        title="Accuracy over tokens",
        x="generated tokens per problem",
        y="accuracy",
        series=series,
        percent=True,
        caption=f"Points of a line: efforts {efforts}. Means over seeds; faint lines: each seed.",
    )


def _right(found: Evaluation) -> list[float]:
    return list(per_problem(found.samples, is_right).values())


def _tokens(found: Evaluation) -> list[float]:
    return [float(sample.tokens) for sample in found.samples]
