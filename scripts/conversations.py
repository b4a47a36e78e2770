"""Run a thousand interleaved conversations of several tenants through one engine, and compare each answer with the one computed alone.

    python scripts/conversations.py --conversations 1000

Each prompt extends the earlier turns and replies. Many share a prefix, within and across tenants. A turn must not find more of its
prompt in the cache than its own tenant has sent before. The script counts this from the conversations, not from the engine's statistics.
The exit code is 0 if all holds. The result is written to docs/results/conversations.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from rorqual.core.records import write_json

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "engine"))

from conversations import converse  # noqa: E402
from schedules import Wrong  # noqa: E402
from trained import KINDS, trained  # noqa: E402

RESULT = ROOT / "docs" / "results" / "conversations.json"
KEPT = 300
"""Number of cache blocks: fewer than the conversations need, so that some are evicted."""


def hold(kind: str, count: int) -> dict[str, Any]:
    """Run the conversations with one model, and return the counts."""
    began, counts, wrong = time.process_time(), Counter[str](), ""
    try:
        for counts in converse(trained(kind), count, seed=7, at_once=40, blocks=KEPT):
            if counts["conversations"] % 50 == 0:
                print(f"{kind}: {counts['conversations']} of {count}", flush=True)
    except Wrong as error:
        wrong = str(error)
        print(wrong, flush=True)
    return {**counts, "wrong": wrong, "seconds": round(time.process_time() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shares = {kind: arguments.conversations // len(KINDS) for kind in KINDS}
    result = {"torch": torch.__version__} | {kind: hold(kind, count) for kind, count in shares.items()}
    write_json(arguments.out, result)
    return 1 if any(result[kind]["wrong"] for kind in KINDS) else 0


if __name__ == "__main__":
    sys.exit(main())
