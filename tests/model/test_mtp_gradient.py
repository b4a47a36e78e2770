"""The gradient of multi-token prediction (V3 eq. 21-25): into the embedding of the next token, and through the hidden state into the trunk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.attention import GQAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.init import init_weights

HIDDEN, VOCAB, SEQ = 16, 40, 9
ATTENTION = GQAConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=8)


def made(*, modules: int = 1, silent: bool = False) -> Decoder:
    """`silent`: the modules' blocks add nothing to what they are given, so that a module is a join between norms."""
    stages = (
        Stage(layers=1, attention=ATTENTION, ffn=DenseConfig(intermediate_size=24)),
        Stage(
            layers=1,
            attention=ATTENTION,
            ffn=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
        ),
    )
    model = Decoder(ModelConfig(vocab_size=VOCAB, hidden_size=HIDDEN, stages=stages, num_nextn_predict_layers=modules))
    init_weights(model, 0.3, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0, 0.2, generator=generator)
            elif silent and name.startswith("mtp.") and name.endswith(("o_proj.weight", "down_proj")):
                parameter.zero_()
    return model


def some_tokens() -> Tensor:
    """None of them twice: each row of the embedding is read at one place."""
    return torch.randperm(VOCAB, generator=torch.Generator().manual_seed(2))[:SEQ].unsqueeze(0)


def pulls(rows: int) -> Tensor:
    return torch.randn(1, rows, HIDDEN, generator=torch.Generator().manual_seed(3))


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def norm_back(x: Tensor, weight: Tensor, pull: Tensor, eps: float) -> Tensor:
    """The gradient at x of sum(pull * norm(x)): (g - n mean(g n)) / rms, with g = pull * weight and n = x / rms."""
    rms = (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    g, n = pull * weight, x / rms
    return (g - n * (g * n).mean(-1, keepdim=True)) / rms


def test_against_a_gradient_written_by_hand() -> None:
    """h' = norm(W [norm(e_{i+1}); norm(h_i)]), backwards by the chain rule, in double precision."""
    model, tokens, eps = made(silent=True), some_tokens(), 1e-6
    hidden = model(tokens).hidden.detach().requires_grad_()
    (output,) = model.predict_further(hidden, tokens)
    pull = pulls(SEQ - 1)
    found = torch.autograd.grad(
        (output.hidden * pull).sum(), [hidden, model.embed_tokens.weight], allow_unused=True, materialize_grads=True
    )

    module = model.mtp[0].double()
    e = model.embed_tokens.weight.detach().double()[tokens[:, 1:]]
    h = hidden.detach().double()[:, :-1]
    w = module.eh_proj.weight.detach()
    x = torch.cat((norm(e, module.enorm.weight, eps), norm(h, module.hnorm.weight, eps)), -1) @ w.T
    torch.testing.assert_close(
        output.hidden.detach().double(), norm(x, module.norm.weight, eps).detach(), rtol=0, atol=1e-5
    )
    back = norm_back(x, module.norm.weight, pull.double(), eps) @ w
    into_e = norm_back(e, module.enorm.weight, back[..., :HIDDEN], eps).detach()
    into_h = norm_back(h, module.hnorm.weight, back[..., HIDDEN:], eps).detach()

    assert float(found[0][:, -1].abs().max()) == 0, "the last place predicts nothing"
    torch.testing.assert_close(found[0][:, :-1].double(), into_h, rtol=0, atol=1e-5 * float(into_h.abs().max()))
    wanted = torch.zeros(VOCAB, HIDDEN, dtype=torch.float64)
    wanted[tokens[0, 1:]] = into_e[0]
    torch.testing.assert_close(found[1].double(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert int((found[1].abs().amax(-1) > 0).sum()) == SEQ - 1, "of the tokens read, and of the first not"


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
    model, tokens = made(modules=modules), some_tokens()
    replay = torch.stack([one.indices for one in model(tokens).routing], dim=1).unsqueeze(0)

    def loss() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        outputs = model.predict_further(model(tokens, replay=replay).hidden, tokens)
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
