"""The engine is killed under load: every answer that was given is the right one. Ten kills: scripts/serve_kills.py."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from kills import torment

from rorqual.serve.keys import ApiKeys
from served import ENDLESS, running, start, stop, write_run


def test_kills_under_load_change_no_answer(run: Path, tmp_path: Path) -> None:
    outcome = torment(run, tmp_path, kills=2, clients=4, requests=12)
    assert not outcome.faults
    assert outcome.kills == 2 and outcome.whole > 12
    assert outcome.hit_ratio > 0.2
    assert all(counts["prompt_hit"] and counts["completion"] for counts in outcome.tenants.values())


def test_each_tenant_is_seen_running_and_waiting_and_hits_its_own_prompts_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny", context=ENDLESS)
    keys = tmp_path / "keys.json"
    secrets = {tenant: ApiKeys.load(keys).ensure_key(tenant) or "" for tenant in ("default", "other")}
    server = start(run, keys, tmp_path / "log", "port=0", "slots=1", "ui=false", "name=org/tiny")
    server.key = secrets["default"]
    body = {"model": "org/tiny", "prompt": "a", "stream": True, "ignore_eos": True}

    def gauges(client: httpx.Client) -> dict[tuple[str, str], int]:
        found = re.findall(r'^rorqual_tenant_(\w+){tenant="(\w+)"} (\d+)$', client.get("/metrics").text, re.MULTILINE)
        return {(name, tenant): int(count) for name, tenant, count in found}

    both = {("running", "default"): 1, ("running", "other"): 0, ("waiting", "default"): 0, ("waiting", "other"): 1}

    def waits() -> None:
        headers = {"authorization": f"Bearer {secrets['other']}"}
        there = httpx.Client(base_url=server.url, headers=headers, timeout=300, trust_env=False)
        with there as client, client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            assert any("text" in line for line in answer.iter_lines())

    try:
        with server.client as client, client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()  # which, once collected, closes the answer
            assert any("text" in line for line in lines)
            os.kill(
                server.engine(), signal.SIGSTOP
            )  # or the second would begin within 16 tokens, and nobody might see it wait
            waiting = threading.Thread(target=waits, daemon=True)
            waiting.start()
            end = time.monotonic() + 30
            try:
                while (now := gauges(server.client)) != both:
                    assert time.monotonic() < end, now
            finally:
                os.kill(server.engine(), signal.SIGCONT)
        waiting.join(100)
        server.wait("running", 0)
        with server.client as client:
            assert not any(gauges(client).values())
        asked = {"model": "org/tiny", "prompt": "x" * 200, "max_tokens": 1}
        hits = []
        for tenant in ("default", "default", "other"):
            headers = {"authorization": f"Bearer {secrets[tenant]}"}
            with httpx.Client(base_url=server.url, headers=headers, timeout=300, trust_env=False) as client:
                hits.append(client.post("/v1/completions", json=asked).json()["usage"]["prompt_cache_hit_tokens"])
        assert hits[0] == 0 and hits[1] >= 128 and hits[2] == 0  # what one tenant said, another cannot find out
        with server.client as client:  # the operator's
            everybody = client.get("/metrics").text
        headers = {"authorization": f"Bearer {secrets['other']}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=300, trust_env=False) as client:
            own = client.get("/metrics").text
            assert client.get("/v1/models/org/tiny").json()["id"] == "org/tiny"
        mine = 'rorqual_tokens_total{tenant="other",kind="prompt_miss"} '
        assert mine in everybody and mine in own and 'tenant="default"' in everybody and "default" not in own
        assert "requests_total" in everybody and "requests_total" not in own
    finally:
        assert stop(server) == 0


def test_what_nobody_waits_for_leaves_the_engine(tmp_path: Path) -> None:
    """Not only the server's books: the engine itself stops drawing, and the one slot is free for somebody else."""
    run = write_run(tmp_path / "tiny", context=ENDLESS)
    body = {"model": "tiny", "prompt": "a", "max_tokens": 2000, "ignore_eos": True}
    statuses: list[int] = []

    def ask(**fields: Any) -> None:
        with server.client as client:
            statuses.append(client.post("/v1/completions", json=body | fields).status_code)

    with running(run, tmp_path, "slots=1", "ui=false") as server:
        began = server.cpu()
        ask()
        whole = server.cpu() - began
        endless = body | {"stream": True, "max_tokens": ENDLESS - 2}
        with server.client as client, client.stream("POST", "/v1/completions", json=endless) as answer:
            assert any("text" in line for line in answer.iter_lines())
        left = server.cpu()
        asking = threading.Thread(target=ask, kwargs={"max_tokens": 1}, daemon=True)
        asking.start()
        while not statuses[1:]:
            assert server.cpu() - left < whole, "the engine draws what nobody waits for"
            asking.join(0.02)
        assert statuses == [200, 200]
