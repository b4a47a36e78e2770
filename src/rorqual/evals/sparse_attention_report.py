"""The measurement of `rorqual attention`: what sparse attention changes on several texts, at several budgets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any, NamedTuple

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.damage import DamageSummary, NamedText, PassageDamage, limits_exceeded, mean_damage, summarise
from rorqual.evals.planted_passages import DEPTHS, LENGTHS, PlantedKind, PlantedTokens, copies, needles, plant
from rorqual.evals.sparse_attention_damage import (
    LayerSelection,
    Passage,
    measure_damage,
    sparse_layers,
    trained_budget,
)
from rorqual.model.decoder import Decoder


@dataclass(frozen=True)
class Measurement:
    """What sparse attention changes at `budget` selected positions, on passages of `length` tokens from one text, or with one
    kind of planted text at one depth.

    `name` is the text's name or the kind. `depth` is the share of the filler before the planted text, or None for a text.
    """

    name: str
    length: int
    depth: float | None
    budget: int
    passages: tuple[PassageDamage, ...]
    layers: tuple[LayerSelection, ...]

    @property
    def selected_share(self) -> float:
        """Share of the dense attention to the sought positions that lies on selected positions, over all layers."""
        total = sum(layer.attention for layer in self.layers)
        return sum(layer.attention * layer.inside for layer in self.layers) / total if total else 1.0


@dataclass(frozen=True)
class SparseAttentionReport:
    """What a model's sparse attention changes on passages of at most `length` tokens.

    `trained` is the model's index_topk. All other budgets are untrained: index_topk is changed for the measurement only.
    `budgets` are the measured budgets of selected positions. At the budgets in `dense`, attention is dense.
    """

    model: str
    length: int
    trained: int
    budgets: tuple[int, ...]
    dense: tuple[int, ...]
    measurements: tuple[Measurement, ...]

    @property
    def shown_budget(self) -> int:
        """The budget of the tables that show only one budget: the trained budget, or the largest measured budget if the
        trained budget was not measured."""
        return self.trained if self.trained in self.budgets else self.budgets[-1]

    def summaries(self, budget: int) -> dict[str, DamageSummary]:
        """Return the damage at a budget for each text and each kind of planted text. For a planted text, the values are means
        over all lengths and depths, because the same text at other depths is not independent."""
        found: dict[str, list[tuple[PassageDamage, ...]]] = {}
        for one in self.measurements:
            if one.budget == budget:
                found.setdefault(one.name, []).append(one.passages)
        return {
            name: summarise([mean_damage(same) for same in zip(*passages, strict=True)])
            for name, passages in found.items()
        }

    def exceeded(self, limits: Mapping[str, float]) -> list[str]:
        """Return a sentence for each limit that the upper end of an interval exceeds, at the model's own budget. `limits` maps
        names of differences (kl, changed or lost) to the largest acceptable values."""
        return limits_exceeded(self.summaries(self.trained), limits)

    def to_json(self) -> dict[str, Any]:
        """Return all measured values as JSON."""
        return asdict(self) | {
            "measurements": [asdict(one) | {"kept": one.selected_share} for one in self.measurements],
            "summaries": {
                budget: {name: asdict(damage) for name, damage in self.summaries(budget).items()}
                for budget in self.budgets
            },
        }


def measure_sparse_attention(
    model: Decoder,
    tokenizer: Tokenizer,
    texts: Sequence[NamedText],
    planted: Collection[PlantedKind] = (),
    *,
    name: str,
    length: int,
    windows: int = 8,
    budgets: Sequence[int] = (),
    limited: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SparseAttentionReport:
    """Measure what the sparse attention of `model` changes, at the trained budget and at `budgets`.

    - `texts`: the first `windows` windows of `length` tokens of each text.
    - `planted`: kinds of planted text. Each kind has `windows` passages for each depth and each passage length up to
      `length` tokens.
    - `budgets`: by default a quarter, half and twice the trained budget. Budgets of `length` or more are left out.
    - `limited`: whether the trained budget must be measured, because limits will be compared with it.
    - `progress(done, total)` is called after each measurement. A measurement covers one budget, and either one
      text or the passages of one kind, length and depth.

    Raises ConfigError if the model has no sparse attention, and DataError if a text or a passage is too short.
    """
    trained = trained_budget(sparse_layers(model, name))
    wanted = sorted({trained, *(budgets or (trained // 4, trained // 2, 2 * trained))} - {0})
    measured = tuple(budget for budget in wanted if budget < length)
    if not measured or (trained not in measured and (limited or not budgets)):
        raise DataError(
            f"a length of {length} tokens is not above index_topk={trained}, so attention is dense and nothing can be missed",
            where=name,
            remedy=f"Use a length= of more than {trained}, or smaller budgets= and no limit.",
        )
    least = trained if limited else measured[0]
    cells = [
        *(_windows(tokenizer, text, length, windows) for text in texts),
        *(cell for kind in planted for cell in _planted_passages(tokenizer, kind, length, windows, least)),
    ]
    total, done, found = len(cells) * len(measured), count(1), list[Measurement]()
    for cell in cells:
        for budget in measured:
            if passages := cell.at_budget(budget):
                damage, layers = measure_damage(model, passages, budget)
                found.append(
                    Measurement(cell.name, passages[0].length, cell.depth, budget, tuple(damage), tuple(layers))
                )
            progress(next(done), total)
    return SparseAttentionReport(
        model=name,
        length=length,
        trained=trained,
        budgets=measured,
        dense=tuple(budget for budget in wanted if budget >= length and budget in {trained, *budgets}),
        measurements=tuple(found),
    )


class PassageSet(NamedTuple):
    """Passages of one length from one text, or with one kind of planted text at one depth."""

    name: str
    depth: float | None
    passages: Sequence[Passage]

    def at_budget(self, budget: int) -> Sequence[Passage]:
        """Return the passages with the queries that see more than `budget` positions. Return no passages if an answer or its
        question sees at most `budget` positions."""
        if self.depth is not None:
            return self.passages if min(one.queries.start for one in self.passages) >= budget else ()
        sparse = range(budget, self.passages[0].length)
        return [replace(one, queries=sparse, scored=sparse) for one in self.passages]


PLANTED: dict[PlantedKind, tuple[Callable[[Tokenizer, int], list[PlantedTokens]], Sequence[float]]] = {
    "needle": (needles, LENGTHS),
    "copy": (copies, (1.0,)),
}
"""For each kind of planted text: the function that makes the planted texts, and the passage lengths as fractions of the largest
passage length."""


def _planted_passages(
    tokenizer: Tokenizer, kind: PlantedKind, length: int, number: int, budget: int
) -> list[PassageSet]:
    """Return the passages for each passage length and depth that can miss a position at `budget` selected positions."""
    make, shares = PLANTED[kind]
    parts = make(tokenizer, number)
    needed = max(part.total_tokens for part in parts)
    sizes = [size for share in shares if (size := round(share * length)) >= needed]
    found = [PassageSet(kind, depth, plant(tokenizer, parts, size, depth)) for size in sizes for depth in DEPTHS]
    found = [one for one in found if one.at_budget(budget)]
    if not found:
        asked = max(len(part.question) + len(part.answer) for part in parts)
        raise DataError(
            f"a passage of {length} tokens is too short for {kind}, or a query sees at most {budget} positions and attends to all",
            where=f"data={kind}",
            remedy=f"Use length={max(needed, budget + asked - 1)} or more, or smaller budgets=.",
        )
    return found


def _windows(tokenizer: Tokenizer, text: NamedText, length: int, windows: int) -> PassageSet:
    """Return at most `windows` windows of a text."""
    rows, everything = text.windows(tokenizer, length, windows), range(length)
    return PassageSet(text.name, None, [Passage(row, everything, everything, everything) for row in rows])
