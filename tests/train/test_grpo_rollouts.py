"""Variants of GRPO in the source: what is drawn, punished, left out and scored, in runs of a second each."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from letters import LETTERS
from little import (
    engine_of,
    grpo_run,
    loud,
    records,
    rollouts,
    sampled,
    stored_weights,
    tiny,
    update_of,
    watch,
)  # fmt: skip

from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import RunDir
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Request, SamplingParams
from rorqual.model import Decoder
from rorqual.recipes import make_run
from rorqual.tasks.openai_graders import text_similarity
from rorqual.tasks.task import Verdict
from rorqual.train.batch import TrainBatch
from rorqual.train.loop import fit
from rorqual.train.objectives import GRPO
from rorqual.train.run import BFLOAT16, Run, SamplerAgreementLimits
from rorqual.train.sources.reference import ReferenceModel
from rorqual.train.sources.sampler import ScoredCompletion
from rorqual.train.sources.shaping import group_advantages, overlong_penalty


def run_with(base: Path, steps: int = 2, *, objective: dict[str, Any] | None = None, **source: Any) -> Run:
    """A little reinforcement with these fields of the source and of the objective."""
    run = grpo_run(base, steps)
    return run.model_copy(
        update={
            "source": type(run.source).model_validate(run.source.model_dump() | source),
            "objectives": (GRPO(**(objective or {})),),
        }
    )


def documents(batches: list[TrainBatch]) -> list[tuple[int, ...]]:
    """The ids of every document, prompt and answer."""
    return [
        tuple(row[segments == number].tolist())
        for batch in batches
        for row, segments in zip(batch.tokens, batch.segments)
        for number in segments[segments >= 0].unique().tolist()
    ]


def verdicts(line: dict[str, Any]) -> list[str]:
    return [sample["verdict"] for sample in line["samples"]]


# ---- dynamic sampling


def test_dynamic_sampling_draws_on_until_groups_have_both_rewards(base: Path, tmp_path: Path) -> None:
    once = watch(run_with(base, 1, problems=6, samples=2), tmp_path / "once")[0]
    (step,) = watch(run_with(base, 1, problems=6, samples=2, max_num_gen_batches=5), tmp_path / "more")
    mixed = [line for line in step.trace if {"right", "wrong"} <= set(verdicts(line))]
    assert step.metrics["gen_batches"] == len(step.trace) // 6 > 1, "a first draw that is enough shows nothing"
    assert step.metrics["groups_trained"] == min(len(mixed), 6)
    trained = documents(step.batches)
    assert len(trained) == sum(len(line["samples"]) for line in mixed[:6])
    every = len(trained) + len(documents(step.unlearned))
    assert every == sum(len(line["samples"]) for line in step.trace), "all that was drawn is checked"
    tokens = sum(sample["tokens"] for line in step.trace for sample in line["samples"])
    assert step.metrics["sampled_tokens"] == tokens, "and paid for"
    first = [line["key"] for line in once.trace]
    assert [line["key"] for line in step.trace][: len(first)] == first, "the first draw is as without the option"


def test_dynamic_sampling_has_a_limit_and_says_so(base: Path, tmp_path: Path) -> None:
    """Greedy-like sampling never gives a group two rewards."""
    run = run_with(base, 1, temperature=1e-3, max_num_gen_batches=3, objective={"temperature": 1e-3})
    run = run.model_copy(update={"agreement": SamplerAgreementLimits(mean=1.0, most=1.0, gap=1.0)})
    (step,) = watch(run, tmp_path / "run")
    assert step.metrics["gen_batches"] == 3 and len(step.trace) == 12 and not step.batches
    assert "every group has equal rewards, so the weights were not updated" in step.notes[0]
    (short,) = watch(run_with(base, 1, problems=30, samples=2, max_num_gen_batches=2), tmp_path / "short")
    assert short.metrics["groups_trained"] < 30
    assert f"only {short.metrics['groups_trained']} of 60 groups in 2 draws have both rewards" in short.notes[0]


# ---- random rewards


def test_random_rewards_do_not_depend_on_the_answers(base: Path, tmp_path: Path) -> None:
    """The control of a gain: wrong answers are rewarded as often as right ones, and the log still grades them."""
    run = run_with(base, 1, problems=20, samples=6, trace=20, random_reward=0.5, std=False)
    (step,) = watch(run, tmp_path / "run")
    rewarded = {"right": [], "wrong": []}  # type: dict[str, list[bool]]
    for line in step.trace:
        advantages = [sample["advantage"] for sample in line["samples"]]
        assert len({round(value, 6) for value in advantages}) <= 2 and sum(advantages) == pytest.approx(0, abs=1e-6)
        for sample in line["samples"]:
            rewarded[sample["verdict"]].append(sample["advantage"] > 0)
    assert len(rewarded["wrong"]) > 20 and 0.25 < sum(rewarded["wrong"]) / len(rewarded["wrong"]) < 0.75
    graded = [sample["verdict"] == "right" for line in step.trace for sample in line["samples"]]
    assert step.metrics["reward"] == pytest.approx(sum(graded) / len(graded))
    (again,) = watch(run, tmp_path / "again")
    assert again.trace == step.trace
    (sure,) = watch(run_with(base, 1, random_reward=1.0), tmp_path / "sure")
    assert all(sample["advantage"] == 0 for line in sure.trace for sample in line["samples"]), (
        "all of a group are equal"
    )


# ---- rewards between 0 and 1

SIMILAR = {"type": "text_similarity", "name": "s", "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
           "evaluation_metric": "fuzzy_match"}  # fmt: skip


def similar_run(base: Path, folder: Path, steps: int = 2, **source: Any) -> Run:
    """Replies of one letter, for answers of two: none is right, and some are half right."""
    file, options = folder / "rft.jsonl", {"grader": SIMILAR}
    rows = [{"messages": [{"role": "user", "content": f"after {a}"}], "answer": b + b} for a, b in pairwise(LETTERS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = {"task": "openai", "data": str(file), "options": json.dumps(options), "from": str(base)}
    given = {name: getattr(make_run("grpo", made).source, name) for name in ("task", "data", "options")}
    assert given["options"] == options
    return run_with(base, steps, **given, trace=99, **source)


def test_the_score_of_a_grader_is_the_reward(base: Path, tmp_path: Path) -> None:
    for step in watch(similar_run(base, tmp_path), tmp_path / "run"):
        every: list[float] = []
        for line in step.trace:
            (answer,) = json.loads(line["answer"]).values()
            scores = [
                text_similarity("fuzzy_match", one["text"], answer) * (one["finish"] == "stop")
                for one in line["samples"]
            ]
            advantages = [one["advantage"] for one in line["samples"]]
            assert advantages == pytest.approx(group_advantages(scores, [True] * len(scores), std=True).tolist())
            every += scores
        assert step.metrics["reward"] == pytest.approx(sum(every) / len(every)) and 2 / 3 in map(pytest.approx, every)
        assert step.metrics["right"] == 0 and step.batches
    (step,) = watch(similar_run(base, tmp_path, 1, max_num_gen_batches=2), tmp_path / "more")
    assert step.metrics["groups_trained"] > 0, "groups with different rewards count, though no answer is right"
    (cut,) = watch(similar_run(base, tmp_path, 1, max_tokens=2), tmp_path / "cut")
    assert any(one["text"] for line in cut.trace for one in line["samples"]) and cut.metrics["reward"] == 0, "cut off"


def test_a_run_with_a_grader_goes_on_and_has_no_worked_solutions(base: Path, tmp_path: Path) -> None:
    for out, steps in (("straight", (2,)), ("parts", (1, 2))):
        for step in steps:
            fit(similar_run(base, tmp_path, step), RunDir(tmp_path / out), quiet=True)
    assert stored_weights(tmp_path / "straight") == stored_weights(tmp_path / "parts")
    made = {
        "task": "openai",
        "data": str(tmp_path / "rft.jsonl"),
        "options": json.dumps({"grader": SIMILAR}),
        "size": "tiny",
    }
    with pytest.raises(DataError, match="task openai: the task has no gold replies"):
        fit(make_run("sft", made), RunDir(tmp_path / "sft"), quiet=True)


# ---- length and cut-off answers


def test_overlong_punishment_is_in_the_reward_once(base: Path, tmp_path: Path) -> None:
    (step,) = watch(run_with(base, 1, overlong_buffer=10, overlong_penalty=0.5, std=False), tmp_path / "run")
    punished = 0
    for line in step.trace:
        those = line["samples"]
        rewards = []
        for sample in those:
            beyond = max(0, sample["tokens"] - (12 - 10))
            rewards.append((sample["verdict"] == "right") - 0.5 * beyond / 10)
            punished += beyond > 0
        mean = sum(rewards) / len(rewards)
        assert [sample["advantage"] for sample in those] == pytest.approx([r - mean for r in rewards])
    assert punished and step.metrics["overlong_penalty"] < 0


def test_each_effort_has_its_own_groups_its_own_penalty_and_its_own_prompt(base: Path, tmp_path: Path) -> None:
    """V4.1's r_len = -min(C_max, k_0 exp(-(b - b_min) / tau) length / L_norm), in the reward once."""
    penalty = {"efforts": [80, 20], "strength": 0.7, "decay": 30.0, "limit": 0.2, "tokens": 12}
    (step,) = watch(run_with(base, 1, problems=3, length_penalty=penalty, std=False), tmp_path / "run")
    assert [line["effort"] for line in step.trace] == [80, 20] * 3
    keys = [line["key"] for line in step.trace]
    assert keys[::2] == keys[1::2] and len({*keys}) == 3
    cut = set()
    for line in step.trace:
        those, factor = line["samples"], 0.7 * math.exp(-(line["effort"] - 20) / 30)
        for sample in those:
            cut.add(factor * sample["tokens"] / 12 > 0.2)
        rewards = [(s["verdict"] == "right") - min(0.2, factor * s["tokens"] / 12) for s in those]
        mean = sum(rewards) / len(rewards)
        assert [s["advantage"] for s in those] == pytest.approx([r - mean for r in rewards])
    assert cut == {True, False}, "the limit must matter somewhere"
    ids_of = Tokenizer.load(RunDir(base).tokenizer_file)
    texts = [ids_of.decode(list(ids), specials=True) for ids in documents([*step.batches, *step.unlearned])]
    for effort in (20, 80):
        own = [line for line in step.trace if line["effort"] == effort]
        lengths = [sample["tokens"] for line in own for sample in line["samples"]]
        assert step.metrics[f"reply_length/effort {effort}"] == pytest.approx(sum(lengths) / len(lengths))
        rights = [sample["verdict"] == "right" for line in own for sample in line["samples"]]
        assert step.metrics[f"reward/effort {effort}"] == pytest.approx(sum(rights) / len(rights))
        asked = [text for text in texts if f"Reasoning effort: {effort}" in text]
        assert len(asked) == sum(len(line["samples"]) for line in own)


