"""The measurement of `rorqual attention`: what sparse attention misses on several texts, at several budgets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch

from rorqual.core.errors import ConfigError, DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.planted_passages import (
    DEPTHS,
    LENGTHS,
    PlantedKind,
    PlantedMisses,
    PlantedPassage,
    PlantedTokens,
    copies,
    measure_planted,
    needles,
    plant,
)
from rorqual.evals.sparse_attention_misses import (
    SelectionMisses,
    measure_selection_misses,
    sparse_layers,
    trained_budget,
)
from rorqual.model.decoder import Decoder


class NamedText(NamedTuple):
    """A text and its name, such as the name of the text's file."""

    name: str
    text: str


@dataclass(frozen=True)
class TextSelectionMisses:
    """What sparse attention misses on one text, for each budget of selected positions in ascending order."""

    name: str
    budgets: tuple[SelectionMisses, ...]

    def misses_at_budget(self, budget: int) -> SelectionMisses:
        """Return what sparse attention misses on this text at a budget."""
        return next(missed for missed in self.budgets if missed.budget == budget)


@dataclass(frozen=True)
class SparseAttentionReport:
    """What a model's sparse attention misses on windows and passages of at most `length` tokens.

    `trained` is the model's index_topk. All other budgets are untrained: index_topk is changed for the measurement only.
    `budgets` are the measured budgets of selected positions. At the budgets in `dense`, attention is dense.
    """

    model: str
    length: int
    trained: int
    budgets: tuple[int, ...]
    dense: tuple[int, ...]
    texts: tuple[TextSelectionMisses, ...]
    planted: tuple[PlantedMisses, ...]

    @property
    def shown_budget(self) -> int:
        """The budget of the tables that show only one budget: the trained budget, or the largest measured budget if the
        trained budget was not measured."""
        return self.trained if self.trained in self.budgets else self.budgets[-1]

    @property
    def weighted_recall(self) -> float:
        """The lowest weighted recall over all layers and texts, at the trained budget. Raises ConfigError if no text was
        measured at the trained budget."""
        if not self.texts or self.trained not in self.budgets:
            reason = "data= names no text" if not self.texts else f"attention is dense at index_topk={self.trained}"
            raise ConfigError(
                f"min_recall= has nothing to compare: {reason}",
                remedy="Give data=FILE or data=kinds, and a length= of more than index_topk.",
            )
        return min(text.misses_at_budget(self.trained).weighted_recall for text in self.texts)

    def to_json(self) -> dict[str, Any]:
        """Return all measured values as JSON, with one entry in `texts` per text and budget."""
        return {
            "model": self.model,
            "length": self.length,
            "index_topk": self.trained,
            "budgets": list(self.budgets),
            "dense_budgets": list(self.dense),
            "texts": [{"text": text.name, **missed.to_json()} for text in self.texts for missed in text.budgets],
            "planted": [missed.to_json() for missed in self.planted],
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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SparseAttentionReport:
    """Measure what the sparse attention of `model` misses, at the trained budget and at `budgets`.

    - `texts`: the first `windows` windows of `length` tokens of each text.
    - `planted`: kinds of planted text. Each kind has `windows` passages for each depth and each passage length up to
      `length` tokens.
    - `budgets`: by default a quarter, half and twice the trained budget. Budgets of `length` or more are left out.
    - `progress(done, total)` is called after each measurement. A measurement covers one budget, and either one
      text or the passages of one kind, length and depth.

    Raises ConfigError if the model has no sparse attention, and DataError if a text or a passage is too short.
    """
    trained = trained_budget(sparse_layers(model, name))
    wanted = sorted({trained, *(budgets or (trained // 4, trained // 2, 2 * trained))} - {0})
    measured = tuple(budget for budget in wanted if budget < length)
    if not measured or (trained not in measured and not budgets):
        raise DataError(
            f"a length of {length} tokens is not above index_topk={trained}, so attention is dense and nothing can be missed",
            where=name,
            remedy=f"Use a length= of more than {trained}, or smaller budgets=.",
        )
    device = next(model.parameters()).device
    tokens = [_windows(tokenizer, text, length, windows).to(device) for text in texts]
    cells = [cell for kind in planted for cell in _planted_passages(tokenizer, kind, length, windows, measured[0])]
    total, done = (len(tokens) + len(cells)) * len(measured), count(1)
    by_text: list[list[SelectionMisses]] = [[] for _ in texts]
    for found, rows in zip(by_text, tokens, strict=True):
        for budget in measured:
            found.append(measure_selection_misses(model, rows, name, budget))
            progress(next(done), total)
    by_cell: list[PlantedMisses | None] = []
    for kind, depth, passages in cells:
        for budget in measured:
            by_cell.append(measure_planted(model, kind, passages, depth, budget))
            progress(next(done), total)
    return SparseAttentionReport(
        model=name,
        length=length,
        trained=trained,
        budgets=measured,
        dense=tuple(budget for budget in wanted if budget >= length and budget in {trained, *budgets}),
        texts=tuple(TextSelectionMisses(text.name, tuple(found)) for text, found in zip(texts, by_text, strict=True)),
        planted=tuple(found for found in by_cell if found is not None),
    )


PassagesAtDepth = tuple[PlantedKind, float, list[PlantedPassage]]
"""The kind of a planted text, its depth, and passages of one length that contain it."""
KINDS: dict[PlantedKind, tuple[Callable[[Tokenizer, int], list[PlantedTokens]], Sequence[float]]] = {
    "needle": (needles, LENGTHS),
    "copy": (copies, (1.0,)),
}
"""For each kind of planted text: the function that makes the planted texts, and the passage lengths as fractions of the largest
passage length."""


def _planted_passages(
    tokenizer: Tokenizer, kind: PlantedKind, length: int, number: int, budget: int
) -> list[PassagesAtDepth]:
    """Return the passages for each passage length and depth. A pair of length and depth is left out if a query in its passages
    sees at most `budget` positions.

    The queries of a passage are the tokens of its question and its answer.
    """
    make, shares = KINDS[kind]
    parts = make(tokenizer, number)
    needed = max(part.total_tokens for part in parts)
    sizes = [size for share in shares if (size := round(share * length)) >= needed]
    found: list[PassagesAtDepth] = [
        (kind, depth, plant(tokenizer, parts, size, depth)) for size in sizes for depth in DEPTHS
    ]
    found = [cell for cell in found if min(one.queries.start for one in cell[2]) >= budget]
    if not found:
        asked = max(len(part.question) + len(part.answer) for part in parts)
        raise DataError(
            f"a passage of {length} tokens is too short for {kind}, or a query sees at most {budget} positions and attends to all",
            where=f"data={kind}",
            remedy=f"Use length={max(needed, budget + asked - 1)} or more, or smaller budgets=.",
        )
    return found


def _windows(tokenizer: Tokenizer, text: NamedText, length: int, windows: int) -> torch.Tensor:
    """Return at most `windows` windows [windows, length + 1] of a text."""
    ids = tokenizer.encode(text.text)
    number = min(windows, (len(ids) - 1) // length)
    if number < 1:
        raise DataError(
            f"the text has {len(ids)} tokens, which do not fill a window of {length}",
            where=text.name,
            remedy="Give a longer text (only its last tenth is read), or a smaller length=.",
        )
    return torch.tensor([ids[i * length : (i + 1) * length + 1] for i in range(number)])
