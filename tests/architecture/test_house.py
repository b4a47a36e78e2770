"""The house rules that a machine can check: arrows point down, torch stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

import rorqual

SOURCE = Path(rorqual.__file__).parent
FLOORS = [
    {"core"},
    {"ops", "dist", "report"},
    {"model", "data", "tasks"},
    {"engine", "plan", "convert"},
    {"evals", "generate"},
    {"train", "factory"},
    {"recipes", "serve"},
    {"lab", "teach", "conformance"},
    {"fine_tuning"},
    {"cli"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
TORCH_FREE = {"core", "report", "tasks"}
POLICY_OF_THE_ENGINE = {
    "engine/embeds.py",
    "engine/request.py",
    "engine/scheduler.py",
    "engine/kv_cache/block_pool.py",
    "engine/kv_cache/block_hash.py",
    "engine/remote/engine.py",
}
WHERE_FOREIGN_CODE_RUNS = {"tasks/sandbox.py", "tasks/find.py", "teach/rungs/simple.py", "serve/app.py"}
"""A user's task or rule file may raise anything, and is then named; a request must never take the server down."""
LEFTOVERS = {"utils", "utils.py", "helpers", "helpers.py", "misc.py", "common.py"}


@dataclass(frozen=True)
class Module:
    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(SOURCE).as_posix()

    @property
    def room(self) -> str:
        """Its room, or '' for the package's own files."""
        first, _, rest = self.name.partition("/")
        return first if rest else ""

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        yield from (n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


MODULES = [Module(path) for path in sorted(SOURCE.rglob("*.py"))]
Rule = Callable[[Module], Iterator[str]]


def imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import below `node`, those inside functions included."""
    for item in ast.walk(node):
        if isinstance(item, ast.Import):
            yield from ((item.lineno, alias.name) for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            yield item.lineno, ("." * item.level) + (item.module or "")
            if item.module == "rorqual":
                yield from ((item.lineno, f"rorqual.{alias.name}") for alias in item.names)


def imports_point_down(module: Module) -> Iterator[str]:
    here = module.room
    if here and here not in FLOOR:
        yield f"room '{here}' stands on no floor"
    for line, imported in imports(module.tree):
        other = imported.split(".")[1] if imported.startswith("rorqual.") else here
        if imported.startswith("."):
            yield f"{line}: relative import"
        elif other != here and here in FLOOR and FLOOR.get(other, -1) >= FLOOR[here]:
            yield f"{line}: {here} imports {other}, which is not below it"


def torch_stays_where_it_belongs(module: Module) -> Iterator[str]:
    policy = module.name in POLICY_OF_THE_ENGINE
    if module.room in TORCH_FREE or policy:
        yield from (f"{line}: imports {m}" for line, m in imports(module.tree) if m.split(".")[0] == "torch")


def serve_does_not_import_train(module: Module) -> Iterator[str]:
    if module.room == "serve":
        yield from (f"{line}: {m}" for line, m in imports(module.tree) if m.startswith("rorqual.train"))


def no_hidden_state(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            yield f"{node.lineno}: global"
        elif isinstance(node, ast.Name) and node.id == "TYPE_CHECKING":
            yield f"{node.lineno}: TYPE_CHECKING hides a cycle"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".cuda"):
            yield f"{node.lineno}: a device literal"


def rorqual_is_imported_at_the_top(module: Module) -> Iterator[str]:
    """Our own modules inside a function hide a cycle; the command line may, so that --help is quick."""
    if module.room == "cli" or module.name == "__main__.py":
        return
    for function in module.functions():
        yield from (f"{line}: {m} in {function.name}" for line, m in imports(function) if m.split(".")[0] == "rorqual")


def nothing_catches_everything(module: Module) -> Iterator[str]:
    if module.name in WHERE_FOREIGN_CODE_RUNS:
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            passed_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if caught in ("", "Exception", "BaseException") and not passed_on:
                yield f"{node.lineno}: except {caught}"


def text_has_an_encoding(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        method = isinstance(node.func, ast.Attribute)
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if called not in (("open", "read_text", "write_text") if method else ("open",)):
            continue
        if method and called == "open" and not all(isinstance(a, ast.Constant) for a in node.args):
            continue  # not a path's: a URL opener's, which takes a request
        values = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
        if called != "open" or not any(isinstance(v, str) and "b" in v and len(v) <= 3 for v in values):
            yield f"{node.lineno}: {called} without an encoding"


def no_room_of_leftovers(module: Module) -> Iterator[str]:
    yield from LEFTOVERS & set(module.name.split("/"))


def each_file_says_what_it_is(module: Module) -> Iterator[str]:
    if module.tree.body and not ast.get_docstring(module.tree):
        yield "no docstring"


RULES: list[Rule] = [
    imports_point_down,
    torch_stays_where_it_belongs,
    serve_does_not_import_train,
    no_hidden_state,
    rorqual_is_imported_at_the_top,
    nothing_catches_everything,
    text_has_an_encoding,
    no_room_of_leftovers,
    each_file_says_what_it_is,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house_rule(rule: Rule) -> None:
    broken = [f"{module.name}: {problem}" for module in MODULES for problem in rule(module)]
    assert not broken, "\n".join(broken)


BREACHES: dict[Rule, tuple[str, str]] = {
    imports_point_down: ("core/new.py", "from rorqual.model import Decoder"),
    torch_stays_where_it_belongs: ("tasks/new.py", "def f():\n    import torch.nn"),
    serve_does_not_import_train: ("serve/new.py", "import rorqual.train.loop"),
    no_hidden_state: ("ops/new.py", "def f():\n    global x"),
    rorqual_is_imported_at_the_top: ("model/new.py", "def f():\n    from rorqual.ops import moe"),
    nothing_catches_everything: ("data/new.py", "try:\n    x\nexcept Exception:\n    pass"),
    text_has_an_encoding: ("data/new.py", "Path('x').read_text()"),
    no_room_of_leftovers: ("data/utils.py", "x = 1"),
    each_file_says_what_it_is: ("data/new.py", "x = 1"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_each_rule_sees_a_breach(rule: Rule) -> None:
    name, text = BREACHES[rule]
    module = Module(SOURCE / name)
    module.__dict__["text"] = text
    assert list(rule(module))


def test_torch_free_rooms_load_without_torch() -> None:
    """Not even through something that they import."""
    names = [".".join(("rorqual", *m.name.removesuffix(".py").split("/"))) for m in MODULES if m.room in TORCH_FREE]
    names = [name.removesuffix(".__init__") for name in names]
    code = f"import importlib, sys\nfor m in {names!r}: importlib.import_module(m)\nsys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_no_two_classes_share_a_name() -> None:
    names = [
        node.name
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert not {name for name in names if names.count(name) > 1}


def test_no_two_test_files_share_a_name() -> None:
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert len(set(names)) == len(names), "pytest imports test files by their bare names"
