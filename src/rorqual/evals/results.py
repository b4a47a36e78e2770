"""Compare the accuracies and losses of several runs, each with one seed or several: as text, JSON, LaTeX, a vector plot or an HTML
page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rorqual.core.config import parse_config
from rorqual.core.errors import DataError
from rorqual.core.records import RunDir, read_json, write_atomic, write_json
from rorqual.evals.compare import Comparison, compare_seeds, compare_texts
from rorqual.evals.evaluation import ALL, Evaluation, Grain
from rorqual.evals.table import comparison_table, unmarked_replies_note
from rorqual.evals.text_loss import TextLoss
from rorqual.evals.verdict import CONFIDENCE
from rorqual.report.chart import Chart, Panel, Series, draw, figure_of, render_figure
from rorqual.report.page import write_page
from rorqual.report.table import Table
from rorqual.report.theme import LIGHT

Result = Evaluation | TextLoss
Source = str | Path | Result
Arm = Source | Sequence[Source]
"""The result of one seed (a run folder, a result file, or a result), or one result per seed."""


@dataclass(frozen=True)
class ArmComparison:
    """The comparison of the arm `after` with the arm `before` on one evaluation. `evaluation` is the name of the evaluation's
    file in the runs, or "" for single files."""

    evaluation: str
    before: str
    after: str
    rows: tuple[Comparison, ...]
    note: str = ""

    @property
    def title(self) -> str:
        """The names of the evaluation and of both arms, and the number of seeds if there are several."""
        seeds = max((len(row.by_seed) for row in self.rows), default=1)
        named = f"{self.evaluation}: " if self.evaluation else ""
        return f"{named}{self.after} - {self.before}, paired" + (f" over {seeds} seeds" if seeds > 1 else "")

    def table(self) -> Table:
        """Return the differences as a table."""
        return comparison_table(self.rows, self.title)

    def panel(self) -> Panel:
        """Chart each row's difference with its intervals."""
        labels = [f"{row.family} {row.level if row.level != ALL else ''}".strip() for row in self.rows]
        shown = {"bootstrap": [row.difference.interval for row in self.rows]}
        if all(row.student for row in self.rows):
            shown["Student's t"] = [row.student for row in self.rows if row.student]
        series = [Series(label="", style="dashed", colour="faint", points=[(-0.5, 0.0), (len(labels) - 0.5, 0.0)])]
        series += [
            Series(
                label=name if len(shown) > 1 else "",
                colour="off" if name == "bootstrap" else "after",
                points=[(place, row.difference.mean) for place, row in enumerate(self.rows)],
                low=[interval.low for interval in intervals],
                high=[interval.high for interval in intervals],
            )
            for name, intervals in shown.items()
        ]
        share = self.rows[0].unit == "points"
        axis = "difference in percentage points" if share else "difference in nats per token"
        return Panel(title=self.title, kind="points", flip=True, labels=labels, series=series, percent=share, y=axis)


@dataclass(frozen=True)
class Results:
    """The comparisons of several arms with the first arm, for each evaluation that all runs contain."""

    comparisons: tuple[ArmComparison, ...]

    def __str__(self) -> str:
        return "\n".join(text for one in self.comparisons for text in (one.table().text(), one.note) if text)

    def to_json(self, path: str | Path) -> None:
        """Write all values as JSON, in full precision."""
        shown = [vars(one) | {"rows": [row.to_json() for row in one.rows]} for one in self.comparisons]
        write_json(Path(path), {"comparisons": shown})

    def to_latex(self, path: str | Path) -> None:
        """Write the tables for LaTeX's package booktabs."""
        write_atomic(Path(path), "\n".join(one.table().latex() for one in self.comparisons).encode())

    def chart(self) -> Chart:
        """Chart the differences, with one panel per comparison."""
        panels = [one.panel() for one in self.comparisons]
        words = "; ".join(
            f"{one.title}, {' '.join(filter(None, row[:2]))}: {row[2]} and {row[3]}, difference {row[4]}"
            for one in self.comparisons
            for row in one.table().rows
        )
        return Chart(name="differences", panels=panels, columns=1, alt=words, caption="Each line is an interval.")

    def plot(self, path: str | Path) -> None:
        """Draw the chart as FILE.svg, FILE.pdf or FILE.png. Raises ConfigError for another suffix."""
        format_ = Path(path).suffix.lower().removeprefix(".")
        write_atomic(Path(path), render_figure(partial(figure_of, self.chart()), LIGHT, format_))

    def page(self, path: str | Path) -> None:
        """Write an HTML page with the chart and the tables."""
        write_page(Path(path), "results", comparisons=self.comparisons, picture=draw(self.chart()))


