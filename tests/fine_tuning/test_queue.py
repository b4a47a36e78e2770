"""The queue of jobs: turns of tenants, a full disk, too much memory, and a server that is killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tune_kills import torment, training
from tuned_server import TuneServer, sums, tuning, wait, wait_for_event

from rorqual.core.config import parse_config
from rorqual.core.journal import read_lines
from rorqual.fine_tuning import queue as rules
from rorqual.fine_tuning.job_process import PROCESSES_FILE
from rorqual.fine_tuning.queue import DISK_MESSAGE, JobQueue
from rorqual.fine_tuning.schemas import Method
from rorqual.fine_tuning.store import Job, JobFolder, TuneStore

SMALL_FILES = "-f 200"
"""Files of at most 200 blocks of 512 bytes: less than a checkpoint needs."""
BY_HAND = """
import sys
from rorqual.fine_tuning import job_process as module
module.LOCK_SECONDS = 0.0
sys.exit(module.main(module.Path(sys.argv[1]), 1, 0, module.train_job))
"""
"""A second process of a job, which does not wait for the first to end."""


def make_job(store: TuneStore, base: Path, name: str, tenant: str, created_at: int, rows: int = 4, **more: int) -> Job:
    data = sums(store.path / f"{name}.jsonl", rows=rows)
    method = Method.model_validate({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, **more}}})
    settings = {"id": f"ftjob-{name}", "tenant": tenant, "created_at": created_at, "model": "tiny", "base": str(base)}
    file = store.add_file(data, tenant, data.name)
    job = parse_config(Job, {**settings, "method": method, "training_file": file.id, "seed": 0}, where="test")
    store.add_job(job)
    return job


async def run_until(queue: JobQueue, condition: Callable[[], bool], seconds: float = 240) -> None:
    running = asyncio.create_task(queue.run())
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_tenants_take_turns(base: Path, tmp_path: Path) -> None:
    """Three jobs of one tenant do not keep the single job of another waiting, although they came first."""
    store = TuneStore(tmp_path)
    for number in range(3):
        make_job(store, base, f"a{number}", "a", number)
    make_job(store, base, "b", "b", 10)
    queue, started = JobQueue(store), list[str]()

    def condition() -> bool:
        started.extend(one for one in store.jobs if store.jobs[one].status == "running" and one not in started)
        return len(started) >= 2

    asyncio.run(run_until(queue, condition))
    assert started == ["ftjob-a0", "ftjob-b"]


def test_a_long_job_lets_another_tenants_go_first(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its turn is over, it stops at a checkpoint, and goes on later without repeating a step."""
    store = TuneStore(tmp_path)
    long, other = make_job(store, base, "a", "a", 0, 400, batch_size=1), make_job(store, base, "b", "b", 10)
    queue, folder = JobQueue(store), store.folder(long.id)

    def condition() -> bool:
        is_training = any(event["type"] == "metrics" for event in folder.events())
        is_over = is_training and store.jobs[other.id].status == "queued"
        monkeypatch.setattr(rules, "TURN_SECONDS", 3.0 if is_over else 600.0)
        return all(job.is_finished for job in store.jobs.values())

    asyncio.run(run_until(queue, condition))
    first, second = store.jobs[long.id], store.jobs[other.id]
    assert (first.status, second.status) == ("succeeded", "succeeded")
    assert (second.finished_at or 0) <= (first.finished_at or 0) and (second.started_at or 0) > (first.started_at or 0)
    steps = [event["data"]["step"] for event in folder.events() if event["type"] == "metrics"]
    assert steps == [*range(1, len(steps) + 1)] and len(steps) == steps[-1]


