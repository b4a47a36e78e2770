"""Tuned models: called by their names, beside the base model and each other, by their tenant alone."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Model, ModelDeleted
from openai.types.fine_tuning import FineTuningJob
from tuned_server import BASE, TuneServer, job_folder, pairs, sums, tuning, wait

from rorqual.cli.serving import start_server
from rorqual.core.errors import ConfigError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.fine_tuning.job_process import train_job
from rorqual.fine_tuning.store import JobFolder
from rorqual.model.load.run_directory import load_run
from served import write_run

PROMPTS = [f"{a}+{a + 1}" for a in range(12)]


def answers(tuner: TuneServer, model: str, prompts: list[str], **more: Any) -> list[str]:
    """The greedy answers of a model, asked at the same time."""

    def ask(prompt: str) -> str:
        asked = {"model": model, "temperature": 0, "max_tokens": 6, **more}
        reply = tuner.client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **asked)
        assert reply.model == model
        return reply.choices[0].message.content or ""

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(ask, prompts))


def in_process(run: Path) -> list[str]:
    """The greedy answers of a run, by our engine alone."""
    params = SamplingParams(max_tokens=6, temperature=0)
    return [one[0].text for one in Engine(run).generate(PROMPTS, params)]


def test_a_tuned_model_gives_the_answers_of_its_folder(tuner: TuneServer, tuned: FineTuningJob, base: Path) -> None:
    """Alone, in a mix with the base, whole and streamed."""
    folder, name = JobFolder(tuner.folder / "jobs" / tuned.id), tuned.fine_tuned_model or ""
    last = folder.checkpoints()[-1]["step_number"]
    right, plain = in_process(folder.model(last).path), in_process(base)
    assert right != plain
    assert answers(tuner, name, PROMPTS) == right
    with ThreadPoolExecutor(2) as pool:
        mixed = pool.map(answers, [tuner] * 2, [name, "tiny"], [PROMPTS] * 2)
        assert [*mixed] == [right, plain]
    stream = tuner.client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": PROMPTS[0]}], temperature=0, max_tokens=6, stream=True
    )
    chunks = [*stream]
    assert {chunk.model for chunk in chunks} == {name}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == right[0]


def test_a_checkpoint_is_called_by_its_name(tuner: TuneServer, tuned: FineTuningJob) -> None:
    folder = JobFolder(tuner.folder / "jobs" / tuned.id)
    checkpoints = tuner.client.fine_tuning.jobs.checkpoints.list(tuned.id).data
    for one in checkpoints:
        expected = in_process(folder.model(one.step_number).path)
        assert answers(tuner, one.fine_tuned_model_checkpoint, PROMPTS) == expected
    first, last = checkpoints[-1].fine_tuned_model_checkpoint, checkpoints[0].fine_tuned_model_checkpoint
    assert tuner.client.models.retrieve(first).id == first
    for client, name in ((tuner.other, first), (tuner.client, f"{first}0")):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)
    assert answers(tuner, first, PROMPTS) != answers(tuner, last, PROMPTS)
    with pytest.raises(openai.NotFoundError):
        answers(tuner, first.rpartition("-")[0] + "-", PROMPTS)


def test_the_served_probabilities_give_the_figures_of_the_checkpoint(
    tuner: TuneServer, tuned: FineTuningJob, base: Path, tmp_path: Path
) -> None:
    """The mean loss and the share of right tokens of the validation file, asked through the API."""
    tokenizer = Tokenizer.load(RunDir(base).tokenizer_file)
    chat, losses, right = load_chat(RunDir(base), tokenizer), list[float](), list[bool]()
    for a in range(20, 32):
        rendered = chat.render([Message("user", f"{a}+{a + 1}"), Message("assistant", str(2 * a + 1))])
        asked = {"prompt": rendered.ids, "max_tokens": 1, "logprobs": 1, "extra_body": {"prompt_logprobs": 1}}
        reply = tuner.client.completions.create(model=tuned.fine_tuned_model or "", temperature=0, **asked)  # type: ignore[call-overload]
        scored = reply.choices[0].prompt_logprobs
        for token, in_loss, found in zip(rendered.ids, rendered.mask, scored, strict=True):
            if in_loss:
                losses.append(-found[str(token)]["logprob"])
                right.append(max(found.values(), key=lambda one: one["logprob"]) == found[str(token)])
    metrics = tuner.client.fine_tuning.jobs.checkpoints.list(tuned.id).data[0].metrics
    assert metrics.full_valid_loss is not None
    assert math.isclose(sum(losses) / len(losses), metrics.full_valid_loss, rel_tol=1e-5)
    assert metrics.full_valid_mean_token_accuracy == sum(right) / len(right)


def test_a_model_is_its_tenants_alone(tuner: TuneServer, tuned: FineTuningJob) -> None:
    name = tuned.fine_tuned_model or ""
    cards = [*tuner.client.models.list()]
    assert cards[0].id == "tiny" and name in {card.id for card in cards}
    for card in cards:
        Model.model_validate(card.model_dump())
    assert tuner.client.models.retrieve(name).owned_by == "default"
    assert [card.id for card in tuner.other.models.list() if card.id == name] == []
    unknown = f"{name[:-8]}12345678"
    for ask in (tuner.other.models.retrieve, tuner.other.models.delete, _chat(tuner.other)):
        messages = []
        for model in (name, unknown):
            with pytest.raises(openai.NotFoundError) as refused:
                ask(model)
            messages.append(refused.value.message)
        own, none = (message.partition("request_id")[0] for message in messages)
        assert own.replace(name, unknown) == none
    assert tuner.client.models.retrieve(name).id == name


def _chat(client: openai.OpenAI) -> Any:
    return lambda model: client.chat.completions.create(model=model, messages=[{"role": "user", "content": "1+2"}])


def test_a_deleted_model_is_gone_and_the_base_stays(tuner: TuneServer, tmp_path: Path) -> None:
    job = wait(tuner.client, tuner.create(sums(tmp_path / "data.jsonl"), hyperparameters={"n_epochs": 1}).id)
    name = job.fine_tuned_model or ""
    assert len(answers(tuner, name, PROMPTS[:2])) == 2
    folder = JobFolder(tuner.folder / "jobs" / job.id)
    assert not folder.training_data.exists() and not folder.run.steps() and [*folder.models.iterdir()]
    kept = tuner.client.fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint
    with pytest.raises(openai.NotFoundError):
        tuner.client.models.delete(f"{kept}7")
    deleted = tuner.client.models.delete(name)
    assert not folder.models.exists()
    ModelDeleted.model_validate(deleted.model_dump(), strict=True)
    for model in (name, f"{name}:ckpt-step-1"):
        with pytest.raises(openai.NotFoundError, match="not served here"):
            _chat(tuner.client)(model)
    assert tuner.client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model == name, "as in OpenAI's API"
    assert tuner.client.fine_tuning.jobs.retrieve(job.id).hyperparameters.batch_size == 12, "the value of auto"
    [listed] = [one for one in tuner.client.fine_tuning.jobs.list() if one.id == job.id]
    assert listed.hyperparameters.learning_rate_multiplier == 1
    with pytest.raises(openai.BadRequestError, match="the base model, which cannot be deleted"):
        tuner.client.models.delete("tiny")
    assert len(answers(tuner, "tiny", PROMPTS[:2])) == 2


def test_a_deleted_models_adapter_leaves_the_engine(tuner: TuneServer, tmp_path: Path) -> None:
    """The model's, and with it those of its checkpoints."""
    hyperparameters = {"n_epochs": 2, "batch_size": 6}
    job = wait(tuner.client, tuner.create(sums(tmp_path / "data.jsonl"), hyperparameters=hyperparameters).id)
    checkpoints = tuner.client.fine_tuning.jobs.checkpoints.list(job.id).data
    name = r'engine\{what="adapters"\}'
    loaded = tuner.server.metric(name)
    for model in (job.fine_tuned_model or "", *(one.fine_tuned_model_checkpoint for one in checkpoints)):
        answers(tuner, model, PROMPTS[:1])
    tuner.server.wait(name, loaded + 3)
    tuner.client.models.delete(checkpoints[-1].fine_tuned_model_checkpoint)
    tuner.server.wait(name, loaded + 2)
    tuner.client.models.delete(job.fine_tuned_model or "")
    tuner.server.wait(name, loaded)


