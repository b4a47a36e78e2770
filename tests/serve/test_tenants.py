"""What one tenant sends is not in the way of others: grammars that take long, and messages without end."""

from __future__ import annotations

import json
import os
import random
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rorqual.engine.engine import Engine
from rorqual.engine.request import Grammar, SamplingParams
from rorqual.serve.keys import ApiKeys
from rorqual.serve.wire import EngineRequest, pack, submit_message
from rorqual.serve.worker import EngineWorker
from served import Server, running

MANY = 24
TINY = {"guided_choice": ["yes", "no"]}


def body(**fields: Any) -> dict[str, Any]:
    said = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    return {**said, "chat_template_kwargs": {"thinking": False}, **fields}


def heavy(seed: int) -> dict[str, Any]:
    """A schema of its own that takes a tenth of a second or more to compile."""
    rng = random.Random(seed)

    def thing(count: int) -> dict[str, Any]:
        names = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(count)]
        return {"type": "object", "properties": {name: {"type": "string"} for name in names}}

    return {"type": "object", "properties": {f"p{n}": thing(20) for n in range(80)}}


class Crowd:
    """Clients that ask for a heavy grammar each, all at once; the engine, idle before, has heard of them when it is made."""

    def __init__(self, server: Server, seeds: Sequence[int]) -> None:
        server.wait("waiting", 0)
        server.wait("running", 0)
        parts = urlsplit(server.url)
        self.wires = [socket.create_connection((parts.hostname, parts.port), timeout=300) for _ in seeds]
        for seed, wire in zip(seeds, self.wires):
            content = json.dumps(body(guided_json=heavy(seed))).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.key}\r\nConnection: close\r\n"
            wire.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        while server.metric("waiting") + server.metric("running") + self.answered() < len(seeds):
            time.sleep(0.01)

    def answered(self) -> int:
        """How many of them have their answer."""
        return len(select.select(self.wires, [], [], 0)[0])

    def leave(self) -> None:
        """Hang up, all of them that are left."""
        for wire in self.wires:
            wire.close()

    def answers(self) -> list[int]:
        """The statuses, when all have come."""
        found = []
        for wire in self.wires:
            with wire, wire.makefile("rb") as reader:
                found.append(int(reader.read().split(b" ", 2)[1]))
        return found


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """One server, as two tenants see it."""
    folder = tmp_path_factory.mktemp("tenants")
    keys = {tenant: ApiKeys.load(folder / "keys.json").ensure_key(tenant) or "" for tenant in ("default", "other")}
    with running(run, folder, "slots=4", "ui=false") as found:
        found.key = keys["default"]
        yield found, replace(found, key=keys["other"])


def test_grammars_of_one_tenant_do_not_shut_out_another(server: tuple[Server, Server]) -> None:
    mine, theirs = server
    crowd = Crowd(mine, range(MANY))
    left = MANY - crowd.answered()
    with theirs.client as client:
        answer = client.post("/v1/chat/completions", json=body(**TINY))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] in ("yes", "no")
    assert MANY - crowd.answered() > left / 2, "it waited for what another asked"
    assert crowd.answers() == [200] * MANY, "time in the queue is no fault of a grammar"


def test_grammars_of_clients_that_left_are_not_compiled(server: tuple[Server, Server]) -> None:
    """By what the engine works until the same tenant's next request, which would wait for them, is answered."""
    mine, _ = server
    began = mine.cpu()
    Crowd(mine, range(1000, 1004)).answers()
    each = (mine.cpu() - began) / 4
    crowd = Crowd(mine, range(2000, 2000 + MANY))
    left, began = MANY - crowd.answered(), mine.cpu()
    crowd.leave()
    with mine.client as client:
        assert client.post("/v1/chat/completions", json=body(**TINY)).status_code == 200
    assert mine.cpu() - began < each * left / 2
    mine.wait("waiting", 0)
    mine.wait("running", 0)


def test_messages_without_end_do_not_keep_the_engine_from_a_sign_of_life(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that has said nothing for long is killed as one that hangs."""
    monkeypatch.setattr("rorqual.serve.worker.BEAT", 0.05)
    source, inlet = os.pipe()
    outlet, sink = os.pipe()
    worker = EngineWorker(Engine(run, record_experts=False, slots=1), os.fdopen(source, "rb"), os.fdopen(sink, "wb"))
    working = threading.Thread(target=worker.run, daemon=True)
    beats = threading.Event()

    def listen() -> None:
        with os.fdopen(outlet, "rb") as said:
            for text in said:
                if json.loads(text)["kind"] == "beat":
                    beats.set()

    threading.Thread(target=listen, daemon=True).start()
    for _ in range(10**5):  # far more than are handled between two beats
        worker.inbox.put({"kind": "cancel", "number": 7})
    working.start()
    with os.fdopen(inlet, "wb", buffering=0) as asked:
        assert beats.wait(60) and not worker.inbox.empty(), "none while messages came"
        beats.clear()
        grammar = Grammar("json_schema", json.dumps(heavy(0)))
        asked.writelines(
            submit_message(0, pack(EngineRequest((65,), SamplingParams(max_tokens=4, grammar=grammar))), "default")
        )
        assert beats.wait(60)
    working.join(60)
    assert not working.is_alive(), "it ends with its input"
