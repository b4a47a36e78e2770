"""The quickstart's report: one HTML file that needs no network, and its charts as PNG files in a subfolder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rorqual.core.ledger import LedgerEntry, sum_entries
from rorqual.core.records import write_atomic
from rorqual.evals.evaluation import EvaluationRow, GradedSample, level_sort_key
from rorqual.evals.table import best_baseline_text, percent, percent_interval, unmarked_replies_note
from rorqual.recipes.quickstart.charts import SETTINGS, charts, rows_by_family
from rorqual.recipes.quickstart.comparisons import OF_TEACHER, OWN_CHOICE, sign_of
from rorqual.recipes.quickstart.findings import Findings, metric_points, read_findings
from rorqual.recipes.quickstart.student_report import student_contents
from rorqual.report.chart import DrawnChart, draw
from rorqual.report.page import render_page
from rorqual.report.table import Table
from rorqual.tasks.task import Verdict

REPORT_FILE, PICTURES = "report.html", "pictures"


def build_report(folder: Path) -> Path:
    """Write `folder/report.html` and `folder/pictures/*.png`, and return the report's path.

    Each picture has a light version and a dark version, `NAME-dark.png`.

    The folder must contain these files:
    - `base/metrics.jsonl` and `teacher/metrics.jsonl` are the training records of SFT and of GRPO. The report shows a
      metric without records as "not recorded".
    - `evals/{before,after}-{auto,on,off}.json` are evaluations of the same problems, written by `Evaluation.save`.
    - `summary.json` is `{"model": {"total", "active", "cache_bytes_per_token", "flops_per_token", ...}, "stages":
      [{"name", "tokens", "flops", "solved", "core_seconds", "seconds"}], "seed", "command"}`. A run with a student also has
      `"student"` (like `model`) and `"branches": [{"name", "title", "modes", "stages"}]`.
    - `evals/student-NAME-MODE.json` are the evaluations of each branch.

    Raises RorqualError, before anything is written, if a file is missing or invalid. The same files in the folder give pictures
    with identical bytes.
    """
    findings = read_findings(folder)
    pictures = {chart.name: draw(chart) for chart in charts(findings)}
    text = report_text(findings, pictures)
    for name, picture in pictures.items():
        write_atomic(folder / PICTURES / f"{name}.png", picture.light)
        write_atomic(folder / PICTURES / f"{name}-dark.png", picture.dark)
    write_atomic(folder / REPORT_FILE, text.encode())
    return folder / REPORT_FILE


def report_text(findings: Findings, pictures: Mapping[str, DrawnChart]) -> str:
    """Return the report's HTML. A picture that is not in `pictures` is left out."""
    auto, stages = findings.evaluations["after", "auto"], findings.summary.stages
    counts = Counter(sample.family for sample in auto.samples)
    return render_page(
        "quickstart",
        pictures=pictures,
        findings=findings,
        signs=[sign_of(row.difference.interval) for row in OWN_CHOICE.rows(findings.evaluations, "family")],
        comparisons=[one.table(findings.evaluations) for one in OF_TEACHER],
        models=[(model_facts(model), model) for model in (findings.summary.model, findings.summary.student) if model],
        grpo={name: [value for _, value in metric_points(findings.grpo, *keys)] for name, keys in AGREEMENT.items()},
        ungraded=sum(
            row.ungraded for when, mode, _, _ in SETTINGS for row in findings.evaluations[when, mode].rows("all")
        ),
        readings=unmarked_replies_note({f"{when}, {mode}": one for (when, mode), one in findings.evaluations.items()}),
        accuracy=accuracy_table(findings),
        costs=costs_table(stages, findings.summary.core_hour),
        transcripts={family: transcripts(findings, family) for family in findings.families},
        problems=", ".join(f"{number} of {family}" for family, number in counts.items()),
        evaluation=auto,
        student=student_contents(findings) if findings.students else None,
    )


AGREEMENT = {
    "mean": ("logprob_diff_mean", "logprob_diff"),
    "most": ("logprob_diff_max",),
    "flips": ("routing_flips",),
    "equal": ("groups_equal",),
    "groups": ("groups_total",),
}
"""Metrics of the difference between sampler and trainer, and of groups without a gradient: name in the report's
template -> names in the training records."""
FACTS = {
    "total": ("parameters, total", ""),
    "active": ("parameters, active", "used for one token"),
    "cache_bytes_per_token": ("KV cache per token", "bytes"),
    "flops_per_token": ("FLOPs per token", "one forward pass"),
    "mtp": ("parameters of the MTP module", "beside the total"),
}


