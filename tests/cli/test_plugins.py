"""`plugins=./mine.py`: one file adds a kind of every sort, a run remembers it, and what is wrong with it is said.

The commands run in processes of their own, so that no kind of a test is registered for others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from commands import refused, started, typed
from in_process import output_of
from rorqual.data.chat.turns import TEMPLATES

FIXTURE = Path(__file__).parents[1] / "fixtures" / "mine.py"
TRAIN = (
    "train", "sft", "plugins=./mine.py", "task=my_task", "size=tiny", "steps=2", "rows=2", "row=64", "out=run", "threads=1",
    "model.stages.0.attention.kind=my_attention", "model.stages.0.ffn.kind=my_network", "model.stages.0.block.kind=my_block",
    "model.stages.1.ffn.router.kind=my_router", "optim.kind=my_optimizer", "chat=my_chat", "backend=my_backend",
    "track=my_tracker", "quiet=true",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file of plug-ins, and a run whose every part is one of them."""
    folder = tmp_path_factory.mktemp("plugins") / "place"
    folder.mkdir()
    (folder / "mine.py").write_text(FIXTURE.read_text(encoding="utf-8"), encoding="utf-8")
    template = (TEMPLATES / "deepseek.jinja").read_text(encoding="utf-8")
    (folder / "mine.jinja").write_text(template.replace("{{- '<｜User｜>'", "{{- '<｜User｜>Mine: '"), encoding="utf-8")
    done = typed(folder, *TRAIN)
    assert done.code == 0, done.err
    return folder


def said(place: Path, *words: str, stdin: str = "") -> str:
    done = typed(place, *words, stdin=stdin)
    assert done.code == 0, done.err
    return done.out


def test_a_run_is_made_of_plugins_and_remembers_their_file(place: Path) -> None:
    run = yaml.safe_load((place / "run" / "run.yaml").read_text(encoding="utf-8"))
    dense, moe = run["model"]["stages"]
    parts = [dense["attention"], dense["ffn"], dense["block"], moe["ffn"]["router"], run["optim"]]
    kinds = ["my_attention", "my_network", "my_block", "my_router", "my_optimizer"]
    assert [part["kind"] for part in parts] == kinds
    assert (run["chat"], run["backend"], run["source"]["task"]) == ("my_chat", "my_backend", "my_task")
    assert list(run["plugins"]) == [str((place / "mine.py").resolve())]
    assert (place / "run" / "my_tracker" / "steps").read_text(encoding="utf-8").startswith("1 ")


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        ([word.replace("steps=2", "steps=3") for word in TRAIN if "plugins" not in word], ""),
        (["eval", "run", "task=my_task", "count=2", "max_tokens=4", "backend=my_backend"], ""),
        (["inspect", "run"], ""),
        (["chat", "run", "max_tokens=3"], "hello"),
        (["train", "sft", "task=my_task", "from=run", "steps=1", "rows=1", "row=64", "tune.kind=my_tuning", "out=tuned"], ""),
        (["train", "grpo", "task=my_task", "from=run", "steps=1", "problems=2", "samples=2", "max_tokens=4", "row=64", "out=rl"], ""),
        (["train", "sft", "task=my_task", "from=run", "steps=2", "source={kind: my_source}", "objectives=[{kind: my_pairs}]",
          "micro_batches=2", "out=pairs"], ""),
        (["merge", "tuned", "merged"], ""),
        (["eval", "merged", "task=my_task", "count=1", "max_tokens=2"], ""),
    ],
    ids=["resume", "eval", "inspect", "chat", "tuning", "grpo", "pairs", "merge", "eval-merged"],
)  # fmt: skip
def test_commands_on_the_run_need_no_plugins(place: Path, words: list[str], stdin: str) -> None:
    said(place, *words, stdin=stdin)


