"""What the documentation shows is run: every example of `--help`, every block of both READMEs and of a page, in their order."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from itertools import chain, pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import forked_commands
from rorqual.cli.main import app
from rorqual.core.ledger import read_ledger, sum_entries
from rorqual.data.distilled import read_distilled

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh.md")
SHOWN = (
    "docs/how-to/first-commands.md", "docs/how-to/distil.md", "docs/how-to/your-task.md", "docs/how-to/experiments.md", "README.md",
)  # fmt: skip
"""Pages whose blocks are run one after the other, in one folder."""
VERBS = (
    "quickstart",
    "train",
    "check",
    "teach",
    "failures",
    "distil",
    "eval",
    "lab",
    "chat",
    "generate",
    "bench",
    "inspect",
    "report",
    "trace",
    "compare",
    "merge",
    "peft",
    "export",
    "import",
    "plan",
    "doctor",
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPT_LINES, TASK_LINES = 20, 30


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, text) of each block of a README."""
    return BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))


def example(verb: str) -> str:
    """The command with which the help of `verb` ends."""
    return CliRunner().invoke(app, [verb, "--help"]).output.rstrip().rpartition("Example:\n")[2].strip()


def in_small(text: str) -> str:
    """The same commands with experiments of a few core-seconds: fewer core-minutes or steps do the same jobs with less work."""
    text = re.sub(r"--budget [\d.]+ ", "--budget 0.02 ", text).replace("steps=100 seed=", "steps=10 seed=")
    return text.replace("steps=5 row=1024", "steps=1 row=1024").replace("steps=30 out=", "steps=10 out=")


