"""The gradient of multi-token prediction (V3 eq. 21-25): into the embedding of the next token, and through the hidden state into the trunk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig

HIDDEN, VOCAB, SEQ = 16, 40, 9
ATTENTION = GQAConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=8)


def made(modules: int) -> Decoder:
    stages = (
        Stage(layers=1, attention=ATTENTION, ffn=DenseConfig(intermediate_size=24)),
        Stage(
            layers=1,
            attention=ATTENTION,
            ffn=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
        ),
    )
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, stages=stages, num_nextn_predict_layers=modules, initializer_range=0.3
    )
    return build(config, seed=1)  # a seed with which no choice of an expert changes within the steps below


def some_tokens() -> Tensor:
    """None of them twice: each row of the embedding is read at one place."""
    return torch.randperm(VOCAB, generator=torch.Generator().manual_seed(2))[:SEQ].unsqueeze(0)


@pytest.mark.parametrize("modules", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        "embed_tokens.weight",
        "layers.0.attention.v_proj.weight",
        "layers.1.ffn.router.gate",
        "norm.weight",
        "lm_head.weight",
    ],
)
def test_against_differences_of_the_loss(name: str, modules: int) -> None:
    """Along a direction, the loss of the prediction modules alone changes as its gradient says: nothing on the way is cut."""
    model, tokens = made(modules), some_tokens()
    replay = torch.stack([one.indices for one in model(tokens).routing], dim=1).unsqueeze(0)

    def loss() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        outputs = model.predict_with_mtp(model(tokens, replay=replay).hidden, tokens)
        for depth, output in enumerate(outputs):
            logprobs = model.logits(output.hidden[0, :-1]).log_softmax(-1)
            total = total - logprobs.gather(-1, tokens[0, 2 + depth :, None]).double().mean()
        return total

    parameter = dict(model.named_parameters())[name]
    (gradient,) = torch.autograd.grad(loss(), parameter, allow_unused=True, materialize_grads=True)
    along = gradient / gradient.norm()
    assert float(gradient.norm()) > 1e-3
    with torch.no_grad():
        step, found = 3e-3, []
        for sign in (1, -1):
            parameter.add_(along, alpha=sign * step)
            found.append(float(loss()))
            parameter.sub_(along, alpha=sign * step)
    assert (found[0] - found[1]) / (2 * step) == pytest.approx(float(gradient.norm()), rel=1e-2)


@torch.no_grad()
def test_a_second_module_continues_the_first() -> None:
    """It reads what the first one gave, and the tokens from the next one on."""
    model, tokens = made(2), some_tokens()
    first, second = model.predict_with_mtp(model(tokens).hidden, tokens)
    model.mtp = model.mtp[1:]
    (alone,) = model.predict_with_mtp(first.hidden, tokens[:, 1:])
    torch.testing.assert_close(alone.hidden, second.hidden)
