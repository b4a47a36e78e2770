"""Embeddings in: `forward` reads `inputs_embeds` as it reads the tokens whose embeddings they are, to the bit; with rows of their own, as a
model does that has these rows in its table. Cached: tests/engine/test_cached_forward.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.adapter import trained_parameters
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.init import init_weights
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend

VOCAB, HIDDEN, SEQ, PICTURE = 40, 32, 12, 39
GQA = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
MLATENT = MLAConfig(
    num_attention_heads=4, q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
)
MOE = MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=12)
TOKENS = torch.randint(PICTURE, (2, SEQ), generator=torch.Generator().manual_seed(0))
SEGMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3])


def made(ops: Backend = REFERENCE, vocab: int = VOCAB) -> Decoder:
    stages = (
        Stage(layers=1, attention=GQA, ffn=DenseConfig(intermediate_size=24)),
        Stage(layers=1, attention=MLATENT, ffn=MOE),
    )
    model = Decoder(ModelConfig(vocab_size=vocab, hidden_size=HIDDEN, stages=stages, num_nextn_predict_layers=2), ops)
    init_weights(model, 0.3, 0)
    return model


def answers(model: Decoder, tokens: Tensor, embeds: Tensor | None, *, cut: bool) -> list[Tensor]:
    """Logits of the main model and of every module that predicts further."""
    segments = SEGMENTS if cut else None
    hidden = model(tokens, segments=segments, inputs_embeds=embeds).hidden
    further = model.predict_with_mtp(hidden, tokens, segments=segments, inputs_embeds=embeds)
    return [model.logits(hidden), *(model.logits(one.hidden) for one in further)]


MODELS: dict[str, Callable[[], Decoder]] = {
    "reference": lambda: made(REFERENCE),
    "torch": lambda: made(TORCH),
    "torch-invariant": lambda: made(TORCH_INVARIANT),
}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_embeddings_of_the_tokens_are_the_tokens(name: str, cut: bool) -> None:
    """Values and gradients, the table's among them."""
    found = []
    for embedded in (False, True):
        model = MODELS[name]()
        embeds = model.embed(TOKENS) if embedded else None
        logits = answers(model, TOKENS, embeds, cut=cut and model.ops is not TORCH_INVARIANT)
        sum((one * torch.linspace(-1, 1, VOCAB)).sum() for one in logits).backward()  # type: ignore[union-attr]
        names = sorted(trained_parameters(model))
        found.append((logits, [trained_parameters(model)[name].grad for name in names]))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(one, other)
    assert any(grad is not None and grad.any() for grad in found[0][1])
    for name, mine, theirs in zip(names, found[0][1], found[1][1], strict=True):
        if name == "embed_tokens.weight":  # to which the modules that predict further add theirs in another order
            assert mine is not None and theirs is not None
            assert (mine - theirs).abs().max() <= 1e-5 * mine.abs().max()
        else:
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)  # type: ignore[arg-type]


@torch.no_grad()
def test_rows_of_their_own_are_as_rows_of_the_table() -> None:
    """Behind equal placeholders stand rows that a larger model has in its table, under ids of their own."""
    model, larger = made(), made(vocab=VOCAB + 3)
    rows = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(5))
    table = torch.cat((model.embed_tokens.weight, rows))
    state = model.state_dict()
    state |= {
        name: table if "embed" in name else torch.cat((state[name], rows))
        for name in state
        if name in ("embed_tokens.weight", "lm_head.weight")
    }
    larger.load_state_dict(state)
    holes, ids = TOKENS.clone(), TOKENS.clone()
    holes[1, 3:6], ids[1, 3:6] = PICTURE, torch.arange(VOCAB, VOCAB + 3)
    embeds = model.embed(holes)
    embeds[1, 3:6] = rows
    found = answers(model, holes, embeds, cut=False)
    for ours, theirs in zip(found, answers(larger, ids, None, cut=False), strict=True):
        assert torch.allclose(ours, theirs[..., :VOCAB], rtol=0, atol=1e-5 * float(theirs.abs().max()))
    for ours, others in zip(found, answers(model, holes, None, cut=False), strict=True):
        assert (ours - others)[1, 3:].abs().max() > 1e-2 * ours.abs().max()
        assert torch.allclose(ours[0], others[0], rtol=0, atol=1e-5 * float(others.abs().max()))