AGREEMENT = (
    "These shares are agreement with the golden answers, right or wrong. For accuracy, write `expected` in the golden file, and run "
    "`rorqual compare RUN golden=FILE` for each model."
)


def compare(*arms: Arm, names: Sequence[str] = (), grain: Grain = "family", confidence: float = CONFIDENCE) -> Results:
    """Compare each arm with the first arm, paired by seed and by problem or passage of text.

    An arm is a run folder, a result file of `rorqual eval`, or the result itself; or a list of these, one per seed. The i-th
    seeds of two arms are paired. Run folders are compared on every evaluation that all runs contain. `names` are the names of
    the arms. Each row covers a family, a family and level, or all problems, as `grain` selects.

    Each difference has an interval over seeds and problems (score interval and bootstrap; for losses, the bootstrap alone) and,
    with several seeds, Student's t interval over the seeds. A verdict needs both intervals and five seeds.

    Raises DataError if there are fewer than two arms, if their results cannot be paired, or if runs have no evaluation in common.
    Raises DataError if an arm has a result twice, if the arms list the same training seeds in another order, or if the
    evaluation of a run folder is of another step than the folder's newest checkpoint.
    """
    listed = [[arm] if isinstance(arm, Source) else list(arm) for arm in arms]
    labels = list(names) or [_arm_name(arm, place) if arm else "" for place, arm in enumerate(listed)]
    if len(listed) < 2 or not all(listed) or len(labels) != len(listed):
        raise DataError(
            f"{len(listed)} arms with {len(labels)} names and {', '.join(str(len(arm)) for arm in listed)} runs",
            where="compare",
            remedy="Give two or more arms, each with at least one run, and one name for each arm or none.",
        )
    found = [[_results_of(run) for run in arm] for arm in listed]
    comparisons = []
    for name in _common_names(found, labels):
        loaded = [[_load(run[name], in_run=bool(name)) for run in arm] for arm in found]
        _check_seeds(listed, loaded)
        base, *others = loaded
        for label, other in zip(labels[1:], others, strict=True):
            evaluation = name.removesuffix(".json")
            comparisons.append(_compare_arms(evaluation, (labels[0], label), base, other, grain, confidence))
    return Results(tuple(comparisons))


def _compare_arms(
    evaluation: str, labels: tuple[str, str], before: list[Result], after: list[Result], grain: Grain, confidence: float
) -> ArmComparison:
    old_texts, new_texts = ([one for one in side if isinstance(one, TextLoss)] for side in (before, after))
    olds, news = ([one for one in side if isinstance(one, Evaluation)] for side in (before, after))
    if olds and news and not old_texts + new_texts:
        rows = compare_seeds(olds, news, grain=grain, confidence=confidence)
        note = unmarked_replies_note(dict(zip(labels, (olds[0], news[0]), strict=True))) if len(olds) == 1 else ""
        golden = AGREEMENT if any(one.task == "golden" for one in (*olds, *news)) else ""
        notes = filter(None, [golden, note, _other_settings(olds, news)])
        return ArmComparison(evaluation, *labels, tuple(rows), "\n".join(notes))
    if olds + news:
        raise DataError(
            "losses on a text cannot be compared with answers to problems",
            where=f"compare {', '.join(labels)}",
            remedy="Give results of one kind.",
        )
    return ArmComparison(evaluation, *labels, (compare_texts(old_texts, new_texts, confidence=confidence),))


