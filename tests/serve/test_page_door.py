"""The page's door: nothing without a login, nothing but the page with one, and no other site gets in by a visitor's browser."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from rorqual.core.errors import ConfigError
from rorqual.data.chat.find import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.app import create_app
from rorqual.serve.bridge import Bridge
from rorqual.serve.keys import Keys
from rorqual.serve.service import Service
from rorqual.serve.ui import LIFETIME, MOST_LOGINS, Page, Sessions
from rorqual.serve.wire import EngineArguments

HTML = {"accept": "text/html,*/*;q=0.8"}
BASE = "http://127.0.0.1:8000"
OWN = {**HTML, "origin": BASE}
SECRET_NAME = "the-models-name"
API = ("/v1/models", "/v1/chat/completions", "/v1/nothing", "/health", "/metrics", "/v1")


def page_of(folder: Path, wanted: bool | None = None) -> tuple[Page, str]:
    """A page over routes whose engine never starts, and a key."""
    keys = Keys.load(folder / "keys.json")
    key = keys.ensure("default")
    assert key is not None
    service = Service(
        name=SECRET_NAME, created=0, chat=chat_format(Tokenizer.byte_level(), "deepseek"),
        bridge=Bridge(EngineArguments(run="nowhere")), keys=keys, max_body=2**16,
    )  # fmt: skip
    return Page(create_app(service), service, wanted), key


def within(folder: Path, act: Callable[[httpx.AsyncClient, str], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        page, key = page_of(folder, **options)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(page), base_url=BASE) as client:
            await act(client, key)

    asyncio.run(run())


async def login(client: httpx.AsyncClient, key: str, **headers: str) -> httpx.Response:
    return await client.post("/login", data={"key": key}, headers={**OWN, **headers})


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/theme.css", "/gradio_api/queue/join", "/assets/index.js", "/login", "/logout", "//", "/x", *API],
)
def test_without_a_login_there_is_a_form_that_says_nothing(tmp_path: Path, path: str) -> None:
    async def act(client: httpx.AsyncClient, key: str) -> None:
        for headers in (HTML, {}, {**HTML, "cookie": "rorqual-8000=guess"}, {**HTML, "cookie": "=;;rorqual-8000"}):
            for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS", "X"):
                answer = await client.request(method, path, headers={"origin": BASE, **headers})
                assert answer.status_code == 401, (method, headers)
                assert SECRET_NAME not in answer.text and "default" not in answer.text
                assert "set-cookie" not in answer.headers and answer.headers["www-authenticate"] == "Bearer"

    within(tmp_path, act)


def test_a_key_becomes_a_cookie_that_no_script_reads_and_no_other_site_sends(tmp_path: Path) -> None:
    async def act(client: httpx.AsyncClient, key: str) -> None:
        wrong = await login(client, key[:-1])
        assert wrong.status_code == 401 and "does not know" in wrong.text and "set-cookie" not in wrong.headers
        right = await login(client, f" {key}\r\n")
        assert (right.status_code, right.headers["location"]) == (303, "/")
        cookie = right.headers["set-cookie"].lower()
        assert cookie.startswith("rorqual-8000=") and "httponly" in cookie and "samesite=strict" in cookie
        assert (await client.get("/login", headers=HTML)).headers["location"] == "/"
        assert key not in cookie and key.lower() not in cookie
        assert (await client.get("/nothing", headers=HTML)).status_code == 404

    within(tmp_path, act)


@pytest.mark.parametrize("path", API)
def test_the_cookie_does_not_open_the_api(tmp_path: Path, path: str) -> None:
    async def act(client: httpx.AsyncClient, key: str) -> None:
        await login(client, key)
        for method in ("GET", "POST"):
            assert (await client.request(method, path, headers=OWN)).status_code == 401
        answer = await client.get(path, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code != 401

    within(tmp_path, act)


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:8001", "http://127.0.0.1:8000.evil.example", ""]
)
def test_another_site_cannot_post(tmp_path: Path, origin: str | None) -> None:
    async def act(client: httpx.AsyncClient, key: str) -> None:
        headers = HTML if origin is None else {**HTML, "origin": origin}
        assert (await client.post("/login", data={"key": key}, headers=headers)).status_code == 403
        await login(client, key)
        for path in ("/logout", "/gradio_api/queue/join"):
            assert (await client.post(path, headers=headers)).status_code == 403
        assert (await client.get("/nothing", headers=HTML)).status_code == 404  # still logged in

    within(tmp_path, act)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/gradio_api/upload", "/gradio_api/proxy=http://x/", "/monitoring",
        "/gradio_api/vibe-edit", "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/runs", "/gradio_api/call/x", "/user", "/token",
        "/static/../x", "/assets/%2e%2e/x", "//v1/models", "/v1%2fmodels/", "/gradio_api/component_server", "/dev/reload", "/config%0a",
    ],
)  # fmt: skip
def test_gradios_other_doors_are_shut(tmp_path: Path, path: str) -> None:
    async def act(client: httpx.AsyncClient, key: str) -> None:
        await login(client, key)
        for method in ("GET", "POST"):
            answer = await client.request(method, path, headers=OWN)
            assert answer.status_code in (401, 404), (method, answer.status_code)
            assert SECRET_NAME not in answer.text

    within(tmp_path, act)


def test_logging_out_ends_the_login(tmp_path: Path) -> None:
    async def act(client: httpx.AsyncClient, key: str) -> None:
        word = (await login(client, key)).cookies["rorqual-8000"]
        assert (await client.post("/logout", headers=OWN)).status_code == 303
        for cookie in ("", f"rorqual-8000={word}"):
            assert (await client.get("/nothing", headers={**HTML, "cookie": cookie})).status_code == 401

    within(tmp_path, act)


def test_bodies_have_limits(tmp_path: Path) -> None:
    async def act(client: httpx.AsyncClient, key: str) -> None:
        assert (await login(client, key + "x" * 10_000)).status_code == 401
        await login(client, key)
        answer = await client.post("/gradio_api/queue/join", content=b"x" * (2**16 + 1), headers=OWN)
        assert answer.status_code == 413

        async def endless() -> Any:
            yield b"x"

        assert (await client.post("/gradio_api/queue/join", content=endless(), headers=OWN)).status_code == 413

    within(tmp_path, act)


def test_every_page_keeps_the_browser_at_home(tmp_path: Path) -> None:
    async def act(client: httpx.AsyncClient, key: str) -> None:
        for answer in (await client.get("/", headers=HTML), await login(client, key)):
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "http" not in policy and "*" not in policy
            assert "frame-ancestors 'none'" in policy

    within(tmp_path, act)


def test_logins_grow_old_and_have_a_number() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    first, other = sessions.open("a"), sessions.open("b")

    def tenants(*words: str) -> list[str | None]:
        return [None if (login := sessions.login(word)) is None else login.tenant for word in words]

    assert tenants(first, other, "", "x") == ["a", "b", None, None]
    login = sessions.login(first)
    assert login is not None and not login.ended.is_set()
    for _ in range(MOST_LOGINS):
        sessions.open("a")
    assert tenants(first, other) == [None, "b"] and login.ended.is_set()
    now[0] = LIFETIME - 1
    assert tenants(other) == ["b"]
    now[0] = LIFETIME
    assert tenants(other) == [None]


def test_without_gradio_the_page_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else found(name, *rest)
    )

    async def act(client: httpx.AsyncClient, key: str) -> None:
        answer = await client.get("/", headers=HTML)
        assert answer.status_code == 401 and "pip install &quot;rorqual[ui]&quot;" in answer.text
        assert (await client.get("/", headers={"authorization": f"Bearer {key}"})).status_code == 404

    within(tmp_path, act)
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="needs gradio, which is not installed"):
        page_of(tmp_path / "other", wanted=True)


def test_a_page_that_is_not_wanted_is_not_there(tmp_path: Path) -> None:
    async def act(client: httpx.AsyncClient, key: str) -> None:
        for answer in (await client.get("/", headers=HTML), await login(client, key)):
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"

    within(tmp_path, act, wanted=False)
