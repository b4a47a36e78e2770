"""Two tenants on the page: whoever knows the name of another's page reads nothing of it and changes nothing on it.

The visitors speak HTTP as Gradio's page does. The engine is held while a reply is under way, so that the reply cannot end before it may.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import Server, start, stop

from rorqual.core.records import write_json
from rorqual.serve import ui_chat
from rorqual.serve.errors import ApiError
from rorqual.serve.keys import Keys
from rorqual.serve.ui_gate import DATA, HEARTBEAT, JOIN, MOST_PAGES, OPEN, Pages
from rorqual.serve.ui_turn import text_of

SETTINGS = ["auto", 0, 3]
"""Thinking, temperature, the most tokens."""
ASK, RETRY, AGAIN, EDIT, STOP, CLEAR, UNLOAD = (
    "textbox.submit", "Retry.click", "chatbot.retry", "chatbot.edit", "textbox.stop", "New chat.click", "unload",
)  # fmt: skip
EDITED = {"index": 0, "value": "edited", "previous_value": "mine"}
EVENTS: dict[str, tuple[list[Any], Any, list[str] | None]] = {
    ASK: (["more", None, *SETTINGS], None, ["own", "more"]),
    RETRY: ([None, *SETTINGS], None, ["own"]),
    AGAIN: ([None, *SETTINGS], {"index": 0, "value": "mine"}, ["own"]),
    EDIT: ([None, *SETTINGS], EDITED, ["edited"]),
    CLEAR: ([None], None, []),
    STOP: ([], None, None),
    UNLOAD: ([], None, None),
}
"""Of each event its data, its event data; the questions that a page on which `own` was asked has after it, None: it ends a reply."""


class Visitor:
    """Somebody with a key."""

    def __init__(self, server: Server, key: str) -> None:
        self.server = server
        self.client = httpx.Client(base_url=server.url, headers={"origin": server.url}, timeout=300, trust_env=False)
        self.enter(key)

    def enter(self, key: str) -> None:
        assert self.client.post("/login", data={"key": key}, headers={"accept": "text/html"}).status_code == 303

    @cached_property
    def events(self) -> dict[str, int]:
        """Gradio's number of each event of the page, by name."""
        config = self.client.get("/config").json()
        parts = {part["id"]: part for part in config["components"]}
        names = {}
        for event in config["dependencies"]:
            for target, what in event["targets"]:
                part = parts.get(target)
                kind = "" if part is None else part["props"]["value"] if part["type"] == "button" else part["type"]
                names[f"{kind}.{what}".lstrip(".")] = event["id"]
        assert len(names) == len(config["dependencies"])
        return names

    def join(self, page: str, event: str, data: list[Any] | None = None) -> httpx.Response:
        body = {
            "data": EVENTS[event][0] if data is None else data, "event_data": EVENTS[event][1],
            "fn_index": self.events[event], "trigger_id": None, "session_hash": page,
        }  # fmt: skip
        return self.client.post(JOIN, json=body)

    def ask(self, page: str, text: str) -> str:
        """The event's id."""
        answer = self.join(page, ASK, [text, None, *SETTINGS])
        assert answer.status_code == 200, answer.text
        return str(answer.json()["event_id"])

    @contextmanager
    def listen(self, page: str) -> Iterator[Iterator[dict[str, Any]]]:
        """What comes on a page's stream."""
        with self.client.stream("GET", DATA, params={"session_hash": page}) as stream:
            assert stream.status_code == 200
            yield (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))

    def questions(self, page: str) -> list[str] | None:
        """Those of the first picture on a page's stream, which is read until an event is over; None where nothing was shown."""
        shown = []
        with self.listen(page) as messages:
            for message in messages:
                if message["msg"] == "process_completed":
                    break
                if message["msg"] == "process_generating":
                    shown.append(message["output"]["data"][0])
        rows = shown[0] if shown and isinstance(shown[0], list) else None
        return None if rows is None else [text_of(row) for row in rows if row["role"] == "user"]

    def remembered(self, page: str) -> list[str] | None:
        """The questions that the server has of a page."""
        assert self.join(page, RETRY).status_code == 200
        return self.questions(page)


def until(messages: Iterator[dict[str, Any]], words: str) -> str:
    """What came, up to a message with some words."""
    seen = ""
    for message in messages:
        seen += json.dumps(message)
        if words in seen:
            return seen
    raise AssertionError(f"no {words!r} in {seen}")


