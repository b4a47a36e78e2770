"""Tables that can be printed in a terminal, shown on an HTML page, or written as Markdown."""

from __future__ import annotations

import io

from rich import box, table
from rich.console import Console
from rich.text import Text

from rorqual.core.config import Config

LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    | {"[": "{[}"}  # a bracket at the start of a row would be an argument of the line break before it
    | {"●": r"$\bullet$", "✕": r"$\times$", "○": r"$\circ$"}
)
"""How LaTeX writes the characters that it would not print as they are."""


class Table(Config):
    """A table whose cells are text. The first `text_columns` columns are aligned to the left, all other columns to the right.

    A row with only one cell is a heading for the rows below. On a page, a cell that contains ●, ✕ or ○ is coloured as
    good, bad or open.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    text_columns: int = 1

    def text(self) -> str:
        """Return the table as text for a terminal, with the table's title."""
        drawn = table.Table(title=Text(self.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for place, head in enumerate(self.heads):
            drawn.add_column(Text(head), justify="left" if place < self.text_columns else "right", no_wrap=True)
        for row in self.rows:
            drawn.add_row(*map(Text, row))
        target = io.StringIO()
        Console(file=target, width=200, force_terminal=False, color_system=None).print(drawn)
        return "\n".join(line.rstrip() for line in target.getvalue().splitlines())

    def latex(self) -> str:
        """Return the table in LaTeX, for the package booktabs. The title is a comment above the table."""
        head, *rows = (
            " & ".join(cell.translate(LATEX) for cell in row) + " \\\\\n" for row in (self.heads, *self.rows)
        )
        columns = f"{'l' * self.text_columns:r<{len(self.heads)}}"
        title = " ".join(self.title.split())
        return (
            f"% {title}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\\midrule\n{''.join(rows)}"
            "\\bottomrule\n\\end{tabular}\n"
        )

    def markdown(self) -> str:
        """Return the table in Markdown, without the table's title. Each row is one line."""
        lines = (self.heads, ("---",) * len(self.heads), *self.rows)
        cells = ((" ".join(cell.splitlines()).replace("|", "\\|") for cell in line) for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)
