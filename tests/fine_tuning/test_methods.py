"""The methods of fine-tuning: what OpenAI's hyperparameters become in a run, and jobs of pairs and of graders."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai.types.fine_tuning import FineTuningJob
from tuned_server import BASE, TuneServer, job_folder, pairs, sums, wait

from rorqual.core.errors import DataError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.fine_tuning.job_process import NOTHING_LEARNT, train_job
from rorqual.fine_tuning.recipe import PREFERENCE_LR, REINFORCEMENT_LR, JobPlan, auto_epochs, plan_job, shared_targets
from rorqual.model.adapter import LoRA
from rorqual.model.load.run_directory import load_run
from rorqual.recipes.models import student_like, v3_like
from rorqual.tasks.openai_graders import text_similarity
from rorqual.train.objectives import DPO
from rorqual.train.sources import ConversationsConfig, PreferencesConfig, RolloutConfig

GRADER = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


def prompts(path: Path, rows: int = 4) -> Path:
    """A file of prompts with answers, for a grader."""
    lines = ({"messages": [{"role": "user", "content": f"{a}+{a}"}], "answer": str(2 * a)} for a in range(rows))
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path


def plan(base: Path, data: Path, kind: str, hyperparameters: dict[str, Any], seed: int = 3) -> JobPlan:
    """The plan of a job in `data`'s folder."""
    settings = {"hyperparameters": hyperparameters} | ({"grader": GRADER} if kind == "reinforcement" else {})
    folder = job_folder(base, data.parent, kind, settings, seed=seed)
    folder.training_data.write_bytes(data.read_bytes())
    return plan_job(folder.job(), folder)


def test_supervised_hyperparameters_are_the_runs(base: Path, tmp_path: Path) -> None:
    data = sums(tmp_path / "data.jsonl", rows=12)
    settings = {"n_epochs": 4, "batch_size": 3, "learning_rate_multiplier": 0.5}
    made = plan(base, data, "supervised", settings)
    run, source = made.run, made.run.source
    assert isinstance(source, ConversationsConfig) and isinstance(run.tune, LoRA)
    assert (run.tune.r, run.tune.alpha, run.save_seconds) == (16, 32, 30)
    assert source.data == str(tmp_path / "job" / "train.jsonl") and run.start.run == str(base)
    assert (run.seed, run.chat, len(made.epoch_ends)) == (3, "deepseek", 4) and run.steps == made.epoch_ends[-1]
    assert 3 <= made.epoch_ends[0] <= 6  # 12 examples in updates of about 3
    assert made.hyperparameters == settings
    auto = plan(base, data, "supervised", {}, seed=4)
    assert auto.hyperparameters == {"n_epochs": 10, "batch_size": 12, "learning_rate_multiplier": 1}
    assert auto.run.optim.lr == 2 * run.optim.lr and auto.run.seed == 4  # type: ignore[attr-defined]
    assert len(auto.epoch_ends) == auto_epochs(12) and auto.epoch_ends[0] == 1
    assert [auto_epochs(rows) for rows in (10, 300, 10_000)] == [10, 5, 3]


def test_a_batch_has_at_most_the_rows_of_an_epoch(base: Path, tmp_path: Path) -> None:
    """Otherwise an update would span epochs, and no epoch but the last would have a model of its own."""
    made = plan(base, sums(tmp_path / "data.jsonl", rows=12), "supervised", {"n_epochs": 4, "batch_size": 128})
    assert made.epoch_ends == (1, 2, 3, 4) and made.run.steps == 4


def test_an_adapter_leaves_out_the_maps_that_must_be_merged() -> None:
    """The engine adds an adapter's product to its base, which it cannot do for MLA's absorbed map."""
    latent = v3_like("tiny", vocab_size=300, context=64)
    targets = shared_targets(latent)
    assert "kv_b_proj" not in targets and {"o_proj", "kv_a_proj_with_mqa"} <= {*targets}
    assert shared_targets(student_like(latent)) == ("all-linear",)


