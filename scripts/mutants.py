"""Put known bugs into a copy of the source, one at a time, and check that a test catches each with an assertion.

    python scripts/mutants.py [--only WORDS] [--workers 2] [--result FILE.json]

tests/mutants/bugs/ lists the bugs and their tests, which must pass on the unchanged copy. A bug counts as caught if a test fails
with an assertion, a missing exception (`pytest.raises`) or an error that Rorqual's own checks raise. The command fails for a change
that no longer applies, a test that stops with an import, type or syntax error, and a bug that no test catches.

With --result, each answer is saved as it comes, and the same command on the same commit resumes. Bugs that were missed are tested
again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hypothesis  # noqa: F401  # imported once, because each run of tests is a fork of this process
import pytest
import torch  # noqa: F401

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "mutants"))

from catalogue import MUTANTS  # noqa: E402
from mutant import Mutant  # noqa: E402

ASSERTION = re.compile(r"\s*(AssertionError|assert |Failed: DID NOT RAISE|rorqual[\w.]*Error: )")


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
        write(file, text.replace(change.old, change.new).encode())
    build_kernels(mutant, tree)


def restore(mutant: Mutant, tree: Path) -> None:
    for change in mutant.changes:
        write(tree / change.file, (ROOT / change.file).read_bytes())
    build_kernels(mutant, tree)


def build_kernels(mutant: Mutant, tree: Path) -> None:
    """Compile the kernels of the copy again, if the mutant changes them."""
    if any("/csrc/" in change.file for change in mutant.changes):
        subprocess.run([sys.executable, str(tree / "src/rorqual/engine/native/build.py")], check=True)


def write(file: Path, source: bytes) -> None:
    """Write a file whose time is a checksum of the text: Python tells compiled files apart by size and time in seconds."""
    file.write_bytes(source)
    os.utime(file, times=(zlib.crc32(source),) * 2)


def run_tests(tests: Iterable[str], tree: Path) -> list[tuple[str, str, str]]:
    """Run tests and return (test, outcome, message) of each. The outcome is 'passed', 'skipped', 'assertion' or 'died'."""
    report = tree / "report.xml"
    report.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        run_pytest(["-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests], tree)
    os.waitpid(child, 0)
    if not report.is_file():
        return [("pytest", "died", (tree / "output.txt").read_text(encoding="utf-8")[-400:])]
    return [outcome(case) for case in ET.parse(report).iter("testcase")]


def run_pytest(words: list[str], tree: Path) -> None:
    """Run pytest on the copy, in a forked process that ends here."""
    code = 1
    try:
        output = os.open(tree / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.setsid()
        os.chdir(tree)
        os.environ |= {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
        sys.path.insert(0, str(tree / "src"))
        import rorqual

        assert Path(rorqual.__file__).is_relative_to(tree), "the package is not imported from the copy"
        code = int(pytest.main(words))
    finally:
        os._exit(code)


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


def judge(mutant: Mutant, tree: Path) -> dict[str, Any]:
    """Return whether the mutant was caught, the tests that failed with an assertion, and what happened, in words."""
    began = time.monotonic()
    try:
        apply(mutant, tree)
    except LookupError as error:
        return {"caught": False, "by": [], "words": f"no longer applies: {error}", "seconds": 0.0}
    results = run_tests(mutant.tests, tree)
    restore(mutant, tree)
    asserted = [name for name, kind, _ in results if kind == "assertion"]
    died = [(name, message) for name, kind, message in results if kind == "died"]
    words = "SURVIVED"
    if asserted:
        words = f"{asserted[0].rpartition('.')[2]} ({len(asserted)} of {len(results)} fail)"
    elif died:
        words = f"stopped with an error: {died[0][0]}: {died[0][1]:.120}"
    by = sorted({name.partition("[")[0] for name in asserted})
    return {"caught": bool(asserted), "by": by, "words": words, "seconds": round(time.monotonic() - began, 1)}


def _work(mutants: list[Mutant], results: Any) -> None:
    """Judge the mutants in a copy of the source, and put (name, result) of each into the queue."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve()
        copy_tree(tree)
        for mutant in mutants:
            results.put((mutant.name, judge(mutant, tree)))


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only mutants whose name or origin contains this text")
    parser.add_argument("--workers", type=int, default=1, help="processes that test bugs")
    parser.add_argument("--result", type=Path, help="JSON file of the answers")
    given = parser.parse_args()
    wanted = [mutant for mutant in MUTANTS if given.only in mutant.name or given.only in mutant.seen]
    if not wanted:
        sys.exit("mutants: no name or origin contains this text")
    made = {"command": "python scripts/mutants.py --workers 2 --result docs/results/mutants.json", "commit": _commit()}
    known = json.loads(given.result.read_bytes()) if given.result and given.result.is_file() else {"mutants": {}}
    same = all(known.get(key) == value for key, value in made.items())
    found = {name: result for name, result in known["mutants"].items() if same and result["caught"]}
    left = [mutant for mutant in wanted if mutant.name not in found]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve()
        copy_tree(tree)
        sound = run_tests(sorted({test for mutant in left for test in mutant.tests}), tree) if left else []
    if bad := [(name, message) for name, kind, message in sound if kind != "passed"]:
        print("mutants: these tests do not pass on the unchanged source:", *bad, sep="\n  ")
        return 1
    print(f"{len(sound)} tests pass on the unchanged source; testing {len(left)} bugs", flush=True)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    for number in range(given.workers):
        context.Process(target=_work, args=(left[number :: given.workers], results)).start()
    for number in range(1, len(left) + 1):
        name, found[name] = results.get()
        word = "caught" if found[name]["caught"] else "MISSED"
        print(f"{number:4} {word}  {name:55} {found[name]['seconds']:5.1f} s  {found[name]['words']}", flush=True)
        if given.result:
            given.result.write_text(json.dumps(made | {"mutants": found}, indent=1) + "\n", encoding="utf-8")
    missed = [mutant.name for mutant in wanted if not found[mutant.name]["caught"]]
    print(f"{len(wanted) - len(missed)} of {len(wanted)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
