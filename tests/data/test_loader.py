# SPDX-License-Identifier: Apache-2.0
"""Loaders with worker processes give one process's packs, and their state is that of what was handed out."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
import torch
from tiny import canvas, text, view

from monai_unimedvl.data import loader as module
from monai_unimedvl.data.loader import PackLoader, bundle, stateful_loader, unbundle
from monai_unimedvl.data.mixture import Mixture, Pack, Stream
from monai_unimedvl.sequence import Segment


def mixture(lanes: int = 4, fail: int = -1) -> Mixture:
    def read(index: int, generator: torch.Generator) -> list[int]:
        if index == fail:
            raise TypeError("a fault in the code")
        return [index, *torch.randint(20, (index % 5,), generator=generator).tolist()]

    def to_segments(words: list[int], draw: bool = False) -> list[Segment]:
        return [view(1, 2), canvas(1, 1 + words[0] % 3), text(*words, loss=True)]

    return Mixture(
        [Stream("a", read, 30, 1.0), Stream("b", read, 9, 2.0)], to_segments, budget=60, lanes=lanes
    )


def content(packs: Any) -> list[Any]:
    return [
        (p.origins, p.number, [[s.ids.tolist() for s in sample if hasattr(s, "ids")] for sample in p.samples])
        for p in packs
    ]


ALONE = content(islice(mixture(), 12))


def test_a_pack_comes_out_of_its_parcel_to_the_bit() -> None:
    pack = mixture().next_pack()
    parcel = bundle(pack)
    assert set(parcel.flat) == {"torch.int64", "torch.float64"}
    again = unbundle(parcel)
    assert again._replace(samples=[]) == pack._replace(samples=[])
    for sample, other in zip(pack.samples, again.samples, strict=True):
        for one, two in zip(sample, other, strict=True):
            assert type(one) is type(two)
            for name, value in vars(one).items():
                same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
                assert same(value, getattr(two, name))


@pytest.mark.parametrize("build", [PackLoader, stateful_loader])
def test_two_workers_are_one_process_and_resume_exactly(build: Any) -> None:
    loader = build(mixture(), num_workers=2)
    running = iter(loader)
    found = [next(running) for _ in range(5)]
    state = loader.state_dict()
    if build is PackLoader:
        state = json.loads(json.dumps(state))
    found += list(islice(running, 3))
    assert content(found) == ALONE[:8]
    again = build(mixture(), num_workers=2)
    again.load_state_dict(state)
    assert content(islice(again, 4)) == ALONE[5:9]


def test_a_run_goes_on_with_other_workers_at_any_place() -> None:
    for at, workers in [(3, 2), (6, 1)]:
        loader = PackLoader(mixture(), num_workers=2)
        list(islice(loader, at))
        again = PackLoader(mixture(), num_workers=workers)
        again.load_state_dict(loader.state_dict())
        assert content(islice(again, 3)) == ALONE[at : at + 3]


def test_without_torchdata_our_own_loader_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "optional_import", lambda *a, **k: (None, False))
    assert isinstance(stateful_loader(mixture()), PackLoader)


def test_each_iteration_goes_on_after_what_was_used_however_far_was_read() -> None:
    loader = PackLoader(mixture())
    ahead = loader.packs()
    read = [next(ahead) for _ in range(4)]
    loader.note(read[0])
    assert content(islice(loader.packs(), 2)) == ALONE[1:3]
    assert content(islice(loader, 3)) == ALONE[1:4]
    assert content(islice(loader, 2)) == ALONE[4:6]


def test_ranks_take_turns_and_another_number_of_workers_goes_on() -> None:
    ranks = [PackLoader(mixture(), rank=rank, ranks=2) for rank in range(2)]
    halves = [list(islice(loader, 3)) for loader in ranks]
    assert content(pack for both in zip(*halves, strict=True) for pack in both) == ALONE[:6]
    assert content(islice(ranks[0], 1)) == ALONE[6:7] and ranks[1].state_dict()["lanes"][0]["packs"] == 0


def test_lanes_are_checked_before_any_process_starts() -> None:
    for build in (PackLoader, stateful_loader):
        with pytest.raises(ValueError, match="lanes=4, which 1 rank.*3 loader worker"):
            build(mixture(), num_workers=3)


def test_the_error_of_a_worker_is_one_sentence() -> None:
    small = mixture(lanes=1)
    small.budget = 3
    with pytest.raises(ValueError) as caught:
        next(iter(PackLoader(small, num_workers=1)))
    assert (
        str(caught.value) == "Mixture found 1000 samples in a row longer than budget=3 tokens: raise budget."
    )
    with pytest.raises(TypeError, match="a fault in the code"):
        list(islice(PackLoader(mixture(1, fail=3), num_workers=1), 30))


def test_a_loader_leaves_the_mixture_it_was_given_alone() -> None:
    mixed = mixture()
    before = mixed.state_dict()
    taken: list[Pack] = list(islice(PackLoader(mixed), 3))
    assert mixed.state_dict() == before and mixed.place is None and len(taken) == 3
