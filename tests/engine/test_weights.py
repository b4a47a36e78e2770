"""Whoever changes weights, and however: nothing that was cached of older ones serves. Where nothing changed, the cache serves."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled import make_model
from torch import Tensor, nn

from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.weights import ROWS, WORDS, Weights, digest, fingerprint
from rorqual.model import Decoder
from rorqual.model.adapter import ESFT, LoRA

PROMPT = tuple(3 + i * 7 % 250 for i in range(85))
ASKED = Request(params=SamplingParams(max_tokens=8, ignore_eos=True), prompt_ids=PROMPT)
Way = Callable[[Decoder, Path], Callable[[], Any]]
"""Prepares a model, and returns what changes its weights."""


def told(completion: Completion) -> tuple[list[int], list[float]]:
    return completion.token_ids, completion.logprobs


def fresh(model: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> tuple[list[int], list[float]]:
    return told(Engine.of(model, tokenizer, chat, record_experts=False).generate([ASKED])[0][0])


def some(model: Decoder) -> Tensor:
    """A weight that keys depend on."""
    found: Tensor = model.layers[1].attention.o_proj.weight
    return found


def optimizer(kind: type[torch.optim.Optimizer], **options: Any) -> Way:
    def prepare(model: Decoder, _: Path) -> Callable[[], Any]:
        made = kind(model.parameters(), lr=0.02, **options)  # type: ignore[call-arg]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        return made.step

    return prepare


def simple(change: Callable[[Decoder], Any]) -> Way:
    def under(model: Decoder) -> None:
        with torch.no_grad():
            change(model)

    return lambda model, _: lambda: under(model)


def mapped(model: Decoder, folder: Path) -> Callable[[], Any]:
    file = folder / "weight.bin"
    some(model).detach().numpy().tofile(file)
    shape = tuple(some(model).shape)
    some(model).data = torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))

    def change() -> None:
        np.memmap(file, np.float32, "r+", shape=shape)[:] *= 1.5  # somebody else's map

    return change


def inference(model: Decoder, _: Path) -> Callable[[], Any]:
    with torch.inference_mode():
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)

    def change() -> None:
        with torch.inference_mode():
            some(model).mul_(1.5)

    return change


def with_lora(change: Callable[[Any], Any]) -> Way:
    def prepare(model: Decoder, _: Path) -> Callable[[], Any]:
        LoRA(r=4, alpha=8, targets=("o_proj",)).attach(model, seed=0)
        layer = model.layers[1].attention.o_proj
        with torch.no_grad():
            layer.lora_B.normal_(generator=torch.Generator().manual_seed(0))
        return lambda: change(layer)

    return prepare


def tuned(model: Decoder, _: Path) -> Callable[[], Any]:
    layers = [layer.ffn.experts for layer in model.layers[1:]]
    ESFT().attach(model, seed=0, experts=tuple((0, 1, 2, 3) for _ in layers))
    parts = [part for layer in model.layers[1:] for _, part in layer.ffn.experts.parts()]
    return lambda: [part.detach().numpy().__imul__(3) for part in parts]


def disable(layer: Any) -> None:
    """What an adapter's switch does in other libraries: another forward."""
    base = layer._parameters["weight"]
    layer.forward = types.MethodType(lambda self, x: nn.functional.linear(x, base), layer)


def swap(model: Decoder) -> None:
    mine, other = some(model), nn.Parameter(some(model).detach() * 1.5)
    torch.utils.swap_tensors(mine, other)


def exchange(tensor: Tensor) -> None:
    """Two rows change places: any sum stays."""
    array = tensor.detach().numpy()
    array[[0, 1]] = array[[1, 0]]


def negate(tensor: Tensor) -> None:
    """Upper halves of words alone, an even number of them in each row."""
    tensor.detach().numpy()[:, 1::2] *= -1


def config(module: Any, **update: Any) -> None:
    module.config = module.config.model_copy(update=update)


def rope(model: Decoder) -> None:
    attention: Any = model.layers[1].attention
    config(attention, rope=attention.config.rope.model_copy(update={"theta": 50.0}))


