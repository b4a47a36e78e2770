"""Jobs of several tenants on a server that is killed at random moments, held against the same jobs while nobody kills it."""

from __future__ import annotations

import json
import math
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from torch import Tensor

from rorqual.core.journal import read_lines
from rorqual.core.records import Message
from rorqual.data.chat.find import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.fine_tuning.job_process import PROCESSES_FILE
from rorqual.fine_tuning.queue import CONTINUED, DISK_MESSAGE
from rorqual.fine_tuning.store import LADDER, JobFolder
from rorqual.serve.keys import ApiKeys
from rorqual.teach.paths import TeachPaths
from served import Server, learn, save_run, small_model, start, stop

TENANTS = ("default", "second", "third")
KINDS = ("supervised", "dpo", "reinforcement", LADDER)
BASE = "tiny"
DEADLINE = 3600.0
GRADER = {
    "type": "string_check",
    "name": "letter",
    "input": "{{sample.output_text}}",
    "reference": "{{item.letter}}",
    "operation": "eq",
}
LETTERS = "abcd"
MILLISECONDS = re.compile(r", \S+ ms an answer$")
"""The end of an event about a rung, which differs if the rung is measured twice."""
SETTINGS: dict[str, dict[str, Any]] = {
    "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 1}},
    "dpo": {"hyperparameters": {"n_epochs": 4, "batch_size": 1}},
    "reinforcement": {
        "grader": GRADER,
        "hyperparameters": {"n_epochs": 4, "batch_size": 1, "compute_multiplier": 0.5},
    },
}


def write_guesser(path: Path) -> Path:
    """A small model that replies with one of `LETTERS` at random, so that some samples of a prompt are right."""
    tokenizer = Tokenizer.byte_level()
    chat, model = chat_format(tokenizer, "deepseek"), small_model(tokenizer.vocab_size + 1, 128)
    replies = [chat.render([Message("user", "1+2"), Message("assistant", letter)]) for letter in LETTERS]
    ids, kept = torch.tensor([one.ids for one in replies]), torch.tensor(replies[0].mask[1:], dtype=torch.bool)

    def loss() -> Tensor:
        logits = model.lm_head(model(ids[:, :-1]).hidden)[:, kept]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:][:, kept].flatten())

    learn(model, loss, steps=100, bar=math.log(len(LETTERS)) / 2 + 0.05)
    return save_run(path, model, tokenizer)


def rows(kind: str, number: int) -> Iterator[dict[str, Any]]:
    """Rows of a training file of the kind, which differ with `number`."""
    for a in range({"supervised": 40, "dpo": 24, "reinforcement": 20, LADDER: 60}[kind]):
        asked, right, wrong = [{"role": "user", "content": f"{a}+{number}"}], str(a + number), str(a)
        if kind == "dpo":
            replies = [[{"role": "assistant", "content": text}] for text in (right, wrong)]
            yield {"input": {"messages": asked}, "preferred_output": replies[0], "non_preferred_output": replies[1]}
        elif kind == "reinforcement":
            yield {"messages": asked, "letter": LETTERS[(a + number) % 4]}
        elif kind == LADDER:
            asked = [{"role": "user", "content": f"Order {a * 7919 % 1000}: {('money back', 'late parcel')[a % 2]}"}]
            yield {"messages": [*asked, {"role": "assistant", "content": ("refund", "delivery")[(a + number) % 2]}]}
        else:
            yield {"messages": [*asked, {"role": "assistant", "content": right}]}


def training(folder: JobFolder) -> list[int]:
    """The processes that have begun to train a job and are alive. A process that has ended has no command line."""
    begun, alive = {line["process"] for line in read_lines(folder.path / PROCESSES_FILE)}, []
    for process in begun:
        with suppress(OSError):
            if str(folder.path) in Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8").split("\0"):
                alive.append(process)
    return alive


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

    def kill(self) -> int:
        """Kill the server as a power failure would, and start it again at once. Return the steps that were trained between the two."""
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait()
        steps = self.steps()
        self.server = self.start()
        return self.steps() - steps

    def steps(self) -> int:
        """The steps of all jobs so far."""
        return sum(event["type"] == "metrics" for job in self.jobs() for event in job.events())

    def create(self, number: int) -> str:
        client, kind = self.client(TENANTS[number % len(TENANTS)]), KINDS[number % len(KINDS)]
        content = "".join(json.dumps(row) + "\n" for row in rows(kind, number)).encode()
        file = client.files.create(file=(f"{number}.jsonl", content), purpose="fine-tune")
        asked: dict[str, Any] = {"training_file": file.id, "seed": number, "suffix": f"job{number}"}
        if kind == LADDER:
            return client.fine_tuning.jobs.create(model=LADDER, **asked).id
        method: Any = {"type": kind, kind: SETTINGS[kind]}
        return client.fine_tuning.jobs.create(model=BASE, method=method, **asked).id

    def jobs(self) -> list[JobFolder]:
        return [JobFolder(path) for path in self.folder.glob("tune/jobs/*")]

    def training(self) -> list[int]:
        """The processes that train a job now."""
        return [process for job in self.jobs() for process in training(job)]

    def unfinished(self) -> int:
        shown = [job for tenant in TENANTS for job in self.client(tenant).fine_tuning.jobs.list(limit=100)]
        return sum(job.status not in ("succeeded", "failed", "cancelled") for job in shown)

    def wait(self) -> None:
        end = time.monotonic() + DEADLINE
        while self.unfinished():
            assert time.monotonic() < end
            time.sleep(0.5)


