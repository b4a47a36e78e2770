"""The quickstart's report: one HTML file that needs no network, and its pictures as PNG files in a subfolder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from rorqual.core.records import write_atomic
from rorqual.evals import page
from rorqual.evals.claims import TOPICS, SupportedClaim, account, claims, student_claims
from rorqual.evals.evaluation import Row
from rorqual.evals.pictures import DARK, LIGHT, png
from rorqual.evals.plots import SETTINGS, pictures
from rorqual.evals.reading import Findings, read_findings
from rorqual.evals.report_claims import claim_tables, points, points_interval
from rorqual.evals.report_cost import cost
from rorqual.evals.report_students import main_claim, students
from rorqual.evals.series import series
from rorqual.evals.table import baseline, percent, percent_interval, reading_note, version_note
from rorqual.evals.transcripts import transcripts

REPORT_FILE, PICTURES = "report.html", "pictures"


def build_report(folder: Path) -> Path:
    """Write `folder/report.html` and `folder/pictures/*.png`, and return the report's path.

    Each picture has a light version and a dark version, `NAME-dark.png`.

    The folder must contain these files:
    - `base/metrics.jsonl` has the records of stage `sft`, and `teacher/metrics.jsonl` has the records of stage `grpo`.
      The report shows a metric without records as "not recorded".
    - `evals/{before,after}-{auto,on,off}.json` are evaluations of the same problems, written by `Evaluation.save`.
    - `evals/experts.json` is `{"layers": [...], "families": [...], "share": [layer][family][expert], "load":
      [layer][expert]}`.
    - `summary.json` is `{"model": {"total", "active", "cache_bytes_per_token", "flops_per_token", ...}, "stages":
      [{"name", "tokens", "flops", "solved", "core_seconds", "seconds"}], "seed", "command"}`. A run with a student also has
      `"student"` (like `model`) and `"branches": [{"name", "title", "modes", "stages"}]`.
    - `evals/student-NAME-MODE.json` are the evaluations of each branch. The folders `distilled`, `answers-only` and
      `reinforced` contain the metrics of these branches.

    Raises RorqualError, before anything is written, if a file is missing or invalid. The same data gives the same picture bytes,
    except for the `clock*` pictures, which show measured time.
    """
    findings = read_findings(folder)
    drawn = {}
    for name, picture in pictures(findings).items():
        light, dark = png(picture, LIGHT), png(picture, DARK)
        drawn[name] = (page.figure(picture, light, dark), light, dark)
    text = report_text(findings, {name: html for name, (html, _, _) in drawn.items()})
    for name, (_, light, dark) in drawn.items():
        write_atomic(folder / PICTURES / f"{name}.png", light)
        write_atomic(folder / PICTURES / f"{name}-dark.png", dark)
    write_atomic(folder / REPORT_FILE, text.encode())
    return folder / REPORT_FILE


def report_text(findings: Findings, figures: Mapping[str, str]) -> str:
    """Return the report's HTML. `figures` maps the name of each picture to its HTML."""
    supported, of_student = claims(findings), student_claims(findings)
    student = (
        [("students", "Distilled against reinforced", students(findings, of_student, figures))] if of_student else []
    )
    sections = [
        ("claims", "What changed in this model", claim_tables(supported, TOPICS)),
        ("model", "The model", _model(findings)),
        ("learning", "Learning", [figures["learning-curves"], *_agreement(findings)]),
        ("accuracy", "Accuracy on held-out problems", _accuracy(findings, figures)),
        ("reinforcement", "What GRPO changed", _changed(findings, figures)),
        ("experts", "Which experts serve which family", _experts(findings, figures)),
        *student,
        ("cost", "Cost", cost(findings, figures)),
        ("transcripts", "Transcripts", transcripts(findings)),
        ("repeat", "Repeat this run", _repeat(findings)),
    ]
    links = "\n".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    ledes = _lede(findings, supported) + _student_lede(findings, of_student)
    head = f"<header><h1>What a small model learned</h1>{ledes}<nav>{links}</nav></header>"
    body = [head, *(page.section(name, title, *parts) for name, title, parts in sections)]
    return page.page("Rorqual: quickstart report", "\n".join(body))


