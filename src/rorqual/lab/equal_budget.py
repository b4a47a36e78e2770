"""Claims about a model's shape, split into parts. Each part compares two arms at equal steps, parameters, FLOPs or time.

The difference of a part is the loss of the arm `rival` minus the loss of the arm `favoured`. The difference has two 99 %
intervals: the bootstrap, and Student's t over the seeds. The part holds if both intervals lie above 0, and does not
hold if both lie below 0. If the costs of the two arms differ by more than the tolerance, the part's verdict is "open",
regardless of the losses. The claim holds if all parts hold. If at least one part does not hold, the claim does not hold
either.

`rorqual.evals.verdict` defines the rule of two intervals and at least five seeds. An earlier rule used only the
bootstrap. Some conditions were added after the results were known. These conditions can only change a verdict to open.
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

Equal = Literal["active FLOPs", "parameters", "steps", "core-seconds", "experts per token"]
TOLERANCE: Mapping[Equal, float] = {
    "active FLOPs": 0.03,
    "parameters": 0.03,
    "steps": 0.0,
    "core-seconds": 0.15,
    "experts per token": 0.03,
}
FLOOR = 0.05
"""Minimum accuracy of the better arm on a family. Families below `FLOOR` are left out, because accuracies near 0 show
no difference between arms."""
BINS, UNSHOWN = 40, 8
"""Number of points per curve, and how many of them the chart omits at the start. At the omitted points, the curves are
steep and similar in all arms."""
Places = Mapping[int, Path]


@dataclass(frozen=True)
class EqualBudgetClaim:
    """One part of a claim: the arm `favoured` is better than the arm `rival` if both use the same amount of the
    resource `equal`."""

    equal: Equal
    favoured: str
    rival: str


@dataclass(frozen=True)
class EqualQuantity:
    """The quantity that should be equal in the two arms. `favoured` and `rival` are its measured means over the seeds."""

    equal: Equal
    favoured: float
    rival: float

    @property
    def excess(self) -> float:
        """The relative excess of the larger value over the smaller value."""
        return max(self.favoured, self.rival) / min(self.favoured, self.rival) - 1

    @property
    def fair(self) -> bool:
        """Whether the excess is within the tolerance."""
        return self.excess <= TOLERANCE[self.equal] + 1e-12


@dataclass(frozen=True)
class JudgedClaim:
    """A part of a claim with its evidence. Each contrast is the value of the arm `rival` minus the value of the arm
    `favoured`."""

    half: EqualBudgetClaim
    match: EqualQuantity
    loss: Contrast
    accuracy: tuple[Contrast, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict: open if the compared amounts differ too much, else the result of the two 99 % intervals."""
        return self.loss.sign if self.match.fair else "open"

    def words(self) -> str:
        """Return the result of the part in sentences."""
        a, b, loss = ARMS[self.half.favoured].label, ARMS[self.half.rival].label, self.loss
        text = (
            f"At equal {self.half.equal} ({_shown(self.match.favoured)} and {_shown(self.match.rival)}), held-out loss is {loss.a:.4f} nats "
            f"per token for {a} and {loss.b:.4f} for {b}. The second minus the first is "
            f"{loss.difference:+.4f} ({loss.difference / loss.a:+.1%}), 99 % interval {loss.low:+.4f} to {loss.high:+.4f}."
        )
        pooled = [right for right in self.accuracy if right.of == "all"]
        if pooled:
            right = pooled[0]
            text += (
                f" Made to think, they are right on {right.a:.1%} and {right.b:.1%} of held-out problems: {100 * right.difference:+.1f} points, "
                f"{100 * right.low:+.1f} to {100 * right.high:+.1f}."
            )
        if not self.match.fair:
            return text + (
                f" The {self.half.equal} differ by {self.match.excess:.0%}, more than the {TOLERANCE[self.half.equal]:.0%} "
                "that the rule allows, so there is no verdict."
            )
        ends = {"holds": f"Better: {a}.", "does not hold": f"Better: {b}.", "open": "Which is better is open."}
        return f"{text} {ends[self.loss.sign]}{self._by_seeds()}"

    def _by_seeds(self) -> str:
        """Return a sentence with Student's t interval over the seeds."""
        if len(self.loss.by_seed) < 2:
            return ""
        t = t_interval(self.loss.differences, self.loss.confidence)
        return f" Student's t over the seeds gives {t.low:+.4f} to {t.high:+.4f}. A verdict needs both intervals."


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def judge(half: EqualBudgetClaim, places: Places) -> JudgedClaim:
    """Compare the two arms of a part over all seeds."""
    names, where = (half.favoured, half.rival), list(places.values())
    favoured_losses, rival_losses = ([value(place, f"{name}-loss") for place in where] for name in names)
    right = contrasts(
        f"right when made to think, equal {half.equal}: {ARMS[half.favoured].label}, then {ARMS[half.rival].label}",
        *([evaluation(place, f"{name}-on") for place in where] for name in names),
    )
    return JudgedClaim(
        half,
        EqualQuantity(
            half.equal, *(float(np.mean([measured(half.equal, place / name) for place in where])) for name in names)
        ),
        contrast_of_values(
            f"held-out loss, equal {half.equal}: {ARMS[half.favoured].label}, then {ARMS[half.rival].label}",
            favoured_losses,
            rival_losses,
            unit="nats",
        ),
        tuple(contrast for contrast in right if max(contrast.a, contrast.b) >= FLOOR),
    )


