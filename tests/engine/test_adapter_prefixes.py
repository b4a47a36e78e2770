"""A cache on disk that outlives its engine serves no block of another adapter."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.weights import fingerprint
from rorqual.model import Decoder
from rorqual.model.adapter import LoRA

PROMPT = tuple(range(20, 88))


def adapted(base: Decoder, **options: float) -> Decoder:
    """The same base, and an adapter that says something."""
    model = copy.deepcopy(base)
    LoRA(r=4, **options).attach(model, seed=0)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


@torch.no_grad()
def changed(model: Decoder, letter: str) -> Decoder:
    other = copy.deepcopy(model)
    name, parameter = next((n, p) for n, p in other.named_parameters() if n.endswith(f"lora_{letter}"))
    assert name.startswith("layers.")
    parameter[0, 0] += 0.5
    return other


def answer(model: Decoder, tokenizer: Tokenizer, chat: ChatFormat, folder: Path | None = None) -> Completion:
    engine = Engine.of(model, tokenizer, chat, cache_dir=folder)
    params = SamplingParams(max_tokens=8, temperature=1.0, seed=3, ignore_eos=True)
    (found,) = engine.generate([Request(prompt_ids=PROMPT, params=params)])[0]
    engine.close()
    return found


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_fingerprint_tells_adapters_apart(letter: str, mla: Decoder) -> None:
    model = adapted(mla)
    assert fingerprint(model) == fingerprint(copy.deepcopy(model))
    assert fingerprint(model) != fingerprint(changed(model, letter))
    assert fingerprint(model) != fingerprint(mla)
    assert fingerprint(model) != fingerprint(adapted(mla, alpha=4.0))


@pytest.mark.parametrize("letter", ["A", "B"])
def test_blocks_on_disk_serve_the_adapter_that_made_them_and_no_other(
    letter: str, mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat, tmp_path: Path
) -> None:
    model = adapted(mla)
    answer(model, tokenizer, chat, tmp_path / "cache")
    other = changed(model, letter)
    found = answer(other, tokenizer, chat, tmp_path / "cache")
    assert found.usage["prompt_cache_hit_tokens"] == 0
    assert found.logprobs == answer(other, tokenizer, chat).logprobs
    again = answer(model, tokenizer, chat, tmp_path / "cache")
    assert again.usage["prompt_cache_hit_tokens"] > 0 and again.logprobs == answer(model, tokenizer, chat).logprobs
