"""The base of experiments: jobs for each seed, and what is concluded from all seeds together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rorqual.evals.verdict import SEEDS, Verdict
from rorqual.lab.finding import Finding
from rorqual.lab.job import ExperimentJob

FIRST_SEED = 100
"""Evidence begins at this seed. Settings were chosen on smaller ones, and on problems of the dev split."""


class Experiment(ABC):
    """`claim` is what is said, `source` who says it and where."""

    name: ClassVar[str]
    title: ClassVar[str]
    claim: ClassVar[str]
    source: ClassVar[str]
    seeds: ClassVar[int] = SEEDS
    """How many seeds the published result has."""
    first_seed: ClassVar[int] = FIRST_SEED
    """The first of them; later where a seed from 100 on was looked at while settings were chosen."""

    @abstractmethod
    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        """The work of one seed in the folder `place`, each job after those it needs. `share` of the full amounts, 0 to 1."""

    @abstractmethod
    def conclude(self, places: Mapping[int, Path]) -> Finding:
        """What the seeds, all done, show together. Pure: the same files give the same finding."""

    def found(self, places: Mapping[int, Path], verdict: Verdict, words: Sequence[str], **rest: Any) -> Finding:
        """A finding under the experiment's own title and claim; `rest` are contrasts, tables and charts."""
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
    """`share` of an amount of work: steps, problems."""
    return max(least, round(full * share))