def test_a_prompt_with_its_effort_must_fit_into_a_row(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not fit into a row"):
        watch(run_with(base, 1, max_tokens=30, length_penalty={"efforts": [50], "tokens": 12}), tmp_path / "run")
    watch(run_with(base, 1, max_tokens=30), tmp_path / "other")


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (150, -1.0)]
)
def test_overlong_punishment_by_length(length: int, penalty: float) -> None:
    assert overlong_penalty(length, max_tokens=100, buffer=20) == pytest.approx(penalty)
    assert overlong_penalty(length, max_tokens=100, buffer=0) == 0.0


def test_advantages_of_a_group() -> None:
    rewards, graded = [1.0, 0.0, 0.5, 7.0], [True, True, True, False]
    plain = group_advantages(rewards, graded, std=False)
    assert plain.tolist() == [0.5, -0.5, 0.0, 0.0]
    assert np.allclose(group_advantages(rewards, graded, std=True), plain / np.std([1.0, 0.0, 0.5]))
    assert group_advantages([1.0, 1.0], [True, True], std=True).tolist() == [0.0, 0.0]
    for std in (False, True):  # the mean of seven times 0.7 is another number
        assert group_advantages([0.7] * 7, [True] * 7, std=std).tolist() == [0.0] * 7


# ---- the sampler's kept sets


