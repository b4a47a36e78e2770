"""Training rows in the engine's arithmetic: a document's bits are its own, however it was packed, and gradients pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rorqual.core.errors import DataError
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import AttentionConfig, GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.training_cache import PackedBatchCache
from rorqual.ops.backends import TORCH, TORCH_INVARIANT
from rorqual.ops.paged import BLOCK

ATTENTION: dict[str, AttentionConfig] = {
    "mla": MLAConfig(
        num_attention_heads=3, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=12, q_lora_rank=20
    ),
    "gqa": GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=12, qk_norm=True, attention_bias=True),
}
MOE = MoEConfig(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=20, n_shared_experts=1)
LENGTHS = (70, 5, BLOCK, 1, BLOCK + 1, 130)


@pytest.fixture(params=ATTENTION)
def model(request: pytest.FixtureRequest) -> Decoder:
    attention = ATTENTION[request.param]
    stages = (
        Stage(layers=1, attention=attention, ffn=DenseConfig(intermediate_size=40)),
        Stage(layers=2, attention=attention, ffn=MOE),
    )
    config = ModelConfig(vocab_size=60, hidden_size=36, stages=stages, initializer_range=0.3)
    return build(config, seed=1, ops=TORCH_INVARIANT)


def documents() -> list[Tensor]:
    return [torch.randint(60, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]


def row(docs: list[Tensor], room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and segments [1, room] of documents one after another, and padding, as `data.pack` lays them."""
    tokens, positions, segments = (torch.zeros(1, room, dtype=torch.long) for _ in range(3))
    segments.fill_(-1)
    at = 0
    for number, doc in enumerate(docs):
        here = slice(at, at + len(doc))
        tokens[0, here], positions[0, here], segments[0, here] = doc, torch.arange(len(doc)), number
        at += len(doc)
    return tokens, positions, segments


@torch.no_grad()
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 3, 1, 0, 4, 2)])
def test_a_document_in_a_row_has_the_bits_it_has_in_any_other(model: Decoder, order: tuple[int, ...]) -> None:
    docs = documents()
    alone = [model(*row([doc], len(doc) + 7)[:2], segments=row([doc], len(doc) + 7)[2]).hidden[0] for doc in docs]
    tokens, positions, segments = row([docs[i] for i in order], sum(LENGTHS) + 3)
    hidden, at = model(tokens, positions, segments=segments).hidden[0], 0
    for i in order:
        assert torch.equal(hidden[at : at + LENGTHS[i]], alone[i][: LENGTHS[i]])
        at += LENGTHS[i]
    model.ops = TORCH
    fast = model(tokens, positions, segments=segments).hidden[0]
    assert not torch.equal(fast, hidden), "the fast operations round in another way"
    torch.testing.assert_close(fast[:at], hidden[:at], rtol=1e-4, atol=1e-4)


def test_padding_gets_no_gradient_and_gives_none(model: Decoder) -> None:
    tokens, positions, segments = row(documents()[:2], 90)
    out = model(tokens, positions, segments=segments).hidden
    (grad,) = torch.autograd.grad(out[0, :75].sum(), model.embed_tokens.weight, retain_graph=True)
    assert grad.isfinite().all() and grad[tokens[0, :75]].abs().amax(-1).gt(0).all()
    tokens[0, 75:] = 1
    again = model(tokens, positions, segments=segments).hidden
    assert torch.equal(again[0, :75], out[0, :75])


@pytest.mark.parametrize("wrong", [[1, 2, 3], [0, 1, 3], [0, 1, 1]])
def test_documents_that_are_not_whole_are_refused(wrong: list[int]) -> None:
    with pytest.raises(DataError, match="position 0"):
        PackedBatchCache(torch.tensor([wrong]), None, [], TORCH_INVARIANT.attention)


def test_padding_fills_blocks_together() -> None:
    """Also between documents: 70 padding tokens are documents of 64 and 6 tokens, and the documents keep their places."""
    positions = torch.tensor([[*range(5), *[0] * 70, *range(3), *[0] * 2]])
    segments = torch.tensor([[0] * 5 + [-1] * 70 + [1] * 3 + [-1] * 2])
    packed = PackedBatchCache(positions, segments, [], TORCH_INVARIANT.attention)
    blocks = packed.row_indices(1)[1]
    assert len(blocks) == 5 * BLOCK
    assert [int((one < 80).sum()) for one in blocks.split(BLOCK)] == [5, 64, 6, 3, 2]
    assert blocks.view(5, BLOCK)[3, :3].tolist() == [75, 76, 77]
