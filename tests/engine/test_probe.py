"""Whether the promise of the same bits is said to hold where it does, and not where it does not."""

from __future__ import annotations

import pytest
import torch
from scaled import make_model
from torch import nn

from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.adapter import LoRA
from rorqual.model.adapter.lora import LoRALinear
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.ops.backends.torch_invariant import (
    CHOICES,
    ProductKind,
    TiledLinear,
    _is_invariant,
    _product_function,
    find_row_limits,
    products_of,
)
from rorqual.ops.paged import BLOCK
from rorqual.ops.row_limits import WIDE, RowLimits, cancelling_rows


def shapes(model: Decoder) -> list[tuple[int, int]]:
    return [
        (part.width, BLOCK // part.every) for attention in model.config.attentions for part in attention.cache_spec()
    ]


@pytest.mark.parametrize(("head_dim", "kept"), [(16, True), (20, True), (18, False), (22, False)])
def test_heads_of_odd_widths_are_promised_nothing(head_dim: int, kept: bool) -> None:
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim)
    stage = Stage(layers=1, attention=attention, ffn=DenseConfig(intermediate_size=48))
    model = build(ModelConfig(vocab_size=264, hidden_size=32, stages=(stage,), max_position_embeddings=128), seed=1)
    rows, found, _ = find_row_limits(model, shapes(model), 1)
    assert found is kept and rows in CHOICES


@pytest.mark.parametrize("kind", ["map", "packed", "transposed", "straight"])
def test_narrow_products_agree_wherever_their_rows_stand(kind: ProductKind) -> None:
    """Where the probe promises it: 200 placements of a random number of rows."""
    generator, promised = torch.Generator().manual_seed(0), 0
    for width in (7, 12, 14, 24, 64):
        for out in (1, 2, 5, 6, 9, 11, 16, 33):
            rows = next((r for r in CHOICES if _is_invariant(kind, width, out, torch.float32, r, 1)), None)
            if rows is None:
                continue
            promised += 1
            x, matrix = cancelling_rows(20 * rows.least, out, width, torch.float32)
            product = _product_function(kind, matrix, rows.most)
            expected = product(x)
            for _ in range(200):
                count = rows.least * int(torch.randint(1, 21, (1,), generator=generator))
                place = torch.randperm(len(x), generator=generator)[:count]
                assert torch.equal(product(x[place]), expected[place]), (width, out, rows)
    assert promised > 10


def test_every_width_of_a_model_is_tried() -> None:
    """A map, the head and the embedding that is one, attention's two products, the router, experts, latents."""
    mla = MLAConfig(
        num_attention_heads=3, q_lora_rank=24, kv_lora_rank=36, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=28
    )
    ffn = MoEConfig(n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=40, n_shared_experts=1)
    stage = Stage(layers=1, attention=mla, ffn=ffn)
    for tied in (False, True):
        config = ModelConfig(vocab_size=264, hidden_size=32, stages=(stage,), tie_word_embeddings=tied)
        model = build(config, seed=1).bfloat16()
        found = set(products_of(model, shapes(model)))
        fp32, bf16 = torch.float32, torch.bfloat16
        assert {
            ("map", 32, 264, bf16), ("map", 32, 24, bf16), ("map", 24, 60, bf16), ("map", 32, 5, fp32), ("map", 40, 32, bf16),
            ("map", 32, 80, bf16), ("straight", 12, 36, bf16), ("transposed", 36, 28, bf16), ("transposed", 44, 64, bf16),
            ("straight", 64, 44, bf16),
        } <= found  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("r", [4, 8, 16])
def test_an_adapters_products_are_tried_and_what_is_promised_of_them_holds(
    tokenizer: Tokenizer, chat: ChatFormat, dtype: torch.dtype, r: int
) -> None:
    """Rows wide enough to be cut on AMX, and as narrow between LoRA's two matrices as they are in use. 32 at once, and one alone."""
    attention = GQAConfig(num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    stage = Stage(layers=1, attention=attention, ffn=DenseConfig(intermediate_size=1536))
    config = ModelConfig(
        vocab_size=264, hidden_size=576, stages=(stage,), max_position_embeddings=128, initializer_range=0.2
    )
    model = build(config, seed=1)
    LoRA(r=r).attach(model, seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    model = model.to(dtype)
    rows, held, _ = find_row_limits(model, shapes(model), 1)
    found = set(products_of(model, shapes(model)))
    assert {("map", 576, 192, dtype), ("map", 576, r, dtype), ("map", r, 192, dtype)} <= found
    assert held is all(_is_invariant(*product, rows, 1) for product in found)
    engine = Engine.of(model, tokenizer, chat, slots=40, engine_cores=1)
    assert engine.invariant is held
    requests = [
        Request(
            prompt_ids=tuple(3 + (n * 31 + i * 7) % 250 for i in range(5 + n)), params=SamplingParams(max_tokens=12)
        )
        for n in range(32)
    ]
    together = engine.generate(requests)
    alone = [engine.generate([request])[0] for request in requests[::6]]
    if held:
        assert [(a.token_ids, a.logprobs) for [a] in alone] == [(b.token_ids, b.logprobs) for [b] in together[::6]]


@pytest.mark.parametrize(("width", "r"), [(1024, 8), (96, 600), (96, 8)])
def test_an_adapted_map_is_cut_where_anything_in_it_is_wide(
    monkeypatch: pytest.MonkeyPatch, width: int, r: int
) -> None:
    """Its rows, or those between its two narrow matrices."""
    other = LoRALinear(nn.Linear(width, 640), r, 2.0, torch.Generator().manual_seed(0))
    nn.init.normal_(other.lora_B, generator=torch.Generator().manual_seed(1))
    seen: list[int] = []
    whole = other.forward
    monkeypatch.setattr(other, "forward", lambda x: seen.append(len(x)) or whole(x))  # type: ignore[func-returns-value]
    tile = TiledLinear(other, 16)
    x = torch.randn(40, width, generator=torch.Generator().manual_seed(2))
    y = tile(x)
    assert seen == ([16, 16, 8] if max(width, r) >= WIDE else [40])
    assert torch.allclose(y, whole(x), atol=1e-4)
    assert torch.equal(tile.weight, other.weight)


def test_an_adapter_that_comes_and_goes_is_looked_at_anew(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    model = make_model("gqa", context=128)
    engine = Engine.of(model, tokenizer, chat, slots=4)
    assert engine.invariant
    looks: list[int] = []
    found = find_row_limits(model, shapes(model), 1)

    def look(model: Decoder, shapes: list[tuple[int, int]], threads: int) -> tuple[RowLimits, bool, int]:
        looks.append(sum(isinstance(module, LoRALinear) for module in model.modules()))
        return (RowLimits(16, 16), False, 1) if looks[-1] else found

    monkeypatch.setattr("rorqual.ops.backends.torch_invariant.find_row_limits", look)
    engine.generate([(3, 4, 5)], SamplingParams(max_tokens=2))
    with torch.no_grad():
        model.embed_tokens.weight.mul_(1.0)
    engine.generate([(3, 4, 5)], SamplingParams(max_tokens=2))
    assert looks == [0] and engine.invariant, "other weights of the same shapes"
    LoRA(r=4).attach(model, seed=0)
    engine.generate([(3, 4, 5)], SamplingParams(max_tokens=2))
    assert looks == [0, 21] and not engine.invariant
    assert {core.runner.backend.rows for core in engine._cores} == {RowLimits(16, 16)}
