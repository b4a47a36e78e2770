"""Put known bugs into a copy of the source, one at a time, and check that a test catches each with an assertion.

    python scripts/mutants.py [--only WORDS]

tests/mutants/bugs/ lists the bugs and their tests, which must pass on the unchanged copy. A bug counts as caught if a test fails
with an assertion or a missing exception (`pytest.raises`). The command fails for a change that no longer applies, a test that stops
with an import, type or syntax error, and a bug that no test catches.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "mutants"))

from catalogue import MUTANTS  # noqa: E402
from mutant import Mutant  # noqa: E402

ASSERTION = re.compile(r"\s*(AssertionError|assert |Failed: DID NOT RAISE)")


def copy_tree(to: Path) -> None:
    """Copy what the tests need: source, tests and settings."""
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis", ".pytest_cache")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, to / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", to)


def apply(mutant: Mutant, tree: Path) -> None:
    """Apply the mutant to the copy. Raises LookupError if a text does not occur exactly once."""
    for change in mutant.changes:
        file = tree / change.file
        text = file.read_text(encoding="utf-8")
        if text.count(change.old) != 1:
            raise LookupError(f"{change.file}: found {text.count(change.old)} times: {change.old!r:.80}")
        file.write_text(text.replace(change.old, change.new), encoding="utf-8")


def restore(mutant: Mutant, tree: Path) -> None:
    for change in mutant.changes:
        shutil.copy(ROOT / change.file, tree / change.file)


def run_tests(tests: Iterable[str], tree: Path) -> list[tuple[str, str, str]]:
    """Run tests and return (test, outcome, message) of each. The outcome is 'passed', 'skipped', 'assertion' or 'died'."""
    report = tree / "report.xml"
    report.unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(tree / "src"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    done = subprocess.run(command, cwd=tree, env=environment, check=False, capture_output=True, encoding="utf-8")
    if not report.is_file():
        return [("pytest", "died", done.stdout[-400:] + done.stderr[-400:])]
    return [outcome(case) for case in ET.parse(report).iter("testcase")]


def outcome(case: ET.Element) -> tuple[str, str, str]:
    name = f"{case.get('classname')}::{case.get('name')}"
    for child in case:
        message = child.get("message") or ""
        if child.tag == "failure":
            return name, "assertion" if ASSERTION.match(message) else "died", message
        if child.tag == "error":
            return name, "died", message
        if child.tag == "skipped":
            return name, "skipped", message
    return name, "passed", ""


def of_the_copy(tree: Path) -> None:
    """Exit if the tests would import the package from elsewhere than the copy."""
    code = "import rorqual; print(rorqual.__file__)"
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, check=True, capture_output=True, encoding="utf-8"
    )
    if not Path(found.stdout.strip()).is_relative_to(tree):
        sys.exit(f"mutants: the package is imported from {found.stdout.strip()}, not from the copy")


def judge(mutant: Mutant, tree: Path) -> tuple[bool, str]:
    """Return whether the mutant was caught, and by which test."""
    try:
        apply(mutant, tree)
    except LookupError as error:
        return False, f"no longer applies: {error}"
    results = run_tests(mutant.tests, tree)
    restore(mutant, tree)
    asserted = [name for name, kind, _ in results if kind == "assertion"]
    died = [(name, message) for name, kind, message in results if kind == "died"]
    if asserted:
        return True, f"{asserted[0].rpartition('.')[2]} ({len(asserted)} of {len(results)} fail)"
    if died:
        return False, f"stopped with an error: {died[0][0]}: {died[0][1]:.120}"
    return False, "SURVIVED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only mutants whose name or origin contains this text")
    only = parser.parse_args().only
    wanted = [mutant for mutant in MUTANTS if only in mutant.name or only in mutant.seen]
    if not wanted:
        sys.exit("mutants: no name or origin contains this text")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve()
        copy_tree(tree)
        of_the_copy(tree)
        tests = sorted({test for mutant in wanted for test in mutant.tests})
        sound = run_tests(tests, tree)
        if bad := [(name, message) for name, kind, message in sound if kind != "passed"]:
            print("mutants: these tests do not pass on the unchanged source:", *bad, sep="\n  ")
            return 1
        print(f"{len(sound)} tests pass on the unchanged source; testing {len(wanted)} bugs", flush=True)
        missed = 0
        for mutant in wanted:
            began = time.monotonic()
            caught, by = judge(mutant, tree)
            missed += not caught
            word = "caught" if caught else "MISSED"
            print(f"{word}  {mutant.name:55} {time.monotonic() - began:5.1f} s  {by}", flush=True)
    print(f"{len(wanted) - missed} of {len(wanted)} caught")
    return 1 if missed or not wanted else 0


if __name__ == "__main__":
    sys.exit(main())
