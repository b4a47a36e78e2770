"""A backend's `linear` computes every linear map: in training, under LoRA, in the sampler's check and in an engine."""

from __future__ import annotations

import copy

import pytest
import torch
from little import documents, loud, packed, tiny, tokenizer
from torch import Tensor, nn

from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.adapter import LoRA
from rorqual.model.attention import GQAConfig
from rorqual.model.ffn import DenseConfig
from rorqual.ops.backends import REFERENCE, TORCH, Backend
from rorqual.ops.backends.torch_invariant import TorchInvariant
from rorqual.ops.row_limits import RowLimits
from rorqual.train.gradient import UpdateResult, compare_with_sampler, gradient, open_workers
from rorqual.train.objectives import MultiToken, NextToken

GQA = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True)


READ: set[int] = set()
"""The weights that `Twice` multiplied by."""


class Twice(Backend):
    """It returns twice the product, which is what doubled weights and biases give, to the bit."""

    name = "twice"

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        READ.add(weight.data_ptr())
        return 2 * super().linear(x, weight, bias)


class TwiceInvariant(Twice, TorchInvariant):
    name = "twice-invariant"


def dense(tied: bool) -> Decoder:
    stage = Stage(layers=2, attention=GQA, ffn=DenseConfig(intermediate_size=48))
    vocab = tokenizer().vocab_size
    return loud(ModelConfig(vocab_size=vocab, hidden_size=32, stages=(stage,), tie_word_embeddings=tied))


@torch.no_grad()
def doubled(model: Decoder) -> Decoder:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            for parameter in module.parameters():
                parameter.mul_(2)
    return model


def update_of(model: Decoder, threads: int) -> UpdateResult:
    with open_workers(threads) as pool:
        return gradient(model, (NextToken(), MultiToken()), packed(documents(3)), parts=2, pool=pool)


def by_twice(model: Decoder) -> Decoder:
    READ.clear()
    model.ops = Twice()
    return model


def maps(model: Decoder) -> dict[str, int]:
    return {name: module.weight.data_ptr() for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("threads", [1, 2])
def test_it_trains_every_map_of_a_mixture_with_latents_and_mtp(threads: int) -> None:
    model = loud(tiny())
    other = doubled(model)
    other.ops = REFERENCE
    expected = update_of(other, threads)
    found = update_of(by_twice(model), threads)
    assert found.loss == expected.loss
    assert {*maps(model).values()} == READ and len(READ) > 10
    names = {f"{name}.{kind}" for name in maps(model) for kind in ("weight", "bias")}
    for (name, _), one, two in zip(model.named_parameters(), found.grads, expected.grads, strict=True):
        assert torch.equal(one, 2 * two if name in names else two), name


def test_the_check_against_the_sampler_uses_it_too() -> None:
    model = by_twice(loud(tiny()))
    with open_workers(1) as pool:
        compare_with_sampler(model, (NextToken(),), [packed(documents(3))], parts=1, pool=pool)
    assert {pointer for name, pointer in maps(model).items() if not name.startswith("mtp")} == READ


def test_the_products_of_an_adapter_are_its_too() -> None:
    model = loud(tiny())
    LoRA(r=2).attach(model, seed=1)
    update_of(by_twice(model), 1)
    pairs = {p.data_ptr() for name, p in model.named_parameters() if name.endswith(("lora_A", "lora_B"))}
    assert pairs and pairs <= READ
    assert {p.data_ptr() for name, p in model.named_parameters() if name.endswith("o_proj.weight")} <= READ


def test_it_is_called_in_tiles_where_a_processor_needs_them() -> None:
    """As on processors whose bf16 products depend on the number of rows; a tied head is a map of its own there."""
    model, ops = dense(tied=True), TwiceInvariant()
    ops.rows = RowLimits(1, most=4)
    READ.clear()
    bound = ops.bind(model)
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(bound.logits(hidden), 2 * TORCH.bind(model).logits(hidden))
    assert {model.embed_tokens.weight.data_ptr()} == READ
    bound(torch.arange(9)[None], torch.arange(9)[None])
    assert {*maps(model).values()} <= READ
