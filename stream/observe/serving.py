"""What `heft teacher serve` exports to Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STATUSES = (200, 400, 401, 413, 500, 503)


class ServingMetrics:
    """Counts of one server.

    Parameters
    ----------
    waiting
        Returns how many requests wait now.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "heft_serve_requests", "Requests to score, by status of the answer", ["status"], registry=self._registry
        )
        for status in _STATUSES:  # at zero from the start, so that a rate sees the first
            self._requests.labels(str(status))
        self._pairs = Counter("heft_serve_pairs", "Pairs scored", registry=self._registry)
        self._seconds = Histogram(
            "heft_serve_request_seconds", "From a request to its scores", buckets=_SECONDS, registry=self._registry
        )
        Gauge("heft_serve_waiting_requests", "Requests that wait", registry=self._registry).set_function(waiting)

    def answered(self, status: int, seconds: float, pairs: int = 0) -> None:
        """Note an answer; ``pairs`` were scored for it."""
        self._requests.labels(str(status)).inc()
        if pairs:
            self._pairs.inc(pairs)
            self._seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all metrics as they are now, as a scrape wants them."""
        return generate_latest(self._registry)
