"""The page of `rorqual attention` is one file that shows what was measured."""

from __future__ import annotations

import html
import re

from sparse_model import BYTES, model_of

from rorqual.evals.attention_page import attention_page, needles_chart, tables
from rorqual.evals.sparse_attention_report import NamedText, measure_sparse_attention

NASTY = "<script>alert(1)</script><img src=http://example.invalid/x.png> "


def test_the_page_needs_nothing_but_itself_and_shows_each_text() -> None:
    texts = [NamedText(f"{NASTY}.txt", NASTY * 5), NamedText("海.txt", "海上的灯塔，浪从西边来。" * 20)]
    model = model_of(12, vocab=263)
    report = measure_sparse_attention(
        model, BYTES, texts, ["needle", "copy"], name="runs/m", length=120, windows=2, budgets=(6, 40)
    )
    page = attention_page(report, ["海.txt: kl may be <3>"])
    assert "<script" not in page and "url(" not in page
    assert all(url.startswith("data:") for url in re.findall(r'<[^>]*?(?:src|srcset|href)="([^"]*)"', page))
    assert page.count("&lt;script&gt;") >= 2 and page.count("<picture>") == 1
    assert "✕ 海.txt: kl may be &lt;3&gt;" in page and "Budgets other than 12 are untrained" in page
    plain = html.unescape(re.sub(r"<[^>]*>", " ", page))
    for table in tables(report).values():
        assert all(cell in plain for row in table.rows for cell in row)
    panels = needles_chart(report).panels
    assert [panel.title for panel in panels] == ["6 positions", "12 positions (trained)", "40 positions"]
    shares = {
        (one.budget, one.depth, one.length): one.selected_share for one in report.measurements if one.name == "needle"
    }
    for budget, panel in zip((6, 12, 40), panels, strict=True):
        lengths = [int(label) for label in panel.labels]
        for depth, row in zip((0.0, 0.25, 0.5, 0.75, 1.0), panel.series, strict=True):
            expected = [shares.get((budget, depth, length)) for length in lengths]
            assert row.texts == tuple("dense" if share is None else f"{share:.0%}" for share in expected)


def test_a_report_without_needles_has_no_chart() -> None:
    texts = [NamedText("a", "abc" * 200)]
    report = measure_sparse_attention(model_of(12, vocab=263), BYTES, texts, ["copy"], name="m", length=100, windows=2)
    assert "<picture>" not in attention_page(report, [])
