"""The indexer's losses equal a plain second writing, in value and gradient, and train nothing but the indexer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.adapter import IndexerTuning, trained_parameters
from rorqual.model.attention import DSA, DSAConfig
from rorqual.model.ffn import DenseConfig
from rorqual.ops.backends import REFERENCE
from rorqual.ops.rope import Rope
from rorqual.train.batch import TrainBatch
from rorqual.train.gradient import gradient, open_workers
from rorqual.train.objectives import IndexerSparse, IndexerWarmup, Objective

LENGTHS = ((66, 5), (20, 9))
"""Documents in two rows; the first is longer than a block of the cache. Row 1 ends in padding."""
ROW = 71


def config(*, mtp: int = 0, index: dict[str, Any] | None = None) -> ModelConfig:
    attention = DSAConfig(
        num_attention_heads=3, q_lora_rank=10, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5,
        index_n_heads=4, index_head_dim=10, index_topk=6, rope=Rope(theta=100.0),
        **(index or {}),
    )  # fmt: skip
    stage = Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=20))
    return ModelConfig(vocab_size=30, hidden_size=16, stages=(stage,), num_nextn_predict_layers=mtp)


def model_of(*, mtp: int = 0, index: dict[str, Any] | None = None) -> Decoder:
    """Weights under which attention is peaked and index scores differ: with fresh ones all distributions are uniform."""
    generator = torch.Generator().manual_seed(7)
    model = Decoder(config(mtp=mtp, index=index), REFERENCE)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            scale = 3.0 if "q_b_proj" in name else 2.0 if "indexer.wq_b" in name else 1.0
            size = tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.3
            noise = torch.randn(tensor.shape, generator=generator) * size * scale
            tensor.copy_(noise + (1.0 if tensor.dim() == 1 and not name.endswith("bias") else 0.0))
    return model


def batch_of() -> TrainBatch:
    tokens = torch.randint(30, (2, ROW), generator=torch.Generator().manual_seed(3))
    positions, segments = torch.zeros(2, ROW, dtype=torch.long), torch.full((2, ROW), -1)
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for number, length in enumerate(lengths):
            positions[row, at : at + length] = torch.arange(length)
            segments[row, at : at + length] = number
            at += length
        positions[row, at:] = torch.arange(ROW - at)
    mask = (segments >= 0).float()
    return TrainBatch(tokens, tokens.roll(-1, 1), mask, segments=segments, positions=positions)


def turned(x: Tensor, positions: Tensor, theta: float, *, interleaved: bool) -> Tensor:
    """RoPE of x [n, heads, dim], pair by pair."""
    out, dim = x.clone(), x.shape[-1]
    for pair in range(dim // 2):
        a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + dim // 2)
        angle = (positions * theta ** (-2 * pair / dim)).unsqueeze(1)
        out[..., a] = x[..., a] * angle.cos() - x[..., b] * angle.sin()
        out[..., b] = x[..., a] * angle.sin() + x[..., b] * angle.cos()
    return out


def plain_loss(layer: DSA, x: Tensor, *, dense: bool) -> Tensor:
    """The sum of KL over the queries of one document x [n, hidden], query by query, with a list for each quantity."""
    c, index, n = layer.config, layer.indexer, len(x)
    positions = torch.arange(n).float()

    def norm(value: Tensor, weight: Tensor) -> Tensor:
        return value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    c_q = norm(x @ layer.q_a_proj.weight.T, layer.q_a_layernorm.weight)
    q = (c_q @ layer.q_b_proj.weight.T).view(n, c.num_attention_heads, c.qk_head_dim)
    compressed = x @ layer.kv_a_proj_with_mqa.weight.T
    latent = norm(compressed[:, : c.kv_lora_rank], layer.kv_a_layernorm.weight)
    k_rope = turned(compressed[:, None, c.kv_lora_rank :], positions, 100.0, interleaved=True)
    kv = (latent @ layer.kv_b_proj.weight.T).view(n, c.num_attention_heads, -1)
    k = torch.cat((kv[..., : c.qk_nope_head_dim], k_rope.expand(-1, c.num_attention_heads, -1)), -1)
    q = torch.cat(
        (q[..., : c.qk_nope_head_dim], turned(q[..., c.qk_nope_head_dim :], positions, 100.0, interleaved=True)), -1
    )
    q, k, c_q, x = q.detach(), k.detach(), c_q.detach(), x.detach()

    index_q = (c_q @ index.wq_b.weight.T).view(n, c.index_n_heads, c.index_head_dim)
    raw = x @ index.wk.weight.T
    raw = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    index_k = (raw * index.k_norm.weight + index.k_norm.bias).unsqueeze(1)
    rope = c.qk_rope_head_dim
    index_q, index_k = (
        torch.cat((turned(t[..., :rope], positions, 100.0, interleaved=False), t[..., rope:]), -1)
        for t in (index_q, index_k)
    )
    if c.index_dtype is not None:  # the value is rounded, and the gradient is that of the value before
        scale = 2 ** (index_k.detach().abs().amax(-1, keepdim=True) / 448).log2().ceil()
        index_k = index_k + ((index_k / scale).to(torch.float8_e4m3fn).float() * scale - index_k).detach()
    weights = x @ index.weights_proj.weight.T
    total = x.new_zeros(())
    for t in range(n):
        scores = torch.stack(
            [
                sum(
                    weights[t, j]
                    * (index_q[t, j] @ index_k[s, 0]).clamp(min=0)
                    / (c.index_n_heads * c.index_head_dim) ** 0.5
                    for j in range(c.index_n_heads)
                )
                for s in range(t + 1)
            ]
        )
        visible = list(range(t + 1))
        if not dense:
            visible = sorted(visible, key=lambda s: (-float(scores[s].detach()), s))[: c.index_topk]
        heads = [
            torch.stack([q[t, h] @ k[s, h] for s in visible]).mul(c.qk_head_dim**-0.5).softmax(0)
            for h in range(c.num_attention_heads)
        ]
        p = torch.stack(heads).sum(0)
        p = p / p.sum()
        log_q = scores[visible].log_softmax(0)
        total = total + sum(p[i] * (p[i].log() - log_q[i]) for i in range(len(visible)) if p[i] > 0)
    return total


def inputs_of(model: Decoder, batch: TrainBatch, objective: Objective) -> list[Tensor]:
    """The normed input of each attention [rows, seq, hidden], caught on the way."""
    caught: list[Tensor] = []
    hooks = [
        layer.attention.register_forward_pre_hook(lambda _module, given: caught.append(given[0].detach()))
        for layer in model.layers
    ]
    model(batch.tokens, batch.positions, segments=batch.segments, record=objective.recorded_tensors())
    for hook in hooks:
        hook.remove()
    return caught


@pytest.mark.parametrize(("dense", "index_dtype"), [(True, None), (False, None), (False, "float8_e4m3fn")])
def test_value_and_gradient_equal_a_plain_loop(dense: bool, index_dtype: str | None) -> None:
    model, batch = model_of(index={"index_dtype": index_dtype}), batch_of()
    objective: Objective = IndexerWarmup() if dense else IndexerSparse()
    output = model(batch.tokens, batch.positions, segments=batch.segments, record=objective.recorded_tensors())
    ours = objective.term(model, batch, output).sum / objective.weight(batch)
    ours.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    assert objective.weight(batch) == sum(map(sum, LENGTHS))

    expected = torch.zeros(())
    for layer, x in zip(model.layers, inputs_of(model, batch, objective), strict=True):
        for row, lengths in enumerate(LENGTHS):
            for piece in x[row, : sum(lengths)].split(list(lengths)):
                expected = expected + plain_loss(layer.attention, piece, dense=dense)  # type: ignore[arg-type]
    expected = expected / len(model.layers) / objective.weight(batch)
    assert float(expected.detach()) > 0.05
    assert abs(float((ours - expected).detach())) < 1e-5 * float(expected.detach())
    expected.backward()
    for name, parameter in model.named_parameters():
        if ".indexer." not in name:
            assert found[name] is None and parameter.grad is None, name
        else:
            assert parameter.grad is not None and found[name] is not None
            size = float(parameter.grad.abs().max())
            assert size > 1e-5, name
            assert float((found[name] - parameter.grad).abs().max()) < 1e-4 * size, name


@torch.no_grad()
def test_prediction_modules_count_with_their_own_documents() -> None:
    """A module reads one position less of each row: the last document of row 0 is shorter by one there, and padding stays left out."""
    model, batch = model_of(mtp=1), batch_of()
    objective = IndexerWarmup(depth=1)
    caught: list[Tensor] = []
    attention = model.mtp[0].block.attention  # type: ignore[union-attr]
    hook = attention.register_forward_pre_hook(lambda _module, given: caught.append(given[0]))  # type: ignore[union-attr]
    output = model(batch.tokens, batch.positions, segments=batch.segments, record=objective.recorded_tensors())
    found = objective.term(model, batch, output).sum
    hook.remove()
    expected = IndexerWarmup().term(model, batch, output).sum * len(model.layers)
    (long, short), second = LENGTHS
    for row, lengths in enumerate(((long, short - 1), second)):
        for piece in caught[0][row, : sum(lengths)].split(list(lengths)):
            expected = expected + plain_loss(attention, piece, dense=True)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(float(expected / (len(model.layers) + 1)), rel=1e-5)


def test_only_indexers_are_trained() -> None:
    model, batch = model_of(mtp=1), batch_of()
    IndexerTuning().attach(model, seed=0)
    assert (
        set(trained_parameters(model))
        == set(IndexerTuning().trained_shapes(model))
        == {n for n, _ in model.named_parameters() if ".indexer." in n}
    )
    with open_workers(1) as pool:
        update = gradient(model, (IndexerWarmup(depth=1),), batch, parts=2, pool=pool)
    assert all(bool(grad.any()) for grad in update.grads) and update.loss > 0.05
