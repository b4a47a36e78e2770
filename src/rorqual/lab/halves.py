"""A claim about a shape, in halves: at equal this and at equal that. What each half shows, and the rule that judges them.

A half holds where the rival's loss less the favoured arm's lies above 0 by both 99 % intervals, the bootstrap's and Student's over the
seeds, and does not hold where both lie below. A half whose costs are not equal within its tolerance is open, whatever the losses. The
claim holds where all halves do, and does not where one does not. The rule of both intervals, and of five seeds at least, is that of
`rorqual.evals.verdict`; it began with the bootstrap's alone, and what was added after the evidence can only turn a verdict to open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from rorqual.core.records import RunDir
from rorqual.evals.stats import t_interval
from rorqual.evals.verdict import Verdict, together
from rorqual.lab.experiment import Experiment
from rorqual.lab.finding import Chart, Contrast, Finding, Series, Table, contrast_of_values, contrasts
from rorqual.lab.job import ExperimentJob, evaluation, run_cost, value
from rorqual.lab.shapes import ADAMW_RATE, ARMS, CONTEXT, DEV_SEEDS, MUON_RATE, shape_jobs
from rorqual.model.account import account
from rorqual.model.load.run import read_model_config

Equal = Literal["active FLOPs", "parameters", "steps", "core-seconds"]
TOLERANCE: Mapping[Equal, float] = {"active FLOPs": 0.03, "parameters": 0.03, "steps": 0.0, "core-seconds": 0.15}
FLOOR = 0.05
"""A family in which neither arm is right more often says nothing of either."""
BINS, UNSHOWN = 40, 8
"""Points of a curve; the first fifth, which is alike and steep, is left out of the chart."""
Places = Mapping[int, Path]


@dataclass(frozen=True)
class Half:
    """`favoured` and `rival` are arms; the claim says that the favoured one is better at equal `equal`."""

    equal: Equal
    favoured: str
    rival: str


@dataclass(frozen=True)
class Match:
    """What should be equal, as it came out: means over the seeds."""

    equal: Equal
    favoured: float
    rival: float

    @property
    def excess(self) -> float:
        """By how much the larger exceeds the smaller, as a share."""
        return max(self.favoured, self.rival) / min(self.favoured, self.rival) - 1

    @property
    def fair(self) -> bool:
        """Within the tolerance."""
        return self.excess <= TOLERANCE[self.equal] + 1e-12


@dataclass(frozen=True)
class Judged:
    """A half with its evidence. Contrasts are the favoured arm, then the rival."""

    half: Half
    match: Match
    loss: Contrast
    accuracy: tuple[Contrast, ...]

    @property
    def verdict(self) -> Verdict:
        """By the rule above."""
        return self.loss.sign if self.match.fair else "open"

    def words(self) -> str:
        """In a sentence or two."""
        a, b, loss = ARMS[self.half.favoured].label, ARMS[self.half.rival].label, self.loss
        text = (
            f"At equal {self.half.equal} ({_shown(self.match.favoured)} and {_shown(self.match.rival)}), held-out loss is {loss.a:.4f} nats "
            f"a token for {a} and {loss.b:.4f} for {b}; the second less the first is "
            f"{loss.difference:+.4f} ({loss.difference / loss.a:+.1%}), 99 % interval {loss.low:+.4f} to {loss.high:+.4f}."
        )
        whole = [one for one in self.accuracy if one.of == "all"]
        if whole:
            one = whole[0]
            text += (
                f" Made to think, {one.a:.1%} and {one.b:.1%} of held-out problems are right: {100 * one.difference:+.1f} points, "
                f"{100 * one.low:+.1f} to {100 * one.high:+.1f}."
            )
        if not self.match.fair:
            return text + (
                f" The {self.half.equal} differ by {self.match.excess:.0%}, more than the {TOLERANCE[self.half.equal]:.0%} "
                "that the rule allows: no verdict."
            )
        ends = {"holds": f"Better: {a}.", "does not hold": f"Better: {b}.", "open": "Which is better is open."}
        return f"{text} {ends[self.loss.sign]}{self._by_seeds()}"

    def _by_seeds(self) -> str:
        """What Student's t says, which takes documents as they are."""
        if len(self.loss.by_seed) < 2:
            return ""
        t = t_interval(self.loss.differences, self.loss.confidence)
        return f" Student's t over the seeds: {t.low:+.4f} to {t.high:+.4f}; a verdict needs both."


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.1f}"


