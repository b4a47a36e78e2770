"""The page of metrics: the operator sees every tenant, a tenant itself alone."""

from __future__ import annotations

from collections import Counter

from rorqual.serve.metrics import ServerMetrics, ServerSnapshot


def test_a_tenant_sees_its_own_figures_alone() -> None:
    metrics = ServerMetrics()
    metrics.count_tokens("mine", 1, 2, 3)
    metrics.count_tokens("theirs", 4, 5, 6)
    now = ServerSnapshot(True, 2, Counter(mine=1, theirs=7), Counter(theirs=8), {"slots": 4.0})
    own, everybody = metrics.prometheus_text(now, "mine"), metrics.prometheus_text(now)
    assert "theirs" not in own and "restarts" not in own and "slots" not in own
    for line in (
        'rorqual_tokens_total{tenant="mine",kind="prompt_hit"} 1',
        'rorqual_tokens_total{tenant="mine",kind="prompt_miss"} 2',
        'rorqual_tokens_total{tenant="mine",kind="completion"} 3',
        'rorqual_tenant_running{tenant="mine"} 1',
        "rorqual_engine_up 1",
    ):
        assert line in own.splitlines() and line in everybody.splitlines()
    assert 'rorqual_tenant_waiting{tenant="mine"} 0' in own.splitlines()
    for line in (
        'rorqual_tenant_running{tenant="theirs"} 7',
        'rorqual_tenant_waiting{tenant="theirs"} 8',
        "rorqual_running 8",
        "rorqual_waiting 8",
        "rorqual_engine_restarts_total 2",
        "rorqual_prompt_hit_ratio 0.416667",
    ):
        assert line in everybody.splitlines()
