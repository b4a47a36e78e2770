"""Counters of the server's requests and tokens, and the Prometheus text format of the counters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, math.inf)
"""Upper bounds of the histogram of the time to first token, in seconds."""
RUNNING, WAITING = "Requests that are generating tokens", "Requests that wait for their first token"


Metric = tuple[str, str, str, Mapping[str, float | str]]
"""The name, the kind and the description of a metric, and its values as in `_metric`."""


@dataclass(frozen=True)
class ServerSnapshot:
    """A snapshot of the server: the numbers of running and waiting requests per tenant, the engine's statistics, and `more`
    metrics that not every server has."""

    alive: bool
    restarts: int
    running: Counter[str]
    waiting: Counter[str]
    stats: Mapping[str, float]
    more: Sequence[Metric] = ()


@dataclass
class ServerMetrics:
    """Counters of requests and tokens since the server's start. Label values come from fixed sets, so clients cannot create
    unlimited time series."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    first_token_seconds: float = 0.0
    first_tokens: Counter[float] = field(default_factory=Counter)  # the smallest bound in `SECONDS` -> requests
    cancelled: int = 0
    failed: int = 0

    def count_tokens(self, tenant: str, hit: int, miss: int, completion: int) -> None:
        """Count a request's tokens: `hit` prompt tokens from the prefix cache, `miss` other prompt tokens, and `completion`
        generated tokens."""
        for kind, count in (("prompt_hit", hit), ("prompt_miss", miss), ("completion", completion)):
            self.tokens[tenant, kind] += count

    def record_first_token(self, seconds: float) -> None:
        """Record a request's time to first token."""
        self.first_token_seconds += seconds
        self.first_tokens[next(bound for bound in SECONDS if seconds <= bound)] += 1

    def prometheus_text(self, now: ServerSnapshot, only: str | None = None) -> str:
        """Return the metrics in Prometheus' text format 0.0.4. `only`: the tenant whose metrics are returned, or None for all
        tenants."""
        more = (_metric(*one) for one in now.more)
        parts = [*self._tenant_metrics(now, only), *more, *([] if only else self._server_metrics(now))]
        return "\n".join(line for part in parts for line in part) + "\n"

    def _tenant_metrics(self, now: ServerSnapshot, only: str | None) -> Iterator[list[str]]:
        tenants = [only] if only else sorted({*now.running, *now.waiting})
        counts = {
            f'{{tenant="{tenant}",kind="{kind}"}}': count
            for (tenant, kind), count in sorted(self.tokens.items())
            if only in (None, tenant)
        }
        yield _metric("tokens_total", "counter", "Tokens, by tenant and kind.", counts)
        for name, about, requests in (("running", RUNNING, now.running), ("waiting", WAITING, now.waiting)):
            by_tenant = {f'{{tenant="{tenant}"}}': requests[tenant] for tenant in tenants}
            yield _metric(f"tenant_{name}", "gauge", f"{about}, by tenant.", by_tenant)
        yield _metric("engine_up", "gauge", "Whether the engine is ready.", {"": int(now.alive)})

    def _server_metrics(self, now: ServerSnapshot) -> Iterator[list[str]]:
        requests = {
            f'{{route="{route}",status="{status}"}}': count for (route, status), count in sorted(self.requests.items())
        }
        hits, misses = (
            sum(n for (_, k), n in self.tokens.items() if k == kind) for kind in ("prompt_hit", "prompt_miss")
        )
        within = list(accumulate(self.first_tokens[bound] for bound in SECONDS))
        names = (f"{bound:g}" if bound < math.inf else "+Inf" for bound in SECONDS)
        seconds: dict[str, float | str] = {f'_bucket{{le="{name}"}}': n for name, n in zip(names, within, strict=True)}
        seconds |= {"_sum": f"{self.first_token_seconds:.6f}", "_count": within[-1]}
        ratio = f"{hits / max(hits + misses, 1):.6f}"
        stats = {f'{{what="{name}"}}': f"{value:.15g}" for name, value in sorted(now.stats.items())}
        failed = "Requests that failed because of an error of the server."
        yield _metric("requests_total", "counter", "Requests answered, by route and status.", requests)
        yield _metric("first_token_seconds", "histogram", "Seconds from a request to its first token.", seconds)
        yield _metric("prompt_hit_ratio", "gauge", "Share of prompt tokens that the prefix cache served.", {"": ratio})
        yield _metric("cancelled_total", "counter", "Requests whose client disconnected.", {"": self.cancelled})
        yield _metric("failed_total", "counter", failed, {"": self.failed})
        yield _metric("running", "gauge", f"{RUNNING}.", {"": now.running.total()})
        yield _metric("waiting", "gauge", f"{WAITING}.", {"": now.waiting.total()})
        yield _metric("engine_restarts_total", "counter", "Restarts of the engine after it died.", {"": now.restarts})
        yield _metric("engine", "gauge", "Latest statistics of the engine.", stats)


def _metric(name: str, kind: str, description: str, values: Mapping[str, float | str]) -> list[str]:
    """Return the lines of one metric. Each key of `values` is a suffix that is appended to the metric's name, such as `_sum`
    or labels in braces."""
    head = [f"# HELP rorqual_{name} {description}", f"# TYPE rorqual_{name} {kind}"]
    return head + [f"rorqual_{name}{suffix} {value}" for suffix, value in values.items()]
