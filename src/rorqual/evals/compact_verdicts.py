"""Compact verdicts with one character per problem. Older results of experiments, and results of benchmarks, store the verdicts,
so that any interval of the result can be recomputed."""

from __future__ import annotations

from rorqual.core.config import Config
from rorqual.tasks.task import Split

ORDER = (
    "right, thought: one string per seed, one character per problem. The character is the number of samples that are right (that "
    "thought), at most 9; - means that none could be graded. groups: per seed, 'family/level: problems' in the same order. Within a "
    "group, problems are in the order in which the task draws them for the split and the seed. So the same position is the same "
    "problem in every string of a seed."
)


class CompactVerdicts(Config):
    """Verdicts of evaluations on the same problems. `right` and `thought` map an evaluation's name to one string per seed."""

    task: str
    split: Split
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    right: dict[str, tuple[str, ...]]
    thought: dict[str, tuple[str, ...]] = {}
    order: str = ORDER