@contextmanager
def under_way(visitor: Visitor, page: str, text: str) -> Iterator[tuple[Iterator[dict[str, Any]], str]]:
    """A reply that has begun and does not go on before the end of the block: its messages, and its event's id."""
    engine = visitor.server.engine()
    os.kill(engine, signal.SIGSTOP)
    try:
        event = visitor.ask(page, text)
        with visitor.listen(page) as messages:
            until(messages, "Waiting")
            yield messages, event
    finally:
        os.kill(engine, signal.SIGCONT)


def page() -> str:
    return secrets.token_hex(6)


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 403, answer.text
    assert "Another tenant" in answer.json()["detail"] and answer.json()["error"]["code"] == "not_your_page"
    assert "mine" not in answer.text


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of two tenants, the first of which has a second key."""
    file = tmp_path_factory.mktemp("page") / "keys.json"
    found = {tenant: Keys.load(file).ensure(tenant) or "" for tenant in ("default", "other")}
    rows = json.loads(file.read_text(encoding="utf-8"))["keys"]
    second = "rq-" + secrets.token_hex(16)
    rows.append({"tenant": "default", "sha256": hashlib.sha256(second.encode()).hexdigest()})
    write_json(file, {"keys": rows})
    return found | {"second": second, "file": str(file)}


@pytest.fixture(scope="module")
def server(run: Path, keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "log"
    running = start(run, Path(keys["file"]), log, "port=0", "slots=4", "ui=true", "hang=3600")
    running.key = keys["default"]
    yield running
    assert stop(running) == 0
    assert "Traceback" not in (text := log.read_text(encoding="utf-8")), text


@pytest.fixture(scope="module")
def owner(server: Server, keys: dict[str, str]) -> Visitor:
    return Visitor(server, keys["default"])


@pytest.fixture(scope="module")
def stranger(server: Server, keys: dict[str, str]) -> Visitor:
    return Visitor(server, keys["other"])


def test_every_event_of_the_page_has_a_check(owner: Visitor) -> None:
    assert set(owner.events) == set(EVENTS)


@pytest.mark.parametrize("event", EVENTS)
def test_no_event_reaches_another_tenants_page(owner: Visitor, stranger: Visitor, event: str) -> None:
    theirs, own = page(), page()
    with under_way(owner, theirs, "mine") as (messages, _):
        refused(stranger.join(theirs, event))
        os.kill(owner.server.engine(), signal.SIGCONT)
        assert "Stopped" not in (seen := until(messages, "tokens in")), seen
        until(messages, "close_stream")
    assert owner.remembered(theirs) == ["mine"]
    # The same from its own page does what it is for.
    expected = EVENTS[event][2]
    if expected is None:
        with under_way(stranger, own, "own") as (messages, _):
            assert stranger.join(own, event).status_code == 200
            until(messages, "Stopped")
            until(messages, "close_stream")
        return
    stranger.ask(own, "own")
    assert stranger.questions(own) == ["own"]
    assert stranger.join(own, event).status_code == 200
    assert stranger.questions(own) == expected


def test_no_stream_of_another_tenants_page_is_heard_or_ended(owner: Visitor, stranger: Visitor) -> None:
    theirs = page()
    with under_way(owner, theirs, "mine") as (messages, event):
        for path in (f"{DATA}?session_hash={theirs}", HEARTBEAT + theirs):
            refused(stranger.client.get(path))
        for query in ("", f"?session_hash={page()}&session_hash={theirs}", f"?session_hash={theirs}%2f"):
            assert stranger.client.get(DATA + query).status_code == 400
        body = {"session_hash": theirs, "fn_index": owner.events[ASK], "event_id": event}
        for name in (theirs, page()):  # an event's id, known or guessed, ends nothing: no page needs this
            for path in ("cancel", "cancel/", "reset", f"stream/{event}", f"stream/{event}/close", "call/x", "run/x"):
                answer = stranger.client.post(f"/gradio_api/{path}", json={**body, "session_hash": name})
                assert answer.status_code == 404, path
        for path in (f"call/x/{event}", f"stream/{theirs}/0/3/playlist.m3u8", f"deep_link?session_hash={theirs}"):
            assert stranger.client.get(f"/gradio_api/{path}").status_code == 404
        os.kill(owner.server.engine(), signal.SIGCONT)
        assert "Stopped" not in until(messages, "tokens in")
    with owner.client.stream("GET", HEARTBEAT + theirs) as beats:
        assert beats.status_code == 200 and "ALIVE" in next(beats.iter_lines())


def test_a_page_is_taken_once_it_is_loaded(owner: Visitor, stranger: Visitor) -> None:
    """Gradio's page opens its heartbeat before anybody says anything."""
    theirs = page()
    with owner.client.stream("GET", HEARTBEAT + theirs) as beats:
        assert beats.status_code == 200
    refused(stranger.join(theirs, ASK))
    owner.ask(theirs, "mine")
    assert owner.questions(theirs) == ["mine"]


