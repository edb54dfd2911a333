# SPDX-License-Identifier: Apache-2.0
"""Weighted streams of dialogues -> packs under a token budget, with an exact state for resuming.

Chance is drawn from generators seeded by (seed, stream, sample, epoch) or (seed, draw), never from a global
one, so a state is a handful of counters: the same counters give the same packs for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from monai_unimedvl.sequence import Canvas, Prompt, Segment, Text, View


class Dropout(NamedTuple):
    """Chances that a condition is left out in training, so that guidance has its branches.

    A user's text, and the images as views or clean canvases; what has a loss is never dropped.
    """

    text: float = 0.0
    view: float = 0.0
    canvas: float = 0.0


@dataclass(frozen=True)
class Stream:
    """One source of samples.

    Args:
        read: (index, generator) -> dialogue; the generator is seeded by sample and epoch, for augmentation.
        length: samples an epoch.
        weight: share of draws, against the other streams.
        draws: images of the user also become clean canvases.
    """

    name: str
    read: Callable[[int, torch.Generator], Prompt]
    length: int
    weight: float
    dropout: Dropout = Dropout()
    draws: bool = False


class Pack(NamedTuple):
    """Samples that fit the budget together, their origins ("stream/index/epoch"), and the state after."""

    samples: list[list[Segment]]
    origins: list[str]
    tokens: int
    state: dict[str, Any]


class Mixture(IterableDataset):
    """Endless packs of at most `budget` tokens.

    Every stream runs through a new permutation each epoch; the sample that does not fit begins the next
    pack. A sample longer than the whole budget is counted in `rejected` and left out.

    Args:
        to_segments: (dialogue, draw) -> segments; `transforms.ToSegments`.
        budget: tokens a pack, marks included.

    Raises:
        ValueError: no stream, or one without samples or weight.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        to_segments: Callable[..., list[Segment]],
        *,
        budget: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        empty = [s.name for s in streams if s.length < 1 or s.weight <= 0]
        if empty or not streams:
            raise ValueError(
                f"Mixture got streams without samples or weight: {', '.join(empty) or 'none at all'}; "
                "expected a sample and a positive weight in each: fetch the data or leave them out."
            )
        self.streams, self.to_segments = list(streams), to_segments
        self.budget, self.seed = budget, seed
        self.taken = [0] * len(self.streams)  # samples taken from each stream
        self.held: tuple[int, int] | None = None  # stream and place of the sample that begins the next pack
        self.rejected: Counter[str] = Counter()
        self._orders: dict[tuple[int, int], list[int]] = {}

    def __iter__(self) -> Iterator[Pack]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"Mixture got {worker.num_workers} loader workers, each of which would give the same packs: "
                "use num_workers=0 or 1."
            )
        while True:
            yield self.next_pack()

    def next_pack(self) -> Pack:
        """The next pack; moves the state.

        Raises:
            ValueError: 1000 samples in a row are longer than the budget.
        """
        samples: list[list[Segment]] = []
        origins: list[str] = []
        tokens, misses = 0, 0
        while True:
            stream, place = self.held if self.held is not None else self._draw()
            self.held = None
            segments, origin = self._sample(stream, place)
            length = count_tokens(segments)
            if length > self.budget:
                self.rejected[self.streams[stream].name] += 1
                misses += 1
                if misses > 1000:
                    raise ValueError(
                        f"Mixture found 1000 samples in a row longer than budget={self.budget} tokens:"
                        " raise budget."
                    )
                continue
            if tokens + length > self.budget:
                self.held = (stream, place)
                return Pack(samples, origins, tokens, self.state_dict())
            samples.append(segments)
            origins.append(origin)
            tokens, misses = tokens + length, 0

    def state_dict(self) -> dict[str, Any]:
        """Counters that say exactly where the mixture stands."""
        return {
            "names": [s.name for s in self.streams], "seed": self.seed, "taken": list(self.taken),
            "held": self.held, "rejected": dict(self.rejected),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is of other streams or another seed.
        """
        names = [s.name for s in self.streams]
        if state["names"] != names or state["seed"] != self.seed:
            raise ValueError(
                f"The saved mixture has streams {state['names']} and seed {state['seed']}, this one has "
                f"{names} and {self.seed}: resume with the configuration that wrote the state."
            )
        self.taken = list(state["taken"])
        self.held = tuple(state["held"]) if state["held"] is not None else None
        self.rejected = Counter(state["rejected"])

    def _draw(self) -> tuple[int, int]:
        generator = _generator(self.seed, -1, sum(self.taken), 0)
        weights = torch.tensor([s.weight for s in self.streams], dtype=torch.float64)
        stream = int(torch.multinomial(weights, 1, generator=generator))
        self.taken[stream] += 1
        return stream, self.taken[stream] - 1

    def _sample(self, stream: int, place: int) -> tuple[list[Segment], str]:
        source = self.streams[stream]
        epoch, at = divmod(place, source.length)
        index = self._order(stream, epoch)[at]
        generator = _generator(self.seed, stream, index, epoch)
        segments = self.to_segments(source.read(index, generator), draw=source.draws)
        return drop_conditions(segments, source.dropout, generator), f"{source.name}/{index}/{epoch}"

    def _order(self, stream: int, epoch: int) -> list[int]:
        key = (stream, epoch)
        if key not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[0] != stream}
            generator = _generator(self.seed, stream, -1, epoch)
            self._orders[key] = torch.randperm(self.streams[stream].length, generator=generator).tolist()
        return self._orders[key]


def drop_conditions(
    segments: Sequence[Segment], dropout: Dropout, generator: torch.Generator
) -> list[Segment]:
    """The segments with conditions marked as dropped by chance; a kind is dropped as a whole."""
    text, view, canvas = (torch.rand(3, generator=generator) < torch.tensor(dropout)).tolist()
    dropped: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text) and text and not segment.loss:
            segment = replace(segment, dropped=True)
        elif isinstance(segment, View) and view:
            segment = replace(segment, dropped=True)
        elif isinstance(segment, Canvas) and canvas and not segment.noisy:
            segment = replace(segment, dropped=True)
        dropped.append(segment)
    return dropped


def count_tokens(segments: Sequence[Segment]) -> int:
    """Tokens of a sample, marks included."""
    return sum(
        len(s.ids) + 2 if isinstance(s, Text) else s.grid[0] * s.grid[1] + 2
        for s in segments
        if not s.dropped
    )


def _generator(seed: int, stream: int, index: int, epoch: int) -> torch.Generator:
    """A generator of its own for every (seed, stream, index, epoch)."""
    mixed = seed
    for part in (stream + 1, index + 1, epoch + 1):  # splitmix-like: neighbours must not look alike
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) & (2**63 - 1)
        mixed ^= mixed >> 29
    return torch.Generator().manual_seed(mixed)
