"""Pages escape all text, need nothing but themselves, and name what a template lacks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import rorqual.report
from rorqual.report.chart import Chart, Series, draw
from rorqual.report.page import render_page, write_page
from rorqual.report.table import Table

SLY = "</script><script>alert(1)</script><b>&"
TEMPLATES = Path(rorqual.report.__file__).parent / "templates"


def plan(**more: object) -> str:
    table = Table(title=SLY, heads=("what", SLY), rows=((SLY,), (SLY, "● yes"), ("x" * 41, "○ open")), note=SLY)
    chart = Chart(name="c", caption=SLY, alt=SLY, series=(Series(label=SLY, points=((0, 1),)),), width=4)
    given = {"title": SLY, "plan": table, "pictures": [draw(chart)], "hardware": SLY}
    return render_page("plan", **given | more)


def test_all_text_is_escaped() -> None:
    text = plan()
    assert "<script" not in text and "<b>&" not in text.replace("<b>&lt;", "")
    assert text.count("&lt;script&gt;alert(1)") == 10
    assert '<span class="v v-yes">● yes</span>' in text and '<span class="v v-open">' in text
    assert 'class="text prose"' in text and 'class="wide narrow"' in text and 'scope="rowgroup"' in text


def test_data_of_a_script_cannot_end_it() -> None:
    text = render_page("trace", name="r", data={"steps": SLY})
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "\\u003c/script" in text


def test_a_page_is_written_with_the_same_bytes_and_needs_no_network(tmp_path: Path) -> None:
    given = {"name": "r", "data": {"b": 1, "a": [2]}}
    files = [write_page(tmp_path / name, "trace", **given) for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    for text in (plan(), files[0].read_text(encoding="utf-8")):
        assert text.startswith("<!doctype html>") and not re.search(r"url\(|@import|<link(?! rel=\"icon\")", text)
        assert all(found.startswith(("#", "data:")) for found in re.findall(r'(?:src|srcset|href)="([^"]*)"', text))


def test_a_name_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'hardware' is undefined"):
        render_page("plan", title="t", plan=Table(title="t", heads=(), rows=()), pictures=[])


@pytest.mark.parametrize("template", sorted(path.name for path in TEMPLATES.glob("*.html")))
def test_no_template_turns_escaping_off(template: str) -> None:
    assert not re.search(r"\bsafe\b|autoescape", (TEMPLATES / template).read_text(encoding="utf-8"))
