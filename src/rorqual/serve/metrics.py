"""Counters, and Prometheus' text of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Metrics:
    """What was counted since the start. Labels are taken from fixed sets, so that no client can make a page of them."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    first_token_seconds: float = 0.0
    first_tokens: int = 0
    cancelled: int = 0

    def used(self, tenant: str, prompt: int, completion: int) -> None:
        """Tokens of one request. There is no prefix cache yet: every token of a prompt is a miss."""
        self.tokens[tenant, "prompt_miss"] += prompt
        self.tokens[tenant, "prompt_hit"] += 0
        self.tokens[tenant, "completion"] += completion

    def first_token(self, seconds: float) -> None:
        """How long a request waited for its first token."""
        self.first_token_seconds += seconds
        self.first_tokens += 1

    def text(self, *, alive: bool, restarts: int, running: int, waiting: int) -> str:
        """The page that Prometheus reads (text format 0.0.4)."""
        return "\n".join(self._lines(alive, restarts, running, waiting)) + "\n"

    def _lines(self, alive: bool, restarts: int, running: int, waiting: int) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Requests answered, by route and status.")
        for (route, status), count in sorted(self.requests.items()):
            yield f'rorqual_requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("tokens_total", "counter", "Tokens, by tenant and kind.")
        for (tenant, kind), count in sorted(self.tokens.items()):
            yield f'rorqual_tokens_total{{tenant="{tenant}",kind="{kind}"}} {count}'
        yield from _head("first_token_seconds", "summary", "Seconds from a request to its first token.")
        yield f"rorqual_first_token_seconds_sum {self.first_token_seconds:.6f}"
        yield f"rorqual_first_token_seconds_count {self.first_tokens}"
        gauges = {
            "running": (running, "Requests that draw tokens."),
            "waiting": (waiting, "Requests without a token yet."),
        }
        gauges |= {"engine_up": (int(alive), "Whether the engine is ready.")}
        counters = {"engine_restarts_total": (restarts, "Deaths of the engine.")}
        counters |= {"cancelled_total": (self.cancelled, "Requests whose client left.")}
        for kind, group in (("gauge", gauges), ("counter", counters)):
            for name, (value, what) in group.items():
                yield from _head(name, kind, what)
                yield f"rorqual_{name} {value}"


def _head(name: str, kind: str, what: str) -> Iterator[str]:
    yield f"# HELP rorqual_{name} {what}"
    yield f"# TYPE rorqual_{name} {kind}"