def test_two_tenants_models_share_a_batch(tuner: TuneServer, tuned: FineTuningJob, tmp_path: Path) -> None:
    """Each gives the tokens and the log-probabilities, to the last bit, that it gives alone."""
    data = sums(tmp_path / "data.jsonl", 40)
    hyperparameters = {"n_epochs": 4, "batch_size": 4, "learning_rate_multiplier": 10.0}
    others = wait(tuner.other, tuner.create(data, tuner.other, hyperparameters=hyperparameters).id)

    def ask(tenant: int) -> Any:
        asked = {
            "model": (tuned, others)[tenant].fine_tuned_model,
            "prompt": "3+4=",
            "temperature": 0,
            "max_tokens": 200,
        }
        with tuner.http(other=bool(tenant)) as client:
            reply = client.post("/v1/completions", json={**asked, "logprobs": 2, "ignore_eos": True}).json()
        assert reply["model"] == asked["model"] and reply["usage"]["completion_tokens"] == 200
        return reply["choices"][0]["logprobs"]

    alone, seen = [ask(0), ask(1)], set[float]()
    assert alone[0]["token_logprobs"] != alone[1]["token_logprobs"]
    for _ in range(10):
        with ThreadPoolExecutor(32) as pool:  # the engine reports twice a second
            replies = [pool.submit(ask, number % 2) for number in range(32)]
            while not all(reply.done() for reply in replies):
                seen.add(tuner.server.metric(r'engine\{what="running"\}'))
        assert [reply.result() for reply in replies] == 16 * alone
        if max(seen) > 2:  # tenants take turns
            return
    raise AssertionError(f"the engine never had both in one batch: {seen}")


