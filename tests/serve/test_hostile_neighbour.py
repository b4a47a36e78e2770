"""Beside each attack of another tenant, a tenant is served: `benchmarks/isolation.py`, for some seconds per attack, without its clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "isolation.py"
ATTACKS = 8


@pytest.mark.timeout(900)
def test_a_tenant_gets_tokens_beside_every_attack(tmp_path: Path) -> None:
    result = tmp_path / "isolation.json"
    words = ["--rounds", "1", "--seconds", "4", "--pairs", "2", "--result", str(result)]
    subprocess.run([sys.executable, str(BENCHMARK), *words], check=True, timeout=800)
    found = json.loads(result.read_text(encoding="utf-8"))
    [rows] = found["rounds"]
    assert len(rows) == ATTACKS and all(row["tokens"] > 1 for row in rows.values()), rows
    assert found["cache"]["requests"] == 4