def test_a_paused_job_is_never_killed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process stops at a checkpoint, also if that takes longer than the request waits."""
    monkeypatch.setattr(rules, "CHECKPOINT_SECONDS", 0.001)
    store = TuneStore(tmp_path)
    job = make_job(store, base, "a", "a", 0, 60, batch_size=1)
    queue, folder, waited = JobQueue(store), store.folder(job.id), list[str]()

    async def pause() -> None:
        await asyncio.gather(run_until(queue, lambda: bool(waited) and store.jobs[job.id].status == "queued"), stop())

    async def stop() -> None:
        while not folder.steps():
            await asyncio.sleep(0.05)
        queue.update(store.jobs[job.id], is_paused=True)
        await queue.stop_job(store.jobs[job.id], at_once=False)
        waited.append(store.jobs[job.id].status)

    asyncio.run(pause())
    assert waited == ["running"]
    assert folder.kept_steps() == [str(folder.steps()[-1]["data"]["step"])]
    assert folder.checkpoints()[0]["metrics"]["train_loss"]


def test_a_process_that_is_stopped_at_its_start_is_no_death(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose pause ended before the process could write a checkpoint goes on."""
    monkeypatch.setattr(rules, "TRIES", 1)
    store, stopped = TuneStore(tmp_path), set[int]()
    job = make_job(store, base, "a", "a", 0)
    queue = JobQueue(store)

    def condition() -> bool:
        if (process := queue._running.get(job.id)) is not None and len(stopped) < 2 and process.pid not in stopped:
            stopped.add(process.pid)
            process.terminate()
        return store.jobs[job.id].is_finished

    asyncio.run(run_until(queue, condition))
    assert (len(stopped), store.jobs[job.id].status) == (2, "succeeded")


