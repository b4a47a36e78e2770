"""The requests of the two tenants of `isolation.py`. Each runs as a process of its own, and imports little, so that it begins soon.

python benchmarks/two_tenants.py attack NAME URL KEY
python benchmarks/two_tenants.py watch URL KEY SECONDS TOKENS
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MODEL = "model"
Attack = Callable[[httpx.Client, threading.Event], None]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def post(client: httpx.Client, path: str, body: dict[str, Any], status: int = 200, words: str = "") -> None:
    """Send a request. Raises AssertionError unless the answer has `status` and contains `words`."""
    answer = client.post(path, json={"model": MODEL, **body})
    assert answer.status_code == status and words in answer.text, (answer.status_code, answer.text[:400])


def beside_one_another(number: int, work: Callable[[], None], over: threading.Event) -> None:
    """Say that it begins, and repeat `work` in `number` threads until `over`. An error ends the process at once."""

    def repeat() -> None:
        try:
            while not over.is_set():
                work()
        except Exception:
            traceback.print_exc()
            os._exit(1)

    print("begun", flush=True)
    with ThreadPoolExecutor(number) as pool:
        list(pool.map(lambda _: repeat(), range(number)))


def no_attack(client: httpx.Client, over: threading.Event) -> None:
    beside_one_another(1, lambda: time.sleep(1), over)


def endless_schemas(client: httpx.Client, over: threading.Event) -> None:
    schemas = [{"type": "integer", "multipleOf": round(12345.678 + n, 3)} for n in range(1000)]
    bodies = ({"messages": user("a"), "max_tokens": 4, "guided_json": schema} for schema in schemas * 1000)
    beside_one_another(4, lambda: post(client, CHAT, next(bodies), 400, "takes more than"), over)


def look_ahead_patterns(client: httpx.Client, over: threading.Event) -> None:
    rounds = iter(range(10**9))

    def ask() -> None:
        seed = next(rounds)
        properties = {
            f"p{n}": {"type": "string", "pattern": f"^(?=.*[a-c]{{{n % 7 + 1}}})(?!.*x{seed}y)[a-z]{{1,40}}$"}
            for n in range(150)
        }
        schema = {"type": "object", "properties": properties, "required": [*properties]}
        body = {"messages": user("a"), "max_tokens": 4, "guided_json": schema}
        post(client, CHAT, body, 400, "look-around")

    beside_one_another(2, ask, over)


def leave_at_once(client: httpx.Client, over: threading.Event) -> None:
    post(client, CHAT, {"messages": user("hello"), "max_tokens": 1})
    body = json.dumps({"model": MODEL, "messages": user("hello"), "max_tokens": 400}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"authorization: {client.headers['authorization']}\r\n\r\n"
    ).encode()

    def ask() -> None:
        with suppress(OSError), socket.create_connection((client.base_url.host, client.base_url.port or 80)) as one:
            one.sendall(head + body)
        time.sleep(0.01)

    beside_one_another(4, ask, over)


def stops_that_do_not_count(client: httpx.Client, over: threading.Event) -> None:
    body = {
        "prompt": "a",
        "max_tokens": 15_000,
        "min_tokens": 15_000,
        "ignore_eos": True,
        "stop": [chr(n) for n in range(97, 101)],
    }
    beside_one_another(4, lambda: post(client, TEXT, body), over)


def scored_prompts(client: httpx.Client, over: threading.Event) -> None:
    rounds = iter(range(10**9))

    def ask() -> None:
        seed = next(rounds)
        prompts = [
            [(seed + 7 * n + place) % 250 for place in range(1500)] for n in range(8)
        ]  # 252,000 scores: at the limit
        post(client, TEXT, {"prompt": prompts, "max_tokens": 1, "prompt_logprobs": 20})

    beside_one_another(1, ask, over)


def long_answers_with_logprobs(client: httpx.Client, over: threading.Event) -> None:
    body = {
        "messages": user("a"), "max_tokens": 2000, "n": 4, "ignore_eos": True, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    beside_one_another(1, lambda: post(client, CHAT, body), over)


def long_prompts(client: httpx.Client, over: threading.Event) -> None:
    rounds = iter(range(10**9))
    beside_one_another(
        4,
        lambda: post(client, TEXT, {"prompt": [next(rounds) % 250, *range(200)] * 60, "max_tokens": 1}),
        over,
    )


def schema_attack(schema: dict[str, Any], status: int, words: str) -> Attack:
    """Send requests with a schema, four at a time. Each has a title of its own, so that it is compiled anew."""
    body, titles = {"prompt": "a", "max_tokens": 400, "n": 4}, iter(range(10**9))

    def ask(client: httpx.Client) -> None:
        post(client, TEXT, {**body, "guided_json": {**schema, "title": str(next(titles))}}, status, words)

    return lambda client, over: beside_one_another(4, lambda: ask(client), over)


def doubling_references(number: int) -> dict[str, Any]:
    defs = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(number)}
    return {"enum": [1], "not": {"not": {"$ref": "#/$defs/a0"}}, "$defs": {**defs, f"a{number}": {}}}


def equal_arrays(number: int) -> dict[str, Any]:
    return {
        "$defs": {"e": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/e"}}] * number}},
        "$ref": "#/$defs/e",
    }


ATTACKS: dict[str, Attack] = {
    "alone": no_attack,
    "schemas that compile for ever": endless_schemas,
    "150 look-ahead patterns": look_ahead_patterns,
    "connect, ask, close": leave_at_once,
    "stops that do not count": stops_that_do_not_count,
    "eight scored prompts": scored_prompts,
    "long answers with log-probabilities": long_answers_with_logprobs,
    "long prompts": long_prompts,
    "answers that are checked for ever": schema_attack(doubling_references(60), 422, "to check it takes"),
    "masks that take long": schema_attack(equal_arrays(100), 400, "generation"),
}


def watch(url: str, key: str, seconds: float, tokens: int) -> dict[str, list[float]]:
    """Stream replies and ask `/livez` for `seconds`, or until there are so many times between `tokens`. Return these times, and those
    of `/livez`."""
    end = time.monotonic() + seconds
    over = threading.Event()
    gaps, lives = list[float](), list[float]()

    def ask_livez() -> None:
        with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
            while not lives or not over.wait(0.05):  # at least once, if the tokens come at once
                began = time.monotonic()
                client.get("/livez")
                lives.append(time.monotonic() - began)

    helper = threading.Thread(target=ask_livez)
    helper.start()
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": MODEL, "prompt": "b", "max_tokens": 1000, "ignore_eos": True, "stream": True, "logprobs": 1}
    with httpx.Client(base_url=url, headers=headers, timeout=600, trust_env=False) as client:
        while time.monotonic() < end and len(gaps) < tokens:
            last = 0.0
            with client.stream("POST", TEXT, json=body) as reply:
                assert reply.status_code == 200, reply.read()
                for line in reply.iter_lines():
                    now = time.monotonic()
                    if now > end or len(gaps) >= tokens:
                        break
                    if line.startswith("data: {"):
                        gaps += [now - last] if last else []
                        last = now
    over.set()
    helper.join()
    return {"gaps": gaps, "lives": lives}


def main() -> None:
    what, *words = sys.argv[1:]
    if what == "watch":
        url, key, seconds, tokens = words
        print(json.dumps(watch(url, key, float(seconds), int(tokens))))
        return
    name, url, key = words
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=600, trust_env=False) as client:
        ATTACKS[name](client, threading.Event())


if __name__ == "__main__":
    main()