def shell(text: str, folder: Path, programs: Path | None = None, limit: int = 600) -> subprocess.CompletedProcess[str]:
    """`programs`: a folder that is looked into first. `limit`: seconds."""
    places = [*([programs] if programs else []), Path(sys.executable).parent, os.environ["PATH"]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": ":".join(map(str, places))}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        check=False, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=limit, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything that the READMEs and the help show has been done once, the slow part first."""
    folder = tmp_path_factory.mktemp("workshop")
    began = time.time()
    shell(example("quickstart"), folder)
    ledger = folder / "runs/small/ledger.jsonl"  # before later commands add to it
    seconds = [sum_entries(read_ledger(ledger)).seconds, ledger.stat().st_mtime - began]
    (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
    return folder


def test_the_ledger_of_quickstart_adds_up_to_the_wall_clock_of_the_command(workshop: Path) -> None:
    counted, whole = json.loads((workshop / "seconds.json").read_text(encoding="utf-8"))
    # To the last line of the ledger: what the interpreter takes to end is no stage, and on busy cores seconds long. What is left is the
    # shell's start.
    assert counted <= whole + 0.05 and whole - counted < max(0.02 * whole, 2.0)


def test_the_example_of_each_verb_works(workshop: Path, tmp_path: Path) -> None:
    """The quickstart has begun from nothing; the processes of the others are forked."""
    assert (workshop / "runs/small/report.html").is_file()
    with forked_commands(tmp_path) as programs:
        for verb in VERBS[1:]:
            command = example(verb)
            assert f"rorqual {verb} " in f"{command} ", "the help ends with an example of its own verb"
            if verb != "lab":  # a page runs the same experiment
                assert shell(in_small(command), workshop, programs).stdout


def test_the_blocks_of_the_pages_work_in_their_order(workshop: Path, tmp_path: Path) -> None:
    with forked_commands(tmp_path) as programs:
        show_blocks(workshop, programs)


def show_blocks(workshop: Path, programs: Path) -> None:
    for language, text in chain.from_iterable(map(blocks, SHOWN)):
        if language == "sh":
            shell(in_small(text), workshop, programs)
        elif (name := text.partition("\n")[0].removeprefix("# ")).endswith(".py"):
            assert text.count("\n") < TASK_LINES
            (workshop / name).write_text(text, encoding="utf-8")
        elif language == "python":
            assert text.count("\n") < SCRIPT_LINES
            (workshop / "script.py").write_text(text, encoding="utf-8")
            assert "95 % interval" in shell("python script.py", workshop).stdout
    [answers] = (workshop / "runs/support/evals").glob("support*.json")
    samples = json.loads(answers.read_bytes())["samples"]
    assert sum(sample["verdict"] == "right" for sample in samples) >= 18, "the page shows 20 of 20"


def test_the_tutorial(workshop: Path, tmp_path: Path) -> None:
    """Its commands work in their order, as one session of a shell, and print what the page shows, but for numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shown = [(language, text.replace("8000", port)) for language, text in blocks("docs/tutorial.md")]
    session, expected = [], list[str]()
    for (language, text), (follows, output) in pairwise([*shown, ("", "")]):
        if language == "python":
            name = text.partition("\n")[0].removeprefix("# ")
            (workshop / name).write_text(text, encoding="utf-8")
        elif language == "sh" and not (text.startswith("curl") and shutil.which("curl") is None):
            # The workshop has begun with this quickstart.
            session.append("true" if text.strip() == example("quickstart") else text)
            expected.append(output if follows == "text" else "")
    assert any("rorqual serve" in text for text in session) and sum(map(bool, expected)) >= 7
    with forked_commands(tmp_path) as programs:
        forked = programs / "forked"
        (programs / "rorqual").rename(forked)
        # A server ends by a signal, so it is a process of its own.
        real = f'#!/bin/sh\n[ "$1" = serve ] && exec {sys.executable} -m rorqual "$@"\nexec {forked} "$@"\n'
        (programs / "rorqual").write_text(real, encoding="utf-8")
        (programs / "rorqual").chmod(0o755)
        begin = "exec 2>&1\ntrap 'jobs -p | xargs -r kill' EXIT\n"
        done = shell(begin + "\nprintf '\\a'\n".join(session), workshop, programs, limit=1800)
    for text, output, printed in zip(session, expected, done.stdout.split("\a"), strict=True):
        lines = shape(printed)
        for line in shape(output):  # in any order, because the two streams are buffered apart
            pattern = re.compile(re.escape(line).replace(r"\.\.\.", ".*"))
            found = next((one for one in lines if pattern.fullmatch(one)), None)
            assert found is not None, f"{text}\nshows: {line}\nprints:\n{printed}"
            lines.remove(found)


def shape(text: str) -> list[str]:
    """The lines without numbers, spacing and the model's answers, which may differ between machines."""
    text = re.sub(r"<?(?:(?<!\w)[+-])?\d+(\.\d+)?(e-?\d+)?", "#", text)
    text = re.sub(r"(# [oe] ?)+", "#", text).replace("odd", "even")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip("─ ")]


def test_the_page_that_says_how_to_make_small_sets_with_a_task_of_ones_own(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    shown = re.findall(
        r"^```(\w+)[^\n]*\n(.*?)^```$", (ROOT / "docs/how-to/data-distil.md").read_text("utf-8"), re.M | re.S
    )
    (place / "mine.py").write_text(next(code for language, code in shown if language == "python"), encoding="utf-8")
    with forked_commands(tmp_path) as programs:
        for language, code in shown:
            if language == "bash":
                shell(code, place, programs)
    kept = {
        name: read_distilled(place / f"runs/{name}/data.parquet").kept_samples
        for name in ("labels", "estimates", "written")
    }
    assert {name: len(rows) for name, rows in kept.items()} == {"labels": 300, "estimates": 120, "written": 60}
    assert all(row.verdict == "right" for row in kept["written"])
    for name in ("labels", "distributions"):
        samples = json.loads((place / f"{name}.json").read_bytes())["samples"]
        assert sum(sample["verdict"] == "right" for sample in samples) >= 36, "the page says 40 of 40"


def test_the_two_readmes_show_the_same_commands() -> None:
    english, chinese = (blocks(name) for name in READMES)
    assert [language for language, _ in english] == [language for language, _ in chinese]

    def commands(found: list[tuple[str, str]]) -> list[str]:
        lines = [line for _, text in found for line in text.split("\n")]
        return [line for line in lines if line.startswith(("rorqual", "make", "from ", "run ", "fit(", "print("))]

    def without_comments(lines: list[str]) -> list[str]:
        return [re.sub(r"\s+#.*", "", line) for line in lines]

    assert without_comments(commands(english)) == without_comments(commands(chinese))


@pytest.mark.parametrize("name", READMES)
def test_what_a_readme_points_at_is_there(name: str) -> None:
    text = re.sub(r"<!--.*?-->", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        page, _, section = target.partition("#")
        assert (ROOT / page).exists(), target
        if section:
            titles = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
            assert section in [re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles], target
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_verb_and_recipe_is_in_the_readmes() -> None:
    for name in READMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        for word in (*VERBS, "train pretrain", "sft", "grpo"):
            assert f"`{word}" in text, word