WAYS: dict[str, Way] = {
    "in place": simple(lambda m: some(m).mul_(1.5)),
    "AdamW, fused": optimizer(torch.optim.AdamW, fused=True),
    "Adam, fused": optimizer(torch.optim.Adam, fused=True),
    "SGD, fused": optimizer(torch.optim.SGD, fused=True),
    "AdamW, foreach": optimizer(torch.optim.AdamW, foreach=True),
    "AdamW, one by one": optimizer(torch.optim.AdamW, foreach=False),
    "numpy": simple(lambda m: some(m).detach().numpy().__imul__(1.5)),
    "numpy, the smallest change": simple(lambda m: some(m).detach().numpy().view(np.int32).__ixor__(1)),
    "numpy, rows exchanged": simple(lambda m: exchange(some(m))),
    "numpy, columns negated": simple(lambda m: negate(some(m))),
    ".data": simple(lambda m: some(m).data.mul_(1.5)),
    ".data of every parameter, foreach": simple(lambda m: torch._foreach_mul_([p.data for p in m.parameters()], 1.5)),
    "foreach": simple(lambda m: torch._foreach_mul_(list(m.parameters()), 1.5)),
    "other .data": simple(lambda m: setattr(some(m), "data", some(m).detach() * 1.5)),
    "inference tensors": inference,
    "a mapped file": mapped,
    "DLPack": simple(lambda m: torch.from_dlpack(some(m).detach()).mul_(1.5)),
    "set_": simple(lambda m: some(m).set_(some(m).clone() * 1.5)),
    "the storage": simple(lambda m: some(m).untyped_storage().copy_((some(m) * 1.5).untyped_storage())),
    "tensors swapped": simple(swap),
    "another parameter": simple(lambda m: setattr(m.layers[1].attention.o_proj, "weight", nn.Parameter(some(m) * 1.5))),
    "a router's bias, numpy": simple(lambda m: m.routers()[0].router.e_score_correction_bias.numpy().__imul__(-1)),
    "a norm, .data": simple(lambda m: m.layers[0].input_layernorm.weight.data.mul_(1.5)),
    "the embedding, numpy": simple(lambda m: m.embed_tokens.weight.detach().numpy().__imul__(1.5)),
    "LoRA's scale": with_lora(lambda layer: setattr(layer, "scale", 9.0)),
    "LoRA's B, numpy": with_lora(lambda layer: layer.lora_B.detach().numpy().__imul__(-1)),
    "LoRA switched off": with_lora(disable),
    "experts that are tuned": tuned,
    "eps": simple(lambda m: setattr(m.layers[1].input_layernorm, "eps", 0.5)),
    "the softmax's scale": simple(lambda m: setattr(m.layers[1].attention, "scale", 0.9)),
    "RoPE's base": simple(rope),
    "experts a token": simple(lambda m: config(m.layers[1].ffn.router, num_experts_per_tok=4)),
    "a hook": simple(lambda m: m.layers[1].attention.register_forward_hook(lambda module, x, y: y * 2)),
}  # fmt: skip


@pytest.mark.parametrize("by", ["generate", "step"])
@pytest.mark.parametrize("way", WAYS)
def test_a_change_is_seen(way: str, by: str, tokenizer: Tokenizer, chat: ChatFormat, tmp_path: Path) -> None:
    model = copy.deepcopy(make_model("mla"))
    change = WAYS[way](model, tmp_path)
    engine = Engine.of(model, tokenizer, chat, slots=4, reuse=True, record_experts=False)

    def answer() -> Completion:
        if by == "generate":
            return engine.generate([ASKED])[0][0]
        return next(d.completion for d in engine.stream(ASKED) if d.completion is not None)

    old = answer()
    assert answer().usage["prompt_cache_hit_tokens"] == 64, "nothing changed"
    change()
    new = answer()
    assert new.usage["prompt_cache_hit_tokens"] == 0
    assert told(new) == fresh(model, tokenizer, chat) != told(old)
    assert answer().usage["prompt_cache_hit_tokens"] == 64, "and nothing since"


UNCHANGED: dict[str, Callable[[Decoder], Any]] = {
    "read": lambda m: [p.sum() for p in m.parameters()],
    "copied": lambda m: copy.deepcopy(m).embed_tokens.weight.data.zero_(),
    "state_dict": lambda m: m.state_dict(),
    "gradients": lambda m: m(torch.tensor([[5, 6]])).hidden.sum().backward(),
    "another engine": lambda m: Weights(m, b"", contents=True).look(contents=True),
    "numpy": lambda m: some(m).detach().numpy().sum(),
    "an equal config": lambda m: config(m.layers[1].ffn.router),
}


