"""Divide the tests into tiers by what they cost, and write tests/tiers.json.

    RORQUAL_CORE_SECONDS=FILE make test-all      # append core-seconds and name of each test to FILE
    python scripts/tiers.py FILE

`make test-fast` leaves out `slow` and `full` tests, `make test` leaves out `full` ones, `make test-all` runs all but soaks. A
test that starts a browser or Node (`pytest.mark.browser`) is `full`. Any other is placed by its core-seconds, all parameters
together. A test that alone catches a bug of tests/mutants stays in `make test`, whatever it costs, unless it starts a browser.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "mutants"))

from catalogue import MUTANTS  # noqa: E402

SLOW, FULL = 0.3, 2.5
"""Core-seconds from which a test is slow, and from which it is full."""
CAUGHT = 0.805
"""Share of the bugs of tests/mutants that `make test-fast` catches."""
MARKED = re.compile(r"^@pytest\.mark\.browser\n(?:@.*\n)*def (\w+)", re.MULTILINE)


def core_seconds(file: Path) -> Counter[str]:
    """Return the core-seconds of each test function."""
    seconds = Counter[str]()
    for line in file.read_text(encoding="utf-8").splitlines():
        count, _, name = line.partition(" ")
        seconds[name.partition("[")[0]] += float(count)
    return seconds


def in_browser(name: str) -> bool:
    """Return whether a test has the marker `browser`, itself or by its file."""
    file, _, function = name.partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    return "pytestmark = pytest.mark.browser" in text or function in MARKED.findall(text)


def tiers(seconds: Counter[str]) -> dict[str, list[str]]:
    """Return the names of slow and of full tests."""
    outside = {name for name in seconds if in_browser(name)}
    full = {name for name, count in seconds.items() if count >= FULL} - outside
    for mutant in MUTANTS:
        names = {test.partition("[")[0] for test in mutant.tests} - outside
        if names and names <= full:
            full.remove(min(names, key=lambda name: seconds[name]))
    slow = {name for name, count in seconds.items() if count >= SLOW} - full - outside
    # The cheapest slow tests for each further bug stay in `make test-fast`, until it catches enough of them.
    bugs = [{test.partition("[")[0] for test in mutant.tests} for mutant in MUTANTS]
    while sum(not names <= slow | full | outside for names in bugs) < CAUGHT * len(bugs):
        caught = Counter(name for names in bugs if names <= slow | full | outside for name in names & slow)
        slow.remove(max(caught, key=lambda name: caught[name] / seconds[name]))
    return {"slow": sorted(slow), "full": sorted(full | outside)}


def main() -> None:
    seconds = core_seconds(Path(sys.argv[1]))
    tests = tiers(seconds)
    full = sum(seconds.values())
    test = full - sum(seconds[name] for name in tests["full"])
    fast = test - sum(seconds[name] for name in tests["slow"])
    sums = {"test-fast": round(fast), "test": round(test), "test-all": round(full)}
    text = json.dumps({"command": "python scripts/tiers.py FILE", "core_seconds": sums, "tests": tests}, indent=1)
    (ROOT / "tests" / "tiers.json").write_text(text + "\n", encoding="utf-8")
    print(", ".join(f"{name} {count} core-seconds" for name, count in sums.items()))


if __name__ == "__main__":
    main()