def test_whoever_signs_out_is_heard_no_more_and_another_who_signs_in_has_none_of_it(
    server: Server, keys: dict[str, str]
) -> None:
    visitor, theirs = Visitor(server, keys["default"]), page()
    with (
        visitor.client.stream("GET", HEARTBEAT + theirs) as beats,
        under_way(visitor, theirs, "mine") as (messages, _),
    ):
        cookie = dict(visitor.client.cookies)
        assert visitor.client.post("/logout").status_code == 303
        assert set(beats.iter_lines()) <= {"data: ALIVE", ""}
        assert not any("tokens in" in json.dumps(message) for message in messages)
        visitor.client.cookies.clear()
        for cookies in ({}, cookie):
            headers = {"cookie": ";".join(f"{name}={word}" for name, word in cookies.items())}
            assert visitor.client.get(DATA, params={"session_hash": theirs}, headers=headers).status_code == 401
    server.wait("running", 0)
    visitor.enter(keys["other"])
    for event in EVENTS:
        refused(visitor.join(theirs, event))
    visitor.client.cookies.clear()
    visitor.enter(keys["default"])
    assert visitor.remembered(theirs) == ["mine"]


def test_two_keys_of_one_tenant_are_one_tenant(owner: Visitor, keys: dict[str, str]) -> None:
    theirs, colleague = page(), Visitor(owner.server, keys["second"])
    owner.ask(theirs, "mine")
    assert owner.questions(theirs) == ["mine"]
    assert colleague.remembered(theirs) == ["mine"]


def test_a_name_that_is_used_again_after_it_was_forgotten_has_nothing_of_before(
    owner: Visitor, stranger: Visitor
) -> None:
    theirs = page()
    owner.ask(theirs, "mine")
    assert owner.questions(theirs) == ["mine"]
    for _ in range(MOST_PAGES):
        assert owner.join(page(), STOP).status_code == 200
    assert stranger.remembered(theirs) is None
    refused(owner.join(theirs, RETRY))
    stranger.ask(theirs, "own")
    assert stranger.questions(theirs) == ["own"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b"[]", b"{}", b'{"session_hash": 1}', b'{"session_hash": ""}', b'{"session_hash": "a/b"}'],
)  # fmt: skip
def test_a_body_that_names_no_page_is_refused(stranger: Visitor, body: bytes) -> None:
    answer = stranger.client.post(JOIN, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["detail"]


def test_pages_have_a_number_and_those_of_one_tenant_push_out_no_others() -> None:
    forgotten: list[str] = []
    pages = Pages(forgotten.append)
    first, others = pages.claim("a", "first"), pages.claim("b", "b")
    assert pages.claim("a", "first") == first != others
    for number in range(3 * MOST_PAGES):
        pages.claim("a", f"p{number}")
        pages.claim("a", "first")  # in use all the time
    assert len(pages) == MOST_PAGES + 1 and len(set(forgotten)) == 2 * MOST_PAGES + 1
    assert not {first, others} & set(forgotten)
    assert pages.claim("b", "p0") not in forgotten
    with pytest.raises(ApiError, match="Another tenant"):
        pages.claim("a", "p0")


def test_of_gradios_own_routes_none_is_open_but_those_that_are_known() -> None:
    """Found by asking Gradio for all it has: a new one is shut until somebody looks at it."""

    async def api(*_: Any) -> None:
        raise AssertionError

    parent, _ = ui_chat.build(api, "model", 1.0, True)
    [gradio] = [route for route in parent.routes if hasattr(route, "app")]
    paths = {*gradio.app.openapi()["paths"], *(route.path for route in gradio.app.routes if hasattr(route, "path"))}
    assert len(paths) > 50 and {JOIN, DATA, HEARTBEAT + "{session_hash}", "/gradio_api/cancel"} <= paths
    known = {
        "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/startup-events",
        *(f"/{folder}/{{path{kind}}}" for folder in ("assets", "static", "svelte") for kind in ("", ":path")),
    }  # fmt: skip
    assert {path for path in paths if OPEN.fullmatch(re.sub(r"{.*}", "x", path))} == known
    pages = Pages(lambda name: None)
    for path in paths - known - {JOIN, DATA, HEARTBEAT + "{session_hash}"}:
        for method in ("GET", "POST"):
            scope = {"type": "http", "path": path, "method": method, "query_string": b"", "headers": []}
            with pytest.raises(ApiError, match="does not exist"):
                asyncio.run(pages.bind(scope, api, "a", None))  # type: ignore[arg-type]
