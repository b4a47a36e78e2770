"""The report says no more than its figures, needs no network, and comes out the same twice."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser

import pytest

from rorqual.core.errors import DataError, RorqualError
from rorqual.evals.evaluation import Evaluation
from rorqual.recipes.quickstart.charts import charts
from rorqual.recipes.quickstart.findings import read_findings
from rorqual.recipes.quickstart.report import build_report, report_text
from rorqual.tasks.task import Verdict

FILES = [
    "base/metrics.jsonl",
    "teacher/metrics.jsonl",
    *(f"evals/{when}-{mode}.json" for when in ("before", "after") for mode in ("auto", "on", "off")),
    "summary.json",
    "evals/student-distilled-auto.json",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_folder, add_students):
    return add_students(make_folder(tmp_path_factory.mktemp("quickstart")))


@pytest.fixture(scope="module")
def report(folder):
    return build_report(folder).read_text(encoding="utf-8")


@pytest.fixture
def student_folder(tmp_path, make_folder, add_students):
    return add_students(make_folder(tmp_path / "copy"))


def words(folder, section=""):
    """The report's text, without pictures and markup."""
    text = report_text(read_findings(folder), {})
    text = text.split(f'<section id="{section}">')[1].split("</section>")[0] if section else text
    return " ".join(unescape(re.sub(r"<(title|style|pre).*?</\1>|<[^>]*>", " ", text, flags=re.S)).split())


class Elements(HTMLParser):
    """Every element with its attributes, and whether each that is opened is closed."""

    VOID = {"meta", "link", "img", "source", "br"}

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_says_where_the_gain_came_from(tmp_path, make_folder):
    # Had it been as wrong before when made to think, the sentence must turn.
    other = make_folder(tmp_path)
    path = other / "evals" / "before-on.json"
    found = Evaluation.load(path)
    wrong = tuple(sample.model_copy(update={"verdict": Verdict.WRONG}) for sample in found.samples)
    found.model_copy(update={"samples": wrong}).save(path)
    text = words(other)
    assert "explains little of the gain" in text and "nearly all of the gain" not in text


def test_no_gain_is_said_to_be_none(tmp_path, make_folder):
    folder = make_folder(tmp_path)
    for mode in ("auto", "on", "off"):
        shutil.copy(folder / "evals" / f"before-{mode}.json", folder / "evals" / f"after-{mode}.json")
    assert "GRPO brought no gain" in words(folder)
    assert "accuracy is higher in 0 of 6 families and lower in 0" in words(folder)


def test_what_a_model_wrote_is_text_and_nothing_is_fetched(report):
    elements = Elements(report)
    assert elements.open == []
    tags = [tag for tag, _ in elements.found]
    assert "script" not in tags and report.count("&lt;script&gt;") > 10
    assert tags.count("img") == tags.count("picture") == 4
    assert all(attrs["alt"].strip() for tag, attrs in elements.found if tag == "img")
    for tag, attrs in elements.found:
        for name in ("src", "srcset", "href", "data", "poster", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, name)
    style = report.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style and "http" not in style


def test_a_picture_of_the_result_comes_first(report):
    assert report.index("<h1>") < report.index('aria-label="picture: overview"') < report.index("<nav>")


def test_pictures_lie_beside_the_report_in_both_schemes(folder, report):
    names = [chart.name for chart in charts(read_findings(folder))]
    written = {path.name for path in (folder / "pictures").iterdir()}
    assert written == {f"{name}{kind}.png" for name in names for kind in ("", "-dark")}
    assert report.count("(prefers-color-scheme: dark)") == len(names)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_nothing_is_written(student_folder, name):
    (student_folder / name).unlink()
    with pytest.raises(DataError, match=rf"{re.escape(str(student_folder / name))}: .*\n.*Repeat"):
        build_report(student_folder)
    assert not (student_folder / "report.html").exists() and not (student_folder / "pictures").exists()


def test_a_wrong_file_is_named(quickstart_folder):
    path = quickstart_folder / "summary.json"
    good = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(good | {"seed": "no"}), encoding="utf-8")
    with pytest.raises(RorqualError, match=r"summary.json: .*seed"):
        build_report(quickstart_folder)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"summary.json: the file is not valid JSON"):
        build_report(quickstart_folder)


def test_a_run_without_a_student_has_no_such_section(quickstart_folder):
    text = report_text(read_findings(quickstart_folder), {})
    assert 'id="students"' not in text and "quarter of the active" not in text
    assert "students" not in [chart.name for chart in charts(read_findings(quickstart_folder))]


# ---- the student


def share(folder, name, mode):
    return f"{Evaluation.load(folder / 'evals' / f'student-{name}-{mode}.json').rows('all')[0].accuracy:.1%}"


def test_the_student_is_said_to_be_no_more_than_it_is(folder, student_folder, add_students, tmp_path, make_folder):
    text = words(folder, "students")
    assert "Of these two students the distilled one is right more often" in text
    assert "This is one run" in text and "rorqual lab distil-vs-rl" in text
    control = f"made to think, the base reaches {share(folder, 'student-base', 'on')} and the reinforced student "
    assert control + share(folder, "reinforced", "on") in text
    own = f"with their own choice to think, {share(folder, 'distilled', 'auto')} and {share(folder, 'teacher', 'auto')}"
    made = f"made to think, {share(folder, 'distilled', 'on')} and {share(folder, 'teacher', 'on')}"
    assert f"Student and teacher: {own}; {made}." in text
    assert not re.findall(r"\b(?:holds?|refuted|helped|better student|made the better)\b", words(folder)), (
        "one run never says that a method holds"
    )
    turned = add_students(make_folder(tmp_path / "turned"), rates={"reinforced": 0.75, "distilled": 0.35})
    assert "the reinforced one is right more often" in words(turned, "students")
    for mode in ("auto", "on"):
        files = [turned / "evals" / f"student-{name}-{mode}.json" for name in ("distilled", "reinforced")]
        shutil.copy(*files)
    assert "is right more often is open. Accuracy on held-out" in words(turned, "students")
