"""The model against its second writing (slow_reference): where transformers has no model, or once differed from DeepSeek's."""

from __future__ import annotations

from typing import Any

import pytest
import slow_reference as slow
import torch
from random_models import deepseek_config, inputs, loud
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from rorqual.model import ModelConfig, Stage
from rorqual.ops.moe import route, sequence_balance

TOLERANCE = 1e-4
SLOW_SEQ = 12


def with_ffn(config: ModelConfig, **fields: Any) -> ModelConfig:
    """The config with its experts changed."""
    *first, last = config.stages
    flat = last.ffn.model_dump()
    ffn = type(last.ffn).model_validate(flat | flat.pop("router") | {"kind": "moe"} | fields)
    return config.model_copy(update={"stages": (*first, Stage(layers=last.layers, attention=last.attention, ffn=ffn))})


V2 = {"scoring_func": "softmax", "score_bias": False, "norm_topk_prob": False, "routed_scaling_factor": 16.0}
WITHOUT_TRANSFORMERS = {
    "v3, groups, biased scores below zero": (
        with_ffn(deepseek_config(5), n_routed_experts=16, n_group=4, topk_group=2),
        True,
    ),
    "v3, no q_lora, YaRN": (deepseek_config(7), False),
    "no shared experts": (with_ffn(deepseek_config(9), n_shared_experts=0), False),
    "v2, greedy": (with_ffn(deepseek_config(3), **V2, group_score="max"), False),
    "v2, limited to groups by their best": (
        with_ffn(deepseek_config(5), **V2, n_routed_experts=16, n_group=4, topk_group=2, group_score="max"),
        False,
    ),
}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("case", WITHOUT_TRANSFORMERS)
def test_hidden_states(case: str) -> None:
    config, below_zero = WITHOUT_TRANSFORMERS[case]
    model = loud(config, 11, biased_below_zero=below_zero)
    tokens, positions = (t[:, :SLOW_SEQ] for t in inputs(config, 11))
    with torch.no_grad():
        output = model(tokens, positions)
    if below_zero:
        bias = model.routers()[0].router.e_score_correction_bias
        assert (output.routing[0].scores + bias < 0).float().mean() > 0.9
    state = slow.double(model.state_dict())
    for row in range(len(tokens)):
        expected = torch.stack(slow.hidden_states(state, config, tokens[row].tolist(), positions[row].tolist()))
        assert relative(output.hidden[row], expected) < TOLERANCE


def test_a_group_not_selected_never_wins_over_biased_scores_below_zero() -> None:
    """The report's law decides; transformers masked with 0.0 once, and the installed version is checked beside us."""
    generator = torch.Generator().manual_seed(0)
    n_group, kept, k, experts, hidden = 4, 2, 4, 16, 8
    config = deepseek_config(5)
    moe = (
        with_ffn(config, n_routed_experts=experts, n_group=n_group, topk_group=kept, num_experts_per_tok=k)
        .stages[-1]
        .ffn.router
    )
    weight, x = torch.randn(experts, hidden, generator=generator), torch.randn(200, hidden, generator=generator)
    bias = 0.1 * torch.randn(experts, generator=generator) - 1.5
    logits = x @ weight.t()
    ours = route(logits, bias, k=k, n_group=n_group, topk_group=kept)
    law = [slow.choose_experts(row.sigmoid().tolist(), bias.tolist(), moe) for row in logits]
    assert [sorted(row) for row in ours.indices.tolist()] == [sorted(row) for row in law]

    theirs = DeepseekV3TopkRouter(
        DeepseekV3Config(
            hidden_size=hidden, n_routed_experts=experts, n_group=n_group, topk_group=kept, num_experts_per_tok=k
        )
    )
    theirs.load_state_dict({"weight": weight, "e_score_correction_bias": bias})
    their_choice = theirs(x)[2]
    assert [sorted(row) for row in their_choice.tolist()] == [sorted(row) for row in law]


@pytest.mark.parametrize(("seed", "modules"), [(3, 1), (5, 2), (4, 1)])
def test_multi_token_prediction(seed: int, modules: int) -> None:
    config = deepseek_config(seed).model_copy(update={"num_nextn_predict_layers": modules})
    model = loud(config, seed)
    tokens, positions = (t[:, :SLOW_SEQ] for t in inputs(config, seed))
    with torch.no_grad():
        hidden = model(tokens, positions).hidden
        further = model.predict_further(hidden, tokens, positions)
    assert len(further) == modules
    state = slow.double(model.state_dict())
    for row in range(len(tokens)):
        ids, at = tokens[row].tolist(), positions[row].tolist()
        before = slow.hidden_states(state, config, ids, at)
        for depth in range(modules):
            before = slow.prediction_module(state, config, depth, before, ids, at)
            assert further[depth].hidden.shape[1] == len(before) == SLOW_SEQ - 1 - depth
            assert relative(further[depth].hidden[row], torch.stack(before)) < TOLERANCE


def test_prediction_modules_of_packed_documents_equal_those_alone() -> None:
    config = deepseek_config(3).model_copy(update={"num_nextn_predict_layers": 2})
    model = loud(config, 3)
    tokens, _ = inputs(config, 3)
    tokens, cut = tokens[:1], 10
    segments = (torch.arange(tokens.shape[1]) >= cut).long().unsqueeze(0)
    positions = torch.cat((torch.arange(cut), torch.arange(tokens.shape[1] - cut))).unsqueeze(0)
    with torch.no_grad():
        packed = model.predict_further(model(tokens, positions, segments=segments).hidden, tokens, positions, segments)
        for start, stop in ((0, cut), (cut, tokens.shape[1])):
            alone = tokens[:, start:stop]
            outputs = model.predict_further(model(alone).hidden, alone)
            for depth, output in enumerate(outputs):
                rows = packed[depth].hidden[:, start : stop - 1 - depth]
                torch.testing.assert_close(rows, output.hidden, rtol=1e-4, atol=1e-4)


def test_sequence_balance_loss_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    lengths, experts, k = [5, 9, 1], 6, 2
    logits = torch.randn(sum(lengths), experts, generator=generator, requires_grad=True)
    routing = route(logits, torch.zeros(experts), k=k)
    sequence = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    loss = sequence_balance(routing.scores, routing.indices, sequence, 3)
    rows = list(zip(routing.scores.detach().split(lengths), routing.indices.split(lengths)))
    expected = sum(slow.sequence_balance(s.double().tolist(), i.tolist()) for s, i in rows)
    assert abs(float(loss.detach()) - expected) < 1e-5
    loss.backward()
    assert logits.grad is not None and float(logits.grad.abs().max()) > 1e-3
    # The order in which sequences stand in the batch does not matter.
    order = torch.randperm(sum(lengths), generator=generator)
    shuffled = sequence_balance(routing.scores[order], routing.indices[order], sequence[order], 3)
    assert abs(float((shuffled - loss).detach())) < 1e-5
