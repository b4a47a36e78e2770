"""What is sent to a server by mistake or in bad faith: it is refused or dropped, and the next request is answered."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rorqual.serve.keys import ApiKeys
from served import Server, command, running

HELLO = [{"role": "user", "content": "hello"}]
MIB = 2**20


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HELLO, "max_tokens": 4, "seed": 1} | fields


def good(server: Server) -> None:
    with server.client as client:
        assert client.post("/v1/chat/completions", json=chat_body()).status_code == 200


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    assert parts.hostname is not None and parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def said(server: Server, data: bytes) -> bytes:
    """What comes back for raw bytes, until the server closes or has answered."""
    with connect(server) as wire:
        wire.sendall(data)
        found = b""
        while b"\r\n\r\n" not in found and (part := wire.recv(65536)):
            found += part
        return found


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Bytes that a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- without a key

TARGETS = (
    "/v1/models", "//v1/models", "/v1//models", "/%76%31/models", "/v1/models/", "/v1/models?key=x", "/./v1/models", "/v1/..%2fv1/models",
    "/V1/MODELS", "/openapi.json", "/metrics", "/health", "http://evil.example/v1/models", "*", "/v1/models%00", "/v1/models#x",
)  # fmt: skip
HOSTS = ("127.0.0.1", "localhost", "evil.example", "evil.example:80@127.0.0.1", "[::1]", "")
METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW")


def status_of(reply: bytes) -> int:
    assert reply.startswith(b"HTTP/1."), reply[:80]
    return int(reply.split(b" ", 2)[1])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_no_spelling_of_a_request_does_without_a_key(server: Server, version: str) -> None:
    cases = [("GET", target, "127.0.0.1") for target in TARGETS]
    cases += [(method, "/v1/models", "127.0.0.1") for method in METHODS]
    cases += [("GET", "/v1/models", host) for host in HOSTS]
    for method, target, host in cases:
        head = f"{method} {target} HTTP/{version}\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"
        assert status_of(said(server, head.encode())) in (400, 401), (method, target, host)
    for extra in (
        "Authorization: Bearer\r\n",
        "Authorization: Bearer x\r\nAuthorization: Bearer y\r\n",
        "X-Api-Key: x\r\n",
        f"Authorization: Bearer {server.key}\r\n" * 2,
    ):
        assert status_of(said(server, f"GET /v1/models HTTP/{version}\r\nHost: a\r\n{extra}\r\n".encode())) == 401
    right = f"GET /v1/models HTTP/{version}\r\nHost: evil.example\r\nAuthorization: bearer {server.key}\r\n\r\n"
    assert status_of(said(server, right.encode())) == 200


# ---- bodies


def raw(text: str) -> bytes:
    return b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"max_tokens":2' + text.encode() + b"}"


BODIES: dict[str, tuple[bytes, bytes]] = {
    "a million stops": (raw(',"stop":[' + ",".join(['"a"'] * 10**6) + "]"), raw(',"stop":["a"]')),
    "JSON 100,000 deep": (raw(',"metadata":' + "[" * 10**5 + "]" * 10**5), raw(',"metadata":[[]]')),
    "objects 100,000 deep": (raw(',"metadata":' + '{"a":' * 10**5 + "1" + "}" * 10**5), raw(',"metadata":{"a":1}')),
    "half a surrogate pair": (raw(',"stop":"\\ud83d"'), raw(',"stop":"\\ud83d\\udc0b"')),
    "NUL": (raw(',"stop":"\\u0000"'), raw(',"stop":"\\u0001"')),
    "n = 1e9": (raw(',"n":1e9'), raw(',"n":2')),
    "a huge number": (raw(',"seed":' + "9" * 10**6), raw(',"seed":9')),
    "an exponent without end": (raw(',"temperature":1e99999999'), raw(',"temperature":1e-3')),
    "a key twice": (raw(',"n":1,"n":1'), raw(',"n":1')),
    "a bias of every number": (
        raw(',"logit_bias":{' + ",".join(f'"{i}":1' for i in range(300_000)) + "}"),
        raw(',"logit_bias":{"263":1}'),
    ),
    "a bias beyond the vocabulary": (raw(',"logit_bias":{"264":1}'), raw(',"logit_bias":{"263":1}')),
    "a million unknown names": (raw("".join(f',"x{i}":1' for i in range(300_000))), raw("")),
    "a million messages": (
        b'{"model":"tiny","max_tokens":2,"messages":[' + b",".join([b'{"role":1}'] * 500_000) + b"]}",
        raw(""),
    ),
    "UTF-16": (raw("").decode().encode("utf-16"), raw("")),
    "a byte order mark": (b"\xef\xbb\xbf" + raw(""), raw("")),
    "a schema that is none": (raw(',"response_format":{"json":""}'), raw(',"response_format":{"type":"text"}')),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_cannot_be_meant_is_refused_at_once_and_its_twin_is_answered(server: Server, name: str) -> None:
    poison, twin = BODIES[name]
    before, spent = memory(server.process.pid), processor_seconds(server.process.pid)
    with server.client as client:
        answer = client.post("/v1/chat/completions", content=poison)
        assert answer.status_code == 400, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert len(answer.text) < 1000
        assert processor_seconds(server.process.pid) - spent < 10
        assert memory(server.process.pid) - before < 400 * MIB
        answer = client.post("/v1/chat/completions", content=twin)
        assert answer.status_code == 200, answer.text


def test_a_body_of_100_megabytes_is_refused_without_being_kept(server: Server) -> None:
    before, most = memory(server.process.pid), 0

    def parts() -> Iterator[bytes]:
        nonlocal most
        for _ in range(100):
            yield b" " * MIB
            most = max(most, memory(server.process.pid))

    with server.client as client:
        assert client.post("/v1/chat/completions", content=parts()).status_code == 413
    assert most - before < 40 * MIB
    good(server)


# ---- connections


def test_a_head_that_never_ends_and_a_connection_that_says_nothing_are_closed(server: Server) -> None:
    with connect(server) as slow, connect(server) as silent, connect(server) as kept:
        kept.sendall(f"GET /health HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.key}\r\n\r\n".encode())
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
        kept.sendall(b"GET /health HTTP/1.1\r\n")  # and no more
        began = time.monotonic()
        ended: set[str] = set()
        for wire in (slow, silent, kept):
            wire.settimeout(0.05)
        while len(ended) < 3 and time.monotonic() - began < 120:
            for name, wire in (("slow", slow), ("silent", silent), ("kept", kept)):
                if name in ended:
                    continue
                try:
                    if name == "slow":
                        wire.sendall(b"G" if time.monotonic() - began < 0.2 else b"E")
                    if wire.recv(1) == b"":
                        ended.add(name)
                except TimeoutError:
                    pass
                except OSError:
                    ended.add(name)
            time.sleep(0.2)
    assert ended == {"slow", "silent", "kept"}
    good(server)


@pytest.mark.parametrize("path", ["/health", "/", "/v1/chat/completions"])
@pytest.mark.parametrize("with_key", [True, False])
def test_a_body_with_two_lengths_is_refused_and_nothing_after_it_is_read(
    server: Server, path: str, with_key: bool
) -> None:
    """A proxy that goes by the length would take the second request for a body."""
    key = f"Authorization: Bearer {server.key}\r\n" if with_key else "Accept: text/html\r\n"
    second = f"GET /health HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.key}\r\n\r\n"
    length, chunked = "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"
    for framing in (length + chunked, chunked + length):
        with connect(server) as wire:
            wire.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\n{key}{framing}\r\n0\r\n\r\n{second}".encode())
            with wire.makefile("rb") as reader:
                reply = reader.read()  # to the end: it is closed
        assert reply.startswith(b"HTTP/1.1 400") and reply.count(b"HTTP/1.1") == 1
        assert b"length" in reply
    with connect(server) as wire:
        wire.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\n{key}{chunked}\r\n0\r\n\r\n{second}".encode())
        found = b""
        while b'"ok"' not in found and (part := wire.recv(65536)):
            found += part
    assert found.count(b"HTTP/1.1") == 2 and b'{"status":"ok"}' in found


# ---- an engine that hangs


def test_an_engine_that_hangs_is_started_again(run: Path, tmp_path: Path) -> None:
    with running(run, tmp_path, "hang=5", "ui=false") as server:
        good(server)
        time.sleep(6)  # without work, silence is no hang
        assert server.metric("engine_restarts_total") == 0
        os.kill(server.engine(), signal.SIGSTOP)
        with server.client as client:  # nothing of it was sent: it runs again
            assert client.post("/v1/chat/completions", json=chat_body()).status_code == 200
        assert server.metric("engine_restarts_total") == 1
        assert "hangs" in server.log.read_text(encoding="utf-8")


def child(process: subprocess.Popen[str]) -> int:
    """The process id of the engine, as soon as it runs a program of its own: until then its parent waits for it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split():
            with suppress(OSError):  # it is gone
                if b"rorqual.serve.worker" in Path(f"/proc/{number}/cmdline").read_bytes():
                    return int(number)
        time.sleep(0.01)
    raise AssertionError("no engine was started")


