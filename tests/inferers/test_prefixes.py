# SPDX-License-Identifier: Apache-2.0
"""What is shared is what would have been read: same keys and values, less work."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from monai_unimedvl.inferers import Context, Engine, TextInferer
from monai_unimedvl.inferers.prefixes import Prefixes, length
from monai_unimedvl.sequence import Turn


@pytest.fixture
def counted(tiny, monkeypatch):
    """Tokens of each forward of prompts, and images that the vision encoder saw."""
    tokens, images = [], []
    forward, look = tiny.forward, tiny.vision.forward
    monkeypatch.setattr(
        tiny, "forward", lambda seq, *a, **k: tokens.append(len(seq)) or forward(seq, *a, **k)
    )
    monkeypatch.setattr(tiny.vision, "forward", lambda p, c, n: images.append(len(n)) or look(p, c, n))
    return tokens, images


def apart(tiny, segments, prompts) -> list[Context]:
    contexts = []
    for prompt in prompts:
        contexts.append(Context(tiny, segments, samples=1))
        contexts[-1].read([segments(prompt, history=True)])
    return contexts


def check(context: Context, alone: list[Context]) -> None:
    for s, other in enumerate(alone):
        n = other.cache.lengths[0]
        assert (context.cache.lengths[s], context.positions[s]) == (n, other.positions[0])
        for ours, theirs in (
            (context.cache.keys, other.cache.keys),
            (context.cache.values, other.cache.values),
        ):
            assert_close(ours[:, s, :, :n], theirs[:, 0, :, :n], atol=1e-12, rtol=0)


@pytest.fixture
def questions(image, other):
    """Three about one image, two of them beginning alike; one about another; the same twice; only words."""
    return [
        [image, "axial"],
        [image, "which plane", other, "is this?"],
        [other, "axial"],
        [image, "which plane", other, "coronal"],
        ["sagittal"],
        [other, "axial"],
        [image.clone(), "axial coronal"],
    ]


@pytest.mark.parametrize("worth", [1, 20, 1 << 62])
def test_prompts_that_begin_alike_are_read_as_apart(tiny, segments, questions, counted, worth):
    alone = apart(tiny, segments, questions)
    tokens, images = counted
    tokens.clear(), images.clear()
    context = Context(tiny, segments, samples=len(questions))
    prompts = {s: segments(prompt) for s, prompt in enumerate(questions)}
    spared = Prefixes(context, worth=worth).read(prompts)
    check(context, alone)
    whole = sum(length(segment) for prompt in prompts.values() for segment in prompt)
    assert sum(tokens) == whole - sum(spared.values())
    assert sum(images) == {1: 3, 20: 3, 1 << 62: 8}[worth]
    assert len(tokens) == (1 if worth == 1 << 62 else 3)


def test_a_line_begins_with_what_any_line_has_read(tiny, segments, questions, counted):
    context = Context(tiny, segments, samples=3)
    prefixes = Prefixes(context, worth=1)
    prefixes.read({0: segments(questions[1]), 1: segments(questions[4])})
    tokens, images = counted
    tokens.clear(), images.clear()
    assert prefixes.alike(segments(questions[3])) == (0, 3) and prefixes.alike(segments(questions[2])) == (
        -1,
        0,
    )
    spared = prefixes.read({2: segments(questions[3]), 0: segments(questions[0]), 1: segments(questions[4])})
    assert images == []
    check(context, apart(tiny, segments, [questions[0], questions[4], questions[3]]))
    assert spared[1] == length(segments(questions[4])[0]) and spared[2] > spared[0] == 10
    assert prefixes.read({1: segments(questions[4])})[1] == spared[1]  # the whole prompt was there


def test_what_failed_to_be_read_is_nobodys_beginning(tiny, segments, questions, monkeypatch):
    context = Context(tiny, segments, samples=2)
    prefixes = Prefixes(context)
    read = context.read

    def broken(batch):
        raise RuntimeError("no memory")

    monkeypatch.setattr(context, "read", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        prefixes.read({0: segments(questions[0])})
    monkeypatch.setattr(context, "read", read)
    assert prefixes.read({1: segments(questions[0]), 0: segments(questions[4])}) == {1: 0, 0: 0}
    check(context, apart(tiny, segments, [questions[4], questions[0]]))


def test_many_questions_about_one_image_look_at_it_once(tiny, tokenizer, image, counted):
    ask = TextInferer(tokenizer, max_new_tokens=4)
    batch = [[image, word] for word in ("axial", "coronal", "sagittal", "plane", "is", "this", "which", "?")]
    wanted = [ask([prompt], tiny)[0] for prompt in batch]
    tokens, images = counted
    tokens.clear(), images.clear()
    answers = ask(batch, tiny)
    assert [answer.ids for answer in answers] == [answer.ids for answer in wanted]
    assert images == [1] and tokens[0] == 10


@pytest.mark.parametrize("share", [True, False])
def test_an_engine_goes_on_from_what_it_has_read(tiny, tokenizer, image, other, counted, share):
    engine = Engine(tiny, tokenizer, max_running=2, share=share)
    first = engine.submit([image, "axial"], max_new_tokens=3)
    engine.run()
    dialogue = [Turn("user", [image, "axial"]), Turn("assistant", ["is this"]), Turn("user", ["plane"])]
    later = engine.submit(dialogue, max_new_tokens=5)
    asked = engine.submit([image, "sagittal"], max_new_tokens=5)
    engine.run()
    unlike = engine.submit([other, "sagittal"], max_new_tokens=5)
    engine.run()
    counted[1].clear()
    again = engine.submit(dialogue, max_new_tokens=5)
    engine.run()
    shared = [request.shared_tokens for request in (first, later, asked, unlike, again)]
    if share:
        assert shared == [0, first.prompt_tokens, 10, 0, 10]  # the dialogue's place was taken by the stranger
        assert counted[1] == []
    else:
        assert shared == [0] * 5 and counted[1] == [1]
    for request, prompt in ((later, dialogue), (asked, [image, "sagittal"]), (unlike, [other, "sagittal"])):
        (wanted,) = TextInferer(tokenizer, max_new_tokens=5)([prompt], tiny)
        assert request.answer.ids == wanted.ids
        assert_close(request.answer.logprobs, wanted.logprobs, atol=1e-10, rtol=0)
    assert again.answer == later.answer


def test_an_image_that_is_drawn_from_is_not_shared(tiny, segments, image):
    dialogue = ["axial", image, "plane"]
    context = Context(tiny, segments, samples=2)
    first, second = (segments(dialogue, draw=True) for _ in range(2))
    spared = Prefixes(context, worth=1).read({0: first, 1: second})
    assert spared[1] == length(first[0]) == 4 and spared[0] == 0
    alone = Context(tiny, segments, samples=1)
    alone.read([first])
    check(context, [alone, alone])
    assert torch.equal(*(next(iter(bases.values())).latents for bases in context.bases))


def test_what_the_assistant_drew_is_shared_like_any_image_to_look_at(tiny, segments, image):
    dialogue = [Turn("user", ["axial", image]), Turn("assistant", [1 - image]), Turn("user", ["plane"])]
    context = Context(tiny, segments, samples=2)
    parts = segments(dialogue, history=True)
    spared = Prefixes(context, worth=1).read({0: parts, 1: segments(dialogue, history=True)})
    assert spared[1] == sum(map(length, parts)) and spared[0] == 0
    check(context, apart(tiny, segments, [dialogue, dialogue]))
