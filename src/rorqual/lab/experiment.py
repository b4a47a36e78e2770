"""The base of experiments: jobs for each seed, and a conclusion from all seeds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rorqual.evals.verdict import SEEDS, Verdict
from rorqual.lab.finding import Finding
from rorqual.lab.job import ExperimentJob

FIRST_SEED = 100
"""The first seed of the evidence. Settings were chosen on smaller seeds, and on problems of the dev split."""


class Experiment(ABC):
    """The base of experiments. `claim` is the tested statement, `source` where it was published."""

    name: ClassVar[str]
    title: ClassVar[str]
    claim: ClassVar[str]
    source: ClassVar[str]
    seeds: ClassVar[int] = SEEDS
    """Number of seeds of the published result."""
    first_seed: ClassVar[int] = FIRST_SEED
    """The first seed; higher if a seed from 100 on was inspected while settings were chosen."""

    @abstractmethod
    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        """Return the jobs of one seed in the folder `place`, in dependency order, at `share` (0 to 1) of the full work."""

    @abstractmethod
    def conclude(self, places: Mapping[int, Path]) -> Finding:
        """Return the finding from all seeds, whose jobs are done. Pure: the same files give the same finding."""

    def found(self, places: Mapping[int, Path], verdict: Verdict, words: Sequence[str], **rest: Any) -> Finding:
        """Return a finding with the experiment's title and claim; `rest` are contrasts, tables and charts."""
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
    """Return `share` of an amount of work, such as steps or problems."""
    return max(least, round(full * share))
