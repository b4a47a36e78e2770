"""Jobs of the fine-tuning API, by OpenAI's package: created, watched, cancelled, paused, resumed, and refused by name."""

from __future__ import annotations

import base64
import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from safetensors.torch import load_file
from tuned_server import BASE, TuneServer, job_folder, sums, wait, wait_for_event

from rorqual.core.errors import DataError
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.fine_tuning import job_process, validation
from rorqual.fine_tuning.job_process import job_error, train_job
from rorqual.fine_tuning.routes import CHECKED_BYTES, estimated_finish
from rorqual.fine_tuning.store import JobFolder
from rorqual.train.loop import fit
from rorqual.train.state import State


def weights(tuner: TuneServer, job_id: str) -> dict[str, Any]:
    """The tensors of a job's last model."""
    folder = JobFolder(tuner.folder / "jobs" / job_id)
    last = folder.checkpoints()[-1]["step_number"]
    return load_file(folder.model(last).checkpoint() / "adapter.safetensors")


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def test_every_object_has_openais_types(tuner: TuneServer, tuned: FineTuningJob) -> None:
    with tuner.http() as client:
        job = client.get(f"/v1/fine_tuning/jobs/{tuned.id}").json()
        events = client.get(f"/v1/fine_tuning/jobs/{tuned.id}/events?limit=100").json()
        checkpoints = client.get(f"/v1/fine_tuning/jobs/{tuned.id}/checkpoints").json()
    FineTuningJob.model_validate_json(json.dumps(job), strict=True)
    for event in events["data"]:
        FineTuningJobEvent.model_validate_json(json.dumps(event), strict=True)
    for checkpoint in checkpoints["data"]:
        FineTuningJobCheckpoint.model_validate_json(json.dumps(checkpoint), strict=True)
    assert len(events["data"]) > 8 and len(checkpoints["data"]) == 3


