# SPDX-License-Identifier: Apache-2.0
"""Laws of the mixture: the budget holds, nothing is lost or doubled, weights count, a state says it all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import pytest
import torch
from tiny import MARKS, canvas, text, view

from monai_unimedvl.data.mixture import (
    Dropout,
    Mixture,
    Pack,
    Stream,
    count_tokens,
    drop_conditions,
    merge,
)
from monai_unimedvl.data.record import InvalidRecord, Reject
from monai_unimedvl.sequence import Segment, View, pack


def stream(name: str, length: int, weight: float = 1.0, **options: Any) -> Stream:
    """Samples whose words are their own index and a number drawn for them, of 4 to 8 tokens."""

    def read(index: int, generator: torch.Generator) -> list[str]:
        drawn = int(torch.randint(1000, (1,), generator=generator))
        return [name, *map(str, [index, drawn] + [0] * (index % 5))]

    return Stream(name, read, length, weight, **options)


def to_segments(words: Any, draw: bool = False) -> list[Segment]:
    """One text; a canvas before it when `draw` is asked."""
    return [*([canvas(1, 2)] if draw else []), text(*map(int, words[1:]))]


def mixture(*streams: Stream, budget: int = 40, **options: Any) -> Mixture:
    return Mixture(streams, to_segments, budget=budget, **options)


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
    drawn = Counter(mixed._stream(n) for n in range(10_000))
    assert [drawn[i] / 10_000 for i in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.01)


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


def test_patches_are_hidden_up_to_the_share_and_their_places_are_kept():
    view = View(torch.randn(16, 12), (4, 4))
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(200):
        (found,) = drop_conditions([view], Dropout(patches=0.75), generator)
        assert torch.equal(found.patches, view.patches) and found.kept.equal(found.kept.unique())
        seen.append(found.tokens)
    assert min(seen) >= 4 and max(seen) == 16 and len(set(seen)) > 8
    (found,) = drop_conditions([replace(view, kept=torch.tensor([3]))], Dropout(patches=0.75), generator)
    assert found.tokens == 1  # pruned already
    assert drop_conditions([view], Dropout(patches=1.0), generator)[0].tokens >= 1


def test_of_slices_what_repeats_is_not_read_as_often_as_asked() -> None:
    first = torch.rand(16, 12)
    sample = [*(View(first + 0.01 * n, (4, 4)) for n in range(9)), text(3), text(4, loss=True)]
    generator, whole = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        found = drop_conditions(sample, Dropout(repeats=0.5), generator)
        tokens = sum(segment.tokens for segment in found[:9])
        assert tokens == 9 * 16 or (tokens <= 4 * 16 and found[0].tokens == 16)
        whole += tokens == 9 * 16
    assert 30 < whole < 70
    assert drop_conditions(sample, Dropout(), generator) == sample


def shared(ranks: int, workers: int, count: int, lanes: int = 4) -> list[Pack]:
    """The packs of ranks with so many workers each, in the order in which they are trained on."""
    each = []
    for rank in range(ranks):
        of_workers = []
        for worker in range(workers):
            mixed = mixture(*STREAMS, lanes=lanes, lookahead=1)
            mixed.place = worker * ranks + rank, ranks * workers  # dealt as `own_lanes` deals
            of_workers.append(islice(mixed, count // (ranks * workers)))
        each.append(chain.from_iterable(zip(*of_workers, strict=True)))
    return list(chain.from_iterable(zip(*each, strict=True)))


STREAMS = (stream("a", 7, 2.0), stream("b", 9, dropout=Dropout(text=0.4, canvas=0.4), draws=True))


@pytest.mark.parametrize("ranks, workers", [(1, 2), (2, 1), (2, 2), (1, 4), (4, 1)])
def test_ranks_and_workers_give_the_packs_of_one_process_in_its_order(ranks: int, workers: int) -> None:
    alone, together = shared(1, 1, 40), shared(ranks, workers, 40)
    assert [pack.number for pack in together] == list(range(40))
    assert [(p.origins, ids(p)) for p in together] == [(p.origins, ids(p)) for p in alone]


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
def test_lanes_share_the_draws_and_none_is_lost_or_doubled(lanes: int) -> None:
    mixed = mixture(stream("a", 23), stream("b", 40, 3.0), lanes=lanes)
    found = places(list(islice(mixed, 30 * lanes)))
    assert set(found.values()) == {1}
    held = {(spot[0], spot[1]) for lane in mixed._lanes for spot in lane.held}
    for number, source in enumerate(mixed.streams):
        taken = [_place(source, origin) for origin in found if origin.startswith(source.name)]
        last = min(lane.taken[number] for lane in mixed._lanes)
        assert set(range(last)) <= {place for place in taken} | {p for n, p in held if n == number}


def _place(source: Stream, origin: str) -> int:
    """Where in its endless run of epochs the sample of an origin stood."""
    _, index, epoch = origin.split("/")
    order = mixture(*[s for s in (stream("a", 23), stream("b", 40, 3.0))])._order(
        "ab".index(source.name), int(epoch)
    )
    return int(epoch) * source.length + order.tolist().index(int(index))


@pytest.mark.parametrize("lookahead", [0, 1, 5])
@pytest.mark.parametrize("lanes", [1, 3])
def test_a_state_in_the_middle_is_exact_with_lanes_and_lookahead(lanes: int, lookahead: int) -> None:
    def fresh() -> Mixture:
        return mixture(*STREAMS, budget=17, lanes=lanes, lookahead=lookahead)

    packs = list(islice(fresh(), 40))
    for at in (1, 4, 11):
        resumed, started = fresh(), fresh()
        list(islice(started, at))
        resumed.load_state_dict(json.loads(json.dumps(started.state_dict())))
        assert [p.origins for p in islice(resumed, 29)] == [p.origins for p in packs[at : at + 29]]
        assert [p.number for p in islice(resumed, 2)] == [at + 29, at + 30]


def test_what_waits_is_kept_when_a_run_goes_on_with_less_lookahead() -> None:
    before, after = mixture(*STREAMS, budget=17, lookahead=5), mixture(*STREAMS, budget=17)
    first = list(islice(before, 9))
    after.load_state_dict(before.state_dict())
    found = places(first + list(islice(after, 20)))
    assert set(found.values()) == {1}
    for number, source in enumerate(STREAMS):
        taken = {o for o in found if o.startswith(source.name)}
        assert len(taken) + sum(n == number for n, _ in after._lanes[0].held) == after.taken[number]


def test_a_run_may_go_on_with_other_ranks(lanes: int = 4) -> None:
    alone = list(islice(mixture(*STREAMS, lanes=lanes), 24))
    states = []
    for rank in range(2):
        mixed = mixture(*STREAMS, lanes=lanes)
        mixed.place = rank, 2
        list(islice(mixed, 5))  # ten packs of both
        states.append(mixed.state_dict())
    resumed = mixture(*STREAMS, lanes=lanes)
    resumed.load_state_dict(merge(states))
    assert [p.origins for p in islice(resumed, 14)] == [p.origins for p in alone[10:]]
    assert merge([alone[0].state]) == alone[0].state


def test_a_state_of_the_first_version_goes_on() -> None:
    old = {"names": ["a", "b"], "seed": 0, "taken": [11, 6], "held": [0, 10], "rejected": {"a": 2}}
    mixed = mixture(*STREAMS)
    mixed.load_state_dict(old)
    found = mixed.next_pack()
    assert found.number == -1 and found.origins[0] == f"a/{int(mixed._order(0, 1)[3])}/1"
    assert mixed.rejected == Counter(a=2) and found.state["packs"] is None


def test_one_lane_gives_the_packs_of_the_first_version() -> None:
    streams = (stream("a", 7, 2.0), stream("b", 9, 1.0, dropout=Dropout(0.4, 0.0, 0.4), draws=True))
    found = hashlib.sha256()
    for made in islice(mixture(*streams, seed=3), 100):
        found.update(json.dumps([made.origins, made.tokens, ids(made)]).encode())
    assert found.hexdigest()[:16] == FIRST_VERSION


FIRST_VERSION = "01bd2cc0d5d22a4f"


def test_lookahead_fills_packs_with_what_fits_and_nobody_waits_for_ever() -> None:
    def read(index: int, generator: torch.Generator) -> list[str]:
        return ["a", *["0"] * (28 if index % 4 == 0 else 9 + index % 7)]

    def fill(lookahead: int) -> float:
        mixed = mixture(Stream("a", read, 200, 1.0), budget=64, lookahead=lookahead)
        packs = list(islice(mixed, 200))
        waited = Counter(o for p in packs for o in p.origins)
        assert set(waited.values()) == {1}
        assert len(mixed._lanes[0].held) == lookahead + 1 and all(p.tokens <= 64 for p in packs)
        epochs = [int(p.origins[0].split("/")[2]) for p in packs]
        assert epochs == sorted(epochs)  # what waited longest begins the next pack
        return sum(p.tokens for p in packs) / (64 * 200)

    without, some, many = fill(0), fill(4), fill(16)
    assert without < 0.86 < some < 0.92 < many


def test_weights_may_move_and_still_be_the_same_for_every_rank() -> None:
    def moving(draw: int) -> list[float]:
        return [1.0, 0.0] if draw < 30 else [0.0, 1.0]

    def fresh() -> Mixture:
        return mixture(stream("a", 7), stream("b", 9), lanes=2, weights=moving)

    packs = list(islice(fresh(), 12))
    found = places(packs)
    assert sum(n for origin, n in found.items() if origin.startswith("a")) == 30
    halves = []
    for rank in range(2):
        mixed = fresh()
        mixed.place = rank, 2
        halves.append(list(islice(mixed, 6)))
    assert [p.origins for both in zip(*halves, strict=True) for p in both] == [p.origins for p in packs]


def test_what_a_stream_cannot_give_is_a_reject_in_its_pack() -> None:
    def read(index: int, generator: torch.Generator) -> Any:
        if index == 0:
            return Reject("image-missing", "no file", "id-0")
        if index == 1:
            raise InvalidRecord("image-damaged", "cut short")
        return ["a", *["0"] * (100 if index == 2 else 4), *(["x"] if index == 3 else [])]

    def segments(words: Any, draw: bool = False) -> list[Segment]:
        if "x" in words:
            raise ValueError("the prompt is odd.")
        return to_segments(words, draw)

    mixed = Mixture([Stream("a", read, 8, 1.0, label=lambda i: f"id-{i}")], segments, budget=40)
    packs = list(islice(mixed, 8))
    rejects = [reject for p in packs for reject in p.rejects]
    assert {(r.code, r.id.split("/")[-2] if "/" in r.id else r.id) for r in rejects} == {
        ("image-missing", "id-0"), ("image-damaged", "id-1"), ("too-long", "id-2"), ("no-segments", "id-3"),
    }  # fmt: skip
    assert mixed.rejected == Counter(a=len(rejects)) and {o.split("/")[1] for o in places(packs)} == {
        "id-4", "id-5", "id-6", "id-7",
    }  # fmt: skip
    taken = packs[-1].state["taken"][0]
    assert taken == len(rejects) + sum(len(p.samples) for p in packs) + 1  # one is held


def test_ranks_and_workers_that_cannot_share_evenly_are_refused_with_the_mend() -> None:
    mixed = mixture(stream("one", 5), lanes=2)
    mixed.check_lanes(0), mixed.check_lanes(2)
    with pytest.raises(ValueError, match=r"lanes=2, which 1 rank\(s\) with 4 loader.*multiple of 4"):
        mixed.check_lanes(4)
    mixed.place = 1, 3
    with pytest.raises(ValueError, match=r"3 rank\(s\) with 1 loader.*set lanes to a multiple of 3"):
        mixed.next_pack(), next(iter(mixed))


def test_two_streams_of_one_name_no_lane_and_another_number_of_them_are_refused() -> None:
    with pytest.raises(ValueError, match="two streams called 'a'"):
        mixture(stream("a", 1), stream("a", 2))
    with pytest.raises(ValueError, match="lanes=0, lookahead=0, expected at least 1 and 0"):
        mixture(stream("a", 1), lanes=0)
    for other in (mixture(stream("a", 3), lanes=2), mixture(stream("a", 4))):
        with pytest.raises(ValueError, match=r"saved mixture has lanes=1 and streams of \[3\] samples"):
            other.load_state_dict(mixture(stream("a", 3)).state_dict())


def test_a_fingerprint_names_what_differs() -> None:
    one = mixture(*STREAMS).fingerprint()
    assert one == mixture(*STREAMS).fingerprint()
    for other, name in [
        (mixture(*STREAMS, seed=1), "budget, seed, lanes and lookahead"),
        (mixture(STREAMS[0], stream("b", 9, digest="x")), "stream 'b'"),
        (mixture(stream("a", 8, 2.0), STREAMS[1]), "stream 'a'"),
    ]:
        found = other.fingerprint()
        assert name in [key for key in one if one[key] != found[key]]
