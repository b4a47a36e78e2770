"""Beside each attack of another tenant, a tenant is served: `benchmarks/isolation.py`, for some tokens per attack, without its clock."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ATTACKS, TOKENS = 10, 20


@pytest.mark.timeout(900)
def test_a_tenant_gets_tokens_beside_every_attack(tmp_path: Path) -> None:
    """The seconds are so many that a slow machine does not need them, and whoever waits until an attack is over gets nothing in them."""
    result = tmp_path / "isolation.json"
    words = ["--rounds", "1", "--seconds", "120", "--tokens", str(TOKENS), "--pairs", "2", "--result", str(result)]
    subprocess.run([sys.executable, str(BENCHMARKS / "isolation.py"), *words], check=True, timeout=800)
    found = json.loads(result.read_text(encoding="utf-8"))
    [rows] = found["rounds"]
    assert len(rows) == ATTACKS and all(row["tokens"] == TOKENS for row in rows.values()), rows
    assert found["cache"]["requests"] == 4


class Refusal(http.server.BaseHTTPRequestHandler):
    """A server that knows nobody."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(401)
        self.end_headers()


@pytest.mark.parametrize("name", ["schemas that compile for ever", "connect, ask, close"])
def test_an_attack_that_is_refused_for_another_reason_fails(name: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = ["attack", name, f"http://127.0.0.1:{server.server_port}", "key"]
        ended = subprocess.run(
            [sys.executable, str(BENCHMARKS / "two_tenants.py"), *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        server.shutdown()
    assert ended.returncode and "(401, '')" in ended.stderr
