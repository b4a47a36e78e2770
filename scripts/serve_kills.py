"""Kill a server's engine process repeatedly under load, and compare every answer with that of an undisturbed server.

    python scripts/serve_kills.py --kills 10

Clients of two tenants send streamed and plain requests with shared prefixes, while the engine gets SIGKILL at random moments. Every
complete answer must be right. Every interrupted one must be a prefix of the right answer and report the error. The server process
must never fail. The prefix cache is on disk, so the next engine uses what survives a kill.

The exit code is 0 if all of this holds. The result is written to docs/results/serve-kills.json.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rorqual.core.records import write_json

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "docs" / "results" / "serve-kills.json"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "serve")]

from kills import torment  # noqa: E402

from served import write_run  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = write_run(Path(place) / "tiny")
        outcome = torment(
            run, Path(place), kills=options.kills, clients=options.clients, requests=options.requests, seed=options.seed
        )
    words = f"--kills {options.kills} --clients {options.clients} --requests {options.requests} --seed {options.seed}"
    head = {
        "command": f"python scripts/serve_kills.py {words}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    write_json(options.out, head | asdict(outcome))
    print(
        f"{outcome.kills} kills: {outcome.whole} answers complete and right, {outcome.broken} interrupted, {outcome.refused} refused"
    )
    print(*outcome.faults, sep="\n")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