def kept_bits(completion: Completion, vocab: int) -> np.ndarray:
    return np.unpackbits(completion.kept, axis=-1)[:, :vocab].astype(bool)


def test_a_token_that_was_cut_off_has_no_gradient() -> None:
    """Only what was kept shares the gradient: the head's rows of all other tokens are left alone."""
    model = loud(tiny())
    params = SamplingParams(max_tokens=10, temperature=1.0, seed=5, n=3, top_k=5)
    (group,) = engine_of(model, record_kept=True).generate([Request(prompt_ids=(40, 41, 42), params=params)])
    scored = [ScoredCompletion(c, Verdict.RIGHT, a) for c, a in zip(group, (1.0, -1.0, 0.5))]
    update = update_of(model, (GRPO(),), rollouts(scored))
    kept = np.any(np.concatenate([kept_bits(c, model.config.vocab_size) for c in group]), axis=0)
    names = [name for name, _ in model.named_parameters()]
    head = update.grads[names.index("lm_head.weight")]
    moved = head.abs().amax(-1) > 0
    assert 5 < int(kept.sum()) < len(kept)
    assert moved.tolist() == kept.tolist()


# ---- a reference


def test_the_reference_scores_as_the_model_that_it_is(base: Path) -> None:
    """The start's own samples: its log-probabilities of them are those that its sampler recorded."""
    from_start = ReferenceModel(str(base), loud(tiny()), Tokenizer.byte_level(), temperature=1.0, threads=2)
    batch = rollouts(sampled(from_start.model))
    assert batch.sampled_logprobs is not None
    assert torch.allclose(from_start.logprobs(batch), batch.sampled_logprobs, atol=1e-5)
    colder = ReferenceModel(str(base), loud(tiny()), Tokenizer.byte_level(), temperature=0.7, threads=1)
    wanted = rollouts(sampled(from_start.model, temperature=0.7)).sampled_logprobs
    assert torch.allclose(colder.logprobs(rollouts(sampled(from_start.model, temperature=0.7))), wanted, atol=1e-5)


