"""What stands beside the code: the text for a package index, the citation file and the tour's notebook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_figures import script
from test_tour import TRY

import rorqual

ROOT = Path(__file__).parents[2]
NATIVE = "src/rorqual/engine/native/build.py"
BUILD = "from setuptools.build_meta import prepare_metadata_for_build_wheel as p; print(p('.'))"
REPOSITORY = '[project.urls]\nRepository = "https://example.org/rorqual/"\n\n[project.scripts]'


@pytest.mark.parametrize("known", [False, True], ids=["address unknown", "address known"])
def test_no_link_of_a_package_index_is_dead(tmp_path: Path, known: bool) -> None:
    """In the metadata that the build makes of README.md."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "src/rorqual/__init__.py", NATIVE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    project = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    assert project.count("[project.scripts]") == 1
    if known:
        (tmp_path / "pyproject.toml").write_text(project.replace("[project.scripts]", REPOSITORY), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    assert "Description-Content-Type: text/markdown" in text and "# Rorqual" in text
    found = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", text)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(found) == (readme.count("](") if known else 0)
    for picture, target in found:
        head, path = f"https://example.org/rorqual/{'raw' if picture else 'blob'}/main/", target.partition("/main/")[2]
        assert target == head + path and (ROOT / path.partition("#")[0]).is_file(), target
    assert ("Tutorial" in text) and ("pictures/teach-ladder.png" in text) is known


def test_the_citation_names_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited), "required by the Citation File Format 1.2.0"
    assert (
        cited["cff-version"] == "1.2.0"
        and cited["type"] == "software"
        and all("name" in one for one in cited["authors"])
    )
    assert cited["version"] == rorqual.__version__, "Set `version` in CITATION.cff"
    assert cited["license"] in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_notebook_has_the_tours_examples_and_runs() -> None:
    """In a process of its own, cell after cell, it prints what the pages show."""
    made = script("scripts", "tour_notebook")
    text = made.NOTEBOOK.read_text(encoding="utf-8")
    assert text == made.notebook(), "Write it again: python scripts/tour_notebook.py"
    cells = [one for one in json.loads(text)["cells"] if one["cell_type"] == "code"]
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "tour").glob("*.md")}
    assert sum(len(TRY.findall(page)) for page in pages.values()) == len(cells) >= 7
    code = "\n\n".join("".join(one["source"]) for one in cells)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(TRY.findall(pages[one["id"]])[0][1] for one in cells)