def test_a_job_says_what_it_did(tuner: TuneServer, tuned: FineTuningJob) -> None:
    assert (tuned.status, tuned.error, tuned.model, tuned.seed) == ("succeeded", None, BASE, 3)
    assert tuned.fine_tuned_model == f"ft:{BASE}:default:sums:{tuned.id[-8:]}"
    chosen = tuned.hyperparameters
    assert (chosen.n_epochs, chosen.batch_size, chosen.learning_rate_multiplier) == (4, 4, 10.0)
    assert tuned.method is not None and tuned.method.supervised is not None
    assert tuned.method.supervised.hyperparameters is not None
    assert tuned.method.supervised.hyperparameters.to_dict() == chosen.to_dict()
    assert tuned.trained_tokens and tuned.finished_at
    messages = [event.message for event in tuner.client.fine_tuning.jobs.list_events(tuned.id)][::-1]
    steps = [message for message in messages if message.startswith("Step ")]
    assert messages[0] == f"Created fine-tuning job: {tuned.id}" and messages[1] == "Fine-tuning job started"
    assert messages[-2:] == [
        f"New fine-tuned model created: {tuned.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert [one.partition("/")[0] for one in steps] == [f"Step {number + 1}" for number in range(len(steps))]
    losses = [float(one.partition("loss=")[2]) for one in steps]
    assert losses[-1] < losses[0]


def test_checkpoints_and_the_result_file_agree(tuner: TuneServer, tuned: FineTuningJob) -> None:
    checkpoints = tuner.client.fine_tuning.jobs.checkpoints.list(tuned.id).data
    table = base64.b64decode(tuner.client.files.content(tuned.result_files[0]).text)
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    assert tuple(rows[0]) == ("step", "train_loss", "valid_loss", "valid_mean_token_accuracy")
    assert all(row["train_loss"] for row in rows)
    assert [int(row["step"]) for row in rows] == [*range(1, len(rows) + 1)]
    assert [one.step_number for one in checkpoints] == sorted((one.step_number for one in checkpoints), reverse=True)
    for one in checkpoints:
        row = rows[one.step_number - 1]
        assert float(row["valid_loss"]) == one.metrics.full_valid_loss
        assert float(row["valid_mean_token_accuracy"]) == one.metrics.full_valid_mean_token_accuracy
        assert float(row["train_loss"]) == one.metrics.train_loss
    assert sum(bool(row["valid_loss"]) for row in rows) == 4 and checkpoints[0].step_number == len(rows)


def test_a_paused_job_goes_on_with_the_same_weights(tuner: TuneServer, tmp_path: Path) -> None:
    """Until then, the checkpoint of its last step is listed with its metrics, and can be asked."""
    data, jobs = sums(tmp_path / "data.jsonl"), tuner.client.fine_tuning.jobs
    settings = {"n_epochs": 6, "batch_size": 1}
    straight = tuner.create(data, hyperparameters=settings)
    paused = tuner.create(data, hyperparameters=settings, validation_file=tuner.upload(sums(tmp_path / "b.jsonl", 20)))
    other = tuner.create(data, hyperparameters=settings, seed=4)
    wait_for_event(tuner.client, paused.id, "Step 3/")
    assert jobs.pause(paused.id).status == "queued"
    before = len(jobs.list_events(paused.id, limit=1000).data)
    newest, *earlier = [event.message for event in jobs.list_events(paused.id, limit=1000)]
    assert newest == "Fine-tuning job paused" and "The job pauses as soon as its step has ended" in earlier
    checkpoint = jobs.checkpoints.list(paused.id).data[0]
    last = next(event for event in jobs.list_events(paused.id) if event.type == "metrics")
    assert last.data == {
        "step": checkpoint.step_number,
        "train_loss": checkpoint.metrics.train_loss,
        "total_steps": ANY,
    }
    assert checkpoint.metrics.full_valid_loss and checkpoint.metrics.full_valid_mean_token_accuracy is not None
    params = SamplingParams(max_tokens=6, temperature=0)
    model = JobFolder(tuner.folder / "jobs" / paused.id).model(checkpoint.step_number).path
    asked: Any = {"messages": [{"role": "user", "content": "3+4"}], "max_tokens": 6, "temperature": 0}
    reply = tuner.client.chat.completions.create(model=checkpoint.fine_tuned_model_checkpoint, **asked)
    assert reply.choices[0].message.content == Engine(model).generate(["3+4"], params)[0][0].text
    wait(tuner.client, straight.id)
    wait(tuner.client, other.id)
    assert jobs.retrieve(paused.id).status == "queued"
    assert len(jobs.list_events(paused.id, limit=1000).data) == before
    assert jobs.resume(paused.id).status in ("queued", "running")
    assert wait(tuner.client, paused.id).status == "succeeded"
    assert same(weights(tuner, paused.id), weights(tuner, straight.id))
    assert len(jobs.checkpoints.list(paused.id).data) == 3
    assert not same(weights(tuner, other.id), weights(tuner, straight.id))
    steps = [event.message for event in jobs.list_events(paused.id, limit=1000) if event.message.startswith("Step ")]
    assert len(steps) == len({*steps})


def test_metrics_have_the_jobs_of_the_tenant(tuner: TuneServer, tuned: FineTuningJob, tmp_path: Path) -> None:
    data, jobs = sums(tmp_path / "data.jsonl", rows=40), tuner.other.fine_tuning.jobs
    asked = {"hyperparameters": {"n_epochs": 50, "batch_size": 1}}
    made = [tuner.create(data, tuner.other, **asked) for _ in range(2)]
    for job in made:
        wait_for_event(tuner.other, job.id, "Step 3/")
    made += [tuner.create(data, tuner.other, **asked) for _ in range(2)]
    jobs.pause(made[3].id)
    waits = [any("The job waits" in event.message for event in jobs.list_events(job.id)) for job in made]
    assert waits == [False, False, True, True]
    time.sleep(1)

    def figures(other: bool) -> dict[str, float]:
        with tuner.http(other=other) as client:
            lines = client.get("/metrics").text.splitlines()
        pairs = (
            line.removeprefix("rorqual_tune_").rsplit(" ", 1) for line in lines if line.startswith("rorqual_tune_")
        )
        return {name: float(value) for name, value in pairs}

    own, everybody = figures(other=True), figures(other=False)
    events = [[event.data for event in jobs.list_events(job.id).data] for job in made[:2]]
    steps = [next(data for data in newest_first if "total_steps" in (data or {})) for newest_first in events]
    statuses = Counter(str(job.status) for job in jobs.list(limit=100)) - Counter(queued=1)  # the paused job
    assert {name for name in own if "jobs{" in name} == {
        f'jobs{{tenant="other",status="{status}"}}' for status in (*statuses, "paused")
    }
    assert all(own[f'jobs{{tenant="other",status="{status}"}}'] == count for status, count in statuses.items())
    assert own['jobs{tenant="other",status="running"}'] == 2 and own['jobs{tenant="other",status="paused"}'] == 1
    assert own['wait_seconds{tenant="other"}'] >= 1
    assert own['bytes{tenant="other"}'] > 4 * data.stat().st_size
    assert everybody['bytes{tenant="default"}'] > 4 * data.stat().st_size
    assert own['steps{tenant="other",kind="total"}'] == sum(step["total_steps"] for step in steps)  # type: ignore[index, misc]
    done = own['steps{tenant="other",kind="done"}']
    assert 6 <= done <= sum(step["step"] for step in steps)  # type: ignore[index, misc]
    assert {name for name in own if 'tenant="default"' in name} == set()
    assert {*own} < {*everybody} and any('tenant="default"' in name for name in everybody)
    for job in made[::-1]:
        jobs.cancel(job.id)


def test_a_cancelled_job_ends_and_leaves_no_model(tuner: TuneServer, tmp_path: Path) -> None:
    jobs = tuner.client.fine_tuning.jobs
    job = tuner.create(sums(tmp_path / "data.jsonl", rows=40), hyperparameters={"n_epochs": 50, "batch_size": 1})
    wait_for_event(tuner.client, job.id, "Step 2/")
    cancelled = jobs.cancel(job.id)
    assert cancelled.status == "cancelled" and cancelled.finished_at
    assert jobs.list_events(job.id).data[0].message == "Fine-tuning job cancelled"
    for change in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError, match="already ended with status 'cancelled'"):
            change(job.id)
    assert wait(tuner.client, job.id).fine_tuned_model is None


