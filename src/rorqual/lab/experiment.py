"""Base class of experiments, with jobs for each seed and a conclusion from all seeds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rorqual.evals.verdict import SEEDS, Verdict
from rorqual.lab.finding import Finding
from rorqual.lab.job import ExperimentJob

FIRST_SEED = 100
"""First seed of the published evidence. Settings were chosen with seeds below `FIRST_SEED`, on problems of the dev
split."""


class Experiment(ABC):
    """Base class of experiments. `claim` is the tested statement, and `source` names its publication."""

    name: ClassVar[str]
    title: ClassVar[str]
    claim: ClassVar[str]
    source: ClassVar[str]
    seeds: ClassVar[int] = SEEDS
    """Number of seeds of the published result."""
    first_seed: ClassVar[int] = FIRST_SEED
    """First seed of the evidence. It is higher than `FIRST_SEED` if results of seed `FIRST_SEED` or later seeds were
    seen before the settings were final."""

    @abstractmethod
    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        """Return the jobs of one seed in dependency order.

        The jobs write to the folder `place`, and do the fraction `share` (0 to 1) of the full work.
        """

    @abstractmethod
    def conclude(self, places: Mapping[int, Path]) -> Finding:
        """Return the finding from the finished jobs of all seeds. The same files give the same finding."""

    def found(self, places: Mapping[int, Path], verdict: Verdict, words: Sequence[str], **rest: Any) -> Finding:
        """Return a finding with the experiment's title and claim. `rest` holds contrasts, tables and charts."""
        return Finding(
            experiment=self.name,
            title=self.title,
            claim=self.claim,
            source=self.source,
            verdict=verdict,
            words=tuple(words),
            seeds=tuple(places),
            **rest,
        )


def amount(full: int, share: float, least: int = 2) -> int:
    """Scale an amount of work, such as steps or problems, by `share`. The result is at least `least`."""
    return max(least, round(full * share))
