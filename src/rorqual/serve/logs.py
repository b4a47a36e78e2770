"""Messages of the server to the server's operator."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write one line to the server's log, which is standard error."""
    print(f"rorqual serve: {text}", file=sys.stderr, flush=True)
