"""A server under load whose engine is killed again and again: what every client got, held against the answers of a server that nobody kills."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from rorqual.serve.keys import ApiKeys
from served import Server, start, stop

TENANTS = ("default", "other")
PREFIX = "The whale takes in an ocean and keeps what matters. " * 4
ALIVE_SECONDS = 300.0


def bodies(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests that share beginnings and differ in all else; half of them streamed."""
    rng = random.Random(seed)
    return [
        {
            "model": "tiny", "prompt": PREFIX + f"{number}" * rng.randint(1, 40), "max_tokens": rng.choice((4, 40, 120)),
            "temperature": rng.choice((0, 1)), "seed": number, "n": rng.choice((1, 1, 2)), "stream": number % 2 == 1,
            "ignore_eos": True,
        }
        for number in range(count)
    ]  # fmt: skip


@dataclass
class Outcome:
    """What became of all requests, and whatever should not have."""

    kills: int = 0
    whole: int = 0
    broken: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)
    hit_ratio: float = 0.0
    tenants: dict[str, dict[str, int]] = field(default_factory=dict)


def ask(client: httpx.Client, body: dict[str, Any]) -> tuple[list[str], str]:
    """(the texts so far, how it ended: `whole`, or an error's code)."""
    texts = [""] * body["n"]
    if not body["stream"]:
        answer = client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            return texts, str(answer.json()["error"]["code"])
        return [choice["text"] for choice in answer.json()["choices"]], "whole"
    with client.stream("POST", "/v1/completions", json=body) as stream:
        if stream.status_code != 200:
            return texts, str(json.loads(stream.read())["error"]["code"])
        for line in stream.iter_lines():
            if line == "data: [DONE]":
                return texts, "whole"
            if not line.startswith("data: "):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return texts, str(event["error"]["code"])
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
    return texts, "cut off without a word"


def torment(run: Path, folder: Path, *, kills: int, clients: int, requests: int, seed: int = 0) -> Outcome:
    """`clients` ask for `requests` over and over while the engine is killed `kills` times at random moments."""
    keys = folder / "keys.json"
    secrets = {tenant: ApiKeys.load(keys).ensure_key(tenant) or "" for tenant in TENANTS}
    asked = bodies(requests, seed)
    rng = random.Random(seed)
    outcome = Outcome()
    words = ("port=0", "slots=4", "ui=false", f"cache_dir={folder / 'cache'}")
    server = start(run, keys, folder / "log", *words)
    server.key = secrets["default"]
    try:
        with server.client as client:
            wanted = [ask(client, body)[0] for body in asked]
        ended = threading.Event()
        threads = [
            threading.Thread(target=_client, args=(server, secrets[TENANTS[n % 2]], asked, wanted, outcome, ended, n))
            for n in range(clients)
        ]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            _until(outcome, outcome.whole + rng.randint(4, 12))
            os.kill(server.engine(), signal.SIGKILL)
            outcome.kills += 1
            _wait(server, outcome)
        _until(outcome, outcome.whole + 8)
        ended.set()
        for thread in threads:
            thread.join()
        with server.client as client:
            for body, texts in zip(asked, wanted):
                if ask(client, body) != (texts, "whole"):
                    outcome.faults.append(f"after all kills, request {body['seed']} is answered otherwise")
            _measure(server, client.get("/metrics").text, outcome)
    finally:
        if stop(server):
            outcome.faults.append("the server did not stop as it should")
    if "Traceback" in (log := (folder / "log").read_text(encoding="utf-8")):
        outcome.faults.append(log[-2000:])
    return outcome


def _client(
    server: Server,
    key: str,
    asked: list[dict[str, Any]],
    wanted: list[list[str]],
    outcome: Outcome,
    ended: threading.Event,
    number: int,
) -> None:
    rng = random.Random(number)
    with httpx.Client(
        base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=600, trust_env=False
    ) as client:
        while not ended.is_set():
            place = rng.randrange(len(asked))
            try:
                texts, how = ask(client, asked[place])
            except httpx.HTTPError as error:
                outcome.faults.append(f"request {place}: the server itself failed: {error!r}")
                continue
            if how == "whole":
                outcome.whole += 1
                if texts != wanted[place]:
                    outcome.faults.append(f"request {place}: another answer: {texts!r}, not {wanted[place]!r}")
            elif how == "engine_died":
                outcome.broken += any(texts)
                outcome.refused += not any(texts)
                if not all(full.startswith(text) for full, text in zip(wanted[place], texts)):
                    outcome.faults.append(f"request {place}: what came before the error is no part of the answer")
            else:
                outcome.faults.append(f"request {place}: {how}")


def _until(outcome: Outcome, whole: int) -> None:
    """Until as many requests were answered whole."""
    began = time.monotonic()
    while outcome.whole < whole:
        if time.monotonic() - began > ALIVE_SECONDS:
            outcome.faults.append(f"{outcome.whole} requests were answered in {ALIVE_SECONDS:.0f} seconds, not {whole}")
            return
        time.sleep(0.02)


def _wait(server: Server, outcome: Outcome) -> None:
    """Until the engine is ready again."""
    began = time.monotonic()
    while server.metric("engine_restarts_total") < outcome.kills or server.metric("engine_up") != 1:
        if time.monotonic() - began > ALIVE_SECONDS:
            outcome.faults.append(f"{ALIVE_SECONDS:.0f} seconds after a kill the engine is not there")
            return
        time.sleep(0.02)
    outcome.recovery.append(round(time.monotonic() - began, 2))


def _measure(server: Server, text: str, outcome: Outcome) -> None:
    outcome.hit_ratio = server.metric("prompt_hit_ratio")
    for tenant in TENANTS:
        kinds = ("prompt_hit", "prompt_miss", "completion")
        lines = {kind: f'rorqual_tokens_total{{tenant="{tenant}",kind="{kind}"}} ' for kind in kinds}
        outcome.tenants[tenant] = {
            kind: int(next((row[len(head) :] for row in text.splitlines() if row.startswith(head)), "0"))
            for kind, head in lines.items()
        }
