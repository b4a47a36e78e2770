"""The experiment `zero`: what improves if a model that mostly answers without thinking is trained by RL alone?

Correctness is the only reward. Two effects are measured separately: how often the model chooses to think, and its
accuracy when thinking is forced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from rorqual.core.records import RunDir
from rorqual.evals.compare import did_think
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.verdict import Verdict
from rorqual.lab.experiment import Experiment, amount
from rorqual.lab.finding import Chart, Contrast, Finding, Series, contrast_text, contrasts, mean_by_seed, percent
from rorqual.lab.job import ExperimentJob, Train, evaluation
from rorqual.lab.student import BASE, FAMILIES, RL, base_jobs, fresh, measures, reinforce, reinforced_job

CLAIM = "reinforcement with correctness as the only reward, without worked solutions, improves reasoning"
SOURCE = "DeepSeek-R1, arXiv 2501.12948, section 2.2; Nature, September 2025, figure 1"
EFFECTS = {
    "choice": "thinks, own choice: before against after",
    "right": "right, own choice: before against after",
    "ability": "right when made to think: before against after",
}


class Zero(Experiment):
    """The experiment that trains the base student of `distil-vs-rl` by RL alone."""

    name: ClassVar[str] = "zero"
    title: ClassVar[str] = "Reinforcement alone"
    claim: ClassVar[str] = CLAIM
    source: ClassVar[str] = SOURCE

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        own = fresh(seed)
        return [*base_jobs(own, place, share), reinforced_job(own, place, share), *measures(RL, own, share)]

    def conclude(self, places: Mapping[int, Path]) -> Finding:
        return told(self, list(places.values()), RL, (RL,), places)


LONG_PARTS, LONG_STEPS = 4, 150
"""Number of parts, and of steps per part. All parts together take about 25 core-minutes. Each part ends with an evaluation."""


class ZeroLong(Experiment):
    """A much longer run of `zero` for one seed, in parts. Each part starts from the previous part with a fresh optimizer."""

    name: ClassVar[str] = "zero-long"
    title: ClassVar[str] = "Reinforcement alone, for long"
    claim: ClassVar[str] = CLAIM
    source: ClassVar[str] = SOURCE
    seeds: ClassVar[int] = 1

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        own = fresh(seed)
        jobs = base_jobs(own, place, share)
        for part in range(1, LONG_PARTS + 1):
            jobs.append(_part(part, own, place, share))
            jobs += measures(_name(part), own, share)
        return jobs

    def conclude(self, places: Mapping[int, Path]) -> Finding:
        where, runs = list(places.values()), tuple(_name(part) for part in range(1, LONG_PARTS + 1))
        finding = told(self, where, runs[-1], runs, places)
        return finding.model_copy(update={"charts": (*finding.charts, _on_the_way(where, runs))})


def _name(part: int) -> str:
    return f"zero-long-{part}"


def _part(part: int, seed: int, place: Path, share: float) -> Train:
    start = _name(part - 1) if part > 1 else BASE
    return Train(
        name=_name(part),
        estimate=2.4 * LONG_STEPS * share,
        make=lambda: reinforce(place / start, amount(LONG_STEPS, share), seed + 1000 * part),
        needs=(start,),
    )


def told(
    experiment: Experiment, where: Sequence[Path], last: str, runs: Sequence[str], places: Mapping[int, Path]
) -> Finding:
    """Compare the base student with the run `last`, and return the result as a `Finding`.

    `runs` are the consecutive runs up to `last`.
    """
    before, after = ([evaluation(p, f"{m}-auto") for p in where] for m in (BASE, last))
    made_before, made_after = ([evaluation(p, f"{m}-on") for p in where] for m in (BASE, last))
    choice = contrasts(EFFECTS["choice"], before, after, measure=did_think)
    right = contrasts(EFFECTS["right"], before, after)
    ability = contrasts(EFFECTS["ability"], made_before, made_after)
    verdict, words = _verdict(choice[0], right[0], ability[0])
    lengths = [_length(before), _length(after)]
    words.append(f"Thinking had a mean length of {lengths[0]:.1f} tokens before and {lengths[1]:.1f} after.")
    groups = ("all", *FAMILIES)
    bars = (
        mean_by_seed(before, "before, own choice", groups),
        mean_by_seed(after, "after, own choice", groups),
        mean_by_seed(made_before, "before, made to think", groups),
        mean_by_seed(made_after, "after, made to think", groups),
    )
    return experiment.found(
        places,
        verdict,
        words,
        contrasts=(*right, *choice, *ability),
        charts=(
            Chart(name="effects", title="Accuracy on held-out problems", kind="bars", labels=groups, series=bars, percent=True,
                  caption="Means over seeds with 99 % intervals. Dots: each seed."),
            _over_steps(where, runs),
            _thinking_length(where, runs),
        ),
    )  # fmt: skip


def _verdict(choice: Contrast, right: Contrast, ability: Contrast) -> tuple[Verdict, list[str]]:
    """Return the verdict and sentences that explain it.

    The verdict depends only on accuracy with forced thinking, because thinking more often is not better reasoning.

    With a single seed, the verdict is always `open`.
    """
    words = [
        f"Accuracy by its own choice to think: {contrast_text(right)}.",
        f"It chose to think on {percent(choice.a)} % of the problems before and on {percent(choice.b)} % after: {contrast_text(choice)}.",
        f"Accuracy when made to think: {contrast_text(ability)}.",
    ]
    return ability.sign, words


def _length(evaluations: Sequence[Evaluation]) -> float:
    lengths = [s.thinking_tokens for evaluation in evaluations for s in evaluation.samples if s.thought]
    return sum(lengths) / len(lengths) if lengths else 0.0


def _lines(where: Sequence[Path], runs: Sequence[str], label: str, key: str) -> Series:
    lines = []
    for place in where:
        records = [record for run in runs for record in RunDir(place / run).metrics()]
        lines.append(tuple((float(i), float(r[key])) for i, r in enumerate(records, 1) if r.get(key) is not None))
    mean = tuple((points[0][0], sum(y for _, y in points) / len(points)) for points in zip(*lines))
    return Series(label=label, points=mean, by_seed=tuple(lines))


def _over_steps(where: Sequence[Path], runs: Sequence[str]) -> Chart:
    return Chart(
        name="steps",
        title="Rollouts over reinforcement",
        x="step",
        y="share",
        series=(
            _lines(where, runs, "right", "reward"),
            _lines(where, runs, "thinks", "think_share"),
            _lines(where, runs, "right when thinking", "right_when_thinking"),
        ),
        percent=True,
        caption="Strong lines: mean over seeds. Faint lines: each seed.",
    )


def _thinking_length(where: Sequence[Path], runs: Sequence[str]) -> Chart:
    return Chart(name="length", title="Length of answers", x="step", y="tokens",
                 series=(_lines(where, runs, "answer with its thinking", "reply_length"),),
                 caption="Strong lines: mean over seeds. Faint lines: each seed.")  # fmt: skip


def _on_the_way(where: Sequence[Path], runs: Sequence[str]) -> Chart:
    def series(label: str, mode: str) -> Series:
        lines = [
            tuple((float(i), _share_right(evaluation(place, f"{run}-{mode}"))) for i, run in enumerate((BASE, *runs)))
            for place in where
        ]
        mean = tuple((points[0][0], sum(y for _, y in points) / len(points)) for points in zip(*lines))
        return Series(label=label, points=mean, by_seed=tuple(lines))

    return Chart(
        name="parts",
        title=f"Accuracy on held-out problems after each {LONG_STEPS} steps",
        x="part",
        y="right",
        series=(series("made to think", "on"), series("own choice", "auto")),
        percent=True,
    )


def _share_right(evaluation: Evaluation) -> float:
    return sum(s.verdict.value == "right" for s in evaluation.samples) / len(evaluation.samples)
