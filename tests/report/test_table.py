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


def test_latex_shows_what_the_cells_say() -> None:
    lines = TABLE.model_copy(update={"heads": ("name", "kind_1", "100 %")}).latex().splitlines()
    assert lines[:3] == ["% fruit", r"\begin{tabular}{llr}", r"\toprule"] and lines[-1] == r"\end{tabular}"
    assert lines[3:5] == [r"name & kind\_1 & 100 \% \\", r"\midrule"]
    assert lines[5:8] == [r"in store \\", r"a|b & x & 1 \\", r"c & yy & 22 \\"]
    odd = Table(title="t", heads=("a",), rows=(("[0, 1]", "x"), ("a\\b~^{$#&<1>", "● higher"))).latex()
    assert "\n{[}0, 1] & x" in odd, "a bracket would be an argument of the line break"
    assert r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}\{\$\#\&$<$1$>$ & $\bullet$ higher" in odd
