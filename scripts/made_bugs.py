"""Make bugs, put them into a copy of the source one at a time, and count those that no test notices.

    python scripts/made_bugs.py map                       # once, an hour: which tests run which line
    python scripts/made_bugs.py run --hours 2 --workers 2 # in parts, as often as you like
    python scripts/made_bugs.py show                      # counts by room and kind, and the survivors

`scripts/bug_maker.py` makes the bugs. Their order is by a hash, so each part is a random sample of all rooms. A bug meets the tests that
run its statement, those that run few files first, until one fails that passes on the unchanged source or `--limit` processor-seconds are over.

The answers are in docs/results/made-bugs.json. `tests/mutants/survivors.json` says of each survivor that was looked at either why it
changes nothing ("equivalent: ..."), or which test was written for it. `run --again` puts survivors in again.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))

from bug_maker import Bug, bugs_of  # noqa: E402
from line_map import LineMap, data_of, write  # noqa: E402

import mutants  # noqa: E402

WORK = ROOT / "runs" / "made-bugs"
MAP = ROOT / "tests" / "mutants" / "lines.json.gz"
RESULT = ROOT / "docs" / "results" / "made-bugs.json"
LOOKED_AT = ROOT / "tests" / "mutants" / "survivors.json"
STILLBORN = ("missing 1 required", "missing 2 required", "UnboundLocalError", "NameError", "got multiple values")
PRELOADED = (
    "torch", "numpy", "hypothesis", "pyarrow.parquet", "scipy.stats", "pydantic", "tokenizers", "safetensors.torch", "httpx", "typer",
    "rich.progress", "matplotlib.pyplot", "jinja2", "fastapi", "uvicorn", "openai", "llguidance", "jsonschema_rs", "schemathesis",
    "xdist", "pytest_timeout", "anyio.pytest_plugin", "transformers.models.deepseek_v3", "sklearn.linear_model",
)  # fmt: skip


def make_map() -> None:
    """Run the suite under coverage, and write the map. Files of tests whose data are there already are not run again."""
    WORK.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT / "scripts"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "LINE_MAP": str(WORK / "coverage"),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RORQUAL_CORE_SECONDS": str(WORK / "seconds.txt"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    files = (str(file.relative_to(ROOT)) for file in sorted((ROOT / "tests").rglob("test_*.py")))
    left_out = ("tests/mutants", "tests/architecture", "tests/laws")
    left = [name for name in files if not name.startswith(left_out) and not data_of(WORK / "coverage", name).exists()]
    words = ["-p", "line_map", "-n", "2", "--dist", "loadfile", "-m", "not soak", "--timeout", "900"]
    if left:
        subprocess.run([sys.executable, "-m", "pytest", *words, *left], cwd=ROOT, env=environment, check=False)
    pairs = [line.split(" ", 1) for line in (WORK / "seconds.txt").read_text(encoding="utf-8").splitlines()]
    write(WORK / "coverage", {test: float(took) for took, test in pairs}, MAP)


def tests_for(bug: Bug, lines: LineMap) -> list[str]:
    """Return the tests that run the bug's statement, or else its function, those of the file's name and room first."""
    found = lines.of(bug.file, range(bug.first, bug.last + 1)) or lines.of(bug.file, _function_lines(bug))
    _, _, room, *_ = bug.file.split("/")
    near = (Path(bug.file).stem, f"tests/{room}/")
    order = {test: sum(word not in test for word in near) for test in found}
    return sorted(found, key=order.__getitem__)


def _function_lines(bug: Bug) -> range:
    tree = ast.parse((ROOT / bug.file).read_bytes())
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.lineno <= bug.first <= node.end_lineno
    ]
    last = max(around, key=lambda node: node.lineno)
    return range(last.body[0].lineno, last.end_lineno + 1)


class Bench:
    """A copy of the tree, in which tests run in forks of this process."""

    def __init__(self, tree: Path, seconds: dict[str, float]) -> None:
        self.tree, self.seconds = tree, seconds
        self.sound: dict[str, bool] = {}
        mutants.copy_tree(tree)
        for name in ("scripts", "benchmarks", "docs", "examples", "README.md", "mkdocs.yml", "Makefile"):
            (tree / name).symlink_to(ROOT / name)

    def failures(self, tests: Iterable[str], limit: float) -> dict[str, str]:
        """Run tests until one fails. Return its message by its name. A run that takes longer than `limit` seconds is a failure."""
        report = self.tree / "report.xml"
        report.unlink(missing_ok=True)
        tests = list(tests)
        child = os.fork()
        if not child:
            mutants.run_pytest(
                ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}", *tests], self.tree
            )
        began = time.monotonic()
        while not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(0.02)
            if time.monotonic() - began > limit:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return {tests[0]: "hung"}
        if not report.is_file():
            return {
                tests[0]: "died: " + (self.tree / "output.txt").read_text(encoding="utf-8", errors="replace")[-300:]
            }
        return {_name(case): _message(case) for case in ET.parse(report).iter("testcase") if _message(case)}

    def passes(self, test: str) -> bool:
        """Return whether the test passes on the unchanged source."""
        if test not in self.sound:
            self.sound[test] = not self.failures([test], 300)
        return self.sound[test]

    def judge(self, bug: Bug, tests: list[str], limit: float) -> tuple[str, str]:
        """Return 'caught', 'survived' or 'stillborn', and the test or the message that said it."""
        file = self.tree / bug.file
        source = file.read_bytes()
        changed = bug.text(source)
        try:
            ast.parse(changed)
        except SyntaxError:
            return "stillborn", "does not parse"
        began, left, size = _processor_seconds(), list(tests), 4
        while left and _processor_seconds() - began < limit:
            part, left = left[:size], left[size:]
            mutants.write(file, changed)
            try:
                failed = self.failures(part, 60 + 5 * sum(self.seconds.get(test, 1) for test in part))
            finally:
                mutants.write(file, source)
            for test, message in failed.items():
                if any(words in message for words in STILLBORN):
                    return "stillborn", message
                if self.passes(test):
                    return "caught", f"{test} {message[:80]}"
            if failed:  # by a test that does not pass here: go on with the others
                ran = next((at for at, test in enumerate(part) if test in failed), 0)
                left = part[ran + 1 :] + left
            size = min(2 * size, 64)
        return "survived", f"{len(tests) - len(left)} of {len(tests)} tests in {_processor_seconds() - began:.0f} s"


def _processor_seconds() -> float:
    """Return the seconds that this process and those that it waited for took of a processor."""
    return sum(os.times()[:4])


def _name(case: ET.Element) -> str:
    """Return pytest's name of a test from the report's: the file, its classes and the function."""
    parts = (case.get("classname") or "").split(".")
    return f"{'/'.join(parts)}.py::{case.get('name')}"


def _message(case: ET.Element) -> str:
    bad = [child for child in case if child.tag in ("failure", "error")]
    return f"{bad[0].get('message') or ''} {(bad[0].text or '')[-300:]}" if bad else ""


def _work(number: int, jobs: Any, results: Any, limit: float, seconds: dict[str, float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve(), seconds)
        while (job := jobs.get()) is not None:
            bug, tests = job
            began = _processor_seconds()
            results.put((bug, *bench.judge(bug, tests, limit), _processor_seconds() - began))


class Answers:
    """The result file: by file of the source, the keys of the bugs that were caught or stillborn, and the survivors in words."""

    def __init__(self) -> None:
        made = json.loads(RESULT.read_bytes()) if RESULT.is_file() else {}
        self.hours: float = made.get("core_hours", 0.0)
        self.states: dict[str, dict[str, list[str]]] = made.get("keys", {})
        self.survivors: dict[str, str] = made.get("survivors", {})
        self.looked_at: dict[str, str] = json.loads(LOOKED_AT.read_bytes()) if LOOKED_AT.is_file() else {}

    def known(self) -> set[str]:
        return {key for states in self.states.values() for keys in states.values() for key in keys}

    def add(self, bug: Bug, state: str, words: str, seconds: float) -> None:
        self.hours += seconds / 3600
        for keys in self.states.setdefault(bug.file, {}).values():
            if bug.key in keys:
                keys.remove(bug.key)
        self.states[bug.file].setdefault(state, []).append(bug.key)
        self.survivors.pop(bug.key, None)
        if state == "survived":
            self.survivors[bug.key] = f"{bug} ({words})"

    def save(self, bugs: list[Bug]) -> None:
        kept = {bug.key: bug for bug in bugs}
        state_of = {
            key: state
            for states in self.states.values()
            for state, keys in states.items()
            for key in keys
            if key in kept
        }
        rooms: dict[str, Counter[str]] = defaultdict(Counter)
        for key, state in state_of.items():
            equal = state == "survived" and self.looked_at.get(key, "").startswith("equivalent")
            rooms[kept[key].file.split("/")[2]]["equivalent" if equal else state] += 1
            rooms["all"]["equivalent" if equal else state] += 1
        made = {
            "command": "python scripts/made_bugs.py run",
            "made": len(bugs),
            "core_hours": round(self.hours, 2),
            "rooms": {room: dict(sorted(rooms[room].items())) for room in sorted(rooms)},
            "survivors": {key: words for key, words in self.survivors.items() if key in kept},
            "keys": self.states,
        }
        waiting = RESULT.with_suffix(".new")
        waiting.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        waiting.replace(RESULT)


def chosen(bugs: list[Bug], answers: Answers, again: bool, rooms: str) -> list[Bug]:
    """Return the bugs to put in, in the order of their keys: those without an answer, or the survivors that change something."""
    known = answers.known()
    if again:
        equivalent = {key for key, words in answers.looked_at.items() if words.startswith("equivalent")}
        wanted = [bug for bug in bugs if bug.key in answers.survivors.keys() - equivalent]
    else:
        wanted = [bug for bug in bugs if bug.key not in known]
    return sorted(
        (bug for bug in wanted if not rooms or bug.file.split("/")[2] in rooms.split(",")), key=lambda bug: bug.key
    )


def run(given: argparse.Namespace) -> int:
    # Without compiled files, each run of tests would compile all modules again.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for name in PRELOADED:  # once, because each run of tests is a fork of this process
        importlib.import_module(name)
    lines, answers, bugs = LineMap(MAP), Answers(), bugs_of(ROOT)
    left = chosen(bugs, answers, given.again, given.rooms)
    print(f"{len(bugs)} bugs, {len(left)} to put in", flush=True)
    context = multiprocessing.get_context("fork")
    jobs, results = context.Queue(given.workers), context.Queue()
    workers = [
        context.Process(target=_work, args=(number, jobs, results, given.limit, lines.seconds))
        for number in range(given.workers)
    ]
    for worker in workers:
        worker.start()
    ends = time.monotonic() + 3600 * given.hours / given.workers
    waiting, done = iter(left), 0

    def give() -> bool:
        bug = next(waiting, None) if time.monotonic() < ends else None
        if bug:
            test = answers.looked_at.get(bug.key, "").partition(" ")[0]
            jobs.put((bug, [test] if "::" in test else tests_for(bug, lines)))
        return bool(bug)

    out = sum(give() for _ in range(given.workers))
    while out:
        bug, state, words, seconds = results.get()
        out -= 1
        done += 1
        answers.add(bug, state, words, seconds)
        answers.save(bugs)
        print(f"{done:5} of {len(left)} {state:9} {seconds:5.1f} s  {bug}  [{words[:160]}]", flush=True)
        out += give()
    for _ in workers:
        jobs.put(None)
    for worker in workers:
        worker.join()
    return 0


def show() -> None:
    made = json.loads(RESULT.read_bytes())
    for room, counts in made["rooms"].items():
        judged = counts.get("caught", 0) + counts.get("survived", 0)
        print(f"{room:10} {counts}, {100 * counts.get('survived', 0) / max(1, judged):.1f} % survive")
    print(*made["survivors"].values(), sep="\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("map", "run", "show"))
    parser.add_argument("--hours", type=float, default=1.0, help="core-hours of this part")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=60.0, help="processor-seconds of tests for one bug")
    parser.add_argument("--rooms", default="", help="only these folders of the source, with commas")
    parser.add_argument(
        "--again", action="store_true", help="the survivors, those for which a test was written with this test"
    )
    given = parser.parse_args()
    match given.what:
        case "map":
            make_map()
        case "run":
            return run(given)
        case "show":
            show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