def test_a_checkpoint_is_deleted_by_its_name(tuner: TuneServer, tmp_path: Path) -> None:
    job = wait(
        tuner.client, tuner.create(sums(tmp_path / "data.jsonl"), hyperparameters={"n_epochs": 2, "batch_size": 6}).id
    )
    last, first = (
        one.fine_tuned_model_checkpoint for one in tuner.client.fine_tuning.jobs.checkpoints.list(job.id).data
    )
    before = answers(tuner, last, PROMPTS[:2])
    assert answers(tuner, first, PROMPTS[:2])
    tuner.client.models.delete(first)
    with pytest.raises(openai.NotFoundError, match="not served here"):
        _chat(tuner.client)(first)
    assert answers(tuner, job.fine_tuned_model or "", PROMPTS[:2]) == answers(tuner, last, PROMPTS[:2]) == before
    with pytest.raises(openai.BadRequestError, match=f"the last checkpoint of '{job.fine_tuned_model}'"):
        tuner.client.models.delete(last)
    assert answers(tuner, last, PROMPTS[:2]) == before


def test_a_restarted_engine_knows_its_adapters(tuner: TuneServer, tuned: FineTuningJob) -> None:
    name = tuned.fine_tuned_model or ""
    before = answers(tuner, name, PROMPTS)
    subprocess.run(["kill", "-9", str(tuner.server.engine())], check=True)
    tuner.server.wait("engine_restarts_total", 1)
    assert answers(tuner, name, PROMPTS) == before


