"""The report of a fine-tuning job as an HTML page: the loss of each step, and the models that can be asked."""

from __future__ import annotations

from pathlib import Path

from rorqual.fine_tuning.store import CHECKPOINT, Job, JobFolder
from rorqual.report.chart import Chart, Series, draw
from rorqual.report.page import write_page
from rorqual.report.table import Table


def write_report(job: Job, folder: JobFolder, *, epochs: int) -> None:
    """Write the report of a job whose training of `epochs` epochs has ended to its folder."""
    steps, kept = [*folder.run.metrics()], {line["step_number"] for line in folder.checkpoints()}
    lines = [line for line in folder.checkpoint_lines() if line["step_number"] or len(line["metrics"]) > 1]
    names = dict.fromkeys(name for line in lines for name in line["metrics"] if name != "step")
    series = [Series(label="training loss", points=tuple((one["step"], one["loss"]) for one in steps))]
    if "full_valid_loss" in names:
        points = tuple((line["step_number"], line["metrics"]["full_valid_loss"]) for line in lines)
        series.append(Series(label="validation loss", points=points))
    chart = Chart(name="loss", x="step", y="loss", series=tuple(series), caption="The loss of each step.")
    rows = [
        (
            f"{job.model_name}{CHECKPOINT}{step}" if step in kept else "deleted" if step else "base model",
            f"{step:,}",
            *(f"{line['metrics'][name]:.4f}" if name in line["metrics"] else "" for name in names),
        )
        for line in lines
        for step in [line["step_number"]]
    ]
    table = Table(title="models", heads=("name", "step", *names), rows=rows)
    facts = [
        ("base model", Path(job.base).name, f"asked for as {job.model}"),
        ("method", job.method.type, ""),
        ("steps", f"{len(steps):,}", f"{epochs} epoch{'s' * (epochs > 1)}"),
        ("trained tokens", f"{sum(int(one['tokens']) for one in steps):,}", ""),
        ("seed", f"{job.seed}", ""),
    ]
    write_page(folder.report_file, "tune", name=job.model_name, facts=facts, picture=draw(chart), table=table)
