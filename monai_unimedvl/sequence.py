# SPDX-License-Identifier: Apache-2.0
"""One packed sequence of segments: everything that the model reads or writes.

A sample is a list of segments; `pack` lays the samples side by side and says, in five numbers a token
(`Layout`), who is who. `visible` is the one rule of attention; the rest of this file is bookkeeping.

Order in memory is expert-major: first every token of the understanding expert, then those of the
generation expert, so that routing is two slices. `Plan.arrival` leads back to the order of reading.
  L tokens   V view patches   Z latent tokens   S samples
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

CAUSAL = -1  # the span of a token that belongs to no image


class Marks(NamedTuple):
    """Ids of the four control tokens, in the order of BAGEL's `new_token_ids`."""

    text_start: int
    text_end: int
    image_start: int
    image_end: int


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue: who speaks and what, text and images (3, H, W) in [0, 1] in order."""

    role: str
    parts: list[str | Tensor]

    def __post_init__(self) -> None:
        if self.role not in ("user", "assistant"):
            raise ValueError(f"Turn got role {self.role!r}, expected 'user' or 'assistant': name one of these.")


Prompt = Sequence["str | Tensor | Turn"]  # a user turn, or a dialogue of `Turn`s


@dataclass(frozen=True)
class Text:
    """Words: ids (n,) without marks; `pack` adds text_start and text_end. A dropped text leaves no trace."""

    ids: Tensor
    loss: bool = False
    dropped: bool = False


@dataclass(frozen=True)
class View:
    """An image to understand: patches (h*w, p*p*3) in [-1, 1], each in the order row, column, channel.

    A dropped view leaves no tokens, but its place: the next position moves by one.
    """

    patches: Tensor
    grid: tuple[int, int]
    dropped: bool = False


@dataclass(frozen=True)
class Canvas:
    """An image in latent space: a clean condition, or a noisy target that only itself can read.

    Args:
        grid: latent tokens down and across.
        latents: (h*w, q*q*C); None until `UniMedVL.encode` has turned `image` into them.
        image: (3, H, W) in [-1, 1], or None.
        noisy: it is being drawn; it takes no position, and no other token ever sees it.
        time: 0 is the image, 1 is noise.
    """

    grid: tuple[int, int]
    latents: Tensor | None = None
    image: Tensor | None = None
    noisy: bool = False
    time: float = 0.0
    dropped: bool = False


Segment = Text | View | Canvas


class Layout(NamedTuple):
    """Five numbers a token, each (L,): sample, order of arrival, rotary position, image span, noisy."""

    sample: Tensor
    order: Tensor
    position: Tensor
    span: Tensor
    noisy: Tensor

    def query(self) -> Layout:
        """The same with an extra axis (L, 1), to be set against keys (L,)."""
        return Layout(*(x.unsqueeze(-1) for x in self))


def visible(query: Layout, key: Layout) -> Tensor:
    """Which keys each query may attend to. The one rule of attention."""
    same_sample = query.sample == key.sample
    earlier = key.order <= query.order
    same_image = (query.span == key.span) & (key.span != CAUSAL)
    return same_sample & (same_image | (earlier & ~key.noisy))


class Routes(NamedTuple):
    """How many tokens each expert has; the understanding tokens come first in memory.

    `detach_understanding` is the reference's `freeze_und`: no gradient through understanding states.
    """

    understanding: int
    generation: int
    detach_understanding: bool = False


class Block(NamedTuple):
    """Samples that share one attention pattern: `count` of them, `length` new tokens each.

    `mask` is None (everything visible), "causal", or (length, length) bool.
    """

    samples: tuple[int, ...]
    length: int
    mask: Tensor | str | None


@dataclass(frozen=True)
class Plan:
    """What attention needs to know: layout (L,) in memory order, routes, and blocks in reading order.

    Args:
        arrival: (L,) memory places in the order of `blocks`; None when the two orders are the same.
        home: (L,) the inverse of `arrival`.
    """

    layout: Layout
    routes: Routes
    blocks: tuple[Block, ...]
    arrival: Tensor | None
    home: Tensor | None
    next_position: dict[int, int]  # rotary position after this pack, by sample


@dataclass(frozen=True)
class PackedSequence:
    """Samples packed into one sequence; `*_at` are places (in memory order) among the L tokens.

    Args:
        text_ids: (T,), marks included, at `text_at`.
        patches: (V, p*p*3) at `view_at`; `view_cells` (V, 2) row and column; `view_lengths` patches an image.
        latents: (Z, C) at `latent_at`; `latent_cells` (Z, 2); `times` (Z,); `noisy` (Z,) bool, has a flow target.
        labels: (N,) next ids at `label_at`; `label_weights` (N,) 1/sqrt(labels of the segment).
    """

    plan: Plan
    text_ids: Tensor
    text_at: Tensor
    patches: Tensor | None
    view_at: Tensor
    view_cells: Tensor
    view_lengths: tuple[int, ...]
    latents: Tensor | None
    latent_at: Tensor
    latent_cells: Tensor
    times: Tensor
    noisy: Tensor
    labels: Tensor
    label_at: Tensor
    label_weights: Tensor
    canvas_lengths: tuple[int, ...] = ()
    last_at: tuple[int, ...] = ()  # memory place of each sample's last token, -1 for an empty sample

    @property
    def layout(self) -> Layout:
        return self.plan.layout

    def __len__(self) -> int:
        return len(self.plan.layout.sample)

    def with_latents(self, latents: Tensor, times: Tensor) -> PackedSequence:
        """The same pack with other latents (Z, C) and times (Z,)."""
        return replace(self, latents=latents, times=times)

    def detached(self) -> PackedSequence:
        """The same pack with understanding states cut off from the gradient (`freeze_und`)."""
        routes = self.plan.routes._replace(detach_understanding=True)
        return replace(self, plan=replace(self.plan, routes=routes))

    def to(self, device: torch.device | str) -> PackedSequence:
        """The same pack with every tensor on `device`."""
        move = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        plan = self.plan
        blocks = tuple(b._replace(mask=b.mask.to(device)) if isinstance(b.mask, Tensor) else b for b in plan.blocks)
        moved = replace(
            plan,
            layout=Layout(*(x.to(device) for x in plan.layout)),
            blocks=blocks,
            arrival=None if plan.arrival is None else plan.arrival.to(device),
            home=None if plan.home is None else plan.home.to(device),
        )
        return replace(self, plan=moved, **move)


@dataclass
class _Rows:
    """Token columns while they are being collected, as Python lists."""

    sample: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    span: list[int] = field(default_factory=list)
    noisy: list[bool] = field(default_factory=list)
    generation: list[bool] = field(default_factory=list)


def pack(samples: Sequence[Sequence[Segment]], marks: Marks, start: Sequence[int] | None = None) -> PackedSequence:
    """The samples as one sequence.

    Args:
        samples: S lists of segments; an empty list is a sample without new tokens.
        start: the rotary position at which each sample goes on; 0 when omitted.

    Raises:
        ValueError: a canvas has not been encoded yet.
    """
    rows = _Rows()
    text_ids: list[int] = []
    text_rows: list[int] = []
    view_rows: list[int] = []
    latent_rows: list[int] = []
    patches, latents, view_cells, latent_cells = [], [], [], []
    times: list[float] = []
    noisy: list[bool] = []
    view_lengths: list[int] = []
    canvas_lengths: list[int] = []
    labels: list[int] = []
    label_rows: list[int] = []
    label_weights: list[float] = []
    next_position: dict[int, int] = {}
    signatures: list[tuple[tuple[str, int], ...]] = []
    bounds: list[tuple[int, int]] = []
    span = 0

    def add(sample: int, order: int, position: int, where: int, is_noisy: bool, generation: bool = False) -> None:
        rows.sample.append(sample)
        rows.order.append(order)
        rows.position.append(position)
        rows.span.append(where)
        rows.noisy.append(is_noisy)
        rows.generation.append(generation)

    for s, segments in enumerate(samples):
        position = start[s] if start is not None else 0
        begin, order = len(rows.sample), 0
        kinds: list[tuple[str, int]] = []
        for segment in segments:
            if segment.dropped:
                position += 0 if isinstance(segment, Text) else 1
                continue
            row = len(rows.sample)
            if isinstance(segment, Text):
                ids = [marks.text_start, *segment.ids.tolist(), marks.text_end]
                text_ids += ids
                text_rows += range(row, row + len(ids))
                for i in range(len(ids)):
                    add(s, order + i, position + i, CAUSAL, False)
                if segment.loss:  # text_start predicts the first id, the last id predicts text_end
                    labels += ids[1:]
                    label_rows += range(row, row + len(ids) - 1)
                    label_weights += [(len(ids) - 1) ** -0.5] * (len(ids) - 1)
                length, kind = len(ids), "text"
                position += len(ids)
            else:
                h, w = segment.grid
                length, is_noisy = h * w + 2, isinstance(segment, Canvas) and segment.noisy
                drawn = isinstance(segment, Canvas)
                kind = "noisy" if is_noisy else "image"
                text_ids += [marks.image_start, marks.image_end]
                text_rows += [row, row + length - 1]
                for i in range(length):
                    add(s, order + i, position, span, is_noisy, drawn and 0 < i < length - 1)
                inner = range(row + 1, row + length - 1)
                if isinstance(segment, Canvas):
                    if segment.latents is None:
                        raise ValueError(
                            "pack got a Canvas without latents: encode the samples with UniMedVL.encode first."
                        )
                    latents.append(segment.latents)
                    latent_cells.append(_cells(h, w))
                    latent_rows += inner
                    times += [segment.time] * (h * w)
                    noisy += [is_noisy] * (h * w)
                    canvas_lengths.append(h * w)
                else:
                    patches.append(segment.patches)
                    view_cells.append(_cells(h, w))
                    view_lengths.append(h * w)
                    view_rows += inner
                position += 0 if is_noisy else 1
                span += 1
            kinds.append((kind, length))
            order += length
        next_position[s] = position
        bounds.append((begin, len(rows.sample)))
        signatures.append(tuple(kinds))

    generation = torch.tensor(rows.generation, dtype=torch.bool)
    num_generation = sum(rows.generation)
    memory = torch.cat([(~generation).nonzero().squeeze(1), generation.nonzero().squeeze(1)])  # place -> row
    place = torch.empty_like(memory)  # row -> place
    place[memory] = torch.arange(len(memory))
    layout = Layout(
        torch.tensor(rows.sample, dtype=torch.long)[memory],
        torch.tensor(rows.order, dtype=torch.long)[memory],
        torch.tensor(rows.position, dtype=torch.long)[memory],
        torch.tensor(rows.span, dtype=torch.long)[memory],
        torch.tensor(rows.noisy, dtype=torch.bool)[memory],
    )
    blocks, order_of_samples = _blocks(signatures)
    parts = [torch.arange(*bounds[s]) for s in order_of_samples]
    reading = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
    arrival: Tensor | None = place[reading]
    home: Tensor | None = torch.empty_like(reading)
    home[arrival] = torch.arange(len(reading))  # type: ignore[index]
    if num_generation == 0 and order_of_samples == sorted(order_of_samples):
        arrival = home = None
    plan = Plan(
        layout, Routes(len(memory) - num_generation, num_generation), blocks, arrival, home, next_position
    )
    last = place.tolist()
    none = torch.empty(0, 2, dtype=torch.long)
    return PackedSequence(
        plan=plan,
        text_ids=torch.tensor(text_ids, dtype=torch.long),
        text_at=place[torch.tensor(text_rows, dtype=torch.long)],
        patches=torch.cat(patches) if patches else None,
        view_at=place[torch.tensor(view_rows, dtype=torch.long)],
        view_cells=torch.cat(view_cells) if view_cells else none,
        view_lengths=tuple(view_lengths),
        latents=torch.cat(latents) if latents else None,
        latent_at=place[torch.tensor(latent_rows, dtype=torch.long)],
        latent_cells=torch.cat(latent_cells) if latent_cells else none,
        times=torch.tensor(times),
        noisy=torch.tensor(noisy, dtype=torch.bool),
        labels=torch.tensor(labels, dtype=torch.long),
        label_at=place[torch.tensor(label_rows, dtype=torch.long)],
        label_weights=torch.tensor(label_weights),
        canvas_lengths=tuple(canvas_lengths),
        last_at=tuple(last[b - 1] if b > a else -1 for a, b in bounds),
    )


def step(ids: Tensor, samples: Sequence[int], positions: Sequence[int]) -> PackedSequence:
    """One new word for each of `samples`: ids (B,) at the given rotary positions."""
    count, device = len(samples), ids.device
    zero = torch.zeros(count, dtype=torch.long, device=device)
    layout = Layout(
        torch.tensor(samples, dtype=torch.long, device=device),
        zero,
        torch.tensor(positions, dtype=torch.long, device=device),
        zero - 1,
        zero.bool(),
    )
    blocks = (Block(tuple(samples), 1, None),)
    after = {s: p + 1 for s, p in zip(samples, positions, strict=True)}
    none, cells = zero[:0], zero[:0].view(0, 2)
    return PackedSequence(
        plan=Plan(layout, Routes(count, 0), blocks, None, None, after),
        text_ids=ids,
        text_at=torch.arange(count, device=device),
        patches=None,
        view_at=none,
        view_cells=cells,
        view_lengths=(),
        latents=None,
        latent_at=none,
        latent_cells=cells,
        times=none.float(),
        noisy=none.bool(),
        labels=none,
        label_at=none,
        label_weights=none.float(),
        last_at=tuple(range(count)),
    )


def _blocks(signatures: list[tuple[tuple[str, int], ...]]) -> tuple[tuple[Block, ...], list[int]]:
    """Samples of one signature share a block; returns the blocks and the samples in their order."""
    groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for s, kinds in enumerate(signatures):
        if kinds:
            groups.setdefault(kinds, []).append(s)
    blocks = tuple(
        Block(tuple(members), sum(n for _, n in kinds), _mask(kinds)) for kinds, members in groups.items()
    )
    return blocks, [s for members in groups.values() for s in members]


@lru_cache(maxsize=4096)
def _cells(h: int, w: int) -> Tensor:
    """(h*w, 2) row and column of each token."""
    return torch.cartesian_prod(torch.arange(h), torch.arange(w)).view(-1, 2)


@lru_cache(maxsize=4096)
def _mask(kinds: tuple[tuple[str, int], ...]) -> Tensor | str | None:
    """`visible` inside one sample of these segments: None, "causal", or (n, n) bool."""
    if len(kinds) == 1:
        return "causal" if kinds[0][0] == "text" else None
    if all(kind == "text" for kind, _ in kinds):
        return "causal"
    spans = [CAUSAL if kind == "text" else i for i, (kind, n) in enumerate(kinds) for _ in range(n)]
    noisy = [kind == "noisy" for kind, n in kinds for _ in range(n)]
    n = len(spans)
    order, zero = torch.arange(n), torch.zeros(n, dtype=torch.long)
    layout = Layout(zero, order, zero, torch.tensor(spans), torch.tensor(noisy))
    return visible(layout.query(), layout)