def model_facts(model: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Return the sizes of a model as tuples (label, figure, explanation)."""
    return [(label, f"{model[name]:,}", small) for name, (label, small) in FACTS.items() if name in model]


def accuracy_table(findings: Findings) -> Table:
    """Return a table of the accuracy by family and level, with one column per entry of `SETTINGS`."""
    evaluations = [findings.evaluations[when, mode] for when, mode, _, _ in SETTINGS]
    rows: list[tuple[str, ...]] = []
    for family in findings.families:
        tables = [{row.level: row for row in one.rows("level") if row.family == family} for one in evaluations]
        rows += [(family,), *(_accuracy_row(level, [table[level] for table in tables]) for level in tables[0])]
        if len(tables[0]) != 1:
            rows.append(_accuracy_row("all", [rows_by_family(one)[family] for one in evaluations]))
    heads = ("level", "problems", "best baseline", *(f"{when}, {mode}" for when, mode, _, _ in SETTINGS))
    return Table(title="accuracy", heads=heads, rows=rows)


def _accuracy_row(level: str, rows: Sequence[EvaluationRow]) -> tuple[str, ...]:
    cells = (f"{percent(row.accuracy)} {percent_interval(row.interval)}" for row in rows)
    return (level, str(rows[0].problems), best_baseline_text(rows[0]), *cells)


def costs_table(stages: Sequence[LedgerEntry], core_hour: float) -> Table:
    """Return a table of the cost of each stage, and of the total cost."""
    heads = (
        "stage",
        "tokens",
        "FLOPs",
        "core-seconds",
        "seconds",
        "US cents",
        "solved",
        "US\u00a0$ per million solved",
    )
    rows = [
        (
            stage.stage,
            f"{stage.tokens:,.0f}",
            scientific(stage.flops),
            f"{stage.core_seconds:,.1f}",
            f"{stage.seconds:,.1f}",
            f"{100 * stage.cost_usd(core_hour):,.3f}",
            f"{stage.solved:,.0f}" if stage.solved else "",
            f"{1e6 * stage.cost_usd(core_hour) / stage.solved:,.2f}" if stage.solved else "",
        )
        for stage in (*stages, sum_entries(stages))
    ]
    return Table(title="cost by stage", heads=heads, rows=rows)


def scientific(value: float) -> str:
    """Format a number in scientific notation, for example `1234567.0` as `1.23 × 10⁶`."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def transcripts(findings: Findings, family: str) -> list[list[tuple[str, str, str]]]:
    """Return transcripts of the hardest right and the hardest wrong answer of a family after GRPO, each with the answer
    to the same problem before GRPO. Each line of a transcript is (title, text, CSS class)."""
    before = {sample.key: sample for sample in reversed(findings.evaluations["before", "auto"].samples)}
    own = [sample for sample in findings.evaluations["after", "auto"].samples if sample.family == family]
    found = []
    for verdict in (Verdict.RIGHT, Verdict.WRONG):
        sample = hardest_sample([sample for sample in own if sample.verdict is verdict])
        if sample is not None:
            level = f"level {sample.level}" if sample.level else "problem"
            lines = [
                (level, sample.prompt, ""),
                ("right answer", sample.answer, ""),
                *_answer_transcript("after GRPO", sample),
            ]
            found.append(
                lines + (_answer_transcript("before GRPO", before[sample.key]) if sample.key in before else [])
            )
    return found


def hardest_sample(samples: list[GradedSample]) -> GradedSample | None:
    """Return the first of the samples with the highest level of difficulty. Numeric levels compare as numbers."""
    return max(samples, key=lambda sample: level_sort_key(sample.level), default=None)


def _answer_transcript(title: str, sample: GradedSample) -> list[tuple[str, str, str]]:
    verdict = "not graded" if sample.verdict is Verdict.UNGRADED else sample.verdict.value
    cut = ", cut off at the limit" if sample.truncated else ""
    how = "" if sample.thought else ", answered at once"
    thinking = (
        [(f"thinking, {sample.thinking_tokens} tokens", sample.reasoning or "", "thought")] if sample.thought else []
    )
    return [*thinking, (f"{title}: {verdict}{cut}{how}", sample.reply or "(nothing)", verdict.replace(" ", "-"))]
