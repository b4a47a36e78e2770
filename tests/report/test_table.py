"""One table: in a terminal, in Markdown and on a page."""

from __future__ import annotations

from rorqual.report.table import Table

TABLE = Table(
    title="fruit",
    heads=("name", "kind", "number"),
    rows=(("in store",), ("a|b", "x", "1"), ("c", "yy", "22")),
    text_columns=2,
)


def test_numbers_are_aligned_to_the_right_and_names_to_the_left() -> None:
    lines = TABLE.text().split("\n")
    assert lines[0] == "fruit" and any(line.strip() == "in store" for line in lines)
    rows = [line for line in lines if line.endswith((" 1", "22"))]
    assert [line.index(kind) for line, kind in zip(rows, ("x", "yy"), strict=True)] == [rows[0].index("x")] * 2
    assert len({len(row) for row in rows}) == 1


def test_markup_of_a_terminal_is_text() -> None:
    assert "[bold]x[/bold]" in Table(title="[i]", heads=("[b]",), rows=(("[bold]x[/bold]",),)).text()


def test_a_bar_in_a_cell_does_not_end_it_in_markdown() -> None:
    assert TABLE.markdown().split("\n")[3] == "| a\\|b | x | 1 |"
