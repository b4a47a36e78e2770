"""What is half done never serves: steps that were broken off, weights that changed meanwhile, numbers that are none."""

from __future__ import annotations

import copy
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from types import FrameType

import pytest
import torch
from consistency import check_scheduler
from scaled import ids_and_logprobs, make_model
from torch.nn.modules.module import register_module_forward_pre_hook

from rorqual.core.errors import NumericsError
from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.model import Decoder

PROMPT = tuple(3 + i * 7 % 250 for i in range(150))
OTHER = tuple(3 + i * 11 % 250 for i in range(90))


@pytest.fixture(scope="module")
def mla() -> Decoder:
    return make_model("mla", context=256)


def ask(prompt: tuple[int, ...] = PROMPT, **params: object) -> Request:
    return Request(params=SamplingParams(max_tokens=12, ignore_eos=True, **params), prompt_ids=prompt)  # type: ignore[arg-type]


def alone(model: Decoder, tokenizer: Tokenizer, chat: ChatFormat, request: Request) -> tuple[list[int], list[float]]:
    return ids_and_logprobs(Engine.of(model, tokenizer, chat, slots=2).generate([request])[0][0])


def run_out(engine: Engine, request_id: int) -> Completion:
    while True:
        for delta in engine.step():
            if delta.request_id == request_id and delta.completion is not None:
                return delta.completion


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("forwards", [1, 2, 4])
def test_a_step_that_ctrl_c_broke_off_serves_nobody(
    tmp_path: Path, mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat, layer: int, forwards: int
) -> None:
    """Neither in memory nor on disk: blocks that the step had been given were never computed."""
    expected = alone(mla, tokenizer, chat, ask())
    engine = Engine.of(mla, tokenizer, chat, slots=8, cache_dir=tmp_path, step_tokens=100)
    engine.submit(ask(OTHER))
    left = [forwards]

    def press(module: object, _: object) -> None:
        left[0] -= module is mla.layers[layer]
        if module is mla.layers[layer] and not left[0]:
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(1000))  # until Python looks

    hook = register_module_forward_pre_hook(press)  # not the model's own: that would be another model
    with pytest.raises(KeyboardInterrupt):
        list(engine.stream(ask()))
    hook.remove()
    assert engine.step() == [] and engine.stats()["running"] == engine.stats()["waiting"] == 0
    check_scheduler(engine._cores[0].scheduler)
    assert ids_and_logprobs(engine.generate([ask()])[0][0]) == expected
    engine.close()
    again = Engine.of(mla, tokenizer, chat, slots=8, cache_dir=tmp_path)
    found = again.generate([ask()])[0][0]
    assert ids_and_logprobs(found) == expected and found.usage["prompt_cache_hit_tokens"] == 128, (
        "what was computed serves on"
    )


class Interrupts:
    """Ctrl-C at the n-th call of a Python function in this thread: wherever that is."""

    def __init__(self, at: int) -> None:
        self.left = self.at = at

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def during(self, work: Callable[[], object]) -> bool:
        """Whether it came before `work` was done."""
        sys.setprofile(self)
        try:
            work()
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return False


@pytest.mark.parametrize("seed", range(2))
def test_ctrl_c_at_any_moment_leaves_an_engine_that_answers_right(
    mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat, seed: int
) -> None:
    engine = Engine.of(mla, tokenizer, chat, slots=8, reuse=True, step_tokens=100)
    asked, others = ask(temperature=1.0, n=2), [ask(OTHER), ask(PROMPT[:70], temperature=1.0)]
    expected = [[ids_and_logprobs(one) for one in group] for group in engine.generate([asked, *others])]

    def streams() -> None:
        engine.submit(others[0])
        for _ in zip_longest(engine.stream(asked), engine.stream(others[1])):
            pass
        engine.step()

    works = (streams, lambda: engine.generate([asked, *others]))
    counter = Interrupts(0)
    counter.during(works[seed % 2])
    engine.step()
    calls = -counter.left
    assert calls > 300
    came = 0
    for at in random.Random(seed).sample(range(1, calls), 20):
        came += Interrupts(at).during(works[seed % 2])
        for request_id in list(engine._jobs):  # whose caller went on without them
            engine.cancel(request_id)
        engine.step()  # what had ended, for who submitted it
        check_scheduler(engine._cores[0].scheduler)
        assert engine.step() == [] and engine.stats()["running"] == engine.stats()["waiting"] == 0, at
        assert [[ids_and_logprobs(one) for one in group] for group in engine.generate([asked, *others])] == expected, at
    assert came > 10


