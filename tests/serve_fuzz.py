# SPDX-License-Identifier: Apache-2.0
"""Requests that break the interface's own description, made by schemathesis, and what they got."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import requests
import schemathesis


@dataclass
class Got:
    """How many answers of each status, and the requests that were not refused with 4xx in the known form."""

    statuses: Counter[int] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Of all requests."""
        return sum(self.statuses.values())


def malformed(described: dict[str, Any], url: str, count: int, seed: int = 0) -> Got:
    """Send `count` malformed requests to a server, shared out over the described operations with a body."""
    schema = schemathesis.openapi.from_dict(described)
    every = [found.ok() for found in schema.get_all_operations()]
    some = [one for one in every if one.body]  # a path whose parts are any words cannot be malformed
    got, session = Got(), requests.Session()
    for number, operation in enumerate(some):
        _send(operation, url, (count - got.count) // (len(some) - number), seed, session, got)
    while got.count < count:  # what a strategy could not fill goes to the others
        seed += 1
        _send(some[seed % len(some)], url, count - got.count, seed, session, got)
    return got


def _send(operation: Any, url: str, share: int, seed: int, session: Any, got: Got) -> None:
    wrong = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=share, deadline=None, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=wrong)
    def send(case: Any) -> None:
        answer = case.call(base_url=url, session=session, timeout=30)
        got.statuses[answer.status_code] += 1
        told = answer.json() if "json" in answer.headers.get("content-type", [""])[0] else {}
        if not 400 <= answer.status_code < 500 or set(told) != {"error"}:
            got.odd.append(f"{answer.status_code}: {case.as_curl_command()[:600]}")

    send()
