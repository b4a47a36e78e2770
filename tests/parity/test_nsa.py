"""Native Sparse Attention equals two second writings, query by query and as published by fla-org; and the same bits in any batch."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.core.config import parse
from rorqual.core.errors import ConfigError
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import NSA, AttentionContext, NSAConfig
from rorqual.model.ffn import DenseConfig
from rorqual.model.load.find import family_for
from rorqual.model.training_cache import PackedBatchCache
from rorqual.ops.backends import TORCH, TORCH_INVARIANT, Backend
from rorqual.ops.paged import BLOCK
from rorqual.ops.rope import Rope, Yarn, rope_table

HIDDEN, LONG = 24, 2 * BLOCK + 11
YARN = Rope(theta=100.0, yarn=Yarn(factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=0.9))
VARIANTS = [(compress, separate) for compress in ("mean", "mlp") for separate in (False, True)]
every_variant = pytest.mark.parametrize(("compress", "separate_kv"), VARIANTS)
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
    context = AttentionContext(positions, None, ops, packed.table, ("selected_blocks",))
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
    slc, win = (kv, 2 * kv) if c.separate_kv else (0, 0)  # the first key-value head of the branch
    q, raw, v = ((x @ w.weight.T).view(n, -1, c.head_dim) for w in (m.q_proj, m.k_proj, m.v_proj))
    q, k = (
        torch.stack([torch.stack([turned(h, i, c.rope) for h in row]) for i, row in enumerate(t)]) for t in (q, raw)
    )
    gates = torch.sigmoid(x @ m.g_proj.weight.T).view(n, c.num_attention_heads, 3)

    def compressed(g: int, block: range) -> tuple[Tensor, Tensor]:
        if c.compress == "mean":
            return sum(k[s, g] for s in block) / size, sum(v[s, g] for s in block) / size  # type: ignore[return-value]
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


@every_variant
def test_outputs_selected_blocks_and_gradients_equal_the_equations(compress: str, separate_kv: bool) -> None:
    module = module_of(config(compress=compress, separate_kv=separate_kv), 3)
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
    for seed, (compress, separate_kv) in enumerate((VARIANTS[0], VARIANTS[-1])):
        module = module_of(config(compress=compress, separate_kv=separate_kv, **fields), seed)
        x = inputs(seed, SHORT)
        ours, blocks = attended(module, x, TORCH, (SHORT,))
        expected, sets = by_loops(copy.deepcopy(module).double(), x.double())
        assert relative(ours, expected) < 1e-5
        assert [[{*one.tolist()} - {-1} for one in row] for row in blocks] == sets


# ---- the published simplified form: one size of blocks, mean, shared keys and values


def published(m: NSA, x: Tensor) -> tuple[Tensor, Tensor]:
    """`naive_nsa_with_compression` of fla-org/native-sparse-attention, with dense masks: the output, and who selects which block."""
    c, n, size = m.config, len(x), m.config.select_block
    kv, group = c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads
    cos, sin = (t.double().unsqueeze(1) for t in rope_table(c.rope, c.head_dim, torch.arange(n)))

    def rotated(y: Tensor) -> Tensor:
        a, b = y.view(n, -1, c.head_dim).chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    q, k, v = rotated(m.q_proj(x)), rotated(m.k_proj(x)), m.v_proj(x).view(n, kv, -1)
    g_cmp, g_slc, g_swa = m.g_proj(x).sigmoid().view(n, -1, 3).unsqueeze(2).unbind(-1)
    blocks = -(-n // size)
    k_cmp, v_cmp = (F.pad(y, (0, 0, 0, 0, 0, blocks * size - n)).view(blocks, size, kv, -1).mean(1) for y in (k, v))
    k, v, k_cmp, v_cmp = (y.repeat_interleave(group, dim=1) for y in (k, v, k_cmp, v_cmp))
    t, s, b = torch.arange(n).unsqueeze(1), torch.arange(n), torch.arange(blocks)

    def weights(keys: Tensor, seen: Tensor) -> Tensor:
        scores = torch.einsum("thd,shd->hts", q, keys) * softmax_scale(c)
        return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()  # a query that sees nothing: 0

    p = weights(k_cmp, (b + 1) * size - 1 <= t)
    importance = p.detach().masked_fill(b == t // size, 1.0).unflatten(0, (kv, group)).sum(1)  # [kv, n, blocks]
    importance = importance.masked_fill(b > t // size, -1.0)
    best = importance.topk(min(c.num_selected_blocks, blocks), dim=-1)
    chosen = torch.zeros(kv, n, blocks, dtype=torch.bool).scatter(2, best.indices, best.values >= 0)
    chosen &= b <= t // size
    tokens = chosen.repeat_interleave(size, dim=2)[:, :, :n].repeat_interleave(group, dim=0) & (s <= t)
    out = torch.einsum("htb,bhd->thd", p, v_cmp) * g_cmp
    out = out + torch.einsum("hts,shd->thd", weights(k, tokens), v) * g_slc
    out = out + torch.einsum("hts,shd->thd", weights(k, (s <= t) & (t - s < c.window_size)), v) * g_swa
    return m.o_proj(out.flatten(1)), chosen.transpose(0, 1)


@backends
@pytest.mark.parametrize("seed", range(3))
def test_mean_and_shared_keys_equal_the_published_simplified_form(seed: int, ops: Backend) -> None:
    c = config(
        compress="mean", separate_kv=False, compress_block=8, num_selected_blocks=[3, 5, 20][seed], num_initial_blocks=0
    )
    module, x, weights = module_of(c, seed), inputs(seed), inputs(seed + 10)
    slow = copy.deepcopy(module).double()
    ours, blocks = attended(module, x, ops)
    expected, chosen = published(slow, x.double())
    assert relative(ours, expected) < 1e-5
    found = torch.zeros(*chosen.shape[:2], chosen.shape[2] + 1, dtype=torch.bool)
    found = found.scatter(2, blocks.where(blocks >= 0, chosen.shape[2]), True)[:, :, :-1]
    assert torch.equal(found, chosen)
    (ours * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    for (name, one), other in zip(module.named_parameters(), slow.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert relative(one.grad, other.grad) < 1e-5, name


# ---- laws


@torch.no_grad()
def test_a_tie_goes_to_the_earlier_block() -> None:
    """Queries of 0 give all compressed blocks one weight."""
    module = module_of(config(num_local_blocks=2, num_initial_blocks=1, num_selected_blocks=5), 0)
    module.q_proj.weight.zero_()
    _, blocks = attended(module, inputs(0, BLOCK), TORCH, (BLOCK,))
    for t, row in enumerate(blocks):
        own = t // 8
        always = sorted({0, own} | {max(0, own - 1)})
        others = [j for j in range(own) if j not in always]
        expected = (always + others)[:5]
        assert row.tolist() == [expected + [-1] * (5 - len(expected))] * 2


def model_config(attention: NSAConfig) -> ModelConfig:
    stage = Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=20))
    return ModelConfig(
        vocab_size=BASE_VOCAB, hidden_size=HIDDEN, stages=(stage,), max_position_embeddings=256, initializer_range=0.3
    )


def answers(model: Decoder, requests: list[Request], **settings: Any) -> list[tuple[list[int], list[float]]]:
    tokenizer = Tokenizer.byte_level()
    engine = Engine.of(model, tokenizer, chat_format(tokenizer, "deepseek"), engine_cores=1, reuse=False, **settings)
    return [(list(c.token_ids), list(c.logprobs)) for group in engine.generate(requests) for c in group]


@every_variant
def test_chunked_equals_whole_and_decode_equals_prefill_to_the_bit(compress: str, separate_kv: bool) -> None:
    """Decoded tokens are then read as a prompt, whose chunks end anywhere in a block; the random schedules are in tests/engine."""
    model = build(model_config(config(compress=compress, separate_kv=separate_kv)), seed=1)
    prompt = tuple(np.random.default_rng(0).integers(40, 200, BLOCK + 9).tolist())
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=5, ignore_eos=True)
    [(ids, logprobs)] = expected = answers(model, [Request(prompt_ids=prompt, params=params)], slots=1)
    for step_tokens in (16, 25, 31):
        other = Request(prompt_ids=prompt[: 2 * step_tokens - 1], params=params)
        assert (
            answers(model, [Request(prompt_ids=prompt, params=params), other], step_tokens=step_tokens)[:1] == expected
        )
    again = SamplingParams(max_tokens=1, temperature=1.0, seed=5, ignore_eos=True, prompt_logprobs=0)
    tokenizer = Tokenizer.byte_level()
    engine = Engine.of(model, tokenizer, chat_format(tokenizer, "deepseek"), engine_cores=1, reuse=False)
    [[read]] = engine.generate([Request(prompt_ids=(*prompt, *ids), params=again)])
    assert [*read.prompt_logprobs][-len(ids) :] == logprobs


# ---- training


# ---- cost


def test_costs_by_hand() -> None:
    """6 query and 2 key-value heads of 8, l = 4, 6 blocks of 8 tokens, a window of 7."""
    for compress, separate_kv in VARIANTS:
        c = config(compress=compress, separate_kv=separate_kv)
        kv = 16 * (3 if separate_kv else 1)
        maps = 100 * 48 + 2 * 100 * kv + 100 * 18 + 48 * 100
        phi = 32 * 16 + 16 * 8 if compress == "mlp" else 0  # for one block of a head's keys or values
        cost = c.cost(100, 0)
        assert cost.params == cost.active == maps + 2 * (phi + (16 if phi else 0))
        assert cost.flops == 2 * maps + 2 * 2 * phi * 2 // 4
        for context, attended_keys in ((1, 0 + 1 + 1), (30, 7 + 7 + 30), (400, 100 + 7 + 48)):
            assert c.decode_flops(100, context) == 4 * 48 * attended_keys
            assert c.cost(100, context).flops - cost.flops == 4 * 48 * attended_keys
        names = 6 if separate_kv else 3 if compress == "mlp" else 2
        assert c.cache_width() == sum(part.values for part in c.cache_spec()) == 16 * (names + 2 / 4)
        assert ("raw_key.0" in {part.name for part in c.cache_spec()}) == (compress == "mlp" and not separate_kv)
        saved = 5 * 48 + 18 + 16 * names + 8
        assert c.saved_values(100, everything=False) == saved
        assert c.saved_values(100, everything=True) == saved + 100 + (2 * 2 * (8 + 2 * 16 / 4) if phi else 0)
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
        ({"compress": "max"}, {"compress": "mlp"}, "'mean' or 'mlp'"),
        ({"compress_stride": 2}, {}, "unknown key 'stages.0.attention.compress_stride'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_fields_are_refused_beside_valid_twins(bad: dict[str, Any], twin: dict[str, Any], message: str) -> None:
    data = model_config(config()).model_dump(mode="json")
    valid = data["stages"][0]["attention"]
    data["stages"][0]["attention"] = valid | twin
    build(parse(ModelConfig, data, where="config"), seed=0)(torch.arange(40, 60).unsqueeze(0))
    data["stages"][0]["attention"] = valid | bad
    with pytest.raises(ConfigError, match=message):
        parse(ModelConfig, data, where="config")


def test_no_published_family_has_it() -> None:
    """So neither the Hugging Face nor the GGUF export writes it; both ask for the family first."""
    with pytest.raises(ConfigError, match="no published family can express this model") as caught:
        family_for(model_config(config()))
    assert "run directory" in caught.value.remedy
