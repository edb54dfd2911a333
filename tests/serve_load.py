# SPDX-License-Identifier: Apache-2.0
"""A crowd of OpenAI's own clients, each of which checks every answer against its own request."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import openai


@dataclass(frozen=True)
class Case:
    """A request and the answer that it must get."""

    messages: list[dict[str, Any]]
    options: dict[str, Any]
    answer: str


@dataclass
class Told:
    """What the crowd saw: seconds of each answer, seconds to the first piece of streamed ones, and faults."""

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def percentile(self, share: float, of: Sequence[float] | None = None) -> float:
        """Seconds within which that share of the answers came."""
        times = sorted(self.seconds if of is None else of)
        return times[min(int(share * len(times)), len(times) - 1)]


async def crowd(
    url: str, model: str, cases: Sequence[Case], *, clients: int, seconds: float = 0.0, least: int = 1
) -> Told:
    """`clients` of them ask one request after the other, every other one streamed.

    They go on for some seconds, and until each has asked `least` times. Each has connections of its own.
    """
    told, until = Told(), time.monotonic() + seconds

    async def one(number: int) -> None:
        chance = random.Random(number)
        plain = openai.DefaultAsyncHttpxClient(verify=False)  # http: certificates take seconds to load
        async with openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, timeout=120, http_client=plain
        ) as client:
            asked = 0
            while time.monotonic() < until or asked < least:
                asked += 1
                case = chance.choice(cases)
                start = time.monotonic()
                try:
                    text = await _answer(client, model, case, chance.random() < 0.5, start, told)
                except openai.APIError as error:
                    told.failed.append(f"{type(error).__name__}: {error}")
                    continue
                told.seconds.append(time.monotonic() - start)
                if text != case.answer:
                    told.wrong.append((case.answer, text))

    await asyncio.gather(*(one(n) for n in range(clients)))
    return told


async def _answer(client: Any, model: str, case: Case, stream: bool, start: float, told: Told) -> str:
    asked = {"model": model, "messages": case.messages, **case.options}
    if not stream:
        return (await client.chat.completions.create(**asked)).choices[0].message.content
    pieces = []
    async for event in await client.chat.completions.create(**asked, stream=True):
        if not pieces:
            told.first.append(time.monotonic() - start)
        pieces.append(event.choices[0].delta.content or "")
    return "".join(pieces)