def test_a_job_that_is_cancelled_as_it_starts_stays_cancelled(tuner: TuneServer, tmp_path: Path) -> None:
    jobs, data = tuner.client.fine_tuning.jobs, sums(tmp_path / "data.jsonl")
    cancelled = [jobs.cancel(tuner.create(data).id) for _ in range(3)]
    wait(tuner.client, tuner.create(data, hyperparameters={"n_epochs": 1}).id)
    assert [jobs.retrieve(job.id).status for job in cancelled] == ["cancelled"] * 3


def test_no_tenant_sees_anothers_job(tuner: TuneServer, tuned: FineTuningJob) -> None:
    jobs = tuner.other.fine_tuning.jobs
    asks: list[Callable[[str], Any]] = [
        jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list
    ]  # fmt: skip
    for ask in asks:
        with pytest.raises(openai.NotFoundError, match="No such fine-tuning job"):
            ask(tuned.id)
    assert tuned.id not in {job.id for job in jobs.list()}
    with pytest.raises(openai.NotFoundError):
        tuner.other.files.content(tuned.result_files[0])


def test_jobs_are_listed_by_their_metadata(tuner: TuneServer, tmp_path: Path) -> None:
    jobs = tuner.other.fine_tuning.jobs
    data = sums(tmp_path / "data.jsonl")
    mine = tuner.create(data, tuner.other, metadata={"team": "a"})
    others = tuner.create(data, tuner.other, metadata={"team": "b"})
    bare = tuner.create(data, tuner.other)
    assert [job.id for job in jobs.list(metadata={"team": "a"})] == [mine.id]
    without = {job.id: job.metadata for job in jobs.list(extra_query={"metadata": "null"})}
    assert bare.id in without and {*without.values()} == {None}
    assert {mine.id, others.id} <= {job.id for job in jobs.list(limit=1)}
    assert [job.id for job in jobs.list(limit=3)][:3] == [bare.id, others.id, mine.id]
    for job in (mine, others, bare):
        jobs.cancel(job.id)


