"""The report's section on the student: distilled, reinforced, or trained on answers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rorqual.evals import page
from rorqual.evals.claims import STUDENT_TOPICS, Asked
from rorqual.evals.evaluation import ALL
from rorqual.evals.plots_cost import CLOCK_PICTURE
from rorqual.evals.plots_students import WIDE, accuracies
from rorqual.evals.reading import Branch, Findings
from rorqual.evals.report_claims import claim_tables, points, points_interval
from rorqual.evals.table import baseline, percent, percent_interval

EQUAL = 0.15
"""Costs that differ by no more than this share are called equal."""


def students(findings: Findings, asked: Sequence[Asked], figures: Mapping[str, str]) -> list[str]:
    """HTML of the section."""
    return [
        page.para(verdict_words(asked)),
        page.para(cost_words(findings)),
        figures["students"],
        _every_branch(findings),
        page.para(_how(findings), "note"),
        *claim_tables(asked, STUDENT_TOPICS, "claims on the student"),
        figures[f"{CLOCK_PICTURE}-students"],
        figures["students-learning"],
        page.folded("By family", _by_family(findings)),
    ]


def main_claim(asked: Sequence[Asked]) -> Asked:
    """Distilled against reinforced, over all families."""
    return next(item for item in asked if item.topic is STUDENT_TOPICS[0])


def verdict_words(asked: Sequence[Asked]) -> str:
    """What came out, no more than the figures bear."""
    pooled = {item.topic.name: item for item in asked if item.family == "all families"}
    main, base = pooled["distilled-over-reinforced"], pooled["distilled-over-base"]
    rival, answers = pooled["reinforced-over-base"], pooled["distilled-over-answers"]
    verdicts = {
        "holds": "Distillation made the better student",
        "does not hold": "Reinforcement made the better student",
        "not decided": "Which made the better student is not decided",
    }
    text = (
        f"{verdicts[main.claim.holds]}: of the held-out problems the distilled student answers {main.paired.after:.1%} rightly, its "
        f"reinforced rival {main.paired.before:.1%}, the base that both began from {base.paired.before:.1%} (difference "
        f"{points(main.claim.estimate)} points, 99 % interval {points_interval(main.wide)}). "
    )
    helped = {"holds": "Reinforcement helped too", "does not hold": "Reinforcement did harm"}
    text += (
        f"{helped.get(rival.claim.holds, 'Whether reinforcement helped is not decided')} ({points(rival.claim.estimate)} points). "
        f"Trained on the answers alone, without thinking, the same base comes to {answers.paired.before:.1%}. "
    )
    return text + (
        "This is one seed, and the intervals speak of other problems only: whether it holds for other seeds is for "
        "rorqual lab distil-vs-rl to say, which repeats it."
    )


def cost_words(findings: Findings) -> str:
    """Whether the branches cost the same, and what the teacher adds."""
    costs = {branch.name: findings.summary.cost_of(branch) for branch in findings.summary.branches}
    own, rival, teacher = (costs[name].core_seconds for name in ("distilled", "reinforced", "teacher"))
    if rival <= 0 or own <= 0:
        return "What the branches cost was not recorded."
    ratio = own / rival
    judged = "about equal" if abs(ratio - 1) <= EQUAL else "not equal, so that the comparison is not a fair one"
    return (
        f"After the base, distilling (the teacher's samples included) took {own:.0f} core-seconds, reinforcing {rival:.0f}: {ratio:.2f} "
        f"times as many, {judged}. The teacher's own training took {teacher:.0f} more; with it, distilling one student cost "
        f"{(own + teacher) / rival:.1f} times as much as reinforcing one."
    )


def _how(findings: Findings) -> str:
    samples = findings.summary.samples
    text = "All branches begin at the base student; problems to learn from are of the train split, these are held out. "
    if samples:
        text += (
            f"The teacher, made to think, was sampled {samples.get('sampled', 0):,} times: {samples.get('right', 0):,} samples were "
            f"right, {samples.get('kept', 0):,} kept by the filters. "
        )
    return text + "Answers alone: the same problems and as many steps, with the thinking left out."


def _every_branch(findings: Findings) -> str:
    heads = [
        "model",
        "right",
        "95 % interval",
        "99 % interval",
        "made to think",
        "thinks",
        "thinking",
        "core-seconds",
        "US cents",
    ]
    rows = []
    for branch in findings.summary.branches:
        row, wide = accuracies(findings, branch, 0.95)[ALL], accuracies(findings, branch, WIDE)[ALL]
        cost = findings.summary.cost_of(branch)
        rows.append([
            branch.title,
            percent(row.accuracy),
            percent_interval(row.interval),
            percent_interval(wide.interval),
            _made_to_think(findings, branch),
            percent(row.thought),
            f"{row.thinking_length:.1f}",
            f"{cost.core_seconds:,.1f}",
            f"{100 * cost.money(findings.summary.core_hour):.3f}",
        ])  # fmt: skip
    return page.table("every model", heads, [("", rows)])


def _made_to_think(findings: Findings, branch: Branch) -> str:
    found = findings.students.get((branch.name, "on"))
    return percent(found.rows("all")[0].accuracy) if found else "-"


def _by_family(findings: Findings) -> str:
    branches = findings.summary.branches
    tables = [(accuracies(findings, b, 0.95), accuracies(findings, b, WIDE)) for b in branches]
    groups = []
    for family in tables[0][0]:
        rows = [
            [
                branch.title,
                str(narrow[family].problems),
                percent(narrow[family].accuracy),
                percent_interval(narrow[family].interval),
                percent_interval(wide[family].interval),
                baseline(narrow[family]),
                percent(narrow[family].thought),
            ]
            for branch, (narrow, wide) in zip(branches, tables, strict=True)
        ]
        groups.append(("all families" if family == ALL else family, rows))
    heads = ["model", "problems", "right", "95 % interval", "99 % interval", "best baseline", "thinks"]
    return page.table("every model by family", heads, groups)