def python(place: Path, code: str, **env: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=place, env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_python_finds_the_plugins_of_a_run(place: Path) -> None:
    """The chat format of the file writes prompts and reads replies; its task asks and grades."""
    code = (
        "import rorqual\n"
        "engine = rorqual.Engine('run')\n"
        "message = rorqual.Message('assistant', '9', 'because')\n"
        "rendered = engine.chat.render((rorqual.Message('user', 'hi'), message))\n"
        "prompt = engine.chat.prompt((rorqual.Message('user', 'hi'),))\n"
        "assert engine.chat.parse(rendered.ids[len(prompt):]) == message\n"
        "assert rorqual.evaluate(engine, 'my_task', count=2).count == 2\n"
        "from rorqual.data.chat import guess_chat_name\n"
        "assert guess_chat_name('deepseek_v3', engine.tokenizer, engine.chat.template) == 'my_chat'\n"
        "print(engine.chat.name, engine.tokenizer.decode(prompt), type(engine.model.layers[0].attention).__module__)\n"
    )
    assert python(place, code) == "my_chat Mine: hi rorqual.model.attention.gqa"


def test_python_loads_a_file_once_and_child_processes_find_it(place: Path) -> None:
    code = (
        "import rorqual, subprocess, sys\n"
        "rorqual.load_plugins('./mine.py')\n"
        "rorqual.load_plugins('./mine.py')\n"
        "child = 'from rorqual.ops.backends import backend; print(type(backend(\"my_backend\")).__name__)'\n"
        "print(subprocess.check_output([sys.executable, '-c', child], text=True, cwd='/').strip())"
    )
    assert python(place, code) == "MyBackend"


def test_a_refused_file_registers_nothing_and_its_correction_is_taken(place: Path) -> None:
    """In a notebook: a duplicate kind must not break every later model of the process."""
    (place / "taken.py").write_text(TAKEN, encoding="utf-8")
    code = (
        "import pathlib, rorqual\n"
        "from rorqual.core.config import kinds\n"
        "from rorqual.model.attention import AttentionConfig\n"
        "try: rorqual.load_plugins('taken.py')\n"
        "except rorqual.RorqualError: rorqual.Engine('run')\n"
        "text = pathlib.Path('taken.py').read_text()\n"
        "pathlib.Path('taken.py').write_text(text.replace('mla', 'mine_too'))\n"
        "rorqual.load_plugins('taken.py')\n"
        "print(kinds(AttentionConfig)['mine_too'].__name__)\n"
    )
    assert python(place, code) == "Mine"


def test_the_engine_process_of_a_server_knows_the_file(place: Path) -> None:
    """The backend is not in the run folder: the server's child process finds it by the file that the command named."""
    (place / "other.py").write_text(OTHER, encoding="utf-8")
    process = started(place, "serve", "run", "port=0", "plugins=./other.py", "backend=other", "threads=1")
    log = place.parent / f"{place.name}-streams"
    try:
        deadline = time.monotonic() + 60
        while (
            "Uvicorn" not in (text := "".join((log / name).read_text(encoding="utf-8") for name in "12"))
            and "http://" not in text
        ):
            assert process.is_alive() and time.monotonic() < deadline, text
            time.sleep(0.1)
    finally:
        process.terminate()
        process.join()
    assert "other backend was built" in text


OTHER = """
from rorqual.ops.backends.torch_invariant import TorchInvariant

class Other(TorchInvariant):
    name = "other"

    def __init__(self):
        super().__init__()
        print("other backend was built", flush=True, file=__import__("sys").stderr)
"""
NAMELESS = "from rorqual.ops.backends import Backend\nclass Mine(Backend):\n    pass\n"
TAKEN = (
    "from typing import Literal\nfrom rorqual.model.attention import GQAConfig\n"
    'class Mine(GQAConfig):\n    kind: Literal["mla"] = "mla"\n'
)
FAULTS = {
    "missing": (None, ["none.py: no such file"]),
    "raises": ("x = 1\ny = x / 0\n", ["bad.py:2: importing it raised ZeroDivisionError: division by zero"]),
    "syntax": ("x = 1\ny = (\n", ["bad.py:2: importing it raised SyntaxError"]),
    "nothing": ("x = 1\n", ["bad.py: the file registers nothing", "Define a subclass with a name"]),
    "nameless": (NAMELESS, ["bad.py: the file registers nothing"]),
    "taken": (
        TAKEN,
        ["bad.py: two classes declare the name 'mla'", "rorqual.model.attention.mla.MLAConfig and", "Rename"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    text, says = FAULTS[fault]
    folder = tmp_path / "place"
    folder.mkdir()
    name = "none.py" if text is None else "bad.py"
    if text is not None:
        (folder / name).write_text(text, encoding="utf-8")
    refused(folder, "train", "sft", f"plugins=./{name}", "task=families", "out=run", "steps=1", says=says)
    refused(folder, "inspect", "deepseek-v3", "plugins=a.py", "plugins=b.py", says=["'plugins' is given twice"])


def test_a_changed_file_is_refused_and_its_unchanged_copy_is_taken_from_elsewhere(place: Path, tmp_path: Path) -> None:
    here = tmp_path / "place"
    shutil.copytree(place / "run", here / "run")
    text = (place / "run" / "run.yaml").read_text(encoding="utf-8")
    (here / "mine.jinja").write_bytes((place / "mine.jinja").read_bytes())
    (here / "mine.py").write_text(FIXTURE.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    (here / "run" / "run.yaml").write_text(text.replace(str(place.resolve()), str(here.resolve())), encoding="utf-8")
    changed = f"the plug-in file {here.resolve() / 'mine.py'} has changed since the run was made"
    for words in (["inspect", "run"], TRAIN, ["chat", "run"]):
        refused(here, *words, says=[changed, "write the new SHA-256 into the key plugins: "])
    (here / "mine.py").rename(here / "copy.py")
    refused(here, "inspect", "run", says=["mine.py is missing", "give plugins=FILE with an unchanged copy"])
    (here / "copy.py").write_text(FIXTURE.read_text(encoding="utf-8"), encoding="utf-8")
    said(here, "inspect", "run", "plugins=copy.py")
    (here / "run" / "run.yaml").write_text(text.replace(str(place.resolve()), "."), encoding="utf-8")
    (here / "copy.py").rename(here / "mine.py")
    refused(here, "inspect", "run", says=["the plug-in file ./mine.py is missing"])


def test_the_help_of_a_command_names_the_key() -> None:
    assert "plugins=" in output_of("train", "--help")
