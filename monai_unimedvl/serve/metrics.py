# SPDX-License-Identifier: Apache-2.0
"""What Prometheus may read: counts, times and queues; no word, name or number of any request."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self) -> None:
        here = self.registry = CollectorRegistry()
        self.requests = Counter(
            "unimedvl_requests", "Requests by route and status", ["route", "status"], registry=here
        )
        self.seconds = Histogram(
            "unimedvl_request_seconds", "From the first byte to the last", ["route"], buckets=SECONDS,
            registry=here,
        )  # fmt: skip
        self.words = Counter("unimedvl_tokens", "Tokens read and said", ["kind"], registry=here)
        self.images = Counter("unimedvl_images", "Images drawn", registry=here)
        self.failures = Counter("unimedvl_failures", "Requests that failed in the model", registry=here)
        ProcessCollector(registry=self.registry)

    def watch(self, load: Callable[[], dict[str, int]]) -> None:
        """Show how much waits and runs, asked anew each time."""
        self.registry.register(_Load(load))

    def text(self) -> bytes:
        """In Prometheus's own format."""
        return generate_latest(self.registry)


class _Load(Collector):
    def __init__(self, load: Callable[[], dict[str, int]]) -> None:
        self.load = load

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One gauge for all queues."""
        gauge = GaugeMetricFamily("unimedvl_load", "Answers and drawings that wait or run", labels=["what"])
        for what, count in self.load().items():
            gauge.add_metric([what], count)
        yield gauge
