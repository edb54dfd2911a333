# SPDX-License-Identifier: Apache-2.0
"""The loop of next words, against golden numbers, slow twins, and itself alone."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_network
from torch.testing import assert_close

from monai_unimedvl.inferers import Context, Sampling, words
from monai_unimedvl.inferers.sampling import choose
from monai_unimedvl.networks.decoding import NextWord
from monai_unimedvl.sequence import Text, pack


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def speak(context: Context, options: Sampling, generators=None, samples=None) -> dict[int, list]:
    """All words by sample."""
    said: dict[int, list] = {}
    for step in words(context, options, generators, samples):
        for word in step:
            said.setdefault(word.sample, []).append(word)
    return said


def ids_of(said: list) -> list[int]:
    return [word.id for word in said if word.id is not None]


@pytest.mark.parametrize("case", ["text", "vqa", "edit"])
def test_golden_answers_come_word_by_word(gold, case):
    gold.check_answer(case)


def test_golden_batch_is_decoded_together(gold):
    gold.check_batch()


OPTIONS = {
    "greedy": Sampling(max_new_tokens=12),
    "greedy without repetition": Sampling(max_new_tokens=12, repetition_penalty=1.5),
    "sampled": Sampling(max_new_tokens=12, temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.2),
}
PROMPTS = [["axial"], ["which plane is this?"], ["coronal", "is"], ["sagittal sagittal"]]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_answers_of_a_batch_equal_answers_alone(tiny, segments, image, options):
    prompts = [*PROMPTS, [image, "axial"]]
    together = Context(tiny, segments, samples=5)
    together.read(prompts)
    said = speak(together, options, seeded(1, 2, 3, 4, 5))
    for s, prompt in enumerate(prompts):
        alone = Context(tiny, segments, samples=1)
        alone.read([prompt])
        wanted = speak(alone, options, seeded(s + 1))[0]
        assert ids_of(said[s]) == ids_of(wanted) and said[s][-1].stop == wanted[-1].stop
        logprobs = [[word.logprob for word in some] for some in (said[s], wanted)]
        assert_close(*map(torch.tensor, logprobs), atol=1e-9, rtol=0)


def test_sampled_answers_of_these_prompts_end_at_different_steps(tiny, segments):
    """Without this the law above would not see samples retire."""
    context = Context(tiny, segments, samples=4)
    context.read(PROMPTS)
    said = speak(context, OPTIONS["sampled"], seeded(1, 2, 3, 4))
    assert len({len(some) for some in said.values()}) >= 3
    assert {some[-1].stop for some in said.values()} == {"end", "length"}


def test_a_finished_sample_is_no_longer_computed(tiny, segments, monkeypatch):
    context = Context(tiny, segments, samples=4)
    context.read(PROMPTS)
    computed = []
    advance = NextWord.__call__
    monkeypatch.setattr(
        NextWord, "__call__", lambda self, ids, *rest: computed.append(len(ids)) or advance(self, ids, *rest)
    )
    said = speak(context, OPTIONS["sampled"], seeded(1, 2, 3, 4))
    longest = max(len(some) for some in said.values())
    assert computed == [sum(len(some) > n for some in said.values()) for n in range(longest)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_continued_dialogue_equals_the_same_read_again(tiny, segments, options):
    went_on, again = (Context(tiny, segments, samples=4) for _ in range(2))
    went_on.read(PROMPTS)
    said = speak(went_on, options, seeded(1, 2, 3, 4))
    went_on.read([["this"], [], ["plane"], []])
    after = [[Text(torch.tensor(ids_of(said[s]), dtype=torch.long))] for s in range(4)]
    after[0] += segments(["this"])
    after[2] += segments(["plane"])
    again.read([segments(prompt) + more for prompt, more in zip(PROMPTS, after, strict=True)])
    assert went_on.cache.lengths == again.cache.lengths and went_on.positions == again.positions
    for s, n in enumerate(again.cache.lengths):
        for name in ("keys", "values"):
            one, two = (getattr(context.cache, name)[:, s, :, :n] for context in (went_on, again))
            assert_close(one, two, atol=1e-12, rtol=0)


def test_only_the_named_samples_speak(tiny, segments):
    context = Context(tiny, segments, samples=3)
    context.read(PROMPTS[:3])
    before = list(context.cache.lengths)
    said = speak(context, Sampling(max_new_tokens=3), samples=[2, 1])
    context.close()
    assert set(said) == {1, 2} and context.cache.lengths[0] == before[0]
    assert context.cache.lengths[1] > before[1]


def test_logprobs_are_those_of_the_network_itself(tiny, segments, tokenizer):
    context = Context(tiny, segments, samples=1)
    context.read([["axial"]])
    said = speak(context, OPTIONS["sampled"], seeded(0))[0]
    answer = Text(torch.tensor(ids_of(said)))
    seq = pack([[*segments(["axial"]), answer]], tokenizer.marks)
    rows = tiny(seq).hidden[-len(answer.ids) - 2 :]
    logprobs = tiny.logits(rows).log_softmax(-1)
    wanted = [logprobs[i, int(id_)].item() for i, id_ in enumerate(answer.ids)]
    assert_close([word.logprob for word in said][: len(wanted)], wanted, atol=1e-9, rtol=0)


def test_words_stop_where_the_context_is_full_and_can_still_be_closed(tokenizer, segments):
    network = tiny_network(decoder={"vocab_size": len(tokenizer), "max_context": 20}).eval()
    network.decoder.head.weight.data[tokenizer.marks.text_end] = 0
    ids = segments(["axial coronal"])[0].ids
    for length, expected in ((5, 11), (15, 1), (16, 0), (18, 0)):  # length + 2 marks, then start, words, end
        context = Context(network, segments, samples=1)
        context.read([[Text(ids.repeat(9)[:length])]])
        said = speak(context, Sampling(max_new_tokens=50))[0]
        assert len(ids_of(said)) == expected and said[-1].stop == "context"
        context.close()
        assert context.cache.lengths == [20 if expected else length + 2]


@pytest.mark.parametrize(
    "options", [Sampling(8, 1e-309), Sampling(8, 5.0, top_k=1), Sampling(8, 1.0, top_p=1e-9)]
)
def test_the_coldest_and_narrowest_choices_are_greedy(tiny, segments, options):
    answers = []
    for chosen in (Sampling(8), options):
        context = Context(tiny, segments, samples=1)
        context.read([["sagittal sagittal"]])
        answers.append(ids_of(speak(context, chosen, seeded(0))[0]))
    assert answers[0] == answers[1] and len(answers[0]) == 8


def test_words_are_drawn_as_often_as_likely(tiny):
    logits = torch.tensor([[0.0, 1.0, 2.0, -math.inf, 1.0]])
    count, chance = 20_000, seeded(3)[0]
    drawn = choose(
        logits.expand(count, -1), Sampling(temperature=2.0), torch.empty(count, 0), [chance] * count
    )
    shares = torch.bincount(drawn, minlength=5) / count
    assert_close(shares, (logits[0] / 2).softmax(-1), atol=0.012, rtol=0)  # 3.5 standard deviations
    assert shares[3] == 0


def test_a_word_without_probability_is_not_drawn_even_at_the_edge(monkeypatch):
    logits = torch.tensor([[-math.inf, 0.0, -math.inf]])
    for chance in (0.0, 1 - 2**-53):
        edge = torch.tensor([chance], dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *_, edge=edge, **__: edge)
        drawn = choose(logits, Sampling(temperature=1.0), torch.empty(1, 0), seeded(0))
        assert drawn.item() == 1


def test_the_repetition_penalty_counts_the_answer_not_the_prompt(tiny, segments):
    context = Context(tiny, segments, samples=1)
    context.read([["sagittal sagittal"]])
    plain = ids_of(speak(context.fork([0]), Sampling(max_new_tokens=10))[0])
    varied = ids_of(speak(context, Sampling(max_new_tokens=10, repetition_penalty=1e6))[0])
    assert varied[0] == plain[0]
    assert len(set(plain)) < len(plain) and len(set(varied)) == len(varied)


def test_scores_that_are_no_numbers_are_refused(tiny, segments):
    context = Context(tiny, segments, samples=1)
    context.read([["axial"]])
    tiny.decoder.head.weight.data[5] = math.nan
    for options in (Sampling(), Sampling(temperature=1.0)):
        with pytest.raises(ValueError, match=r"not numbers \(NaN\): check its weights"):
            speak(context.fork([0]), options, seeded(0))


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("temperature", -0.5, "0 .greedy. or more"),
        ("top_k", -1, "0 .off. or more"),
        ("top_p", 0.0, "in .0, 1."),
        ("top_p", 1.5, "in .0, 1."),
        ("repetition_penalty", 0.0, "above 0"),
        ("max_new_tokens", 0, "at least 1"),
        ("temperature", math.nan, "0 .greedy. or more"),
    ],
)
def test_options_out_of_range_are_refused(name, value, wanted):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected {wanted}"):
        Sampling(**{name: value})