def job_processes(folder: Path) -> list[list[str]]:
    """The arguments of the running processes of jobs: threads and memory."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended
            lines.append(file.read_text(encoding="utf-8").split("\0"))
    return [line[4:6] for line in lines if "rorqual.fine_tuning.job_process" in line and str(folder) in line[3]]


def test_the_settings_are_those_of_the_command(base: Path, tmp_path: Path) -> None:
    words = ["tune_jobs=2", f"tune_memory={10**10}", f"tune_names=a, b={base}, intents = ladder", "threads=2"]
    with tuning(base, tmp_path, *words) as server:
        for name, problem in (("a", "no column 'input'"), ("intents", "the base 'ladder' offers 'supervised' alone")):
            with pytest.raises(openai.BadRequestError, match=problem):
                server.create(sums(tmp_path / "data.jsonl"), model=name, method={"type": "dpo"})
        with pytest.raises(openai.NotFoundError, match="Use one of: tiny, a, b, intents, ladder"):
            server.create(sums(tmp_path / "data.jsonl"), model="c")
        named = server.create(sums(tmp_path / "data.jsonl", rows=60), model="intents")
        server.client.fine_tuning.jobs.cancel(named.id)
        events = server.client.fine_tuning.jobs.list_events(named.id)
        assert "The base 'intents' is the ladder here" in [event.message for event in events]
        for name in ("a", "b", "a"):
            server.create(sums(tmp_path / "data.jsonl"), model=name, hyperparameters={"n_epochs": 50, "batch_size": 1})
        end = time.monotonic() + 60
        while len(running := job_processes(tmp_path)) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        assert running == [["2", str(10**10)]] * 2


def test_the_base_answers_to_the_names_that_jobs_give_it(tuner: TuneServer, tuned: FineTuningJob) -> None:
    assert answers(tuner, BASE, PROMPTS) == answers(tuner, "tiny", PROMPTS)
    cards = {card.id: card for card in tuner.client.models.list()}
    assert {"tiny", BASE, tuned.fine_tuned_model} <= {*cards} and "ladder" not in cards
    with pytest.raises(openai.NotFoundError):
        answers(tuner, "*", PROMPTS[:1])


def test_a_tuned_model_is_the_base_of_another(tuner: TuneServer, tmp_path: Path) -> None:
    """Also after its user has deleted it. The name has the first base's."""
    jobs = tuner.client.fine_tuning.jobs
    first = wait(tuner.client, tuner.create(sums(tmp_path / "a.jsonl"), hyperparameters={"n_epochs": 1}).id)
    model = jobs.checkpoints.list(first.id).data[0].fine_tuned_model_checkpoint
    asked = {"training_file": tuner.upload(pairs(tmp_path / "pairs.jsonl")), "seed": 3}
    with pytest.raises(openai.NotFoundError, match="not offered for fine-tuning"):
        tuner.create(tmp_path / "a.jsonl", tuner.other, model=model)
    second = jobs.create(model=model, method={"type": "dpo"}, **asked)  # type: ignore[arg-type]
    tuner.client.models.delete(first.fine_tuned_model or "")
    second = wait(tuner.client, second.id)
    assert second.status == "succeeded" and second.model == model, second.error
    name, folder = second.fine_tuned_model or "", JobFolder(tuner.folder / "jobs" / second.id)
    assert name.startswith(f"ft:{BASE}:default::") and not folder.base.exists()
    last = folder.checkpoints()[-1]["step_number"]
    assert answers(tuner, name, PROMPTS) == in_process(folder.model(last).path) != answers(tuner, BASE, PROMPTS)
    third = wait(tuner.client, tuner.create(tmp_path / "a.jsonl", model=name).id)
    assert third.status == "succeeded" and third.fine_tuned_model, third.error
    assert JobFolder(tuner.folder / "jobs" / third.id).job().depth == 2
    with pytest.raises(openai.NotFoundError):
        jobs.create(model=model, **asked)


@pytest.mark.parametrize("serves_adapter", [False, True])
def test_the_model_of_a_tuned_base_is_one_adapter_with_the_weights_of_the_chain(
    base: Path, tuner: TuneServer, tuned: FineTuningJob, tmp_path: Path, serves_adapter: bool
) -> None:
    """Also if the served run is an adapter itself."""
    folders = list[JobFolder]()
    if serves_adapter:
        base = sorted(JobFolder(tuner.folder / "jobs" / tuned.id).models.iterdir())[-1]
    for depth, place in enumerate(("first", "second", "third")):
        (tmp_path / place).mkdir()
        settings = {"hyperparameters": {"n_epochs": 1, "learning_rate_multiplier": 10.0}}
        more = {"model": "ft:tiny:1:a::b", "depth": depth, "validation_file": "file-b"}
        folder = job_folder(base, tmp_path / place, settings=settings, **more)
        if folders:
            shutil.copytree(folders[-1].model(folders[-1].checkpoints()[-1]["step_number"]).path, folder.base)
            assert folder.job().model_name == "ft:tiny:1:a::ftjob-a"
        sums(folder.training_data, first=4 * depth, rows=4)
        sums(folder.validation_data, first=50, rows=4)
        assert train_job(folder, 1, lambda: False) is not None
        folders.append(folder)
    for earlier, folder in pairwise(folders):
        before, *_, after = folder.checkpoint_lines()
        kept = earlier.checkpoint_lines()[-1]["metrics"]
        assert math.isclose(before["metrics"]["full_valid_loss"], kept["full_valid_loss"], rel_tol=1e-6)
        model = folder.model(after["step_number"])
        chain, joined, base_weights = (load_run(run).state_dict() for run in (folder.run, model, RunDir(base)))
        for name, weight in chain.items():
            assert (joined[name] - weight).abs().max() <= 1e-6 * weight.abs().max()
        assert any((joined[name] - base_weights[name]).abs().max() > 1e-3 for name in chain)
        with closing(Engine(base)) as engine:  # the served base alone takes it
            engine.load_adapter("tuned", model.checkpoint())


