"""The report's section on the student claims no more than its figures, and its costs are sums of the ledger's stages."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from html import escape
from pathlib import Path

import pytest

from rorqual.core.errors import DataError
from rorqual.evals.claims import STUDENT_TOPICS, claims, student_claims
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.pictures import LIGHT, png
from rorqual.evals.plots import pictures
from rorqual.evals.plots_cost import CLOCK_PICTURE
from rorqual.evals.reading import read_findings
from rorqual.evals.report import build_report, report_text
from rorqual.evals.report_students import cost_words, student_words


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_folder, add_students):
    return add_students(make_folder(tmp_path_factory.mktemp("students")))


@pytest.fixture(scope="module")
def report(folder):
    return build_report(folder).read_text(encoding="utf-8")


def section(report: str, name: str) -> str:
    return report.split(f'<section id="{name}">')[1].split("</section>")[0]


def test_each_claim_is_asked_of_all_families_and_of_each(folder, report):
    findings = read_findings(folder)
    asked = student_claims(findings)
    assert len(asked) == len(STUDENT_TOPICS) * 3
    text = section(report, "students")
    for item in asked:
        assert text.count(escape(item.claim.text)) == 1
    assert [item.topic for item in claims(findings)] and not {i.claim.text for i in asked} & {
        i.claim.text for i in claims(findings)
    }


def said(folder: Path) -> str:
    findings = read_findings(folder)
    return student_words(findings, student_claims(findings))


def share(folder: Path, name: str, mode: str) -> str:
    return f"{Evaluation.load(folder / 'evals' / f'student-{name}-{mode}.json').rows('all')[0].accuracy:.1%}"


def test_it_says_what_came_out_and_no_more(folder, report, tmp_path, make_folder, add_students):
    text = section(report, "students")
    assert "Of these two students the distilled one is right more often" in text
    assert "This is one run" in text and "rorqual lab distil-vs-rl" in text
    turned = add_students(make_folder(tmp_path), rates={"reinforced": 0.75, "distilled": 0.35})
    assert "the reinforced one is right more often" in said(turned)
    for mode in ("auto", "on"):
        shutil.copy(
            turned / "evals" / f"student-distilled-{mode}.json", turned / "evals" / f"student-reinforced-{mode}.json"
        )
    assert "is right more often is open. Accuracy on held-out" in said(turned)


def test_the_first_paragraphs_show_a_problem_of_each_family_that_the_student_was_measured_on(folder, report):
    samples = read_findings(folder).students["distilled", "auto"].samples
    lede = report.partition("<nav>")[0]
    examples = lede.partition("only on problems such as: ")[2].partition(". At other families")[0].split("; ")
    assert len(examples) == len({sample.family for sample in samples}) > 1
    assert {sample.family for sample in samples if escape(sample.prompt) in examples} == {s.family for s in samples}


def test_one_run_never_says_that_a_method_holds(report):
    """Nor 'beats', 'helped' or 'better': these are of methods, and need seeds."""
    words = re.sub(r"<(title|style|figure|pre).*?</\1>|<[^>]*>", " ", report, flags=re.S)
    assert not re.findall(r"\b(?:holds?|refuted|helped|better student|made the better)\b", words)


def test_what_reinforcement_brought_stands_beside_the_base_made_to_think(folder):
    words = said(folder)
    control = f"made to think, the base reaches {share(folder, 'student-base', 'on')} and the reinforced student "
    assert control + share(folder, "reinforced", "on") in words


def test_student_and_teacher_are_compared_alike(folder):
    own = f"with their own choice to think, {share(folder, 'distilled', 'auto')} and {share(folder, 'teacher', 'auto')}"
    made = f"made to think, {share(folder, 'distilled', 'on')} and {share(folder, 'teacher', 'on')}"
    assert f"Student and teacher: {own}; {made}." in said(folder)


def test_costs_are_sums_of_stages_and_called_equal_only_where_they_are(folder, report):
    findings = read_findings(folder)
    words = cost_words(findings)
    assert (
        "took 100 core-seconds, including the teacher's samples, and GRPO 95. The ratio is 1.05, about equal." in words
    )
    assert escape(words) in section(report, "students")
    dear = [
        s.model_copy(update={"core_seconds": 60.0}) if s.name == "reinforcing" else s for s in findings.summary.stages
    ]
    summary = findings.summary.model_copy(update={"stages": tuple(dear)})
    other = type(findings)(**{**vars(findings), "summary": summary})
    assert "not equal, so the comparison is not fair" in cost_words(other)


def test_the_ledger_is_shown_with_its_price_and_money_for_what_was_solved(folder, report):
    text = section(report, "cost")
    assert "assumes US $ 0.05 per core-hour" in text
    row = next(line for line in text.split("\n") if ">reinforcing<" in line).split(">reinforcing<")[1]
    cents, per_million = 100 * 95 / 3600 * 0.05, 1e6 * 95 / 3600 * 0.05 / 500
    assert f"{cents:,.3f}" in row and f"{per_million:,.2f}" in row
    assert "tokens were processed again" in text


def test_pictures_of_the_student_come_out_alike_but_for_the_clock(folder):
    findings = read_findings(folder)
    drawn = pictures(findings)
    names = {"students", "students-learning", f"{CLOCK_PICTURE}-students"}
    assert names <= set(drawn)
    slower = [stage.model_copy(update={"core_seconds": 2 * stage.core_seconds}) for stage in findings.summary.stages]
    summary = findings.summary.model_copy(update={"stages": tuple(slower)})
    other = pictures(type(findings)(**{**vars(findings), "summary": summary}))
    assert {n for n in names if png(drawn[n], LIGHT) != png(other[n], LIGHT)} == {f"{CLOCK_PICTURE}-students"}


@pytest.mark.parametrize("name", ["evals/student-distilled-auto.json", "reinforced/metrics.jsonl"])
def test_a_missing_file_of_a_branch_is_named(folder, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("report.html", "pictures"))
    (copy / name).unlink()
    with pytest.raises(DataError, match=f"{name}: .*missing"):
        build_report(copy)
    assert not (copy / "report.html").exists()


def test_a_folder_of_a_teacher_alone_has_no_such_section(quickstart_folder: Path) -> None:
    text = report_text(read_findings(quickstart_folder), defaultdict(str))
    assert 'id="students"' not in text and "quarter of the active parameters" not in text
    assert json.loads((quickstart_folder / "summary.json").read_bytes()).get("branches") is None