WRONG: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"model": "gpt-9"}, 404, "not offered for fine-tuning. Use one of: tiny, gpt-4o-mini-2024-07-18", "model"),
    ({"training_file": "file-unknown"}, 404, "No such File object", "training_file"),
    ({"validation_file": "file-unknown"}, 404, "No such File object", "validation_file"),
    ({"suffix": "a b"}, 400, "`suffix` is", "suffix"),
    ({"epochs": 3}, 400, "`epochs` is not a field", "epochs"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "a"}}]}, 400, "`integrations`", "integrations"),
    ({"method": {"type": "rlhf"}}, 400, "method.type", "method.type"),
    ({"method": {"type": "dpo", "supervised": {}}}, 400, "The type is 'dpo'", "method"),
    ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}, "response_format": {"type": "json_schema"}}}}, 400,
     "A format is not enforced", "method.reinforcement.response_format"),
    ({"method": {"type": "reinforcement"}}, 400, "needs `reinforcement.grader`", "method"),
    ({"hyperparameters": {"n_epochs": 0}}, 400, "hyperparameters.n_epochs", "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": 2}, "method": {"type": "supervised"}}, 400, "both given", "hyperparameters"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "status", "problem", "param"), WRONG, ids=[one[2] for one in WRONG])
def test_a_wrong_job_is_refused_by_name(
    tuner: TuneServer, tmp_path: Path, change: dict[str, Any], status: int, problem: str, param: str | None
) -> None:
    body = {"model": BASE, "training_file": tuner.upload(sums(tmp_path / "data.jsonl"))} | change
    with tuner.http() as client:
        refused = client.post("/v1/fine_tuning/jobs", json=body)
    assert refused.status_code == status, refused.text
    error = refused.json()["error"]
    assert problem in error["message"] and (param is None or error["param"] == param)


