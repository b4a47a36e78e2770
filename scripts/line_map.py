"""Map each line of the source to the tests that run it: a pytest plug-in that measures, and a reader of what it measured.

    LINE_MAP=FOLDER pytest -p line_map -n 2 --dist loadfile tests

Each process writes coverage data into FOLDER, with the running test as context. So does each Python process that a test starts, unless
the test gives it an environment of its own. What a fixture of several tests runs, and the processes that it starts, belong to all tests
that use the fixture.
"""

from __future__ import annotations

import difflib
import gzip
import json
import os
import sqlite3
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import coverage
import pytest
from coverage.numbits import numbits_to_nums

ROOT = Path(__file__).parent.parent
SETTINGS = """[run]
data_file={folder}/child
parallel=true
source={root}/src/rorqual
context=${{LINE_MAP_TEST}}
sigterm=true
"""


def pytest_configure(config: Any) -> None:
    """Measure in each process that runs tests: not in the one that hands tests out."""
    if "LINE_MAP" in os.environ and (hasattr(config, "workerinput") or not config.getoption("numprocesses", None)):
        config.pluginmanager.register(Measurement(Path(os.environ["LINE_MAP"]).resolve()))


class Measurement:
    """Coverage of this process, with the running test as context, and of the processes that the test starts.

    The data of a file of tests are saved when another file's first test starts, so a run that is stopped can go on.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file, self.test = folder, "", ""
        self.users: dict[str, list[str]] = defaultdict(list)
        settings = folder / "coverage.ini"
        settings.write_text(SETTINGS.format(folder=folder, root=ROOT), encoding="utf-8")
        self.coverage: coverage.Coverage | None = None
        self._start("start")
        # A Python process that is started with this variable measures itself (coverage installs a .pth file).
        os.environ |= {"COVERAGE_PROCESS_START": str(settings), "LINE_MAP_TEST": ""}

    def _start(self, file: str) -> None:
        self.pytest_unconfigure()
        name, source = str(data_of(self.folder, file)), [str(ROOT / "src/rorqual")]
        self.file, self.coverage = file, coverage.Coverage(data_file=name, source=source, config_file=False)
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        file = nodeid.partition("::")[0]
        if file != self.file:
            self._start(file)
        self.test = nodeid
        self._switch(nodeid)

    def _switch(self, context: str) -> None:
        self.coverage.switch_context(context)
        os.environ["LINE_MAP_TEST"] = context

    def pytest_runtest_setup(self, item: Any) -> None:
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            if definitions[-1].scope != "function":
                self.users[_fixture_name(definitions[-1])].append(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        if fixturedef.scope == "function":
            return (yield)
        self._switch(_fixture_name(fixturedef))
        try:
            return (yield)
        finally:
            self._switch(self.test)

    def pytest_unconfigure(self) -> None:
        if self.coverage:
            self.coverage.stop()
            self.coverage.save()
            self.coverage = None
            users = data_of(self.folder, self.file).with_suffix(".users.json")
            users.write_text(json.dumps(self.users), encoding="utf-8")


def _fixture_name(definition: Any) -> str:
    return f"fixture {definition.baseid}::{definition.argname}"


def data_of(folder: Path, file: str) -> Path:
    """Return where the data of a file of tests are."""
    return folder / f"worker-{file.replace('/', '-')}"


def write(folder: Path, seconds: dict[str, float], out: Path) -> None:
    """Write the map of the measured data. Sets of tests are kept once, because most lines of a function have the same."""
    numbers: dict[str, int] = {}
    users: dict[str, set[str]] = defaultdict(set)
    for file in folder.glob("*.users.json"):
        for fixture, tests in json.loads(file.read_bytes()).items():
            users[fixture] |= set(tests)
    lines: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for file in [*folder.glob("worker-*.py"), *folder.glob("child*")]:
        with sqlite3.connect(file) as data:
            if not data.execute("select 1 from sqlite_master").fetchone():
                continue  # a process that was killed before it wrote
            files = dict(data.execute("select id, path from file"))
            tests = dict(data.execute("select id, context from context"))
            for file_id, context, bits in data.execute("select file_id, context_id, numbits from line_bits"):
                test = tests[context].partition("|")[0]
                if "::" in test:
                    found = {numbers.setdefault(one, len(numbers)) for one in users.get(test, (test,))}
                    name = files[file_id].rpartition("/src/rorqual/")[2]
                    for line in numbits_to_nums(bits):
                        lines[f"src/rorqual/{name}"][line] |= found
    sets: dict[frozenset[int], int] = {}
    places = {
        file: {line: sets.setdefault(frozenset(tests), len(sets)) for line, tests in found.items()}
        for file, found in lines.items()
    }
    made = {
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip(),
        "tests": list(numbers),
        "seconds": [seconds.get(test, 1.0) for test in numbers],
        "sets": [sorted(tests) for tests in sets],
        "lines": places,
    }
    out.write_bytes(gzip.compress(json.dumps(made).encode(), 5))


class LineMap:
    """Tests by line of today's source. Lines that changed since the map was made have none."""

    def __init__(self, file: Path) -> None:
        made = json.loads(gzip.decompress(file.read_bytes()))
        self.tests, self.commit = made["tests"], made["commit"]
        self.seconds = dict(zip(made["tests"], made["seconds"]))
        self.sets, self.lines = made["sets"], made["lines"]
        self.breadth = [0] * len(self.tests)
        for found in self.lines.values():
            for test in {test for at in set(found.values()) for test in self.sets[at]}:
                self.breadth[test] += 1
        self._moved: dict[str, dict[int, int]] = {}

    def _old_lines(self, file: str) -> dict[int, int]:
        if file not in self._moved:
            command = ["git", "show", f"{self.commit}:{file}"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            new = (ROOT / file).read_text(encoding="utf-8").splitlines()
            matcher = difflib.SequenceMatcher(None, done.stdout.splitlines(), new, autojunk=False)
            self._moved[file] = {
                block.b + at + 1: block.a + at + 1
                for block in matcher.get_matching_blocks()
                for at in range(block.size)
            }
        return self._moved[file]

    def of(self, file: str, lines: Iterable[int]) -> list[str]:
        """Return the tests that run one of the lines, by what they are likely to say: those that run few files, first."""
        old, found = self._old_lines(file), self.lines.get(file, {})
        places = {found[str(old[line])] for line in lines if line in old and str(old[line]) in found}
        numbers = {test for at in places for test in self.sets[at]}
        return [self.tests[test] for test in sorted(numbers, key=lambda test: (self.breadth[test], test))]
