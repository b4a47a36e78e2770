"""Kill `rorqual distil` at random points, resume it each time, and compare the results with an uninterrupted run.

    python scripts/factory_kills.py --kills 20

Half of the kills hit a run with one of our models as teacher. The other half use a local server with OpenAI's API as teacher, which
counts every answer that it would bill and has a budget. Every kill is a SIGKILL at a random moment: when a random number of further
samples exists, and a little later. At each kill and at the end the script checks that

- the rows of data.parquet equal those of the uninterrupted run in every column except times, and so do the other results;
- every sample that existed at a kill still exists at the end, byte for byte, and once;
- the server was never asked again for an existing sample;
- every answer of the server is a row or was in flight at a kill (at most `concurrency` each);
- the budget counts answers in flight in full, so the recorded spending is at least what the server would bill.

For each killed run with the server, the result lists requests and money: billed by the server, and paid, kept and lost by card.md.

The exit code is 0 if all of this holds. The result is written to docs/results/factory-kills.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rorqual.core.records import write_json

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "docs" / "results" / "factory-kills.json"
SERVER, SUMS = ROOT / "tests" / "factory" / "distil_server.py", ROOT / "tests" / "factory" / "sums_task.py"
sys.path.insert(0, str(SERVER.parent))

from distil_server import PROMPT_TOKENS, answer  # noqa: E402

CLOCK_COLUMNS = ["core_seconds"]
CONCURRENCY = 4
PROBLEMS, SAMPLES = 40, 4
PRICE_IN, PRICE_OUT = 1.0, 2.0


@dataclass
class Case:
    """The runs with one teacher: its arguments, the kills, and the faults found."""

    name: str
    words: list[str]
    log: Path | None = None
    kills: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    rows: int = 0
    billed: int = 0
    under_way: int = 0
    money: list[dict[str, Any]] = field(default_factory=list)

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "rorqual", "distil", *self.words, f"out={out}", "quiet=true"]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def straight(self, out: Path) -> None:
        """Run to the end without a kill."""
        process = self.start(out)
        _, error = process.communicate()
        if process.returncode:
            self.faults.append(f"{out.name} ended with {process.returncode}: {error.decode()[-500:]}")

    def answered(self) -> list[tuple[str, int]]:
        """Return the (question, seed) of every answer that the server would bill."""
        if self.log is None or not self.log.is_file():
            return []
        lines = [json.loads(line) for line in self.log.read_bytes().split(b"\n")[:-1]]
        return [(line["question"], line["seed"]) for line in lines if line["status"] == 200]


def samples(out: Path) -> list[bytes]:
    """Return the complete lines of the journal."""
    file = out / "samples.jsonl"
    return file.read_bytes().split(b"\n")[:-1] if file.is_file() else []


def results(out: Path) -> dict[str, Any]:
    """Return the results that must not depend on kills."""
    table = pq.read_table(out / "data.parquet")
    return {"rows": table.drop_columns(CLOCK_COLUMNS).to_pylist(), "metadata": table.schema.metadata,
            "contaminated": (out / "contaminated.jsonl").read_bytes()}  # fmt: skip


def torment(case: Case, folder: Path, kills: int, rng: random.Random) -> None:
    """Kill and resume runs until there have been `kills` kills. Finish each run after at most three kills."""
    case.straight(folder / f"{case.name}-straight")
    wanted, answers = results(folder / f"{case.name}-straight"), len(case.answered())
    case.rows = len(wanted["rows"])
    if case.log is not None and answers != case.rows:
        case.faults.append(f"an uninterrupted run of {case.rows} rows got {answers} answers")
    number = 0
    while len(case.kills) < kills:
        out, there, before = folder / f"{case.name}-{number}", list[bytes](), Counter(case.answered())
        mine = 0
        while len(case.kills) < kills and mine < 3 and len(there) < case.rows:
            process = case.start(out)
            aim = rng.randint(len(there), case.rows)
            while process.poll() is None and len(samples(out)) < aim:
                time.sleep(0.002)
            time.sleep(rng.random() * (0.5 if aim == case.rows else 0.05))
            if process.poll() is not None:
                process.communicate()
                break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            now = samples(out)
            if now[: len(there)] != there:
                case.faults.append(f"run {number}: an existing sample is missing after a kill")
            there, mine = now, mine + 1
            case.kills.append({"run": number, "samples_there": len(now)})
            print(f"{case.name}: killed with {len(now)} of {case.rows} samples", flush=True)
        case.straight(out)
        check(case, out, wanted, there, Counter(case.answered()) - before, mine, number)
        number += 1


def check(
    case: Case, out: Path, wanted: dict[str, Any], there: list[bytes], answered: Counter[Any], kills: int, number: int
) -> None:
    got, end = results(out), samples(out)
    case.faults += [f"run {number}: {name} differ" for name in wanted if wanted[name] != got[name]]
    if end[: len(there)] != there or len(set(end)) != len(end) or len(end) != case.rows:
        case.faults.append(f"run {number}: samples were lost or duplicated")
    if case.log is None:
        return
    extra = answered.total() - case.rows
    case.billed += answered.total()
    case.under_way += extra
    if not 0 <= extra <= kills * CONCURRENCY:
        case.faults.append(f"run {number}: {answered.total()} answers for {case.rows} rows and {kills} kills")
    lines = [json.loads(line) for line in (out / "purse.jsonl").read_bytes().split(b"\n")[:-1]]
    sent = {line["sent"] for line in lines if "sent" in line} - {line["refused"] for line in lines if "refused" in line}
    if len(sent) < answered.total():
        case.faults.append(f"run {number}: the budget records {len(sent)} of {answered.total()} answers")
    spent = money_of(out)
    billed = answered.total() * PROMPT_TOKENS * PRICE_IN / 1e6 + sum(map(completion_money, answered.elements()))
    case.money.append(
        {"run": number, "kills": kills, "billed": {"requests": answered.total(), "money": round(billed, 9)}} | spent
    )
    if spent["paid"]["money"] < billed - 1e-9:
        case.faults.append(f"run {number}: {billed:.6g} was billed, but the card counts {spent['paid']['money']:.6g}")
    if len(sent) - case.rows > kills * CONCURRENCY:
        case.faults.append(f"run {number}: {len(sent)} requests for {case.rows} rows and {kills} kills")


def completion_money(asked: tuple[str, int]) -> float:
    """Return what the server bills for its answer to a (question, seed), without the prompt."""
    body = {"messages": [{"content": asked[0]}], "seed": asked[1]}
    return int(answer(body)["usage"]["completion_tokens"]) * PRICE_OUT / 1e6


def money_of(out: Path) -> dict[str, Any]:
    """Return the requests and money that were paid, kept and lost, as shown in the card."""
    card = (out / "card.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (paid|kept|lost)[,:][^|]*\| (\d+) \| ([^ ]+) \|$", card, re.MULTILINE)
    return {name: {"requests": int(count), "money": float(money)} for name, count, money in rows}


def asked_again(case: Case, folder: Path) -> None:
    """Record a fault for each sample that was requested again after it existed."""
    for out in sorted(folder.glob(f"{case.name}-*")):
        lines = [json.loads(line) for line in (out / "purse.jsonl").read_bytes().split(b"\n")[:-1]]
        last = {line["sent"].rpartition("#")[0]: line["sent"] for line in lines if "sent" in line}
        for line in samples(out):
            attempt = json.loads(line)["attempt"]
            if last[attempt.rpartition("#")[0]] != attempt:
                case.faults.append(f"{out.name}: {attempt} existed and was requested again")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        teacher = folder / "teacher"
        words = ["train", "sft", "task=families", "size=tiny", "steps=3", "rows=4", f"out={teacher}", "quiet=true"]
        subprocess.run([sys.executable, "-m", "rorqual", *words], check=True)
        shared = [f"problems={PROBLEMS}", f"samples={SAMPLES}", "keep=all"]
        local = Case("run", [str(teacher), "task=families", *shared, "max_tokens=48", "batch=16", "top_k=4"])
        torment(local, folder, options.kills // 2, rng)
        log = folder / "answers.jsonl"
        server = subprocess.Popen([sys.executable, str(SERVER), str(folder / "address"), str(log)])
        try:
            while not (folder / "address").is_file() or not (folder / "address").read_text(encoding="utf-8"):
                time.sleep(0.05)
            address = (folder / "address").read_text(encoding="utf-8")
            money = ["budget=1", f"price_in={PRICE_IN}", f"price_out={PRICE_OUT}", f"concurrency={CONCURRENCY}"]
            remote = Case(
                "server", [address, "model=adder", f"task={SUMS}:Sums", *shared, "max_tokens=20", *money], log
            )
            torment(remote, folder, options.kills - options.kills // 2, rng)
            asked_again(remote, folder)
        finally:
            server.kill()
            server.wait()
    cases = (local, remote)
    write_json(options.out, {
        "command": f"python scripts/factory_kills.py --kills {options.kills} --seed {options.seed}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "kills": {case.name: case.kills for case in cases},
        "rows_of_each_run": {case.name: case.rows for case in cases},
        "server": {
            "answers_of_killed_runs": remote.billed, "of_these_under_way_at_a_kill": remote.under_way, "killed_runs": remote.money,
        },
        "faults": [fault for case in cases for fault in case.faults],
    })  # fmt: skip
    for case in cases:
        print(f"{case.name}: {len(case.kills)} kills, {len(case.faults)} faults", *case.faults, sep="\n  ")
    return 1 if any(case.faults for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
