"""No option of `rorqual serve` is dropped or swapped between the command line and what it is for."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from served import CONTEXT, Server, start, stop, write_run

from rorqual.cli.machine import cores
from rorqual.cli.serving import ENGINE, ServeSettings
from rorqual.cli.serving import start as start_here
from rorqual.core.errors import ConfigError
from rorqual.engine import Engine, EngineConfig, Request, SamplingParams
from rorqual.serve.app import Edge
from rorqual.serve.descriptors import AT_ONCE
from rorqual.serve.keys import Keys
from rorqual.serve.server import Address
from rorqual.serve.wire import EngineArguments

TEXT = "/v1/completions"
ORIGINS = ("https://app.example", "http://localhost:3000")


class Told(Exception):
    """Ends a start where uvicorn would take over; it carries the application and uvicorn's settings."""


def told(run: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Edge, dict[str, Any]]:
    """The server that a command line makes, and what uvicorn is told."""

    def config(app: Edge, **settings: Any) -> None:
        raise Told(app, settings)

    monkeypatch.setattr(uvicorn, "Config", config)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with pytest.raises(Told) as caught:
            start_here(str(run), ["port=0", *words])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        gc.unfreeze()
    app, settings = caught.value.args
    return app, settings


def of_process(name: str) -> Callable[[Edge, dict[str, Any]], Any]:
    return lambda app, _: getattr(app.service.bridge.arguments, name)


def of_engine(name: str) -> Callable[[Edge, dict[str, Any]], Any]:
    return lambda app, _: getattr(EngineConfig(**app.service.bridge.arguments.engine), name)


def of_bridge(name: str) -> Callable[[Edge, dict[str, Any]], Any]:
    return lambda app, _: getattr(app.service.bridge, name)


def of_service(name: str) -> Callable[[Edge, dict[str, Any]], Any]:
    return lambda app, _: getattr(app.service, name)


# option: another value than the default, where it arrives, what is there, and what is there by default
OPTIONS: dict[str, tuple[str, Callable[[Edge, dict[str, Any]], Any], Any, Any]] = {
    "device": ("cuda:7", of_process("device"), "cuda:7", "cpu"),
    "dtype": ("bfloat16", of_process("dtype"), "bfloat16", "float32"),
    "slots": ("3", of_engine("slots"), 3, 16),
    "threads": ("5", of_process("threads"), 5, cores()),
    "max_len": ("1500", of_engine("max_len"), 1500, None),
    "cache_dir": ("CACHE", of_engine("cache_dir"), "CACHE", None),
    "cache_bytes": ("3000001", of_engine("cache_bytes"), 3000001, 1 << 30),
    "disk_bytes": ("3000002", of_engine("disk_bytes"), 3000002, 4 << 30),
    "backend": ("torch", of_engine("backend"), "torch", "torch-invariant"),
    "step_tokens": ("48", of_engine("step_tokens"), 48, 256),
    "rollout_dir": ("WEIGHTS", of_process("rollout_dir"), "WEIGHTS", ""),
    "record_kept": ("true", of_engine("record_kept"), True, False),
    "queue": ("77", of_bridge("queue"), 77, 256),
    "hang": ("101", of_bridge("hang"), 101, 120),
    "load": ("102", of_bridge("load"), 102, 3600),
    "name": ("org/whale", of_service("name"), "org/whale", "tiny"),
    "max_body": ("20001", of_service("max_body"), 20001, 8 << 20),
    "operator": ("boss", of_service("operator"), "boss", "default"),
    "think_budget": ("33", of_service("think_budget"), 33, 0),
    "cors": (",".join(ORIGINS), of_service("cors"), frozenset(ORIGINS), frozenset()),
    "tenant": ("ours", lambda app, _: [*app.service.keys.tenants.values()], ["ours"], ["default"]),
    "keys": ("KEYS", lambda app, _: app.service.keys.file.name, "KEYS", "keys.json"),
    "ui": ("false", lambda app, _: app.page is None, True, False),
    "grace": ("104", lambda _, settings: settings["timeout_graceful_shutdown"], 104, 30),
    "stall": ("105", lambda _, settings: settings["http"].keywords["stall"], 105, 30),
}


CASCADE_OPTIONS = {"calibration", "sure"}
"""Tested in test_cascade_server.py."""


