"""Nothing that was cached with older weights serves, and where nothing changed, the cache serves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scaled import ids_and_logprobs, make_model
from torch import Tensor, nn

from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.weight_fingerprint import fingerprint
from rorqual.model import Decoder
from rorqual.model.adapter import LoRA

PROMPT = tuple(3 + i * 7 % 250 for i in range(85))
ASKED = Request(params=SamplingParams(max_tokens=8, ignore_eos=True), prompt_ids=PROMPT)


def some(model: Decoder) -> Tensor:
    """A weight that keys depend on."""
    found: Tensor = model.layers[1].attention.o_proj.weight
    return found


def adapted(model: Decoder) -> Any:
    """The layer of an adapter that changes replies."""
    LoRA(r=4, alpha=8, targets=("o_proj",)).attach(model, seed=0)
    layer = model.layers[1].attention.o_proj
    layer.lora_B.data.normal_(generator=torch.Generator().manual_seed(0))
    return layer


def stepped(model: Decoder, **options: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.02, **options).step()


SEEN: dict[str, Callable[[Decoder], Any]] = {
    "in place": lambda m: some(m).mul_(1.5),
    "an optimizer": stepped,
    "load_state_dict": lambda m: m.load_state_dict({n: t * 1.5 for n, t in m.state_dict().items()}),
    "another parameter": lambda m: setattr(m.layers[1].attention.o_proj, "weight", nn.Parameter(some(m) * 1.5)),
    "other .data": lambda m: setattr(some(m), "data", some(m).detach() * 1.5),
    "a router's bias": lambda m: m.routing_ffns()[0].router.e_score_correction_bias.mul_(-1),
    "an adapter": adapted,
}
"""Changes that the engine sees itself."""
TOLD: dict[str, Callable[[Decoder], Any]] = {
    "an optimizer, fused": lambda m: stepped(m, fused=True),
    "numpy": lambda m: some(m).detach().numpy().__imul__(1.5),
    "a module's setting": lambda m: setattr(m.layers[1].input_layernorm, "eps", 0.5),
}
"""Changes that need `weights_changed`."""


@pytest.mark.parametrize("by", ["generate", "stream"])
@pytest.mark.parametrize("way", [*SEEN, *TOLD])
def test_a_change_invalidates_the_cache(way: str, by: str, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    model = copy.deepcopy(make_model("mla"))
    engine = Engine.of(model, tokenizer, chat, slots=4, reuse=True, record_experts=False)

    def answer() -> Completion:
        if by == "generate":
            return engine.generate([ASKED])[0][0]
        return next(d.completion for d in engine.stream(ASKED) if d.completion is not None)

    old = answer()
    assert answer().usage["prompt_cache_hit_tokens"] == 64, "nothing changed"
    with torch.no_grad():
        (SEEN | TOLD)[way](model)
    if way in TOLD:
        engine.weights_changed()
    new = answer()
    assert new.usage["prompt_cache_hit_tokens"] == 0
    fresh = Engine.of(model, tokenizer, chat, record_experts=False).generate([ASKED])[0][0]
    assert ids_and_logprobs(new) == ids_and_logprobs(fresh) != ids_and_logprobs(old)
    assert answer().usage["prompt_cache_hit_tokens"] == 64, "and nothing since"


def exchanged_rows(layer: Any) -> None:
    layer.lora_A.data = layer.lora_A.data[[1, 0, 2, 3]]


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.lora_A.data.mul_(2), lambda layer: layer.lora_B.data.add_(1), exchanged_rows,
        lambda layer: setattr(layer, "scale", 3.0), lambda layer: layer._parameters["weight"].data.mul_(2),
    ],
    ids=["lora_A", "lora_B", "rows exchanged", "scale", "base"],
)  # fmt: skip
def test_a_fingerprint_covers_values_and_settings(change: Callable[[Any], Any]) -> None:
    model = copy.deepcopy(make_model("mla"))
    layer = adapted(model)
    before = fingerprint(model, arithmetic="")
    assert fingerprint(copy.deepcopy(model), arithmetic="") == before
    assert fingerprint(model, arithmetic="other") != before
    change(layer)
    assert fingerprint(model, arithmetic="") != before
