"""Nothing leaks: conversations of several tenants through one engine, each answer the one computed alone; no hit across tenants, after new
weights, or from a file that was touched. 1,000 conversations: scripts/conversations.py."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conversations import converse, engine_for
from scaled import make_model
from schedules import Wrong, differences

from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.weight_fingerprint import ROUNDING
from rorqual.model import Decoder, build
from rorqual.ops.paged import BLOCK
from rorqual.ops.rope import Rope

PROMPT = tuple(random.Random(0).choices(range(7, 263), k=85))
PARAMS = SamplingParams(max_tokens=5, temperature=1.0, ignore_eos=True)
ASKED = Request(prompt_ids=PROMPT, params=PARAMS, tenant="ada")
"""One full block, and a beginning of another."""


def counted(engine: Engine, request: Request) -> tuple[Completion, int]:
    """The answer, and how many tokens of the prompt were fed: counted where they are fed."""
    runner, fed = engine._cores[0].runner, 0
    step = runner.step

    def counting(plan, scheduler):  # type: ignore[no-untyped-def]
        nonlocal fed
        fed += sum(chunk.stop - chunk.start for chunk in plan.chunks)
        return step(plan, scheduler)

    runner.step = counting  # type: ignore[method-assign]
    try:
        (done,) = engine.generate([request])[0]
    finally:
        del runner.step
    assert fed == done.usage["prompt_cache_miss_tokens"], "what was reported is what was fed"
    return done, fed


@pytest.mark.usefixtures("one_thread")
def test_conversations_of_many_tenants_are_each_as_if_alone(models: dict[str, Decoder]) -> None:
    try:
        *_, counts = converse(models["mla"], 24, seed=1)
    except Wrong as wrong:
        raise AssertionError(str(wrong)) from wrong
    assert counts["conversations"] == 24 and counts["turns"] > 30
    assert counts["hit_tokens"] > 300 and counts["evictions"] > 10
    assert counts["could_have_leaked"] >= 5, "prompts of which another tenant had said more"


@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_two_tenants_with_one_prompt_share_nothing(kind: str, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    """Counted where tokens are fed, not from what is reported. At once, too: they are not fed together."""
    model = make_model(kind)
    engine = engine_for(model, chat, reuse=True)
    first, fed = counted(engine, ASKED)
    assert fed == len(PROMPT)
    again, fed = counted(engine, ASKED)
    assert fed == len(PROMPT) - BLOCK
    other, fed = counted(engine, replace(ASKED, tenant="ben"))
    assert fed == len(PROMPT)
    assert [differences(c, first) for c in (again, other)] == [[], []]
    engine = engine_for(model, chat, reuse=True)
    pair = [group[0] for group in engine.generate([ASKED, replace(ASKED, tenant="ben")])]
    assert [c.usage["prompt_cache_hit_tokens"] for c in pair] == [0, 0]
    assert engine.stats()["hit_tokens"] == 0


def test_what_runs_while_weights_change_leaves_nothing_behind(tokenizer: Tokenizer, chat: ChatFormat) -> None:
    model = make_model("mla")
    engine = engine_for(model, chat, reuse=True)
    begun = Request(prompt_ids=PROMPT[:60], params=replace(PARAMS, max_tokens=20), tenant="ada")
    engine.submit(begun)
    deltas = engine.step()
    with torch.no_grad():
        model.layers[0].attention.kv_b_proj.weight.mul_(1.5)
    engine.submit(Request(prompt_ids=(9, 9), params=PARAMS))  # the change is noticed here
    while engine.stats()["running"]:
        deltas += engine.step()
    (mixed,) = [d.completion for d in deltas if d.request_id == 0 and d.completion is not None]
    after = replace(ASKED, prompt_ids=(*mixed.prompt_ids, *mixed.token_ids, 8))
    got, fed = counted(engine, after)
    assert fed == 81
    assert differences(got, Engine.of(model, tokenizer, chat).generate([after])[0][0]) == []


@pytest.mark.parametrize(
    "what", ["weights", "type", "packed", "experts not recorded", "backend", "rounding", "configuration", "nothing"]
)
def test_a_folder_filled_by_another_engine_is_a_miss(
    what: str, tokenizer: Tokenizer, chat: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights, another type, other rounding, another layout of a block."""
    monkeypatch.setattr("rorqual.ops.backends.packed.SMALLEST", 1)
    engine = engine_for(make_model("mla"), chat, cache_dir=tmp_path)
    engine.generate([ASKED])
    engine.close()
    model = make_model("mla", seed=1 if what == "weights" else 0)
    if what == "rounding":  # a later version of ours, which adds in another order
        monkeypatch.setattr("rorqual.engine.weight_fingerprint.ROUNDING", ROUNDING + 1)
    if what == "type":
        model = model.to(torch.bfloat16)
    if what == "configuration":
        (stage,) = model.config.stages[:1]
        other = stage.model_copy(update={"attention": stage.attention.model_copy(update={"rope": Rope(theta=5e5)})})
        changed = build(model.config.model_copy(update={"stages": (other, *model.config.stages[1:])}), seed=0)
        changed.load_state_dict(model.state_dict())
        model = changed
    options: dict[str, Any] = {"pack": what == "packed", "record_experts": what != "experts not recorded"}
    options["backend"] = "torch" if what == "backend" else "torch-invariant"
    expected = engine_for(model, chat, **options).generate([ASKED])[0][0]
    engine = engine_for(model, chat, cache_dir=tmp_path, **options)
    got, fed = counted(engine, ASKED)
    assert fed == len(PROMPT) - (BLOCK if what == "nothing" else 0) and differences(got, expected) == []
    engine.close()
