"""The dataset card of a teacher's samples: kept and dropped samples, cost and settings of the sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rorqual.core.config import to_yaml
from rorqual.core.ledger import LedgerEntry
from rorqual.core.records import write_atomic
from rorqual.data.distilled import TeacherSample
from rorqual.factory.budget import NOTHING, Spending
from rorqual.factory.card_charts import charts
from rorqual.factory.config import FactoryConfig
from rorqual.report.chart import draw
from rorqual.report.page import write_page
from rorqual.report.table import Table

REASONS: Mapping[str, str] = {
    "error": "no answer: a content filter, a tool call, or an error in mid-answer",
    "length": "cut off, or without a token",
    "wrong": "graded wrong by the task",
    "ungraded": "the grader failed or timed out, or the gold answer is unusable",
    "repetition": "too much repeated text",
    "language": "too many letters in another script",
    "contaminated": "contains consecutive words of an evaluation set",
    "duplicate": "nearly identical to an earlier sample of the problem",
}
VERDICTS = ("right", "wrong", "ungraded")


@dataclass(frozen=True)
class CardFindings:
    """The contents of a dataset card.

    - `costs`: seconds and core-seconds of each stage of the factory, over all calls. The stage `unaccounted` covers the choice
      of problems and the loading of the teacher.
    - `met`: number of problems that were excluded because they match an evaluation set.
    - `missing`: number of samples that the budget did not cover, or None if the dataset is complete.
    """

    config: FactoryConfig
    rows: Sequence[TeacherSample]
    costs: Sequence[LedgerEntry]
    met: int
    notes: Sequence[str]
    spending: Spending = NOTHING
    missing: int | None = None

    @property
    def kept_samples(self) -> list[TeacherSample]:
        """The samples that passed all filters."""
        return [row for row in self.rows if not row.dropped]

    @property
    def core_seconds(self) -> float:
        """The total processor time of all stages in seconds."""
        return sum(stage.core_seconds for stage in self.costs)


def write_card(out: Path, findings: CardFindings) -> None:
    """Write the dataset card to the folder `out`, as `card.md`, and as `card.html` with charts. Each of the two files is
    self-contained."""
    tables, summary = list(_tables(findings)), _summary(findings)
    text = [f"# Samples of {_teacher_description(findings)}", summary, *findings.notes]
    for table in tables:
        text += [f"## {table.title}", table.markdown()]
    settings = f"## Settings\n\n```yaml\n{to_yaml(findings.config)}```\n"
    markdown = escape("\n\n".join(text), quote=False)  # a server's text may contain HTML
    write_atomic(out / "card.md", f"{markdown}\n\n{settings}".encode())
    write_page(
        out / "card.html",
        "card",
        title=f"Samples of {_teacher_description(findings)}",
        summary=summary,
        facts=list(_facts(findings)),
        notes=findings.notes,
        tables=tables,
        pictures={chart.name: draw(chart) for chart in charts(findings.rows)},
        settings=to_yaml(findings.config),
    )


def _teacher_description(findings: CardFindings) -> str:
    return findings.rows[0].teacher if findings.rows else findings.config.teacher


def _summary(findings: CardFindings) -> str:
    config, rows, kept = findings.config, findings.rows, findings.kept_samples
    text = (
        f"{len(rows)} samples of {len({row.key for row in rows})} problems of {config.task}. The filters kept {len(kept)} samples of"
        f" {len({row.key for row in kept})} problems."
    )
    if findings.missing is not None:
        text += f" The budget was reached: {findings.missing} samples are missing."
    if findings.met:
        text += f" {findings.met} problems were excluded because they match an evaluation set: contaminated.jsonl lists them."
    return text


def _facts(findings: CardFindings) -> Iterator[tuple[str, str, str]]:
    rows, kept = findings.rows, findings.kept_samples
    yield "kept", f"{len(kept)}", f"of {len(rows)} samples"
    right = sum(row.verdict == "right" for row in rows)
    yield "right", _share(right, len(rows)), f"{right} samples"
    tokens = sum(row.completion_tokens for row in rows)
    yield "tokens sampled", f"{tokens:,}", f"{sum(row.completion_tokens for row in kept):,} kept"
    if findings.config.remote:
        money = findings.spending
        yield "paid", f"{money.total:.4g}", f"{money.paid:.4g} for received answers, {money.lost:.4g} lost"
    yield "core-seconds", f"{findings.core_seconds:.1f}", "choosing, sampling, filtering"


def _tables(findings: CardFindings) -> Iterator[Table]:
    names = dict.fromkeys(row.family for row in findings.rows)
    families = [[name, *_counts([row for row in findings.rows if row.family == name])] for name in names]
    if len(families) > 1:
        families.append(["all", *_counts(findings.rows)])
    verdicts = [name.capitalize() for name in VERDICTS]
    heads = ("Family", "Problems", "Samples", *verdicts, "Share right", "Kept", "Kept tokens, mean")
    yield Table(title="Families", heads=heads, rows=families)
    dropped = Counter(row.dropped for row in findings.rows if row.dropped)
    reasons = [[name, meaning, str(dropped[name])] for name, meaning in REASONS.items() if dropped[name]]
    reasons.append(["kept", "", str(len(findings.kept_samples))])
    yield Table(title="Filters", heads=("Reason", "Meaning", "Samples"), rows=reasons, text_columns=2)
    if findings.config.remote:
        models = Counter(row.model for row in findings.rows)
        named = [[findings.config.model, name or "no name, or no answer", str(models[name])] for name in sorted(models)]
        heads = ("Model requested", "Model that answered", "Samples")
        yield Table(title="Models", heads=heads, rows=named, text_columns=2)
    money = findings.spending
    if money.total:
        spent = [
            _money_row("paid, by our count", money.kept + money.lost_requests, money.total),
            _money_row("kept: answer received", money.kept, money.paid),
            _money_row("lost: no answer received, possibly billed", money.lost_requests, money.lost),
        ]
        yield Table(title="Money", heads=("Requests", "Number", "Money"), rows=spent)
    stages = [[cost.stage, f"{cost.seconds:.1f}", f"{cost.core_seconds:.1f}"] for cost in findings.costs]
    yield Table(title="Cost", heads=("Stage", "Seconds", "Core-seconds"), rows=stages)


def _money_row(name: str, requests: int, money: float) -> list[str]:
    return [name, str(requests), f"{money:.6g}"]


def _counts(rows: Sequence[TeacherSample]) -> list[str]:
    verdicts: Counter[str] = Counter(row.verdict for row in rows)
    kept = [row.completion_tokens for row in rows if not row.dropped]
    return [
        str(len({row.key for row in rows})),
        str(len(rows)),
        *(str(verdicts[name]) for name in VERDICTS),
        _share(verdicts["right"], verdicts["right"] + verdicts["wrong"]),
        str(len(kept)),
        f"{sum(kept) / len(kept):.1f}" if kept else "-",
    ]


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else "-"
