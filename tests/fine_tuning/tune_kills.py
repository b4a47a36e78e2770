"""Jobs of several tenants on a server that is killed at random moments, held against the same jobs on a server that nobody kills."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from openai import OpenAI
from safetensors.torch import load_file

from rorqual.fine_tuning.queue import CONTINUED, DISK_MESSAGE
from rorqual.fine_tuning.store import JobFolder
from rorqual.serve.keys import ApiKeys
from served import Server, start, stop, write_run

TENANTS = ("default", "second", "third")
BASE = "tiny"
DEADLINE = 3600.0


def rows(path: Path, number: int) -> Path:
    turns = (
        [{"role": "user", "content": f"{a}+{number}"}, {"role": "assistant", "content": str(a + number)}]
        for a in range(8)
    )
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns), encoding="utf-8")
    return path


class Tuning:
    """A folder with a server that may die, and clients of all tenants."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run, self.folder = run, folder
        folder.mkdir(parents=True)
        keys = folder / "keys.json"
        self.secrets = {tenant: ApiKeys.load(keys).ensure_key(tenant) or "" for tenant in TENANTS}
        self.server = self.start()

    def start(self) -> Server:
        words = [f"tune={self.folder / 'tune'}", "tune_jobs=2", "port=0", "slots=2"]
        return start(self.run, self.folder / "keys.json", self.folder / "log", *words)

    def client(self, tenant: str) -> OpenAI:
        return OpenAI(base_url=f"{self.server.url}/v1", api_key=self.secrets[tenant], max_retries=0, timeout=60)

    def kill(self) -> None:
        """Kill the server as a power failure would, and start it again."""
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait()
        self.server = self.start()

    def create(self, number: int, folder: Path) -> str:
        client = self.client(TENANTS[number % len(TENANTS)])
        with open(rows(folder / f"{number}.jsonl", number), "rb") as content:
            file = client.files.create(file=content, purpose="fine-tune")
        hyperparameters: Any = {"n_epochs": 4, "batch_size": 1}
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
        asked = {"model": BASE, "training_file": file.id, "seed": number, "suffix": f"job{number}", "method": method}
        return client.fine_tuning.jobs.create(**asked).id

    def unfinished(self) -> int:
        shown = [job for tenant in TENANTS for job in self.client(tenant).fine_tuning.jobs.list(limit=100)]
        return sum(job.status not in ("succeeded", "failed", "cancelled") for job in shown)

    def wait(self) -> None:
        end = time.monotonic() + DEADLINE
        while self.unfinished():
            assert time.monotonic() < end
            time.sleep(0.5)


def results(tuning: Tuning, ids: list[str]) -> list[dict[str, Any]]:
    """What became of each job: its status, events and weights."""
    found = []
    for number, job_id in enumerate(ids):
        client, folder = (
            tuning.client(TENANTS[number % len(TENANTS)]),
            JobFolder(tuning.folder / "tune" / "jobs" / job_id),
        )
        job = client.fine_tuning.jobs.retrieve(job_id)
        steps = Counter(event["message"] for event in folder.events())
        weights = load_file(folder.model(folder.checkpoints()[-1]["step_number"]).checkpoint() / "adapter.safetensors")
        found.append({"status": job.status, "events": steps, "weights": weights, "tokens": job.trained_tokens})
    return found


def fill_disk(tuning: Tuning) -> int:
    """Fill the disk but for 256 KiB, until a job says so. Return the number of jobs that said it."""
    filler, end = tuning.folder / "filler", time.monotonic() + DEADLINE
    with open(filler, "wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        file.truncate(file.tell() - (1 << 18))
    folders = [JobFolder(job) for job in tuning.folder.glob("tune/jobs/*")]
    while not (said := sum(any(event["message"] == DISK_MESSAGE for event in one.events()) for one in folders)):
        assert time.monotonic() < end
        time.sleep(0.5)
    filler.unlink()
    return said


def torment(folder: Path, *, jobs: int, kills: int, seed: int, fill: bool = False) -> dict[str, Any]:
    """Run `jobs` jobs twice, the second time on a server that is killed `kills` times, and compare.

    With `fill`, the disk is filled after half of the kills, so `folder` must be on a small disk of its own.
    """
    run, rng = write_run(folder / BASE, context=256), random.Random(seed)
    (folder / "data").mkdir()
    straight = results_of_all(Tuning(run, folder / "quiet"), jobs, folder / "data")
    killed = Tuning(run, folder / "killed")
    ids = [killed.create(number, folder / "data") for number in range(jobs)]
    done = said = 0
    while done < kills and killed.unfinished():
        time.sleep(rng.uniform(0.5, 12))
        killed.kill()
        done += 1
        if fill and done == kills // 2:
            said = fill_disk(killed)
    killed.wait()
    tormented = results(killed, ids)
    stop(killed.server)
    return {
        "jobs": jobs,
        "kills": done,
        **({"jobs_that_said_the_disk_was_full": said} if fill else {}),
        "succeeded": sum(one["status"] == "succeeded" for one in tormented),
        "same_weights": sum(_same(a["weights"], b["weights"]) for a, b in zip(straight, tormented)),
        "same_tokens": sum(a["tokens"] == b["tokens"] for a, b in zip(straight, tormented)),
        "events_twice": sum(
            count > 1
            for one in tormented
            for message, count in one["events"].items()
            if message not in (DISK_MESSAGE, CONTINUED)
        ),
        "same_steps": sum(_steps(a["events"]) == _steps(b["events"]) for a, b in zip(straight, tormented)),
    }


def results_of_all(tuning: Tuning, jobs: int, folder: Path) -> list[dict[str, Any]]:
    ids = [tuning.create(number, folder) for number in range(jobs)]
    tuning.wait()
    found = results(tuning, ids)
    stop(tuning.server)
    return found


def _steps(events: Counter[str]) -> set[str]:
    return {message for message in events if message.startswith("Step ")}


def _same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)
