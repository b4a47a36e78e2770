"""Write examples/tour.ipynb from the examples of the tour's pages.

    python scripts/tour_notebook.py

The notebook has a text cell and a code cell for each example, in the order of the navigation, and no outputs: the pages show them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "tour.ipynb"
EXAMPLE = re.compile(r"^## Try it\n\n(.*?)<!-- try -->\n```python\n(.*?)^```$", re.M | re.S)


def cell(kind: str, text: str, name: str) -> dict[str, object]:
    """Return a cell of the notebook format 4.5."""
    lines = text.strip("\n").splitlines(keepends=True)
    shared: dict[str, object] = {"cell_type": kind, "id": name, "metadata": {}, "source": lines}
    return shared | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def notebook() -> str:
    """Return the notebook as JSON text."""
    pages = re.findall(r"tour/([\w-]+)\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    intro = "# The tour's examples\n\nInstall Rorqual, then run the cells. The pages of the tour explain them and show their outputs."
    cells = [cell("markdown", intro, "intro")]
    for name in pages:
        page = (ROOT / "docs" / "tour" / f"{name}.md").read_text(encoding="utf-8")
        for text, code in EXAMPLE.findall(page):
            title = page.partition("\n")[0].removeprefix("# ")
            plain = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
            cells += [
                cell("markdown", f"## [{title}](../docs/tour/{name}.md)\n\n{plain}", f"{name}-text"),
                cell("code", code, name),
            ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
