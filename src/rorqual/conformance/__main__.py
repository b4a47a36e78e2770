"""The command `python -m rorqual.conformance plugins=./mine.py attention=mine key=value ...`."""

from __future__ import annotations

import sys

from rorqual.conformance import CHECKS, run_checks
from rorqual.core.config import parse_scalar
from rorqual.core.errors import RorqualError
from rorqual.core.registry import load_plugins


def main(arguments: list[str]) -> int:
    """Print the result of each check. Return 0 if all checks pass, 1 if a check fails, and 2 if the arguments are wrong."""
    values = dict(text.partition("=")[::2] for text in arguments)
    failures = 0
    try:
        load_plugins(*filter(None, values.pop("plugins", "").split(",")))
        part = next((name for name in values if name in CHECKS), "")
        kind = values.pop(part, "")
        for name, error in run_checks(part, kind, {key: parse_scalar(value) for key, value in values.items()}):
            print(f"ok      {name}" if error is None else f"FAILED  {name}: {error.what}\n  {error.remedy}")
            failures += error is not None
    except RorqualError as error:
        print(f"rorqual: {error}", file=sys.stderr)
        return 2
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