USER = {"role": "user", "content": "a"}
REPLY = {"role": "assistant", "content": "b"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
GOOD_ROW = {"messages": [USER, REPLY]}
BAD_DATA: list[tuple[dict[str, Any], str]] = [
    ({"messages": [USER, {"role": "assistant"}]}, "message 2: key 'content' is missing"),
    ({"messages": [USER, {"role": "assistant", "content": "b", "weight": 2}]}, "'weight' is 2"),
    ({"input": {"messages": []}}, "not a conversation"),
    ({"messages": [USER]}, "no assistant message with text or calls to learn from"),
    ({"messages": [USER, {"role": "assistant", "content": "b", "weight": 0}]}, "no assistant message with text"),
    ({"messages": [USER, {"role": "assistant", "content": "b"}], "tools": [{}]}, "key 'tools' is no list of tools"),
    ({"messages": [USER, REPLY], "tools": [{"function": {"name": 5}}]}, "key 'tools' is no list of tools"),
    ({"messages": [USER, REPLY, REPLY]}, "the last turn is an assistant turn"),
    ({"messages": [{"role": "user", "content": [PICTURE]}, REPLY]}, "message 1"),
    (
        {"messages": [USER, {"role": "assistant", "content": "b" * 900}]},
        "the context of the base model leaves room for 256",
    ),
]


@pytest.mark.parametrize(("row", "problem"), BAD_DATA, ids=[problem for _, problem in BAD_DATA])
def test_a_bad_line_is_named(base: Path, tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    folder = job_folder(base, tmp_path)
    with open(folder.training_data, "a", encoding="utf-8") as data:
        data.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=problem) as refused:
        train_job(folder, 1, lambda: False)
    error = job_error(refused.value, folder)
    assert (error.code, error.param) == ("invalid_training_file", "training_file")
    assert error.message.startswith("`training_file` is not valid for the method 'supervised': ")
    assert f"{folder.training_data}:5" in error.message


def test_a_jobs_threads_train_and_measure(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = list[tuple[str, int]]()

    class SeenEngine(Engine):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            threads.append(("engine", settings["threads"]))
            super().__init__(*arguments, **settings)

    def seen_fit(*arguments: Any, **settings: Any) -> State:
        threads.append(("fit", settings["threads"]))
        return fit(*arguments, **settings)

    monkeypatch.setattr(validation, "Engine", SeenEngine)
    monkeypatch.setattr(job_process, "fit", seen_fit)
    grader = {
        "type": "string_check",
        "name": "a",
        "input": "{{sample.output_text}}",
        "reference": "b",
        "operation": "eq",
    }
    for kind in ("supervised", "reinforcement"):
        hyperparameters = {
            "n_epochs": 1,
            "batch_size": 4,
            **({"compute_multiplier": 0.25} if kind != "supervised" else {}),
        }
        settings = {"hyperparameters": hyperparameters} | ({"grader": grader} if kind != "supervised" else {})
        (tmp_path / kind).mkdir()
        folder = job_folder(base, tmp_path / kind, kind, settings, validation_file="file-b")
        if kind != "supervised":
            folder.training_data.write_text(json.dumps({"messages": [USER]}) + "\n", encoding="utf-8")
        folder.validation_data.write_bytes(folder.training_data.read_bytes())
        assert train_job(folder, 3, lambda: False) is not None
        assert {*threads} == {("fit", 3), ("engine", 3)}
        threads.clear()


def test_a_bad_validation_file_is_named(base: Path, tmp_path: Path) -> None:
    folder = job_folder(base, tmp_path, validation_file="file-b")
    folder.validation_data.write_text('{"messages": 4}\n', encoding="utf-8")
    with pytest.raises(DataError) as refused:
        train_job(folder, 1, lambda: False)
    error = job_error(refused.value, folder)
    assert (error.code, error.param) == ("invalid_validation_file", "validation_file")
    assert f"{folder.validation_data}:1" in error.message


def test_a_job_of_a_bad_file_is_refused_with_its_line(tuner: TuneServer, tmp_path: Path) -> None:
    good, data = tuner.upload(sums(tmp_path / "good.jsonl")), sums(tmp_path / "my data.jsonl", rows=2)
    data.write_text(data.read_text(encoding="utf-8") + json.dumps(BAD_DATA[0][0]) + "\n", encoding="utf-8")
    bad, jobs = tuner.upload(data), tuner.client.fine_tuning.jobs
    for files in ({"training_file": bad}, {"training_file": good, "validation_file": bad}):
        with pytest.raises(openai.BadRequestError) as refused:
            jobs.create(model=BASE, **files)  # type: ignore[arg-type]
        assert "my data.jsonl:3: message 2: key 'content' is missing" in refused.value.message
        param = [*files][-1]
        assert (refused.value.param, refused.value.code) == (param, f"invalid_{param}")
    for kind, problem in (
        ("dpo", "no column 'input'"),
        ("reinforcement", "the last message is of the role 'assistant'"),
    ):
        grader = {
            "type": "string_check",
            "name": "a",
            "input": "{{sample.output_text}}",
            "reference": "b",
            "operation": "eq",
        }
        settings = {"reinforcement": {"grader": grader}} if kind == "reinforcement" else {}
        with pytest.raises(openai.BadRequestError, match=problem):
            jobs.create(model=BASE, training_file=good, method={"type": kind, **settings})  # type: ignore[misc, arg-type]
    pair = {
        "input": {"messages": [USER], "tools": [{"type": "function"}]},
        "preferred_output": [{"role": "assistant", "content": "b"}],
        "non_preferred_output": [{"role": "assistant", "content": "c"}],
    }
    data.write_text(json.dumps(pair) + "\n", encoding="utf-8")
    bad = tuner.upload(data)
    with pytest.raises(openai.BadRequestError, match=r"my data\.jsonl:1: input: key .tools. is no list of tools"):
        jobs.create(model=BASE, training_file=bad, method={"type": "dpo"})


def test_a_large_file_is_checked_by_the_job_itself(tuner: TuneServer, tmp_path: Path) -> None:
    """A file of more than 16 MiB is not read when the job is created. The job's error names method, file and line."""
    data, most = tmp_path / "my data.jsonl", CHECKED_BYTES >> 20
    good = json.dumps({"messages": [USER, {"role": "assistant", "content": "b"}]}) + " " * (1 << 20)
    data.write_text(f"{good}\n" * most + json.dumps(BAD_DATA[0][0]) + "\n", encoding="utf-8")
    assert most == 16
    job = wait(tuner.client, tuner.create(data).id)
    assert job.status == "failed" and job.error and job.error.param == "training_file"
    assert "not valid for the method 'supervised'" in job.error.message
    assert "my data.jsonl:17: message 2: key 'content' is missing" in job.error.message
    tuner.client.files.delete(job.training_file)


def test_a_result_file_is_no_training_file(tuner: TuneServer, tuned: FineTuningJob) -> None:
    jobs, file = tuner.client.fine_tuning.jobs, tuned.result_files[0]
    for files in ({"training_file": file}, {"training_file": tuned.training_file, "validation_file": file}):
        with pytest.raises(openai.BadRequestError, match="is a result file") as refused:
            jobs.create(model=BASE, **files)  # type: ignore[arg-type]
        assert refused.value.param == [*files][-1]


def test_the_end_of_a_job_is_estimated_from_its_last_steps() -> None:
    """A step takes as long as the median of the last 20 steps: slower steps before and a pause do not count."""
    times = [0, 50, 100, *range(103, 160, 3), 1000]
    steps = [{"created_at": at, "data": {"step": n + 1, "total_steps": 30}} for n, at in enumerate(times)]
    assert len(steps) == 23 and estimated_finish(steps) == 1000 + 3 * 7
    assert estimated_finish(steps[:2]) == 50 + 50 * 28 and estimated_finish(steps[:1]) is None


@pytest.mark.parametrize(("kind", "row", "keys"), [
    ("dpo", GOOD_ROW, "input, preferred_output, non_preferred_output"),
    ("supervised", {"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}, "messages"),
    ("supervised", {"prompt": "1+2", "completion": "3"}, "messages"),
])  # fmt: skip
def test_a_file_of_another_method_is_told_the_keys(
    tuner: TuneServer, tmp_path: Path, kind: str, row: dict[str, Any], keys: str
) -> None:
    (data := tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(openai.BadRequestError) as refused:
        tuner.create(data, method={"type": kind})
    assert refused.value.body["message"].endswith(f"A row for '{kind}' has the keys {keys}.")  # type: ignore[index]
    assert "\n" not in refused.value.body["message"]  # type: ignore[index]


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
def test_a_row_that_the_base_cannot_learn_is_refused_with_its_line(
    tuner: TuneServer, tmp_path: Path, param: str
) -> None:
    good = tuner.upload(sums(tmp_path / "good.jsonl"))
    with tuner.http() as client:
        for row, problem in [*BAD_DATA[-4:], (GOOD_ROW, "")]:
            (data := tmp_path / "my data.jsonl").write_text(
                f"{json.dumps(GOOD_ROW)}\n{json.dumps(row)}\n", encoding="utf-8"
            )
            body = {"model": BASE, "training_file": good, param: tuner.upload(data)}
            answer = client.post("/v1/fine_tuning/jobs", json=body)
            if not problem:
                assert client.post(f"/v1/fine_tuning/jobs/{answer.json()['id']}/cancel").status_code == 200
                continue
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert (error["param"], error["code"]) == (param, f"invalid_{param}")
            assert "my data.jsonl:2: " in error["message"] and problem in error["message"]


def test_a_job_that_is_killed_between_checkpoints_tells_no_step_twice(base: Path, tmp_path: Path) -> None:
    folder = job_folder(base, tmp_path, settings={"hyperparameters": {"n_epochs": 2, "batch_size": 1}})

    def steps() -> list[int]:
        return [event["data"]["step"] for event in folder.events() if event["type"] == "metrics"]

    def killed() -> bool:
        if len(steps()) == 3:
            raise RuntimeError("killed")
        return False

    with pytest.raises(RuntimeError):
        train_job(folder, 1, killed)
    assert not folder.run.steps() and train_job(folder, 1, lambda: False) is not None
    assert steps() == [*range(1, 9)]


def test_a_deleted_file_is_refused_and_a_created_job_keeps_its_rows(tuner: TuneServer, tmp_path: Path) -> None:
    file_id = tuner.upload(sums(tmp_path / "data.jsonl"))
    jobs = tuner.client.fine_tuning.jobs
    job = jobs.create(model=BASE, training_file=file_id, method={"type": "supervised"}, seed=3)
    tuner.client.files.delete(file_id)
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        jobs.create(model=BASE, training_file=file_id)
    assert wait(tuner.client, job.id).status == "succeeded"


def test_a_tenant_has_at_most_100_unfinished_jobs(tuner: TuneServer, tmp_path: Path) -> None:
    jobs, file = tuner.client.fine_tuning.jobs, tuner.upload(sums(tmp_path / "data.jsonl"))
    made = []
    with pytest.raises(openai.RateLimitError, match="of this tenant are not finished"):
        for _ in range(101):
            made.append(jobs.create(model=BASE, training_file=file).id)
            jobs.pause(made[-1])  # a paused job is not finished
    assert len(made) == 100
    other = tuner.create(sums(tmp_path / "data.jsonl"), tuner.other)
    tuner.other.fine_tuning.jobs.cancel(other.id)
    for job_id in made[::-1]:
        if jobs.retrieve(job_id).status in ("queued", "running"):
            jobs.cancel(job_id)
    jobs.cancel(jobs.create(model=BASE, training_file=file).id)
