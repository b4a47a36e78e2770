"""Sharded parameters train as whole ones do, and a gradient that is missing stops the step."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from little import documents, loud, packed, tiny, update_of
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from rorqual.core.errors import ConfigError, NumericsError
from rorqual.model import Decoder, DecoderOutput
from rorqual.model.adapter import LoRA, trained_parameters
from rorqual.model.attention import MLA
from rorqual.ops.backends import backend
from rorqual.train.batch import TrainBatch
from rorqual.train.gradient import UpdateResult, gradient, open_workers
from rorqual.train.loop import clip
from rorqual.train.objectives import LossTerm, MultiToken, NextToken, Objective, SequenceBalance
from rorqual.train.optim import AdamWConfig

OBJECTIVES: tuple[Objective, ...] = (NextToken(), MultiToken())


def shard(model: Decoder) -> Decoder:
    """`model` over every rank, block by block, as FSDP2's users do it."""
    for block in model.layers:
        fully_shard(block)
    fully_shard(model)
    return model


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def two_steps(model: Decoder, threads: int) -> tuple[list[UpdateResult], list[float], list[Tensor]]:
    """Updates of two steps in two micro-batches, the norms of their gradients, and the weights after them."""
    params = dict(model.named_parameters())
    optimizer = AdamWConfig(lr=1e-2, clip=0.5).build(params)
    updates, norms = [], []
    with open_workers(threads) as pool:
        for step in range(2):
            update = gradient(model, OBJECTIVES, packed(documents(step)), parts=2, pool=pool)
            updates.append(update)
            norms.append(clip(update.grads, 0.5))
            optimizer.step(dict(zip(params, update.grads)), 1.0, pool)
    return updates, norms, [whole(p.detach()) for p in params.values()]


def on_one_rank(threads: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    plain, sharded = two_steps(loud(tiny()), 1), two_steps(shard(loud(tiny())), threads)
    dist.destroy_process_group()
    return {
        "loss": [(a.loss, b.loss) for a, b in zip(plain[0], sharded[0])],
        "norm": list(zip(plain[1], sharded[1])),
        "weights": [float((a - b).abs().max()) for a, b in zip(plain[2], sharded[2], strict=True)],
        "moved": [float((a - b).abs().max()) for a, b in zip(sharded[2], loud(tiny()).parameters())],
    }


@cache
def steps_of_one_rank() -> list[dict[str, Any]]:
    """What was found with one thread and with two, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "1", "2"], check=False, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()[-2:]]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_that_fsdp_shards_trains_as_a_whole_one(threads: int) -> None:
    found = steps_of_one_rank()[threads - 1]
    for plain, sharded in [*found["loss"], *found["norm"]]:
        assert sharded == pytest.approx(plain, rel=1e-6)
    assert all(norm > 0.5 for norm, _ in found["norm"]), "the clip must bind"
    assert max(found["weights"]) < 1e-6
    assert min(found["moved"]) > 1e-3


def broken(model: Decoder) -> Decoder:
    """`model` with an attention whose queries are computed from a copy of their weight."""
    linear = model.layers[1].attention.o_proj
    linear.forward = lambda x: nn.functional.linear(x, linear.weight.detach())  # type: ignore[method-assign]
    return model


def test_sharded_parameters_on_several_ranks_are_refused() -> None:
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=2)
    try:
        with pytest.raises(ConfigError, match="2 processes train a model with sharded parameters"):
            update_of(shard(loud(tiny())), (NextToken(),), packed(documents(0)), parts=2, threads=1)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_parameter_that_no_gradient_reaches_stops_the_step(threads: int) -> None:
    batch = packed(documents(0))
    update_of(loud(tiny()), OBJECTIVES, batch, parts=2, threads=threads)  # the sound twin
    with pytest.raises(NumericsError, match=r"no gradient reaches layers\.1\.attention\.o_proj\.weight, although"):
        update_of(broken(loud(tiny())), OBJECTIVES, batch, parts=2, threads=threads)


def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loss on the next token read a detached output of the model."""
    term = NextToken.term

    def detached(self: NextToken, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        return term(self, model, batch, replace(output, hidden=output.hidden.detach()))

    monkeypatch.setattr(NextToken, "term", detached)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_loss_without_any_gradient_stops_the_step(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loud(tiny())
    model.lm_head.requires_grad_(False)
    cut_off(monkeypatch)
    with pytest.raises(NumericsError, match="no trained parameter has a gradient"):
        update_of(model, (NextToken(),), packed(documents(0)), parts=2, threads=threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_loss_that_is_cut_off_at_the_models_output_stops_the_step(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the head would learn."""
    batch = packed(documents(0))
    cut_off(monkeypatch)
    for objectives in [(NextToken(),), (NextToken(), SequenceBalance())]:
        with pytest.raises(NumericsError, match=r"no gradient reaches .* their modules ran"):
            update_of(loud(tiny()), objectives, batch, parts=2, threads=threads)
    update = update_of(loud(tiny()), (SequenceBalance(),), batch, parts=2, threads=threads)  # reads routing alone
    assert any(grad.any() for grad in update.grads)


def test_a_weight_that_is_read_without_its_module_is_missed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Absorbed latent attention reads kv_b_proj's weight, and never calls the module."""
    model = backend("torch-invariant").bind(loud(tiny(modules=0)))
    update_of(model, (NextToken(),), packed(documents(0)), parts=2)  # the sound twin
    maps = MLA.up_maps
    monkeypatch.setattr(MLA, "up_maps", lambda self: tuple(each.detach() for each in maps(self)))
    with pytest.raises(NumericsError, match=r"no gradient reaches layers\.\d\.attention\.kv_b_proj\.weight"):
        update_of(model, (NextToken(),), packed(documents(0)), parts=2)


def test_what_no_objective_asks_for_has_zeros_and_is_not_counted() -> None:
    model = loud(tiny())
    update = update_of(model, (NextToken(),), packed(documents(0)), parts=2)
    named = dict(zip((name for name, _ in model.named_parameters()), update.grads, strict=True))
    asleep = {name for name, grad in named.items() if not grad.any()}
    assert asleep == {name for name in named if name.startswith("mtp.")} and asleep and update.zeros == 0


def test_zero_gradients_are_legal_and_counted() -> None:
    model = loud(tiny())
    LoRA(r=2).attach(model, seed=0)
    names = list(trained_parameters(model))
    update = update_of(model, (NextToken(),), packed(documents(0)), parts=2)
    assert (
        update.zeros == len([name for name in names if name.endswith("lora_A")]) > 0
    )  # B is zero, so the gradient of A is


if __name__ == "__main__":
    for word in sys.argv[1:]:
        print(json.dumps(on_one_rank(int(word))))
