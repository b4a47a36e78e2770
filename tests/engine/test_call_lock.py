"""One call at a time changes an engine: others wait, are refused by name, or are put off; nobody gets another's answer."""

from __future__ import annotations

import threading

import pytest
import torch
from consistency import check_scheduler
from scaled import ids_and_logprobs, make_model

from rorqual.core.errors import ConfigError
from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.engine.call_lock import CallLock
from rorqual.model import Decoder


@pytest.fixture(scope="module")
def gqa() -> Decoder:
    return make_model("gqa", context=256)


@pytest.fixture
def engine(gqa: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> Engine:
    return Engine.of(gqa, tokenizer, chat, slots=4, reuse=True)


def ask(number: int, tokens: int = 20) -> Request:
    prompt = tuple(3 + (number * 31 + i * 7) % 250 for i in range(40 + number))
    return Request(
        prompt_ids=prompt, params=SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=1.0, seed=5)
    )


@pytest.fixture
def alone(gqa: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> dict[int, tuple[list[int], list[float]]]:
    other = Engine.of(gqa, tokenizer, chat, slots=4)
    return {number: ids_and_logprobs(other.generate([ask(number)])[0][0]) for number in range(6)}


@pytest.mark.parametrize("call", ["submit", "step", "generate", "stream", "weights_changed", "load_weights"])
def test_a_call_from_within_a_batch_is_refused_and_the_batch_is_whole(
    engine: Engine, alone: dict[int, tuple[list[int], list[float]]], call: str
) -> None:
    refused: list[str] = []

    def progress(*_: int) -> None:
        calls = {
            "submit": lambda: engine.submit(ask(5)), "step": engine.step, "generate": lambda: engine.generate([ask(5)]),
            "stream": lambda: next(engine.stream(ask(5))), "weights_changed": engine.weights_changed,
            "load_weights": lambda: engine.load_weights(make_model("gqa", context=256, seed=8)),
        }  # fmt: skip
        with pytest.raises(
            ConfigError, match=f"{call if call != 'stream' else 'submit'} was called from within"
        ) as caught:
            calls[call]()
        refused.append(caught.value.remedy)

    found = engine.generate([ask(number) for number in range(4)], progress=progress)
    assert [ids_and_logprobs(row[0]) for row in found] == [alone[number] for number in range(4)]
    assert refused and all("after the outer call has returned" in remedy for remedy in refused)
    assert ids_and_logprobs(engine.generate([ask(5)])[0][0]) == alone[5], "nothing was left behind"


def test_batches_and_streams_of_several_threads_wait_for_each_other(
    engine: Engine, alone: dict[int, tuple[list[int], list[float]]]
) -> None:
    found: dict[int, tuple[list[int], list[float]]] = {}

    def batch(number: int) -> None:
        found[number] = ids_and_logprobs(engine.generate([ask(number)])[0][0])

    threads = [threading.Thread(target=batch, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == alone


def test_a_request_that_is_cancelled_in_the_middle_of_a_step_leaves_after_it(
    engine: Engine, alone: dict[int, tuple[list[int], list[float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the garbage collector closes a stream."""
    sampler, steps = engine._cores[0].runner.sampler, [0]
    keep, cancelled = sampler.store_sampled_tokens, engine.submit(ask(5, 200))

    def cancelling(*given: object) -> object:
        drawn = keep(*given)  # type: ignore[arg-type]
        steps[0] += 1
        if steps[0] == 5:
            engine.cancel(cancelled)
        return drawn

    monkeypatch.setattr(sampler, "store_sampled_tokens", cancelling)
    numbers = {engine.submit(ask(number)): number for number in range(3)}
    found = {}
    while len(found) < 3:
        for delta in engine.step():
            if delta.completion is not None:
                found[numbers[delta.request_id]] = ids_and_logprobs(delta.completion)
    assert steps[0] > 5 and found == {number: alone[number] for number in range(3)}
    assert engine.step() == [] and engine.stats()["running"] == engine.stats()["waiting"] == 0
    check_scheduler(engine._cores[0].scheduler)


def test_a_batch_of_one_thread_uses_one_of_torchs_and_leaves_the_callers_number() -> None:
    torch.set_num_threads(3)
    seen = list[int]()
    CallLock().run_in_helper_threads([1, 2], lambda _: seen.append(torch.get_num_threads()), 1, threading.Event())
    assert seen == [1, 1] and torch.get_num_threads() == 3
