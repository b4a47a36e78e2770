"""A server with the fine-tuning API, two tenants, and files of small sums."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from rorqual.core.config import parse_config
from rorqual.fine_tuning.schemas import Method
from rorqual.fine_tuning.store import Job, JobFolder
from rorqual.serve.keys import ApiKeys
from served import Server, running

BASE = "gpt-4o-mini-2024-07-18"
ENDED = ("succeeded", "failed", "cancelled")


def sums(path: Path, first: int = 0, rows: int = 12) -> Path:
    """A file in OpenAI's form. Its rows differ with `first`."""
    turns = (
        [{"role": "user", "content": f"{a}+{a + 1}"}, {"role": "assistant", "content": str(2 * a + 1)}]
        for a in range(first, first + rows)
    )
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns), encoding="utf-8")
    return path


def pairs(path: Path, rows: int = 6) -> Path:
    """A file of preference pairs in OpenAI's form."""

    def row(a: int) -> dict[str, Any]:
        say = [[{"role": "assistant", "content": text}] for text in (str(2 * a), "no idea")]
        asked = {"messages": [{"role": "user", "content": f"{a}+{a}"}]}
        return {"input": asked, "preferred_output": say[0], "non_preferred_output": say[1]}

    path.write_text("".join(json.dumps(row(a)) + "\n" for a in range(rows)), encoding="utf-8")
    return path


@dataclass
class TuneServer:
    """A running server, the clients of two tenants, and the folder of the fine-tuning API."""

    server: Server
    client: OpenAI
    other: OpenAI
    folder: Path

    def http(self, other: bool = False) -> httpx.Client:
        """A client without OpenAI's package."""
        key = (self.other if other else self.client).api_key
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=60, trust_env=False)

    def upload(self, path: Path, client: OpenAI | None = None) -> str:
        with open(path, "rb") as file:
            return (client or self.client).files.create(file=file, purpose="fine-tune").id

    def create(self, data: Path, client: OpenAI | None = None, **more: Any) -> FineTuningJob:
        client = client or self.client
        hyperparameters = {"n_epochs": 2, **more.pop("hyperparameters", {})}
        method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
        asked = {"model": BASE, "method": method, "seed": 3, **more}
        return client.fine_tuning.jobs.create(training_file=self.upload(data, client), **asked)


def job_folder(base: Path, path: Path, kind: str = "supervised", settings: Any = None, **more: Any) -> JobFolder:
    """The folder of a job that no server knows, with a file of four sums."""
    folder = JobFolder(path / "job")
    folder.path.mkdir(exist_ok=True)
    sums(folder.training_data, rows=4)
    method = Method.model_validate({"type": kind, kind: settings or {"hyperparameters": {"n_epochs": 1}}})
    names = {
        "id": "ftjob-a",
        "tenant": "a",
        "created_at": 0,
        "model": "tiny",
        "base": str(base),
        "training_file": "file-a",
    }
    folder.save(parse_config(Job, {**names, "method": method, "seed": 3, **more}, where="test"))
    return folder


def wait(client: OpenAI, job_id: str, seconds: float = 300, status: tuple[str, ...] = ENDED) -> FineTuningJob:
    """The job, as soon as it has one of the statuses."""
    end = time.monotonic() + seconds
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in status:
        assert time.monotonic() < end, job
        time.sleep(0.1)
    return job


def wait_for_event(client: OpenAI, job_id: str, words: str, seconds: float = 300) -> None:
    """Until a job has an event with these words."""
    end = time.monotonic() + seconds
    while not any(words in event.message for event in client.fine_tuning.jobs.list_events(job_id)):
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def tuning(run: Path, folder: Path, *words: str, ulimit: str = "") -> Iterator[TuneServer]:
    """A server of `run` that tunes, with its keys, log and jobs in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = folder / "keys.json"
    secrets = [folder / "default.key", folder / "other.key"]
    if not secrets[0].exists():
        for file in secrets:
            file.write_text(ApiKeys.load(keys).ensure_key(file.stem) or "", encoding="ascii")
    usual = {"tune": folder / "tune", "tune_names": BASE, "slots": 4}
    given = {word.partition("=")[0] for word in words}
    settings = [*(f"{name}={value}" for name, value in usual.items() if name not in given), *words]
    with running(run, folder, *settings, ulimit=ulimit) as server:
        server.key = secrets[0].read_text(encoding="ascii")
        clients = [
            OpenAI(base_url=f"{server.url}/v1", api_key=file.read_text(encoding="ascii"), max_retries=0)
            for file in secrets
        ]
        yield TuneServer(server, clients[0], clients[1], folder / "tune")