def test_a_job_waits_for_room_on_the_disk(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TuneStore(tmp_path)
    job = make_job(store, base, "a", "a", 0)
    monkeypatch.setattr(rules, "ROOM", 2**62)
    queue, folder = JobQueue(store), store.folder(job.id)
    asyncio.run(run_until(queue, lambda: folder.events()[-1]["message"] == DISK_MESSAGE))
    assert store.jobs[job.id].status == "queued" and folder.events()[-1]["level"] == "warn"
    monkeypatch.undo()
    asyncio.run(run_until(JobQueue(TuneStore(tmp_path)), lambda: folder.job().is_finished))
    assert folder.job().status == "succeeded"
    assert sum(event["message"] == DISK_MESSAGE for event in folder.events()) == 1
    # A server that is killed before it records the end records it later, although the training files are gone.
    folder.save(folder.job().model_copy(update={"status": "running", "result_files": ()}))
    folder.plan_file.write_text("{", encoding="utf-8")  # nothing is trained again
    asyncio.run(run_until(JobQueue(TuneStore(tmp_path)), lambda: folder.job().is_finished))
    assert folder.job().status == "succeeded" and folder.job().result_files


def test_a_disk_that_fills_up_stops_a_job_and_loses_nothing(base: Path, tmp_path: Path) -> None:
    """The checkpoint cannot be written, because it is larger than the server's files may be. A later server knows
    the files, and goes on with the same steps."""
    with tuning(base, tmp_path, ulimit=SMALL_FILES) as full:
        job = full.create(sums(tmp_path / "data.jsonl"), hyperparameters={"n_epochs": 1})
        wait_for_event(full.client, job.id, DISK_MESSAGE)
        assert full.client.fine_tuning.jobs.retrieve(job.id).status in ("queued", "running")
        assert not full.client.fine_tuning.jobs.checkpoints.list(job.id).data
        files = [file.id for file in full.client.files.list(purpose="fine-tune")]
    with tuning(base, tmp_path) as free:
        assert wait(free.client, job.id).status == "succeeded"
        events = free.client.fine_tuning.jobs.list_events(job.id).data
        assert [file.id for file in free.client.files.list(purpose="fine-tune")] == files
        asked = {"messages": [{"role": "user", "content": "1+2"}], "max_tokens": 2}
        name = free.client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model or ""
        assert free.client.chat.completions.create(model=name, **asked).model == name  # type: ignore[call-overload]
    assert [event.data["step"] for event in events if event.type == "metrics"] == [1]  # type: ignore[index]


def test_a_job_that_cannot_be_saved_is_kept_and_saved_later(base: Path, tmp_path: Path) -> None:
    store = TuneStore(tmp_path)
    job = make_job(store, base, "a", "a", 0)
    folder = store.folder(job.id).path
    hidden = folder.with_name("hidden")
    os.rename(folder, hidden)
    folder.write_text("no folder", encoding="utf-8")
    queue = JobQueue(store)
    assert queue.update(job, is_paused=True).is_paused and store.jobs[job.id].is_paused
    folder.unlink()
    os.rename(hidden, folder)
    assert not store.folder(job.id).job().is_paused
    asyncio.run(run_until(queue, lambda: store.folder(job.id).job().is_paused))


def test_an_end_that_cannot_be_saved_deletes_no_file(base: Path, tmp_path: Path) -> None:
    """The next server, which does not know of the end, trains the job."""
    store = TuneStore(tmp_path)
    job, other = make_job(store, base, "a", "a", 0), make_job(store, base, "b", "a", 0)
    queue, folder = JobQueue(store), store.folder(job.id)
    (folder.path / "job.json").rename(folder.path / "kept")
    (folder.path / "job.json").mkdir()
    for one in (job, other):
        queue.finish(one, "cancelled")
    assert folder.training_data.is_file() and not store.folder(other.id).training_data.exists()


def test_a_job_above_its_memory_fails_and_says_so(base: Path, tmp_path: Path) -> None:
    store = TuneStore(tmp_path)
    folder = store.folder(make_job(store, base, "a", "a", 0).id)
    asyncio.run(run_until(JobQueue(store, memory=10**8), lambda: folder.job().is_finished))
    assert (error := folder.job().error) and error.code == "out_of_memory"
    assert "more than 100,000,000 bytes of memory" in error.message


def test_a_job_whose_process_dies_again_and_again_fails(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "TRIES", 2)
    store = TuneStore(tmp_path)
    job = make_job(store, base, "a", "a", 0)
    folder = store.folder(job.id)
    folder.plan_file.write_text("{", encoding="utf-8")  # the process raises an error of no known kind
    asyncio.run(run_until(JobQueue(store), lambda: folder.job().is_finished))
    assert (found := folder.job().error) and found.code == "server_error" and "died 2 times" in found.message
    assert "Traceback" in folder.log_file.read_text(encoding="utf-8")


def test_no_job_is_lost_and_none_runs_twice(tmp_path: Path) -> None:
    found = torment(tmp_path, jobs=2, kills=2, seed=1)
    assert found.pop("processes_that_trained_when_their_server_was_killed") > 0
    assert found.pop("most_steps_between_a_kill_and_the_next_server") <= 10  # those that were under way
    assert found == {
        "jobs": {"supervised": 1, "dpo": 1}, "kills": 2, "succeeded": 2, "same_models": 2, "same_tokens": 2, "same_steps": 2,
        "steps_in_order": 2, "events_twice": 0,
        "jobs_that_two_processes_trained_at_once": 0, "processes_that_began_after_the_end": 0,
    }  # fmt: skip


def test_a_process_ends_with_its_server_and_no_second_one_trains_the_job(base: Path, tmp_path: Path) -> None:
    """A process that is started by hand is refused, and names the process that trains."""
    with tuning(base, tmp_path) as killed:
        long = {"n_epochs": 50, "batch_size": 1}
        job = killed.create(sums(tmp_path / "data.jsonl", rows=100), hyperparameters=long)
        folder = JobFolder(killed.folder / "jobs" / job.id)
        wait_for_event(killed.client, job.id, "Step ")
        [first] = training(folder)
        command = [sys.executable, "-c", BY_HAND, str(folder.path)]
        by_hand = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert f"another process is writing to this path: process {first}, since" in by_hand.stderr
        assert by_hand.stderr.endswith("Wait until the job's process has ended.\n") and training(folder) == [first]
        killed.server.process.kill()
        killed.server.process.wait()
        end = time.monotonic() + 10
        while training(folder):
            assert time.monotonic() < end, "the process outlives its server"
            time.sleep(0.01)
    with tuning(base, tmp_path) as later:
        end = time.monotonic() + 300
        while len(processes := [*read_lines(folder.path / PROCESSES_FILE)]) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert later.client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert [one["server"] for one in processes] == [killed.server.process.pid, later.server.process.pid]


def test_two_servers_do_not_share_a_folder(tuner: TuneServer, base: Path, tmp_path: Path) -> None:
    shutil.copy(tuner.folder.parent / "keys.json", tmp_path / "keys.json")
    with (
        pytest.raises(AssertionError, match="Give each server its own folder"),
        tuning(base, tmp_path, f"tune={tuner.folder}"),
    ):
        pass
