# SPDX-License-Identifier: Apache-2.0
"""/v1/chat/completions through OpenAI's own client: every answer is the one the inferer gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from serve_support import NAME, png, shown, user

from monai_unimedvl.inferers import Answer, TextInferer
from monai_unimedvl.sequence import Prompt, Turn
from monai_unimedvl.serve import Service
from monai_unimedvl.transforms.choosing import Choice, choose

REASONS = {"end": "stop", "length": "length", "context": "length"}


def alone(service: Service, prompt: Prompt, **options: Any) -> Answer:
    """What the inferer says, without any server."""
    (answer,) = TextInferer(service.tokenizer, **{"max_new_tokens": 60, **options})([prompt], service.network)
    return answer


def picture(content: bytes, folder: Path) -> Any:
    (folder / "image.png").write_bytes(content)
    return choose(folder / "image.png", Choice(square=True))[0][0].as_tensor()


def ask(client: openai.OpenAI, *messages: dict[str, Any], **options: Any) -> Any:
    return client.chat.completions.create(model=NAME, messages=list(messages), **options)  # type: ignore


def test_an_answer_about_an_image_is_the_inferers_with_its_log_probabilities(client, service, tmp_path):
    wanted = alone(service, [picture(png(), tmp_path), "which plane is this?"])
    got = ask(client, user(png(), "which plane is this?"), logprobs=True, top_logprobs=3)
    (choice,) = got.choices
    assert choice.message.content == wanted.text
    assert (
        choice.finish_reason == {"end": "stop", "length": "length", "context": "length"}[wanted.stop_reason]
    )
    assert [t.logprob for t in choice.logprobs.content] == pytest.approx(wanted.logprobs, abs=1e-9)
    assert all(len(t.top_logprobs) == 3 for t in choice.logprobs.content)
    for t in choice.logprobs.content:
        assert t.top_logprobs[0].logprob == pytest.approx(t.logprob)  # greedy
    assert got.usage.completion_tokens == len(wanted.ids)
    assert got.usage.total_tokens == got.usage.prompt_tokens + len(wanted.ids)
    assert got.provenance["synthetic"] is True
    assert got.system_fingerprint == service.fingerprint


def test_a_dialogue_with_a_system_message_and_several_turns_is_read_in_order(client, service, tmp_path):
    turns = [
        Turn("user", ["coronal"]),
        Turn("user", [picture(png(1), tmp_path), "which plane"]),
        Turn("assistant", ["axial"]),
        Turn("user", ["is this?"]),
    ]
    got = ask(
        client, {"role": "system", "content": "coronal"}, user(png(1), "which plane"),
        {"role": "assistant", "content": "axial"}, {"role": "user", "content": "is this?"},
    )  # fmt: skip
    assert got.choices[0].message.content == alone(service, turns).text


def test_a_stream_is_the_answer_in_pieces_with_the_usage_at_its_end(client, service):
    options = {"temperature": 1.0, "seed": 4, "logprobs": True}
    whole = ask(client, user("sagittal axial"), **options)
    events = list(
        ask(client, user("sagittal axial"), stream=True, stream_options={"include_usage": True}, **options)
    )
    assert events[0].choices[0].delta.role == "assistant"
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 3, "it came at once"
    reasons = [event.choices[0].finish_reason for event in events if event.choices]
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1])
    said = [t for event in events if event.choices and event.choices[0].logprobs
            for t in event.choices[0].logprobs.content]  # fmt: skip
    assert [t.logprob for t in said] == [t.logprob for t in whole.choices[0].logprobs.content]
    told, wanted = events[-1].usage, whole.usage
    assert (told.prompt_tokens, told.completion_tokens) == (wanted.prompt_tokens, wanted.completion_tokens)
    assert told.prompt_tokens_details.cached_tokens <= told.prompt_tokens  # it may have been read before


def test_sampling_is_the_inferers_and_each_of_n_has_the_next_seed(client, service):
    got = ask(
        client, user("axial"), n=3, temperature=0.8, top_p=0.9, seed=7, max_tokens=9,
        extra_body={"top_k": 40, "repetition_penalty": 1.2},
    )  # fmt: skip
    for choice, seed in zip(got.choices, (7, 8, 9), strict=True):
        wanted = alone(
            service, ["axial"], max_new_tokens=9, temperature=0.8, top_p=0.9, top_k=40, seed=seed,
            repetition_penalty=1.2,
        )  # fmt: skip
        assert choice.message.content == wanted.text


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_word_and_its_place_is_free(client, service, stream):
    text = ask(client, user("coronal"), temperature=1.0, seed=3).choices[0].message.content
    stop = text[4:7]
    wanted = text[: text.find(stop)]
    got = ask(client, user("coronal"), temperature=1.0, seed=3, stop=["never said", stop], stream=stream)
    said = (
        "".join(e.choices[0].delta.content or "" for e in got) if stream else got.choices[0].message.content
    )
    assert said == wanted
    assert ask(client, user("axial")).choices  # the engine still works
    assert service.worker.load()["answers_running"] == 0


REFUSED = [
    ({"messages": []}, "messages"),
    ({"model": "other"}, "not served here, expected 'tiny'"),
    ({"temperature": 3.0}, "temperature"),
    ({"max_tokens": 61}, "at most 60"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "leave one out"),
    ({"top_logprobs": 3}, "logprobs"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"n": 2, "stream": True}, "n above 1"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"extra_body": {"beam": 4}}, "beam"),
    ({"messages": [{"role": "assistant", "content": "axial"}]}, "expected the user's"),
    ({"messages": [user("")]}, "empty"),
    ({"messages": [user("axial " * 400)]}, "context holds"),
    ({"messages": [{"role": "user", "content": [shown(b"no image")]}]}, "no image that can be read"),
    ({"messages": [{"role": "user", "content": [shown(png(), "image/svg+xml")]}]}, "svg"),
    ({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "https://127.0.0.1/x.png"}}]}]}, "no data URL"),
    ({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,*"}}]}]}, "base64"),
]  # fmt: skip


@pytest.mark.parametrize("change, said", REFUSED, ids=[said for _, said in REFUSED])
def test_what_does_not_fit_is_refused_in_one_sentence(client, change, said):
    with pytest.raises(openai.APIStatusError, match=said) as caught:
        client.chat.completions.create(**{"model": NAME, "messages": [user("axial")], **change})
    assert caught.value.status_code == (404 if change.get("model") else 400)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert "/tmp" not in caught.value.body["message"]


def test_models_and_health_and_metrics_tell_what_is_there(client, url):
    import httpx

    (model,) = client.models.list().data
    assert (model.id, client.models.retrieve(NAME).id) == (NAME, NAME)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    text = httpx.get(f"{url}/metrics").text
    assert 'unimedvl_requests_total{route="/v1/models",status="200"}' in text
    assert "process_resident_memory_bytes" in text
