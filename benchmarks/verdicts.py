"""Compact verdicts of evaluations, as benchmarks store them with a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rorqual.evals.compact_verdicts import CompactVerdicts
from rorqual.evals.evaluation import Evaluation, GradedSample, baseline_key, family_and_level, level_sort_key
from rorqual.tasks.task import Verdict

Samples = list[GradedSample]


def compact_verdicts(by_name: Mapping[str, Sequence[Evaluation]], seeds: Sequence[int]) -> tuple[CompactVerdicts, ...]:
    """Return the compact verdicts of the evaluations in `by_name`. Each name has one evaluation per seed.

    Evaluations with the same problems in the same groups share one `CompactVerdicts`.
    """
    shared: dict[tuple[str, tuple[str, ...]], CompactVerdicts] = {}
    for name, evaluations in by_name.items():
        task, split, grouped = (
            evaluations[0].task,
            evaluations[0].split,
            [_group_samples(problems) for problems in evaluations],
        )
        groups = tuple(" | ".join(f"{baseline_key(*c)}: {len(p)}" for c, p in problems.items()) for problems in grouped)
        empty = CompactVerdicts(task=task, split=split, seeds=tuple(seeds), groups=groups, right={})
        old = shared.get((task, groups), empty)
        right, thought = (
            tuple(_characters_per_problem(problems, count) for problems in grouped)
            for count in (_right_count_character, _thinking_count_character)
        )
        shared[task, groups] = old.model_copy(
            update={"right": old.right | {name: right}, "thought": old.thought | {name: thought}}
        )
    return tuple(shared.values())


def _group_samples(evaluation: Evaluation) -> dict[tuple[str, str], dict[str, Samples]]:
    """Return the samples of an evaluation by (family, level), then by problem key. The (family, level) pairs are sorted."""
    groups: dict[tuple[str, str], dict[str, Samples]] = {}
    for sample in evaluation.samples:
        groups.setdefault(family_and_level(sample, "level"), {}).setdefault(sample.key, []).append(sample)
    return dict(sorted(groups.items(), key=lambda item: (item[0][0], level_sort_key(item[0][1]))))


def _characters_per_problem(
    grouped: Mapping[tuple[str, str], Mapping[str, Samples]], count: Callable[[Samples], str]
) -> str:
    return "".join(count(samples) for problems in grouped.values() for samples in problems.values())


def _right_count_character(samples: Samples) -> str:
    graded = [sample for sample in samples if sample.verdict is not Verdict.UNGRADED]
    return str(min(9, sum(sample.verdict is Verdict.RIGHT for sample in graded))) if graded else "-"


def _thinking_count_character(samples: Samples) -> str:
    return str(min(9, sum(sample.thought for sample in samples)))


def counts_per_problem(
    kept: CompactVerdicts, name: str, seed: int, family: str = "all", *, thought: bool = False
) -> list[float | None]:
    """Return, for each problem of a family, the number of correct samples. With `thought`, return the number of samples
    with thinking. None stands for an ungraded problem."""
    place = kept.seeds.index(seed)
    line = (kept.thought if thought else kept.right)[name][place]
    groups = [group.rpartition(": ") for group in kept.groups[place].split(" | ")]
    families = [group.partition("/")[0] for group, _, count in groups for _ in range(int(count))]
    chosen = (mark for mark, own in zip(line, families, strict=True) if family in ("all", own))
    return [None if mark == "-" else float(mark) for mark in chosen]