class Witness(threading.Thread):
    """Looks 50 times a second for a job that two processes train at once."""

    def __init__(self, tuning: Tuning) -> None:
        super().__init__(daemon=True)
        self.tuning, self.ended, self.trained_at_once = tuning, threading.Event(), set[tuple[int, ...]]()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.02):
            found = (tuple(sorted(training(job))) for job in self.tuning.jobs())
            self.trained_at_once |= {processes for processes in found if len(processes) > 1}

    def end(self) -> set[tuple[int, ...]]:
        self.ended.set()
        self.join()
        return self.trained_at_once


def results(tuning: Tuning, ids: list[str]) -> list[dict[str, Any]]:
    """What became of each job: its status, events, processes and model."""
    found = []
    for number, job_id in enumerate(ids):
        folder = JobFolder(tuning.folder / "tune" / "jobs" / job_id)
        job = tuning.client(TENANTS[number % len(TENANTS)]).fine_tuning.jobs.retrieve(job_id)
        events = folder.events()
        found.append(
            {
                "status": job.status,
                "events": Counter(MILLISECONDS.sub("", event["message"]) for event in events),
                "steps": [event["message"] for event in events if event["type"] == "metrics"],
                "order": [event["data"]["step"] for event in events if event["type"] == "metrics"],
                "model": model_of(folder),
                "tokens": job.trained_tokens,
                "began": [line["began"] for line in read_lines(folder.path / PROCESSES_FILE)],
                "ended": job.finished_at,
            }
        )
    return found


def model_of(folder: JobFolder) -> list[bytes]:
    """The weights of the adapter. Of a ladder: the answers of the chosen rung and its choice."""
    if folder.taught.is_dir():
        paths = TeachPaths(folder.taught)
        return [file.read_bytes() for file in (paths.choice, paths.answerer, paths.test_probabilities)]
    checkpoint = folder.model(folder.checkpoints()[-1]["step_number"]).checkpoint()
    return [(checkpoint / "adapter.safetensors").read_bytes()]


def fill_disk(tuning: Tuning) -> int:
    """Fill the disk but for 256 KiB, until a job says so. Return the number of jobs that said it."""
    filler, end = tuning.folder / "filler", time.monotonic() + DEADLINE
    with open(filler, "wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        file.truncate(file.tell() - (1 << 18))
    while not (said := sum(any(event["message"] == DISK_MESSAGE for event in job.events()) for job in tuning.jobs())):
        assert time.monotonic() < end
        time.sleep(0.5)
    filler.unlink()
    return said


def torment(folder: Path, *, jobs: int, kills: int, seed: int, fill: bool = False) -> dict[str, Any]:
    """Run `jobs` jobs of all kinds twice, the second time while the server is killed `kills` times, and compare.

    Every second kill waits until a process trains. With `fill`, the disk is filled after half of the kills, so `folder` must be on a
    small disk of its own. Ladders have no encoder, because nothing is downloaded.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("HOME", str(folder))
        return _torment(folder, jobs, kills, seed, fill)


def _torment(folder: Path, jobs: int, kills: int, seed: int, fill: bool) -> dict[str, Any]:
    tuning, rng = Tuning(write_guesser(folder / BASE), folder / "served"), random.Random(seed)
    straight = [tuning.create(number) for number in range(jobs)]
    tuning.wait()
    witness, ids = Witness(tuning), [tuning.create(number) for number in range(jobs)]
    done = said = struck = alone = 0
    while done < kills and tuning.unfinished():
        while done % 2 == 0 and tuning.unfinished() and not tuning.training():
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 8))
        struck += len(tuning.training())
        alone = max(alone, tuning.kill())
        done += 1
        if fill and done == kills // 2:
            said = fill_disk(tuning)
    tuning.wait()
    pairs = list(zip(results(tuning, straight), results(tuning, ids), strict=True))
    stop(tuning.server)
    return {
        "jobs": dict(Counter(KINDS[number % len(KINDS)] for number in range(jobs))),
        "kills": done,
        "processes_that_trained_when_their_server_was_killed": struck,
        **({"jobs_that_said_the_disk_was_full": said} if fill else {}),
        "succeeded": sum(one["status"] == "succeeded" for _, one in pairs),
        "same_models": sum(a["model"] == b["model"] for a, b in pairs),
        "same_tokens": sum(a["tokens"] == b["tokens"] for a, b in pairs),
        "same_steps": sum(a["steps"] == b["steps"] for a, b in pairs),
        "steps_in_order": sum(one["order"] == [*range(1, len(one["order"]) + 1)] for _, one in pairs),
        "events_twice": sum(
            count > 1
            for _, one in pairs
            for message, count in one["events"].items()
            if message not in (DISK_MESSAGE, CONTINUED)
        ),
        "most_steps_between_a_kill_and_the_next_server": alone,
        "jobs_that_two_processes_trained_at_once": len(witness.end()),
        "processes_that_began_after_the_end": sum(began > one["ended"] for _, one in pairs for began in one["began"]),
    }
