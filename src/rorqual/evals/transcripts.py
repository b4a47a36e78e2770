"""Sample answers: one right and one wrong answer per family after GRPO. The answers to the same problems before GRPO
are shown as well."""

from __future__ import annotations

from html import escape

from rorqual.evals import page
from rorqual.evals.evaluation import GradedSample
from rorqual.evals.reading import Findings
from rorqual.tasks.base import Verdict


def transcripts(findings: Findings) -> list[str]:
    """Return HTML, one part per family.

    A part shows the first right answer at the highest level with a right answer, and the first wrong answer at the
    highest level with a wrong answer.
    """
    after = findings.evaluations["after", "auto"].samples
    before = {sample.key: sample for sample in reversed(findings.evaluations["before", "auto"].samples)}
    parts = [
        page.para(
            "For each family, the hardest problem answered right after GRPO and the hardest answered wrong. Of several equally "
            "hard problems it is the first. Nothing else affects the choice. Only the answer is graded, not the reasoning.",
            "note",
        )
    ]
    for family in findings.families:
        own = [sample for sample in after if sample.family == family]
        inner = ""
        for verdict, title in ((Verdict.RIGHT, "Right"), (Verdict.WRONG, "Wrong")):
            sample = hardest([sample for sample in own if sample.verdict is verdict])
            if sample is None:
                inner += page.para(f"{title}: none.", "note")
            else:
                inner += _talk(title, sample, before.get(sample.key))
        parts.append(page.folded(family, inner, is_open=family == findings.families[0]))
    return parts


def hardest(samples: list[GradedSample]) -> GradedSample | None:
    """Return the first sample of the highest level. Numeric levels compare as numbers."""

    def level(sample: GradedSample) -> tuple[float, str]:
        try:
            return float(sample.level), ""
        except ValueError:
            return 0.0, sample.level

    return max(samples, key=level, default=None)


def _talk(title: str, sample: GradedSample, before: GradedSample | None) -> str:
    level = f", level {sample.level}" if sample.level else ""
    parts = [
        f"<h3>{title}{escape(level)}</h3>",
        page.preformatted(sample.prompt),
        _answer("After GRPO", sample),
    ]
    if before is not None:
        parts.append(_answer("Before GRPO, on the same problem", before))
    return "".join(parts)


def _answer(title: str, sample: GradedSample) -> str:
    words = {Verdict.RIGHT: "right", Verdict.WRONG: "wrong", Verdict.UNGRADED: "not graded"}[sample.verdict]
    cut = ", cut off at the limit" if sample.truncated else ""
    wanted = "" if sample.verdict is Verdict.RIGHT else f" (expected <code>{escape(sample.answer)}</code>)"
    thought = ""
    if sample.thought:
        label = f"thinking, {sample.thinking_tokens} tokens"
        thought = page.folded(label, page.preformatted(sample.reasoning or "", "thought"))
    how = "" if sample.thought else ", answered at once"
    return (
        f'<dl class="talk"><dt>{escape(title)}: {words}{cut}{how}{wanted}</dt>'
        f"<dd>{thought}<pre>{escape(sample.reply) or '(nothing)'}</pre></dd></dl>"
    )
