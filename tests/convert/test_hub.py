"""A checkpoint of the hub, from a server of our own that speaks as the hub does: what is asked for, and what never is."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hub_folders import published, qwen3, stored, write_folder

from rorqual.convert.hub import download_repository, is_hub_id
from rorqual.core.errors import ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The routes of the hub that a download uses: what a model consists of (asked in two ways), and its files."""

    server: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        folder, path = self.server.folder, self.path.partition("?")[0]
        if path.startswith("/api/models/org/name/revision/"):
            names = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
            self._send(json.dumps({"id": "org/name", "sha": COMMIT, "siblings": names}).encode())
        elif path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in sorted(folder.iterdir())
            ]
            self._send(json.dumps(files).encode())
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            self.server.asked.add(name)
            self._send((folder / name).read_bytes())
        else:
            self.send_error(404)

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        for key, value in {
            "Content-Length": str(len(data)), "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT, "Content-Type": "application/octet-stream",
        }.items():  # fmt: skip
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.folder, self.asked = folder, set[str]()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    folder = write_folder(tmp_path / "published", qwen3(), published(qwen3()), shards=2)
    for name in ("modeling_mine.py", "pytorch_model.bin", "README.md"):
        (folder / name).write_text("raise SystemExit", encoding="utf-8")
    server = HubServer(folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_import_of_a_name_fetches_what_is_needed_and_neither_code_nor_pickles(hub: HubServer, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "rorqual", "import", "org/name", "run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert hub.asked == {file.name for file in hub.folder.iterdir()} - {
        "modeling_mine.py",
        "pytorch_model.bin",
        "README.md",
    }
    assert len(stored(tmp_path / "run" / "step-000000")) == len(stored(hub.folder))


def test_without_the_package_a_name_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"no local folder 'org/name'(?s:.*)pip install huggingface_hub"):
        download_repository("org/name")


def test_what_reads_as_a_name() -> None:
    assert is_hub_id("Qwen/Qwen3-0.6B")
    assert not any(is_hub_id(text) for text in ("runs", "a/b/c", "../a/b", "/a/b", "./a", "a/", "https://a/b"))
