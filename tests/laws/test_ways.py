"""The ways through the code on the page about the architecture are what runs (`python scripts/paths.py` writes them)."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from rorqual import fit, sft
from rorqual.core.records import RunDir

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("paths", ROOT / "scripts" / "paths.py")
assert spec is not None and spec.loader is not None
paths = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paths)
PAGE = paths.PAGE.read_text(encoding="utf-8")


def test_a_token_and_a_grpo_step_go_the_way_on_the_page(tmp_path: Path) -> None:
    fit(sft(task="families:add", size="tiny", steps=2), RunDir(tmp_path / "run"), quiet=True)
    found = {"token": paths.token(tmp_path / "run"), "grpo": paths.grpo_step(tmp_path / "run", tmp_path / "grpo")}
    assert paths.written(PAGE, found) == PAGE


@pytest.mark.parametrize("way", ["token", "grpo", "teach"])
def test_a_way_names_functions_that_exist(way: str) -> None:
    """The way of `teach` is not traced again, because its later stages depend on the speed of the machine."""
    lines = re.search(rf"<!-- way: {way} -->\n```text\n(.*?)```", PAGE, re.S)
    assert lines is not None and lines[1].count("\n") > 10
    for line in lines[1].splitlines():
        file, name = line.split()
        tree = ast.parse((ROOT / "src" / "rorqual" / file).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert set(name.split(".")) <= defined, line