@pytest.mark.parametrize("chosen", [True, False])
def test_every_option_arrives_and_so_does_every_default(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: bool
) -> None:
    """All of them at once, each with a value of its own: none stands in the place of another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    words = [f"{name}={word}" for name, (word, *_) in OPTIONS.items()] if chosen else []
    app, settings = told(run, words, monkeypatch)
    assert {name: arrives(app, settings) for name, (_, arrives, _, _) in OPTIONS.items()} == {
        name: there if chosen else default for name, (_, _, there, default) in OPTIONS.items()
    }
    assert (tmp_path / ("KEYS" if chosen else "config/rorqual/keys.json")).is_file()
    assert (tmp_path / "CACHE").is_dir() == (tmp_path / "WEIGHTS" / "rollout-key.json").is_file() == chosen
    assert (app.service.uploads is not None) == chosen
    assert app.service.bridge.arguments.run == str(run)
    assert app.service.bridge.share == app.service.bridge.queue, "one tenant may have every place"
    lobby = settings["http"].keywords["lobby"]
    assert settings["backlog"] <= AT_ONCE and lobby.most > settings["backlog"]


def test_a_budget_of_thinking_for_a_model_without_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "run.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "\nchat: deepseek-v3\n", encoding="utf-8")
    words = ["port=0", "think_budget=5", f"keys={tmp_path / 'keys.json'}", f"rollout_dir={tmp_path / 'weights'}"]
    with pytest.raises(ConfigError, match="think_budget=5, but the model's chat format has no thinking"):
        start_here(str(tmp_path / "run"), words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_no_option_is_forgotten_here() -> None:
    assert set(ServeSettings.model_fields) == {"host", "port", *OPTIONS, *CASCADE_OPTIONS}
    given = {field.name for kind in (EngineArguments, Address) for field in fields(kind)} - {"run", "engine"}
    assert given | {*ENGINE, *CASCADE_OPTIONS} == set(ServeSettings.model_fields)
    values = [str(there) for _, _, there, _ in OPTIONS.values() if not isinstance(there, bool)]
    assert len(set(values)) == len(values), "a swap of two would not be seen"
    assert all(there != default for _, _, there, default in OPTIONS.values())


@pytest.mark.parametrize(("tenants", "share"), [(("default",), 7), (("default", "a"), 3), (("a", "b", "b"), 2)])
def test_the_queue_is_shared_among_all_tenants(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tenants: tuple[str, ...], share: int
) -> None:
    """Among tenants, not keys; and whoever gets a key at the start is one of them."""
    rows = [{"tenant": name, "sha256": f"{number:064x}"} for number, name in enumerate(tenants)]
    (tmp_path / "k").write_text(json.dumps({"keys": rows}), encoding="utf-8")
    app, _ = told(run, [f"keys={tmp_path / 'k'}", "queue=7", "tenant=default"], monkeypatch)
    assert app.service.bridge.share == share


def test_a_run_is_named_after_its_folder_and_dated_by_its_checkpoint(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, link = tmp_path / "tiny", tmp_path / "newest"
    shutil.copytree(run, copy)
    (copy / "prompts.json").write_text('["add 1+2"]')
    link.symlink_to(copy)
    app, _ = told(link, [f"keys={tmp_path / 'k'}"], monkeypatch)
    [weights] = copy.rglob("model.safetensors")
    assert app.service.prompts == ["add 1+2"]
    assert (app.service.name, app.service.created) == ("tiny", int(weights.parent.stat().st_mtime))


# ---- the engine's process


def engine_of(placed: EngineArguments) -> tuple[dict[str, Any], str]:
    """The first message of an engine that gets no requests, and how many threads it used for a product."""
    code = "import sys, torch; from rorqual.serve.worker import main; main(); print(torch.get_num_threads(), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asdict(placed))],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[0]), done.stderr


def test_threads_and_device_are_the_engines_own(run: Path) -> None:
    message, errors = engine_of(EngineArguments(str(run), threads=3, engine={"max_len": 99}))
    most = message.pop("weights_bytes")
    assert message == {"kind": "ready", "max_len": 99, "vocab_size": 264} and errors.split()[-1] == "3"
    size = next(run.rglob("model.safetensors")).stat().st_size
    assert size <= most <= size + 64 * 1024, "what a file of the weights may take, and little more"
    message, _ = engine_of(EngineArguments(str(run), device="nowhere"))
    assert message["kind"] == "fatal" and "nowhere" in message["what"]


# ---- a server that was told everything


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose keys and values take a kilobyte a token at half precision."""
    return write_run(tmp_path_factory.mktemp("big") / "run", head_dim=64)