def _lede(findings: Findings, supported: Sequence[SupportedClaim]) -> str:
    gains = account(findings)
    signs = [item.claim.sign for item in supported if item.topic is TOPICS[0]]
    problems = len(findings.evaluations["before", "auto"].keys)
    text = (
        f"The accuracy on {problems} held-out problems of {len(findings.families)} families went from {gains.before:.1%} before "
        f"GRPO to {gains.after:.1%} after it. The model chooses whether to think. After correction for the number of claims, "
        f"accuracy is higher in {signs.count('higher')} of {len(signs)} families and lower in {signs.count('lower')}."
    )
    return page.para(text, "lede") + page.para(_where_from(findings), "")


def _student_lede(findings: Findings, supported: Sequence[SupportedClaim]) -> str:
    if not supported:
        return ""
    main = main_claim(supported)
    prompts = {sample.family: sample.prompt for sample in findings.students["distilled", "auto"].samples}
    examples = "; ".join(prompts[family] for family in sorted(prompts))
    return page.para(
        f"A student with a quarter of the active parameters, distilled from this model, is right on {main.paired.after:.1%} of "
        f"{main.paired.difference.pairs} held-out problems. It was trained only on problems such as: {examples}. At other families "
        f"and lengths, it may fail. With GRPO instead of distillation, a student with the same base is right on "
        f"{main.paired.before:.1%}: {points(main.claim.estimate)} points, 99 % interval "
        f"{points_interval(main.wide)} over problems. One run cannot compare the methods; "
        "rorqual lab distil-vs-rl does."
    )


def _where_from(findings: Findings) -> str:
    """Return sentences that compare two gains in accuracy: from GRPO, and from forcing the model before GRPO to think."""
    gains = account(findings)
    if gains.gain <= 0:
        return "GRPO brought no gain over all families together."
    text = (
        f"Before GRPO, making the model think takes it from {gains.before:.1%} to {gains.before_made_to_think:.1%} without any "
        f"training. By its own choice, the model thought on {gains.thought_before:.1%} of problems before GRPO and on "
        f"{gains.thought_after:.1%} after it. "
    )
    share = gains.by_choice / gains.gain
    if share >= 0.8:
        return text + (
            "So the choice to think explains nearly all of the gain. "
            f"After GRPO, the model made to think reaches {gains.after_made_to_think:.1%}."
        )
    if share >= 0.4:
        return text + "So the choice to think explains a large part of the gain, but not all."
    return text + "So the choice to think explains little of the gain."


KNOWN_FACTS = {
    "total": ("parameters, total", ""),
    "active": ("parameters, active", "used for one token"),
    "cache_bytes_per_token": ("KV cache per token", "bytes"),
    "flops_per_token": ("FLOPs per token", "one forward pass"),
}


def _model(findings: Findings) -> list[str]:
    return [*_account(findings.summary.model), *_student_account(findings)]


def _student_account(findings: Findings) -> list[str]:
    student = findings.summary.student
    if not student:
        return []
    return [page.Html("<h3>The student</h3>"), *_account(student)]


def _account(model: Mapping[str, float | int | str]) -> list[str]:
    items = []
    for name, value in model.items():
        what, small = KNOWN_FACTS.get(name, (name.replace("_", " "), ""))
        items.append(
            (what, f"{value:,.0f}" if isinstance(value, int | float) and value == int(value) else str(value), small)
        )
    total, active = (model.get(name) for name in ("total", "active"))
    parts = [page.facts(items)]
    if isinstance(total, int | float) and isinstance(active, int | float) and active < total:
        parts.append(page.para(f"One token uses {active / total:.1%} of the parameters.", "note"))
    return parts


def _agreement(findings: Findings) -> list[str]:
    """Report the difference between the sampler's and the trainer's log-probabilities, if the run recorded it."""
    _, means = series(findings.grpo, "logprob_diff_mean", "logprob_diff")
    _, most = series(findings.grpo, "logprob_diff_max")
    _, flips = series(findings.grpo, "routing_flips")
    _, equal = series(findings.grpo, "groups_equal")
    _, groups = series(findings.grpo, "groups_total")
    parts = []
    if means and most:
        text = (
            f"Over {len(means)} GRPO steps, trainer and sampler log-probabilities differ by at most {max(means):.1e} in the mean "
            f"of a step and by at most {max(most):.1e} at any token. The trainer replays the sampler's expert choices."
        )
        if flips:
            text += f" Without replay, {sum(flips):,.0f} expert choices would differ."
        parts.append(page.para(text, "note"))
    if equal and sum(groups) > 0:
        text = f"In {sum(equal):,.0f} of {sum(groups):,.0f} groups all rewards are equal, so these groups give no gradient."
        parts.append(page.para(text, "note"))
    return parts


