"""The result of an evaluation: every graded sample, and summaries that are computed only from the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rorqual.core.config import Config, parse_config
from rorqual.core.records import StopWhen, Thinking, read_json, write_json
from rorqual.engine.request import SamplingParams
from rorqual.evals.stats import Interval, wilson
from rorqual.tasks.task import Split, Verdict

Grain = Literal["level", "family", "all"]
ALL = "all"


class GradedSample(Config):
    """A graded reply to a problem. `answer` is the gold answer. Lengths of prompt and reply are in tokens. `prompt_tokens` is 0 in
    files of older Rorqual versions, or if the generator does not report it.

    `verdict` grades the marked answer (`Task.grade`). `last` grades the last number, label or line of the reply
    (`Task.grade_last`). An `unmarked` reply has no marked answer and is therefore wrong. Files of older Rorqual versions lack
    `last` and `unmarked`.

    `answered` is the reply's answer in canonical form (`Task.canonical_answer`), if the evaluation counts votes. `logprob` is
    the mean log-probability of the reply's tokens, if the generator returns it. `score` is a verifier's log-odds that the reply
    is right (`evals.trained_verifier`). `earlier` are the earlier replies of the conversation, which the model was asked to
    check, oldest first (`refine`). `error` is the reason why the sample has no reply. `chance` occurs only in older files, and
    is ignored.
    """

    key: str
    family: str
    level: str = ""
    prompt: str
    answer: str
    reply: str
    reasoning: str | None
    verdict: Verdict
    last: Verdict | None = None
    unmarked: bool = False
    prompt_tokens: int = 0
    tokens: int
    thinking_tokens: int
    thought: bool
    truncated: bool
    chance: float | None = None
    error: str = ""
    answered: str | None = None
    logprob: float | None = None
    score: float | None = None
    earlier: tuple[GradedSample, ...] = ()

    @property
    def total_tokens(self) -> int:
        """Number of generated tokens, earlier replies included."""
        return self.tokens + sum(sample.tokens for sample in self.earlier)


@dataclass(frozen=True)
class EvaluationRow:
    """The summary of the samples of one family and level. A pooled row has the family or level `all`.

    `accuracy` covers graded samples only. `unmarked` is the share of samples without a marked answer, and `last` is the
    accuracy if the last number, label or line of each reply is its answer. These three are means over problems, each of which is
    the mean of the problem's samples. For older files, `unmarked` and `last` are NaN. `interval` is the Wilson interval of
    `accuracy` over problems, because samples of one problem are not independent.
    `thinking_length` is the mean length of the thinking in tokens, over samples with thinking.
    """

    family: str
    level: str
    problems: int
    graded: int
    right: int
    ungraded: int
    accuracy: float
    unmarked: float
    last: float
    interval: Interval
    baselines: dict[str, float]
    thought: float
    thinking_length: float
    length: float
    truncated: int

    @property
    def best_baseline(self) -> tuple[str, float]:
        """The name and accuracy of the best baseline, or ("", NaN) if the row has no baselines."""
        return max(self.baselines.items(), key=lambda item: item[1], default=("", math.nan))


class Provenance(Config):
    """The origin of a result: the name of the model in tables, the step of its checkpoint, the seed of its training run, and the
    settings of `rorqual eval`. In files of older Rorqual versions, and for servers, `step` and `training_seed` are None. If
    `rorqual eval` did not make the result, `settings` is empty."""

    model: str = ""
    step: int | None = None
    training_seed: int | None = None
    settings: dict[str, Any] = {}


class Evaluation(Provenance):
    """Graded samples with the evaluation settings that produced the samples. One evaluation is saved as one JSON file.

    `baselines` maps `family`, `family/level` and `all` to the accuracy of rules that use only surface features of a
    prompt (evals/baselines.py). `versions` maps each family to the version of its problems. A family that is not in `versions`
    has version 1. If `stop_when` is not "never", sampling ended early where `evals.votes.stop_rule` allowed it. `usage` sums
    the generator's token counts. `seconds` is the wall-clock time. For a resumed evaluation, `seconds` covers only the time
    since the last resumption.
    """

    task: str
    split: Split
    seed: int
    count: int
    per_family: bool
    thinking: Thinking
    params: SamplingParams
    stop_when: StopWhen = "never"
    system: str = ""
    samples: tuple[GradedSample, ...]
    baselines: dict[str, dict[str, float]] = {}
    versions: dict[str, int] = {}
    usage: dict[str, int] = {}
    seconds: float = 0.0

    @property
    def problem_keys(self) -> list[str]:
        """The distinct problem keys, in order of first appearance."""
        return list(dict.fromkeys(sample.key for sample in self.samples))

    @property
    def samples_by_problem(self) -> dict[str, list[GradedSample]]:
        """The samples of each problem, by key."""
        groups: dict[str, list[GradedSample]] = {}
        for sample in self.samples:
            groups.setdefault(sample.key, []).append(sample)
        return groups

    def rows(self, grain: Grain = "level", confidence: float = 0.95) -> list[EvaluationRow]:
        """Return one summary per (family, level), per family, or for all samples, in order of first appearance."""
        groups: dict[tuple[str, str], list[GradedSample]] = {}
        for sample in self.samples:
            groups.setdefault(family_and_level(sample, grain), []).append(sample)
        if grain == "level":
            order = list(dict.fromkeys(family for family, _ in groups))
            groups = dict(
                sorted(groups.items(), key=lambda item: (order.index(item[0][0]), level_sort_key(item[0][1])))
            )
        return [self._row(name, group, confidence) for name, group in groups.items()]

    def _row(self, name: tuple[str, str], group: list[GradedSample], confidence: float) -> EvaluationRow:
        graded = [sample for sample in group if sample.verdict is not Verdict.UNGRADED]
        read = [sample for sample in group if sample.last is not None]
        lasts = [sample for sample in read if sample.last is not Verdict.UNGRADED]
        thinking = [sample.thinking_tokens for sample in group if sample.thought]
        return EvaluationRow(
            family=name[0],
            level=name[1],
            problems=len({sample.key for sample in group}),
            graded=len(graded),
            right=sum(sample.verdict is Verdict.RIGHT for sample in graded),
            ungraded=len(group) - len(graded),
            accuracy=_mean_over_problems(graded, lambda sample: sample.verdict is Verdict.RIGHT),
            unmarked=_mean_over_problems(read, lambda sample: sample.unmarked),
            last=_mean_over_problems(lasts, lambda sample: sample.last is Verdict.RIGHT),
            interval=accuracy_interval(graded, confidence),
            baselines=self.baselines.get(baseline_key(*name), {}),
            thought=len(thinking) / len(group),
            thinking_length=_mean(thinking),
            length=_mean(sample.tokens for sample in group),
            truncated=sum(sample.truncated for sample in group),
        )

    def save(self, path: Path) -> None:
        """Write the evaluation as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read a file written by `save`. Raises DataError with path and key if the file is missing or invalid."""
        data = read_json(path, "the evaluation", "Run `rorqual eval` again to create it.")
        return parse_config(cls, data, where=str(path))


def family_and_level(sample: GradedSample, grain: Grain) -> tuple[str, str]:
    """Return the (family, level) under which a sample is counted at `grain`."""
    return {"level": (sample.family, sample.level), "family": (sample.family, ALL), "all": (ALL, ALL)}[grain]


def baseline_key(family: str, level: str) -> str:
    """Return the key in `Evaluation.baselines` of a cell (family and level)."""
    return f"{family}/{level}" if level not in ("", ALL) else family


def level_sort_key(level: str) -> tuple[int, float, str]:
    """Return a sort key for levels: numeric levels first, in order of value, then all other levels, in order of name."""
    try:
        return (0, float(level), level)
    except ValueError:
        return (1, 0.0, level)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else 0.0


def accuracy_interval(graded: list[GradedSample], confidence: float) -> Interval:
    """Return Wilson's interval of the accuracy over problems. Several samples of a problem count as one problem."""
    values = mean_per_problem(graded, lambda sample: float(sample.verdict is Verdict.RIGHT))
    return wilson(min(math.fsum(values.values()), len(values)), len(values), confidence)


def _mean_over_problems(samples: list[GradedSample], value: Callable[[GradedSample], float]) -> float:
    return _mean(mean_per_problem(samples, value).values()) if samples else math.nan


def mean_per_problem(samples: Iterable[GradedSample], value: Callable[[GradedSample], float]) -> dict[str, float]:
    """Return, for each problem key, the mean of `value` over the problem's samples."""
    by_key: dict[str, list[float]] = {}
    for sample in samples:
        by_key.setdefault(sample.key, []).append(value(sample))
    return {key: _mean(values) for key, values in by_key.items()}
