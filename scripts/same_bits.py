"""Run thousands of random schedules and check that every answer equals, bit for bit, the same request computed alone.

    python scripts/same_bits.py --schedules 2000

Small models of both attention kinds are trained for some seconds and run in fp32 and bf16, with plain and packed weights. Each
schedule forces a preemption, a partial prefix hit, a cancellation and a restore from disk, counted outside the engine
(tests/engine/schedules.py). Progress is saved every ten schedules, and the same command resumes. The exit code is 0 if no bit
differs. The result is written to docs/results/same-bits.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from rorqual.core.records import write_json
from rorqual.engine.weight_fingerprint import ROUNDING

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "engine"))

from schedules import FORCED, Pool, Wrong, make_pool, run_schedule  # noqa: E402
from trained import KINDS, TYPES, in_type, trained  # noqa: E402

RESULT = ROOT / "docs" / "results" / "same-bits.json"
KINDS_OF_ENGINE = [(kind, dtype, pack) for pack in (False, True) for kind in KINDS for dtype in TYPES]
A_POOL = 20
"""Number of schedules that share one set of requests."""


def name_of(kind: str, dtype: str, pack: bool) -> str:
    return f"{kind} {dtype}{' packed' if pack else ''}"


def fresh() -> dict[str, Any]:
    machine = {"cpu": platform.processor() or platform.machine(), "capability": torch.backends.cpu.get_cpu_capability()}
    counts = {name_of(*how): {"schedules": 0, "answers": 0} for how in KINDS_OF_ENGINE}
    made = {"torch": torch.__version__, **machine, "rounding": ROUNDING}
    return made | {"done": 0, "wrong": [], "seconds": 0.0, "counts": counts}


def begun(out: Path) -> dict[str, Any]:
    """Return the stored progress, or a fresh result if machine, torch or arithmetic differ."""
    found = fresh()
    if not out.is_file():
        return found
    old: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    others = [key for key in ("torch", "cpu", "capability", "rounding") if old.get(key) != found[key]]
    if others:
        print(f"{out.name} was made with another {others[0]} ({old.get(others[0])}): starting again", flush=True)
    return found if others else old


def run(total: int, out: Path) -> dict[str, Any]:
    result = begun(out)
    torch.set_num_threads(1)
    models = {kind: trained(kind) for kind in KINDS}
    pools: dict[str, tuple[int, Pool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(result["done"], total):
            began = time.process_time()
            kind, dtype, pack = KINDS_OF_ENGINE[number % len(KINDS_OF_ENGINE)]
            name, seed = name_of(kind, dtype, pack), number // (len(KINDS_OF_ENGINE) * A_POOL)
            if pools.get(name, (-1, None))[0] != seed:
                pools[name] = (seed, make_pool(in_type(models[kind], dtype), seed, pack=pack))
            try:
                counts, answers = run_schedule(pools[name][1], number, Path(folder) / str(number))
            except Wrong as wrong:
                counts, answers = Counter(), 0
                result["wrong"].append(f"schedule {number}, {name}: {wrong}")
                print(result["wrong"][-1], flush=True)
            note(result, name, counts, answers, time.process_time() - began)
            if result["done"] % 10 == 0 or result["done"] == total:
                write_json(out, result)
                print(f"{result['done']} of {total}, {len(result['wrong'])} wrong", flush=True)
    return result


def note(result: dict[str, Any], name: str, counts: Counter[str], answers: int, seconds: float) -> None:
    """Add one schedule to the result."""
    mine = result["counts"][name]
    for key, count in {**counts, "schedules": 1, "answers": answers}.items():
        mine[key] = mine.get(key, 0) + count
    result["done"] += 1
    result["seconds"] = round(result["seconds"] + seconds, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    result = run(arguments.schedules, arguments.out)
    forced = {name: sum(mine.get(name, 0) for mine in result["counts"].values()) for name in FORCED}
    print(f"{result['done']} schedules, {len(result['wrong'])} wrong; forced {forced}")
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
