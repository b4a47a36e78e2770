"""The report's section on the student: distilled, trained with GRPO, or trained on answers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rorqual.core.records import Thinking
from rorqual.evals import page
from rorqual.evals.claims import STUDENT_TOPICS, SupportedClaim
from rorqual.evals.evaluation import ALL
from rorqual.evals.plots_cost import CLOCK_PICTURE
from rorqual.evals.plots_students import WIDE, accuracies
from rorqual.evals.reading import Branch, Findings
from rorqual.evals.report_claims import claim_tables, points, points_interval
from rorqual.evals.table import baseline, percent, percent_interval

EQUAL = 0.15
"""Costs that differ by at most this share count as equal."""


def students(findings: Findings, supported: Sequence[SupportedClaim], figures: Mapping[str, str]) -> list[str]:
    """Return the HTML blocks of the section on the student."""
    return [
        page.para(student_words(findings, supported)),
        page.para(cost_words(findings)),
        figures["students"],
        _every_branch(findings),
        page.para(_how(findings), "note"),
        *claim_tables(supported, STUDENT_TOPICS, "claims on the student"),
        figures[f"{CLOCK_PICTURE}-students"],
        figures["students-learning"],
        page.folded("By family", _by_family(findings)),
    ]


def main_claim(supported: Sequence[SupportedClaim]) -> SupportedClaim:
    """Return the claim that the distilled student is more accurate than the GRPO student over all families."""
    return next(item for item in supported if item.topic is STUDENT_TOPICS[0])


def student_words(findings: Findings, supported: Sequence[SupportedClaim]) -> str:
    """Return sentences that summarise the result for the models of this run. A verdict on the method needs several
    seeds."""
    pooled = {item.topic.name: item for item in supported if item.family == "all families"}
    main, base = pooled["distilled-over-reinforced"], pooled["distilled-over-base"]
    rival, answers = pooled["reinforced-over-base"], pooled["distilled-over-answers"]
    better = {
        "higher": "Of these two students the distilled one is right more often",
        "lower": "Of these two students the reinforced one is right more often",
        "open": "Which of these two students is right more often is open",
    }
    text = (
        f"{better[main.claim.sign]}. Accuracy on held-out problems: distilled {main.paired.after:.1%}, reinforced "
        f"{main.paired.before:.1%}, their common base {base.paired.before:.1%} (distilled less reinforced "
        f"{points(main.claim.estimate)} points, 99 % interval {points_interval(main.wide)}). "
    )
    changed = {
        "higher": "The reinforced student is right more often than its base",
        "lower": "The reinforced student is right less often than its base",
    }
    text += (
        f"{changed.get(rival.claim.sign, 'Whether the reinforced student is right more often than its base is open')} "
        f"({points(rival.claim.estimate)} points, with their own choice to think){_controls(findings)}. "
        f"Trained on the answers alone, without thinking, the same base reaches {answers.paired.before:.1%}. "
    )
    return (
        f"{text}{_teacher_words(findings)}This is one run, and its intervals apply to these models on other problems. "
        "rorqual lab distil-vs-rl compares the methods over five seeds."
    )


def _controls(findings: Findings) -> str:
    """State the accuracies of the base student and the GRPO student when both are made to think. These accuracies exclude
    the effect of the choice to think."""
    shares = [_share(findings, name, "on") for name in ("student-base", "reinforced")]
    if None in shares:
        return ""
    return f"; made to think, the base reaches {shares[0]:.1%} and the reinforced student {shares[1]:.1%}"


def _teacher_words(findings: Findings) -> str:
    """Compare student and teacher in two modes: both choose whether to think, or both are made to think. The student
    learned from a teacher that was made to think."""
    modes: dict[Thinking, str] = {"auto": "with their own choice to think", "on": "made to think"}
    shares = [
        (words, _share(findings, "distilled", mode), _share(findings, "teacher", mode)) for mode, words in modes.items()
    ]
    results = [f"{words}, {own:.1%} and {teacher:.1%}" for words, own, teacher in shares if None not in (own, teacher)]
    return f"Student and teacher: {'; '.join(results)}. " if results else ""


def _share(findings: Findings, name: str, mode: Thinking) -> float | None:
    """Return the accuracy of a branch over all families, or None if it was not measured."""
    evaluation = findings.students.get((name, mode))
    return evaluation.rows("all")[0].accuracy if evaluation else None


def cost_words(findings: Findings) -> str:
    """State whether distillation and GRPO cost the same, and how much the teacher's training costs in addition."""
    costs = {branch.name: findings.summary.cost_of(branch) for branch in findings.summary.branches}
    own, rival, teacher = (costs[name].core_seconds for name in ("distilled", "reinforced", "teacher"))
    if rival <= 0 or own <= 0:
        return "The cost of the branches was not recorded."
    ratio = own / rival
    judged = "about equal" if abs(ratio - 1) <= EQUAL else "not equal, so the comparison is not fair"
    return (
        f"After the base, distillation took {own:.0f} core-seconds, including the teacher's samples, and GRPO {rival:.0f}. "
        f"The ratio is {ratio:.2f}, {judged}. The teacher's own training took another {teacher:.0f}. With it, distilling one "
        f"student cost {(own + teacher) / rival:.1f} times as much as training one with GRPO."
    )


def _how(findings: Findings) -> str:
    samples = findings.summary.samples
    text = "All branches start from the base student. They train on the train split; the problems here are held out. "
    if samples:
        text += (
            f"The teacher, made to think, was sampled {samples.get('sampled', 0):,} times: {samples.get('right', 0):,} samples were "
            f"right, and the filters kept {samples.get('kept', 0):,}. "
        )
    return text + "Answers alone: the same problems and number of steps, without the thinking."


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
    share = _share(findings, branch.name, "on")
    return "-" if share is None else percent(share)


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
