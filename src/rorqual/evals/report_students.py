"""The report's section on the student: distilled, reinforced, or trained on answers alone."""

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
"""Costs that differ by no more than this share are called equal."""


def students(findings: Findings, asked: Sequence[SupportedClaim], figures: Mapping[str, str]) -> list[str]:
    """HTML of the section."""
    return [
        page.para(student_words(findings, asked)),
        page.para(cost_words(findings)),
        figures["students"],
        _every_branch(findings),
        page.para(_how(findings), "note"),
        *claim_tables(asked, STUDENT_TOPICS, "claims on the student"),
        figures[f"{CLOCK_PICTURE}-students"],
        figures["students-learning"],
        page.folded("By family", _by_family(findings)),
    ]


def main_claim(asked: Sequence[SupportedClaim]) -> SupportedClaim:
    """Distilled against reinforced, over all families."""
    return next(item for item in asked if item.topic is STUDENT_TOPICS[0])


def student_words(findings: Findings, asked: Sequence[SupportedClaim]) -> str:
    """What came out for these models, no more than the figures bear; the method's verdict needs seeds."""
    pooled = {item.topic.name: item for item in asked if item.family == "all families"}
    main, base = pooled["distilled-over-reinforced"], pooled["distilled-over-base"]
    rival, answers = pooled["reinforced-over-base"], pooled["distilled-over-answers"]
    better = {
        "higher": "Of these two students the distilled one is right more often",
        "lower": "Of these two students the reinforced one is right more often",
        "open": "Which of these two students is right more often is open",
    }
    text = (
        f"{better[main.claim.sign]}: of the held-out problems the distilled student answers {main.paired.after:.1%} rightly, its "
        f"reinforced rival {main.paired.before:.1%}, the base that both began from {base.paired.before:.1%} (difference "
        f"{points(main.claim.estimate)} points, 99 % interval {points_interval(main.wide)}). "
    )
    changed = {
        "higher": "The rival is right more often than its base",
        "lower": "The rival is right less often than its base",
    }
    text += (
        f"{changed.get(rival.claim.sign, 'Whether the rival is right more often than its base is open')} "
        f"({points(rival.claim.estimate)} points, by their own choice to think){_controls(findings)}. "
        f"Trained on the answers alone, without thinking, the same base comes to {answers.paired.before:.1%}. "
    )
    return (
        f"{text}{_teacher_words(findings)}This is one run, and the intervals speak of these models on other problems: whether "
        "distilling beats reinforcing is for rorqual lab distil-vs-rl to say, which repeats it with five seeds."
    )


def _controls(findings: Findings) -> str:
    """What making base and rival think shows: how much of the rise is the choice to think."""
    shares = [_share(findings, name, "on") for name in ("student-base", "reinforced")]
    if None in shares:
        return ""
    return f"; made to think, the base is right on {shares[0]:.1%} already, and the rival on {shares[1]:.1%}"


def _teacher_words(findings: Findings) -> str:
    """Student and teacher, alike by own choice and made to think: a student learns from a teacher that was made to think."""
    modes: dict[Thinking, str] = {"auto": "by their own choice", "on": "made to think"}
    shares = [
        (words, _share(findings, "distilled", mode), _share(findings, "teacher", mode)) for mode, words in modes.items()
    ]
    told = [f"{words}, {own:.1%} and {teacher:.1%}" for words, own, teacher in shares if None not in (own, teacher)]
    return f"Student and teacher: {'; '.join(told)}. " if told else ""


def _share(findings: Findings, name: str, mode: Thinking) -> float | None:
    """The share right over all families; None where it was not measured."""
    found = findings.students.get((name, mode))
    return found.rows("all")[0].accuracy if found else None


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