@pytest.mark.parametrize("what", UNCHANGED)
def test_what_changes_nothing_costs_no_hit(what: str, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    model = copy.deepcopy(make_model("mla"))
    engine = Engine.of(model, tokenizer, chat, slots=4, reuse=True)
    engine.generate([ASKED])
    UNCHANGED[what](model)
    assert engine.generate([ASKED])[0][0].usage["prompt_cache_hit_tokens"] == 64


def scaled(model: Decoder, by: float) -> None:
    """Behind torch's back; a power of two can be undone to the bit."""
    some(model).detach().numpy().__imul__(by)


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("steps", [1, 6])
def test_what_ran_while_weights_were_others_serves_nobody_when_they_are_back(
    steps: int, disk: bool, tokenizer: Tokenizer, chat: ChatFormat, tmp_path: Path
) -> None:
    """They change while the prompt is fed, or while the reply is drawn whose block is named at the end."""
    model = copy.deepcopy(make_model("mla"))
    folder = tmp_path if disk else None
    engine = Engine.of(model, tokenizer, chat, slots=4, reuse=True, step_tokens=40, cache_dir=folder)
    asked = replace(ASKED, prompt_ids=PROMPT[:60])
    request_id = engine.submit(asked)
    deltas = [delta for _ in range(steps) for delta in engine.step()]
    scaled(model, 2.0)
    while engine.stats()["running"]:
        deltas += engine.step()
    scaled(model, 0.5)
    (reply,) = [d.completion for d in deltas if d.request_id == request_id and d.completion is not None]
    after = replace(ASKED, prompt_ids=(*reply.prompt_ids, *reply.token_ids, 9))
    expected = Engine.of(model, tokenizer, chat).generate([after])[0][0]
    if disk:
        engine.close()
        engine = Engine.of(model, tokenizer, chat, slots=4, cache_dir=folder)
    found = engine.generate([after])[0][0]
    assert found.usage["prompt_cache_hit_tokens"] == 0
    assert told(found) == told(expected)


def test_a_callback_that_changes_weights_leaves_nothing_of_the_batch(tokenizer: Tokenizer, chat: ChatFormat) -> None:
    model = copy.deepcopy(make_model("mla"))
    engine = Engine.of(model, tokenizer, chat, slots=4, reuse=True)
    asked, short = replace(ASKED, prompt_ids=PROMPT[:60]), replace(ASKED, params=replace(ASKED.params, max_tokens=2))

    def arrived(request: int, sample: int, completion: Completion) -> None:
        if request == 1:
            scaled(model, 2.0)

    reply = engine.generate([asked, short], arrived=arrived)[0][0]
    scaled(model, 0.5)
    after = replace(ASKED, prompt_ids=(*reply.prompt_ids, *reply.token_ids, 9))
    found = engine.generate([after])[0][0]
    assert told(found) == told(Engine.of(model, tokenizer, chat).generate([after])[0][0])


# ---- the digest


SIZES = (1, 3, WORDS, WORDS * 2, WORDS * 2 * ROWS, WORDS * 2 * (ROWS + 1) + 5)


@settings(deadline=None, max_examples=60)
@given(size=st.sampled_from(SIZES), data=st.data())
def test_any_one_bit_is_seen(size: int, data: st.DataObject) -> None:
    tensor = torch.arange(size, dtype=torch.float32)
    before = digest([tensor])
    bits = tensor.numpy().view(np.uint8)
    where = data.draw(st.integers(0, len(bits) - 1))
    bits[where] ^= 1 << data.draw(st.integers(0, 7))
    assert digest([tensor]) != before
    assert digest([tensor.clone()]) == digest([tensor])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool])
def test_every_type_and_layout_is_read(dtype: torch.dtype) -> None:
    plain = torch.arange(300 * 70).remainder(7).to(dtype).view(300, 70)
    for tensor in (plain.t(), plain[1:, 3:], plain[0, 0], plain[:0], plain.view(-1)[1:]):
        before = digest([tensor])
        assert digest([tensor.clone()]) == before
        if tensor.numel():
            assert digest([~tensor if dtype == torch.bool else tensor + 1]) != before


def test_signs_of_upper_halves_do_not_cancel() -> None:
    """Of three words, the keys of two are both odd or both even. Modulo 2**64, the signs of these two words cancel."""
    before = digest([torch.ones(2, 2 * WORDS)])
    for pair in ([1, 3], [1, 5], [3, 5]):
        tensor = torch.ones(2, 2 * WORDS)
        tensor[0, pair] *= -1
        assert digest([tensor]) != before


def test_values_elsewhere_are_other_values() -> None:
    a, b = torch.zeros(5000), torch.zeros(5000)
    a[7], b[8] = 1, 1
    assert len({digest([a, b]), digest([b, a]), digest([a, a]), digest([torch.cat((a, b))])}) == 4


# ---- what a folder is named by


def in_folder(change: Callable[[Any], Any]) -> tuple[bytes, bytes]:
    model = copy.deepcopy(make_model("mla"))
    LoRA(r=4, alpha=8).attach(model, seed=0)
    model.layers[0].attention.register_buffer("angles", torch.ones(3), persistent=False)
    model.layers[0].attention.offsets = torch.ones(3)
    before = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == before, "equal models share a folder"
    with torch.no_grad():
        change(model.layers[0].attention)
    return before, fingerprint(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.o_proj.lora_A.mul_(2), lambda a: a.o_proj.lora_B.add_(1), lambda a: setattr(a.o_proj, "scale", 3.0),
        lambda a: a.o_proj._parameters["weight"].mul_(2), lambda a: a.angles.add_(1), lambda a: a.offsets.add_(1),
        lambda a: setattr(a, "scale", 0.5), lambda a: config(a, kv_lora_rank=3),
    ],
    ids=["lora_A", "lora_B", "scale", "base", "a buffer that no checkpoint has", "a tensor", "softmax", "config"],
)  # fmt: skip
def test_a_folder_is_named_by_all_that_an_answer_depends_on(change: Callable[[Any], Any]) -> None:
    before, after = in_folder(change)
    assert before != after


def test_code_that_was_replaced_is_found_in_no_folder() -> None:
    hook: Callable[[Any], Any] = lambda a: a.register_forward_hook(lambda module, x, y: y)  # noqa: E731
    assert in_folder(hook)[1] != in_folder(hook)[1]