def judge(half: Half, places: Places) -> Judged:
    """Compare the two arms over all seeds."""
    names, where = (half.favoured, half.rival), list(places.values())
    mine, theirs = ([value(place, f"{name}-loss") for place in where] for name in names)
    right = contrasts(
        f"right when made to think, equal {half.equal}: {ARMS[half.favoured].label}, then {ARMS[half.rival].label}",
        *([evaluation(place, f"{name}-on") for place in where] for name in names),
    )
    return Judged(
        half,
        Match(half.equal, *(float(np.mean([measured(half.equal, place / name) for place in where])) for name in names)),
        contrast_of_values(
            f"held-out loss, equal {half.equal}: {ARMS[half.favoured].label}, then {ARMS[half.rival].label}",
            mine,
            theirs,
            unit="nats",
        ),
        tuple(one for one in right if max(one.a, one.b) >= FLOOR),
    )


def measured(equal: Equal, run: Path) -> float:
    """How much of it a run has or took."""
    out = RunDir(run)
    if equal == "core-seconds":
        return run_cost(out).core_seconds
    if equal == "steps":
        return sum(1 for _ in out.metrics())
    whole = account(read_model_config(out), context=CONTEXT)
    return whole.flops if equal == "active FLOPs" else whole.total


class ShapeExperiment(Experiment):
    """`halves` of the claim; the rest is alike for all shapes."""

    halves: ClassVar[tuple[Half, ...]]

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm once."""
        return tuple(dict.fromkeys(name for half in self.halves for name in (half.favoured, half.rival)))

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        return shape_jobs(self.arms, seed, share)

    def conclude(self, places: Places) -> Finding:
        judged = [judge(half, places) for half in self.halves]
        also, words = self.also(places)
        return self.found(
            places,
            verdict=together([*(one.verdict for one in judged), *also]),
            words=(*(one.words() for one in judged), *words),
            contrasts=tuple(contrast for one in judged for contrast in (one.loss, *one.accuracy)),
            tables=(arms_table(self.arms, places), rates_table(self.arms)),
            charts=(curves(self.arms, places), differences(judged)),
        )

    def also(self, places: Places) -> tuple[tuple[Verdict, ...], tuple[str, ...]]:
        """Verdicts and words on what is no comparison of losses."""
        return (), ()


def arms_table(names: Sequence[str], places: Places) -> Table:
    """What each arm is and took, and what came out; means over the seeds."""
    heads = ("arm", "parameters", "active", "FLOPs a token", "cache bytes a token", "steps", "tokens", "training FLOPs",
             "core-seconds", "loss", "right when made to think")  # fmt: skip
    rows = []
    for name in names:
        model = read_model_config(RunDir(next(iter(places.values())) / name))
        whole = account(model, context=CONTEXT)
        costs = [run_cost(RunDir(place / name)) for place in places.values()]
        losses = [float(np.mean(value(place, f"{name}-loss"))) for place in places.values()]
        right = [evaluation(place, f"{name}-on").rows("all")[0].accuracy for place in places.values()]
        rows.append(
            (
                ARMS[name].label,
                f"{whole.total:,}" + (f" + {whole.mtp:,}" if whole.mtp else ""),
                f"{whole.active:,}",
                f"{whole.flops:,}",
                f"{whole.cache_bytes:,}",
                f"{measured('steps', next(iter(places.values())) / name):,.0f}",
                f"{np.mean([cost.tokens for cost in costs]):,.0f}",
                f"{np.mean([cost.flops for cost in costs]):.3g}",
                f"{np.mean([cost.core_seconds for cost in costs]):.1f}",
                f"{np.mean(losses):.4f}",
                f"{np.mean(right):.1%}",
            )
        )
    note = (
        f"FLOPs of a forward pass of the main model with {CONTEXT} positions attended, by the account; training FLOPs count MTP. Loss in "
        "nats a token of held-out worked solutions, mean over documents, by the main model alone. Cache in two bytes a value."
    )
    return Table(title="The arms", heads=heads, rows=tuple(rows), note=note)


def rates_table(names: Sequence[str]) -> Table:
    """The learning rates that were tried, on other seeds and another split."""
    factors = sorted({factor for name in names for factor in ARMS[name].tried})
    rows = tuple(
        (
            ARMS[name].label,
            *(", ".join(_tried(name, factor, seed) for seed in DEV_SEEDS) for factor in factors),
            f"x {ARMS[name].factor:g}",
        )
        for name in names
    )
    return Table(
        title="Learning rates, chosen beforehand",
        heads=("arm", *(f"x {factor:g}" for factor in factors), "taken"),
        rows=rows,
        note=f"Loss on the dev split for seeds {' and '.join(map(str, DEV_SEEDS))} (-: not tried); factors on {MUON_RATE:g} (Muon) "
        f"and {ADAMW_RATE:g} (AdamW). Arms with more steps take the rates of their shape.",
    )


def _tried(name: str, factor: float, seed: int) -> str:
    loss = ARMS[name].tried.get(factor, {}).get(seed)
    return "-" if loss is None else f"{loss:.4f}"


def curves(names: Sequence[str], places: Places) -> Chart:
    """Training loss of the next token against core-seconds. Every problem is fresh, so it is a held-out loss but for the split."""
    series = []
    for name in names:
        seeds = [tuple(_curve(RunDir(place / name))) for place in places.values()]
        mean = np.mean(np.asarray(seeds), axis=0)  # [points, 2]
        series.append(
            Series(label=ARMS[name].label, points=tuple((float(x), float(y)) for x, y in mean), by_seed=tuple(seeds))
        )
    caption = "Loss of the next token on fresh problems, mean of a fortieth of the steps each; every seed faint. The first fifth is left out."
    return Chart(
        name="curves",
        title="Loss by time",
        x="core-seconds of training",
        y="nats a token",
        series=tuple(series),
        caption=caption,
    )


def _curve(run: RunDir) -> Iterator[tuple[float, float]]:
    records = list(run.metrics())
    spent = np.cumsum([record["core_seconds"] for record in records])
    losses = np.asarray([record["loss/next_token"] for record in records])
    bins = [part for part in np.array_split(np.arange(len(records)), BINS) if len(part)]
    for part in bins[len(bins) * UNSHOWN // BINS :]:
        yield float(spent[part[-1]]), float(losses[part].mean())


def differences(judged: Sequence[Judged]) -> Chart:
    """How much more the rival loses, at equal this and that."""
    seeds = zip(*(one.loss.by_seed for one in judged), strict=True)
    return Chart(
        name="differences",
        title="The rival's loss less the favoured arm's",
        kind="bars",
        y="nats a token",
        labels=tuple(f"equal {one.half.equal}" for one in judged),
        series=(
            Series(
                label="difference",
                points=tuple((float(i), one.loss.difference) for i, one in enumerate(judged)),
                low=tuple(one.loss.low for one in judged),
                high=tuple(one.loss.high for one in judged),
                by_seed=tuple(tuple((float(i), b - a) for i, (a, b) in enumerate(seed)) for seed in seeds),
            ),
        ),
        caption="Above 0 the claim's side is better. Bars carry 99 % intervals over seeds and documents; dots are seeds.",
    )
