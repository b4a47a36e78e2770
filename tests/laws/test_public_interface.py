"""The public interface: names that `rorqual` exports, loaded when they are used."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mypy import api as mypy_api

import rorqual

NAMES = rorqual.__all__
STUB = Path(rorqual.__file__).with_suffix(".pyi")


def test_importing_rorqual_loads_no_torch_and_none_of_its_own_modules() -> None:
    code = "import rorqual, sys; print([m for m in sys.modules if m.startswith(('torch', 'numpy', 'pydantic', 'rorqual.'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_the_object_of_its_module_and_is_documented(name: str) -> None:
    found = getattr(rorqual, name)
    assert found is getattr(importlib.import_module(rorqual._MODULES[name]), name)
    assert len(inspect.getdoc(found) or "") > 20
    assert name in dir(rorqual)


def test_type_checkers_see_the_same_names() -> None:
    imports = [node for node in ast.parse(STUB.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names if alias.name == alias.asname}
    assert seen == rorqual._MODULES


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'rorqual' has no attribute 'engin'"):
        _ = rorqual.engin
    with pytest.raises(ImportError):
        exec("from rorqual import Engin")


def test_the_readmes_five_lines_take_names_and_paths(tmp_path: Path) -> None:
    """A run folder as a text, and a task by its name, are the same as the objects."""
    from rorqual import Engine, RunDir, evaluate, fit, load_task, sft

    run = sft(task="families:add", size="tiny", steps=2, rows=2)
    for out in (str(tmp_path / "a"), RunDir(tmp_path / "b"), tmp_path / "c"):
        assert fit(run, out, quiet=True).step == 2
    engine = Engine(str(tmp_path / "a"))
    by_name, by_task = (evaluate(engine, task, count=3) for task in ("families:add", load_task("families:add")))
    assert by_name.samples == by_task.samples and len(by_name.samples) == 3
    weights = [(tmp_path / name / "step-000002" / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] == weights[2]


def test_type_checkers_accept_the_readmes_snippet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mypy follows the stub, with a user's strict settings. It sees a wrong argument."""
    monkeypatch.setenv("MYPYPATH", str(Path(rorqual.__file__).parents[1]))
    readme = (Path(rorqual.__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    compared = 'compare(["a-0", "a-1"], ["b-0", Path("b-1")], names=["a", "b"]).plot("c.svg")\n'
    code = f"from pathlib import Path\nfrom rorqual import compare\n{snippet}{compared}sft(size='tinny')\n"
    (tmp_path / "snippet.py").write_text(code, encoding="utf-8")
    # Reading torch's own types would take most of the time.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\n[mypy-torch.*,matplotlib.*,numpy.*]\nfollow_imports = skip\n", encoding="utf-8"
    )
    words = ["--strict", "--follow-imports=silent", f"--cache-dir={tmp_path}", "--ignore-missing-imports"]
    words += [f"--config-file={tmp_path / 'mypy.ini'}"]
    shown, _, failed = mypy_api.run([*words, str(tmp_path / "snippet.py")])
    last = len(code.splitlines())
    assert failed and f'snippet.py:{last}: error: Argument "size"' in shown and "Found 1 error" in shown, shown
