"""Jobs of the base `ladder`: a rung without a language model, asked at the same address."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from tuned_server import TuneServer, tuning, wait

from rorqual.core.records import RunDir
from rorqual.data.chat import load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.evaluation import Evaluation
from rorqual.fine_tuning.service import MOST_ANSWERERS, LadderService, TuneService
from rorqual.fine_tuning.store import JobFolder
from rorqual.serve.bridge import EngineBridge
from rorqual.serve.keys import ApiKeys
from rorqual.serve.service import ModelService
from rorqual.serve.wire import EngineArguments
from rorqual.teach.answerer import load_answerer
from rorqual.teach.paths import TeachPaths
from rorqual.teach.serving import AnswererService

KINDS = {
    "refund": ("money back", "repay me", "return the sum"),
    "delivery": ("where is it", "late parcel", "not arrived"),
}


def tickets(path: Path, first: int = 0, rows: int = 60) -> Path:
    """A file of tickets with one of two labels, in OpenAI's form."""
    names = [*KINDS]

    def row(n: int) -> dict[str, Any]:
        label = names[n % 2]
        words = KINDS[label][n // 2 % 3]
        asked = {"role": "user", "content": f"Order {n * 7919 % 1000}: {words}, says client {n * 31 % 97}."}
        return {"messages": [asked, {"role": "assistant", "content": label}]}

    path.write_text("".join(json.dumps(row(n)) + "\n" for n in range(first, first + rows)), encoding="utf-8")
    return path


def ask(client: OpenAI, model: str | None, prompt: str, **more: Any) -> Any:
    return client.chat.completions.create(model=model or "", messages=[{"role": "user", "content": prompt}], **more)


@pytest.fixture(scope="module")
def job(tuner: TuneServer, tmp_path_factory: pytest.TempPathFactory) -> FineTuningJob:
    folder = tmp_path_factory.mktemp("tickets")
    files = {
        "training_file": tickets(folder / "train.jsonl"),
        "validation_file": tickets(folder / "test.jsonl", 60, 20),
    }
    ids: Any = {name: tuner.upload(path) for name, path in files.items()}
    return wait(tuner.client, tuner.client.fine_tuning.jobs.create(model="ladder", suffix="tickets", seed=5, **ids).id)


def test_the_served_answers_are_the_reports(tuner: TuneServer, job: FineTuningJob) -> None:
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model == f"ft:ladder:default:tickets:{job.id[-8:]}"
    paths = TeachPaths(JobFolder(tuner.folder / "jobs" / job.id).taught)
    chosen = json.loads(paths.results.read_bytes())["chosen"]
    assert job.seed == 5 and "\nseed: 5\n" in paths.settings.read_text(encoding="utf-8")
    measured = Evaluation.load(paths.evaluation_file(chosen))
    assert len(measured.samples) == 20  # the validation file
    for sample in measured.samples:
        reply = ask(tuner.client, job.fine_tuned_model, sample.prompt)
        assert reply.choices[0].message.content == sample.reply and reply.model == job.fine_tuned_model
        assert reply.rorqual["rung"] == chosen
    chunks = [*ask(tuner.client, job.fine_tuned_model, measured.samples[0].prompt, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == measured.samples[0].reply
    messages = [event.message for event in tuner.client.fine_tuning.jobs.list_events(job.id, limit=100)]
    right = sum(sample.verdict.value == "right" for sample in measured.samples)
    assert f"Chosen: {chosen}, right on {right} of 20 test examples" in messages
    assert sum(" % of 60 right" in message for message in messages) >= 3  # one for each rung
    report = next(message for message in messages if message.startswith("The report is")).split()[-1]
    assert report in job.result_files
    page = tuner.client.files.content(report).text
    assert f"Use {chosen}" in page and "train.jsonl" in page and str(tuner.folder) not in page


def test_a_ladder_is_its_tenants_alone_and_answers_chats_alone(tuner: TuneServer, job: FineTuningJob) -> None:
    name = job.fine_tuned_model or ""
    assert name in {card.id for card in tuner.client.models.list()}
    assert name not in {card.id for card in tuner.other.models.list()}
    with pytest.raises(openai.NotFoundError, match="not served here"):
        ask(tuner.other, name, "late parcel")
    with pytest.raises(openai.BadRequestError, match="answers chat completions alone"):
        tuner.client.completions.create(model=name, prompt="late parcel")
    assert ask(tuner.client, "tiny", "1+1", max_tokens=2).model == "tiny"


def test_a_server_without_the_ladders_packages_says_so(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['skops'] = None", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with tuning(base, tmp_path / "server") as server:
        file = server.upload(tickets(tmp_path / "data.jsonl"))
        with pytest.raises(openai.APIStatusError, match=r'pip install "rorqual\[teach\]"') as refused:
            server.client.fine_tuning.jobs.create(model="ladder", training_file=file)
        assert refused.value.status_code == 501
        server.client.fine_tuning.jobs.cancel(server.create(tmp_path / "data.jsonl").id)


def test_a_ladder_ignores_hyperparameters_and_needs_enough_rows(tuner: TuneServer, tmp_path: Path) -> None:
    file, jobs = tuner.upload(tickets(tmp_path / "few.jsonl", rows=10)), tuner.client.fine_tuning.jobs
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    with pytest.raises(openai.BadRequestError, match="the base 'ladder' offers 'supervised' alone"):
        jobs.create(model="ladder", training_file=file, method={"type": "dpo"})
    with pytest.raises(openai.BadRequestError, match=r"few\.jsonl: only 10 examples\. Give") as refused:
        jobs.create(model="ladder", training_file=file)
    assert refused.value.param == "training_file" and "at least 50 different examples" in str(refused.value)
    with pytest.raises(openai.BadRequestError, match="is the training file, whose answers a ladder knows"):
        jobs.create(model="ladder", training_file=file, validation_file=file)
    (same := tmp_path / "same.jsonl").write_text(6 * (tmp_path / "few.jsonl").read_text("utf-8"), "utf-8")
    file = tuner.upload(same)
    failed = wait(tuner.client, jobs.create(model="ladder", training_file=file, method=method).id)
    ignored = "These hyperparameters have no effect here: n_epochs"
    assert ignored in {event.message for event in jobs.list_events(failed.id)}
    assert failed.status == "failed" and failed.error is not None and failed.error.param == "training_file"
    assert "at least 50 different examples" in failed.error.message and "same.jsonl" in failed.error.message
    file, held_out = (
        tuner.upload(tickets(tmp_path / "data.jsonl")),
        tuner.upload(tickets(tmp_path / "test.jsonl", 60, 3)),
    )
    failed = wait(tuner.client, jobs.create(model="ladder", training_file=file, validation_file=held_out).id)
    assert failed.error is not None and failed.error.param == "validation_file"
    assert "test.jsonl: the test file has only 3 usable examples" in failed.error.message


def test_a_paused_ladder_continues_and_a_deleted_one_is_gone(tuner: TuneServer, tmp_path: Path) -> None:
    jobs, file = tuner.client.fine_tuning.jobs, tuner.upload(tickets(tmp_path / "data.jsonl"))
    made = jobs.create(model="ladder", training_file=file, seed=5)
    wait(tuner.client, made.id, status=("running",))
    assert jobs.pause(made.id).status == "queued"
    jobs.resume(made.id)
    name = wait(tuner.client, made.id).fine_tuned_model
    assert ask(tuner.client, name, "Order 1: late parcel").choices[0].message.content == "delivery"
    tuner.client.models.delete(name or "")
    assert not JobFolder(tuner.folder / "jobs" / made.id).taught.exists()
    with pytest.raises(openai.NotFoundError):
        ask(tuner.client, name, "late parcel")


def test_the_answerers_that_were_used_last_stay_in_memory(
    base: Path, tuner: TuneServer, job: FineTuningJob, tmp_path: Path
) -> None:
    """At most four, loaded with the server's threads. A deleted model's is dropped."""
    run, loaded = RunDir(base), list[int]()

    def load(folder: Path, *, threads: int, **fields: Any) -> LadderService:
        loaded.append(threads)
        return AnswererService(**fields, answerer=load_answerer(folder, threads=threads))

    chat = load_chat(run, Tokenizer.load(run.tokenizer_file))
    model = ModelService(
        "tiny", 0, ApiKeys(Path("none"), {}), 2**20, chat=chat, bridge=EngineBridge(EngineArguments(str(base)))
    )
    limits: Any = {"tenant_bytes": 2**40, "at_once": 1, "memory": 0, "threads": 3}
    service = TuneService.extend(model, run, tmp_path, names={}, load_ladder=load, **limits)
    ids = [f"ftjob-{number:08d}" for number in range(MOST_ANSWERERS + 1)]
    for job_id in ids:
        folder = JobFolder(service.store.folder(job_id).path)
        shutil.copytree(JobFolder(tuner.folder / "jobs" / job.id).path, folder.path)
        service.store.jobs[job_id] = folder.job().model_copy(update={"id": job_id})

    def respond(job_id: str) -> None:
        name = service.store.jobs[job_id].model_name
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": "late parcel"}]}).encode()
        assert service.other_responder(body, "default") is not None

    for job_id in (*ids[:4], ids[0], ids[4]):
        respond(job_id)
    assert MOST_ANSWERERS == 4 and loaded == [3] * 5 and [*service.answerers] == [ids[2], ids[3], ids[0], ids[4]]
    asyncio.run(service.forget_model(service.store.jobs[ids[3]].model_copy(update={"is_deleted": True}), ""))
    assert [*service.answerers] == [ids[2], ids[0], ids[4]]
    service.close()