def test_the_reference_is_scored_at_the_temperature_of_the_samples(base: Path, tmp_path: Path) -> None:
    """Before the first update, the policy is its reference: the KL is nothing."""
    objective = {"beta": 0.1, "temperature": 0.6}
    watch(run_with(base, 1, reference=str(base), objective=objective, temperature=0.6), tmp_path / "run")
    assert abs(records(tmp_path / "run")[0]["kl"]) < 1e-4


def test_a_kl_without_a_reference_and_a_foreign_reference_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs reference_logprobs.*source.reference=RUN"):
        values = {"task": grpo_run(base).source.task, "from": str(base), "objectives.0.beta": "0.1"}  # type: ignore[attr-defined]
        make_run("grpo", values)
    other = tiny().model_copy(update={"vocab_size": 300})
    with pytest.raises(ConfigError, match="the reference's tokenizer"):
        ReferenceModel(str(base), Decoder(other), Tokenizer.byte_level(), temperature=1.0, threads=1)
    start = shutil.copytree(base, tmp_path / "start")
    text = (start / "tokenizer.json").read_text(encoding="utf-8")
    (start / "tokenizer.json").write_text(text.replace('"a":', '"?":').replace('"b":', '"a":').replace('"?":', '"b":'))
    with pytest.raises(ConfigError, match=r"differs from the trained model's .* stand for other tokens"):
        fit(run_with(start, 1, reference=str(base), objective={"beta": 0.1}), tmp_path / "run", quiet=True)


# ---- truncated importance correction


def test_truncated_importance_in_a_trainer_of_another_type(base: Path, tmp_path: Path) -> None:
    """A trainer in bf16 beside a sampler in fp32: some weights are above the cap, and the result is another one."""
    out = {}
    for cap in (0.0, 1.001):
        run = run_with(base, 2, objective={"tis_cap": cap})
        run = run.model_copy(update={"dtype": "bfloat16", "agreement": BFLOAT16})
        state = fit(run, RunDir(tmp_path / str(cap)), quiet=True)
        out[cap] = (state.model.state_dict(), records(tmp_path / str(cap)))
    assert "tis_capped" not in out[0.0][1][0]
    assert all(0 < step["tis_capped"] < 1 for step in out[1.001][1])
    name = "layers.0.attention.o_proj.weight"
    assert not torch.equal(out[0.0][0][name], out[1.001][0][name])


def test_old_probabilities_are_those_before_the_first_update(base: Path, tmp_path: Path) -> None:
    """In fp32 trainer and sampler agree, so old and sampled are one: the second update of a step sees it too."""
    plain, corrected = (
        fit(run_with(base, 2, objective={"tis_cap": cap}), RunDir(tmp_path / str(cap)), quiet=True)
        for cap in (0.0, 2.0)
    )
    for name, tensor in plain.model.state_dict().items():
        assert torch.allclose(tensor, corrected.model.state_dict()[name], atol=1e-5), name


# ---- recipes