def test_an_engine_that_hangs_while_it_loads_ends_the_start(run: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(run, tmp_path / "k", "port=0", "load=5", "ui=false"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    engine = child(process)
    try:
        os.kill(engine, signal.SIGSTOP)
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 2 and "load=SECONDS" in errors and "Traceback" not in errors
        assert not Path(f"/proc/{engine}").exists()
    finally:
        process.kill()
        with suppress(ProcessLookupError):
            os.kill(engine, signal.SIGKILL)


def test_a_server_answers_while_its_engine_loads(run: Path, tmp_path: Path) -> None:
    key = ApiKeys.load(tmp_path / "keys.json").ensure_key("default")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(command(run, tmp_path / "keys.json", f"port={port}"), stdout=subprocess.DEVNULL)
    server = Server(process, f"http://127.0.0.1:{port}", key or "", tmp_path / "log", 0.0)
    engine = child(process)
    try:
        os.kill(engine, signal.SIGSTOP)
        with server.client as client:
            client.timeout = 60
            answers = {"/livez": 200, "/": 200, "/health": 503, "/metrics": 200, "/v1/models": 503}
            assert {path: client.get(path).status_code for path in answers} == answers
            early = client.post("/v1/chat/completions", json=chat_body())
            assert (early.status_code, early.json()["error"]["code"], early.headers["retry-after"]) == (
                503,
                "loading",
                "1",
            )
            os.kill(engine, signal.SIGCONT)
            while client.get("/health").status_code == 503:
                time.sleep(0.05)
        good(server)
    finally:
        process.kill()
        with suppress(ProcessLookupError):
            os.kill(engine, signal.SIGKILL)  # stopped, it would not see that its input has ended


def test_a_request_under_which_the_engine_dies_twice_is_given_up(server: Server) -> None:
    """It may be what kills it."""
    restarts, first = server.metric("engine_restarts_total"), server.engine()
    os.kill(first, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool, server.client as client:
        asked = pool.submit(client.post, "/v1/chat/completions", json=chat_body())
        server.wait("waiting", 1)
        os.kill(first, signal.SIGKILL)
        end = time.monotonic() + 60
        while (second := child(server.process)) == first:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert not asked.done(), "after one death it is tried again"
        os.kill(second, signal.SIGKILL)
        answer = asked.result(60)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_died"
    server.wait("engine_restarts_total", restarts + 2)
    good(server)


# ---- starts that cannot be


def refused(run: Path, folder: Path, *words: str) -> str:
    done = subprocess.run(
        command(run, folder / "k", "port=0", *words), capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_a_run_that_is_none_or_lacks_its_tokenizer_is_named(run: Path, tmp_path: Path) -> None:
    assert "not a run directory" in refused(tmp_path / "nothing", tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "tokenizer.json").unlink()
    assert "tokenizer" in refused(copy, tmp_path)


def test_a_cache_folder_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "leave out cache_dir" in refused(run, tmp_path, f"cache_dir={tmp_path / 'file' / 'cache'}")
