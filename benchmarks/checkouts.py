"""Compare CPU time and memory of this checkout with another one, in alternating pairs.

    python benchmarks/checkouts.py OTHER_CHECKOUT --pairs 7 --result docs/results/checkouts.json

Each workload runs in a process of its own on one core, with this interpreter and the checkout's `src`. CPU time counts, because other
work on the machine affects it less than wall-clock time. `start` covers the whole process; the other workloads exclude imports and
setup. A ratio above 1 means that this checkout takes more. The output has the median, least and greatest ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VOCAB = 264
Work = Callable[[], Callable[[], object]]
"""Sets a workload up and returns the function to measure."""


def _engine(size: str, *, context: int = 4096, **settings: Any) -> Any:
    from rorqual.data.chat import chat_format
    from rorqual.data.tokenizer import Tokenizer
    from rorqual.engine import Engine
    from rorqual.model import build
    from rorqual.recipes.models import v3_like

    tokenizer = Tokenizer.byte_level()
    model = build(v3_like(size, vocab_size=VOCAB, context=context), seed=0)
    return Engine.of(model, tokenizer, chat_format(tokenizer), threads=1, **settings)


def _generation(prompts: int, length: int, new: int, **params: Any) -> Work:
    def work() -> Callable[[], object]:
        from rorqual.engine import Request, SamplingParams

        engine = _engine("medium")
        asked = SamplingParams(max_tokens=new, ignore_eos=True, **params)
        requests = [
            Request(prompt_ids=tuple((7 * i + 3 * j) % 250 for j in range(length)), params=asked)
            for i in range(prompts)
        ]
        engine.generate(requests[:1])
        return lambda: engine.generate(requests)

    return work


def _training() -> Callable[[], object]:
    from rorqual.core.records import RunDir
    from rorqual.recipes.pretrain import pretrain
    from rorqual.train.loop import fit

    folder = Path(tempfile.mkdtemp())
    text = folder / "text.txt"
    text.write_text("".join(f"{a} and {b} make {a + b}. " for a in range(200) for b in range(20)), encoding="utf-8")
    run = pretrain(data=str(text), size="small", steps=24, rows=8, row=256)
    fit(
        run.model_copy(update={"steps": 1}), RunDir(folder / "first"), quiet=True
    )  # torch's optimizer imports its compiler
    return lambda: fit(run, RunDir(folder / "run"), quiet=True)


def _start() -> Callable[[], object]:
    from rorqual.engine import Request, SamplingParams

    _engine("small").generate([Request(prompt_ids=(1, 2, 3), params=SamplingParams(max_tokens=1))])
    return lambda: None


WORKS: dict[str, Work] = {
    "one at a time": _generation(1, 64, 160),
    "decode": _generation(48, 32, 48),
    "prefill": _generation(4, 1800, 1),
    "rollouts": _generation(8, 64, 48, n=6, temperature=1.0, top_p=0.95),
    "training": _training,
    "start": _start,
}


def measure(name: str) -> None:
    """Run one workload in this process. Print CPU seconds and peak memory in MiB."""
    run = WORKS[name]()
    began = 0.0 if name == "start" else time.process_time()
    run()
    print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def asked(checkout: Path, name: str) -> tuple[float, float]:
    """Run a workload in a process of its own with the code of `checkout`. Return CPU seconds and peak MiB."""
    words = [sys.executable, str(Path(__file__).resolve()), "--work", name]
    env = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        sys.exit(f"{checkout}, {name}: {done.stderr[-2000:]}")
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--work", choices=WORKS, help="run only this workload, in this process")
    parser.add_argument("--only", choices=WORKS, help="compare only this workload")
    parser.add_argument("--result", type=Path, help="JSON file for every pair")
    given = parser.parse_args()
    if given.work:
        measure(given.work)
        return
    if given.other is None or not (given.other / "src" / "rorqual").is_dir():
        parser.error("give the folder of another checkout")
    found = {}
    for name in [given.only] if given.only else WORKS:
        pairs = []
        for number in range(given.pairs):
            order = (ROOT, given.other) if number % 2 else (given.other, ROOT)
            both = {checkout: asked(checkout, name) for checkout in order}
            pairs.append((both[ROOT], both[given.other]))
        found[name] = pairs
        for what, at in (("processor time", 0), ("memory", 1)):
            ratios = [here[at] / there[at] for here, there in pairs]
            print(
                f"{name:14s} {what:15s} {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
                f"here {statistics.median(here[at] for here, _ in pairs):.2f}",
                flush=True,
            )
    if given.result:
        from record import commit, made_by

        made = made_by({given.other: "OTHER_CHECKOUT"}) | {"other_commit": commit(given.other)}
        rows = {name: [{"here": here, "there": there} for here, there in pairs] for name, pairs in found.items()}
        text = json.dumps(made | {"unit": ["processor seconds", "MiB"], "pairs": rows}, indent=1)
        given.result.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