def _check_seeds(sources: Sequence[Sequence[Source]], results: Sequence[Sequence[Result]]) -> None:
    """Raise DataError if an arm has a result twice, or if another order of an arm would pair equal training seeds."""
    labels = [[_arm_name([source], place) for place, source in enumerate(arm)] for arm in sources]
    seeds = [[one.training_seed for one in arm] for arm in results]
    for names, arm, own in zip(labels, results, seeds, strict=True):
        contents = [_content(one) for one in arm]
        for place, content in enumerate(contents):
            if (earlier := contents.index(content)) < place:
                raise DataError(
                    f"seeds {earlier + 1} and {place + 1} of an arm are the same result: {names[earlier]} and {names[place]}",
                    where="compare",
                    remedy="Give each seed's result once.",
                )
            if None not in own and Counter(own) == Counter(seeds[0]) and own[place] != seeds[0][place]:
                raise DataError(
                    f"{labels[0][place]} has training seed {seeds[0][place]}, but its pair {names[place]} has {own[place]}",
                    where="compare",
                    remedy="List the seeds of all arms in the same order.",
                )


def _content(result: Result) -> object:
    """Return what differs between the results of two seeds: exact losses or log-probabilities. Replies may be the same."""
    if isinstance(result, TextLoss):
        return result.losses
    return result.samples if any(sample.logprob for sample in result.samples) else result


def _other_settings(before: Sequence[Evaluation], after: Sequence[Evaluation]) -> str:
    """Name the settings that differ between the evaluations of a pair."""
    notes = {
        key: f"{key} {old[key]!r} and {new[key]!r}"
        for old, new in zip(map(_settings, before), map(_settings, after), strict=True)
        for key in old
        if old[key] != new.get(key, old[key])
    }
    return f"The evaluations have different settings: {'; '.join(notes.values())}." if notes else ""


def _settings(result: Evaluation) -> dict[str, object]:
    """Return the settings by which the replies to given problems may differ."""
    return {
        **asdict(result.params),
        "thinking": result.thinking,
        "stop_when": result.stop_when,
        "system": result.system,
        **{key: value for key, value in result.settings.items() if key in ("refine", "verifier", "dtype", "backend")},
    }


def _arm_name(runs: Sequence[Source], place: int) -> str:
    """Return the path of an arm's first run or the name of its first model, and the number of further seeds."""
    first = str(runs[0]) if isinstance(runs[0], str | Path) else runs[0].model
    return (first or f"arm {place + 1}") + (f" (+{len(runs) - 1})" if len(runs) > 1 else "")


def _results_of(run: Source) -> Mapping[str, Path | Result]:
    """Return the results of a run by the name of their file. A single result has the name ""."""
    if isinstance(run, str | Path):
        folder = Path(run)
        return {file.name: file for file in (folder / "evals").glob("*.json")} if folder.is_dir() else {"": folder}
    return {"": run}


def _load(result: Path | Result, *, in_run: bool) -> Result:
    """Return the result. Raises DataError if the result is in a run folder whose newest checkpoint is of another step."""
    if not isinstance(result, Path):
        return result
    data = read_json(result, "the evaluation", "Run `rorqual eval` again to create it.")
    kind: type[Result] = TextLoss if "losses" in data else Evaluation
    loaded = parse_config(kind, data, where=str(result))
    newest = RunDir(result.parent.parent).newest_complete_step()[0] if in_run else None
    if None not in (newest, loaded.step) and newest != loaded.step:
        raise DataError(
            f"this evaluation is of step {loaded.step}, but the run's newest checkpoint is of step {newest}",
            where=str(result),
            remedy=f"Repeat `rorqual eval {result.parent.parent}` with the same keys, or give result files instead of folders.",
        )
    return loaded


def _common_names(found: Sequence[Sequence[Mapping[str, Path | Result]]], labels: Sequence[str]) -> list[str]:
    """Return the names of the evaluations that all runs contain, sorted. Raises DataError if there are none."""
    common = set.intersection(*(set(run) for arm in found for run in arm))
    if not common:
        raise DataError(
            "the runs have no evaluation in common, or one is a file and another a folder",
            where=", ".join(labels),
            remedy=f"Evaluate all on one task: rorqual eval {labels[0]} task=NAME, and the others with the same keys.",
        )
    return sorted(common)
