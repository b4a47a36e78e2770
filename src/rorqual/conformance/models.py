"""Checks of attention, feed-forward, router and block kinds, each on a small model of two blocks of one stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from rorqual.core.errors import RorqualError
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.kv_cache.paged import PagedCache, StepCache
from rorqual.engine.request import Request, SamplingParams
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.decoder import Decoder
from rorqual.model.init import build
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend
from rorqual.ops.backends.attention import AttentionMetadata
from rorqual.ops.paged import BLOCK

HIDDEN, BATCH, SHORT = 28, 2, 10
LONG = 2 * BLOCK + 9
CUTS = ((LONG,), (*range(BLOCK - 2, BLOCK + 3), LONG), (BLOCK, 2 * BLOCK, LONG), (1, 97, 98, LONG))
"""Ends of the pieces in which a long sequence is fed: whole, token by token over the end of a block, by blocks, and unevenly."""


class ConformanceError(RorqualError):
    """A plug-in that breaks a contract. `where` names the plug-in and the check."""


def check_near(found: Tensor, expected: Tensor, factor: float = 1.0, what: str = "the results") -> None:
    """Raise ConformanceError if two tensors of one shape differ by more than fp32 rounding, times `factor`."""
    if not torch.allclose(found, expected, rtol=1e-4 * factor, atol=1e-5 * factor):
        raise ConformanceError(f"{what} differ by up to {float((found - expected).abs().max()):.2g}")


def model_of(stage: Stage, *, mtp: int = 0, seed: int = 1, width: int = HIDDEN) -> Decoder:
    """Return a model with one stage and `mtp` prediction modules. The buffers of its routers are random."""
    config = ModelConfig(
        vocab_size=BASE_VOCAB,
        hidden_size=width,
        stages=(stage,),
        max_position_embeddings=4 * BLOCK,
        initializer_range=0.3,
        num_nextn_predict_layers=mtp,
    )
    model = build(config, seed=seed)
    for name, buffer in model.named_buffers():
        if ".router." in name:
            buffer.normal_(std=0.1, generator=torch.Generator().manual_seed(seed + 1))
    return model


def some_tokens(length: int = SHORT) -> Tensor:
    """Return random token ids [BATCH, length]."""
    return torch.randint(BASE_VOCAB, (BATCH, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def hidden(model: Decoder, tokens: Tensor, **arguments: Tensor) -> Tensor:
    """Return the hidden states [batch, seq, HIDDEN] of a forward pass without a KV cache."""
    return model(tokens, **arguments).hidden


@torch.no_grad()
def fed(model: Decoder, tokens: Tensor, cuts: Sequence[int]) -> Tensor:
    """Return the hidden states of `tokens` [batch, seq], fed to one paged KV cache in pieces that end at `cuts`. The blocks of the
    cache are in random order."""
    batch, seq = tokens.shape
    blocks, attention = -(-seq // BLOCK), model.ops.attention
    cache = PagedCache(attention, model.config, 1 + batch * blocks, tokens.device, model.embed_tokens.weight.dtype, seq)
    tables = 1 + np.random.default_rng(0).permutation(batch * blocks).reshape(batch, blocks)
    parts, start = [], 0
    for stop in cuts:
        at = np.tile(np.arange(start, stop), (batch, 1))
        slots = np.take_along_axis(tables, at // BLOCK, axis=1) * BLOCK + at % BLOCK
        loc = np.arange(batch + 1) * (stop - start)
        metadata = AttentionMetadata(loc, np.full(batch, stop), tables, slots.reshape(-1))
        step = StepCache(cache, attention.plan(metadata, tokens.device))
        piece = model(tokens[:, start:stop].reshape(1, -1), torch.from_numpy(at).reshape(1, -1), cache=step).hidden
        parts.append(piece.view(batch, stop - start, -1))
        start = stop
    return torch.cat(parts, dim=1)


def tolerance(stage: Stage) -> float:
    """Return the factor of fp32 tolerances. A cache part with its own dtype, such as fp16, rounds values that differ in their last
    bits by a whole step of this dtype."""
    return 50.0 if any(part.dtype for kind in stage.attentions for part in kind.cache_spec()) else 1.0


def packed(stage: Stage) -> None:
    """Two documents that are packed into one row give the outputs of each document alone."""
    model, tokens, cut = model_of(stage), some_tokens(), 4
    segments = (torch.arange(SHORT) >= cut).long().expand(BATCH, SHORT)
    positions = torch.cat((torch.arange(cut), torch.arange(SHORT - cut))).expand(BATCH, SHORT)
    alone = torch.cat((hidden(model, tokens[:, :cut]), hidden(model, tokens[:, cut:])), dim=1)
    check_near(hidden(model, tokens, positions=positions, segments=segments), alone, tolerance(stage))


def cached(stage: Stage) -> None:
    """Prefill in chunks and decoding from the KV cache give the outputs of a forward pass without a cache."""
    model = model_of(stage)
    for length, ends in ((SHORT, [sorted({split, SHORT}) for split in range(1, SHORT + 1)]), (LONG, CUTS)):
        tokens = some_tokens(length)
        expected = hidden(model, tokens)
        for cuts in ends:
            check_near(fed(model, tokens, cuts), expected, tolerance(stage))


def batch_mix(stage: Stage) -> None:
    """The engine gives a request the same bits alone and beside other requests, in chunks of any size, if `Engine.invariant`
    promises it for the widths of the model on this machine."""
    tokenizer, model = Tokenizer.byte_level(), model_of(stage)
    if not Engine.of(model, tokenizer, chat_format(tokenizer)).invariant:
        return
    asked = [
        Request(prompt_ids=tuple(range(40, 52 + 61 * i)), params=SamplingParams(max_tokens=8, seed=i, ignore_eos=True))
        for i in range(3)
    ]

    def answers(requests: list[Request], **settings: int) -> list[tuple[list[int], list[float]]]:
        engine = Engine.of(model, tokenizer, chat_format(tokenizer), reuse=False, **settings)
        return [(list(c.token_ids), list(c.logprobs)) for group in engine.generate(requests) for c in group]

    alone = [answer for request in asked for answer in answers([request])]
    if answers(asked) != alone or answers(asked, step_tokens=33) != alone:
        raise ConformanceError("the token ids or log-probabilities differ")


def evaluation(stage: Stage) -> None:
    """In evaluation mode, two forward passes give the same bits: dropout is off."""
    model, tokens = model_of(stage).train().eval(), some_tokens()
    if not torch.equal(hidden(model, tokens), hidden(model, tokens)):
        raise ConformanceError(
            "two forward passes in evaluation mode differ", remedy="Pass `self.training` to dropout."
        )


def state_dict(stage: Stage) -> None:
    """A new model that loads the state dict computes the same."""
    model, tokens = model_of(stage), some_tokens()
    other = model_of(stage, seed=5)
    other.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    check_near(hidden(other, tokens), hidden(model, tokens))


# ---- gradients


def _loss(model: Decoder, tokens: Tensor) -> Tensor:
    """Return a scalar that weights each output differently."""
    output = model(tokens).hidden
    return (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output)).sum()


def _gradients(model: Decoder, tokens: Tensor, *, create_graph: bool = False) -> tuple[Tensor, ...]:
    params, loss = tuple(model.parameters()), _loss(model, tokens)
    return torch.autograd.grad(loss, params, create_graph=create_graph, materialize_grads=True)


def checkpointing(stage: Stage) -> None:
    """Blocks with activation checkpointing have the gradients of blocks without."""
    for ops in (TORCH, TORCH_INVARIANT):
        model, tokens = model_of(stage), some_tokens()
        model.ops = ops
        expected = _gradients(model, tokens)
        model.layers = nn.ModuleList(checkpoint_wrapper(block) for block in model.layers)
        for (name, _), grad, whole in zip(model.named_parameters(), _gradients(model, tokens), expected, strict=True):
            check_near(grad, whole, what=name)


def _slope_near(found: Tensor, function: Callable[[], Tensor], model: Decoder, direction: Sequence[Tensor]) -> None:
    """Check `found` against a central difference of `function` along `direction`. Of several step sizes one must agree, because
    a step may change a choice of experts or tokens, and parts of the model compute in fp32."""
    params, slopes = [p.data for p in model.parameters()], list[float]()
    for step in (1e-4, 3e-5, 1e-5):
        values = []
        for move in (step, -2 * step, step):
            torch._foreach_add_(params, [move * d for d in direction])
            values.append(float(function().detach()))
        slopes.append((values[0] - values[1]) / (2 * step))
    if not any(abs(float(found) - slope) <= 0.02 * abs(slope) + 0.5 for slope in slopes):
        raise ConformanceError(f"the derivative is {float(found):.6g}, but finite differences are {slopes[-1]:.6g}")


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def _in_float64(stage: Stage, ops: Backend) -> tuple[Decoder, Tensor, list[Tensor]]:
    """Return a float64 model, tokens and a random direction in the space of the model's parameters."""
    model, generator = model_of(stage).double(), torch.Generator().manual_seed(7)
    model.ops = ops
    return model, some_tokens(), [torch.randn(p.shape, generator=generator).double() for p in model.parameters()]


def finite_differences(stage: Stage) -> None:
    """The gradient is that of finite differences in float64. Kinds that round to another dtype are not checked."""
    model, tokens, direction = _in_float64(stage, TORCH)
    if tolerance(stage) == 1:
        _slope_near(_dot(_gradients(model, tokens), direction), partial(_loss, model, tokens), model, direction)


def second_derivative(stage: Stage) -> None:
    """A second derivative is right, or raises RuntimeError."""
    model, tokens, direction = _in_float64(stage, REFERENCE)
    try:
        along = _dot(_gradients(model, tokens, create_graph=True), direction)
        found = torch.autograd.grad(along, tuple(model.parameters()), materialize_grads=True)
    except RuntimeError:
        return
    if tolerance(stage) == 1:
        _slope_near(_dot(found, direction), lambda: _dot(_gradients(model, tokens), direction), model, direction)


CHECKS: Mapping[str, Callable[[Stage], None]] = {
    "packed": packed,
    "cached": cached,
    "batch mix": batch_mix,
    "evaluation mode": evaluation,
    "state dict": state_dict,
    "checkpointing": checkpointing,
    "finite differences": finite_differences,
    "second derivative": second_derivative,
}
"""The checks of a stage, by name."""
