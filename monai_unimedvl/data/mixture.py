# SPDX-License-Identifier: Apache-2.0
"""Weighted streams of dialogues -> packs under a token budget, with an exact state for resuming.

Chance is drawn from generators seeded by (seed, stream, sample, epoch) or (seed, draw), never from a global
one, so a state is a handful of counters: the same counters give the same packs for ever.

Draws are dealt in turn to *lanes*, and each lane packs its own. Pack number k is of lane k modulo the number
of lanes, whoever makes it: any ranks and loader workers that divide the lanes evenly give the same packs in
the same order as one process alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from monai_unimedvl.data.record import InvalidRecord, Reject
from monai_unimedvl.data.sample import Dropout, drop_conditions, generator_of
from monai_unimedvl.sequence import Prompt, Segment, count_tokens

__all__ = ["Dropout", "Mixture", "Pack", "Stream", "drop_conditions", "merge"]

MISSES = 1000  # rejected samples in a row after which nothing can be expected of a stream
Spot = tuple[int, int]  # a stream, and a place in its endless run of epochs


@dataclass(frozen=True)
class Stream:
    """One source of samples.

    Args:
        read: (index, generator) -> dialogue, or a `Reject`; the generator is seeded by sample and epoch, for
            augmentation. An `InvalidRecord` raised in it is a reject too.
        length: samples an epoch.
        weight: share of draws, against the other streams.
        draws: images of the user also become clean canvases.
        order: generator -> the indexes of an epoch, each once; None is a random permutation.
        label: index -> what origins call the sample; None takes the index.
        digest: what the content is known by, so that ranks can compare theirs.
    """

    name: str
    read: Callable[[int, torch.Generator], Prompt | Reject]
    length: int
    weight: float
    dropout: Dropout = Dropout()
    draws: bool = False
    order: Callable[[torch.Generator], Tensor] | None = None
    label: Callable[[int], str] | None = None
    digest: str = ""


class Pack(NamedTuple):
    """Samples that fit the budget together, their origins ("stream/sample/epoch"), and the state after.

    `state` is that of the pack's lane; `rejects` are the samples left out on the way; `number` counts the
    packs of all lanes, -1 where a state of an earlier version did not tell.
    """

    samples: list[list[Segment]]
    origins: list[str]
    tokens: int
    state: dict[str, Any]
    rejects: tuple[Reject, ...] = ()
    number: int = -1


@dataclass
class _Lane:
    """Where a lane stands: draws taken from each stream before its next, and what waits for its next pack."""

    number: int
    taken: list[int]
    held: list[Spot] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    packs: int | None = 0


class Mixture(IterableDataset):
    """Endless packs of at most `budget` tokens.

    Every stream runs through a new permutation each epoch; the sample that does not fit begins the next
    pack. A sample longer than the whole budget is a `Reject` in its pack and counted in `rejected`.

    Args:
        to_segments: (dialogue, draw) -> segments; `transforms.ToSegments`.
        budget: tokens a pack, marks included.
        lanes: a multiple of ranks x loader workers. It is part of what a run is: another number gives other
            packs, another number of ranks or workers does not.
        lookahead: samples that may wait while smaller ones fill the pack; they begin the next one.
        weights: draw number -> weight of each stream, for weights that move; None takes the streams'.

    Raises:
        ValueError: no stream, or one without samples or weight, or of the same name as another.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        to_segments: Callable[..., list[Segment]],
        *,
        budget: int,
        seed: int = 0,
        lanes: int = 1,
        lookahead: int = 0,
        weights: Callable[[int], Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        empty = [s.name for s in streams if s.length < 1 or s.weight <= 0]
        if empty or not streams:
            raise ValueError(
                f"Mixture got streams without samples or weight: {', '.join(empty) or 'none at all'}; "
                "expected a sample and a positive weight in each: fetch the data or leave them out."
            )
        if twice := [name for name, n in Counter(s.name for s in streams).items() if n > 1]:
            raise ValueError(f"Mixture got two streams called {twice[0]!r}, expected one: rename one.")
        if lanes < 1 or lookahead < 0:
            raise ValueError(
                f"Mixture got lanes={lanes}, lookahead={lookahead}, expected at least 1 and 0: raise them."
            )
        self.streams, self.to_segments = list(streams), to_segments
        self.budget, self.seed, self.lookahead, self.weights = budget, seed, lookahead, weights
        self.place: tuple[int, int] | None = None  # rank and ranks; None asks torch.distributed
        self.turn = 0  # which worker's lanes the first worker takes, so that a resumed loader begins aright
        self._stream_of: dict[int, int] = {}  # draw -> stream, as far as some lane still needs it
        self._orders: dict[tuple[int, int], Tensor] = {}
        self._lanes = [_Lane(n, [0] * len(self.streams)) for n in range(lanes)]
        for lane in self._lanes:
            self._pass(lane, lane.number)

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return len(self._lanes)

    @property
    def taken(self) -> list[int]:
        """Samples taken from each stream by the lane that is furthest."""
        return list(max(self._lanes, key=lambda lane: sum(lane.taken)).taken)

    @property
    def rejected(self) -> Counter[str]:
        """Samples left out of each stream, over all lanes."""
        return sum((lane.rejected for lane in self._lanes), Counter())

    def __iter__(self) -> Iterator[Pack]:
        lanes = self.own_lanes()
        while True:
            yield self._fill(self._next(lanes))

    def own_lanes(self) -> list[int]:
        """The lanes of this rank and loader worker.

        Raises:
            ValueError: they cannot be dealt evenly.
        """
        rank, ranks = self._rank()
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        self.check_lanes(workers)
        worker = (worker + self.turn) % workers
        return list(range(worker * ranks + rank, self.lanes, ranks * workers))

    def check_lanes(self, num_workers: int) -> None:
        """That the ranks with so many loader workers each can share the lanes evenly.

        Raises:
            ValueError: they cannot.
        """
        _, ranks = self._rank()
        each = ranks * max(1, num_workers)
        if self.lanes % each:
            raise ValueError(
                f"Mixture has lanes={self.lanes}, which {ranks} rank(s) with {num_workers} loader worker(s) "
                f"each cannot share evenly: set lanes to a multiple of {each}, or use fewer workers."
            )

    def next_turn(self) -> int:
        """How many packs this rank has made; modulo the workers, the one whose turn it is."""
        rank, ranks = self._rank()
        lane = self._next(range(rank, self.lanes, ranks))
        return (lane.packs or 0) * (self.lanes // ranks) + lane.number // ranks

    def next_pack(self) -> Pack:
        """The next pack of all lanes; moves the state.

        Raises:
            ValueError: 1000 samples in a row are longer than the budget, or cannot be read.
        """
        return self._fill(self._next(range(self.lanes)))

    def state_dict(self) -> dict[str, Any]:
        """Counters that say exactly where the mixture stands."""
        each = [self._state(lane) for lane in self._lanes]
        return each[0] if self.lanes == 1 else {**self._head(), "lanes": each}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, also one of another number of ranks or workers.

        Raises:
            ValueError: it is of other streams, another seed, or another number of lanes.
        """
        head, each = self._head(), state.get("lanes", [state])
        if state["names"] != head["names"] or state["seed"] != self.seed:
            raise ValueError(
                f"The saved mixture has streams {state['names']} and seed {state['seed']}, this one has "
                f"{head['names']} and {self.seed}: resume with the configuration that wrote the state."
            )
        if state.get("lengths", head["lengths"]) != head["lengths"] or len(each) != self.lanes:
            raise ValueError(
                f"The saved mixture has lanes={len(each)} and streams of {state.get('lengths')} samples, "
                f"this one lanes={self.lanes} and {head['lengths']}: resume with the same data and lanes."
            )
        lanes = []
        for number, saved in enumerate(each):
            held = saved["held"] or []
            spots = [held] if held and isinstance(held[0], int) else held  # earlier versions held one
            lane = _Lane(number, list(saved["taken"]), [(stream, place) for stream, place in spots])
            lane.rejected, lane.packs = Counter(saved["rejected"]), saved.get("packs")
            lanes.append(lane)
        self._lanes = lanes

    def fingerprint(self) -> dict[str, str]:
        """Each part of what decides the packs and a hash of it; ranks that differ in one have other data."""
        mixed = (self.budget, self.seed, self.lanes, self.lookahead)
        parts: dict[str, str] = {"budget, seed, lanes and lookahead": str(mixed)}
        for number, stream in enumerate(self.streams):
            found = hashlib.sha256(
                repr((stream.length, stream.weight, stream.dropout, stream.draws, stream.digest)).encode()
            )
            first = self._read(number, 0)  # a look at the content, where there is no digest
            for segment in first[0] if not isinstance(first, Reject) else []:
                for value in vars(segment).values():
                    found.update(
                        value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
                    )
            parts[f"stream {stream.name!r}"] = found.hexdigest()[:16]
        engine = getattr(getattr(self.to_segments, "tokenizer", None), "engine", None)
        if engine is not None:
            parts["the tokenizer"] = hashlib.sha256(engine.to_str().encode()).hexdigest()[:16]
        return parts

    def _rank(self) -> tuple[int, int]:
        """This rank and the number of ranks."""
        if self.place is None and dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return self.place or (0, 1)

    def _head(self) -> dict[str, Any]:
        names, lengths = [s.name for s in self.streams], [s.length for s in self.streams]
        return {"names": names, "lengths": lengths, "seed": self.seed}

    def _state(self, lane: _Lane) -> dict[str, Any]:
        return {
            **self._head(), "lane": lane.number, "packs": lane.packs, "taken": list(lane.taken),
            "held": [list(spot) for spot in lane.held], "rejected": dict(lane.rejected),
        }  # fmt: skip

    def _next(self, lanes: Sequence[int]) -> _Lane:
        """The lane whose turn it is: the fewest packs, then the lowest number."""
        return min((self._lanes[n] for n in lanes), key=lambda lane: (lane.packs or 0, lane.number))

    def _fill(self, lane: _Lane) -> Pack:
        samples: list[list[Segment]] = []
        origins: list[str] = []
        rejects: list[Reject] = []
        tokens, misses = 0, 0
        waiting, lane.held = deque(lane.held), []
        while len(lane.held) <= self.lookahead:
            spot = waiting.popleft() if waiting else self._draw(lane)
            found = self._sample(*spot)
            if isinstance(found, Reject):
                rejects.append(found)
                lane.rejected[self.streams[spot[0]].name] += 1
                misses += 1
                if misses > MISSES:
                    raise ValueError(self._hopeless(found))
                continue
            segments, origin = found
            length = count_tokens(segments)
            if tokens + length > self.budget:
                lane.held.append(spot)
                continue
            samples.append(segments)
            origins.append(origin)
            tokens, misses = tokens + length, 0
        lane.held += waiting
        number = -1 if lane.packs is None else lane.packs * self.lanes + lane.number
        lane.packs = None if lane.packs is None else lane.packs + 1
        return Pack(samples, origins, tokens, self._state(lane), tuple(rejects), number)

    def _hopeless(self, last: Reject) -> str:
        if last.code == "too-long":
            what = f"longer than budget={self.budget} tokens: raise budget."
        else:
            what = f"that are no use, expected some that are; the last, {last.id}: {last.reason}"
        return f"Mixture found {MISSES} samples in a row {what}"

    def _draw(self, lane: _Lane) -> Spot:
        """The lane's next sample; the draws of the other lanes are passed by."""
        stream = self._stream(sum(lane.taken))
        place = lane.taken[stream]
        self._pass(lane, self.lanes)
        return stream, place

    def _pass(self, lane: _Lane, draws: int) -> None:
        for _ in range(draws):
            lane.taken[self._stream(sum(lane.taken))] += 1

    def _stream(self, draw: int) -> int:
        """The stream of a draw, which seed and weights alone decide."""
        if draw not in self._stream_of:
            if len(self._stream_of) > 100_000:
                self._stream_of.clear()
            wanted = self.weights(draw) if self.weights else [s.weight for s in self.streams]
            weights = torch.tensor(wanted, dtype=torch.float64)
            generator = generator_of(self.seed, -1, draw, 0)
            self._stream_of[draw] = int(torch.multinomial(weights, 1, generator=generator))
        return self._stream_of[draw]

    def _sample(self, stream: int, place: int) -> tuple[list[Segment], str] | Reject:
        """The sample at a place and its origin; a reject where it is no use, also for its length."""
        found = self._read(stream, place)
        if isinstance(found, Reject):
            return found
        length = count_tokens(found[0])
        if length > self.budget:
            reason = f"it has {length} tokens, expected at most budget={self.budget}: raise budget."
            return Reject("too-long", reason, found[1], "mixture")
        return found

    def _read(self, stream: int, place: int) -> tuple[list[Segment], str] | Reject:
        source = self.streams[stream]
        epoch, at = divmod(place, source.length)
        index = int(self._order(stream, epoch)[at])
        origin = f"{source.name}/{source.label(index) if source.label else index}/{epoch}"
        generator = generator_of(self.seed, stream, index, epoch)
        try:
            said = source.read(index, generator)
        except InvalidRecord as error:
            return Reject(error.code, error.reason, origin, "mixture")
        if isinstance(said, Reject):
            return said
        try:
            segments = self.to_segments(said, draw=source.draws)
        except ValueError as error:
            return Reject("no-segments", str(error), origin, "mixture")
        return drop_conditions(segments, source.dropout, generator), origin

    def _order(self, stream: int, epoch: int) -> Tensor:
        key = (stream, epoch)
        if key not in self._orders:  # lanes may stand at both sides of an epoch's end
            self._orders = {k: v for k, v in self._orders.items() if k[0] != stream or abs(k[1] - epoch) < 2}
            source, generator = self.streams[stream], generator_of(self.seed, stream, -1, epoch)
            permutation = source.order or (lambda g: torch.randperm(source.length, generator=g))
            self._orders[key] = permutation(generator)
        return self._orders[key]


def merge(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state of the states of several ranks: each lane as the rank knows it that is furthest in it."""
    if "lanes" not in states[0]:
        return states[0]
    lanes = zip(*(state["lanes"] for state in states), strict=True)
    return {**states[0], "lanes": [max(lane, key=lambda state: state["packs"]) for lane in lanes]}