@pytest.fixture(scope="module")
def chosen(big: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """One server, as each of its tenants sees it."""
    folder = tmp_path_factory.mktemp("chosen")
    keys = {tenant: Keys.load(folder / "keys").ensure(tenant) or "" for tenant in ("boss", "other")}
    with socket.socket() as held:  # nobody else gets the port meanwhile
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.2", 0))
        port = held.getsockname()[1]
        server = start(
            big, folder / "keys", folder / "log", "host=127.0.0.2", f"port={port}", "name=org/whale", "tenant=ours", "operator=boss",
            "slots=3", "queue=7", "max_len=1500", "max_body=20000", "dtype=bfloat16", "backend=torch", "step_tokens=32",
            f"cache_dir={folder / 'cache'}", "cache_bytes=4000000", f"disk_bytes={1 << 20}", f"cors={','.join(ORIGINS)}",
            "ui=false", "hang=3600",
        )  # fmt: skip
        assert server.url == f"http://127.0.0.2:{port}"
    keys["ours"] = server.key
    yield {tenant: replace(server, key=key) for tenant, key in keys.items()}
    assert stop(server) == 0
    assert "Traceback" not in server.log.read_text(encoding="utf-8")
    # More than thirty blocks of 64 KiB were computed.
    found = [path.stat().st_size for path in (folder / "cache").rglob("*.rqblock")]
    assert 8 * 65_536 < sum(found) <= 1 << 20, "what is on disk keeps to `disk_bytes`"


def body(**fields: Any) -> dict[str, Any]:
    """A request whose every token is `e`."""
    fixed = {"model": "org/whale", "prompt": "a", "logit_bias": {"101": 100}, "temperature": 0, "ignore_eos": True}
    return {**fixed, "max_tokens": 1, **fields}


def order(server: Server, **fields: Any) -> list[int]:
    """The number of the answer that each event of a stream belongs to."""
    with server.client as client:
        lines = client.post(TEXT, json=body(stream=True, **fields)).text.splitlines()
    return [json.loads(line[6:])["choices"][0]["index"] for line in lines if line.startswith("data: {")]


def test_the_server_is_where_it_was_told_to_be_and_nowhere_else(chosen: dict[str, Server]) -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get(chosen["ours"].url.replace("127.0.0.2", "127.0.0.1"), trust_env=False)


def test_the_name_and_the_context_are_those_it_was_told(chosen: dict[str, Server]) -> None:
    with chosen["ours"].client as client:
        [card] = client.get("/v1/models").json()["data"]
        assert (card["id"], card["owned_by"], card["max_model_len"]) == ("org/whale", "rorqual", 1500)
        assert client.get("/v1/models/org/whale").json() == card
        assert client.post(TEXT, json=body()).json()["model"] == "org/whale"
        assert client.post(TEXT, json=body(model="run")).status_code == 404
        assert client.post(TEXT, json=body(prompt=[65] * 1500)).json()["error"]["code"] == "context_length_exceeded"
        usage = client.post(TEXT, json=body(prompt=[65] * 1490, max_tokens=100)).json()["usage"]
        assert usage["total_tokens"] == 1500 < CONTEXT


def test_a_body_may_be_as_long_as_was_said(chosen: dict[str, Server]) -> None:
    content = json.dumps(body()).encode()
    with chosen["ours"].client as client:
        assert client.post(TEXT, content=content + b" " * (20_000 - len(content))).status_code == 200
        answer = client.post(TEXT, content=content + b" " * (20_001 - len(content)))
        assert answer.status_code == 413 and "20000 bytes" in answer.text


def test_the_operator_sees_everybody_and_each_tenant_itself(chosen: dict[str, Server]) -> None:
    seen = {}
    for server in chosen.values():
        with server.client as client:
            assert client.post(TEXT, json=body()).status_code == 200
    for tenant, server in chosen.items():
        with server.client as client:
            text = client.get("/metrics").text
        seen[tenant] = {*re.findall(r'tokens_total\{tenant="(\w+)"', text)}, "requests_total" in text
    own = {tenant: ({tenant}, False) for tenant in chosen}
    assert seen == {**own, "boss": ({*chosen}, True)}


def test_scripts_of_the_origins_that_were_named_may_ask(chosen: dict[str, Server]) -> None:
    for origin, status in (*((origin, 200) for origin in ORIGINS), ("https://other.example", 400)):
        asked = {"origin": origin, "access-control-request-method": "POST"}
        answer = httpx.request("OPTIONS", chosen["ours"].url + TEXT, headers=asked, trust_env=False)
        assert answer.status_code == status
        assert answer.headers.get("access-control-allow-origin") == (origin if status == 200 else None)


def test_there_is_no_page_where_none_was_wanted(chosen: dict[str, Server]) -> None:
    answer = httpx.get(chosen["ours"].url, headers={"accept": "text/html"}, trust_env=False)
    assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"


def test_as_many_answers_are_drawn_at_once_as_there_are_slots(chosen: dict[str, Server]) -> None:
    """Of four the last begins when one of the three others has ended."""
    found = order(chosen["ours"], n=4, max_tokens=6)
    before = found[: found.index(3)]
    assert {*before} == {0, 1, 2} and any(before.count(index) == 6 for index in range(3))


def test_a_long_prompt_is_fed_in_steps_of_which_none_holds_up_another(chosen: dict[str, Server]) -> None:
    """1,400 tokens take 44 steps of 32; in each of them but the last the other reply gets a token."""
    found = order(chosen["ours"], prompt=[[65], [66] * 1400], max_tokens=60)
    assert found.index(1) >= 43


def test_weights_are_of_the_type_and_the_cache_of_the_size_that_were_named(
    chosen: dict[str, Server], big: Path
) -> None:
    ids = list(range(40, 140))
    with chosen["ours"].client as client:
        answer = client.post(TEXT, json=body(prompt=ids, prompt_logprobs=0)).json()
    there = [place[str(id_)]["logprob"] for id_, place in zip(ids[1:], answer["choices"][0]["prompt_logprobs"][1:])]
    request = Request(prompt_ids=tuple(ids), params=SamplingParams(max_tokens=1, prompt_logprobs=0))
    off = {}
    for dtype in ("float32", "bfloat16"):
        engine = Engine(big, dtype=dtype, record_experts=False, slots=1, cache_bytes=4_000_000)
        [[here]] = engine.generate([request])
        off[dtype] = sum(abs(a - (b or 0)) for a, b in zip(there, (here.prompt_logprobs or ())[1:]))
        blocks = engine.stats()["blocks_total"]
    assert off["bfloat16"] < off["float32"] / 4
    boss = chosen["boss"]
    assert boss.metric(r'engine\{what="blocks_total"\}') == blocks == 4_000_000 // 65_536
    assert engine.invariant and boss.metric(r'engine\{what="invariant"\}') == 0


def test_the_queue_takes_as_many_as_was_said_and_keeps_each_tenant_its_share(chosen: dict[str, Server]) -> None:
    """Three tenants share seven places; while the engine stands still, nobody leaves one."""

    def ask(server: Server) -> socket.socket:
        parts = urlsplit(server.url)
        wire = socket.create_connection((parts.hostname, parts.port), timeout=300)
        content = json.dumps(body()).encode()
        head = f"POST {TEXT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.key}\r\nConnection: close\r\n"
        wire.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return wire

    def status(wire: socket.socket) -> bytes:
        with wire.makefile("rb") as reader:
            reply = reader.read()
        assert reply.startswith(b"HTTP/1.1 200") or b"the limit is 7" in reply
        return reply.split(b" ", 2)[1]

    boss, ours, other = (chosen[tenant] for tenant in ("boss", "ours", "other"))
    boss.wait("running", 0)
    os.kill(boss.engine(), signal.SIGSTOP)
    with ExitStack() as open_:
        try:
            taken = [open_.enter_context(ask(ours)) for _ in range(7)]
            boss.wait("waiting", 7)
            assert status(open_.enter_context(ask(ours))) == b"429"
            for count in (8, 9):
                taken.append(open_.enter_context(ask(other)))
                boss.wait("waiting", count)
            assert status(open_.enter_context(ask(other))) == b"429"
        finally:
            os.kill(boss.engine(), signal.SIGCONT)
        assert [status(wire) for wire in taken] == [b"200"] * 9


def test_more_is_computed_than_the_folder_may_hold(chosen: dict[str, Server]) -> None:
    """What the folder holds then is looked at when the server has stopped, and all is written."""
    with chosen["ours"].client as client:
        for first in range(40, 48):
            usage = client.post(TEXT, json=body(prompt=[first] * 300)).json()["usage"]
            assert (usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"]) == (0, 300)
