# SPDX-License-Identifier: Apache-2.0
"""Many at once: every answer is its own request's, who leaves makes room, who is too many is told so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_load import Case, crowd
from serve_support import NAME, png, running, service_of, user

from monai_unimedvl.inferers import TextInferer
from monai_unimedvl.serve import Service, application


@pytest.fixture(scope="module")
def cases(service: Service) -> list[Case]:
    """Requests of many kinds, each with the answer that the inferer gives it alone."""
    found = []
    for n in range(24):
        words = " ".join(["axial", "coronal", "sagittal", "which", "plane"][n % 5 :] + [str(n)])
        options: dict[str, Any] = {"seed": n, "temperature": 0.9 * (n % 3 > 0)}
        infer = TextInferer(service.tokenizer, max_new_tokens=5 + n, **options)
        (answer,) = infer([[words]], service.network)
        found.append(Case([user(words)], {**options, "max_tokens": 5 + n}, answer.text))
    return found


@pytest.mark.parametrize(
    "seconds", [0.0, pytest.param(10.0, marks=pytest.mark.slow)], ids=["twice each", "ten seconds"]
)
def test_32_clients_at_once_get_each_the_answer_to_their_own_request(url, service, cases, seconds):
    told = asyncio.run(crowd(f"{url}/v1", NAME, cases, clients=32, seconds=seconds, least=2))
    assert told.wrong == [] and told.failed == []
    assert len(told.seconds) >= 64 and told.first
    assert len({case.answer for case in cases}) > 20, "the answers do not tell requests apart"
    assert sum(service.worker.load().values()) == 0


@pytest.fixture
def slowly(network, tokenizer, monkeypatch) -> Iterator[tuple[str, Service]]:
    """A server with two places and two to wait, that takes 20 ms a word and never ends by itself."""
    service = service_of(network, tokenizer, running=2, waiting=2, seconds=60.0, words=250)
    step = service.worker.engine.step

    def late() -> Any:
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(service.worker.engine, "step", late)
    with running(application(service, samples={})) as url:
        yield url, service


def body(words: str = "axial", **options: Any) -> dict[str, Any]:
    """A request that would take seconds."""
    return {
        "model": NAME,
        "messages": [user(words)],
        "max_tokens": 200,
        "temperature": 1.9,
        "seed": 1,
        **options,
    }


def idle(service: Service) -> bool:
    """Whether all places are free in a while, long before the 4 s that `body` takes."""
    until = time.monotonic() + 2.0
    while sum(service.worker.load().values()) and time.monotonic() < until:
        time.sleep(0.01)
    return sum(service.worker.load().values()) == 0


def test_a_client_that_disconnects_frees_its_place(slowly):
    url, service = slowly
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body(stream=True)) as answer:
        next(answer.iter_bytes())
        assert service.worker.load()["answers_running"] == 1
    assert idle(service)
    with pytest.raises(httpx.ReadTimeout):  # the same for one that waits for the whole
        httpx.post(f"{url}/v1/chat/completions", json=body(), timeout=0.15)
    assert idle(service)


def test_what_takes_too_long_is_ended_and_told(slowly):
    url, service = slowly
    service.limits = replace(service.limits, seconds=0.3)
    answer = httpx.post(f"{url}/v1/chat/completions", json=body(), timeout=10)
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
    assert idle(service)
    streamed = httpx.post(f"{url}/v1/chat/completions", json=body(stream=True), timeout=10).text
    assert "timeout" in streamed and "[DONE]" not in streamed
    assert idle(service)


def test_too_many_are_told_to_come_later_and_the_others_are_served(slowly):
    url, service = slowly

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            asked = [client.post("/v1/chat/completions", json=body(max_tokens=8)) for _ in range(9)]
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask())
    codes = sorted(answer.status_code for answer in answers)
    assert set(codes) == {200, 429} and 2 <= codes.count(200) <= 5
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] and refused.json()["error"]["code"] == "queue_full"
    assert idle(service)


def test_words_go_on_while_an_image_is_drawn(client, service):
    asked = service.worker.draw(["axial"], service.drawing._replace(steps=5000))  # ten seconds or more
    said = list(client.chat.completions.create(model=NAME, messages=[user("axial")], stream=True))
    assert len(said) > 2 and not asked.future.done()
    asked.abandon()
    assert idle(service)


def test_a_worker_that_ended_is_seen_and_told(network, tokenizer):
    service = service_of(network, tokenizer)
    with running(application(service, samples={})) as url:
        service.worker.close()
        assert httpx.get(f"{url}/health").status_code == 503
        answer = httpx.post(f"{url}/v1/chat/completions", json=body(max_tokens=5))
        assert answer.status_code == 503 and "start the server again" in answer.json()["error"]["message"]
        assert httpx.post(f"{url}/v1/images/generations", json={"prompt": "axial"}).status_code == 503


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.slow
def test_memory_does_not_grow_from_request_50_to_200(client):
    picture = user(png(size=(256, 256)), "axial")
    sizes = []
    for n in range(200):
        client.chat.completions.create(model=NAME, messages=[picture], seed=n, temperature=1.0, max_tokens=4)
        if n >= 50:
            sizes.append(resident())
    assert sizes[-1] - sizes[0] <= 20
