"""Claims about a model's shape, split into parts: each part compares two arms at equal cost of one kind.

A part holds if the rival's loss minus the favoured arm's lies above 0 by both 99 % intervals: the bootstrap's, and
Student's t over the seeds. It does not hold if both lie below. A part whose costs differ by more than its tolerance is
open, regardless of the losses. The claim holds if all parts hold, and does not hold if one does not.

The rule of two intervals and at least five seeds is that of `rorqual.evals.verdict`. At first the rule was the
bootstrap alone. What was added after the evidence can only turn a verdict to open.
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
"""Families in which neither arm is right more often than this are left out: they show nothing."""
BINS, UNSHOWN = 40, 8
"""Points of a curve, and how many of its first ones the chart omits: these are steep and similar in all arms."""
Places = Mapping[int, Path]


@dataclass(frozen=True)
class EqualBudgetClaim:
    """One part of a claim: arm `favoured` is better than arm `rival` at equal `equal`."""

    equal: Equal
    favoured: str
    rival: str


@dataclass(frozen=True)
class Match:
    """The quantity that should be equal, as measured: means over the seeds."""

    equal: Equal
    favoured: float
    rival: float

    @property
    def excess(self) -> float:
        """The relative excess of the larger value over the smaller one."""
        return max(self.favoured, self.rival) / min(self.favoured, self.rival) - 1

    @property
    def fair(self) -> bool:
        """Whether the excess is within the tolerance."""
        return self.excess <= TOLERANCE[self.equal] + 1e-12


@dataclass(frozen=True)
class JudgedClaim:
    """A part with its evidence. Contrasts are rival minus favoured arm."""

    half: EqualBudgetClaim
    match: Match
    loss: Contrast
    accuracy: tuple[Contrast, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict by the rule of this module."""
        return self.loss.sign if self.match.fair else "open"

    def words(self) -> str:
        """Return the result of the part in sentences."""
        a, b, loss = ARMS[self.half.favoured].label, ARMS[self.half.rival].label, self.loss
        text = (
            f"At equal {self.half.equal} ({_shown(self.match.favoured)} and {_shown(self.match.rival)}), held-out loss is {loss.a:.4f} nats "
            f"per token for {a} and {loss.b:.4f} for {b}. The second minus the first is "
            f"{loss.difference:+.4f} ({loss.difference / loss.a:+.1%}), 99 % interval {loss.low:+.4f} to {loss.high:+.4f}."
        )
        whole = [one for one in self.accuracy if one.of == "all"]
        if whole:
            one = whole[0]
            text += (
                f" Made to think, they are right on {one.a:.1%} and {one.b:.1%} of held-out problems: {100 * one.difference:+.1f} points, "
                f"{100 * one.low:+.1f} to {100 * one.high:+.1f}."
            )
        if not self.match.fair:
            return text + (
                f" The {self.half.equal} differ by {self.match.excess:.0%}, more than the {TOLERANCE[self.half.equal]:.0%} "
                "that the rule allows, so there is no verdict."
            )
        ends = {"holds": f"Better: {a}.", "does not hold": f"Better: {b}.", "open": "Which is better is open."}
        return f"{text} {ends[self.loss.sign]}{self._by_seeds()}"

    def _by_seeds(self) -> str:
        """State the interval of Student's t over the seeds."""
        if len(self.loss.by_seed) < 2:
            return ""
        t = t_interval(self.loss.differences, self.loss.confidence)
        return f" Student's t over the seeds gives {t.low:+.4f} to {t.high:+.4f}. A verdict needs both intervals."


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.1f}"


def judge(half: EqualBudgetClaim, places: Places) -> JudgedClaim:
    """Compare the two arms over all seeds."""
    names, where = (half.favoured, half.rival), list(places.values())
    mine, theirs = ([value(place, f"{name}-loss") for place in where] for name in names)
    right = contrasts(
        f"right when made to think, equal {half.equal}: {ARMS[half.favoured].label}, then {ARMS[half.rival].label}",
        *([evaluation(place, f"{name}-on") for place in where] for name in names),
    )
    return JudgedClaim(
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
    """Return the amount of the quantity `equal` that a run has or used."""
    out = RunDir(run)
    if equal == "core-seconds":
        return run_cost(out).core_seconds
    if equal == "steps":
        return sum(1 for _ in out.metrics())
    whole = account(read_model_config(out), context=CONTEXT)
    return whole.flops if equal == "active FLOPs" else whole.total


class ShapeExperiment(Experiment):
    """An experiment on a model's shape, defined by the parts of its claim, `halves`."""

    halves: ClassVar[tuple[EqualBudgetClaim, ...]]

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms, each once."""
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
        """Return verdicts and sentences beyond the comparison of losses; none by default."""
        return (), ()


def arms_table(names: Sequence[str], places: Places) -> Table:
    """Return size, cost and result of each arm, as means over the seeds."""
    heads = ("arm", "parameters", "active", "FLOPs per token", "cache bytes per token", "steps", "tokens", "training FLOPs",
             "core-seconds", "loss", "accuracy made to think")  # fmt: skip
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
        f"FLOPs: computed for a forward pass of the main model with {CONTEXT} attended positions; training FLOPs include MTP. Loss: nats "
        "per token of held-out worked solutions, mean over documents, main model only. Cache: two bytes per value."
    )
    return Table(title="The arms", heads=heads, rows=tuple(rows), note=note)


def rates_table(names: Sequence[str]) -> Table:
    """Return the learning rates that were tried on other seeds and another split."""
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
        title="Learning rates, chosen before the evidence",
        heads=("arm", *(f"x {factor:g}" for factor in factors), "used"),
        rows=rows,
        note=f"Loss on the dev split for seeds {' and '.join(map(str, DEV_SEEDS))} (-: not tried). Factors multiply {MUON_RATE:g} (Muon) "
        f"and {ADAMW_RATE:g} (AdamW). Arms with more steps use the rates of their shape.",
    )


def _tried(name: str, factor: float, seed: int) -> str:
    loss = ARMS[name].tried.get(factor, {}).get(seed)
    return "-" if loss is None else f"{loss:.4f}"


def curves(names: Sequence[str], places: Places) -> Chart:
    """Return training loss over core-seconds. Every problem is new, so it equals a held-out loss except for the split."""
    series = []
    for name in names:
        seeds = [tuple(_curve(RunDir(place / name))) for place in places.values()]
        mean = np.mean(np.asarray(seeds), axis=0)  # [points, 2]
        series.append(
            Series(label=ARMS[name].label, points=tuple((float(x), float(y)) for x, y in mean), by_seed=tuple(seeds))
        )
    caption = "Next-token loss on new problems, averaged over a fortieth of the steps. Faint lines: each seed. The first fifth is omitted."
    return Chart(
        name="curves",
        title="Loss over time",
        x="core-seconds of training",
        y="nats per token",
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


def differences(judged: Sequence[JudgedClaim]) -> Chart:
    """Return the excess loss of the rival for each part."""
    seeds = zip(*(one.loss.by_seed for one in judged), strict=True)
    return Chart(
        name="differences",
        title="Loss of the rival minus loss of the favoured arm",
        kind="bars",
        y="nats per token",
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
        caption="Above 0, the favoured arm is better. Bars have 99 % intervals over seeds and documents; dots are seeds.",
    )
