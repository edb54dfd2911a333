# SPDX-License-Identifier: Apache-2.0
"""Laws of the mixture: the budget holds, nothing is lost or doubled, weights count, a state says it all."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, islice
from typing import Any

import pytest
import torch
from tiny import MARKS, canvas, text, view

from monai_unimedvl.data.mixture import Dropout, Mixture, Pack, Stream, count_tokens, drop_conditions
from monai_unimedvl.sequence import Segment, pack


def stream(name: str, length: int, weight: float = 1.0, **options: Any) -> Stream:
    """Samples whose words are their own index and a number drawn for them, of 4 to 8 tokens."""

    def read(index: int, generator: torch.Generator) -> list[str]:
        drawn = int(torch.randint(1000, (1,), generator=generator))
        return [name, *map(str, [index, drawn] + [0] * (index % 5))]

    return Stream(name, read, length, weight, **options)


def to_segments(words: Any, draw: bool = False) -> list[Segment]:
    """One text; a canvas before it when `draw` is asked."""
    return [*([canvas(1, 2)] if draw else []), text(*map(int, words[1:]))]


def mixture(*streams: Stream, budget: int = 40, seed: int = 0) -> Mixture:
    return Mixture(streams, to_segments, budget=budget, seed=seed)


def ids(found: Pack) -> list[list[int]]:
    """The words of each sample."""
    return [[i for s in sample if hasattr(s, "ids") for i in s.ids.tolist()] for sample in found.samples]


def places(packs: list[Pack]) -> Counter[str]:
    return Counter(chain.from_iterable(p.origins for p in packs))


def test_a_pack_keeps_the_budget_and_leaves_no_room_for_the_next_sample() -> None:
    packs = list(islice(mixture(stream("a", 7), stream("b", 9)), 60))
    for now, then in zip(packs, packs[1:], strict=False):
        counts = [count_tokens(sample) for sample in now.samples]
        assert now.tokens == sum(counts) == len(pack(now.samples, MARKS)) <= 40
        assert now.tokens + count_tokens(then.samples[0]) > 40


def test_an_epoch_has_each_sample_once_and_each_epoch_an_order_of_its_own() -> None:
    origins = [o.split("/") for p in islice(mixture(stream("a", 23)), 12) for o in p.origins]
    indexes = [int(index) for _, index, _ in origins]
    epochs = [indexes[i : i + 23] for i in (0, 23, 46)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(23))
    assert epochs[0] != epochs[1] != epochs[2]
    assert [int(epoch) for _, _, epoch in origins] == [i // 23 for i in range(len(origins))]


def test_ten_thousand_draws_keep_the_weights() -> None:
    mixed = mixture(stream("a", 50, 6.0), stream("b", 5, 3.0), stream("c", 500, 1.0))
    drawn = Counter(mixed._draw()[0] for _ in range(10_000))
    assert [drawn[i] / 10_000 for i in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.02)


@pytest.mark.parametrize("at", [1, 7, 30])
def test_a_state_gives_the_same_packs_afterwards(at: int) -> None:
    streams = (stream("a", 7, 2.0), stream("b", 9, dropout=Dropout(text=0.4, canvas=0.4), draws=True))
    packs = list(islice(mixture(*streams), at + 25))
    resumed = mixture(*streams)
    resumed.load_state_dict(json.loads(json.dumps(packs[at - 1].state)))
    again = list(islice(resumed, 25))
    for one, other in zip(packs[at:], again, strict=True):
        assert (one.origins, one.tokens, ids(one)) == (other.origins, other.tokens, ids(other))
        dropped = [[s.dropped for sample in p.samples for s in sample] for p in (one, other)]
        assert dropped[0] == dropped[1]
        assert json.loads(json.dumps(one.state)) == json.loads(json.dumps(other.state))
    assert places(packs[:at]) + places(again) == places(packs)


def test_chance_is_another_one_for_every_sample_epoch_and_seed() -> None:
    drawn = [ids(p) for p in islice(mixture(stream("a", 5)), 8)]
    numbers = [sample[1] for found in drawn for sample in found]
    assert len(set(numbers)) > 0.9 * len(numbers) > 20
    assert drawn != [ids(p) for p in islice(mixture(stream("a", 5), seed=1), 8)]


def test_samples_over_the_budget_are_counted_and_left_out() -> None:
    mixed = mixture(stream("a", 10), budget=7)  # indexes 4 and 9 have 8 tokens
    packs = list(islice(mixed, 40))
    seen = {int(o.split("/")[1]) for o in places(packs)}
    assert seen == {0, 1, 2, 3, 5, 6, 7, 8}
    taken = sum(places(packs).values()) + 1  # one is held for the next pack
    assert mixed.rejected["a"] == packs[-1].state["taken"][0] - taken > 0
    assert packs[-1].state["rejected"] == {"a": mixed.rejected["a"]}


def test_a_budget_that_nothing_fits_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="1000 samples in a row longer than budget=3 tokens: raise budget"):
        mixture(stream("a", 3), budget=3).next_pack()


def test_only_long_samples_in_a_row_make_a_budget_too_small() -> None:
    def read(index: int, generator: torch.Generator) -> list[str]:
        return ["a", *["0"] * (1 if index == 0 else 100)]

    mixed = mixture(Stream("a", read, 500, 1.0), budget=9)  # never more than 998 in a row
    assert mixed.next_pack().tokens == 9 and mixed.rejected["a"] > 1000


def test_streams_without_samples_or_weight_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="without samples or weight: b, c; expected"):
        mixture(stream("a", 1), stream("b", 0), stream("c", 2, weight=0.0))
    with pytest.raises(ValueError, match="without samples or weight: none at all"):
        mixture()


def test_a_state_of_other_streams_or_another_seed_is_refused() -> None:
    state = mixture(stream("a", 3)).state_dict()
    for other in (mixture(stream("b", 3)), mixture(stream("a", 3), seed=1)):
        with pytest.raises(ValueError, match=r"saved mixture has streams \['a'\] and seed 0, this one has"):
            other.load_state_dict(state)


def test_conditions_are_dropped_as_often_as_asked_and_what_has_a_loss_never() -> None:
    taught = [text(9, loss=True), canvas(1, 2, noisy=True)]
    sample = [text(1), view(1, 2), text(2), canvas(1, 2), view(2, 2), *taught]
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(3)
    for _ in range(2000):
        words, first, more, drawn, second, *kept = drop_conditions(sample, Dropout(0.5, 0.2, 0.05), generator)
        assert words.dropped == more.dropped and first.dropped == second.dropped
        assert not any(segment.dropped for segment in kept)
        counts += torch.tensor([words.dropped, first.dropped, drawn.dropped])
    assert counts.div(2000).tolist() == pytest.approx([0.5, 0.2, 0.05], abs=0.04)
    assert not any(segment.dropped for segment in sample)


def test_no_dropout_drops_nothing_and_a_dropped_segment_costs_nothing() -> None:
    sample = [text(1, 2), view(1, 2), canvas(1, 3)]
    generator = torch.Generator().manual_seed(0)
    assert all(drop_conditions(sample, Dropout(), generator) == sample for _ in range(50))
    assert count_tokens(sample) == 4 + 4 + 5
    assert count_tokens(drop_conditions(sample, Dropout(1.0, 0.0, 1.0), generator)) == 4


def test_several_workers_would_double_packs_and_are_refused() -> None:
    loader = torch.utils.data.DataLoader(mixture(stream("one", 5)), batch_size=None, num_workers=2)
    with pytest.raises(ValueError, match="2 loader workers.*use num_workers=0 or 1"):
        next(iter(loader))
