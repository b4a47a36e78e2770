"""Kill an engine with a prefix cache on disk at random moments, and check that the next start gives the same bits.

    python scripts/cache_kills.py RUN --kills 100

Each round, a process opens an engine on RUN with `cache_dir=` and answers pairs of prompts with a shared prefix. It gets SIGKILL at a
random moment: during start, write or read. Then another engine opens the folder and answers the same prompts and some of earlier
rounds. The script checks each time that

- the engine opens, and every answer has the same bits as without a cache: token ids and log-probabilities, which this process
  computes before the kill;
- no file is damaged: a file under its final name is complete;
- the folder is within its budget, and no partial file is left.

After every tenth kill, one bit of every file is flipped. No such file may be served, and the answers must stay the same.
Before this, cache stores without an engine are killed equally often (tests/engine/store_kills.py). The exit code is 0 if all holds.
The result is written to docs/results/cache-kills.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rorqual.core.records import write_json
from rorqual.engine import Engine
from rorqual.engine.kv_cache.disk import SUFFIX
from rorqual.engine.request import Request, SamplingParams

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "engine"))

from store_kills import kill_writers  # noqa: E402

RESULT = ROOT / "docs" / "results" / "cache-kills.json"
PAIRS, SHARED, LONGEST, REPLY = 4, 160, 300, 6
TENANTS = ("ann", "bob")

Answer = list[tuple[list[int], list[float]]]


def prompts_of(round_: int, vocabulary: int) -> list[Request]:
    """Return pairs of requests of two tenants that share their first 160 tokens: one greedy, one seeded. Each round has new ones."""
    draw, requests = random.Random(round_), []
    for pair in range(PAIRS):
        head = [draw.randrange(vocabulary) for _ in range(SHARED)]
        for number in range(2):
            tail = [draw.randrange(vocabulary) for _ in range(draw.randrange(1, LONGEST - SHARED))]
            params = SamplingParams(max_tokens=REPLY, temperature=float(number), seed=pair, ignore_eos=True)
            requests.append(Request(params=params, prompt_ids=(*head, *tail), tenant=TENANTS[pair % len(TENANTS)]))
    return requests


def opened(run: Path, folder: Path | None) -> Engine:
    return Engine(
        run, slots=8, max_len=LONGEST + REPLY, record_experts=False, reuse=folder is not None, cache_dir=folder
    )


def answers_of(engine: Engine, requests: list[Request]) -> list[Answer]:
    """Answer the requests one after another, so that the second of a pair can hit the blocks of the first."""
    return [[(c.token_ids, c.logprobs) for c in engine.generate([request])[0]] for request in requests]


def answer_until_killed(run: Path, folder: Path, round_: int, vocabulary: int, tell: Connection) -> None:
    """Answer new prompts endlessly. This process is killed."""
    tell.send("started")
    engine, requests = opened(run, folder), prompts_of(round_, vocabulary)
    tell.send("open")
    answers_of(engine, requests)
    tell.send("round")
    while True:
        answers_of(engine, prompts_of(-random.randrange(1, 1 << 40), vocabulary))


@dataclass
class Record:
    """The observations of all rounds."""

    counts: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, round_: int, what: str) -> None:
        self.faults.append(f"round {round_}: {what}")
        print(self.faults[-1], file=sys.stderr, flush=True)


def kill(run: Path, folder: Path, round_: int, vocabulary: int, draw: random.Random, spread: float) -> str:
    """Start the process, wait for a random time and kill it. Return the stage that it had reached."""
    context = multiprocessing.get_context("forkserver")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=answer_until_killed, args=(run, folder, round_, vocabulary, tell))
    process.start()
    tell.close()
    stage = str(told.recv())
    if draw.random() < 0.8:  # otherwise the kill hits the start, if the machine is slow enough
        stage = str(told.recv())
    until = time.monotonic() + draw.uniform(0, spread)
    while (left := until - time.monotonic()) > 0:
        if told.poll(left):
            stage = str(told.recv())
    process.kill()
    process.join()
    if process.exitcode != -9:
        raise RuntimeError(f"the process exited before the kill, with code {process.exitcode}")
    return stage


def look(run: Path, folder: Path, flip: random.Random | None, asked: list[Request], expected: list[Answer], record: Record,
         round_: int) -> None:  # fmt: skip
    """Open the folder, answer the requests and compare with the expected answers."""
    files = sorted(folder.glob(f"{'[0-9a-f]' * 64}{SUFFIX}"))
    record.counts["files_found"] += len(files)
    record.counts["half_written"] += len(list(folder.glob(f"*.part{SUFFIX}")))
    if flip is not None and files:
        for file in files:
            content = bytearray(file.read_bytes())
            content[flip.randrange(len(content))] ^= 1 << flip.randrange(8)
            file.write_bytes(content)
    engine = opened(run, folder)
    try:
        got = answers_of(engine, asked)
        stats = engine.stats()
        store = engine._cores[0].kv_cache.store
        assert store is not None
        store.flush()
        seen = store.stats()
        on_disk = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
    finally:
        engine.close()
    for name in ("hit_tokens", "miss_tokens", "blocks_restored"):
        record.counts[name] += int(stats[name])
    record.counts["answers"] += len(got)
    for number, (one, other) in enumerate(zip(got, expected, strict=True)):
        if one != other:
            record.fault(round_, f"answer {number} differs")
    if flip is None and seen["damaged"]:
        record.fault(round_, f"{seen['damaged']} damaged files under their names")
    if flip is not None:
        record.counts["flipped_and_found"] += seen["damaged"]
        if stats["blocks_restored"] and files:
            record.fault(round_, "a flipped file was served")
        # Files that were not read are still damaged. They must not count as faults of later rounds.
        for file in folder.glob(f"*{SUFFIX}"):
            file.unlink()
    if on_disk > store.budget or list(folder.glob(f"*.part{SUFFIX}")):
        record.fault(round_, f"{on_disk} bytes on disk, or a partial file")


def engine_kills(run: Path, folder: Path, kills: int, seed: int, spread: float) -> Record:
    plain, record, draw = opened(run, None), Record(), random.Random(seed)
    vocabulary = plain.tokenizer.vocab_size
    known: dict[int, tuple[list[Request], list[Answer]]] = {}
    multiprocessing.get_context("forkserver").set_forkserver_preload(["rorqual.engine"])
    for round_ in range(kills):
        asked = prompts_of(round_, vocabulary)
        known[round_] = asked, answers_of(plain, asked)
        record.stages[kill(run, folder, round_, vocabulary, draw, spread)] += 1
        earlier = known[draw.randrange(round_ + 1)]
        flip = random.Random(round_) if round_ % 10 == 9 else None
        look(run, folder, flip, asked + earlier[0], known[round_][1] + earlier[1], record, round_)
        print(f"{round_ + 1}/{kills}  {dict(record.stages)}  {dict(record.counts)}", file=sys.stderr, flush=True)
    plain.close()
    return record


def store_kills(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    found = [dataclasses.asdict(kill) for kill in kill_writers(folder, kills=kills, seed=seed)]
    return {"kills": len(found), **{name: sum(kill[name] for kill in found) for name in found[0] if name != "bytes"}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a trained run directory")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        help="maximum time of a kill after the engine opens (or, for one in five, after the process starts)",
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        stores = store_kills(Path(place) / "stores", args.kills, args.seed)
        print(json.dumps(stores), file=sys.stderr, flush=True)
        record = engine_kills(args.run, Path(place) / "engines", args.kills, args.seed, args.seconds)
    missing = [name for name in ("blocks_restored", "flipped_and_found", "half_written") if not record.counts[name]]
    result = {
        "command": f"python scripts/cache_kills.py RUN --kills {args.kills} --seed {args.seed} --seconds {args.seconds}",
        "run": args.run.name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.platform(),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "stores": stores,
        "engines": {"kills": args.kills, "killed_after": dict(record.stages), **record.counts},
        "never_seen": missing,
        "faults": record.faults,
    }
    write_json(args.out, result)
    print(json.dumps(result, indent=1))
    return int(bool(record.faults or stores["wrong"] or stores["damaged"]))


if __name__ == "__main__":
    sys.exit(main())
