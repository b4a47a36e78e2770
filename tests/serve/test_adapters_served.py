"""Adapters in the engine's process: who asks for one has its answer, also from an engine that was started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from shapes import service_of

from served import write_run

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from adapted import write_adapter

from rorqual.core.records import RunDir
from rorqual.core.sampling import SamplingParams
from rorqual.engine import Engine, Request
from rorqual.model.load.run_directory import load_run
from rorqual.serve import bridge as rules
from rorqual.serve.bridge import EngineBridge
from rorqual.serve.errors import ApiError
from rorqual.serve.schemas import TextRequest
from rorqual.serve.wire import EngineArguments, EngineRequest, SampledToken, pack

PARAMS = SamplingParams(max_tokens=4, temperature=1.0, ignore_eos=True)
PROMPT = tuple(range(40, 130))


async def answers(bridge: EngineBridge, *adapters: str) -> list[list[tuple[int, float]]]:
    """The tokens of one prompt by each adapter at once, with their log-probabilities."""
    found: list[list[tuple[int, float]]] = [[] for _ in adapters]
    asks = [pack(EngineRequest(PROMPT, PARAMS, adapter=name)) for name in adapters]
    assert [ask.adapter for ask in asks] == list(adapters)
    with bridge.submitted_job(asks, "ada") as job:
        while job.left or not job.events.empty():
            event = await job.next_event(60)
            if isinstance(event, SampledToken):
                found[event.sample].append((event.token, event.logprob))
    return found


async def refusal(action: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await action
    return caught.value


def test_the_engines_process_has_the_adapters_that_the_server_loaded(tmp_path: Path) -> None:
    """Each request is answered by its own, and by the same after the engine was killed. What is not loaded is refused with the reason."""
    base = write_run(tmp_path / "base")
    model, step = load_run(RunDir(base)), RunDir(base).step_dir(0)
    folders = {name: write_adapter(tmp_path / name, step, model, seed) for seed, name in enumerate(("one", "two"))}
    engine, expected = Engine(base), []
    for name, folder in folders.items():
        engine.load_adapter(name, folder)
    for name in ("two", "", "one"):
        [[found]] = engine.generate([Request(prompt_ids=PROMPT, params=PARAMS, adapter=name)])
        expected.append(list(zip(found.token_ids, found.logprobs, strict=True)))
    assert len({str(one) for one in expected}) == 3

    async def act() -> None:
        bridge = EngineBridge(EngineArguments(str(base), engine={"slots": 4}))
        assert (await refusal(bridge.load_adapter("one", folders["one"]))).status == 503, "it is not started"
        await bridge.start()
        await asyncio.gather(*(bridge.load_adapter(name, folder) for name, folder in folders.items()))
        for _ in range(2):
            assert await answers(bridge, "two", "", "one") == expected
            assert bridge._process is not None
            os.kill(bridge._process.pid, signal.SIGKILL)
            while bridge.alive:
                await asyncio.sleep(0.01)
        error = await refusal(bridge.load_adapter("one", folders["one"]))
        assert (error.status, error.code) == (503, "loading")
        while not bridge.alive:
            await asyncio.sleep(0.01)
        error = await refusal(bridge.load_adapter("three", step))
        assert (error.status, error.code) == (422, "adapter_refused") and "holds no adapter" in error.message
        await bridge.load_adapter("three", folders["two"])
        await bridge.unload_adapter("two")
        assert bridge.adapters == {"one": folders["one"], "three": folders["two"]}
        assert await answers(bridge, "three", "", "one") == expected
        error = await refusal(answers(bridge, "two"))
        assert error.status == 400 and "adapter 'two' is not loaded" in error.message
        assert "not loaded" in (await refusal(bridge.unload_adapter("two"))).message
        waiting = asyncio.create_task(bridge.load_adapter("two", folders["two"]))
        os.kill(bridge._process.pid, signal.SIGSTOP)
        await asyncio.sleep(0)
        os.kill(bridge._process.pid, signal.SIGKILL)
        assert (await refusal(waiting)).code == "engine_died"
        await bridge.stop()

    asyncio.run(act())


def test_an_adapter_that_is_unloaded_before_its_request_comes_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MOST_ADAPTERS", 1)
    base = write_run(tmp_path / "base")
    model, step = load_run(RunDir(base)), RunDir(base).step_dir(0)
    folders = {name: write_adapter(tmp_path / name, step, model, seed) for seed, name in enumerate(("one", "two"))}

    async def act() -> None:
        bridge = EngineBridge(EngineArguments(str(base), engine={"slots": 4}))
        await bridge.start()
        await bridge.use_adapter("two", folders["two"])
        [expected] = await answers(bridge, "two")
        await bridge.use_adapter("one", folders["one"])
        assert {*bridge.adapters} == {"one"} and await answers(bridge, "two") == [expected] != await answers(
            bridge, "one"
        )
        await bridge.stop()

    asyncio.run(act())


def test_a_request_that_the_server_builds_has_its_models_adapter() -> None:
    request = TextRequest.model_validate({"model": "m", "prompt": "a"})
    for folder, name in (("runs/tuned/step-000001", "m"), ("", "")):
        assert service_of(adapter=folder).build_engine_request(request, PROMPT, "messages").adapter == name
