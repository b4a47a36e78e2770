"""The page of `rorqual attention` is one file that shows what was measured. The browser test needs playwright and a Chromium."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import playwright.sync_api as playwright
import pytest
from sparse_model import BYTES, model_of

from rorqual.evals.attention_charts import charts
from rorqual.evals.attention_page import FULL, attention_page, characters, marked
from rorqual.evals.missed import LowestQuery
from rorqual.evals.missed_report import MissedReport, Named, measure_report

NASTY = "<script>alert(1)</script><img src=http://example.invalid/x.png> "
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def report() -> MissedReport:
    texts = [Named(f"{NASTY}.txt", NASTY * 5), Named("海.txt", "海上的灯塔，浪从西边来。" * 20)]
    settings = {"name": "runs/m", "length": 120, "windows": 1, "budgets": (6, 40)}
    return measure_report(model_of(12, vocab=263), BYTES, texts, ["needle", "copy"], **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page(report: MissedReport) -> str:
    return attention_page(report, BYTES)


def query_of(text: str, weights: dict[int, float], selected: set[int], missed: set[int]) -> LowestQuery:
    tokens = tuple(BYTES.encode(text))
    values = tuple(weights.get(position, 0.0) for position in range(len(tokens)))
    return LowestQuery(0, 0, 0.1, tokens, values, tuple(sorted(selected)), tuple(sorted(missed)))


def test_a_passage_shows_weight_selection_and_what_was_missed() -> None:
    full = round(100 * FULL)
    assert marked(query_of("a<b\nc", {0: 0.64, 1: 0.16, 4: 0.04}, {1, 4}, {0}), BYTES) == [
        ("a", "n m", full, "64.00%"),
        ("<", "s", round(50 * FULL), "16.00%"),
        ("b", "n", 0, "0.00%"),
        ("\n", "n", 0, "0.00%"),
        ("c", "s q", round(25 * FULL), "4.00%"),
    ]  # half of the root of the largest weight has half of the colour


def test_the_bytes_of_a_character_are_joined_and_their_weights_added() -> None:
    parts = marked(query_of("x海y", {1: 0.1, 2: 0.2, 3: 0.1, 4: 0.4}, {0, 4}, {2}), BYTES)
    assert parts[1] == ("海", "n m", round(100 * FULL), "40.00%")
    broken = (*BYTES.encode("海")[:2], *BYTES.encode("a"), 300, *BYTES.encode("é")[:1])
    found = list(characters(broken, BYTES))
    assert [position for positions, _ in found for position in positions] == list(range(len(broken)))
    assert "a" in found[0][1] and found[-1][1] == "\ufffd"


def test_the_page_needs_nothing_but_itself_and_shows_each_text(page: str, report: MissedReport) -> None:
    assert "<script" not in page and "url(" not in page
    assert all(url.startswith("data:") for url in re.findall(r'<[^>]*?(?:src|srcset|href)="([^"]*)"', page))
    assert page.count("&lt;script&gt;") >= 2 and page.count("<picture>") == 4 == len(charts(report))
    passages = re.findall(r'<pre class="marks">(.*?)</pre>', page, re.DOTALL)
    queries = sorted((text.at(12).lowest for text in report.texts), key=lambda query: query.mass)
    assert len(passages) == 2
    for passage, query in zip(passages, queries, strict=True):
        assert html.unescape(re.sub("<[^>]*>", "", passage)) == "".join(
            text for _, text in characters(query.tokens, BYTES)
        )
    ascii_only = next(place for place, passage in enumerate(passages) if "海" not in passage)
    marks = re.findall(r'class="([snmq ]+)"', passages[ascii_only])
    query = queries[ascii_only]
    assert [place for place, mark in enumerate(marks) if "m" in mark] == list(query.missed)
    assert [place for place, mark in enumerate(marks) if "s" in mark] == list(query.selected)
    lowest = min(text.at(12).weighted_recall for text in report.texts)
    assert f"<dd>{lowest:.1%}<small>at 12 positions" in page
    assert "Budgets other than 12 are untrained" in page


def test_pictures_say_in_words_what_they_show(report: MissedReport) -> None:
    found = {chart.name: chart for chart in charts(report)}
    assert list(found) == ["recall", "distance", "needles", "copies"]
    values = [text.at(6).layers for text in report.texts]
    means = [sum(layers[index].recall for layers in values) / 2 for index in range(2)]
    assert f"6 positions: {min(means):.0%} to {max(means):.0%}" in found["recall"].alt
    lowest = min((one for one in report.planted if one.kind == "needle"), key=lambda one: one.kept)
    assert f"Lowest: {lowest.kept:.0%} at depth {lowest.depth:.0%}, length {lowest.length}" in found["needles"].alt


def test_a_report_without_texts_has_no_empty_parts(report: MissedReport) -> None:
    settings = {"name": "m", "length": 120, "windows": 1, "budgets": (12,)}
    only = measure_report(model_of(12, vocab=263), BYTES, [], ["copy"], **settings)  # type: ignore[arg-type]
    page = attention_page(only, BYTES)
    assert [chart.name for chart in charts(only)] == ["copies"] and 'id="copies"' in page
    assert 'id="queries"' not in page and 'id="needles"' not in page and "untrained" not in page


@pytest.mark.browser
def test_a_browser_shows_it_wide_and_narrow_in_light_and_dark(page: str, tmp_path: Path) -> None:
    assert CHROMIUM, "No Chromium here: apt-get update && apt-get install -y chromium"
    file = tmp_path / "missed.html"
    file.write_text(page, encoding="utf-8")
    asked: list[str] = []
    grounds = set()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
                tab = context.new_page()
                tab.on("request", lambda request: asked.append(request.url))
                tab.goto(file.as_uri())
                assert tab.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
                drawn = tab.locator("picture img")
                assert drawn.count() == 4
                for place in range(4):
                    box = drawn.nth(place).bounding_box()
                    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
                    assert drawn.nth(place).evaluate("image => image.complete && image.naturalWidth > 400")
                grounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
                colour = "e => getComputedStyle(e).backgroundColor"
                key = [tab.locator(f"p.marks .{kind}").evaluate(colour) for kind in "sn"]
                assert len({*key}) == 2 and "rgba(0, 0, 0, 0)" not in key
                framed = tab.locator("details[open] .marks .m").first
                assert framed.is_visible() and framed.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
                context.close()
        browser.close()
    assert len(grounds) == 2
    assert {url for url in asked if not url.startswith("data:")} == {file.as_uri()}
