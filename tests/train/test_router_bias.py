"""The router's bias moves once an update, by every real token of it, and by nothing else (V3, section 2.1.2).

Of LongCat-Flash's router, only the biases of experts with weights move (2509.01322, section 2.1)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from little import documents, engine_of, loud, padded, sft_run, tiny, train_with, update_of
from safetensors.torch import load_file

from rorqual.core.records import RunDir
from rorqual.engine import Request, SamplingParams
from rorqual.model import Decoder, ModelConfig
from rorqual.model.ffn import MoEConfig
from rorqual.model.ffn.router import ZeroExpertsConfig
from rorqual.model.load.run_directory import load_run
from rorqual.train.balance import update_router_biases
from rorqual.train.batch import TrainBatch
from rorqual.train.loop import fit
from rorqual.train.objectives import MultiToken, NextToken, Objective
from rorqual.train.run import Run
from rorqual.train.sources import Source, StepBatches

BOTH: tuple[Objective, ...] = (NextToken(), MultiToken())
GAMMA = 0.01
ZERO = ZeroExpertsConfig(n_routed_experts=12, zero_expert_num=4, num_experts_per_tok=2, expected_experts=1.25)


def with_zero_experts(config: ModelConfig) -> ModelConfig:
    stages = []
    for stage in config.stages:
        ffn = stage.ffn
        if isinstance(ffn, MoEConfig):
            ffn = ffn.model_copy(update={"router": ZERO})
        stages.append(stage.model_copy(update={"ffn": ffn}))
    return config.model_copy(update={"stages": tuple(stages)})


@pytest.fixture(params=["grouped_topk", "zero"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return tiny() if request.param == "grouped_topk" else with_zero_experts(tiny())


@pytest.fixture
def run(config: ModelConfig) -> Run:
    """Three steps of fine-tuning, of a model of either router."""
    own = sft_run(4)
    zero = any(isinstance(stage.ffn, MoEConfig) and stage.ffn.router == ZERO for stage in config.stages)
    return own.model_copy(update={"model": with_zero_experts(own.model)}) if zero else own


def slow_counts(model: Decoder, batch: TrainBatch) -> list[list[int]]:
    """Document by document, token by token: how many tokens each expert of the main layers and of the module served."""
    counts = [[0] * 16 for _ in range(2)]
    for row in range(len(batch.tokens)):
        for segment in set(batch.segments[row].tolist()) - {-1}:
            at = batch.segments[row] == segment
            tokens = batch.tokens[row][at].unsqueeze(0)
            output = model(tokens)
            choices = [output.routing[0].indices.tolist()]
            if tokens.shape[1] > 1:
                choices.append(model.predict_with_mtp(output.hidden, tokens)[0].routing[0].indices.tolist())
            for count, tokens_of_layer in zip(counts, choices):
                for experts in tokens_of_layer:
                    for expert in experts:
                        count[expert] += 1
    return counts


def test_ten_steps_against_a_slow_reference(config: ModelConfig) -> None:
    model = loud(config)
    slow = [[float(b) for b in router.router.e_score_correction_bias] for router in model.routing_ffns()]
    assert len(slow) == 2, "the prediction module has a router of its own"
    for step in range(10):
        batch = padded(documents(100 + step, count=3, longest=12))
        expected = slow_counts(model, batch)
        counts = update_of(model, BOTH, batch, parts=2).counts
        assert [c.tolist() for c in counts] == expected
        update_router_biases(model.routing_ffns(), counts, GAMMA)
        for router, bias, served in zip(model.routing_ffns(), slow, expected):
            for expert, load in enumerate(served):
                if router.router.config == ZERO:  # 1.25 of a token's two choices are shared by 12 experts
                    bias[expert] += GAMMA * (1 - load / (sum(served) * 1.25 / 2 / 12)) if expert < 12 else 0.0
                else:
                    mean = sum(served) / len(served)
                    bias[expert] += GAMMA if load < mean else -GAMMA if load > mean else 0.0
        for router, bias in zip(model.routing_ffns(), slow):
            assert router.router.e_score_correction_bias.tolist() == pytest.approx(bias, abs=1e-6)


def test_an_evaluation_between_two_steps_changes_nothing(run: Run, tmp_path: Path) -> None:
    """Steps 1-2, then an evaluation with the very model, then 3-4, against 1-4."""
    straight = fit(run, RunDir(tmp_path / "straight"), quiet=True).model

    def with_evaluation(source: Source, model: Decoder, step: int) -> StepBatches:
        engine_of(model).generate([Request(prompt_ids=(5, 6), params=SamplingParams(max_tokens=6))])
        return source.step(step)

    evaluated = train_with(run, RunDir(tmp_path / "evaluated"), with_evaluation).model
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, evaluated.state_dict()[name]), name


def test_it_is_kept_in_fp32_through_save_load_and_bf16(run: Run, tmp_path: Path) -> None:
    out = RunDir(tmp_path / "run")
    model = fit(run, out, quiet=True).model
    biases = {n: t for n, t in model.state_dict().items() if n.endswith("e_score_correction_bias")}
    assert len(biases) == 2 and all(bool(t.any()) for t in biases.values()), "four steps move every router's bias"
    saved = load_file(out.checkpoint() / "model.safetensors")
    loaded = load_run(out, dtype=torch.bfloat16)
    assert loaded.embed_tokens.weight.dtype == torch.bfloat16
    for name, bias in biases.items():
        for kept in (saved[name], loaded.state_dict()[name], model.to(torch.bfloat16).state_dict()[name]):
            assert kept.dtype == torch.float32 and torch.equal(kept, bias)