def test_preference_hyperparameters_are_the_runs(base: Path, tmp_path: Path) -> None:
    data = pairs(tmp_path / "data.jsonl")
    settings = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 2.0, "beta": 0.3}
    made, auto = plan(base, data, "dpo", settings), plan(base, data, "dpo", {})
    run, source = made.run, made.run.source
    assert made.hyperparameters == settings
    assert auto.hyperparameters == {"n_epochs": 3, "batch_size": 6, "learning_rate_multiplier": 1, "beta": 0.1}
    assert run.seed == 3 and auto.run.optim.lr == PREFERENCE_LR == 5e-5  # type: ignore[attr-defined]
    assert isinstance(source, PreferencesConfig) and isinstance(run.objectives[0], DPO)
    assert (source.pairs, source.reference, run.objectives[0].beta) == (4, str(base), 0.3)
    assert made.epoch_ends == (2, 3) and run.optim.lr == 2 * auto.run.optim.lr  # type: ignore[attr-defined]
    assert (
        isinstance(auto.run.objectives[0], DPO) and auto.run.objectives[0].beta == 0.1 and auto.epoch_ends == (1, 2, 3)
    )


def test_reinforcement_hyperparameters_are_the_runs(base: Path, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl")
    settings = {"n_epochs": 2, "batch_size": 2, "learning_rate_multiplier": 2.0, "compute_multiplier": 0.5}
    made, auto = plan(base, data, "reinforcement", settings), plan(base, data, "reinforcement", {})
    source, other = made.run.source, auto.run.source
    waiting = {"eval_interval": "auto", "eval_samples": "auto", "reasoning_effort": "default"}
    values = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1, "compute_multiplier": 1}
    assert made.hyperparameters == waiting | settings and auto.hyperparameters == waiting | values
    assert made.run.backend == "torch-invariant", "rounding alone reached the limit of SmolLM2's jobs"
    assert made.run.seed == 3 and auto.run.optim.lr == REINFORCEMENT_LR == 3e-4  # type: ignore[attr-defined]
    assert isinstance(source, RolloutConfig) and isinstance(other, RolloutConfig)
    assert (source.task, source.options, source.problems, source.samples) == ("openai", {"grader": GRADER}, 2, 4)
    assert (other.problems, other.samples, made.epoch_ends, auto.epoch_ends) == (4, 8, (2, 4), (1, 2, 3))
    assert made.run.optim.lr == 2 * auto.run.optim.lr  # type: ignore[attr-defined]
    long = tmp_path / "long.jsonl"
    long.write_text(
        json.dumps({"messages": [{"role": "user", "content": "a" * 300}], "answer": "b"}) + "\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match=r":1: 30\d tokens, but the context of the base model leaves room for 240"):
        plan(base, long, "reinforcement", {})


@pytest.mark.parametrize("kind", ["dpo", "reinforcement"])
def test_jobs_of_pairs_and_of_graders_end_in_a_model(tuner: TuneServer, tmp_path: Path, kind: str) -> None:
    data = {"dpo": pairs, "reinforcement": prompts}[kind](tmp_path / "data.jsonl")
    settings: dict[str, Any] = {"hyperparameters": {"n_epochs": 1, "batch_size": 2}}
    settings |= {"grader": GRADER} if kind == "reinforcement" else {}
    jobs = tuner.client.fine_tuning.jobs
    job = wait(tuner.client, jobs.create(
        model=BASE, training_file=tuner.upload(data), method={"type": kind, kind: settings}, seed=1  # type: ignore[misc]
    ).id)  # fmt: skip
    assert job.status == "succeeded", job.error
    steps = [event for event in jobs.list_events(job.id) if event.type == "metrics"]
    name = {"dpo": "rewards/accuracies", "reinforcement": "reward"}[kind]
    assert steps and all(name in event.data for event in steps)  # type: ignore[operator]
    assert (NOTHING_LEARNT in [event.message for event in jobs.list_events(job.id)]) == (not job.trained_tokens)
    [head, *lines] = base64.b64decode(tuner.client.files.content(job.result_files[0]).read()).decode().splitlines()
    assert head == f"step,train_loss,valid_loss,valid_mean_token_accuracy,{name}"
    assert [float(line.split(",")[4]) for line in lines] == [event.data[name] for event in reversed(steps)]  # type: ignore[index]
    asked = {"messages": [{"role": "user", "content": "1+1"}], "max_tokens": 2}
    reply = tuner.client.chat.completions.create(model=job.fine_tuned_model or "", **asked)  # type: ignore[call-overload]
    assert reply.usage.completion_tokens


def test_the_validation_file_of_pairs_is_measured(base: Path, tmp_path: Path) -> None:
    """Against the loss written plainly in float64, from the log-probabilities of both models."""
    settings = {"hyperparameters": {"n_epochs": 1, "batch_size": 2, "beta": 0.2}}
    folder = job_folder(base, tmp_path, "dpo", settings, validation_file="file-b")
    pairs(folder.training_data)
    lines = pairs(folder.validation_data, 9).read_text(encoding="utf-8").splitlines()[6:]
    folder.validation_data.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    assert train_job(folder, 1, lambda: False) is not None
    [checkpoint] = folder.checkpoints()
    run = RunDir(base)
    chat = load_chat(run, Tokenizer.load(run.tokenizer_file))
    trained, reference = load_run(folder.model(checkpoint["step_number"])), load_run(run)
    losses, right = [], []
    for line in map(json.loads, lines):
        rewards = []
        for key in ("preferred_output", "non_preferred_output"):
            turns = [*line["input"]["messages"], *line[key]]
            rendered = chat.render([Message(turn["role"], turn["content"]) for turn in turns])
            ids, mask = torch.tensor([rendered.ids]), torch.tensor(rendered.mask[1:])
            found = [
                torch.log_softmax(model.logits(model(ids).hidden)[0, :-1].double(), -1)
                .gather(1, ids[0, 1:, None])[mask.bool(), 0]
                .sum()
                for model in (trained, reference)
            ]
            rewards.append(0.2 * (found[0] - found[1]).item())
        losses.append(math.log1p(math.exp(rewards[1] - rewards[0])))
        right.append(rewards[0] > rewards[1])
    assert checkpoint["metrics"]["full_valid_loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert checkpoint["metrics"]["full_valid_rewards/accuracies"] == pytest.approx(sum(right) / 3)


def test_the_validation_file_of_prompts_is_answered(base: Path, tmp_path: Path) -> None:
    """The mean score is that of the greedy replies of the checkpoint's model, which the longest prompt leaves room for."""
    grader = {**GRADER, "type": "text_similarity", "evaluation_metric": "fuzzy_match"}
    del grader["operation"]
    settings = {"grader": grader, "hyperparameters": {"n_epochs": 1, "batch_size": 2}}
    folder = job_folder(base, tmp_path, "reinforcement", settings, validation_file="file-b")
    prompts(folder.training_data)
    text, long = prompts(folder.validation_data, 7).read_text(encoding="utf-8"), f"6+6{'?' * 60}"
    folder.validation_data.write_text(text.replace("6+6", long), encoding="utf-8")
    assert train_job(folder, 1, lambda: False) is not None
    [checkpoint] = folder.checkpoints()
    most = plan_job(folder.job(), folder).run.source.max_tokens  # type: ignore[attr-defined]
    engine = Engine(folder.model(checkpoint["step_number"]).path)
    room = engine.max_len - len(engine.chat.prompt([Message("user", long)]))
    assert room < most
    asked = [*(f"{a}+{a}" for a in range(6)), long]
    replies = engine.generate(asked, SamplingParams(max_tokens=room, temperature=0))
    scores = [text_similarity("fuzzy_match", one[0].text, str(2 * a)) for a, one in enumerate(replies)]
    assert checkpoint["metrics"]["full_valid_mean_reward"] == pytest.approx(sum(scores) / 7) and sum(scores) > 0
    assert any(event["data"]["reward"] for event in folder.steps())
    assert NOTHING_LEARNT not in [event["message"] for event in folder.events()]
    prompts(folder.validation_data).write_text('{"messages": [{"role": "user", "content": "1+1"}]}\n')
    with pytest.raises(DataError, match="no key 'answer'") as refused:
        train_job(folder, 1, lambda: False)
    assert str(folder.validation_data) in str(refused.value)


def test_openais_documented_requests_are_accepted(tuner: TuneServer, tmp_path: Path) -> None:
    """The bodies of the examples in OpenAI's reference of `POST /v1/fine_tuning/jobs`, one for each method, with our files' ids."""
    files = {
        "sums": sums(tmp_path / "a.jsonl"),
        "pairs": pairs(tmp_path / "b.jsonl"),
        "prompts": prompts(tmp_path / "c.jsonl"),
    }
    ids = {name: tuner.upload(path) for name, path in files.items()}
    label = {**GRADER, "reference": "{{item.answer}}"}
    plain = {"type": "text"}
    reinforcement = {"grader": label, "response_format": plain, "hyperparameters": {"reasoning_effort": "medium"}}
    bodies: list[dict[str, Any]] = [
        {"training_file": ids["sums"]},
        {"training_file": ids["sums"], "hyperparameters": {"n_epochs": 2}},
        {"training_file": ids["sums"], "validation_file": ids["sums"]},
        {
            "training_file": ids["sums"],
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        },
        {
            "training_file": ids["pairs"],
            "validation_file": ids["pairs"],
            "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}},
        },
        {
            "training_file": ids["prompts"],
            "validation_file": ids["prompts"],
            "method": {"type": "reinforcement", "reinforcement": reinforcement},
        },
    ]
    with tuner.http() as client:
        for body in bodies:
            answer = client.post("/v1/fine_tuning/jobs", json={"model": BASE, **body})
            assert answer.status_code == 200, answer.text
            job = FineTuningJob.model_validate_json(answer.content, strict=True)
            tuner.client.fine_tuning.jobs.cancel(job.id)
        events = client.get(f"/v1/fine_tuning/jobs/{job.id}/events").json()["data"]
        assert "These hyperparameters have no effect here: reasoning_effort" in [one["message"] for one in events]
        wandb = {"type": "wandb", "wandb": {"project": "my-wandb-project"}}
        refused = client.post("/v1/fine_tuning/jobs", json={"model": BASE, **bodies[0], "integrations": [wandb]})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "integrations"


def test_a_grader_that_is_not_offered_is_refused_by_name(tuner: TuneServer, tmp_path: Path) -> None:
    file, jobs = tuner.upload(prompts(tmp_path / "data.jsonl")), tuner.client.fine_tuning.jobs
    for grader, problem in (
        ({"type": "python", "name": "a", "source": "def grade(sample, item): return 1"}, "'python' is not offered"),
        ({"name": "same", "operation": "eq"}, "is not valid: .*it has no 'type'. Use string_check"),
        ({key: value for key, value in GRADER.items() if key != "operation"}, "is not valid: .*operation"),
        ({**GRADER, "operation": "equals"}, "operation"),
        ({**GRADER, "referense": "a"}, "referense"),
    ):
        method: Any = {"type": "reinforcement", "reinforcement": {"grader": grader}}
        with pytest.raises(openai.BadRequestError, match=problem) as refused:
            jobs.create(model=BASE, training_file=file, method=method)
        assert refused.value.param == "method.reinforcement.grader"
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
    jobs.cancel(jobs.create(model=BASE, training_file=file, method=method).id)
