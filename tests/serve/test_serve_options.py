"""No option of `rorqual serve` is dropped or swapped between the command line and what it is for."""

from __future__ import annotations

import gc
import json
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from rorqual.cli.machine import available_cores
from rorqual.cli.serving import ENGINE, FALLBACK, TUNING, ServeSettings
from rorqual.cli.serving import start_server as start_here
from rorqual.core.errors import ConfigError
from rorqual.engine import EngineConfig
from rorqual.serve.app import ApiKeyMiddleware
from rorqual.serve.descriptors import AT_ONCE
from rorqual.serve.options import ServerOptions
from rorqual.serve.server import LAST_SECONDS, listen_with_keys
from rorqual.serve.wire import EngineArguments
from served import start, stop

ORIGINS = ("https://app.example", "http://localhost:3000")


class Told(Exception):
    """Ends a start where uvicorn would take over; it carries the application and uvicorn's settings."""


def told(run: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[ApiKeyMiddleware, dict[str, Any]]:
    """The server that a command line makes, and what uvicorn is told."""

    def config(app: ApiKeyMiddleware, **settings: Any) -> None:
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


def of_process(name: str) -> Callable[[ApiKeyMiddleware, dict[str, Any]], Any]:
    return lambda app, _: getattr(app.service.bridge.arguments, name)


def of_engine(name: str) -> Callable[[ApiKeyMiddleware, dict[str, Any]], Any]:
    return lambda app, _: getattr(EngineConfig(**app.service.bridge.arguments.engine), name)


def of_bridge(name: str) -> Callable[[ApiKeyMiddleware, dict[str, Any]], Any]:
    return lambda app, _: getattr(app.service.bridge, name)


def of_service(name: str) -> Callable[[ApiKeyMiddleware, dict[str, Any]], Any]:
    return lambda app, _: getattr(app.service, name)


# option: another value than the default, where it arrives, what is there, and what is there by default
OPTIONS: dict[str, tuple[str, Callable[[ApiKeyMiddleware, dict[str, Any]], Any], Any, Any]] = {
    "device": ("cuda:7", of_process("device"), "cuda:7", "cpu"),
    "dtype": ("int8", of_process("dtype"), "int8", "float32"),
    "slots": ("3", of_engine("slots"), 3, 16),
    "threads": ("5", of_process("threads"), 5, available_cores()),
    "max_len": ("1500", of_engine("max_len"), 1500, None),
    "cache_dir": ("CACHE", of_engine("cache_dir"), "CACHE", None),
    "cache_bytes": ("3000001", of_engine("cache_bytes"), 3000001, 1 << 30),
    "disk_bytes": ("3000002", of_engine("disk_bytes"), 3000002, 4 << 30),
    "backend": ("native", of_engine("backend"), "native", "auto"),
    "step_tokens": ("48", of_engine("step_tokens"), 48, 256),
    "rollout_dir": ("WEIGHTS", of_process("rollout_dir"), "WEIGHTS", ""),
    "record_kept": ("true", of_engine("record_kept"), True, False),
    "queue": ("77", of_bridge("queue"), 77, 256),
    "hang": ("101", of_bridge("hang"), 101, 120),
    "load": ("102", of_bridge("load"), 102, 3600),
    "rate": ("125", lambda app, _: (app.service.rate._interval, app.service.rate._burst), (0.008, 125), (0.01, 256)),
    "name": ("org/whale", of_service("name"), "org/whale", "tiny"),
    "max_body": ("20001", of_service("max_body"), 20001, 8 << 20),
    "operator": ("boss", of_service("operator"), "boss", "default"),
    "think_budget": ("33", of_service("think_budget"), 33, 0),
    "cors": (",".join(ORIGINS), of_service("cors"), frozenset(ORIGINS), frozenset()),
    "tenant": ("ours", lambda app, _: [*app.service.keys.tenants.values()], ["ours"], ["default"]),
    "keys": ("KEYS", lambda app, _: app.service.keys.file.name, "KEYS", "keys.json"),
    "ui": ("false", lambda app, _: app.page is None, True, False),
    "grace": ("104", lambda _, settings: settings["timeout_graceful_shutdown"] - LAST_SECONDS, 104, 30),
    "stall": ("105", lambda _, settings: settings["http"].keywords["stall"], 105, 30),
}


CASCADE_OPTIONS = {"calibration", "sure"}
"""Tested in test_cascade_server.py. Those of a fallback are tested in test_answerer_server.py."""


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
    assert (tmp_path / "WEIGHTS" / "rollout-key.json").is_file() == chosen
    assert (app.service.uploads is not None) == chosen
    assert app.service.bridge.arguments.run == str(run)
    assert app.service.bridge.share == app.service.bridge.queue, "one tenant may have every place"
    assert settings["backlog"] <= AT_ONCE and settings["http"].keywords["lobby"].most > settings["backlog"]


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
    elsewhere = {*CASCADE_OPTIONS, "fallback", *FALLBACK, "tune", *TUNING}
    assert set(ServeSettings.model_fields) == {"host", "port", *OPTIONS, *elsewhere}
    given = {field.name for field in fields(EngineArguments)} - {"run", "engine"}
    assert given | {*ServerOptions.model_fields, *ENGINE, *elsewhere} == set(ServeSettings.model_fields)
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
    message, errors = engine_of(
        EngineArguments(str(run), threads=3, engine={"max_len": 99, "backend": "torch-invariant"})
    )
    most = message.pop("weights_bytes")
    assert message == {"kind": "ready", "max_len": 99, "vocab_size": 264} and errors.split()[-1] == "3"
    size = next(run.rglob("model.safetensors")).stat().st_size
    assert size <= most <= size + 64 * 1024, "what a file of the weights may take, and little more"
    message, _ = engine_of(EngineArguments(str(run), device="nowhere"))
    assert message["kind"] == "fatal" and "nowhere" in message["what"]


def test_a_second_start_names_the_file_of_the_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for _ in range(2):
        with listen_with_keys(ServerOptions(keys=str(tmp_path / "k.json"), port=0)):
            said.append(capsys.readouterr().out)
    assert "shown only once: rq-" in said[0] and str(tmp_path) not in said[0]
    assert f"shown when they were created; {tmp_path / 'k.json'} has their hashes" in said[1]


def test_the_server_is_where_it_was_told_to_be_and_nowhere_else(run: Path, tmp_path: Path) -> None:
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))  # the port is nobody's there, and stays so
        with socket.socket() as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.2", elsewhere.getsockname()[1]))
            port = held.getsockname()[1]
            server = start(run, tmp_path / "keys", tmp_path / "log", "host=127.0.0.2", f"port={port}", "ui=false")
        assert server.url == f"http://127.0.0.2:{port}"
        with server.client as client:
            assert client.get("/health").status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url.replace("127.0.0.2", "127.0.0.1"), trust_env=False)
        assert stop(server) == 0
