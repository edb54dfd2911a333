# SPDX-License-Identifier: Apache-2.0
"""Requests side by side: continuous admission equals one batch, nothing is lost, nobody waits for nothing."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from monai_unimedvl.inferers import TextInferer
from monai_unimedvl.inferers.engine import Engine, QueueFull, Request, Token
from monai_unimedvl.inferers.inferers import Answer
from monai_unimedvl.sequence import Turn

SAMPLED: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.9, "top_k": 30, "repetition_penalty": 1.2}
OPTIONS: list[dict[str, Any]] = [
    {"max_new_tokens": 12},
    SAMPLED,
    {"max_new_tokens": 3},
    {"max_new_tokens": 20},
]


@pytest.fixture
def prompts(image, other):
    return [
        [image, "axial"],
        ["which plane is this?"],
        [other, image, "coronal"],
        ["sagittal sagittal"],
        [Turn("user", [image, "axial"]), Turn("assistant", ["is"]), Turn("user", ["plane"])],
        ["axial"],
    ]


def alone(tiny, tokenizer, prompts) -> list[Answer]:
    """Each answered by itself."""
    return [
        TextInferer(tokenizer, seed=n, **OPTIONS[n % 4])([prompt], tiny)[0]
        for n, prompt in enumerate(prompts)
    ]


def same(request: Request, wanted: Answer) -> None:
    answer = request.answer
    assert (answer.text, answer.ids, answer.stop_reason) == (wanted.text, wanted.ids, wanted.stop_reason)
    assert_close(answer.logprobs, wanted.logprobs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("places", [1, 2, 6])
def test_requests_that_come_and_go_get_the_answers_they_get_alone(tiny, tokenizer, prompts, places):
    engine, wanted = Engine(tiny, tokenizer, max_running=places), alone(tiny, tokenizer, prompts)
    requests, most = [], 0
    for n, prompt in enumerate(prompts):
        requests.append(engine.submit(prompt, seed=n, **OPTIONS[n % 4]))
        if n % 2:
            engine.step()
            most = max(most, engine.running)
    engine.run()
    assert engine.idle and most <= places
    for request, answer in zip(requests, wanted, strict=True):
        same(request, answer)
    assert len({request.answer.ids for request in requests}) > 3


def test_tokens_tell_everything_as_it_comes(tiny, tokenizer, prompts):
    engine = Engine(tiny, tokenizer, max_running=2)
    request = engine.submit(prompts[0], max_new_tokens=6, alternatives=3)
    assert not request.done and engine.waiting == 1 and request.answer.stop_reason == ""
    said: list[Token] = []
    while not engine.idle:
        said += engine.step()
    assert said == request.tokens and [token.stop for token in said[:-1]] == [None] * (len(said) - 1)
    assert "".join(token.piece for token in said) == request.answer.text
    for token in said:
        best = [logprob for _, logprob in token.alternatives]
        assert best == sorted(best, reverse=True) and len(best) == 3
        assert token.id is None or token.alternatives[0] == (token.id, pytest.approx(token.logprob))
    assert request.submitted <= request.started <= request.finished


def test_who_is_cancelled_makes_room(tiny, tokenizer, prompts):
    tiny.decoder.head.weight.data[tokenizer.marks.text_end] = 0  # long answers
    engine, wanted = Engine(tiny, tokenizer, max_running=1), alone(tiny, tokenizer, prompts[:2])
    first, second, third = (
        engine.submit(prompt, **OPTIONS[n], seed=n) for n, prompt in enumerate(prompts[:3])
    )
    engine.step()
    engine.cancel(first)
    engine.cancel(third)
    tokens = engine.step()
    assert {(token.request.number, token.stop) for token in tokens} >= {(0, "cancelled"), (2, "cancelled")}
    engine.run()
    same(second, wanted[1])
    assert first.stop_reason == third.stop_reason == "cancelled" and len(first.answer.ids) == 1


def test_what_fails_is_told_and_the_others_go_on(tiny, tokenizer, prompts, monkeypatch):
    engine = Engine(tiny, tokenizer, max_running=2)
    read = engine.context.read

    def broken(batch):
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine.context, "read", broken)
    bad = engine.submit(prompts[0])
    (token,) = engine.step()
    assert (token.request, token.stop, bad.error) == (bad, "error", "no memory") and engine.idle
    monkeypatch.setattr(engine.context, "read", read)
    good = engine.submit(prompts[1], max_new_tokens=4)
    engine.run()
    assert good.stop_reason in ("end", "length") and good.error is None


def test_scores_that_are_no_numbers_stop_the_request_alone(tiny, tokenizer, prompts):
    engine = Engine(tiny, tokenizer, max_running=2)
    tiny.decoder.embed.weight.data[tokenizer.encode("?")] = float("nan")
    bad, good = engine.submit(["axial?"], max_new_tokens=3), engine.submit(["axial"], max_new_tokens=3)
    engine.run()
    assert bad.stop_reason == "error" and "not numbers (NaN)" in bad.error
    assert good.error is None and good.stop_reason in ("end", "length")


def test_what_cannot_be_answered_is_refused_at_the_door(tiny, tokenizer, image):
    engine = Engine(tiny, tokenizer, max_waiting=2)
    for prompt, options, match in [
        ("axial", {}, "got one prompt, expected a list"),
        ([], {}, "prompt is empty"),
        ([Turn("user", ["axial"]), Turn("assistant", ["is"])], {}, "ends with the assistant"),
        (["xz" * 150], {}, "shorten the text"),
        (["x" * 196], {}, "expected at most 197 so that an answer fits"),
        (["axial"], {"temperature": -1.0}, "temperature is -1.0"),
        (["axial"], {"alternatives": 21}, "alternatives is 21, expected 0 to 20"),
    ]:
        with pytest.raises(ValueError, match=match):
            engine.submit(prompt, **options)
    tiny.vision = None
    with pytest.raises(ValueError, match="no vision encoder"):
        engine.submit([image, "axial"])
    engine.submit(["axial"]), engine.submit(["axial"])
    with pytest.raises(QueueFull, match="2 requests wait already"):
        engine.submit(["axial"])
    with pytest.raises(ValueError, match="max_running=0, expected at least 1"):
        Engine(tiny, tokenizer, max_running=0)


def test_one_thread_drives_while_others_ask(tiny, tokenizer, prompts):
    engine, wanted = Engine(tiny, tokenizer, max_running=3), alone(tiny, tokenizer, prompts)
    requests: dict[int, Request] = {}
    over = threading.Event()

    def ask(n: int) -> None:
        requests[n] = engine.submit(prompts[n], seed=n, **OPTIONS[n % 4])

    def drive() -> None:
        torch.set_num_threads(1)
        while not over.is_set():
            if engine.wait(0.01):
                engine.step()

    driver = threading.Thread(target=drive)
    driver.start()
    askers = [threading.Thread(target=ask, args=(n,)) for n in range(len(prompts))]
    for thread in askers:
        thread.start()
    for thread in askers:
        thread.join()
    while not all(request.done for request in requests.values()):
        over.wait(0.005)
    over.set()
    driver.join()
    for n, answer in enumerate(wanted):
        same(requests[n], answer)
    assert engine.wait(0.0) is False
