"""Native Sparse Attention equals a second writing of its equations, query by query: outputs, selected blocks and gradients."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rorqual.core.config import parse_config
from rorqual.core.errors import ConfigError
from rorqual.data.tokenizer import BASE_VOCAB
from rorqual.model import ModelConfig, Stage, build
from rorqual.model.attention import NSA, AttentionContext, NSAConfig
from rorqual.model.ffn import DenseConfig
from rorqual.model.load.find import family_for
from rorqual.model.training_cache import PackedBatchCache
from rorqual.ops.backends import TORCH, TORCH_INVARIANT, Backend
from rorqual.ops.paged import BLOCK
from rorqual.ops.rope import Rope, Yarn, rope_table

HIDDEN, LONG = 24, 2 * BLOCK + 11
YARN = Rope(theta=100.0, yarn=Yarn(factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=0.9))
backends = pytest.mark.parametrize("ops", [TORCH, TORCH_INVARIANT], ids=lambda ops: ops.name)


def config(**fields: Any) -> NSAConfig:
    given: dict[str, Any] = {
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "compress_block": 4, "select_block": 8,
        "num_selected_blocks": 6, "num_initial_blocks": 2, "num_local_blocks": 1, "window_size": 7, "rope": YARN,
    }  # fmt: skip
    return NSAConfig(**given | fields)


def module_of(c: NSAConfig, seed: int) -> NSA:
    """Weights under which attention is peaked and gates differ: with fresh ones all distributions are uniform."""
    generator = torch.Generator().manual_seed(seed)
    module = c.build(HIDDEN, 1e-6)
    assert isinstance(module, NSA)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            scale = {"q_proj": 3.0, "g_proj": 2.0}.get(name.split(".")[0], 1.0)
            size = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size * scale)
    return module


def inputs(seed: int, length: int = LONG) -> Tensor:
    return torch.randn(length, HIDDEN, generator=torch.Generator().manual_seed(seed))


def attended(module: NSA, x: Tensor, ops: Backend, lengths: tuple[int, ...] = (LONG,)) -> tuple[Tensor, Tensor]:
    """The output for x [tokens, hidden], documents of `lengths` tokens, and the blocks selected by each key-value head."""
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).unsqueeze(0)
    packed = PackedBatchCache(positions, documents, [module.config.cache_layout()], ops.attention)
    context = AttentionContext(positions, None, ops, packed.rope_cos_sin, ("selected_blocks",))
    out = module(x.unsqueeze(0), context, packed.layer(0))[0]
    [blocks] = context.recorded["selected_blocks"]
    return out, blocks


def relative(ours: Tensor, expected: Tensor) -> float:
    ours, expected = ours.detach().double(), expected.detach()
    return float((ours - expected).abs().max() / expected.abs().max())


# ---- the equations, query by query


def turned(x: Tensor, position: int, rope: Rope) -> Tensor:
    """One vector with half-split RoPE."""
    cos, sin = (t[0].double() for t in rope_table(rope, len(x), torch.tensor([position])))
    a, b = x.chunk(2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin))


def softmax_scale(c: NSAConfig) -> float:
    yarn = c.rope.yarn
    return c.head_dim**-0.5 * ((0.1 * yarn.mscale_all_dim * math.log(yarn.factor) + 1) ** 2 if yarn else 1.0)


def mlp(maps: Any, rows: list[Tensor]) -> Tensor:
    hidden = maps.up_proj.weight @ torch.cat(rows) + maps.up_proj.bias
    return maps.down_proj.weight @ (hidden * torch.sigmoid(hidden))


def by_loops(m: NSA, x: Tensor) -> tuple[Tensor, list[list[set[int]]]]:
    """Equations 5 to 12 of the paper for x [tokens, hidden] in fp64: the output, and the blocks that each query's groups select."""
    c, n, kv = m.config, len(x), m.config.num_key_value_heads
    group, size, wide = c.num_attention_heads // kv, c.compress_block, c.select_block
    slc, win = kv, 2 * kv  # the first key-value head of the branch
    q, raw, v = ((x @ w.weight.T).view(n, -1, c.head_dim) for w in (m.q_proj, m.k_proj, m.v_proj))
    q, k = (
        torch.stack([torch.stack([turned(h, i, c.rope) for h in row]) for i, row in enumerate(t)]) for t in (q, raw)
    )
    gates = torch.sigmoid(x @ m.g_proj.weight.T).view(n, c.num_attention_heads, 3)

    def compressed(g: int, block: range) -> tuple[Tensor, Tensor]:
        key = turned(mlp(m.k_compress, [raw[s, g] for s in block]), block[-1], c.rope)
        return key, mlp(m.v_compress, [v[s, g] for s in block])

    entries = [[compressed(g, range(i, i + size)) for i in range(0, n + 1 - size, size)] for g in range(kv)]

    def attention(query: Tensor, seen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        if not seen:
            return torch.zeros_like(query), query.new_zeros(0)
        weights = torch.stack([query @ key * softmax_scale(c) for key, _ in seen]).softmax(0)
        return sum(w * value for w, (_, value) in zip(weights, seen)), weights  # type: ignore[return-value]

    outs, selected = [], []
    for t in range(n):
        heads, sets = [], []
        for g in range(kv):
            queries = q[t, g * group : (g + 1) * group]
            far = [attention(query, entries[g][: (t + 1) // size]) for query in queries]
            importance = [0.0] * (t // wide + 1)
            for _, weights in far:
                for i, weight in enumerate(weights.tolist()):
                    importance[i * size // wide] += weight
            for j in range(len(importance)):
                if j < c.num_initial_blocks or j > t // wide - c.num_local_blocks:
                    importance[j] = math.inf
            best = sorted(range(len(importance)), key=lambda j: (-importance[j], j))[: c.num_selected_blocks]
            sets.append({*best})
            some = [(k[s, slc + g], v[s, slc + g]) for s in range(t + 1) if s // wide in best]
            near = [(k[s, win + g], v[s, win + g]) for s in range(max(0, t + 1 - c.window_size), t + 1)]
            for h, query in enumerate(queries):
                gate = gates[t, g * group + h]
                branches = far[h][0], attention(query, some)[0], attention(query, near)[0]
                heads.append(sum(gate[i] * out for i, out in enumerate(branches)))
        outs.append(m.o_proj.weight @ torch.cat(heads))
        selected.append(sets)
    return torch.stack(outs), selected


SHORT = BLOCK + 21
"""Tokens in a comparison with `by_loops`: more than one block of the cache."""


def test_outputs_selected_blocks_and_gradients_equal_the_equations() -> None:
    module = module_of(config(), 3)
    x, weights = inputs(0, SHORT), inputs(1, SHORT)
    slow = copy.deepcopy(module).double()
    ours, blocks = attended(module, x, TORCH, (SHORT,))
    expected, sets = by_loops(slow, x.double())
    assert relative(ours, expected) < 1e-5
    assert [[{*one.tolist()} - {-1} for one in row] for row in blocks] == sets
    (ours * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    for (name, one), other in zip(module.named_parameters(), slow.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert relative(one.grad, other.grad) < 1e-5, name


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [
        {"num_key_value_heads": 1, "head_dim": 6, "compress_block": 2, "select_block": 6, "rope": Rope()},
        {"num_key_value_heads": 6, "num_initial_blocks": 0, "num_selected_blocks": 3},
        {"num_local_blocks": 3, "num_initial_blocks": 1, "num_selected_blocks": 4, "window_size": 30},
        {"compress_block": 16, "select_block": 16, "num_selected_blocks": 4},
        {"compress_block": 64, "select_block": 64, "num_selected_blocks": 3, "window_size": 1},
    ],
    ids=["one group", "no initial block", "three local blocks", "one size", "blocks of the cache"],
)
def test_every_size_is_read(fields: dict[str, Any]) -> None:
    for seed in range(2):
        module = module_of(config(**fields), seed)
        x = inputs(seed, SHORT)
        ours, blocks = attended(module, x, TORCH, (SHORT,))
        expected, sets = by_loops(copy.deepcopy(module).double(), x.double())
        assert relative(ours, expected) < 1e-5
        assert [[{*one.tolist()} - {-1} for one in row] for row in blocks] == sets


# ---- laws


def model_config(attention: NSAConfig) -> ModelConfig:
    stage = Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=20))
    return ModelConfig(
        vocab_size=BASE_VOCAB, hidden_size=HIDDEN, stages=(stage,), max_position_embeddings=256, initializer_range=0.3
    )


# ---- training


# ---- cost


def test_costs_by_hand() -> None:
    """6 query and 2 key-value heads of 8, l = 4, 6 blocks of 8 tokens, a window of 7."""
    c = config()
    maps = 100 * 48 + 2 * 100 * 48 + 100 * 18 + 48 * 100
    phi = 32 * 16 + 16 * 8  # for one block of a head's keys or values
    cost = c.cost(100, 0)
    assert cost.params == cost.active == maps + 2 * (phi + 16)
    assert cost.flops == 2 * maps + 2 * 2 * phi * 2 // 4
    for context, attended_keys in ((1, 0 + 1 + 1), (30, 7 + 7 + 30), (400, 100 + 7 + 48)):
        assert c.decode_flops(100, context) == 4 * 48 * attended_keys
        assert c.cost(100, context).flops - cost.flops == 4 * 48 * attended_keys
    assert c.cache_width() == sum(part.values_per_token for part in c.cache_spec()) == 16 * (6 + 2 / 4)
    saved = 5 * 48 + 18 + 16 * 6 + 8
    assert c.saved_activations(100, without_recomputation=False) == saved
    assert c.saved_activations(100, without_recomputation=True) == saved + 100 + 2 * 2 * (8 + 2 * 16 / 4)
    assert c.split_by_tp() == {"num_attention_heads": 6, "num_key_value_heads": 2}


# ---- bad input


@pytest.mark.parametrize(
    ("bad", "twin", "message"),
    [
        (
            {"compress_block": 12, "select_block": 12},
            {"compress_block": 16, "select_block": 16},
            "12 does not divide 64",
        ),
        ({"compress_block": 1}, {"compress_block": 2}, "compress_block"),
        ({"select_block": 10}, {"select_block": 12}, "select_block 10 is not a multiple of compress_block 4"),
        ({"num_selected_blocks": 2}, {"num_selected_blocks": 3}, "num_selected_blocks 2 is smaller than 3"),
        ({"num_local_blocks": 5}, {"num_local_blocks": 4}, "num_selected_blocks 6 is smaller than 7"),
        ({"num_local_blocks": 0}, {"num_initial_blocks": 0}, "num_local_blocks"),
        ({"window_size": 0}, {"window_size": 1}, "window_size"),
        ({"num_key_value_heads": 4}, {"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"head_dim": 7}, {"head_dim": 6}, "head_dim must be even"),
        ({"compress_stride": 2}, {}, "unknown key 'stages.0.attention.compress_stride'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_fields_are_refused_beside_valid_twins(bad: dict[str, Any], twin: dict[str, Any], message: str) -> None:
    data = model_config(config()).model_dump(mode="json")
    valid = data["stages"][0]["attention"]
    data["stages"][0]["attention"] = valid | twin
    build(parse_config(ModelConfig, data, where="config"), seed=0)(torch.arange(40, 60).unsqueeze(0))
    data["stages"][0]["attention"] = valid | bad
    with pytest.raises(ConfigError, match=message):
        parse_config(ModelConfig, data, where="config")


def test_no_published_family_has_it() -> None:
    """So neither the Hugging Face nor the GGUF export writes it; both ask for the family first."""
    with pytest.raises(ConfigError, match="no published family can express this model") as caught:
        family_for(model_config(config()))
    assert "run directory" in caught.value.remedy
