"""Tables that can be printed in a terminal, shown on an HTML page, or written as Markdown."""

from __future__ import annotations

import io

from rich import box, table
from rich.console import Console
from rich.text import Text

from rorqual.core.config import Config

LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
LATEX |= {"●": r"$\bullet$", "✕": r"$\times$", "○": r"$\circ$"}
"""How LaTeX writes the characters that it would not print as they are."""


def _escape_latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


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
        columns = len(self.heads)
        lines = [f"% {' '.join(self.title.split())}", f"\\begin{{tabular}}{{{'l' * self.text_columns:r<{columns}}}}"]
        lines += [r"\toprule", " & ".join(map(_escape_latex, self.heads)) + r" \\", r"\midrule"]
        for row in self.rows:
            cells = " & ".join(map(_escape_latex, row))
            start = "{}" if cells.startswith(("[", "*")) else ""  # otherwise an argument of the line break before it
            lines.append((start + cells if len(row) > 1 else rf"\multicolumn{{{columns}}}{{l}}{{{cells}}}") + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def markdown(self) -> str:
        """Return the table in Markdown, without the table's title."""
        lines = (self.heads, ("---",) * len(self.heads), *self.rows)
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