def test_an_error_in_one_lane_stops_the_others(
    mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rorqual.engine.engine.CORE_WORK", 1)
    engine = Engine.of(mla, tokenizer, chat, slots=8, threads=2)
    asked = [Request(params=SamplingParams(max_tokens=90, ignore_eos=True), prompt_ids=OTHER[:n]) for n in (40, 50)]
    expected = [ids_and_logprobs(group[0]) for group in engine.generate(asked)]
    calls: dict[int, int] = {}
    both = threading.Barrier(2)

    def fail(*_: object) -> None:
        here = threading.get_ident()
        if here not in calls:
            calls[here] = 0
            both.wait(60)
        calls[here] += 1
        if here == list(calls)[1] and calls[here] == 3:
            raise MemoryError

    hook = mla.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        engine.generate(asked)
    hook.remove()
    assert sum(calls.values()) < 80, "90 steps each were asked for"
    assert [ids_and_logprobs(group[0]) for group in engine.generate(asked)] == expected


def test_several_streams_each_have_all_their_tokens(engine: Engine) -> None:
    requests = [ask(), ask(OTHER, temperature=1.0, n=3), ask(PROMPT[:70], seed=3, temperature=1.0)]
    expected = [[ids_and_logprobs(sample) for sample in group] for group in engine.generate(requests)]
    submitted = engine.submit(ask(OTHER[:40]))
    drawn: list[list[list[int]]] = [[[] for _ in group] for group in expected]
    for row in zip_longest(*map(engine.stream, requests)):
        for place, delta in enumerate(row):
            if delta is not None:
                drawn[place][delta.sample].append(delta.token)
    assert drawn == [[tokens for tokens, _ in group] for group in expected]
    rest = engine.step()
    assert {delta.request_id for delta in rest} == {submitted} and len(rest) == 12, (
        "what others asked for is kept for them"
    )
    assert rest[-1].completion is not None


def test_a_cancelled_request_says_nothing_more(engine: Engine) -> None:
    request_id = engine.submit(ask())
    stream = engine.stream(ask(OTHER))
    next(stream)
    engine.cancel(request_id)
    assert engine.step() == []


# ---- other weights


@pytest.mark.parametrize("reuse", [True, False])
def test_whoever_comes_after_a_change_of_weights_has_the_new_ones_alone(
    tokenizer: Tokenizer, chat: ChatFormat, reuse: bool
) -> None:
    """Also where the same prompt is half fed with the old ones."""
    old, new = make_model("mla", context=256), make_model("mla", seed=5, context=256)
    expected = alone(new, tokenizer, chat, ask())
    assert expected != alone(old, tokenizer, chat, ask())
    engine = Engine.of(old, tokenizer, chat, slots=8, reuse=True, step_tokens=70)
    first = ask()
    engine.submit(Request(first.messages, first.params, prompt_ids=first.prompt_ids, reuse=reuse))
    assert engine.step() == []  # the prompt is fed in part
    engine.load_weights(new)
    assert ids_and_logprobs(run_out(engine, engine.submit(ask()))) == expected
    assert ids_and_logprobs(run_out(engine, engine.submit(ask()))) == expected


# ---- what is no number


@pytest.mark.parametrize("top_logprobs", [0, 3])
def test_a_logit_that_is_no_number_ends_its_own_request(
    mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat, top_logprobs: int
) -> None:
    model = copy.deepcopy(mla)
    with torch.no_grad():
        model.embed_tokens.weight[255] = torch.nan
    good, bad = ask(top_logprobs=top_logprobs), ask((*OTHER, 255), top_logprobs=top_logprobs)
    expected = alone(model, tokenizer, chat, good)
    engine = Engine.of(model, tokenizer, chat, slots=8)
    request_ids = [engine.submit(bad), engine.submit(good), engine.submit(bad)]
    done: dict[int, Completion] = {}
    while len(done) < 3:
        done |= {delta.request_id: delta.completion for delta in engine.step() if delta.completion is not None}
    assert ids_and_logprobs(done[request_ids[1]]) == expected and not done[request_ids[1]].error
    for request_id in (request_ids[0], request_ids[2]):
        assert "NaN or infinite logit" in done[request_id].error and len(done[request_id].token_ids) == 1
    with pytest.raises(NumericsError, match="NaN or infinite logit"):
        engine.generate([good, bad])
    assert ids_and_logprobs(engine.generate([good])[0][0]) == expected


@pytest.mark.parametrize("cut", [40, 64, 89])
def test_what_is_no_number_reaches_nobody_who_has_its_blocks_later(
    tmp_path: Path, mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat, cut: int
) -> None:
    """Also where nobody overwrites it: behind the end of a shorter prompt a weight of 0 times NaN would be NaN."""
    model = copy.deepcopy(mla)
    with torch.no_grad():
        model.embed_tokens.weight[255] = torch.nan
    bad, good = ask((*OTHER[:cut], 255, *OTHER[cut:])), ask(PROMPT[:70])
    expected = alone(model, tokenizer, chat, good)
    for reuse in (False, True):
        engine = Engine.of(
            model, tokenizer, chat, slots=1, reuse=reuse, cache_bytes=160 << 10, cache_dir=tmp_path if reuse else None
        )
        assert run_out(engine, engine.submit(bad)).error
        assert ids_and_logprobs(run_out(engine, engine.submit(good))) == expected
        cancelled = engine.submit(bad)
        engine.step()
        engine.cancel(cancelled)
        assert ids_and_logprobs(run_out(engine, engine.submit(good))) == expected
        engine.close()
    again = Engine.of(model, tokenizer, chat, slots=2, cache_dir=tmp_path)
    assert ids_and_logprobs(again.generate([good])[0][0]) == expected