def measured(equal: Equal, run: Path) -> float:
    """Return how much a run has of the quantity `equal`, such as its number of steps or its core-seconds."""
    out = RunDir(run)
    if equal == "core-seconds":
        return run_cost(out).core_seconds
    if equal == "steps":
        return sum(1 for _ in out.metrics())
    if equal == "experts per token":
        return float(value(run.parent, f"{run.name}-experts")["mean"])
    size = account(read_model_config(out), context=CONTEXT)
    return size.flops if equal == "active FLOPs" else size.total


class ShapeExperiment(Experiment):
    """Base class of experiments on a model's shape. `parts` lists the parts of the claim."""

    parts: ClassVar[tuple[EqualBudgetClaim, ...]]

    @property
    def arms(self) -> tuple[str, ...]:
        """The distinct arms of all parts."""
        return tuple(dict.fromkeys(name for half in self.parts for name in (half.favoured, half.rival)))

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        return shape_jobs(self.arms, seed, share)

    def conclude(self, places: Places) -> Finding:
        judged = [judge(half, places) for half in self.parts]
        also, words = self.also(places)
        return self.found(
            places,
            verdict=together([*(part.verdict for part in judged), *also]),
            words=(*(part.words() for part in judged), *words),
            contrasts=tuple(contrast for part in judged for contrast in (part.loss, *part.accuracy)),
            tables=(arms_table(self.arms, places), rates_table(self.arms)),
            charts=(curves(self.arms, places), differences(judged)),
        )

    def also(self, places: Places) -> tuple[tuple[Verdict, ...], tuple[str, ...]]:
        """Return additional verdicts and sentences, which do not compare losses. The base class returns none."""
        return (), ()


def arms_table(names: Sequence[str], places: Places) -> Table:
    """Return a table of the size, cost and result of each arm, as means over the seeds."""
    heads = ("arm", "parameters", "active", "FLOPs per token", "cache bytes per token", "steps", "tokens", "training FLOPs",
             "core-seconds", "loss", "accuracy made to think")  # fmt: skip
    rows = []
    for name in names:
        model = read_model_config(RunDir(next(iter(places.values())) / name))
        size = account(model, context=CONTEXT)
        costs = [run_cost(RunDir(place / name)) for place in places.values()]
        losses = [float(np.mean(value(place, f"{name}-loss"))) for place in places.values()]
        right = [evaluation(place, f"{name}-on").rows("all")[0].accuracy for place in places.values()]
        rows.append(
            (
                ARMS[name].label,
                f"{size.total:,}" + (f" + {size.mtp:,}" if size.mtp else ""),
                f"{size.active:,}",
                f"{size.flops:,}",
                f"{size.cache_bytes:,}",
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
    """Return a table of the learning rates that were tried. Learning rates were tried on the dev split and on seeds
    that the evidence does not use."""
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
    """Return a chart of training loss over core-seconds. No training problem is repeated, so the training loss is
    comparable to held-out loss."""
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
    """Return a chart of the loss difference of each part, `rival` minus `favoured`."""
    seeds = zip(*(part.loss.by_seed for part in judged), strict=True)
    return Chart(
        name="differences",
        title="Loss of the rival minus loss of the favoured arm",
        kind="bars",
        y="nats per token",
        labels=tuple(f"equal {part.half.equal}" for part in judged),
        series=(
            Series(
                label="difference",
                points=tuple((float(i), part.loss.difference) for i, part in enumerate(judged)),
                low=tuple(part.loss.low for part in judged),
                high=tuple(part.loss.high for part in judged),
                by_seed=tuple(tuple((float(i), b - a) for i, (a, b) in enumerate(seed)) for seed in seeds),
            ),
        ),
        caption="Above 0, the favoured arm is better. Bars have 99 % intervals over seeds and documents; dots are seeds.",
    )