def test_the_native_backend_serves_tuned_models(
    base: Path, tuner: TuneServer, tuned: FineTuningJob, tmp_path: Path
) -> None:
    shutil.copytree(tuner.folder / "jobs" / tuned.id, tmp_path / "tune" / "jobs" / tuned.id)
    file = tmp_path / "tune/jobs" / tuned.id / "job.json"
    deepest = json.loads(file.read_bytes()) | {"id": f"{tuned.id[:-8]}deepest0", "depth": 3, "model": f"ft:{BASE}:a::b"}
    shutil.copytree(file.parent, file.parent.with_name(deepest["id"]))
    file.parent.with_name(deepest["id"]).joinpath("job.json").write_text(json.dumps(deepest), encoding="utf-8")
    with tuning(base, tmp_path, "backend=native") as server:
        found = answers(server, tuned.fine_tuned_model or "", PROMPTS)
        with pytest.raises(openai.BadRequestError, match="the last of 4 models that were tuned one after another"):
            server.create(sums(tmp_path / "a.jsonl"), model=f"ft:{BASE}:default:sums:deepest0")
    assert found == answers(tuner, tuned.fine_tuned_model or "", PROMPTS) != answers(tuner, "tiny", PROMPTS)


def test_a_model_of_another_base_is_refused_without_a_path(
    tuner: TuneServer, tuned: FineTuningJob, tmp_path: Path
) -> None:
    shutil.copytree(tuner.folder / "jobs" / tuned.id, tmp_path / "tune" / "jobs" / tuned.id)
    other = write_run(tmp_path / "other", context=256, head_dim=16)
    with tuning(other, tmp_path) as server:
        with pytest.raises(openai.UnprocessableEntityError, match="Was it trained from another base") as refused:
            answers(server, tuned.fine_tuned_model or "", PROMPTS[:1])
        assert refused.value.param == "model" and str(tmp_path) not in str(refused.value)
        with pytest.raises(openai.BadRequestError, match="tuned from another run than the served one"):
            server.create(sums(tmp_path / "a.jsonl"), model=tuned.fine_tuned_model)
        assert "trained on other weights than the engine's" in server.server.log.read_text(encoding="utf-8")


def test_a_base_that_is_not_served_is_refused_at_the_start(base: Path) -> None:
    with pytest.raises(ConfigError, match="the base 'runs/other' of 'b' is not served here") as refused:
        start_server(str(base), ["tune=FOLDER", "tune_names=a=ladder,b=runs/other"])
    assert refused.value.where == "key 'tune_names'"
    assert refused.value.remedy == "Give b for the served run or b=ladder, or serve runs/other by a server of its own."


def test_a_backend_without_adapters_does_not_tune(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"the backend './mine.py:Mine' runs no tuned models"):
        start_server(str(base), ["tune=FOLDER", "backend=./mine.py:Mine"])


@pytest.mark.parametrize("setting", ["tune_jobs=2", "tune_names=a", "tune_bytes=1000", "tune_memory=1000"])
def test_a_setting_without_tune_is_refused(base: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match="it has no effect without tune=FOLDER") as refused:
        start_server(str(base), [setting])
    assert setting.partition("=")[0] in refused.value.where
