"""A limit on the number of requests per second, for each tenant."""

from __future__ import annotations

import time


class RateLimit:
    """At most `rate` requests per second and tenant, after `burst` requests at once (the generic cell rate algorithm)."""

    def __init__(self, rate: float = 100.0, burst: int = 256) -> None:
        self._interval, self._burst = 1 / rate, burst
        self._due: dict[str, float] = {}  # the time at which the tenant's requests so far are paid for

    def wait(self, tenant: str) -> float:
        """Count a request. If the tenant has no request left, return the seconds until the tenant has one, else 0."""
        now = time.monotonic()
        due = max(self._due.get(tenant, 0.0), now)
        if (wait := due - now - (self._burst - 1) * self._interval) > 0:
            return wait
        self._due[tenant] = due + self._interval
        return 0.0
