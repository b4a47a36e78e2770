"""A server as a trainer's rollout engine: the same bits as an engine on the trained tensors, and weights that are taken whole or refused."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from served import Server, running

sys.path.append(str(Path(__file__).parents[1] / "train"))  # a model that has half learned to answer
from little import TASK, engine_of, grpo_run, on_policy_run, records, sft_run, stored_weights

from rorqual.core.config import to_yaml
from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Request, SamplingParams
from rorqual.engine.remote.engine import RemoteError
from rorqual.engine.remote.rollout import UNSUPPORTED, RemoteRolloutEngine
from rorqual.engine.remote.rollouts import RolloutEngines, connect
from rorqual.engine.request import Grammar
from rorqual.engine.rollout_engine import InlineRolloutEngine, gather_completions
from rorqual.model import Decoder
from rorqual.model.adapter import LoRA
from rorqual.model.load.run_directory import load_run
from rorqual.serve.keys import ApiKeys
from rorqual.train.loop import fit
from rorqual.train.run import Run

CHAT = chat_format(Tokenizer.byte_level(), "deepseek")
GENERATE, WEIGHTS = "/rollout/generate", "/rollout/weights"
PROMPT = tuple(range(40, 60))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with experts that ends its turns and is sometimes right; two blocks of a cache and more fit its context."""
    out = tmp_path_factory.mktemp("base") / "run"
    run = sft_run(90, save_seconds=1e9)
    long = run.model.model_copy(update={"max_position_embeddings": 192})
    fit(run.model_copy(update={"model": long}), RunDir(out), quiet=True)
    return out


def serving(base: Path, folder: Path, *words: str) -> AbstractContextManager[Server]:
    return running(base, folder, "slots=8", "name=whale", *words)


