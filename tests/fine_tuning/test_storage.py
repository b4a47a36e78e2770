"""What a tenant has on the disk: counted, limited, and freed."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from test_queue import make_job, run_until
from tuned_server import sums, tuning, wait, wait_for_event

from rorqual.fine_tuning.queue import JobQueue
from rorqual.fine_tuning.store import Job, JobFolder, TuneStore

LIMIT = 1_000_000


def padded(path: Path, size: int, rows: int = 4) -> Path:
    """A file of sums with `size` further bytes of blanks."""
    first, *rest = sums(path, rows=rows).read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([first + " " * size, *rest]) + "\n", encoding="utf-8")
    return path


def test_the_links_of_a_job_count_until_the_job_has_ended(base: Path, tmp_path: Path) -> None:
    store, small = TuneStore(tmp_path), 4000
    job, other = (make_job(store, base, name, name, 0, rows=400) for name in ("a", "b"))
    data, first = store.files[job.training_file].bytes, store.bytes_of("a")
    assert 5 * small < data < first < data + small and store.bytes_of("c") == 0
    store.delete_file(job.training_file)
    assert data < store.bytes_of("a") < first
    JobQueue(store).finish(job, "cancelled")
    assert 0 < store.bytes_of("a") < small
    assert store.bytes_of("b") == first and store.folder(other.id).training_data.is_file()


def test_a_server_deletes_what_an_earlier_one_left_of_finished_jobs(base: Path, tmp_path: Path) -> None:
    store = TuneStore(tmp_path)
    jobs = [make_job(store, base, name, "a", 0) for name in ("a", "b")]
    store.folder(jobs[0].id).save(jobs[0].model_copy(update={"status": "succeeded"}))
    store.folder(jobs[0].id).model(1).path.mkdir(parents=True)
    store.folder(jobs[0].id).run.path.mkdir()
    TuneStore(tmp_path)
    folder = store.folder(jobs[0].id)
    assert not folder.training_data.exists() and not folder.run.path.exists() and folder.model(1).path.is_dir()
    assert store.folder(jobs[1].id).training_data.is_file()


def test_expired_files_are_gone(base: Path, tmp_path: Path) -> None:
    store = TuneStore(tmp_path)
    gone, kept = (store.add_file(sums(tmp_path / "a.jsonl"), "a", "a.jsonl", seconds=one) for one in (0, 3600))
    end = time.monotonic() + 10
    asyncio.run(run_until(JobQueue(store), lambda: gone.id not in store.files or time.monotonic() > end))
    assert [*store.files] == [kept.id] and not store.content(gone.id).exists() and store.content(kept.id).is_file()
    assert [*TuneStore(tmp_path).files] == [kept.id]


def test_a_job_does_not_begin_if_its_tenant_has_too_many_bytes(base: Path, tmp_path: Path) -> None:
    """Others' jobs begin, and jobs that have begun go on."""
    store = TuneStore(tmp_path)
    refused, begun, small = (
        make_job(store, base, name, tenant, number)
        for number, (name, tenant) in enumerate((("a", "a"), ("begun", "a"), ("b", "b")))
    )
    store.add_file(padded(tmp_path / "large.jsonl", LIMIT), "a", "large.jsonl")
    queue = JobQueue(store, at_once=2, tenant_bytes=LIMIT)
    queue.update(begun, started_at=1)
    asyncio.run(run_until(queue, lambda: all(job.is_finished for job in store.jobs.values())))
    assert [store.jobs[job.id].status for job in (refused, begun, small)] == ["failed", "succeeded", "succeeded"]
    error = store.jobs[refused.id].error
    assert error and error.code == "storage_full" and "the limit is 1,000,000. Delete files or models" in error.message


def test_jobs_and_models_are_in_a_tenants_quota(base: Path, tmp_path: Path) -> None:
    """Deleting a file does not free it while a job needs it, and a model is freed by its deletion."""
    with tuning(base, tmp_path, f"tune_bytes={LIMIT}") as small:
        files, jobs = small.client.files, small.client.fine_tuning.jobs

        def upload(size: int) -> str:
            return small.upload(padded(tmp_path / "a.jsonl", size, rows=40))

        def upload_is_refused(size: int) -> None:
            with pytest.raises(openai.APIStatusError, match="Delete files or models") as refused:
                upload(size)
            assert refused.value.status_code == 413

        file = upload(LIMIT // 2)
        settings: Any = {"hyperparameters": {"n_epochs": 50, "batch_size": 1}}
        method: Any = {"type": "supervised", "supervised": settings}
        job = jobs.create(model="tiny", training_file=file, method=method)
        wait_for_event(small.client, job.id, "Step 1/")
        jobs.pause(job.id)
        files.delete(file)
        upload_is_refused(LIMIT // 2)
        jobs.cancel(job.id)
        files.delete(upload(LIMIT // 2))
        for checkpoint in jobs.checkpoints.list(job.id):
            small.client.models.delete(checkpoint.fine_tuned_model_checkpoint)
        job = wait(small.client, small.create(sums(tmp_path / "c.jsonl"), hyperparameters={"n_epochs": 3}).id)
        models = JobFolder(small.folder / "jobs" / job.id).models
        size = sum(file.stat().st_size for file in models.rglob("*") if file.is_file())
        upload_is_refused(LIMIT - size)
        small.client.models.delete(job.fine_tuned_model or "")
        kept = upload(LIMIT - size)
        assert small.create(sums(tmp_path / "c.jsonl"), small.other).id
    with (
        tuning(base, tmp_path, f"tune_bytes={LIMIT // 2}") as less,
        pytest.raises(openai.APIStatusError, match="Delete files or models") as refused,
    ):
        less.client.fine_tuning.jobs.create(model="tiny", training_file=kept)
    assert refused.value.status_code == 413


def past(store: Path, number: int, status: str) -> None:
    """The folder of a job that has ended."""
    job_id = f"ftjob-{number:08d}" + "x" * 16
    job = Job.model_validate({
        "id": job_id, "tenant": "default", "created_at": number, "model": "tiny", "base": "nowhere", "seed": 0,
        "method": {"type": "supervised"}, "training_file": "file-a", "status": status, "finished_at": number,
    })  # fmt: skip
    folder = store / "jobs" / job_id
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(job.model_dump(mode="json")), encoding="utf-8")


def test_a_tenant_keeps_1000_jobs(base: Path, tmp_path: Path) -> None:
    """The oldest job without a model is forgotten, a model never."""
    for number in range(1000):
        past(tmp_path / "tune", number, "failed" if number in (7, 9) else "succeeded")
    with tuning(base, tmp_path) as full:
        jobs, data = full.client.fine_tuning.jobs, sums(tmp_path / "a.jsonl")
        model, first, second = (f"ftjob-{number:08d}" + "x" * 16 for number in (0, 7, 9))
        for forgotten in (first, second):
            assert jobs.retrieve(forgotten).status == "failed"
            jobs.pause(full.create(data).id)
            with pytest.raises(openai.NotFoundError):
                jobs.retrieve(forgotten)
            assert not (full.folder / "jobs" / forgotten).exists()
        with pytest.raises(openai.APIStatusError, match=r"has 1,000 jobs and models\. Delete models first"):
            full.create(data)
        full.client.models.delete(jobs.retrieve(model).fine_tuned_model or "")
        assert full.create(data).id and full.create(data, full.other).id
        with pytest.raises(openai.NotFoundError):
            jobs.retrieve(model)
