"""Counters of the server, and their Prometheus text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

UNDER_WAY = {"running": "Requests that are generating tokens", "waiting": "Requests that wait for their first token"}


@dataclass(frozen=True)
class Now:
    """A snapshot of the server: running and waiting requests of each tenant, and the engine's statistics."""

    alive: bool
    restarts: int
    running: Counter[str]
    waiting: Counter[str]
    stats: Mapping[str, float]


@dataclass
class Metrics:
    """Counters since the server's start. Label values come from fixed sets, so clients cannot create unlimited time series."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    first_token_seconds: float = 0.0
    first_tokens: int = 0
    cancelled: int = 0
    failed: int = 0

    def used(self, tenant: str, hit: int, miss: int, completion: int) -> None:
        """Count a request's tokens: prompt tokens from the prefix cache, other prompt tokens, and generated tokens."""
        for kind, count in (("prompt_hit", hit), ("prompt_miss", miss), ("completion", completion)):
            self.tokens[tenant, kind] += count

    def first_token(self, seconds: float) -> None:
        """Record a request's time to first token."""
        self.first_token_seconds += seconds
        self.first_tokens += 1

    def text(self, now: Now, only: str | None = None) -> str:
        """Return the metrics in Prometheus' text format 0.0.4. `only`: the tenant to report on; None reports on all tenants."""
        if only is not None:
            return "\n".join((*self._tokens(only), *_under_way(now, only), *_up(now))) + "\n"
        return "\n".join((*self._totals(), *self._current(now))) + "\n"

    def _tokens(self, only: str | None = None) -> Iterator[str]:
        yield from _head("tokens_total", "counter", "Tokens, by tenant and kind.")
        for (tenant, kind), count in sorted(self.tokens.items()):
            if only in (None, tenant):
                yield f'rorqual_tokens_total{{tenant="{tenant}",kind="{kind}"}} {count}'

    def _totals(self) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Requests answered, by route and status.")
        for (route, status), count in sorted(self.requests.items()):
            yield f'rorqual_requests_total{{route="{route}",status="{status}"}} {count}'
        yield from self._tokens()
        yield from _head("first_token_seconds", "summary", "Seconds from a request to its first token.")
        yield f"rorqual_first_token_seconds_sum {self.first_token_seconds:.6f}"
        yield f"rorqual_first_token_seconds_count {self.first_tokens}"
        hits, misses = (
            sum(n for (_, k), n in self.tokens.items() if k == kind) for kind in ("prompt_hit", "prompt_miss")
        )
        yield from _head("prompt_hit_ratio", "gauge", "Share of prompt tokens that the prefix cache served.")
        yield f"rorqual_prompt_hit_ratio {hits / max(hits + misses, 1):.6f}"
        yield from _head("cancelled_total", "counter", "Requests whose client disconnected.")
        yield f"rorqual_cancelled_total {self.cancelled}"
        yield from _head(
            "failed_total", "counter", "Requests that the engine refused, or that failed because the engine died."
        )
        yield f"rorqual_failed_total {self.failed}"

    def _current(self, now: Now) -> Iterator[str]:
        for name, requests in (("running", now.running), ("waiting", now.waiting)):
            yield from _head(name, "gauge", f"{UNDER_WAY[name]}.")
            yield f"rorqual_{name} {requests.total()}"
        yield from _under_way(now)
        yield from _up(now)
        yield from _head("engine_restarts_total", "counter", "Restarts of the engine after it died.")
        yield f"rorqual_engine_restarts_total {now.restarts}"
        yield from _head("engine", "gauge", "Latest statistics of the engine.")
        for name, value in sorted(now.stats.items()):
            yield f'rorqual_engine{{what="{name}"}} {value:g}'


def _under_way(now: Now, only: str | None = None) -> Iterator[str]:
    tenants = sorted({*now.running, *now.waiting}) if only is None else [only]
    for name, requests in (("running", now.running), ("waiting", now.waiting)):
        yield from _head(f"tenant_{name}", "gauge", f"{UNDER_WAY[name]}, by tenant.")
        for tenant in tenants:
            yield f'rorqual_tenant_{name}{{tenant="{tenant}"}} {requests[tenant]}'


def _up(now: Now) -> Iterator[str]:
    yield from _head("engine_up", "gauge", "Whether the engine is ready.")
    yield f"rorqual_engine_up {int(now.alive)}"


def _head(name: str, kind: str, description: str) -> Iterator[str]:
    yield f"# HELP rorqual_{name} {description}"
    yield f"# TYPE rorqual_{name} {kind}"