def _accuracy(findings: Findings, figures: Mapping[str, str]) -> list[str]:
    evaluations = {(when, mode): findings.evaluations[when, mode] for when, mode, _ in SETTINGS}
    ungraded = sum(row.ungraded for evaluation in evaluations.values() for row in evaluation.rows("all"))
    heads = ["level", "problems", "best baseline", *(f"{when}, {mode}" for when, mode in evaluations)]
    groups = []
    for family in findings.families:
        rows = []
        tables = [{r.level: r for r in e.rows("level") if r.family == family} for e in evaluations.values()]
        pooled = [next(r for r in e.rows("family") if r.family == family) for e in evaluations.values()]
        for level in tables[0]:
            rows.append(_accuracy_row(level, [table[level] for table in tables]))
        if len(rows) != 1:
            rows.append(_accuracy_row("all", pooled))
        groups.append((family, rows))
    note = (
        "Own choice (auto): the model decides whether to think. Off: it answers at once. On: it is made to think. The best "
        "baseline is a rule that sees only the surface of a prompt, fitted on train problems of the family and level. The rules are "
        "the majority answer, the most frequent answer for prompts of the same length, and a small decision tree on lengths, numbers "
        f"and characters. Values are percent, with 95 % intervals. {ungraded} ungraded answers are left out. "
        f"{version_note(evaluations['after', 'auto'])} "
        f"{reading_note({f'{when}, {mode}': evaluation for (when, mode), evaluation in evaluations.items()})}"
    )
    every = page.folded("All values by family and level", page.table("accuracy", heads, groups))
    return [figures["accuracy"], figures["accuracy-by-level"], page.para(note, "note"), every]


def _accuracy_row(level: str, rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    cells = [f"{percent(row.accuracy)} {percent_interval(row.interval)}" for row in rows]
    return [level, str(first.problems), baseline(first), *cells]


def _changed(findings: Findings, figures: Mapping[str, str]) -> list[str]:
    heads = ["family", "thinks, before", "after", "length, before", "after", "accuracy made to think, before", "after"]
    tables = {
        name: {row.family: row for row in evaluation.rows("family")}
        for name, evaluation in findings.evaluations.items()
    }
    rows = []
    for family in findings.families:
        old, new = tables["before", "auto"][family], tables["after", "auto"][family]
        on = (tables["before", "on"][family], tables["after", "on"][family])
        shares = [
            percent(old.thought),
            percent(new.thought),
            f"{old.thinking_length:.1f}",
            f"{new.thinking_length:.1f}",
        ]
        rows.append([family, *shares, *(percent(row.accuracy) for row in on)])
    gains = account(findings)
    right = [
        ("before, own choice", gains.before),
        ("before, made to think", gains.before_made_to_think),
        ("after, own choice", gains.after),
        ("after, made to think", gains.after_made_to_think),
    ]
    return [
        page.facts((what, f"{value:.1%}", "accuracy, all families") for what, value in right),
        page.para(
            "If the second and the fourth figure are similar, GRPO changed how often the model thinks, but not visibly how well it "
            "thinks. The claims above test the difference in each family.",
            "note",
        ),
        figures["what-changed"],
        page.table("what GRPO changed", heads, [("", rows)]),
        figures["thinking"],
    ]


def _experts(findings: Findings, figures: Mapping[str, str]) -> list[str]:
    if not findings.experts.layers:
        return [page.para("This model has no routed experts.")]
    _, uneven = series([*findings.sft, *findings.grpo], "load_max_over_mean")
    parts = [figures["experts"], figures["load"]]
    if not uneven:
        return parts
    text = f"Over training, the most loaded expert of a layer carried {min(uneven):.2f} to {max(uneven):.2f} times the mean load."
    return [*parts, page.para(text, "note")]


def _repeat(findings: Findings) -> list[str]:
    auto = findings.evaluations["after", "auto"]
    counts = Counter(sample.family for sample in auto.samples)
    text = (
        f"The seed, here {findings.summary.seed}, determines the result. The problems come from the {auto.split} split "
        f"of task {auto.task}, drawn with seed {auto.seed} ({', '.join(f'{n} of {f}' for f, n in counts.items())}). "
        f"They are answered at temperature {auto.params.temperature:g} in at most {auto.params.max_tokens} tokens."
    )
    return [
        page.preformatted(findings.summary.command),
        page.para(text),
        page.para(
            "evals/*.json contain every answer, metrics.jsonl of each run every step, and ledger.jsonl the time. "
            "rorqual trace shows the rollouts of a run.",
            "note",
        ),
    ]
