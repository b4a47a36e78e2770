"""The files of the chat page: public, the same for every server, and a policy that keeps the browser at home."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from rorqual.data.chat.find import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.app import create_app
from rorqual.serve.bridge import EngineBridge
from rorqual.serve.chat_page import FILES
from rorqual.serve.keys import ApiKeys
from rorqual.serve.service import ModelService
from rorqual.serve.wire import EngineArguments

PATHS = ["/", *(f"/{file.relative_to(FILES).as_posix()}" for file in FILES.rglob("*") if file.is_file())]
CLOSED = (
    "/vendor",
    "/vendor/",
    "/x",
    "/page.py",
    "/../page.py",
    "/vendor/../../app.py",
    "/%2e%2e/app.py",
    "/index.html/",
)


def answers(folder: Path, *requests: tuple[str, str], **options: Any) -> list[httpx.Response]:
    """The answers of routes whose engine never starts, to requests without a key."""
    service = ModelService(
        name="the-models-name", created=0, chat=chat_format(Tokenizer.byte_level(), "deepseek"),
        bridge=EngineBridge(EngineArguments(run="nowhere")), keys=ApiKeys.load(folder / "keys.json"), max_body=2**16,
    )  # fmt: skip

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(service, **options), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            found = [await client.request(method, path) for method, path in requests]
        assert sum(count for (route, _), count in service.metrics.requests.items() if route == "page") == sum(
            answer.status_code == 200 for answer in found
        )
        return found

    return asyncio.run(ask())


def test_every_file_of_the_page_is_public_and_says_nothing_of_the_model(tmp_path: Path) -> None:
    assert len(PATHS) > 30
    for path, answer in zip(PATHS, answers(tmp_path, *(("GET", path) for path in PATHS))):
        assert answer.status_code == 200 and b"the-models-name" not in answer.content, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert not re.search(r"unsafe|http|\*|data:|blob:", policy), "no inline script, and no other host"
        assert answer.headers["x-content-type-options"] == "nosniff" and "set-cookie" not in answer.headers
    types = {
        path: answer.headers["content-type"]
        for path, answer in zip(PATHS, answers(tmp_path, *(("HEAD", p) for p in PATHS)))
    }
    assert (
        "javascript" in types["/chat.mjs"]
        and types["/"].startswith("text/html")
        and "woff2" in types["/vendor/katex/fonts/KaTeX_Main-Regular.woff2"]
    )


def test_without_a_key_there_is_nothing_but_the_page(tmp_path: Path) -> None:
    requests = [("GET", path) for path in CLOSED] + [
        (method, path) for path in PATHS[:3] for method in ("POST", "PUT", "OPTIONS")
    ]
    assert {answer.status_code for answer in answers(tmp_path, *requests)} == {401}
    off = answers(tmp_path, *(("GET", path) for path in PATHS), with_page=False)
    assert {answer.status_code for answer in off} == {401}


def test_the_page_loads_only_its_own_files() -> None:
    for file in (*FILES.glob("*.*"), FILES / "vendor/katex/katex.min.css"):
        text = file.read_text(encoding="utf-8")
        wanted = (
            re.findall(r"(?:src|href)=\"([^\"]+)\"|url\(([^)]+)\)|from \"([^\"]+)\"", text)
            if file.suffix != ".svg"
            else []
        )
        for [path] in ([path for path in found if path and "$" not in path] or [""] for found in wanted):
            assert (file.parent / path).exists(), (file.name, path)
        if file.suffix == ".html":
            assert not re.search(r"<script(?![^>]*src=)|<style| style=| on\w+=", text)


@pytest.mark.parametrize("folder", sorted((FILES / "vendor").glob("*/")), ids=lambda folder: folder.name)
def test_every_library_has_its_licence_and_its_version(folder: Path) -> None:
    assert "Copyright" in (folder / "LICENSE").read_text(encoding="utf-8")
    row = re.search(
        rf"\| `{folder.name}` \| `\w+` \| (\d+\.\d+\.\d+) \|", (FILES / "vendor/README.md").read_text(encoding="utf-8")
    )
    scripts = [*folder.glob("*.min.js"), *folder.glob("*.min.mjs")]
    assert row and len(scripts) == 1 and row[1] in scripts[0].read_text(encoding="utf-8")