@pytest.fixture(scope="module")
def rollout(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A rollout engine; `key` is a tenant's, `rollout_key` its own."""
    folder = tmp_path_factory.mktemp("rollout")
    with serving(base, folder, f"rollout_dir={folder / 'weights'}", "record_kept=true") as found:
        yield found
    assert not [*(folder / "weights").glob("weights-*")], "no weights are left behind"


def engine_at(server: Server, **settings: Any) -> RemoteRolloutEngine:
    return RemoteRolloutEngine(server.url, CHAT, api_key=server.rollout_key, **settings)


def client(server: Server, key: str | None = None) -> httpx.Client:
    headers = {"authorization": f"Bearer {server.rollout_key if key is None else key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=600, trust_env=False)


def state_of(server: Server) -> dict[str, Any]:
    with client(server) as http:
        found: dict[str, Any] = http.get(WEIGHTS).json()
    return found


def other_weights(base: Path, seed: int = 0) -> Decoder:
    """The base's weights, all a little changed."""
    model = load_run(RunDir(base))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return model


def digest_of(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def put(http: httpx.Client, data: bytes, version: object, digest: str | None = None) -> httpx.Response:
    headers = {"content-digest": digest_of(data) if digest is None else digest}
    return http.post(f"{WEIGHTS}?version={version}", content=data, headers=headers)


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "whale", "prompt": list(PROMPT), "max_tokens": 8, "temperature": 1.0, "seed": 3, **more}


def drawn(server: Server, **more: Any) -> Any:
    """The first choice to a request with the server's key for rollouts."""
    with client(server) as http:
        answer = http.post(GENERATE, json=asked(**more))
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def inline(model: Decoder, **settings: Any) -> InlineRolloutEngine:
    return InlineRolloutEngine(engine_of(model, **settings))


def same(here: Completion, there: Completion) -> None:
    """Everything but what only one of the two has: what a cache served, and the model's name."""
    assert (here.experts is None) == (there.experts is None)
    assert here.experts.dtype == there.experts.dtype and torch.equal(here.experts, there.experts)
    assert (here.kept is None) == (there.kept is None) or here.kept is None
    assert here.kept is None or (here.kept.dtype == there.kept.dtype and (here.kept == there.kept).all())
    for field in fields(Completion):
        if field.name not in ("experts", "kept", "usage", "model", "policy_version"):
            assert getattr(here, field.name) == getattr(there, field.name), field.name


# ---- training


def truncated(base: Path) -> Run:
    """With a temperature that the server's other routes do not take, and cuts whose sets are replayed."""
    run = grpo_run(base, 2, temperature=2.5)
    return run.model_copy(update={"source": run.source.model_copy(update={"top_p": 0.8, "top_k": 6})})


def the_same_run(one: Path, other: Path) -> None:
    assert stored_weights(one) == stored_weights(other) and records(one) == records(other)
    assert list(RunDir(one).rollouts()) == list(RunDir(other).rollouts())


@pytest.mark.parametrize("kind", ["grpo", "truncated", "on_policy"])
def test_training_through_a_server_gives_the_same_bits(base: Path, rollout: Server, tmp_path: Path, kind: str) -> None:
    run = {"grpo": partial(grpo_run, steps=3), "truncated": truncated, "on_policy": on_policy_run}[kind](base)
    fit(run, RunDir(tmp_path / "inline"), quiet=True)
    before = state_of(rollout)["version"]
    at = partial(RemoteRolloutEngine, f"{rollout.url}/v1", api_key=rollout.rollout_key)
    fit(run, RunDir(tmp_path / "remote"), quiet=True, rollout_engine=at)
    the_same_run(tmp_path / "inline", tmp_path / "remote")
    assert state_of(rollout)["version"] == before + run.steps
    assert (
        stored_weights(tmp_path / "inline") != stored_weights(base) and records(tmp_path / "remote")[0]["updates"] > 0
    )


def test_an_adapter_is_merged_into_what_is_sent(base: Path, rollout: Server, tmp_path: Path) -> None:
    """A merged map rounds in another way; trainer and sampler agree all the same."""
    run = grpo_run(base, 3, tune=LoRA(r=4))
    fit(run, RunDir(tmp_path / "run"), quiet=True, rollout_engine=lambda _: engine_at(rollout))
    assert len(records(tmp_path / "run")) == 3
    assert all(record["logprob_diff"] <= 1e-6 for record in records(tmp_path / "run"))


def test_a_run_that_is_killed_goes_on_through_the_server_to_the_same_bits(
    base: Path, rollout: Server, tmp_path: Path
) -> None:
    """By the command: its key is in the environment, and nothing of the address is in the run."""
    run = grpo_run(base, 5)
    fit(run, RunDir(tmp_path / "straight"), quiet=True)
    words = [
        "grpo", f"task={TASK}", f"from={base}", "steps=5", "problems=4", "samples=6", "max_tokens=12", "row=48", "save_seconds=1e-9",
        f"out={tmp_path / 'killed'}", "threads=1", "quiet=true", f"rollout={rollout.url}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "rorqual", "train", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RORQUAL_ROLLOUT_KEY": rollout.rollout_key}
    killed, lines = subprocess.Popen(command, env=environment), 0
    while killed.poll() is None and lines < 2:
        time.sleep(0.02)
        lines = len(records(tmp_path / "killed")) if RunDir(tmp_path / "killed").metrics_file.is_file() else 0
    killed.kill()
    assert killed.wait() == -signal.SIGKILL, "it ended before it was killed"
    subprocess.run(command, env=environment, check=True)
    the_same_run(tmp_path / "straight", tmp_path / "killed")
    written = RunDir(tmp_path / "killed").config_file.read_text(encoding="utf-8")
    assert written == to_yaml(run) or "rollout:" not in written
    assert rollout.rollout_key not in written and urlsplit(rollout.url).netloc not in written
    wrong = subprocess.run(
        [f"out={tmp_path / 'wrong'}" if word.startswith("out=") else word for word in command],
        env={**environment, "RORQUAL_ROLLOUT_KEY": rollout.key}, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert wrong.returncode == 2 and "RORQUAL_ROLLOUT_KEY" in wrong.stderr and not (tmp_path / "wrong").exists()


class Watched(RolloutEngines):
    """Several engines. When the first sample of the third version arrives, `lose` is called."""

    def __init__(
        self, engines: Sequence[RemoteRolloutEngine], say: Callable[[str], None], lose: Callable[[], None]
    ) -> None:
        super().__init__(engines, say)
        self.lose, self.asked = lose, list[int]()
        self.versions, self.came = list[int](), 0

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        self.asked.append(len(requests))
        for number, completion in enumerate(super().generate(requests)):
            if number == 0 and len(self.versions) == 3:
                self.lose()
            self.came += 1
            yield completion

    def update(self, weights: Decoder, version: int) -> None:
        self.versions.append(version)
        super().update(weights, version)


def test_one_of_two_servers_is_lost_and_no_sample_changes_or_is_taken_twice(
    base: Path, rollout: Server, tmp_path: Path
) -> None:
    run, said, folder = grpo_run(base, 4), list[str](), tmp_path / "second"
    folder.mkdir()
    fit(run, RunDir(tmp_path / "inline"), quiet=True)
    with serving(base, folder, f"rollout_dir={folder / 'weights'}", "record_kept=true") as other:
        before = state_of(rollout)["version"]
        both = [engine_at(one, retries=1, backoff=0.01) for one in (rollout, other)]
        engines = Watched(both, said.append, other.process.kill)
        fit(run, RunDir(tmp_path / "remote"), quiet=True, rollout_engine=lambda _: engines)
    the_same_run(tmp_path / "inline", tmp_path / "remote")
    assert engines.came == 4 * 24 and engines.asked[:3] == [4, 4, 4], "no sample comes twice"
    assert len(engines.asked) > 4 and 0 < engines.asked[3] <= 12, (
        "the half that was missing is asked again, and no more"
    )
    assert {word.partition(" is left out")[0] for word in said} == {f"rollout engine {other.url}/rollout/generate"}
    assert state_of(rollout)["version"] == before + 4


def test_without_any_server_the_error_is_the_last_ones(base: Path, rollout: Server, tmp_path: Path) -> None:
    gone = engine_at(rollout, retries=0)
    gone.weights_url = gone.url = "http://127.0.0.1:9/rollout/weights"
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9"):
        RolloutEngines([gone], lambda _: None).update(load_run(RunDir(base)), 10**6)


def test_a_server_that_does_not_answer_at_the_start_is_left_out(
    rollout: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, key = "http://127.0.0.1:9", [rollout.rollout_key]
    found = connect([gone, rollout.url], CHAT, api_keys=key, retries=0)
    assert isinstance(found, RemoteRolloutEngine) and found.url.startswith(rollout.url)
    assert "a rollout engine is left out until the next start: http://127.0.0.1:9" in capsys.readouterr().out
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9"):
        connect([gone], CHAT, api_keys=key, retries=0)


def test_an_engine_that_has_lost_the_weights_is_left_out(base: Path, rollout: Server) -> None:
    engine, said = engine_at(rollout), list[str]()
    engines = RolloutEngines([engine], said.append)
    engine.version += 1  # what the server would have if it had not started again
    assert list(engines.generate([QUESTION])) == [] and "has lost the weights" in said[0]


@pytest.mark.parametrize(("count", "keys"), [(1, ["a"]), (3, ["a"]), (2, ["a", "b"])])
def test_addresses_and_keys_go_together(count: int, keys: list[str], rollout: Server) -> None:
    used = [rollout.rollout_key if key == "a" else "wrong" for key in keys]
    if "b" in keys:
        with pytest.raises(RemoteError, match="RORQUAL_ROLLOUT_KEY"):
            connect([rollout.url] * count, CHAT, api_keys=used)
        return
    found = connect([rollout.url] * count, CHAT, api_keys=used)
    assert isinstance(found, RemoteRolloutEngine if count == 1 else RolloutEngines)
    assert not isinstance(found, RolloutEngines) or len(found.engines) == count


# ---- samples

QUESTION = Request((Message("user", "after c"),), SamplingParams(max_tokens=12, temperature=1.0, seed=9, n=2), "on")
OTHERS: dict[str, Any] = {
    "max_tokens": 2,
    "temperature": 0.4,
    "top_p": 0.5,
    "top_k": 2,
    "min_p": 0.3,
    "repetition_penalty": 2.0,
    "presence_penalty": 2.0,
    "frequency_penalty": 2.0,
    "ignore_eos": True,
    "min_tokens": 9,
    "min_p_first": True,
    "think_budget": 2,
    "calculator": True,
    "seed": 10,
    "n": 3,
    "logit_bias": ((101, 9.0),),
    "stop_token_ids": (6, 74, 79),
}
BESIDE: dict[str, dict[str, Any]] = {
    "think_budget": {"logit_bias": ((5, 100.0),)},  # thinks, and thinks again
    # writes only the characters `+`, `1`, `2` and `=`
    "calculator": {"logit_bias": ((17, 99.0), (23, 100.0), (24, 100.0), (35, 99.0)), "max_tokens": 48, "n": 8},
    # writes only `+`, `1` and `=`
    "ignore_eos": {"max_tokens": 40},
    "min_p_first": {"temperature": 3.0, "min_p": 0.2, "top_p": 0.5},
    "stop_token_ids": {"ignore_eos": True},
}


@pytest.fixture(scope="module")
def trained(base: Path, rollout: Server) -> tuple[Decoder, RemoteRolloutEngine]:
    """Weights that the run's own are not, and the server that has them."""
    model, engine = other_weights(base), engine_at(rollout)
    engine.update(model, engine.version + 1)
    return model, engine


def test_no_parameter_is_forgotten_here() -> None:
    assert {field.name for field in fields(SamplingParams)} == {*OTHERS, *UNSUPPORTED}


@pytest.mark.parametrize("name", OTHERS)
def test_each_parameter_reaches_the_server(trained: tuple[Decoder, RemoteRolloutEngine], name: str) -> None:
    model, engine = trained
    engine.update(model, engine.version + 1)  # whoever else was here
    without = replace(QUESTION, params=replace(QUESTION.params, **BESIDE.get(name, {})))
    request = replace(without, params=replace(without.params, **{name: OTHERS[name]}))
    here = inline(model, record_kept=True)
    here.version = engine.version
    [plain], [[*samples]] = (gather_completions(here, [one], version=engine.version) for one in (without, request))
    assert [one.token_ids for one in plain] != [one.token_ids for one in samples] or (
        plain[0].logprobs != samples[0].logprobs
    )
    [there] = gather_completions(engine, [request], version=engine.version)
    for one, other in zip(samples, there, strict=True):
        same(one, other)
        assert (other.kept == one.kept).all() and other.policy_version == engine.version
        assert other.usage["prompt_tokens"] == len(one.prompt_ids)


@pytest.mark.parametrize(
    ("name", "value"), [("stop", ("a",)), ("grammar", Grammar("json")), ("top_logprobs", 1), ("prompt_logprobs", 0)]
)
def test_what_a_rollout_has_no_place_for_is_refused_by_name(
    trained: tuple[Decoder, RemoteRolloutEngine], name: str, value: Any
) -> None:
    request = replace(QUESTION, params=replace(QUESTION.params, **{name: value}))
    with pytest.raises(DataError, match=f"'{name}' is not supported by remote rollouts"):
        [*trained[1].generate([request])]


def test_a_trainer_of_another_tokenizer_or_format_is_refused(rollout: Server) -> None:
    other = Tokenizer.byte_level(["abc abc abc"] * 9, 270)
    for chat in (chat_format(other, "deepseek"), chat_format(Tokenizer.byte_level(), "none")):
        with pytest.raises(ConfigError, match="the server's tokenizer or chat format"):
            RemoteRolloutEngine(rollout.url, chat, api_key=rollout.rollout_key)


# ---- the routes and their key


def test_the_key_for_rollouts_opens_these_routes_alone_and_no_tenants_key_does(rollout: Server) -> None:
    ours = ("GET", WEIGHTS), ("POST", WEIGHTS), ("POST", GENERATE)
    for method, path in ours:
        for key in (rollout.key, "rq-nothing", rollout.rollout_key[:-1]):
            with client(rollout, key) as http:
                answer = http.request(method, path)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        with client(rollout) as http:
            assert http.request(method, path).status_code == (200 if method == "GET" else 400)
        for spelt in (path.upper(), "/" + path, path.replace("/rollout/", "/rollout//"), path + "/"):
            with client(rollout, rollout.key) as http:
                assert http.request(method, spelt).status_code in (401, 404, 405)
    with client(rollout) as http:
        for path in ("/v1/models", "/health", "/metrics", "/openapi.json"):
            assert http.get(path).status_code == 401
        assert http.post("/v1/completions", json=asked()).status_code == 401
    assert rollout.key != rollout.rollout_key
    folder = rollout.log.parent / "weights"
    assert [*ApiKeys.load(folder / "rollout-key.json").tenants.values()] == ["rollout"]
    assert rollout.rollout_key not in (folder / "rollout-key.json").read_text(encoding="utf-8")


def test_the_routes_are_not_there_unless_they_were_asked_for(server: Server) -> None:
    with server.client as http:
        for method, path in (("GET", WEIGHTS), ("POST", WEIGHTS), ("POST", GENERATE)):
            assert http.request(method, path).status_code == 404
        assert not any("rollout" in path for path in http.get("/openapi.json").json()["paths"])
        assert http.get("/v1/models").status_code == 200
    with pytest.raises(RemoteError, match=r"HTTP 404(.|\n)*rollout_dir=FOLDER"):
        RemoteRolloutEngine(server.url, CHAT, api_key=server.key)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stream": True}, "stream"),
        ({"echo": True}, "echo"),
        ({"prompt": "text"}, "one list of token ids"),
        ({"prompt": [[1], [2]]}, "one list of token ids"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"temperature": 1001}, "temperature"),
        ({"model": "other"}, "not served here"),
    ],
    ids=str,
)
def test_a_request_that_is_no_rollout_is_refused(rollout: Server, change: dict[str, Any], said: str) -> None:
    with client(rollout) as http:
        answer = http.post(GENERATE, json=asked() | change)
        assert answer.status_code in (400, 404) and said in answer.json()["error"]["message"], answer.text
        assert http.post(GENERATE, json=asked()).status_code == 200


# ---- updates


def poisons(state: dict[str, Tensor], version: int) -> dict[str, tuple[bytes, Any, str | None, int, str]]:
    """Body, version, digest (None: the body's own), and how it is refused. All are as near to a valid update as can be."""
    good = save(state)
    name = "layers.1.ffn.router.gate"
    reshaped = save(state | {name: state[name].T.contiguous()})
    missing, left_over = save({k: v for k, v in state.items() if k != name}), save(state | {"more": torch.zeros(1)})
    renamed = save({k.replace(name, name + "s"): v for k, v in state.items()})
    whole = save(state | {name: state[name].long()})
    spoiled = save(state | {name: state[name].index_fill(0, torch.tensor([1]), float("nan"))})
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    return {
        "an old version": (good, version - 1, None, 412, "not newer than"),
        "the version that it has": (good, version, None, 412, "not newer than"),
        "no version": (good, "", None, 400, "version"),
        "a version that is no number": (good, "-1", None, 400, "version"),
        "no digest": (good, version + 1, "", 422, "content-digest"),
        "another kind of digest": (good, version + 1, "md5=:AAAA:", 422, "content-digest"),
        "a wrong digest": (good, version + 1, digest_of(flipped), 422, "content-digest"),
        "a changed body": (flipped, version + 1, digest_of(good), 422, "content-digest"),
        "a truncated body": (good[:-1], version + 1, digest_of(good), 422, "content-digest"),
        "a body that was truncated before it was hashed": (good[:-1], version + 1, None, 422, "not a safetensors file"),
        "nothing": (b"", version + 1, None, 422, "not a safetensors file"),
        "no safetensors": (b"x" * len(good), version + 1, None, 422, "not a safetensors file"),
        "too much": (good + b" " * 2**20, version + 1, None, 413, "at most"),
        "a name missing": (missing, version + 1, None, 422, f"missing {name}"),
        "a name left over": (left_over, version + 1, None, 422, "unexpected more"),
        "another name": (renamed, version + 1, None, 422, f"unexpected {name}s"),
        "another shape": (reshaped, version + 1, None, 422, f"{name} has shape"),
        "whole numbers": (whole, version + 1, None, 422, "not finite floating-point numbers"),
        "no numbers": (spoiled, version + 1, None, 422, "not finite floating-point numbers"),
    }


def state_dict(model: Decoder) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def test_poisons_are_refused_beside_their_valid_twin_and_the_model_answers_as_before(
    base: Path, rollout: Server
) -> None:
    model = other_weights(base, seed=1)
    engine = engine_at(rollout)
    engine.update(other_weights(base, seed=2), engine.version + 1)
    before, state, folder = drawn(rollout), state_of(rollout), rollout.log.parent / "weights"
    with client(rollout) as http:
        for name, (data, version, digest, status, said) in poisons(state_dict(model), state["version"]).items():
            answer = put(http, data, version, digest)
            assert answer.status_code == status and said in answer.json()["error"]["message"], (name, answer.text)
            assert drawn(rollout) == before and state_of(rollout) == state, name
            assert len([*folder.glob("weights-*")]) == 1, "nothing is left of what was refused"
        good, version = save(state_dict(model)), state["version"] + 1
        for _ in range(2):  # the answer to the first may have been lost
            answer = put(http, good, version)
            assert answer.status_code == 200 and answer.json()["version"] == version, answer.text
            assert answer.json()["sha256"] == hashlib.sha256(good).hexdigest()
        assert put(http, save(state_dict(other_weights(base, seed=2))), version).status_code == 412
    after = drawn(rollout)
    assert after["policy_version"] == version and after["token_ids"] != before["token_ids"]
    [here] = inline(model).generate(
        [Request(prompt_ids=PROMPT, params=SamplingParams(max_tokens=8, temperature=1.0, seed=3))]
    )
    assert (after["token_ids"], after["logprobs"]) == (here.token_ids, here.logprobs)


def test_what_runs_ends_with_the_weights_that_it_began_with(base: Path, rollout: Server) -> None:
    """The engine stands still while a request, an update and another request come; then they are done in that order."""
    models = [other_weights(base, seed=seed) for seed in (4, 5)]
    engine = engine_at(rollout)
    engine.update(models[0], engine.version + 1)
    folder, old = rollout.log.parent / "weights", engine.version
    found: dict[str, Any] = {}

    def ask(name: str) -> None:
        found[name] = drawn(rollout, max_tokens=30, ignore_eos=True)

    def tenant(name: str) -> None:
        with rollout.client as http:
            body = asked(max_tokens=30, ignore_eos=True, logprobs=0)
            found[name] = http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["token_logprobs"]

    def update() -> None:
        with client(rollout) as http:
            found["update"] = put(http, save(state_dict(models[1])), old + 1).status_code

    def waits(total: int) -> bool:
        return rollout.metric("running") + rollout.metric("waiting") == total

    rollout.wait("running", 0)
    process = rollout.engine()
    os.kill(process, signal.SIGSTOP)
    threads = []
    try:
        for work, arrived in (
            (partial(ask, "first"), lambda: waits(1)),
            (partial(tenant, "tenant"), lambda: waits(2)),
            (update, lambda: len([*folder.glob("weights-*")]) == 2),
            (partial(ask, "second"), lambda: waits(3)),
            (partial(tenant, "later"), lambda: waits(4)),
        ):
            threads.append(threading.Thread(target=work))
            threads[-1].start()
            end = time.monotonic() + 120
            while not arrived():
                assert time.monotonic() < end
                time.sleep(0.02)
        with client(rollout) as http:
            answer = put(http, save(state_dict(models[1])), old + 2)
            assert answer.status_code == 409 and "Another update" in answer.text
    finally:
        os.kill(process, signal.SIGCONT)
    for thread in threads:
        thread.join(120)
    request = Request(prompt_ids=PROMPT, params=SamplingParams(max_tokens=30, temperature=1.0, seed=3, ignore_eos=True))
    [before], [after] = (inline(model).generate([request]) for model in models)
    assert before.token_ids != after.token_ids and found["update"] == 200
    for name, other, expected, version in (("first", "tenant", before, old), ("second", "later", after, old + 1)):
        assert found[name]["policy_version"] == version, name
        assert (found[name]["token_ids"], found[name]["logprobs"]) == (expected.token_ids, expected.logprobs), name
        assert found[other] == expected.logprobs, other


def test_an_update_is_done_when_what_it_waits_for_was_cancelled(base: Path, rollout: Server) -> None:
    """The engine stands still until an update has come and then the only client has left."""
    data, version = save(state_dict(other_weights(base, seed=6))), state_of(rollout)["version"] + 1
    body, process = asked(max_tokens=150, ignore_eos=True, stream=True, n=100), rollout.engine()
    with ThreadPoolExecutor(1) as pool, client(rollout) as http, client(rollout) as other, rollout.client as tenant:
        http.timeout = 60
        try:
            with tenant.stream("POST", "/v1/completions", json=body) as stream:
                lines = stream.iter_lines()
                assert any("text" in line for line in lines)
                os.kill(process, signal.SIGSTOP)
                update = pool.submit(put, http, data, version)
                while put(other, b"x", version, "").status_code != 409:
                    time.sleep(0.02)
            rollout.wait("running", 0)
        finally:
            os.kill(process, signal.SIGCONT)
        assert update.result().json()["version"] == version


def test_an_engine_that_dies_has_the_same_weights_again(base: Path, rollout: Server) -> None:
    model = other_weights(base, seed=8)
    engine = engine_at(rollout)
    engine.update(model, engine.version + 1)
    before, restarts = drawn(rollout), rollout.metric("engine_restarts_total")
    assert before["policy_version"] == engine.version
    os.kill(rollout.engine(), signal.SIGKILL)
    rollout.wait("engine_restarts_total", restarts + 1)
    assert drawn(rollout) == before, "whoever comes before it is up again waits, and gets the new weights"


def test_two_servers_do_not_share_a_folder_of_weights(base: Path, rollout: Server, tmp_path: Path) -> None:
    folder = rollout.log.parent / "weights"
    with (
        pytest.raises(AssertionError, match="its own rollout_dir"),
        serving(base, tmp_path, f"rollout_dir={folder}"),
    ):
        pass
    assert drawn(rollout)["token_ids"]
