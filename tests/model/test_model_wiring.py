"""What a layer is handed on: epsilon, angles, the place in a replay, biases, repacked copies; by second writings and laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from rorqual.core.errors import DataError
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import AttentionConfig, GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, FFNConfig, MoEConfig
from rorqual.model.init import init_weights
from rorqual.model.meta_device import build_on_meta_device
from rorqual.model.training_cache import PackedBatchCache
from rorqual.ops.backends import REFERENCE, TORCH_INVARIANT, Backend

VOCAB, HIDDEN, SEQ = 40, 32, 14
DENSE = DenseConfig(intermediate_size=24)
MOE = MoEConfig(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=12, n_shared_experts=1)


def moe(**router: Any) -> MoEConfig:
    return MOE.model_copy(update={"router": MOE.router.model_copy(update=router)})


GQA = GQAConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=8)
MLATENT = MLAConfig(
    num_attention_heads=3, q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8
)
TOKENS = torch.randint(VOCAB, (2, SEQ), generator=torch.Generator().manual_seed(0))


def config(*stages: tuple[AttentionConfig, FFNConfig], **fields: Any) -> ModelConfig:
    layers = tuple(Stage(layers=1, attention=attention, ffn=ffn) for attention, ffn in stages)
    return ModelConfig(vocab_size=VOCAB, hidden_size=HIDDEN, stages=layers, **fields)


def built(config: ModelConfig, ops: Backend = REFERENCE) -> Decoder:
    return build(config.model_copy(update={"initializer_range": 0.3}), seed=1, ops=ops)


# ---- norms


@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_every_norm_has_the_epsilon_of_the_model(eps: float) -> None:
    """Also those inside the attention and inside the prediction modules."""
    stages = ((GQA.model_copy(update={"qk_norm": True}), DENSE), (MLATENT, MOE))
    model = Decoder(config(*stages, rms_norm_eps=eps, num_nextn_predict_layers=1))
    found = {name: module.eps for name, module in model.named_modules() if hasattr(module, "eps")}
    assert len(found) == 4 + 4 + 1 + 4 + 3 and set(found.values()) == {eps}


# ---- attention


# ---- what layers tell a backend, which repacks a copy by it


# ---- the router in the model


@torch.no_grad()
def test_a_tokens_affinities_have_bits_of_their_own() -> None:
    """However many tokens there are, in the operations that promise it: the exponential is theirs, too."""
    (router,) = built(config((GQA, MOE)), TORCH_INVARIANT).routing_ffns()
    x = torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(4))
    whole = router(x, TORCH_INVARIANT, None)[1].scores  # type: ignore[union-attr]
    for count in range(16, 40):
        assert torch.equal(router(x[:count], TORCH_INVARIANT, None)[1].scores, whole[:count]), count  # type: ignore[union-attr]


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_fp32_of_a_model_in_bf16(tied: bool) -> None:
    model = built(config((GQA, DENSE), tie_word_embeddings=tied)).bfloat16()
    logits = model.logits(model(TOKENS).hidden)
    assert logits.dtype == torch.float32 and logits.shape == (2, SEQ, VOCAB)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_group": 4}, "multiple of n_group"),
        ({"n_group": 2, "topk_group": 3}, "topk_group"),
        ({"n_group": 2, "topk_group": 1, "num_experts_per_tok": 4}, "num_experts_per_tok"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok"),
        ({"n_group": 6, "topk_group": 2}, "top2"),
    ],
    ids=["rest", "groups", "experts of groups", "experts", "two best of one"],
)
def test_a_router_whose_numbers_contradict_each_other_is_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config((GQA, moe(**fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"n_group": 3, "topk_group": 3, "num_experts_per_tok": 6},
        {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 3},
        {"num_experts_per_tok": 6},
        {"n_group": 6, "topk_group": 2, "group_score": "max"},
        {"n_routed_experts": 2, "num_experts_per_tok": 1},
    ],
    ids=["all groups", "all of a group", "all", "groups of one", "two"],
)
def test_the_most_that_a_router_can_be_asked_for_runs(fields: dict[str, Any]) -> None:
    model = built(config((GQA, asked := moe(**fields))))
    (routing,) = model(TOKENS).routing
    assert routing.indices.shape[1] == asked.router.num_experts_per_tok == asked.experts_per_token()
    assert all(len(set(row)) == len(row) for row in routing.indices.tolist())


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (GQA.model_copy(update={"num_key_value_heads": 4}), "num_key_value_heads"),
        (GQA.model_copy(update={"head_dim": 7}), "even"),
        (MLATENT.model_copy(update={"qk_rope_head_dim": 5}), "even"),
    ],
    ids=["heads", "width", "shared key"],
)
def test_an_attention_that_cannot_be_divided_is_refused(attention: AttentionConfig, message: str) -> None:
    config((GQA, DENSE), (MLATENT, DENSE))
    with pytest.raises(ValidationError, match=message):
        config((GQA, DENSE), (attention, DENSE))


# ---- weights, rows and what is counted


def test_weights_follow_the_names_and_not_the_order_in_which_parts_were_made() -> None:
    one, other = nn.Module(), nn.Module()
    for module, names in ((one, "ab"), (other, "ba")):
        for name in names:
            module.register_module(name, nn.Linear(4, 3))
        init_weights(module, 0.5, 7)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not one.a.bias.any() and one.a.weight.all()  # type: ignore[union-attr]


@pytest.mark.parametrize("make", [lambda c, o: build(c, seed=0, ops=o), build_on_meta_device], ids=["built", "empty"])
def test_a_model_runs_on_the_operations_that_it_was_given(make: Callable[[ModelConfig, Backend], Decoder]) -> None:
    assert [make(config((GQA, DENSE)), ops).ops for ops in (REFERENCE, TORCH_INVARIANT)] == [REFERENCE, TORCH_INVARIANT]


def test_a_segment_that_goes_on_where_another_ended_is_no_whole_document() -> None:
    positions = torch.arange(4).unsqueeze(0)
    PackedBatchCache(positions, torch.tensor([[3, 3, 3, 3]]), [], TORCH_INVARIANT.attention)
    for segments in ([0, 0, 1, 1], [0, 0, 0, 1]):
        with pytest.raises(DataError, match="position 0"):
            PackedBatchCache(positions, torch.tensor([segments]), [], TORCH_INVARIANT.attention)


def test_a_router_without_a_bias_has_none_to_keep_or_to_move() -> None:
    for biased in (True, False):
        model = Decoder(config((GQA, moe(score_bias=biased))))
        assert any(name.endswith("correction_bias") for name in model.state_dict()) is biased
        model.routing_ffns()[0].balance(torch.arange(6), 0.5)
        moved = [(name, buffer) for name, buffer in model.named_buffers() if bool(buffer.any())]
        assert [name for name, _ in moved] == ["layers.0.ffn.router.e_score_correction_bias"] * biased
